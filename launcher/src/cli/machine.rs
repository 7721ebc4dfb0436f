//! The machine that a command refers to, by the name that `status` shows or by its spec.

use super::spec_file::{Overrides, lowered, read};
use launcher::facts::HostFacts;
use launcher::host::{FactsError, gather};
use launcher::imperative::{Layout, MachineName, state_of};
use launcher::interruption::{Interrupted, Interruption};
use launcher::launch::Launch;
use launcher::run::RunError;
use launcher::side_processes::SideProcessError;
use launcher::spec::MachineSpec;
use launcher::state::{Activity, MachineState, RuntimeDirectory, is_same_directory};
use launcher::validate::{CheckedSpec, check};
use launcher::volumes::VolumeError;
use program::failure::{Failure, INTERRUPTED};
use std::error::Error;
use std::path::{Path, PathBuf};

/// A machine that was started, or that a spec describes.
pub(crate) struct KnownMachine {
    pub(crate) state: MachineState,
    pub(crate) activity: Activity,
    /// The most recent launch, or the spec's. `None` for a machine of this host that was never started.
    pub(crate) launch: Option<Launch>,
    /// Its state directory. `None` if only its name is known, and it is not a machine of this host.
    pub(crate) directory: Option<PathBuf>,
    /// The state directory of another running machine that has the same name.
    pub(crate) elsewhere: Option<PathBuf>,
}

impl KnownMachine {
    /// Becomes the other user who records the machine, if this process is root.
    pub(crate) fn become_recorder(&self) -> Result<(), Failure> {
        become_recorder(&self.state)
    }

    /// Returns the failure of a command that requires a running machine.
    pub(crate) fn is_not_running(&self) -> Failure {
        let name = self.state.name();
        let problem = match (&self.activity, &self.elsewhere) {
            (Activity::Starting(_), _) => format!("{name} is still being started"),
            (_, Some(_)) => format!("{name} is not running in this state directory"),
            _ => format!("{name} is not running"),
        };
        let hint = self.elsewhere.as_ref().map(|place| format!("a machine of that name runs in {}", place.display()));
        Failure::problems(vec![problem]).with_optional_hint(hint)
    }
}

/// Becomes the other user who records the machine, if this process is root.
pub(crate) fn become_recorder(state: &MachineState) -> Result<(), Failure> {
    match state.other_recorder().map_err(failed)? {
        Some(recorder) => recorder.become_user().map_err(failed),
        None => Ok(()),
    }
}

/// Finds the machine. An argument with a slash, or that ends in `.json`, is a spec, and refers to the machine in that
/// state directory; any other argument is a name.
pub(crate) fn find(name_or_spec: &str, overrides: &Overrides) -> Result<KnownMachine, Failure> {
    let runtime = RuntimeDirectory::locate().map_err(failed)?;
    if is_spec(name_or_spec) {
        find_by_spec(Path::new(name_or_spec), overrides, &runtime)
    } else {
        find_by_name(name_or_spec, &runtime)
    }
}

/// Finds the machine for a command that uses what its records name: sockets, processes, the state directory. If another
/// user records the machine, root becomes that user for the rest of the process: otherwise that user could make root
/// send requests to other machines, or remove files.
pub(crate) fn find_as_recorder(name_or_spec: &str, overrides: &Overrides) -> Result<KnownMachine, Failure> {
    let machine = find(name_or_spec, overrides)?;
    machine.become_recorder()?;
    Ok(machine)
}

/// Whether an argument is the file of a spec, and not a name.
pub(crate) fn is_spec(name_or_spec: &str) -> bool {
    name_or_spec.contains('/') || name_or_spec.ends_with(".json") || name_or_spec == "-"
}

fn find_by_spec(path: &Path, overrides: &Overrides, runtime: &RuntimeDirectory) -> Result<KnownMachine, Failure> {
    let spec = read(path, overrides)?;
    let state = runtime.machine(&spec.name).map_err(|error| Failure::usage(error.to_string()))?;
    // Before anything is read, because root must not use files that another user can replace.
    state.own_records_of_root().map_err(failed)?;
    let activity = state.activity().map_err(failed)?;
    let directory = overrides.state_directory()?;
    let place = if activity == Activity::Stopped { None } else { state.working_directory().map_err(failed)? };
    let elsewhere = place.filter(|place| !is_same_directory(place, directory.as_path()));
    let activity = if elsewhere.is_some() { Activity::Stopped } else { activity };
    let launch = match (&activity, state.last_launch().map_err(failed)?) {
        (Activity::Running(_), Some(launch)) => launch,
        _ => launch_of(&spec, overrides, runtime, &watch_signals()?)?,
    };
    let directory = Some(directory.as_path().to_owned());
    Ok(KnownMachine { state, activity, launch: Some(launch), directory, elsewhere })
}

