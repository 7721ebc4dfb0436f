//! Finds the reasons for which a start would be refused, before the start: each check of [`Prepared::make`] whose result is
//! known by then. Creates and starts nothing.
//!
//! [`Prepared::make`]: super::Prepared::make

use super::prepare::{lock_request, read_seal, trusted_program};
use super::{Lowered, resources, vsock};
use crate::host::HostProblem;
use crate::isolation::is_confined;
use crate::launch::{Launch, NotificationSocket, ProbedFormat};
use crate::network;
use crate::own_files::own_files_in_use;
use crate::path::HostPath;
use crate::programs::find_program_of_machine;
use crate::readiness::check_notification_port;
use crate::share_view;
use crate::side_processes;
use crate::sockets::require_stale;
use crate::stamp::{Stamp, StampInputs};
use crate::state::RuntimeDirectory;
use crate::suspend::{Resumption, StartingGuest, SuspendError, require_own_macs};
use crate::volumes::{VolumeError, check_format, check_size, inspect_locks};
use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, AtFlags, OFlag};
use nix::sys::statvfs::fstatvfs;
use nix::unistd::{AccessFlags, faccessat};
use program::place::{Directory, Place};
use program::user::Identity;
use std::io;
use std::os::unix::fs::FileTypeExt;
use std::path::Path;

/// Returns what [`super::run`] would refuse to start the machine for, apart from what [`crate::host::missing`] finds. For a
/// machine that already runs, this is the only reason: the others would be about itself.
pub fn refusals(lowered: &Lowered<'_>, runtime: &RuntimeDirectory) -> Vec<HostProblem> {
    let launch = lowered.launch;
    let identity = launch.user.as_deref().map(Identity::of).and_then(Result::ok);
    let identity = identity.filter(|_| nix::unistd::geteuid().is_root());
    let mut refusals = Refusals { launch, identity: identity.as_ref(), found: Vec::new() };
    let stopped = runtime.machine(&launch.name).and_then(|state| {
        state.require_stopped(launch.working_directory.as_path())?;
        Ok(state)
    });
    match stopped {
        Ok(state) => {
            refusals.check("name", state.directory(), Directory::check_make(state.directory()));
            refusals.check_space("name", state.directory());
        }
        Err(error) => {
            refusals.add("name", error.to_string());
            return refusals.found;
        }
    }
    refusals.check_places();
    refusals.check_programs();
    if let Some((cid, holder)) = vsock::user_of_address(launch, runtime) {
        let remedy = "stop it, or give one of them another vsock.cid";
        refusals.add("vsock.cid", format!("the address {cid} is in use by {holder}; {remedy}"));
    }
    refusals.check_disks(runtime);
    refusals.check_sockets();
    refusals.found.extend(resources::unavailable(lowered, refusals.identity));
    refusals.check_macs(lowered, runtime);
    for problem in network::inspect(&launch.needs) {
        refusals.add("interfaces", problem.to_string());
    }
    refusals.check_side_processes();
    refusals.check_initrd();
    refusals.check_suspended(lowered);
    refusals.found
}

struct Refusals<'launch> {
    launch: &'launch Launch,
    /// The machine's user, if root starts it.
    identity: Option<&'launch Identity>,
    found: Vec<HostProblem>,
}

