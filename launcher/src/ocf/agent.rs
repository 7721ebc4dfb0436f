//! One machine of the cluster on this node, and the actions on it that need no other node.

use super::exit_code::AgentError;
use super::observe::{Observed, observe, seconds_since};
use super::parameters::Parameters;
use crate::control::Condition;
use crate::imperative::{JournalPosition, Layout, Machine, Service, ServiceState, assign, fetch, is_held, state_of};
use crate::isolation::StateDirectory;
use crate::launch::{Access, Launch, VolumeNeed};
use crate::run::clean_up_stopped;
use crate::shutdown::{StopTarget, end_start, stop};
use crate::state::{Activity, MachineState, RuntimeDirectory, StartRequest};
use crate::suspend::is_suspended;
use crate::volumes::{ImageLock, LockRequest, LockTime, VolumeError, lock_volumes};
use program::child::{OnParentDeath, prepare};
use program::escape::one_line;
use program::place::Place;
use program::user::Identity;
use std::fs;
use std::io;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Child, Command, Output, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

/// How often to check whether a machine has started or stopped.
pub(super) const POLL_INTERVAL: Duration = Duration::from_millis(20);
/// The file in the state directory that receives the messages of a machine that runs without a service.
const LOG: &str = "microvm.log";
/// The maximum number of errors of a failed start that are reported.
const MAX_ERRORS: usize = 4;
/// How long a guest may take to boot before a monitor of depth 10 fails: a busy host is slow, and a machine that is
/// stopped while it boots never gets ready.
const BOOT_TIMEOUT_SECONDS: u64 = 300;
/// The check level with which the guest must have booted.
const DEEP_CHECK_LEVEL: u32 = 10;
/// The timeout of an operation that has none in the environment, as when the agent is run by hand.
const DEFAULT_OPERATION_TIMEOUT: Duration = Duration::from_secs(120);

/// What Pacemaker passes to an operation besides the machine's parameters.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Operation {
    /// After this time, Pacemaker kills the agent.
    pub timeout: Duration,
    /// How thoroughly to check: `OCF_CHECK_LEVEL`.
    pub check_level: u32,
    /// The node to which the machine moves.
    pub target: Option<String>,
}

impl Operation {
    /// Reads the environment variables, of which `value` returns the values.
    pub fn parse(value: impl Fn(&str) -> Option<String>) -> Self {
        let number = |name: &str| value(name).and_then(|text| text.parse::<u64>().ok());
        let timeout = number("OCF_RESKEY_CRM_meta_timeout").map(Duration::from_millis);
        let level = number("OCF_CHECK_LEVEL").and_then(|level| u32::try_from(level).ok());
        Self {
            timeout: timeout.filter(|timeout| !timeout.is_zero()).unwrap_or(DEFAULT_OPERATION_TIMEOUT),
            check_level: level.unwrap_or_default(),
            target: value("OCF_RESKEY_CRM_meta_migrate_target").filter(|node| !node.is_empty()),
        }
    }

    /// Returns the part of the timeout that the machine may use. The rest is for what must happen after that.
    pub(super) fn time_for_machine(&self) -> Duration {
        self.timeout * 2 / 3
    }
}

/// One machine of the cluster on this node.
pub struct Agent<'run> {
    pub(super) parameters: Parameters,
    pub(super) operation: Operation,
    pub(super) layout: Layout,
    pub(super) runtime: RuntimeDirectory,
    pub(super) message: &'run dyn Fn(&str),
}

impl<'run> Agent<'run> {
    /// Creates the agent of a machine. `message` prints a line that Pacemaker logs.
    ///
    /// # Errors
    /// Returns [`AgentError::State`] if this user has no runtime directory.
    pub fn new(parameters: Parameters, operation: Operation, message: &'run dyn Fn(&str)) -> Result<Self, AgentError> {
        let layout = Layout::of_environment().with_machines(&parameters.state_dir);
        Ok(Self { parameters, operation, layout, runtime: RuntimeDirectory::locate()?, message })
    }

