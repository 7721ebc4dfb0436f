//! Moving a machine to another node. The source runs `migrate_to`, the target `migrate_from`, and then the source `stop`.
//!
//! A live migration needs no open port: the source runs `microvm ocf receive` on the target, usually over ssh with a
//! forced command, and the machine goes through that command's standard input. The command's exit code says whether the
//! guest runs on the target.

use super::agent::{Agent, POLL_INTERVAL, last_error, system};
use super::clustered::parameters_in_cluster;
use super::exit_code::AgentError;
use super::observe::Observed;
use super::parameters::{BadParameter, MIGRATE, MigrationMode, Parameters};
use super::transfer::{Streams, receive, send};
use crate::control::Condition;
use crate::imperative::{ServiceState, read_spec};
use crate::network::announce;
use crate::path::HostPath;
use crate::run::clean_up_stopped;
use crate::shutdown::{StopTarget, stop};
use crate::state::StartRequest;
use crate::suspend::{AfterSave, SuspendedState, is_suspended, suspend};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::unistd::geteuid;
use program::child::{OnParentDeath, prepare};
use program::escape::one_line;
use serde::{Deserialize, Serialize};
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::atomic::AtomicBool;
use std::thread::sleep;
use std::time::{Duration, Instant};

/// The version of an [`Offer`].
const VERSION: u32 = 2;
/// The longest line that one node sends to the other.
const MAX_LINE_BYTES: usize = 16 << 10;
/// How long the target waits for the end of the service whose hypervisor has not received the machine.
const SERVICE_END_TIMEOUT: Duration = Duration::from_secs(10);
/// How long the source of a migration that has failed waits until the target says whether it has the machine.
const VERDICT_TIMEOUT: Duration = Duration::from_secs(10);
/// How long the target waits for the offer.
const OFFER_TIMEOUT: Duration = Duration::from_secs(60);
/// The longest time for a migration that another node can request.
const MAX_TIMEOUT: Duration = Duration::from_secs(24 * 60 * 60);
/// What the target answers when its hypervisor waits for the machine.
const READY: &str = "ready";

/// What the source sends before the machine.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Offer {
    version: u32,
    name: String,
    runner: String,
    /// How long the source waits for the target.
    timeout_seconds: u64,
}

/// What an [`Offer`] of every version has.
#[derive(Deserialize)]
struct OfferVersion {
    version: u32,
}

impl Offer {
    fn parse(line: &str) -> Result<Self, AgentError> {
        let bad = |error: serde_json::Error| AgentError::BadRequest(one_line(&error.to_string()).into_owned());
        let OfferVersion { version } = serde_json::from_str(line).map_err(bad)?;
        if version != VERSION {
            let reason = format!("its version is {version}, not {VERSION}; install the same microvm on both nodes");
            return Err(AgentError::BadRequest(reason));
        }
        serde_json::from_str(line).map_err(bad)
    }
}

