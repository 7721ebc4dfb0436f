//! The systemd services of machines, and their registration with systemd-machined.

use super::{ImperativeError, MachineName};
use crate::host::{first_output, last_output};
use std::fmt::{self, Display, Formatter};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{SystemTime, UNIX_EPOCH};

/// The arguments of busctl that call a method of systemd-machined: org.freedesktop.machine1(5).
const MACHINED: [&str; 4] =
    ["call", "org.freedesktop.machine1", "/org/freedesktop/machine1", "org.freedesktop.machine1.Manager"];

/// The units around a machine's service, which are `PartOf` it.
const HELPERS: [&str; 6] = ["root", "set-booted", "tap-interfaces", "macvtap-interfaces", "pci-devices", "virtiofsd"];

/// The service of a machine.
#[derive(Clone, Debug)]
pub struct Service {
    unit: String,
}

/// The state of a service: `ActiveState` in systemd(1).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ServiceState {
    /// It is not running, or has failed.
    Inactive,
    /// It is being started, or systemd is waiting to restart it.
    Starting,
    /// It is running.
    Active,
    /// It is being stopped.
    Stopping,
}

impl Service {
    /// Returns the service of the machine.
    pub fn of(name: &MachineName) -> Self {
        Self { unit: format!("microvm@{name}.service") }
    }

    /// Returns its state in systemd. Without systemd, all services are inactive.
    pub fn state(&self) -> ServiceState {
        let mut command = Command::new("systemctl");
        command.args(["show", "--property=ActiveState", "--value", &self.unit]);
        let output = command.stdin(Stdio::null()).stderr(Stdio::null()).output();
        let state = output.map(|output| String::from_utf8_lossy(&output.stdout).trim().to_owned()).unwrap_or_default();
        match state.as_str() {
            "active" | "reloading" | "refreshing" => ServiceState::Active,
            "activating" => ServiceState::Starting,
            "deactivating" => ServiceState::Stopping,
            _ => ServiceState::Inactive,
        }
    }

    /// Returns which units of the machine have failed in systemd. Empty without systemd.
    pub fn failed_units(&self) -> Vec<FailedUnit> {
        let mut command = Command::new("systemctl");
        let properties = "--property=Id,ActiveState,Result,ExecMainStartTimestampMonotonic";
        command.args(["show", properties, &self.unit]).args(self.helpers());
        let output = command.stdin(Stdio::null()).stderr(Stdio::null()).output();
        failed_units(&output.map(|output| String::from_utf8_lossy(&output.stdout).into_owned()).unwrap_or_default())
    }

    /// Lets the units of the machine that have failed count as inactive. systemd lets only root do that.
    pub fn forget_failures(&self) {
        let failed = self.failed_units();
        if !failed.is_empty() {
            let mut command = Command::new("systemctl");
            quiet(command.args(["reset-failed", "--no-ask-password"]).args(failed.iter().map(|unit| &unit.name)));
        }
    }

    /// Whether this is the machine's service, and not a unit around it.
    pub(super) fn is(&self, failed: &FailedUnit) -> bool {
        failed.name == self.unit
    }

    /// Whether systemd runs this host and has the unit. If systemd does not answer, it is assumed to have it: a machine
    /// must not be started outside of its service then.
    pub fn is_installed(&self) -> bool {
        // sd_booted(3)
        if !Path::new("/run/systemd/system").is_dir() {
            return false;
        }
        let mut command = Command::new("systemctl");
        command.args(["show", "--property=LoadState", "--value", &self.unit]);
        let output = command.stdin(Stdio::null()).stderr(Stdio::null()).output();
        output.map_or(true, |output| !(output.status.success() && output.stdout.trim_ascii() == b"not-found"))
    }

    /// Starts systemctl with a verb, without waiting for it.
    ///
    /// # Errors
    /// Fails if systemctl cannot be started.
    pub fn begin(&self, verb: &str) -> Result<Child, ImperativeError> {
        let mut command = Command::new("systemctl");
        command.args([verb, &self.unit]).stdin(Stdio::null());
        command.spawn().map_err(|source| ImperativeError::NoProgram { program: "systemctl", source })
    }

    /// Starts systemctl to stop the service, without waiting for it.
    ///
    /// # Errors
    /// Fails if systemctl cannot be started.
    pub fn begin_stop(&self) -> Result<Child, ImperativeError> {
        // When the host shuts down, or Pacemaker alone is stopped or restarted, systemd stops the services of a cluster's
        // machines after Pacemaker. It would wait for Pacemaker, which waits for this.
        let is_held_back = host_shuts_down()? || has_pacemaker_job()?;
        let mode = if is_held_back { "ignore-dependencies" } else { "replace" };
        let mut command = Command::new("systemctl");
        command.args(["stop", &format!("--job-mode={mode}"), &self.unit]).stdin(Stdio::null());
        command.spawn().map_err(|source| ImperativeError::NoProgram { program: "systemctl", source })
    }