    pub(super) fn name(&self) -> String {
        self.parameters.name.to_string()
    }

    pub(super) fn machine(&self) -> Machine {
        self.layout.machine(&self.parameters.name)
    }

    /// Returns the service that runs the machine, if this node has it.
    pub(super) fn service(&self) -> Option<Service> {
        Some(Service::of(&self.parameters.name)).filter(Service::is_installed)
    }

    pub(super) fn state(&self) -> Result<MachineState, AgentError> {
        Ok(state_of(&self.machine(), &self.runtime)?)
    }

    /// Returns the state, unless the user of a service has recorded it: that user must not choose what root locks,
    /// signals or asks.
    fn own_state(&self) -> Result<Option<MachineState>, AgentError> {
        if self.service().is_none() {
            return self.state().map(Some);
        }
        let own = self.runtime.machine(self.parameters.name.as_str())?;
        Ok(matches!(own.started_with(), Ok(Some(_))).then_some(own))
    }

    /// Runs a task of `microvm unit`, which becomes the machine's user: root must not use what that user has recorded.
    pub(super) fn as_user(&self, task: &str) -> Result<Command, AgentError> {
        let failed = |source| AgentError::System { action: "finding this program", source };
        let mut command = Command::new(std::env::current_exe().map_err(failed)?);
        command.args(["unit", task, self.parameters.name.as_str()]);
        command.env("MICROVM_STATE_DIR", self.layout.machines()).env("MICROVM_RUNTIME_DIR", self.runtime.path());
        Ok(command)
    }

    /// Observes the machine on this node.
    ///
    /// # Errors
    /// Returns [`AgentError`] if the state of the machine cannot be read.
    pub fn observe(&self) -> Result<Observed, AgentError> {
        let Some(service) = self.service() else { return self.observe_directly() };
        match service.state() {
            ServiceState::Inactive => self.observe_directly(),
            ServiceState::Starting if self.has_no_process() => Ok(Observed::Starting),
            _ => {
                let output = self.as_user("observe")?.stdin(Stdio::null()).output();
                let output = output.map_err(|source| AgentError::System { action: "observing the machine", source })?;
                Ok(serde_json::from_slice(&output.stdout)
                    .unwrap_or_else(|_| Observed::Unresponsive(last_error(&output))))
            }
        }
    }

    /// Whether the machine's user has recorded no process. What that user records only decides whether the machine is
    /// being started or does not answer.
    fn has_no_process(&self) -> bool {
        let state = self.runtime.machine(self.parameters.name.as_str());
        state.map_or(true, |state| state.activity().unwrap_or(Activity::Stopped) == Activity::Stopped)
    }

    fn observe_directly(&self) -> Result<Observed, AgentError> {
        let observed = self.own_state()?.map_or(Ok(Observed::Stopped), |state| observe(&state))?;
        if observed == Observed::Stopped && is_held(&self.machine())? {
            let directory = self.machine().directory;
            let reason = format!("a process that this node does not record uses {}", directory.display());
            return Ok(Observed::Unresponsive(reason));
        }
        Ok(observed)
    }

    /// Succeeds if the machine runs. With `OCF_CHECK_LEVEL` 10 or more, its guest must also have booted.
    ///
    /// # Errors
    /// Returns [`AgentError::NotRunning`] if the machine is stopped, and others if it has failed.
    pub fn monitor(&self) -> Result<(), AgentError> {
        let machine = self.name();
        match self.observe()? {
            Observed::Answers(Condition::Runs) if self.operation.check_level >= DEEP_CHECK_LEVEL => self.check_guest(),
            Observed::Answers(Condition::Runs) => Ok(()),
            Observed::Answers(Condition::Failed(state)) => Err(AgentError::Failed { machine, state }),
            // A guest that has left runs on another node, and one that is awaited does not run yet.
            Observed::Stopped | Observed::Answers(Condition::HasLeft | Condition::Waits) => {
                Err(AgentError::NotRunning(machine))
            }
            Observed::Starting => {
                Err(AgentError::Unresponsive { machine, reason: "it is still being started".to_owned() })
            }
            Observed::Unresponsive(reason) => Err(AgentError::Unresponsive { machine, reason }),
        }
    }

