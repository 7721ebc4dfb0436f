//! Building the store disk from its plan right before the start, with the host's cache. The image builder, a separate
//! program, does this.

use crate::interruption::{ChildError, Interrupted, Interruption};
use crate::launch::StoreDiskNeed;
use crate::path::HostPath;
use crate::programs::{NotInstalled, find_program_of_machine};
use program::child::become_user;
use program::user::Identity;
use std::io;
use std::process::{Command, ExitStatus};

/// Why the store disk could not be built.
#[derive(Debug, thiserror::Error)]
pub enum StoreDiskError {
    /// The image builder is not installed.
    #[error("cannot build the store disk from its plan: {0}")]
    NotInstalled(#[from] NotInstalled),
    /// The image builder cannot be started.
    #[error("{program}: {source}")]
    Start {
        /// The image builder.
        program: HostPath,
        /// The error of the system.
        source: io::Error,
    },
    /// The image builder failed.
    #[error("{program} ended with {status} without building the store disk from {plan}; see its own messages")]
    Failed {
        /// The image builder.
        program: HostPath,
        /// Its exit status.
        status: ExitStatus,
        /// The plan.
        plan: HostPath,
    },
    /// The image builder succeeded, but the image does not exist.
    #[error("{program} succeeded, but did not create {image}")]
    NoImage {
        /// The image builder.
        program: HostPath,
        /// The image.
        image: HostPath,
    },
    /// The image cannot be examined.
    #[error("{image}: {source}")]
    Image {
        /// The image.
        image: HostPath,
        /// The error of the system.
        source: io::Error,
    },
    /// A signal asked the launcher to stop.
    #[error(transparent)]
    Interrupted(#[from] Interrupted),
}

/// Builds the image. The builder detects whether the existing image already matches the plan, and replaces it
/// atomically. It writes to the machine's state directory, so root runs it as the machine's user.
///
/// # Errors
/// Returns [`StoreDiskError`].
pub fn make(
    need: &StoreDiskNeed,
    working_directory: &HostPath,
    identity: Option<&Identity>,
    interruption: &Interruption,
) -> Result<(), StoreDiskError> {
    let builder = builder_of(need);
    let program = find_program_of_machine(&builder, working_directory)?;
    let image = need.image.below(working_directory);
    let mut command = Command::new(&program);
    command.current_dir(working_directory.as_path());
    command.args(["build", "--quiet", "--plan", need.plan.as_str(), "--output", need.image.as_str()]);
    if let Some(cache) = &need.cache {
        command.args(["--cache", cache.as_str()]);
    }
    if let Some(identity) = identity {
        become_user(&mut command, identity);
    }
    let status = interruption.run_with_output_on_stderr(&mut command).map_err(|error| match error {
        ChildError::Interrupted(interrupted) => interrupted.into(),
        ChildError::System(source) => StoreDiskError::Start { program: builder.clone(), source },
    })?;
    if !status.success() {
        return Err(StoreDiskError::Failed { program: builder, status, plan: need.plan.clone() });
    }
    match image.as_path().metadata() {
        Ok(found) if found.is_file() => Ok(()),
        Err(source) if source.kind() != io::ErrorKind::NotFound => Err(StoreDiskError::Image { image, source }),
        _ => Err(StoreDiskError::NoImage { program: builder, image }),
    }
}

/// Returns the program that builds the image: the one that the environment names, or the spec's.
pub fn builder_of(need: &StoreDiskNeed) -> HostPath {
    named_in_environment().unwrap_or_else(|| need.builder.clone())
}

/// Returns the image builder in `$MICROVM_IMAGE`, for use where it is not in `$PATH`, such as in a checkout.
pub fn named_in_environment() -> Option<HostPath> {
    std::env::var("MICROVM_IMAGE").ok().filter(|path| !path.is_empty()).map(HostPath::new)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::path::Path;

    fn need(directory: &Path, script: &str) -> StoreDiskNeed {
        let builder = directory.join("microvm-image");
        testing::write_program(&builder, &format!("#!/bin/sh\n{script}\n"));
        StoreDiskNeed {
            plan: "/nix/store/plan.json".into(),
            image: "web-store.squashfs".into(),
            builder: HostPath::new(builder.to_str().unwrap()),
            cache: Some("/var/cache/microvm".into()),
        }
    }

    fn make_in(directory: &Path, script: &str) -> Result<(), StoreDiskError> {
        let state = HostPath::new(directory.to_str().unwrap());
        make(&need(directory, script), &state, None, &Interruption::watch().unwrap())
    }

    #[test]
    fn the_builder_is_called_with_plan_image_and_cache() {
        let directory = tempfile::tempdir().unwrap();
        make_in(directory.path(), "echo \"$@\" > arguments; touch web-store.squashfs").unwrap();
        assert_eq!(
            fs::read_to_string(directory.path().join("arguments")).unwrap(),
            "build --quiet --plan /nix/store/plan.json --output web-store.squashfs --cache /var/cache/microvm\n"
        );
    }

    #[test]
    fn a_builder_that_fails_or_creates_no_image_is_an_error() {
        let directory = tempfile::tempdir().unwrap();
        let error = make_in(directory.path(), "exit 4").unwrap_err().to_string();
        assert!(error.contains("exit status: 4 without building the store disk from /nix/store/plan.json"), "{error}");
        let error = make_in(directory.path(), "exit 0").unwrap_err();
        assert!(matches!(error, StoreDiskError::NoImage { .. }), "{error}");
    }
}