impl Agent<'_> {
    /// Moves the machine away from this node. Afterwards, it runs on the target, or is saved in the shared directory.
    ///
    /// # Errors
    /// Returns [`AgentError`]. The machine keeps running then, except for [`AgentError::Target`] after it has left.
    pub fn migrate_to(&self) -> Result<(), AgentError> {
        if self.observe()? != Observed::Answers(Condition::Runs) {
            let reason = "it does not run on this node".to_owned();
            return Err(AgentError::NotSent { machine: self.name(), reason });
        }
        match self.parameters.migrate {
            MigrationMode::Live => self.send_to_target(),
            MigrationMode::Suspend => self.save_for_target(),
            MigrationMode::Cold => Err(self.moves_cold()),
        }
    }

    /// Completes the move on the target. Fails at once if no machine has come.
    ///
    /// # Errors
    /// Returns [`AgentError`].
    pub fn migrate_from(&self) -> Result<(), AgentError> {
        match self.parameters.migrate {
            MigrationMode::Live => self.wait_for_arrival(),
            MigrationMode::Suspend => self.resume_from_source(),
            MigrationMode::Cold => Err(self.moves_cold()),
        }
    }

    fn moves_cold(&self) -> AgentError {
        let problem = "with `cold`, the machine cannot migrate; set allow-migrate=false".to_owned();
        AgentError::Parameters(vec![BadParameter { name: MIGRATE, problem }])
    }

    fn wait_for_arrival(&self) -> Result<(), AgentError> {
        let deadline = Instant::now() + self.operation.time_for_machine();
        loop {
            match self.observe()? {
                Observed::Answers(Condition::Runs) => return Ok(()),
                Observed::Answers(Condition::Waits) if Instant::now() < deadline => sleep(POLL_INTERVAL),
                _ => return Err(AgentError::NotArrived(self.name())),
            }
        }
    }

    fn send_to_target(&self) -> Result<(), AgentError> {
        let Some(node) = self.operation.target.clone() else {
            let reason = "OCF_RESKEY_CRM_meta_migrate_target does not name a node".to_owned();
            return Err(AgentError::NotSent { machine: self.name(), reason });
        };
        let begun = Instant::now();
        let (deadline, end) = (begun + self.operation.time_for_machine(), begun + self.operation.timeout);
        let (mut target, streams) = self.offer_to(&node, deadline)?;
        let sent = self.send_to(streams, deadline);
        if sent.is_err() {
            let verdict = self.verdict(&node, &mut target, end.min(Instant::now() + VERDICT_TIMEOUT));
            if verdict.is_err() {
                let _ = target.kill();
                let _ = target.wait();
                return sent;
            }
            // Only the hypervisor here has not heard that the guest runs there, and has continued it.
        } else {
            self.verdict(&node, &mut target, end)?;
        }
        self.end_what_has_left()
    }

    /// Waits until the target says whether the machine runs there.
    fn verdict(&self, node: &str, target: &mut Child, deadline: Instant) -> Result<(), AgentError> {
        let failed = |reason: String| AgentError::Target { machine: self.name(), node: node.to_owned(), reason };
        loop {
            match target.try_wait().map_err(system("waiting for the target"))? {
                Some(status) if status.success() => return Ok(()),
                Some(status) => return Err(failed(format!("the command that receives it ended with {status}"))),
                None if Instant::now() >= deadline => return Err(failed("it does not answer".to_owned())),
                None => sleep(POLL_INTERVAL),
            }
        }
    }

    /// Runs the receiver on the target, and waits until its hypervisor is ready. Returns the connection to it.
    fn offer_to(&self, node: &str, deadline: Instant) -> Result<(Child, Streams), AgentError> {
        let failed = |reason: String| AgentError::Target { machine: self.name(), node: node.to_owned(), reason };
        let words = self.parameters.command_for(node);
        let Some((program, arguments)) = words.split_first() else {
            return Err(failed("migrate_command is empty".to_owned()));
        };
        let mut command = Command::new(program);
        command.args(arguments).stdin(Stdio::piped()).stdout(Stdio::piped());
        prepare(&mut command, OnParentDeath::Terminate, None);
        let mut child = command.spawn().map_err(|error| failed(format!("{program} cannot be started: {error}")))?;
        let pipes = child.stdin.take().zip(child.stdout.take());
        let answer = pipes.ok_or_else(|| io::Error::from(io::ErrorKind::BrokenPipe));
        let answer = answer.and_then(|(mut input, mut output)| {
            self.write_offer(&mut input)?;
            let line = read_line(&mut output, deadline)?;
            Ok((Streams { input: output.into(), output: input.into() }, line))
        });
        match answer {
            Ok((streams, line)) if line == READY => Ok((child, streams)),
            Ok((_, line)) => {
                let _ = child.kill();
                let status = child.wait().map_err(system("waiting for the target"))?;
                Err(failed(match one_line(&line) {
                    line if line.is_empty() => format!("the command that receives it ended with {status}"),
                    line => line.into_owned(),
                }))
            }
            Err(error) => {
                let _ = child.kill();
                let _ = child.wait();
                Err(failed(error.to_string()))
            }
        }
    }

    fn write_offer(&self, input: &mut ChildStdin) -> io::Result<()> {
        let Parameters { name, runner, .. } = &self.parameters;
        let offer = Offer {
            version: VERSION,
            name: name.to_string(),
            runner: runner.to_string_lossy().into_owned(),
            timeout_seconds: self.operation.timeout.as_secs(),
        };
        let mut line = serde_json::to_vec(&offer)?;
        line.push(b'\n');
        input.write_all(&line)
    }

    fn send_to(&self, streams: Streams, deadline: Instant) -> Result<(), AgentError> {
        let timeout = whole_seconds_until(deadline);
        if !self.runs_as_service() {
            return send(&self.state()?, streams, timeout);
        }
        let mut command = self.as_user("send")?;
        command.arg(timeout.as_secs().to_string()).stdin(streams.input).stdout(streams.output);
        let output = command.stderr(Stdio::piped()).spawn().and_then(Child::wait_with_output);
        let output = output.map_err(system("sending the machine"))?;
        if output.status.success() {
            return Ok(());
        }
        Err(AgentError::NotSent { machine: self.name(), reason: last_error(&output) })
    }

    fn runs_as_service(&self) -> bool {
        self.service().is_some_and(|service| service.state() != ServiceState::Inactive)
    }

    /// Ends the hypervisor whose guest runs on the target, so that the volumes' locks go to the target.
    fn end_what_has_left(&self) -> Result<(), AgentError> {
        if self.runs_as_service() {
            return self.stop();
        }
        let state = self.state()?;
        let Some(launch) = state.last_launch()? else { return Ok(()) };
        let running = state.running()?;
        let process = running.as_ref().map(|running| running.hypervisor);
        // Kept until the supervisor has ended, which `clean_up_stopped` waits for.
        let _request = process.map(|hypervisor| state.request_stop(hypervisor));
        let is_saved = is_suspended(&launch);
        let target = StopTarget { launch: &launch, process, console_socket: None, is_saved };
        stop(&target, Duration::ZERO, &mut |_| {})?;
        Ok(clean_up_stopped(&state, Some(&launch), running.and_then(|running| running.supervisor))?)
    }

    /// Receives a machine from another node: first the offer, which is answered, and then the machine. Returns when the
    /// guest runs here.
    ///
    /// # Errors
    /// Returns [`AgentError`]. No hypervisor waits for the machine on this node then.
    pub fn receive(
        streams: Streams,
        of_offer: impl FnOnce(Parameters) -> Result<Self, AgentError>,
    ) -> Result<(), AgentError> {
        let mut input = File::from(streams.input);
        let line = read_line(&mut input, Instant::now() + OFFER_TIMEOUT).map_err(system("reading the offer"))?;
        let offer = Offer::parse(&line)?;
        // The other node must not choose what this one starts, nor in which directories.
        let parameters = parameters_in_cluster(&offer.name)?;
        if parameters.migrate != MigrationMode::Live {
            return Err(AgentError::Refused(format!("the cluster does not migrate {} live", offer.name)));
        }
        if parameters.runner != Path::new(&offer.runner) {
            let (offered, runner) = (one_line(&offer.runner), parameters.runner.display());
            return Err(AgentError::Refused(format!("its runner is {offered}, but that in the cluster is {runner}")));
        }
        let agent = of_offer(parameters)?;
        if agent.observe()? != Observed::Stopped {
            return Err(AgentError::Refused(format!("{} is already running on this node", agent.name())));
        }
        let deadline = Instant::now() + Duration::from_secs(offer.timeout_seconds).min(MAX_TIMEOUT);
        let received = agent.receive_from(Streams { input: input.into(), output: streams.output }, deadline);
        // If the cluster has started the machine meanwhile, it must keep running.
        let is_left = || matches!(agent.observe(), Ok(Observed::Answers(Condition::Waits | Condition::Failed(_))));
        if received.is_err()
            && is_left()
            && let Err(error) = agent.stop()
        {
            (agent.message)(&error.to_string());
        }
        if received.is_err() && !matches!(received, Err(AgentError::NotStarted { .. })) {
            agent.forget_failed_arrival();
        }
        received
    }

    /// Makes systemd forget that the service of a machine has failed that has not arrived: the machine still runs where it was.
    fn forget_failed_arrival(&self) {
        let Some(service) = self.service() else { return };
        let deadline = Instant::now() + SERVICE_END_TIMEOUT;
        // The service ends after its hypervisor, unless the cluster has started the machine in the meantime.
        while service.state() != ServiceState::Inactive && Instant::now() < deadline {
            if matches!(self.observe(), Ok(Observed::Answers(Condition::Runs))) {
                return;
            }
            sleep(POLL_INTERVAL);
        }
        service.forget_failure();
    }

    fn receive_from(&self, streams: Streams, deadline: Instant) -> Result<(), AgentError> {
        self.install_runner()?;
        let starter = self.begin(StartRequest { is_incoming: true, ..StartRequest::default() })?;
        self.wait_for(Condition::Waits, Some(starter), Some(deadline))?;
        let mut answer = File::from(streams.output);
        writeln!(answer, "{READY}").map_err(system("answering the other node"))?;
        let (input, output) = (streams.input, answer.into());
        let timeout = whole_seconds_until(deadline);
        if !self.runs_as_service() {
            return receive(&self.state()?, Streams { input, output }, timeout);
        }
        let mut command = self.as_user("receive")?;
        command.arg(timeout.as_secs().to_string());
        let output = command.stdin(input).stdout(output).stderr(Stdio::piped()).spawn();
        let output = output.and_then(Child::wait_with_output).map_err(system("receiving the machine"))?;
        if output.status.success() {
            return Ok(());
        }
        (self.message)(&last_error(&output));
        Err(AgentError::NotArrived(self.name()))
    }

    fn saved_here(&self) -> SuspendedState {
        let directory = HostPath::new(self.machine().directory.to_string_lossy());
        SuspendedState::new(&directory, self.parameters.name.as_str())
    }

    /// Returns the place of the machine in the shared directory. The parameters have been checked for it.
    fn saved_in_shared_directory(&self) -> Result<SuspendedState, AgentError> {
        let path = self.parameters.migrate_dir.clone().unwrap_or_default();
        let metadata = fs::metadata(&path);
        let metadata = metadata.map_err(|source| AgentError::NoMigrateDirectory { path: path.clone(), source })?;
        if metadata.uid() != geteuid().as_raw() || metadata.mode() & 0o022 != 0 {
            return Err(AgentError::MigrateDirectoryIsOpen(path));
        }
        Ok(SuspendedState::new(&HostPath::new(path.to_string_lossy()), self.parameters.name.as_str()))
    }

    /// Suspends the machine into the shared directory.
    fn save_for_target(&self) -> Result<(), AgentError> {
        let shared = self.saved_in_shared_directory()?;
        self.suspend()?;
        let moved = self.saved_here().move_to(&shared, None);
        if moved.is_err() {
            // The cluster stops it next, and its guest must be able to shut down.
            let starter = self.begin(StartRequest::default())?;
            self.wait_until_it_runs(Some(starter))?;
        }
        Ok(moved?)
    }

    fn suspend(&self) -> Result<(), AgentError> {
        if !self.runs_as_service() {
            let state = self.state()?;
            suspend(&state, AfterSave::End, &AtomicBool::new(false), &mut |text: &str| (self.message)(text))?;
            let supervisor = state.running()?.and_then(|running| running.supervisor);
            return Ok(crate::run::clean_up_stopped(&state, state.last_launch()?.as_ref(), supervisor)?);
        }
        let output =
            self.as_user("suspend")?.stdin(Stdio::null()).output().map_err(system("suspending the machine"))?;
        if !output.status.success() {
            return Err(AgentError::NotSent { machine: self.name(), reason: last_error(&output) });
        }
        self.stop()
    }

    fn resume_from_source(&self) -> Result<(), AgentError> {
        if self.observe()? == Observed::Answers(Condition::Runs) {
            return Ok(());
        }
        let saved = self.saved_in_shared_directory()?;
        if saved.stamp()?.is_none() {
            return Err(AgentError::NotArrived(self.name()));
        }
        self.install_runner()?;
        saved.move_to(&self.saved_here(), self.owner()?.as_ref())?;
        let starter = self.begin(StartRequest::default())?;
        self.wait_until_it_runs(Some(starter))?;
        self.announce();
        Ok(())
    }

    /// Announces to the switches of the network where the guest is now. Otherwise they learn it only when the guest sends a
    /// frame.
    fn announce(&self) {
        let Some(spec) = read_spec(&self.parameters.runner) else { return };
        if let Err(error) = announce(&spec.interfaces) {
            (self.message)(&format!("the guest's addresses were not announced: {error}"));
        }
    }
}