    fn check_guest(&self) -> Result<(), AgentError> {
        let Some(running) = self.state()?.running()? else { return Ok(()) };
        let seconds = seconds_since(running.started_unix_seconds);
        if running.guest_ready == Some(false) && seconds >= BOOT_TIMEOUT_SECONDS {
            return Err(AgentError::NotReady { machine: self.name(), seconds });
        }
        Ok(())
    }

    /// Checks whether this node could start the machine. Without `OCF_CHECK_LEVEL` 10, only the parameters are checked,
    /// which [`Parameters::parse`] has done.
    ///
    /// # Errors
    /// Returns [`AgentError::NoRunner`], [`AgentError::NotARunner`] or [`AgentError::NoMigrateDirectory`].
    pub fn validate(&self) -> Result<(), AgentError> {
        if self.operation.check_level < DEEP_CHECK_LEVEL {
            return Ok(());
        }
        if let Some(path) = &self.parameters.migrate_dir {
            fs::read_dir(path).map_err(|source| AgentError::NoMigrateDirectory { path: path.clone(), source })?;
        }
        match (self.parameters.runner.exists(), &self.parameters.cache) {
            (true, _) => self.require_runner(),
            (false, Some(_)) => Ok(()),
            (false, None) => Err(AgentError::NoRunner(self.parameters.runner.clone())),
        }
    }

    /// Starts the machine, and returns when its hypervisor runs. Pacemaker limits how long that may take.
    ///
    /// # Errors
    /// Returns [`AgentError`].
    pub fn start(&self) -> Result<(), AgentError> {
        match self.observe()? {
            Observed::Answers(Condition::Runs) => return Ok(()),
            Observed::Stopped => {}
            Observed::Starting => return self.wait_until_it_runs(None),
            // What is left of a migration that has failed, or has gone elsewhere.
            _ => self.stop()?,
        }
        self.install_runner()?;
        // With the timeout of 180 s, this is longer than the lease of Linux' NFS server, 90 s.
        let lock_wait_seconds = self.operation.time_for_machine().as_secs();
        let starter = self.begin(StartRequest { is_incoming: false, boots_if_changed: true, lock_wait_seconds })?;
        self.wait_until_it_runs(Some(starter))
    }

    /// Returns the machine's user, if it has its own.
    pub(super) fn owner(&self) -> Result<Option<Identity>, AgentError> {
        if self.service().is_none() {
            return Ok(None);
        }
        let id = StateDirectory::open(&self.machine())?.user_id()?;
        Ok(Some(Identity::of_ids(id, id)))
    }

    /// Ensures that the runner is on this node, and that the machine starts with it.
    pub(super) fn install_runner(&self) -> Result<(), AgentError> {
        let Parameters { name, runner, cache, .. } = &self.parameters;
        if !runner.exists() {
            let Some(cache) = cache else { return Err(AgentError::NoRunner(runner.clone())) };
            (self.message)(&format!("copying {} from {cache}", runner.display()));
            fetch(&self.layout, name, (cache, runner)).map_err(|source| AgentError::NotCopied {
                runner: runner.clone(),
                cache: cache.clone(),
                source,
            })?;
        }
        self.require_runner()?;
        if self.service().is_none() {
            assign(&self.layout, name, runner)?;
            return Ok(());
        }
        let machine = self.machine();
        let names = self.layout.reserve_name(&machine)?;
        let directory = StateDirectory::make(&self.layout, &machine)?;
        drop(names);
        directory.set_current(&self.layout, runner)?;
        directory.set_origin(&self.layout, None, runner)?;
        directory.adopt(&self.layout)?.iter().for_each(|line| (self.message)(line));
        Ok(self.layout.add_gc_roots(&machine)?)
    }

