//! How a command fails: an `error:` line, possibly a `hint:`, and an exit code.

use imagebuilder::build::BuildError;
use imagebuilder::cache::CacheError;
use imagebuilder::cache_service::listener::ListenError;
use imagebuilder::cache_service::server::ServeError;
use imagebuilder::closure::{ClosureError, ClosureProblem, ClosureProblems, GraphError, NixStoreError};
use imagebuilder::image::ImageError;
use imagebuilder::machine::MachineError;
use imagebuilder::missing_paths::MissingPaths;
use imagebuilder::output::OutputError;
use imagebuilder::plan_file::PlanFileError;
use imagebuilder::scan::ScanError;
use imagebuilder::serve::confine::ConfineError;
use imagebuilder::serve::content::StoreDirError;
use imagebuilder::serve::socket::SocketError;
use imagebuilder::settings::SettingsError;
use imagebuilder::volume::VolumeError;
use program::atomic_file::WriteError;
use program::failure::{chain, is_system_error};
use program::output;
use std::error::Error;
use std::path::Path;
use std::process::ExitCode;

/// The reason why a command failed, and what the user can do about it. It is a type of its own so that errors of the
/// library convert to it.
#[derive(Debug)]
pub(crate) struct Failure(program::failure::Failure);

impl Failure {
    /// See [`program::failure::Failure::failed`].
    pub(crate) fn failed(error: &(dyn Error + 'static)) -> Self {
        Self(program::failure::Failure::failed(error))
    }

    /// See [`program::failure::Failure::bad_input`].
    pub(crate) fn bad_input(error: &(dyn Error + 'static)) -> Self {
        Self(program::failure::Failure::bad_input(error))
    }

    /// See [`program::failure::Failure::usage`].
    pub(crate) fn usage(message: impl Into<String>) -> Self {
        Self(program::failure::Failure::usage(message))
    }

    /// No option names a closure.
    pub(crate) fn no_closure() -> Self {
        Self::usage("no closure was given")
            .with_hint("specify store paths, or one of --closure-info, --graph, --paths-from and --plan")
    }

    /// See [`program::failure::Failure::interrupted`].
    pub(crate) fn interrupted() -> Self {
        Self(program::failure::Failure::interrupted())
    }

    /// An image cannot be read, or is too damaged to go on: exit code 1.
    pub(crate) fn unreadable_image(image: &Path, error: &(dyn Error + 'static)) -> Self {
        match error.downcast_ref() {
            // This error already names the image.
            Some(ImageError::Open { .. }) => Self::check_failed(chain(error)),
            _ => Self::check_failed(format!("{}: {}", image.display(), chain(error))),
        }
    }

    /// An image has problems: exit code 1.
    pub(crate) fn check_failed(message: String) -> Self {
        Self(program::failure::Failure::problems(vec![message]))
    }

    /// Puts a context in front of the message.
    pub(crate) fn with_context(self, context: &str) -> Self {
        Self(self.0.with_context(context))
    }

    /// Sets the hint.
    pub(crate) fn with_hint(self, hint: impl Into<String>) -> Self {
        Self(self.0.with_hint(hint))
    }

    /// Appends to the hint.
    pub(crate) fn with_further_hint(self, hint: &str) -> Self {
        Self(self.0.with_further_hint(hint))
    }

    /// Prints it on stderr, and returns the exit code.
    pub(crate) fn report(&self) -> ExitCode {
        output::report(&self.0)
    }
}

impl From<program::failure::Failure> for Failure {
    fn from(failure: program::failure::Failure) -> Self {
        Self(failure)
    }
}

impl From<ClosureError> for Failure {
    fn from(error: ClosureError) -> Self {
        let failure = match &error {
            ClosureError::NixStore(NixStoreError::NoProgram | NixStoreError::Run(_)) => Self::failed(&error),
            _ => Self::bad_input(&error),
        };
        match closure_hint(&error) {
            Some(hint) => failure.with_hint(hint),
            None => failure,
        }
    }
}

fn closure_hint(error: &ClosureError) -> Option<&'static str> {
    match error {
        ClosureError::Graph { source: GraphError::TextForm, .. } => {
            Some("set `__structuredAttrs = true` in the derivation and use its .attrs.json")
        }
        ClosureError::Graph { source: GraphError::SeveralGraphs { .. } | GraphError::NoSuchGraph { .. }, .. } => {
            Some("select the graph with --graph-key")
        }
        ClosureError::NixStore(error) => nix_store_hint(error),
        ClosureError::Problems(problems) => problems_hint(problems),
        _ => None,
    }
}

fn nix_store_hint(error: &NixStoreError) -> Option<&'static str> {
    match error {
        NixStoreError::NoProgram => {
            Some("install Nix, or give the closure with --closure-info, --graph, --paths-from or --plan")
        }
        NixStoreError::Remote { .. } => Some(
            "copy the closure to this machine with `nix copy`, or specify the directory of its files with --store-dir",
        ),
        NixStoreError::NoStore { .. } => {
            Some("a store at DIR has its files at DIR/nix/store; if they are elsewhere, use --store-dir")
        }
        NixStoreError::Arguments(_) => {
            Some("write store paths as /nix/store/HASH-NAME, or use links to them; for another store, use --store")
        }
        _ => None,
    }
}

fn problems_hint(problems: &ClosureProblems) -> Option<&'static str> {
    problems.problems.iter().find_map(|problem| match problem {
        ClosureProblem::NotClosed { .. } => {
            Some("list all store paths that the system needs, as closureInfo and `nix-store -qR` do")
        }
        ClosureProblem::OtherStore { .. } => Some("an image contains the paths of one store: list only those"),
        _ => None,
    })
}

