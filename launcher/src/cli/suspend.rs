//! `microvm suspend` and `microvm resume`: saves machines in their state directories, and starts them where they were.

use super::host_machine::active_service;
use super::machine::{KnownMachine, become_recorder, failed, find, find_by_name, is_spec, watch_signals};
use super::run::run_suspended;
use super::spec_file::{Overrides, read};
use super::stop::clean_up;
use super::suspend_failure::suspend_failure;
use clap::ArgGroup;
use launcher::imperative::{Layout, Machine, MachineActivity, MachineName, Phase, Service, in_parallel};
use launcher::path::HostPath;
use launcher::state::{Activity, MachineState, RuntimeDirectory, StateError};
use launcher::suspend::{AfterSave, Saved, SuspendError, SuspendedState, continue_paused, suspend};
use program::failure::Failure;
use program::output::message;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

/// How often to check for a signal.
const CHECK_INTERVAL: Duration = Duration::from_millis(20);

/// Suspend machines: save their memory in their state directories, and end their hypervisors. The next start resumes
/// them
#[derive(clap::Args)]
#[command(group = ArgGroup::new("which").required(true).args(["machines", "all"]))]
#[command(override_usage = "microvm suspend [OPTIONS] <MACHINES...|--all>")]
pub(crate) struct Arguments {
    /// The machines: their names or their spec files
    machines: Vec<String>,
    /// Suspend all running machines
    #[arg(short, long)]
    all: bool,
    #[command(flatten)]
    overrides: Overrides,
}

/// Resume a suspended machine
#[derive(clap::Args)]
pub(crate) struct ResumeArguments {
    /// The machine: its name or its spec file
    machine: String,
    /// Delete the saved state instead. The machine boots at its next start and finds its volumes as after a power cut
    #[arg(long)]
    discard: bool,
    #[command(flatten)]
    overrides: Overrides,
}

pub(crate) fn run(arguments: &Arguments) -> Result<(), Failure> {
    let (machines, unknown) =
        if arguments.all { running_machines()? } else { (arguments.machines.clone(), Vec::new()) };
    if machines.is_empty() && unknown.is_empty() {
        message("no machine is running");
    }
    let (mut targets, mut failures) = (Vec::new(), Vec::new());
    for machine in machines {
        match Target::of(machine, &arguments.overrides) {
            Ok(target) => targets.push(target),
            Err(failure) => failures.push(failure),
        }
    }
    let count = targets.len() + failures.len();
    let suspended =
        interruptible(|is_interrupted| in_parallel(&targets, |target| suspend_machine(target, is_interrupted)))?;
    failures.extend(suspended.into_iter().filter_map(Result::err));
    if count > 1 {
        message(&format!("{} of {count} machines are suspended", count - failures.len()));
    }
    failures.extend(unknown);
    Failure::of_several(failures).map_or(Ok(()), Err)
}

/// Works in another thread, and sets the flag when a signal asks this process to stop: a guest that is paused must be
/// continued first.
fn interruptible<T: Send>(work: impl FnOnce(&AtomicBool) -> T + Send) -> Result<T, Failure> {
    let (interruption, flag) = (watch_signals()?, AtomicBool::new(false));
    thread::scope(|scope| {
        let worker = scope.spawn(|| work(&flag));
        while !worker.is_finished() {
            if flag.load(Ordering::Relaxed) {
                thread::sleep(CHECK_INTERVAL);
            } else {
                flag.store(interruption.pause(CHECK_INTERVAL).is_err(), Ordering::Relaxed);
            }
        }
        worker.join().map_err(|_| Failure::problems(vec!["suspending the machines failed unexpectedly".to_owned()]))
    })
}

/// Returns the names of all machines that run, as services or recorded in the runtime directory, and a failure for each
/// one whose state cannot be read.
fn running_machines() -> Result<(Vec<String>, Vec<Failure>), Failure> {
    let of_host = Layout::of_environment().all().map_err(failed)?;
    let mut found: Vec<(String, Result<bool, StateError>)> = Vec::new();
    for machine in &of_host {
        let runs = MachineActivity::of(machine).map(|activity| activity.phase() == Phase::Running);
        found.push((machine.name.to_string(), runs));
    }
    let runtime = RuntimeDirectory::locate().map_err(failed)?;
    for name in runtime.machine_names().map_err(failed)? {
        if !of_host.iter().any(|machine| machine.name.as_str() == name) {
            let runs = runtime.machine(&name).and_then(|state| Ok(state.running()?.is_some()));
            found.push((name, runs));
        }
    }
    let (mut names, mut unknown) = (Vec::new(), Vec::new());
    for (name, runs) in found {
        match runs {
            Ok(true) => names.push(name),
            Ok(false) => {}
            Err(error) => unknown.push(failed(error).with_context(&name)),
        }
    }
    Ok((names, unknown))
}