    fn require_runner(&self) -> Result<(), AgentError> {
        let is_runner = self.parameters.run_program().is_file();
        if is_runner { Ok(()) } else { Err(AgentError::NotARunner(self.parameters.runner.clone())) }
    }

    /// Begins the start, in the machine's service or in a process that this one does not wait for.
    pub(super) fn begin(&self, request: StartRequest) -> Result<Starter, AgentError> {
        let own = self.runtime.machine(self.parameters.name.as_str())?;
        own.write_request(request, None)?;
        if let Some(service) = self.service() {
            let messages = Messages::Journal { since: JournalPosition::end(), service: service.clone() };
            return Ok(Starter { child: service.begin("start")?, messages, is_launcher: false });
        }
        let directory = self.machine().directory;
        let log = directory.join(LOG);
        let failed = |source| AgentError::System { action: "starting the runner", source };
        let file = Place::nofollow(&log).and_then(|place| place.open_or_create(0o640)).map_err(failed)?;
        file.set_len(0).map_err(failed)?;
        let mut command = Command::new(self.parameters.run_program());
        command.current_dir(&directory).env("MICROVM_NAME", self.parameters.name.as_str());
        command.env("MICROVM_SUPERVISE", "1").env("MICROVM_STATE_DIR", self.layout.machines());
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(file);
        // Pacemaker kills the agent's process group after a timeout.
        command.process_group(0);
        prepare(&mut command, OnParentDeath::Continue, None);
        Ok(Starter { child: command.spawn().map_err(failed)?, messages: Messages::File(log), is_launcher: true })
    }

    /// Waits until the hypervisor runs its guest.
    pub(super) fn wait_until_it_runs(&self, starter: Option<Starter>) -> Result<(), AgentError> {
        self.wait_for(Condition::Runs, starter, None)
    }

    /// Waits until the hypervisor reports this condition, or cannot do so any more. Pacemaker limits how long an operation
    /// without a deadline takes.
    pub(super) fn wait_for(
        &self,
        awaited: Condition,
        mut starter: Option<Starter>,
        deadline: Option<Instant>,
    ) -> Result<(), AgentError> {
        let machine = self.name();
        loop {
            let ended = starter.as_mut().map(Starter::failure).transpose()?.flatten();
            // Observed after that, so a machine that runs has been seen.
            let has_begun = starter.as_mut().map_or(Ok(true), Starter::has_ended)?;
            match self.observe()? {
                Observed::Answers(condition) if condition == awaited => return Ok(()),
                Observed::Answers(Condition::Failed(state)) => return Err(AgentError::Failed { machine, state }),
                Observed::Stopped if has_begun && self.service_is_inactive() => {
                    let reason = ended.or_else(|| starter.as_ref()?.messages.errors());
                    let reason = reason.unwrap_or_else(|| "it has ended; see its journal".to_owned());
                    return Err(AgentError::NotStarted { machine, reason });
                }
                _ => {
                    let is_late = deadline.is_some_and(|deadline| Instant::now() >= deadline);
                    let late = || is_late.then(|| "it takes too long".to_owned());
                    if let Some(reason) = ended.or_else(late) {
                        return Err(AgentError::NotStarted { machine, reason });
                    }
                }
            }
            sleep(POLL_INTERVAL);
        }
    }

    /// Whether no service of the machine runs or is being started, as without systemd.
    fn service_is_inactive(&self) -> bool {
        self.service().is_none_or(|service| service.state() == ServiceState::Inactive)
    }

