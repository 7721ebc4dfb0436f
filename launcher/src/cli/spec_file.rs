//! Reading machine specs from files, applying overrides, and reporting all their problems.

use clap::builder::{PossibleValuesParser, TypedValueParser};
use launcher::facts::HostFacts;
use launcher::hypervisor::lower;
use launcher::identity::{CLONE_FILE, CloneOrigin, CloneRecord};
use launcher::imperative::Layout;
use launcher::launch::Launch;
use launcher::path::HostPath;
use launcher::refusal::Refusals;
use launcher::spec::{Accelerator, Hypervisor, MachineSpec, parse::parse};
use launcher::validate::{CheckedSpec, check};
use program::failure::Failure;
use program::place::Place;
use program::presence::is_directory;
use std::fmt::Display;
use std::fs::File;
use std::io::{ErrorKind, Read};
use std::path::{Path, PathBuf};

/// The spec that a command reads, and its overrides.
#[derive(clap::Args)]
pub(crate) struct SpecArguments {
    /// The machine spec, a JSON file; `-` is standard input
    pub(crate) spec: PathBuf,
    #[command(flatten)]
    pub(crate) overrides: Overrides,
}

/// Overrides of a spec on the command line.
#[derive(Clone, clap::Args)]
pub(crate) struct Overrides {
    /// Hypervisor to use instead of the spec's
    #[arg(long, value_parser = hypervisors(), hide_possible_values = true, value_name = "NAME")]
    pub(crate) hypervisor: Option<Hypervisor>,
    /// Accelerator of qemu instead of the spec's `qemu.accelerator`: auto, kvm or tcg
    #[arg(long, value_parser = accelerators(), hide_possible_values = true, value_name = "NAME")]
    pub(crate) accel: Option<Accelerator>,
    /// The machine's state directory, against which relative paths are resolved [default: the current directory]
    #[arg(long, value_name = "DIR")]
    pub(crate) state_dir: Option<PathBuf>,
    /// Name of the machine instead of the spec's [default: $MICROVM_NAME, then the name of its state directory
    /// if that is one of this host's machines]
    #[arg(long, value_name = "NAME")]
    pub(crate) name: Option<String>,
}

/// The possible values are offered by completions.
fn accelerators() -> impl TypedValueParser<Value = Accelerator> {
    PossibleValuesParser::new(["auto", "kvm", "tcg"]).try_map(|name| accelerator_named(&name))
}

fn hypervisors() -> impl TypedValueParser<Value = Hypervisor> {
    PossibleValuesParser::new(Hypervisor::ALL.map(Hypervisor::as_str)).try_map(|name| hypervisor_named(&name))
}

fn accelerator_named(name: &str) -> Result<Accelerator, String> {
    serde_json::from_value(serde_json::Value::from(name)).map_err(|_| "must be auto, kvm or tcg".to_owned())
}

fn hypervisor_named(name: &str) -> Result<Hypervisor, String> {
    Hypervisor::from_name(name)
        .ok_or_else(|| format!("must be one of {}", Hypervisor::ALL.map(Hypervisor::as_str).join(", ")))
}

impl Overrides {
    /// Applies the overrides to the spec.
    pub(crate) fn apply(&self, spec: &mut MachineSpec) {
        spec.hypervisor = self.hypervisor.unwrap_or(spec.hypervisor);
        spec.qemu.accelerator = self.accel.unwrap_or(spec.qemu.accelerator);
        if let Some(name) = &self.name {
            spec.name.clone_from(name);
        }
    }

    /// Returns the name of the machine on this host, if it differs from the spec's. Two machines of one flake can have
    /// the same host name, but never the same state directory.
    pub(crate) fn name_on_host(&self) -> Result<Option<String>, Failure> {
        if self.name.is_some() {
            return Ok(self.name.clone());
        }
        if let Some(name) = std::env::var_os("MICROVM_NAME").filter(|name| !name.is_empty()) {
            let name = name.into_string().map_err(|_| Failure::usage("MICROVM_NAME must be UTF-8"));
            return name.map(Some);
        }
        let directory = self.state_directory()?;
        Ok(Layout::of_environment().machine_in(directory.as_path()).map(|machine| machine.name.to_string()))
    }

    /// Refuses a state directory that does not exist, for commands that work in that of an existing machine: the path
    /// is probably misspelt.
    pub(crate) fn require_state_directory(&self) -> Result<(), Failure> {
        let directory = self.state_directory()?;
        match is_directory(directory.as_path()) {
            Ok(true) => Ok(()),
            Ok(false) if directory.as_path().exists() => {
                Err(Failure::usage(format!("--state-dir {directory} is not a directory")))
            }
            Ok(false) => Err(Failure::usage(format!("--state-dir {directory}: there is no such directory"))
                .with_hint("the first start of a machine creates its state directory: microvm run")),
            Err(error) => Err(Failure::failed(&error).with_context(&format!("--state-dir {directory}"))),
        }
    }