    /// Starts systemctl to stop the units around the service, without waiting for it. Without this, they stay active if
    /// the service was stopped with `ignore-dependencies` or has ended by itself, and the next start skips them. While the
    /// host shuts down, systemd stops them anyway.
    ///
    /// # Errors
    /// Fails if systemctl cannot be started.
    pub fn begin_stop_of_helpers(&self) -> Result<Option<Child>, ImperativeError> {
        if host_shuts_down()? {
            return Ok(None);
        }
        let mut command = Command::new("systemctl");
        command.arg("stop").args(self.helpers()).stdin(Stdio::null());
        command.spawn().map(Some).map_err(|source| ImperativeError::NoProgram { program: "systemctl", source })
    }

    /// Kills all processes of the service.
    ///
    /// # Errors
    /// The same as [`Self::command`].
    pub fn kill(&self) -> Result<(), ImperativeError> {
        run(&["kill", "--signal=SIGKILL", &self.unit])
    }

    /// Lets a service that was killed count as inactive. systemd may have forgotten it already.
    pub fn forget_failure(&self) {
        quiet(Command::new("systemctl").args(["reset-failed", &self.unit]));
    }

    /// Runs a verb of systemctl: start, stop, restart.
    ///
    /// # Errors
    /// Fails if systemctl cannot be started or fails; systemctl has then printed the reason.
    pub fn command(&self, verb: &str) -> Result<(), ImperativeError> {
        run(&[verb, &self.unit])
    }

    /// Returns the name of the unit.
    pub fn unit(&self) -> &str {
        &self.unit
    }

    /// Returns the command that shows the machine's journal.
    pub fn journal(&self, arguments: &[String]) -> Command {
        let mut command = Command::new("journalctl");
        command.arg("--unit").arg(&self.unit);
        // The units around it report what fails before the hypervisor starts.
        for helper in self.helpers() {
            command.arg("--unit").arg(helper);
        }
        command.args(arguments);
        command
    }

    /// Returns the end of what the programs of the service and of the units around it have printed since that position, as far
    /// as the journal can be read within 10 s. The guest's console is in it.
    pub fn messages_since(&self, position: &JournalPosition) -> Vec<u8> {
        sync_journal();
        // Without `--lines`, which counts from the position, and not from the end.
        let arguments = ["--quiet", "--no-pager", "--output=cat", &position.option()].map(str::to_owned);
        last_output(self.journal(&arguments)).unwrap_or_default()
    }

    fn helpers(&self) -> impl Iterator<Item = String> {
        HELPERS.iter().map(|helper| self.unit.replacen("microvm@", &format!("microvm-{helper}@"), 1))
    }
}

/// A position in the journal of this host: the time in microseconds since 1970. Not a cursor, because with matches systemd
/// 252 skips the first message after it.
#[derive(Debug)]
pub struct JournalPosition(u128);

impl JournalPosition {
    /// Returns the end of the journal.
    pub fn end() -> Self {
        // What was printed before must be stored before that time.
        sync_journal();
        Self(SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_micros())
    }

    /// Returns the option of journalctl that selects the messages after this position.
    fn option(&self) -> String {
        format!("--since=@{}.{:06}", self.0 / 1_000_000, self.0 % 1_000_000)
    }
}

/// Lets the journal store what programs have printed that have ended. Waits for it for 10 s at most.
fn sync_journal() {
    let mut command = Command::new("journalctl");
    command.arg("--sync");
    // Without this, the last messages may be missing.
    let _ = first_output(command);
}

fn run(arguments: &[&str]) -> Result<(), ImperativeError> {
    let status = Command::new("systemctl")
        .args(arguments)
        .status()
        .map_err(|source| ImperativeError::NoProgram { program: "systemctl", source })?;
    if status.success() {
        return Ok(());
    }
    let program = format!("systemctl {}", arguments.join(" "));
    Err(ImperativeError::Program { program, status, output: String::new() })
}

/// A unit of a machine that has failed in systemd.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FailedUnit {
    /// The name of the unit.
    name: String,
    /// The reason: `Result` in org.freedesktop.systemd1(5).
    result: String,
    /// When its main process was started last, in microseconds of the monotonic clock; 0 if it was not.
    started: u64,
}

impl FailedUnit {
    /// Whether its main process was started last after that time, in microseconds of the monotonic clock.
    pub(super) fn has_started_after(&self, monotonic_microseconds: u64) -> bool {
        self.started > monotonic_microseconds
    }
}