    /// Stops the machine. Success means that its processes have ended and that no process of this node can write to its
    /// volumes.
    ///
    /// # Errors
    /// Returns [`AgentError`]. Pacemaker then fences this node.
    pub fn stop(&self) -> Result<(), AgentError> {
        let deadline = Instant::now() + self.operation.timeout.saturating_sub(Duration::from_secs(1));
        let observed = self.observe()?;
        // A guest that has left, has not arrived or has failed cannot shut down.
        let has_guest = match observed {
            Observed::Answers(condition) => condition == Condition::Runs,
            Observed::Stopped | Observed::Starting | Observed::Unresponsive(_) => true,
        };
        let limit = self.operation.time_for_machine();
        let for_guest = self.parameters.drain_timeout.unwrap_or(limit).min(limit);
        let for_guest = if has_guest { for_guest } else { Duration::ZERO };
        let service = self.service();
        match service.as_ref().filter(|service| service.state() != ServiceState::Inactive) {
            Some(service) => self.stop_service(service, for_guest)?,
            None => self.stop_directly(for_guest)?,
        }
        if let Some(service) = &service {
            self.stop_helpers(service, deadline)?;
        }
        self.prove_stopped(deadline)
    }

    /// Stops the units around the machine's service. Only what still uses the machine makes the stop fail.
    fn stop_helpers(&self, service: &Service, deadline: Instant) -> Result<(), AgentError> {
        let failed = |source| AgentError::System { action: "waiting for systemctl", source };
        let Some(mut stopping) = service.begin_stop_of_helpers()? else { return Ok(()) };
        while Instant::now() < deadline {
            if let Some(status) = stopping.try_wait().map_err(failed)? {
                if !status.success() {
                    (self.message)(&format!("the units around {} have not all stopped: {status}", service.unit()));
                }
                return Ok(());
            }
            sleep(POLL_INTERVAL);
        }
        (self.message)(&format!("the units around {} have not stopped in time", service.unit()));
        Ok(())
    }

    fn stop_service(&self, service: &Service, for_guest: Duration) -> Result<(), AgentError> {
        let failed = |source| AgentError::System { action: "waiting for systemctl", source };
        let end = Instant::now() + for_guest;
        let mut stopping = service.begin_stop()?;
        while stopping.try_wait().map_err(failed)?.is_none() {
            if Instant::now() >= end {
                if !for_guest.is_zero() {
                    (self.message)(&format!("{} has not shut down in time; killing it", self.parameters.name));
                }
                service.kill()?;
                stopping.wait().map_err(failed)?;
                if for_guest.is_zero() {
                    // A machine that has moved has not failed here.
                    service.forget_failure();
                }
                break;
            }
            sleep(POLL_INTERVAL);
        }
        Ok(())
    }

    fn stop_directly(&self, for_guest: Duration) -> Result<(), AgentError> {
        let Some(state) = self.own_state()? else { return Ok(()) };
        let mut message = |text: &str| (self.message)(text);
        if let Activity::Starting(_) = state.activity()? {
            end_start(&state, for_guest, &mut message)?;
        }
        let (activity, launch) = (state.activity()?, state.last_launch()?);
        let running = activity.running();
        // Kept until the supervisor has ended, which `clean_up_stopped` waits for.
        let _request = running.map(|running| state.request_stop(running.hypervisor));
        if let Some(launch) = &launch {
            let process = running.map(|running| running.hypervisor);
            let console_socket = running.and_then(|running| running.console_socket.clone());
            let target = StopTarget { launch, process, console_socket, is_saved: is_suspended(launch) };
            stop(&target, for_guest, &mut message)?;
        }
        let supervisor = running.and_then(|running| running.supervisor);
        Ok(clean_up_stopped(&state, launch.as_ref(), supervisor)?)
    }

    /// Waits until nothing of the machine is left, because the cluster starts it elsewhere after a successful stop.
    fn prove_stopped(&self, deadline: Instant) -> Result<(), AgentError> {
        loop {
            let Some(reason) = self.what_is_left()? else { return Ok(()) };
            if Instant::now() >= deadline {
                return Err(AgentError::StillInUse { machine: self.name(), reason });
            }
            sleep(POLL_INTERVAL);
        }
    }

