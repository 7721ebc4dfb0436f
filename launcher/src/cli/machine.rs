//! The machine that a command refers to, by the name that `status` shows or by its spec.

use super::failure::{Failure, INTERRUPTED};
use super::spec_file::{Overrides, lowered, read};
use launcher::facts::HostFacts;
use launcher::host::gather;
use launcher::interruption::{Interrupted, Interruption};
use launcher::launch::Launch;
use launcher::spec::MachineSpec;
use launcher::state::{MachineState, RunningMachine, RuntimeDirectory};
use launcher::validate::check;
use nix::sys::signal::Signal;
use std::error::Error;
use std::path::Path;

/// A machine that was started, or that a spec describes.
pub(crate) struct KnownMachine {
    pub(crate) state: MachineState,
    /// The launch that was started last, or the launch of the spec.
    pub(crate) launch: Launch,
    pub(crate) running: Option<RunningMachine>,
}

/// Finds the machine. An argument with a slash, or that ends in `.json`, is a spec; everything else is a name.
pub(crate) fn find(name_or_spec: &str, overrides: &Overrides) -> Result<KnownMachine, Failure> {
    let runtime = RuntimeDirectory::locate().map_err(failed)?;
    let is_spec = name_or_spec.contains('/') || name_or_spec.ends_with(".json") || name_or_spec == "-";
    let spec = is_spec.then(|| read(Path::new(name_or_spec), overrides)).transpose()?;
    let name = spec.as_ref().map_or(name_or_spec, |spec| spec.name.as_str());
    let state = runtime.machine(name).map_err(|error| Failure::bad_input(vec![error.to_string()]))?;
    let running = state.running().map_err(failed)?;
    let launch = match (state.last_launch().map_err(failed)?, &spec) {
        (Some(launch), Some(_)) if running.is_some() => launch,
        (_, Some(spec)) => {
            let interruption = watch()?;
            launch_of(spec, overrides, &runtime, &interruption)?
        }
        (Some(launch), None) => launch,
        (None, None) => {
            let known = runtime.machine_names().map_err(failed)?;
            let hint = match launcher::spelling::nearest(name, known.iter().map(String::as_str)) {
                Some(near) => format!("did you mean `{near}`?"),
                None => format!("machines that were started are in {}", runtime.path().display()),
            };
            let problem = format!("no machine `{name}` has been started");
            return Err(Failure::bad_input(vec![problem]).with_hint(Some(hint)));
        }
    };
    Ok(KnownMachine { state, launch, running })
}

/// The launch of a spec on this host.
pub(crate) fn launch_of(
    spec: &MachineSpec,
    overrides: &Overrides,
    runtime: &RuntimeDirectory,
    interruption: &Interruption,
) -> Result<Launch, Failure> {
    let facts = facts_for(spec, overrides, runtime, interruption)?;
    let checked =
        check(spec).map_err(|problems| Failure::bad_input(problems.iter().map(ToString::to_string).collect()))?;
    lowered(&checked, &facts)
}

/// The facts about this host.
pub(crate) fn facts_for(
    spec: &MachineSpec,
    overrides: &Overrides,
    runtime: &RuntimeDirectory,
    interruption: &Interruption,
) -> Result<HostFacts, Failure> {
    gather(spec, spec.hypervisor, overrides.state_directory()?, runtime, interruption).map_err(failed)
}

/// Blocks signals, so that they can be received later.
pub(crate) fn watch() -> Result<Interruption, Failure> {
    Interruption::watch().map_err(failed)
}

/// The failure of a command; an interrupted command has its own exit code.
pub(crate) fn failed(error: impl Error + 'static) -> Failure {
    let failure = Failure::failed(&error);
    if is_interrupted(&error) { failure.with_code(INTERRUPTED) } else { failure }
}

/// The errors of every module hand an interruption on as it is, message and all.
fn is_interrupted(error: &(dyn Error + 'static)) -> bool {
    let told = [Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP].map(|signal| Interrupted(signal).to_string());
    told.contains(&error.to_string())
}