impl Display for FailedUnit {
    fn fmt(&self, formatter: &mut Formatter<'_>) -> fmt::Result {
        write!(formatter, "{} has failed: {}", self.name, self.result)
    }
}

/// Returns the failed units in the output of `systemctl show`, which separates units by empty lines.
fn failed_units(properties: &str) -> Vec<FailedUnit> {
    let failed = properties.split("\n\n").filter_map(|unit| {
        let value = |name: &str| unit.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix('='));
        (value("ActiveState") == Some("failed")).then(|| FailedUnit {
            name: value("Id").unwrap_or_default().to_owned(),
            result: value("Result").unwrap_or_default().to_owned(),
            started: value("ExecMainStartTimestampMonotonic").and_then(|time| time.parse().ok()).unwrap_or_default(),
        })
    });
    failed.collect()
}

/// Whether systemd is shutting the host down.
///
/// # Errors
/// Fails if systemctl cannot be started.
pub fn host_shuts_down() -> Result<bool, ImperativeError> {
    // `is-system-running` says "starting" if the host shuts down before it has finished booting. The job waits until
    // all services have stopped.
    let mut command = Command::new("systemctl");
    command.args(["show", "--property=Job", "--value", "shutdown.target"]).stdin(Stdio::null()).stderr(Stdio::null());
    let output = command.output().map_err(|source| ImperativeError::NoProgram { program: "systemctl", source })?;
    Ok(!matches!(output.stdout.trim_ascii(), b"" | b"0"))
}

/// Whether systemd is starting or stopping Pacemaker.
fn has_pacemaker_job() -> Result<bool, ImperativeError> {
    let mut command = Command::new("systemctl");
    command
        .args(["show", "--property=Job,ActiveState", "pacemaker.service"])
        .stdin(Stdio::null())
        .stderr(Stdio::null());
    let output = command.output().map_err(|source| ImperativeError::NoProgram { program: "systemctl", source })?;
    let text = String::from_utf8_lossy(&output.stdout);
    Ok(text.lines().any(|line| match line.split_once('=') {
        Some(("Job", job)) => !matches!(job, "" | "0"),
        Some(("ActiveState", state)) => state == "deactivating",
        _ => false,
    }))
}

/// Whether the host's configuration still installs the machine.
pub fn is_declared(name: &MachineName) -> bool {
    quiet(Command::new("systemctl").args(["cat", &format!("install-microvm-{name}.service")]))
}

fn quiet(command: &mut Command) -> bool {
    command
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .is_ok_and(|status| status.success())
}

/// Registers the machine and its process with systemd-machined, for `machinectl`.
///
/// # Errors
/// Fails if busctl cannot be started or fails.
pub fn register(name: &str, machine_id: Option<&str>, leader: u32) -> Result<(), ImperativeError> {
    let digits: String = machine_id.unwrap_or_default().chars().filter(char::is_ascii_hexdigit).collect();
    let id: Vec<String> = (0..digits.len() / 2)
        .filter_map(|at| u8::from_str_radix(digits.get(2 * at..2 * at + 2)?, 16).ok())
        .map(|byte| byte.to_string())
        .collect();
    let mut command = Command::new("busctl");
    command.args(MACHINED).args(["RegisterMachine", "sayssus", name]).arg(id.len().to_string()).args(id);
    command.args(["microvm", "vm", &leader.to_string(), ""]);
    call(command, "busctl RegisterMachine")
}

/// Removes the registration of the machine.
///
/// # Errors
/// Fails if busctl cannot be started or fails.
pub fn unregister(name: &str) -> Result<(), ImperativeError> {
    let mut command = Command::new("busctl");
    command.args(MACHINED).args(["UnregisterMachine", "s", name]);
    call(command, "busctl UnregisterMachine")
}

fn call(mut command: Command, program: &str) -> Result<(), ImperativeError> {
    let status = command.status().map_err(|source| ImperativeError::NoProgram { program: "busctl", source })?;
    if status.success() {
        return Ok(());
    }
    Err(ImperativeError::Program { program: program.to_owned(), status, output: String::new() })
}

#[cfg(test)]
mod tests {
    use super::failed_units;

    #[test]
    fn units_that_have_failed_are_found_with_their_results() {
        let shown = "Id=microvm@web.service\nActiveState=inactive\nResult=dependency\n\n\
                     Id=microvm-root@web.service\nActiveState=failed\nResult=exit-code\n\n\
                     Id=microvm-virtiofsd@web.service\nActiveState=active\nResult=success\n";
        let texts: Vec<_> = failed_units(shown).iter().map(ToString::to_string).collect();
        assert_eq!(texts, ["microvm-root@web.service has failed: exit-code"]);
        assert!(failed_units("").is_empty());
    }
}