    fn what_is_left(&self) -> Result<Option<String>, AgentError> {
        let machine = self.machine();
        if self.service().is_some_and(|service| service.state() != ServiceState::Inactive) {
            return Ok(Some("its service is still active".to_owned()));
        }
        if is_held(&machine)? {
            return Ok(Some(format!("a process still uses {}", machine.directory.display())));
        }
        let Some(state) = self.own_state()? else { return Ok(None) };
        if state.activity()? != Activity::Stopped {
            return Ok(Some("one of its processes is still alive".to_owned()));
        }
        let launch = state.last_launch()?;
        let Some(launch) = launch else { return Ok(None) };
        let is_written = |volume: &&VolumeNeed| volume.access == Access::ReadWrite;
        // Each one by itself: the first error must not hide what is left of the machine on another volume.
        for volume in launch.needs.volumes.iter().filter(is_written) {
            match self.lock_volume(volume, &launch) {
                // The machine may run on another node that shares the volume.
                Err(VolumeError::InUse { holder, .. }) if holder.is_on_another_host() => {}
                // By this host, not by the machine.
                Err(VolumeError::Claimed(_) | VolumeError::Attached { .. }) => {}
                Err(error @ VolumeError::InUse { .. }) => return Ok(Some(error.to_string())),
                locked => locked?,
            }
        }
        Ok(None)
    }

    /// Locks a volume, and releases it.
    fn lock_volume(&self, volume: &VolumeNeed, launch: &Launch) -> Result<(), VolumeError> {
        let request = LockRequest {
            machine: self.parameters.name.as_str(),
            working_directory: &launch.working_directory,
            runtime: &self.runtime,
            owner: None,
            image_lock: ImageLock::Tried,
            time: LockTime::Now,
        };
        lock_volumes(std::slice::from_ref(volume), request).map(drop)
    }
}

/// The process that starts the machine.
#[derive(Debug)]
pub(super) struct Starter {
    child: Child,
    messages: Messages,
    /// Whether it is the machine's supervisor, or only asks systemd to start the service.
    is_launcher: bool,
}

impl Starter {
    /// Whether the process has ended: systemctl has started the service then.
    fn has_ended(&mut self) -> Result<bool, AgentError> {
        let ended = self.child.try_wait();
        ended
            .map(|status| status.is_some())
            .map_err(|source| AgentError::System { action: "waiting for the launcher", source })
    }

    /// Returns why the machine does not start, once that is certain.
    fn failure(&mut self) -> Result<Option<String>, AgentError> {
        let ended = self.child.try_wait();
        let ended = ended.map_err(|source| AgentError::System { action: "waiting for the launcher", source })?;
        let Some(status) = ended.filter(|status| self.is_launcher || !status.success()) else { return Ok(None) };
        Ok(Some(match (self.messages.errors(), self.is_launcher) {
            (Some(errors), _) => errors,
            (None, true) => format!("its launcher ended with {status}"),
            (None, false) => format!("systemctl ended with {status}; the journal of its service says why"),
        }))
    }
}

/// Where the launcher's messages are.
#[derive(Debug)]
enum Messages {
    File(PathBuf),
    /// In the journal of the units of a machine, after that position.
    Journal {
        service: Service,
        since: JournalPosition,
    },
}

impl Messages {
    /// Returns the errors among them.
    fn errors(&self) -> Option<String> {
        let text = match self {
            Self::File(path) => Place::nofollow(path).and_then(|place| place.read()).ok().flatten()?.0,
            Self::Journal { service, since } => service.messages_since(since),
        };
        last_errors(&String::from_utf8_lossy(&text))
    }
}

/// Returns the last errors, each of them once, in their order. The guest's output is among the messages, and may
/// contain anything.
fn last_errors(text: &str) -> Option<String> {
    let mut errors = Vec::new();
    for error in text.lines().rev().filter_map(|line| line.strip_prefix("error: ")).map(one_line) {
        if errors.len() == MAX_ERRORS {
            break;
        }
        if !errors.contains(&error) {
            errors.push(error);
        }
    }
    errors.reverse();
    (!errors.is_empty()).then(|| errors.join("; "))
}