impl From<MissingPaths> for Failure {
    fn from(error: MissingPaths) -> Self {
        if error.absent.iter().any(|absent| is_system_error(absent)) {
            return Self::failed(&error);
        }
        Self::bad_input(&error).with_hint("use --store-dir DIR if the store paths are in another directory")
    }
}

impl From<PlanFileError> for Failure {
    fn from(error: PlanFileError) -> Self {
        Self::bad_input(&error)
    }
}

impl From<SettingsError> for Failure {
    fn from(error: SettingsError) -> Self {
        Self::bad_input(&error)
    }
}

impl From<MachineError> for Failure {
    fn from(error: MachineError) -> Self {
        Self::bad_input(&error)
    }
}

impl From<OutputError> for Failure {
    fn from(error: OutputError) -> Self {
        Self::bad_input(&error)
    }
}

impl From<WriteError> for Failure {
    fn from(error: WriteError) -> Self {
        Self::failed(&error)
    }
}

impl From<CacheError> for Failure {
    fn from(error: CacheError) -> Self {
        Self::failed(&error)
    }
}

impl From<ListenError> for Failure {
    fn from(error: ListenError) -> Self {
        match &error {
            ListenError::Bind { .. } => Self::failed(&error),
            ListenError::HandedOver(_) | ListenError::Several(_) | ListenError::InUse { .. } => Self::bad_input(&error),
        }
    }
}

impl From<ServeError> for Failure {
    fn from(error: ServeError) -> Self {
        Self::failed(&error)
    }
}

impl From<imagebuilder::serve::ServeError> for Failure {
    fn from(error: imagebuilder::serve::ServeError) -> Self {
        Self::failed(&error)
    }
}

impl From<SocketError> for Failure {
    fn from(error: SocketError) -> Self {
        match &error {
            SocketError::Bind { .. } | SocketError::Thread(_) | SocketError::Notify { .. } => Self::failed(&error),
            SocketError::InUse { .. } => Self::bad_input(&error).with_hint("end that process, or use another --socket"),
            SocketError::NotASocket { .. } => {
                Self::bad_input(&error).with_hint("move it away, or use another --socket")
            }
        }
    }
}

impl From<ConfineError> for Failure {
    fn from(error: ConfineError) -> Self {
        match &error {
            ConfineError::TooManyPaths { .. } => {
                Self::failed(&error).with_hint("raise it with `ulimit -Hn`, or with LimitNOFILE= in a unit of systemd")
            }
            _ => Self::failed(&error),
        }
    }
}

impl From<StoreDirError> for Failure {
    fn from(error: StoreDirError) -> Self {
        Self::bad_input(&error)
    }
}

