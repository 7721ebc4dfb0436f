//! `microvm clone`: creates a machine that continues the memory of a suspended one.

use super::clone_arguments;
use super::create::{discard, finish, publish, remove_directory};
use super::layout::{DIRECTORY_MODE, Layout, Machine, replace_link};
use super::lock::MachineLock;
use super::{ImperativeError, MachineName};
use crate::hypervisor::clone_refusals;
use crate::identity::{CLONE_FILE, CLONE_VERSION, CloneRecord};
use crate::interruption::Interruption;
use crate::isolation::{IsolationError, StateDirectory, StoreDisks};
use crate::launch::{Access, Launch};
use crate::path::HostPath;
use crate::refusal::Refusal;
use crate::spec::{Hypervisor, MachineSpec};
use crate::stamp::BorrowedIdentity;
use crate::state::RuntimeDirectory;
use crate::suspend::{ClonedState, SuspendError, copy_to_clone, is_inside_state_directory};
use crate::validate::CheckedSpec;
use crate::volumes::{ImageLock, LockRequest, LockTime, VolumeError, lock_volumes};
use nix::sys::stat::fstat;
use program::place::{Directory, Place};
use program::user::Identity;
use std::fs;
use std::path::{Path, PathBuf};

/// Why a machine was not cloned. Nothing is left behind, except after [`ImperativeError::Created`]: the clone is complete
/// then.
#[derive(Debug, thiserror::Error)]
pub enum CloneError {
    /// The new machine exists.
    #[error("{0} already exists, and a clone never replaces a machine: choose another name, or delete it first")]
    Exists(PathBuf),
    /// The hypervisor cannot continue this machine under another name.
    #[error("{}", .0.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n"))]
    Refused(Vec<Refusal>),
    /// Parts of the machine that both would use.
    #[error("{}", .0.join("\n"))]
    Shared(Vec<String>),
    /// The runner of the original has changed in the meantime.
    #[error("{0} was updated while it was being cloned; try again")]
    Updated(String),
    /// What was saved cannot be copied.
    #[error(transparent)]
    Suspend(#[from] SuspendError),
    /// A volume is in use.
    #[error(transparent)]
    Volume(#[from] VolumeError),
    /// The new machine cannot get a user.
    #[error(transparent)]
    Isolation(#[from] IsolationError),
    /// The state directory cannot be created.
    #[error(transparent)]
    Machine(#[from] ImperativeError),
}

impl CloneError {
    /// Returns the error as one line per problem.
    pub fn problems(&self) -> Vec<String> {
        self.to_string().lines().map(str::to_owned).collect()
    }

    /// Whether the user's input is wrong, as opposed to an operation that failed.
    pub fn is_bad_input(&self) -> bool {
        match self {
            Self::Exists(_) | Self::Refused(_) | Self::Shared(_) => true,
            Self::Machine(error) => error.is_bad_input(),
            Self::Updated(_) | Self::Suspend(_) | Self::Volume(_) | Self::Isolation(_) => false,
        }
    }
}

/// A clone to create.
#[derive(Clone, Copy, Debug)]
pub struct CloneRequest<'clone> {
    /// The directories of the host.
    pub layout: &'clone Layout,
    /// The runtime directory, which contains locks of volumes.
    pub runtime: &'clone RuntimeDirectory,
    /// The suspended machine.
    pub original: &'clone Machine,
    /// Its spec.
    pub spec: &'clone MachineSpec,
    /// Its checked spec.
    pub checked: &'clone CheckedSpec,
    /// Its launch.
    pub launch: &'clone Launch,
    /// The machine that the spec of its runner describes: another one if it is a clone itself.
    pub described: &'clone str,
    /// Whether the user keeps guests with the same MAC addresses apart.
    pub same_mac_is_allowed: bool,
    /// The directory of the store disks that the host builds; it need not exist.
    pub store_disks: &'clone Path,
}

/// A clone that was created.
#[derive(Clone, Debug)]
pub struct NewClone {
    /// The machine.
    pub machine: Machine,
    /// The bytes that were copied because the file system does not share blocks.
    pub copied_bytes: u64,
}

/// Creates a state directory with the runner of a suspended machine, copies of its volumes and what was saved. The
/// directory appears atomically.
///
/// # Errors
/// Returns [`CloneError`].
pub fn clone(
    request: CloneRequest<'_>,
    name: &MachineName,
    interruption: &Interruption,
) -> Result<NewClone, CloneError> {
    let CloneRequest { layout, launch, .. } = request;
    request.require_cloneable()?;
    let machine = layout.machine(name);
    let _lock = MachineLock::take(layout, name)?;
    if fs::symlink_metadata(&machine.directory).is_ok() {
        return Err(CloneError::Exists(machine.directory));
    }
    layout.refuse_shared_root(&machine)?;
    layout.remove_unfinished_links(&machine)?;
    // Any number of clones can be made at once, but the machine must not start to write meanwhile.
    let mut volumes = launch.needs.volumes.clone();
    volumes.iter_mut().for_each(|volume| volume.access = Access::Read);
    let locking = LockRequest {
        machine: name.as_str(),
        working_directory: &launch.working_directory,
        runtime: request.runtime,
        owner: None,
        image_lock: ImageLock::Held,
        time: LockTime::Now,
    };
    let _volumes = lock_volumes(&volumes, locking)?;
    // Remains of an interrupted creation are replaced.
    let making = Machine { name: name.clone(), directory: layout.unfinished(&machine) };
    remove_directory(&making.directory)?;
    let made = || {
        let directory = Directory::make(&making.directory, DIRECTORY_MODE, None);
        directory.map_err(ImperativeError::file(&making.directory))?;
        let runner = request.keep_runner(&machine)?;
        let copied_bytes = request.fill(&making, &runner, interruption)?;
        let _links = request.share_store_disk(&machine)?;
        publish(layout, &making, &machine)?;
        Ok(copied_bytes)
    };
    let made = made();
    match made {
        Ok(copied_bytes) => {
            finish(layout, &machine)?;
            Ok(NewClone { machine, copied_bytes })
        }
        Err(error) => {
            discard(layout, &making, &machine);
            Err(error)
        }
    }
}

impl CloneRequest<'_> {
    /// Refuses a machine of which a part would be used by both.
    fn require_cloneable(&self) -> Result<(), CloneError> {
        let refusals = clone_refusals(self.checked);
        if !refusals.is_empty() {
            return Err(CloneError::Refused(refusals));
        }
        let spec = self.spec;
        let volumes = spec.volumes.iter().enumerate().filter(|(_, volume)| !volume.read_only);
        let volumes = volumes.map(|(index, volume)| (format!("volumes[{index}].image"), Some(&volume.image)));
        let sockets = [
            ("socket", spec.socket.as_ref()),
            ("consoleSocket", spec.console_socket.as_ref()),
            ("vsock.socket", spec.vsock.socket.as_ref()),
        ];
        let sockets = sockets.map(|(option, path)| (option.to_owned(), path));
        let outside = volumes.chain(sockets).filter_map(|(option, path)| {
            let path = path.filter(|path| !is_inside_state_directory(path))?;
            Some(format!(
                "{}: {option}: {path} is outside the state directory, so the clone would use it too",
                spec.name
            ))
        });
        let script = spec.extra_args_script.as_ref().map(|script| {
            format!(
                "{}: extraArgsScript: the clone might need other arguments than {script} prints for the machine",
                spec.name
            )
        });
        let (option, _) = self.checked.sections.extra_args(spec.hypervisor);
        let has_own_configuration =
            spec.hypervisor != Hypervisor::CloudHypervisor || self.launch.expected_configuration.is_some();
        let changed = (!has_own_configuration).then(|| {
            format!(
                "{}: {option}: they change how interfaces and sockets are named, so the clone would use them too",
                spec.name
            )
        });
        let shared = clone_arguments::shared(&self.checked.sections, spec.hypervisor);
        let extra = shared.into_iter().map(|(option, word)| {
            format!(
                "{}: {option}: `{word}` may name a file, a socket or a device of the host, which the clone would use too; \
                 leave it out, or use other options of the machine, let it boot, and suspend it again",
                spec.name
            )
        });
        let problems: Vec<_> = outside.chain(script).chain(changed).chain(extra).collect();
        if problems.is_empty() { Ok(()) } else { Err(CloneError::Shared(problems)) }
    }

    /// Protects the runner from garbage collection while volumes are copied: the original may be updated or deleted
    /// meanwhile. Returns it.
    fn keep_runner(&self, machine: &Machine) -> Result<PathBuf, CloneError> {
        let runner = self.original.runner()?;
        self.layout.add_temporary_gc_root(machine, &runner)?;
        // Looked up again: until then, the original's root protects it.
        if self.original.runner()? != runner {
            return Err(CloneError::Updated(self.original.name.to_string()));
        }
        Ok(runner)
    }

    /// Creates everything in the unfinished directory. Returns the bytes that were copied.
    fn fill(&self, making: &Machine, runner: &Path, interruption: &Interruption) -> Result<u64, CloneError> {
        replace_link(runner, &making.current())?;
        let record = CloneRecord { version: CLONE_VERSION, clone_of: self.described.to_owned() };
        let path = making.directory.join(CLONE_FILE);
        let written = serde_json::to_vec_pretty(&record).map_err(Into::into);
        written
            .and_then(|text| Place::nofollow(&path)?.replace(&[&text[..], b"\n"].concat(), 0o644, None))
            .map_err(ImperativeError::file(&path))?;
        let owner = self.give_owner(making)?;
        let directory = HostPath::new(making.directory.to_string_lossy());
        let name = self.original.name.to_string();
        let borrowed = BorrowedIdentity { machine: name, same_mac_is_allowed: self.same_mac_is_allowed };
        let clone = ClonedState {
            original: self.launch,
            directory: &directory,
            name: making.name.as_str(),
            borrowed: &borrowed,
            owner: owner.as_ref(),
        };
        Ok(copy_to_clone(&clone, interruption)?)
    }

    /// Gives the clone the store disk that the host has built for the original. Only root builds them.
    fn share_store_disk(&self, machine: &Machine) -> Result<Option<fs::File>, CloneError> {
        let Some(need) = &self.launch.needs.store_disk else { return Ok(None) };
        if !nix::unistd::geteuid().is_root() || !self.store_disks.is_dir() {
            return Ok(None);
        }
        let own = need.image.below(&self.launch.working_directory);
        let names = [self.original.name.as_str(), machine.name.as_str()];
        share_built(StoreDisks::at(self.store_disks), own.as_path(), names)
    }

    /// Gives the clone a user of its own if the machine has one. Returns the owner of its files: otherwise the owner of
    /// what was saved, if this process is root.
    fn give_owner(&self, making: &Machine) -> Result<Option<Identity>, CloneError> {
        if !nix::unistd::geteuid().is_root() {
            return Ok(None);
        }
        if StateDirectory::open(self.original)?.user_id().is_ok() {
            let directory = StateDirectory::open(making)?;
            directory.adopt(self.layout)?;
            let id = directory.user_id()?;
            return Ok(Some(Identity::of_ids(id, id)));
        }
        let saved = crate::suspend::SuspendedState::of_launch(self.launch).complete();
        let stat = Directory::open(saved.as_path()).and_then(|directory| Ok(fstat(&directory)?));
        // Without it, the machine is not suspended, which is reported with its name.
        Ok(stat.ok().map(|stat| Identity::of_ids(stat.st_uid, stat.st_gid)))
    }
}

/// Gives a clone the image that the host has built for its original, which may be updated or deleted before the clone
/// is started. `own` is the image in the original's state directory. Returns the lock on the images: until it is
/// dropped, none is removed.
fn share_built(
    disks: StoreDisks<'_>,
    own: &Path,
    [original, clone]: [&str; 2],
) -> Result<Option<fs::File>, CloneError> {
    let (is_shared, lock) = disks.share(original, clone)?;
    // The file over which the image of the host is mounted is empty.
    let is_own = || fs::metadata(own).is_ok_and(|metadata| metadata.len() > 0);
    match is_shared {
        true => Ok(Some(lock)),
        false if is_own() => Ok(None),
        false => Err(CloneError::Updated(original.to_owned())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_clone_gets_the_store_disk_of_the_host_although_its_original_has_an_empty_file_of_that_name() {
        let directory = tempfile::tempdir().unwrap();
        let path = |name: &str| directory.path().join(name);
        let (disks, own) = (path("disks"), path("web-store.squashfs"));
        fs::create_dir(&disks).unwrap();
        fs::write(path("plan"), "a plan").unwrap();
        fs::write(&own, "").unwrap();
        let store_disks = StoreDisks::at(&disks);
        // The original was deleted in the meantime.
        let lost = share_built(store_disks, &own, ["web", "worker"]);
        assert!(matches!(lost, Err(CloneError::Updated(_))), "{lost:?}");
        store_disks.assign("web", &path("plan"), |_| false).unwrap();
        assert!(share_built(store_disks, &own, ["web", "worker"]).unwrap().is_some());
        let target = |name: &str| fs::read_link(disks.join(name)).unwrap();
        assert_eq!(target("worker.link"), target("web.link"));
        // Without the host module, it has an image of its own.
        fs::write(&own, "an image").unwrap();
        assert!(share_built(store_disks, &own, ["mail", "other"]).unwrap().is_none());
    }
}