/// Returns the error that a program of this project has printed.
pub(super) fn last_error(output: &Output) -> String {
    let text = String::from_utf8_lossy(&output.stderr);
    let line = text.lines().rfind(|line| !line.trim().is_empty() && !line.starts_with("hint: ")).unwrap_or_default();
    let line = line.strip_prefix("error: ").unwrap_or(line);
    if line.is_empty() { format!("microvm unit ended with {}", output.status) } else { one_line(line).into_owned() }
}

/// Returns an error of this process.
pub(super) fn system(action: &'static str) -> impl Fn(io::Error) -> AgentError {
    move |source| AgentError::System { action, source }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::facts::HostFacts;
    use crate::hypervisor::lower;
    use crate::path::HostPath;
    use nix::fcntl::{FcntlArg, fcntl};
    use nix::libc::{F_WRLCK, SEEK_SET, flock};
    use std::fs::{self, File};
    use std::path::Path;

    /// Locks a file as another process does, until it is dropped.
    fn lock(path: &Path) -> File {
        let file = File::options().read(true).write(true).open(path).unwrap();
        let whole = flock { l_type: F_WRLCK as i16, l_whence: SEEK_SET as i16, l_start: 0, l_len: 0, l_pid: 0 };
        fcntl(&file, FcntlArg::F_OFD_SETLK(&whole)).unwrap();
        file
    }

    #[test]
    fn what_is_left_of_a_machine_on_one_volume_is_not_hidden_by_another_volume_that_another_host_uses() {
        let directory = tempfile::tempdir().unwrap();
        let path = |name: &str| directory.path().join(name);
        let state_dir = path("machines").to_str().unwrap().to_owned();
        fs::create_dir_all(path("machines/web")).unwrap();
        for image in ["a", "b"] {
            fs::write(path("machines/web").join(image), "").unwrap();
        }
        fs::write(path("machines/web/a.lock"), "machine web, process 5 on another-host").unwrap();
        fs::write(path("machines/web/b.lock"), "").unwrap();
        let document = serde_json::json!({
            "version": 1, "name": "web", "kernel": "bzImage",
            "volumes": [{"image": "a", "autoCreate": false}, {"image": "b", "autoCreate": false}],
        });
        let spec = crate::validate::check(&serde_json::from_value(document).unwrap()).unwrap();
        let facts = HostFacts::assumed(HostPath::new(path("machines/web").to_str().unwrap()));
        let launch = lower(&spec, &facts, spec.hypervisor).unwrap();
        let runtime = RuntimeDirectory::at(path("run"));
        let state = runtime.machine("web").unwrap();
        drop(state.lock_for_start(&path("machines/web")).unwrap());
        state.write_launch(&launch).unwrap();

        let values = [("name", "web"), ("runner", "/nix/store/x"), ("state_dir", state_dir.as_str())];
        let value = |name: &str| values.iter().find(|(key, _)| *key == name).map(|(_, value)| (*value).to_owned());
        let parameters = Parameters::parse(value).unwrap();
        let layout = Layout::of_environment().with_machines(&parameters.state_dir);
        let operation = Operation::parse(|_| None);
        let agent = Agent { parameters, operation, layout, runtime, message: &|_| {} };
        let elsewhere = lock(&path("machines/web/a.lock"));
        // It writes its own name into the file of the volume that it can lock.
        assert_eq!(agent.what_is_left().unwrap(), None, "the other host runs the machine");
        let here = lock(&path("machines/web/b.lock"));
        let reason = agent.what_is_left().unwrap().unwrap();
        assert!(reason.contains("web/b is in use by machine web"), "{reason}");
        drop((elsewhere, here));
    }

    #[test]
    fn only_the_last_errors_of_a_start_are_reported_and_each_of_them_once() {
        assert_eq!(last_errors("starting\nan error: none\n"), None);
        let text = "error: of the guest\nerror: a\nhint: b\nerror: c\nerror: d\nerror: a\nerror: e\nerror: a\n";
        assert_eq!(last_errors(text).as_deref(), Some("c; d; e; a"));
    }
}