/// A machine to suspend.
enum Target {
    Name(String),
    Found(Box<KnownMachine>),
}

impl Target {
    /// Reads a spec, which stdin may provide slowly, before signals are held back.
    fn of(machine: String, overrides: &Overrides) -> Result<Self, Failure> {
        if is_spec(&machine) {
            find(&machine, overrides).map(|found| Self::Found(Box::new(found)))
        } else {
            Ok(Self::Name(machine))
        }
    }
}

fn suspend_machine(target: &Target, is_interrupted: &AtomicBool) -> Result<(), Failure> {
    let found = match target {
        Target::Found(found) => found,
        Target::Name(name) => {
            if let Some(service) = active_service(name) {
                report_saved(name, &suspend_service(name, &service)?);
                return Ok(());
            }
            &find_by_name(name, &RuntimeDirectory::locate().map_err(failed)?)?
        }
    };
    report_saved(found.state.name(), &suspend_found(found, is_interrupted)?);
    Ok(())
}

/// Prints that a machine is suspended.
pub(crate) fn report_saved(machine: &str, saved: &Saved) {
    let (mib, seconds) = (saved.disk_bytes.div_ceil(1 << 20), saved.paused.as_secs_f64());
    message(&format!("{machine} is suspended: {mib} MiB on disk, saved in {seconds:.2} s"));
}

fn suspend_found(machine: &KnownMachine, is_interrupted: &AtomicBool) -> Result<Saved, Failure> {
    let Activity::Running(running) = &machine.activity else { return Err(machine.is_not_running()) };
    let saved = suspend(&machine.state, AfterSave::End, is_interrupted, &mut message).map_err(suspend_failure)?;
    clean_up(machine, Some(running))?;
    Ok(saved)
}

/// Suspends a machine that its service runs. A process of the machine's user saves it, because root must not work in
/// directories that another user names; then the service is stopped, which ends the paused hypervisor.
fn suspend_service(name: &str, service: &Service) -> Result<Saved, Failure> {
    if !nix::unistd::geteuid().is_root() {
        return Err(Failure::problems(vec![format!("{name} runs as a service, which only root can suspend")]));
    }
    let saved = as_user_of_machine(&["suspend", name])?;
    service.command("stop").map_err(failed)?;
    serde_json::from_slice(&saved).map_err(failed)
}

/// Runs a task of `microvm unit` and returns its output.
fn as_user_of_machine(task: &[&str]) -> Result<Vec<u8>, Failure> {
    let program = std::env::current_exe().map_err(failed)?;
    let runtime = RuntimeDirectory::locate().map_err(failed)?;
    let mut command = Command::new(program);
    command.arg("unit").args(task).env("MICROVM_RUNTIME_DIR", runtime.path()).stdin(Stdio::null());
    let output = command.output().map_err(failed)?;
    if output.status.success() {
        return Ok(output.stdout);
    }
    Err(failure_of(&String::from_utf8_lossy(&output.stderr)))
}

/// Returns the failure that another process of this program has printed.
fn failure_of(messages: &str) -> Failure {
    let (hints, problems): (Vec<&str>, Vec<&str>) = messages.lines().partition(|line| line.starts_with("hint: "));
    let problems = problems.into_iter().map(|line| line.strip_prefix("error: ").unwrap_or(line).to_owned());
    let hints = hints.into_iter().filter_map(|line| line.strip_prefix("hint: "));
    hints.fold(Failure::problems(problems.collect()), Failure::with_further_hint)
}

pub(crate) fn resume(arguments: &ResumeArguments) -> Result<(), Failure> {
    if is_spec(&arguments.machine) {
        return resume_spec(arguments);
    }
    let name = MachineName::new(&arguments.machine).map_err(|error| Failure::usage(error.to_string()))?;
    match Layout::of_environment().existing(&name) {
        Ok(machine) => resume_machine_of_host(&machine, arguments.discard),
        Err(_) => resume_recorded(&arguments.machine, arguments.discard),
    }
}