/// The remedy for a store path whose content is not what Nix registered.
const DAMAGED_PATH_HINT: &str = "`nix-store --verify-path PATH` checks a store path; `nix-store --repair-path PATH`, as root, replaces a \
                                 damaged one";

impl From<BuildError> for Failure {
    fn from(error: BuildError) -> Self {
        match &error {
            BuildError::Interrupted => Self::interrupted(),
            BuildError::Scan(problems)
                if problems.iter().any(|problem| matches!(problem, ScanError::NarSize { .. })) =>
            {
                Self::bad_input(&error).with_hint(DAMAGED_PATH_HINT)
            }
            BuildError::NarHashMismatch(_) => Self::bad_input(&error).with_hint(DAMAGED_PATH_HINT),
            BuildError::Scan(problems) if problems.iter().any(|problem| is_system_error(problem)) => {
                Self::failed(&error)
            }
            BuildError::Scan(_) => Self::bad_input(&error),
            BuildError::Changed { .. } => Self::failed(&error)
                .with_hint("store paths must not change; build again when nothing writes to the store"),
            BuildError::Cache(_) => {
                Self::failed(&error).with_hint("use another cache with --cache DIR, or none with --no-cache")
            }
            BuildError::Output(imagebuilder::build::OutputError::Place(_)) => Self::bad_input(&error),
            _ => Self::failed(&error),
        }
    }
}

impl From<VolumeError> for Failure {
    fn from(error: VolumeError) -> Self {
        match &error {
            VolumeError::Interrupted => Self::interrupted(),
            VolumeError::Request { .. } | VolumeError::CreatedMeanwhile { .. } => Self::bad_input(&error),
            VolumeError::NoProgram { debian_package, nix_package, .. } => Self::failed(&error)
                .with_hint(format!("install {debian_package} (Debian) or add {nix_package} (Nixpkgs) to PATH")),
            _ => Self::failed(&error),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io;
    use std::path::PathBuf;

    #[test]
    fn a_message_contains_the_error_and_all_its_causes() {
        let source = io::Error::from(io::ErrorKind::PermissionDenied);
        let failure = Failure::from(PlanFileError::Read { path: PathBuf::from("plan.json"), source });
        assert_eq!(failure.0, program::failure::Failure::usage("cannot read the plan plan.json: permission denied"));
    }

    #[test]
    fn exit_codes_distinguish_bad_input_from_failed_work() {
        let full = || io::Error::from(io::ErrorKind::StorageFull);
        let path = PathBuf::from("x");
        let codes = [
            Failure::from(BuildError::Interrupted).0.report().1,
            Failure::from(BuildError::Changed { path: path.clone() }).0.report().1,
            Failure::from(BuildError::Output(OutputError::NoName { path: path.clone() }.into())).0.report().1,
            Failure::from(WriteError { path: path.clone(), source: full() }).0.report().1,
            Failure::from(VolumeError::Interrupted).0.report().1,
            Failure::from(VolumeError::CreatedMeanwhile { path: path.clone() }).0.report().1,
            Failure::from(VolumeError::File { path, source: full() }).0.report().1,
            Failure::from(ClosureError::NixStore(NixStoreError::NoProgram)).0.report().1,
        ];
        assert_eq!(codes, [130, 1, 2, 1, 130, 2, 1, 1].map(ExitCode::from));
    }

    #[test]
    fn the_error_for_an_image_that_cannot_be_opened_names_it_once() {
        let path = PathBuf::from("nope");
        let error = ImageError::Open { path: path.clone(), source: io::ErrorKind::NotFound.into() };
        let (lines, _) = Failure::unreadable_image(&path, &error).0.report();
        assert_eq!(lines, ["error: cannot open image nope: entity not found"]);
    }

    #[test]
    fn the_error_for_a_missing_mkfs_names_its_packages() {
        let error = VolumeError::NoProgram { program: "mkfs.xfs", debian_package: "xfsprogs", nix_package: "xfsprogs" };
        let (lines, _) = Failure::from(error).0.report();
        let hint = "hint: install xfsprogs (Debian) or add xfsprogs (Nixpkgs) to PATH";
        assert_eq!(lines, ["error: the program mkfs.xfs is not installed", hint]);
    }
}