/// Finds the machine by its name.
pub(crate) fn find_by_name(name: &str, runtime: &RuntimeDirectory) -> Result<KnownMachine, Failure> {
    let of_host = MachineName::new(name).ok().and_then(|name| Layout::of_environment().existing(&name).ok());
    let state = match &of_host {
        Some(machine) => state_of(machine, runtime).map_err(failed)?,
        None => runtime.machine(name).map_err(|error| Failure::usage(error.to_string()))?,
    };
    // As in `find_by_spec`.
    state.own_records_of_root().map_err(failed)?;
    let activity = state.activity().map_err(failed)?;
    let launch = state.last_launch().map_err(failed)?;
    // A start that failed or was cancelled early leaves an entry, and no launch.
    let is_known = launch.is_some() || of_host.is_some() || state.directory().is_dir();
    if !is_known && activity == Activity::Stopped {
        let known = runtime.machine_names().map_err(failed)?;
        let hint = match program::spelling::nearest(name, known.iter().map(String::as_str)) {
            Some(near) => format!("did you mean `{near}`?"),
            None => format!("the machines that were started are listed in {}", runtime.path().display()),
        };
        let problem = format!("no machine `{name}` has been started");
        return Err(Failure::usage(problem).with_hint(hint));
    }
    let directory = of_host.map(|machine| machine.directory);
    Ok(KnownMachine { state, activity, launch, directory, elsewhere: None })
}

/// Returns the launch of a spec on this host.
pub(crate) fn launch_of(
    spec: &MachineSpec,
    overrides: &Overrides,
    runtime: &RuntimeDirectory,
    interruption: &Interruption,
) -> Result<Launch, Failure> {
    let facts = facts_for(spec, overrides, runtime, interruption)?;
    lowered(&checked(spec)?, &facts)
}

/// Validates a spec.
pub(crate) fn checked(spec: &MachineSpec) -> Result<CheckedSpec, Failure> {
    check(spec).map_err(|problems| Failure::input_problems(problems.iter().map(ToString::to_string).collect()))
}

/// Gathers the facts about this host.
pub(crate) fn facts_for(
    spec: &MachineSpec,
    overrides: &Overrides,
    runtime: &RuntimeDirectory,
    interruption: &Interruption,
) -> Result<HostFacts, Failure> {
    gather(spec, spec.hypervisor, overrides.state_directory()?, runtime, interruption).map_err(failed)
}

/// Blocks signals, so that they can be received later.
pub(crate) fn watch_signals() -> Result<Interruption, Failure> {
    Interruption::watch().map_err(failed)
}

/// Returns the failure for an error. An interrupted command has its own exit code.
pub(crate) fn failed(error: impl Error + 'static) -> Failure {
    let failure = Failure::failed(&error);
    if is_interrupted(&error) { failure.with_code(INTERRUPTED) } else { failure }
}

/// Whether the error is, or contains, an interruption.
fn is_interrupted(error: &(dyn Error + 'static)) -> bool {
    error.is::<Interrupted>()
        || error.downcast_ref::<RunError>().is_some_and(RunError::is_interruption)
        || matches!(error.downcast_ref(), Some(FactsError::Interrupted(_)))
        || matches!(error.downcast_ref(), Some(SideProcessError::Interrupted(_)))
        || matches!(error.downcast_ref(), Some(VolumeError::Interrupted(_)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use nix::sys::signal::Signal;

    #[test]
    fn an_interruption_is_detected_by_its_type_and_not_by_its_text() {
        for error in [RunError::Interrupted(Interrupted(Signal::SIGHUP)), Interrupted(Signal::SIGTERM).into()] {
            assert!(is_interrupted(&error));
        }
        let nested = RunError::from(VolumeError::from(Interrupted(Signal::SIGTERM)));
        assert!(is_interrupted(&nested));
        let text = Interrupted(Signal::SIGTERM).to_string();
        assert!(!is_interrupted(&RunError::ExtraArguments { script: "a".into(), reason: text.clone() }));
        assert!(!is_interrupted(&std::io::Error::other(text)));
    }
}