/// Returns the time that is left, at least a second.
fn whole_seconds_until(deadline: Instant) -> Duration {
    Duration::from_secs(deadline.saturating_duration_since(Instant::now()).as_secs().max(1))
}

/// Reads one line byte by byte, because the bytes after it are for the hypervisor. At the end of the stream, it returns
/// what came before.
fn read_line(input: &mut (impl Read + AsFd), deadline: Instant) -> io::Result<String> {
    let (mut line, mut byte) = (Vec::new(), [0]);
    while line.len() < MAX_LINE_BYTES {
        wait_for_input(input.as_fd(), deadline)?;
        if input.read(&mut byte)? == 0 || byte == *b"\n" {
            break;
        }
        line.push(byte[0]);
    }
    Ok(String::from_utf8_lossy(&line).into_owned())
}

fn wait_for_input(input: BorrowedFd<'_>, deadline: Instant) -> io::Result<()> {
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let milliseconds = PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX);
        match poll(&mut [PollFd::new(input, PollFlags::POLLIN)], milliseconds) {
            Ok(0) if left.is_zero() => {
                return Err(io::Error::new(io::ErrorKind::TimedOut, "it does not answer"));
            }
            Ok(0) | Err(Errno::EINTR) => {}
            Ok(_) => return Ok(()),
            Err(errno) => return Err(errno.into()),
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test that gets no error fails")]

    use super::*;

    #[test]
    fn an_offer_of_another_version_is_refused_because_of_its_version() {
        let error = Offer::parse(r#"{"version": 1, "name": "web", "runner": "/runner"}"#).unwrap_err();
        assert!(error.to_string().contains("its version is 1, not 2"), "{error}");
    }
}