impl Refusals<'_> {
    fn add(&mut self, option: &str, message: impl Into<String>) {
        self.found.push(HostProblem { option: option.to_owned(), message: message.into() });
    }

    /// Records the error of a file operation.
    fn check<T>(&mut self, option: &str, path: &Path, outcome: io::Result<T>) {
        if let Err(error) = outcome {
            self.add(option, format!("{}: {error}", path.display()));
        }
    }

    fn absolute(&self, path: &HostPath) -> HostPath {
        path.below(&self.launch.working_directory)
    }

    /// Checks that the file system has space left. Root may use its reserve.
    fn check_space(&mut self, option: &str, path: &Path) {
        let existing = path.ancestors().find_map(|existing| Directory::open(existing).ok());
        let Some(found) = existing.and_then(|existing| fstatvfs(existing).ok()) else { return };
        let is_root = nix::unistd::geteuid().is_root();
        let free = if is_root { found.blocks_free() } else { found.blocks_available() };
        if free == 0 && found.blocks() > 0 {
            self.check(option, path, Err::<(), _>(Errno::ENOSPC.into()));
        }
    }

    /// Checks the directories and files that are created.
    fn check_places(&mut self) {
        let launch = self.launch;
        let hypervisor = launch.hypervisor.as_str();
        let state_directory = launch.working_directory.as_path();
        self.check("state directory", state_directory, Directory::check_make(state_directory));
        self.check_space("state directory", state_directory);
        for directory in &launch.needs.directories {
            let path = self.absolute(directory);
            self.check(hypervisor, path.as_path(), Directory::check_make(path.as_path()));
        }
        for file in launch.files.iter().filter(|_| state_directory.is_dir()) {
            let path = self.absolute(&file.path);
            let checked = Place::nofollow(path.as_path()).and_then(|place| place.check_create());
            self.check(hypervisor, path.as_path(), checked);
            if path.as_path().symlink_metadata().is_ok_and(|found| found.is_dir()) {
                self.add(hypervisor, format!("{path} is a directory, but a file is written there; move it away"));
            }
        }
    }

    /// Checks the programs that the launcher runs itself.
    fn check_programs(&mut self) {
        let launch = self.launch;
        for (index, words) in launch.needs.pre_start.iter().enumerate() {
            let Some(program) = words.first() else { continue };
            match self.check_program(program) {
                // An earlier command may create it.
                Err(error) if index > 0 && error.kind() == io::ErrorKind::NotFound && program.contains('/') => {}
                checked => self.check(&format!("preStart[{index}]"), Path::new(program), checked),
            }
        }
        // That it exists is checked with the other files.
        if let Some(script) = launch.needs.extra_args_script.as_ref().map(|script| self.absolute(script))
            && script.as_path().exists()
        {
            let checked = trusted_program(launch, script.as_str(), self.identity);
            self.check("extraArgsScript", script.as_path(), checked);
        }
        for bridge in &launch.needs.bridges {
            if let Some(helper) = &bridge.helper
                && let Err(error) = find_program_of_machine(helper, &launch.working_directory)
            {
                self.add("qemu.bridgeHelper", error.to_string());
            }
        }
    }

    fn check_program(&self, program: &str) -> io::Result<()> {
        let path = trusted_program(self.launch, program, self.identity)?;
        match path.metadata() {
            Ok(found) if found.is_dir() => return Err(io::ErrorKind::IsADirectory.into()),
            Ok(found) if !found.is_file() => return Err(io::ErrorKind::PermissionDenied.into()),
            _ => {}
        }
        Ok(faccessat(AT_FDCWD, &path, AccessFlags::X_OK, AtFlags::AT_EACCESS)?)
    }

    fn check_disks(&mut self, runtime: &RuntimeDirectory) {
        let launch = self.launch;
        let request = lock_request(launch, runtime, self.identity);
        for error in own_files_in_use(launch, Some(runtime)) {
            self.add(&error.option, error.reason);
        }
        for (index, error) in inspect_locks(&launch.needs.volumes, request) {
            self.add(&format!("volumes[{index}].image"), error.to_string());
        }
        for (index, volume) in launch.needs.volumes.iter().enumerate() {
            let path = self.absolute(&volume.image);
            if let Some(creation) = &volume.creation
                && path.as_path().symlink_metadata().is_err()
            {
                self.check_space(&format!("volumes[{index}].image"), path.as_path());
                if let Err(error) = check_size(volume, creation) {
                    self.add(&format!("volumes[{index}].size"), error.to_string());
                }
            }
        }
        let is_file = |disk: &&ProbedFormat| {
            self.absolute(&disk.image)
                .as_path()
                .metadata()
                .is_ok_and(|found| found.is_file() || found.file_type().is_block_device())
        };
        // Others are reported with the volumes and the store disk.
        let probed: Vec<_> = launch.needs.probed_formats.iter().filter(is_file).collect();
        for disk in probed {
            match check_format(disk, &launch.working_directory, launch.hypervisor) {
                // It is created, or reported as missing.
                Err(VolumeError::File { source, .. }) if source.kind() == io::ErrorKind::NotFound => {}
                // A volume that cannot be opened is reported with its content.
                Err(VolumeError::File { .. }) if disk.option.starts_with("volumes[") => {}
                Err(error) => {
                    let text = error.to_string();
                    let message = text.strip_prefix(&format!("{}: ", disk.option)).unwrap_or(&text);
                    self.add(&disk.option, message);
                }
                Ok(()) => {}
            }
        }
    }

    /// Checks that no process listens on the sockets, and that those that the launcher creates can be created.
    fn check_sockets(&mut self) {
        let launch = self.launch;
        for socket in launch.needs.sockets_to_clear() {
            if let Err(error) = require_stale(self.absolute(socket).as_path()) {
                self.add("socket", error.to_string());
            }
        }
        if let Some(notification) = &launch.notification
            && let Err(error) = check_notification_port(notification)
        {
            self.add("vsock.notify", error.to_string());
        }
        let console = launch.console.socket.iter().map(|socket| ("consoleSocket", socket));
        let notified = launch.notification.iter().filter_map(|notification| match &notification.listen {
            NotificationSocket::Unix(path) => Some(("vsock.socket", path)),
            NotificationSocket::Vsock { .. } => None,
        });
        for (option, socket) in console.chain(notified) {
            let path = self.absolute(socket);
            // A missing directory is reported with the other sockets.
            if path.as_path().parent().is_some_and(Path::is_dir) {
                let checked = Place::nofollow(path.as_path()).and_then(|place| place.check_create());
                self.check(option, path.as_path(), checked);
            }
        }
    }

    /// Checks that no running guest on the same network has the MAC address of this one. In a unit, root does that.
    fn check_macs(&mut self, lowered: &Lowered<'_>, runtime: &RuntimeDirectory) {
        let macs: Vec<_> = lowered.document.interfaces.iter().map(|interface| interface.mac.clone()).collect();
        if !is_confined()
            && let Err(error) = require_own_macs(StartingGuest { launch: self.launch, macs: &macs }, runtime)
        {
            self.add("interfaces", error.to_string());
        }
    }

    fn check_side_processes(&mut self) {
        let launch = self.launch;
        for process in &launch.needs.processes {
            match side_processes::inspect(process, &launch.working_directory, self.identity) {
                // Reported with the other programs.
                Ok(()) | Err(side_processes::SideProcessError::NotInstalled { .. }) => {}
                Err(error) => self.add(&process.name, error.to_string()),
            }
            if let Some(view) = &process.view
                && let Err(error) = share_view::inspect(view, &launch.working_directory)
            {
                self.add(&process.name, error.to_string());
            }
        }
    }

    /// Checks that the launcher may read what it composes the initrd of. Missing files are reported with the others.
    fn check_initrd(&mut self) {
        let Some(initrd) = &self.launch.needs.initrd else { return };
        let credentials =
            initrd.credentials.iter().map(|(name, path)| (format!("credentialFiles.{name}"), path.clone()));
        for (option, path) in credentials.chain([("initrd".to_owned(), initrd.base.clone())]) {
            let path = self.absolute(&path);
            if path.as_path().is_file() {
                let opened = Place::of(path.as_path()).and_then(|place| place.open(OFlag::O_RDONLY));
                self.check(&option, path.as_path(), opened);
            }
        }
    }

    /// Checks the seal of the store disk, and that a suspended machine could be resumed. The arguments that a script adds
    /// are not known yet.
    fn check_suspended(&mut self, lowered: &Lowered<'_>) {
        let launch = self.launch;
        if launch.needs.sealed_image.is_some() && launch.needs.store_disk.is_some() {
            // The image is built at the start.
            return;
        }
        let sealed = match read_seal(lowered) {
            Ok(sealed) => sealed,
            Err(error) => {
                let text = error.to_string();
                return self.add("storeDisk.verity", text.strip_prefix("storeDisk.verity: ").unwrap_or(&text));
            }
        };
        let (facts, launch) = sealed.as_ref().map_or((lowered.facts, launch), |(facts, launch)| (facts, launch));
        let Ok(program) = find_program_of_machine(&launch.program, &launch.working_directory) else { return };
        if launch.needs.extra_args_script.is_some() {
            return;
        }
        let inputs = StampInputs { spec: lowered.document, facts, launch, program: &program };
        let checked =
            Stamp::of(&inputs).map_err(SuspendError::from).and_then(|stamp| Resumption::inspect(launch, &stamp));
        for problem in checked.err().iter().flat_map(SuspendError::problems) {
            self.add("suspended", problem);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::facts::HostFacts;
    use crate::hypervisor::lower;
    use crate::spec::MachineSpec;
    use crate::state::ProcessIdentity;
    use crate::state::tests::running;
    use serde_json::json;

    #[test]
    fn a_vsock_address_of_a_running_machine_is_reported_before_the_start() {
        let directory = tempfile::tempdir().unwrap();
        let document = json!({"version": 1, "name": "web", "kernel": "bzImage", "vsock": {"cid": 4_000_000_010_u32}});
        let document: MachineSpec = serde_json::from_value(document).unwrap();
        let spec = crate::validate::check(&document).unwrap();
        let facts = HostFacts::assumed(HostPath::new(directory.path().to_str().unwrap()));
        let launch = lower(&spec, &facts, spec.hypervisor).unwrap();
        let lowered = Lowered { spec: &spec, document: &document, origin: None, facts: &facts, launch: &launch };
        let runtime = RuntimeDirectory::at(directory.path());
        let state = runtime.machine("db").unwrap();
        let _lock = state.lock_for_start(Path::new("/var/lib/db")).unwrap();
        state.write_launch(&Launch { name: "db".to_owned(), ..launch.clone() }).unwrap();
        let found = |found: Vec<HostProblem>| found.into_iter().find(|problem| problem.option == "vsock.cid");
        assert_eq!(found(refusals(&lowered, &runtime)), None);
        state.write_running(&running(ProcessIdentity::current().unwrap())).unwrap();
        let message =
            "the address 4000000010 is in use by db; stop it, or give one of them another vsock.cid".to_owned();
        let expected = HostProblem { option: "vsock.cid".to_owned(), message };
        assert_eq!(found(refusals(&lowered, &runtime)), Some(expected));
    }
}