    /// Returns the state directory as an absolute path.
    pub(crate) fn state_directory(&self) -> Result<HostPath, Failure> {
        let current = std::env::current_dir().map_err(|error| Failure::failed(&error))?;
        let directory = self.state_dir.as_ref().map_or_else(|| current.clone(), |directory| current.join(directory));
        match directory.to_str() {
            Some(text) => Ok(HostPath::from(text)),
            None => Err(Failure::input_problems(vec![format!(
                "{}: the path of a state directory must be UTF-8",
                directory.display()
            )])),
        }
    }
}

/// The largest size of a spec. Specs have some kilobytes; a longer file is something else, such as an endless device.
const MAX_SPEC_BYTES: u64 = 16 << 20;

/// Returns the text of a machine spec.
pub(crate) fn read_text(path: &Path) -> Result<String, Failure> {
    read_document("machine spec", path)
}

/// Returns the text of a document, which is named in messages as in "machine spec".
pub(crate) fn read_document(subject: &str, path: &Path) -> Result<String, Failure> {
    let mut text = String::new();
    let read = if path == Path::new("-") {
        std::io::stdin().lock().take(MAX_SPEC_BYTES + 1).read_to_string(&mut text)
    } else {
        File::open(path).and_then(|file| file.take(MAX_SPEC_BYTES + 1).read_to_string(&mut text))
    };
    match read.map_err(program::input::text_error) {
        Err(error) => {
            Err(Failure::bad_input(&error).with_context(&format!("cannot read the {subject} {}", path.display())))
        }
        Ok(length_bytes) if length_bytes as u64 > MAX_SPEC_BYTES => Err(Failure::input_problems(vec![format!(
            "{}: longer than {} MiB, the limit for a {subject}",
            path.display(),
            MAX_SPEC_BYTES >> 20
        )])),
        Ok(_) => Ok(text),
    }
}

/// Returns the spec in a file, with the overrides applied. In the state directory of a clone, it has the clone's
/// identity.
pub(crate) fn read(path: &Path, overrides: &Overrides) -> Result<MachineSpec, Failure> {
    read_with_origin(path, overrides).map(|(spec, _)| spec)
}

/// Returns the spec in a file like [`read`], and what the file describes if the machine is a clone.
pub(crate) fn read_with_origin(
    path: &Path,
    overrides: &Overrides,
) -> Result<(MachineSpec, Option<CloneOrigin>), Failure> {
    let text = read_text(path)?;
    let mut spec = parse(&text).map_err(|errors| {
        Failure::input_problems(errors.iter().map(|error| format!("{}: {error}", path.display())).collect())
    })?;
    let own_name = spec.name.clone();
    overrides.apply(&mut spec);
    let name = overrides.name_on_host()?.unwrap_or_else(|| spec.name.clone());
    if let Some(record) = clone_record(&overrides.state_directory()?)? {
        // The names of its interfaces are derived from this one, and not from the clone's.
        spec.name = own_name;
        let origin = CloneOrigin { record, document: spec };
        return Ok((origin.spec_of(&name), Some(origin)));
    }
    spec.name = name;
    Ok((spec, None))
}

/// Reads the file that makes a machine a clone. If this process is root, it must belong to root, because it determines
/// the interfaces that root creates.
fn clone_record(state_directory: &HostPath) -> Result<Option<CloneRecord>, Failure> {
    let path = state_directory.as_path().join(CLONE_FILE);
    let problem = |reason: &dyn Display| Failure::problems(vec![format!("{}: {reason}", path.display())]);
    match Place::nofollow(&path).and_then(|place| place.read_own()) {
        Ok(text) => serde_json::from_slice(&text).map(Some).map_err(|error| problem(&error)),
        Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => Ok(None),
        Err(error) => Err(problem(&error)),
    }
}

/// Returns the checked spec in a file, with the overrides applied.
pub(crate) fn read_checked(path: &Path, overrides: &Overrides) -> Result<CheckedSpec, Failure> {
    let spec = read(path, overrides)?;
    check(&spec).map_err(|problems| Failure::input_problems(problems.iter().map(ToString::to_string).collect()))
}

/// Returns the launch of a checked spec on its hypervisor.
pub(crate) fn lowered(spec: &CheckedSpec, facts: &HostFacts) -> Result<Launch, Failure> {
    lower(spec, facts, spec.hypervisor).map_err(|refusals| refused(&refusals))
}

/// Returns a failure with all refusals, and a hint with the hypervisors that can run the machine.
pub(crate) fn refused(refusals: &Refusals) -> Failure {
    let problems = refusals.refusals.iter().map(ToString::to_string).collect();
    Failure::input_problems(problems).with_hint(refusals.hint())
}