fn resume_machine_of_host(machine: &Machine, discard: bool) -> Result<(), Failure> {
    let name = machine.name.as_str();
    let saved = SuspendedState::new(&HostPath::new(machine.directory.to_string_lossy()), name);
    let phase = MachineActivity::of(machine).map_err(failed)?.phase();
    match (phase, discard) {
        (Phase::Stopped, true) => discard_saved(&saved, name),
        (Phase::Stopped, false) => {
            require_saved(&saved, name)?;
            Service::of(&machine.name).command("start").map_err(failed)
        }
        (_, true) => Err(Failure::problems(vec![format!("{name} is running; stop it first: microvm stop {name}")])),
        (_, false) if active_service(name).is_some() => as_user_of_machine(&["continue", name]).map(drop),
        (_, false) => {
            let runtime = RuntimeDirectory::locate().map_err(failed)?;
            let machine = find_by_name(name, &runtime)?;
            machine.become_recorder()?;
            continue_machine(&machine.state)
        }
    }
}

/// Resumes a machine that was started with its spec. Only the spec contains what its start needs.
fn resume_recorded(name: &str, discard: bool) -> Result<(), Failure> {
    let machine = find_by_name(name, &RuntimeDirectory::locate().map_err(failed)?)?;
    machine.become_recorder()?;
    if machine.activity != Activity::Stopped {
        return continue_machine(&machine.state);
    }
    let Some(launch) = &machine.launch else { return Err(machine.is_not_running()) };
    let saved = SuspendedState::of_launch(launch);
    if discard {
        return discard_saved(&saved, name);
    }
    require_saved(&saved, name)?;
    let problem = format!("{name} was started with a spec, and is resumed with it");
    let hint = format!("in {}: microvm resume SPEC", launch.working_directory);
    Err(Failure::usage(problem).with_hint(hint))
}

fn resume_spec(arguments: &ResumeArguments) -> Result<(), Failure> {
    let path = Path::new(&arguments.machine);
    let spec = read(path, &arguments.overrides)?;
    arguments.overrides.require_state_directory()?;
    let runtime = RuntimeDirectory::locate().map_err(failed)?;
    let state = runtime.machine(&spec.name).map_err(|error| Failure::usage(error.to_string()))?;
    if state.activity().map_err(failed)? != Activity::Stopped {
        become_recorder(&state)?;
        return continue_machine(&state);
    }
    let saved = SuspendedState::new(&arguments.overrides.state_directory()?, &spec.name);
    if arguments.discard {
        return discard_saved(&saved, &spec.name);
    }
    require_saved(&saved, &spec.name)?;
    run_suspended(path, &arguments.overrides)
}

fn require_saved(saved: &SuspendedState, name: &str) -> Result<(), Failure> {
    match saved.stamp().map_err(failed)? {
        Some(_) => Ok(()),
        None => Err(suspend_failure(SuspendError::NotSuspended(name.to_owned()))),
    }
}

fn discard_saved(saved: &SuspendedState, name: &str) -> Result<(), Failure> {
    // A damaged description keeps the machine from being resumed, and must not keep it from being discarded.
    if !matches!(saved.stamp(), Err(SuspendError::Unreadable { .. })) {
        require_saved(saved, name)?;
    }
    saved.remove(None).map_err(failed)?;
    message(&format!("{name} is no longer suspended, and boots at its next start"));
    Ok(())
}

/// Lets a machine continue if the command that suspended it was killed.
fn continue_machine(state: &MachineState) -> Result<(), Failure> {
    let name = state.name();
    if continue_paused(state).map_err(suspend_failure)? {
        message(&format!("{name} was paused, and runs again"));
    } else {
        message(&format!("{name} is running"));
    }
    Ok(())
}

/// Saves the machine of this process's user, which stays paused.
pub(crate) fn save_for_service(name: &str, after_save: AfterSave) -> Result<Saved, Failure> {
    let state = RuntimeDirectory::locate().and_then(|runtime| runtime.machine(name)).map_err(failed)?;
    let saved = interruptible(|is_interrupted| suspend(&state, after_save, is_interrupted, &mut message))?;
    saved.map_err(suspend_failure)
}

/// Lets the machine of this process's user continue.
pub(crate) fn continue_for_service(name: &str) -> Result<(), Failure> {
    let state = RuntimeDirectory::locate().and_then(|runtime| runtime.machine(name)).map_err(failed)?;
    continue_machine(&state)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_hint_of_a_process_of_the_machines_user_stays_a_hint() {
        let printed = "error: web: vsock: cannot be saved\nerror: web: shares: cannot be saved\nhint: stop it\n";
        let (lines, _) = failure_of(printed).report();
        assert_eq!(lines, printed.lines().collect::<Vec<_>>());
    }
}
