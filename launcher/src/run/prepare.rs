//! Creates everything that the hypervisor needs before it starts. Dropping [`Prepared`] ends and removes it again.

use super::{Lowered, RunError, resources, vsock};
use crate::facts::HostFacts;
use crate::host::{CheckTime, missing};
use crate::hypervisor::lower_with_script_output;
use crate::initrd;
use crate::interruption::{ChildError, Interruption};
use crate::isolation;
use crate::launch::{Launch, VolumeNeed};
use crate::network::{self, CreatedInterfaces, macvtap};
use crate::own_files::require_no_own_file;
use crate::path::HostPath;
use crate::programs::{find_program, find_program_of_machine};
use crate::readiness::ServiceManager;
use crate::share_view;
use crate::side_processes::SideProcesses;
use crate::sockets::{remove_stale, require_stale};
use crate::spec::Hypervisor;
use crate::state::{RuntimeDirectory, StartLock};
use crate::store_disk;
use crate::store_seal;
use crate::suspend::keeps_store_disk;
use crate::volumes::{self, ImageLock, LockRequest, LockTime, VolumeError, VolumeLock, VolumeState};
use nix::fcntl::{FcntlArg, fcntl};
use program::child::pass_descriptors;
use program::place::{Directory, Place, require_not_modifiable_by};
use program::user::Identity;
use std::io;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::process::Command;
use std::thread::sleep;
use std::time::{Duration, Instant};

/// Extends the start timeout of the service manager by 60 s, given in microseconds: sd_notify(3).
const EXTEND_TIMEOUT: &str = "EXTEND_TIMEOUT_USEC=60000000\nSTATUS=creating the disks";

/// How often to try to take the locks of another host.
const LOCK_INTERVAL: Duration = Duration::from_secs(1);

/// A machine that is ready for its hypervisor to start.
#[derive(Debug)]
pub struct Prepared {
    /// The hypervisor's program.
    pub program: PathBuf,
    /// The launch, with the output of `extraArgsScript`.
    pub launch: Launch,
    /// The facts about this host, with the root hash of a sealed store disk.
    pub facts: HostFacts,
    /// The user that it runs as, if it is not the launcher's.
    pub identity: Option<Identity>,
    /// The processes that run beside it.
    pub side_processes: SideProcesses,
    /// The interfaces that were created for it.
    pub interfaces: CreatedInterfaces,
    /// The locks on its volumes.
    pub locks: Vec<VolumeLock>,
    descriptors: Vec<PassedDescriptor>,
}

/// The mode of a directory that is created for a machine.
const DIRECTORY_MODE: u32 = 0o750;
/// The mode of a file that only the hypervisor reads.
const FILE_MODE: u32 = 0o600;

/// Finds a program of the spec that the launcher runs itself: a relative path refers to the state directory, and a name
/// without a slash is searched for in `$PATH`. Root does not run a program that the machine's user could replace.
pub(super) fn trusted_program(launch: &Launch, program: &str, identity: Option<&Identity>) -> io::Result<PathBuf> {
    let path = if program.contains('/') {
        HostPath::from(program).below(&launch.working_directory).as_path().to_owned()
    } else {
        find_program(&HostPath::from(program)).map_err(|error| io::Error::new(io::ErrorKind::NotFound, error))?
    };
    if let Some(identity) = identity {
        require_not_modifiable_by(&path, identity)?;
    }
    Ok(path)
}

/// Returns the request for the locks of a launch.
pub(super) fn lock_request<'run>(
    launch: &'run Launch,
    runtime: &'run RuntimeDirectory,
    owner: Option<&'run Identity>,
) -> LockRequest<'run> {
    let is_locked_by_hypervisor = launch.hypervisor == Hypervisor::Crosvm;
    LockRequest {
        machine: &launch.name,
        working_directory: &launch.working_directory,
        runtime,
        owner,
        image_lock: if is_locked_by_hypervisor { ImageLock::Tried } else { ImageLock::Held },
        time: LockTime::Now,
    }
}

/// A descriptor that the hypervisor inherits under a fixed number.
#[derive(Debug)]
struct PassedDescriptor {
    number: i32,
}

impl Drop for PassedDescriptor {
    fn drop(&mut self) {
        // If it is already closed, nothing is lost.
        let _ = nix::unistd::close(self.number);
    }
}

impl Prepared {
    /// Creates everything, in the order of dependencies.
    ///
    /// # Errors
    /// Returns [`RunError`].
    pub fn make(
        lowered: &Lowered<'_>,
        lock: &mut StartLock,
        interruption: &Interruption,
        message: &mut dyn FnMut(&str),
    ) -> Result<Self, RunError> {
        let launch = lowered.launch;
        let program = find_program_of_machine(&launch.program, &launch.working_directory)?;
        let identity = launch.user.as_deref().map(Identity::of).transpose()?;
        let identity = identity.filter(|_| nix::unistd::geteuid().is_root());
        let preparation = Preparation { launch, interruption, identity: identity.as_ref() };
        let runtime = lock.runtime();
        require_no_own_file(launch, &runtime)?;
        // The commands may create what is missing, and a new state directory contains nothing.
        let is_checked = launch.needs.pre_start.is_empty() && launch.working_directory.as_path().is_dir();
        if is_checked {
            preparation.require_nothing_missing(lowered)?;
            for socket in launch.needs.sockets_to_clear() {
                require_stale(preparation.absolute(socket).as_path())?;
            }
        }
        preparation.make_directories()?;
        preparation.run_pre_start()?;
        if !is_checked {
            preparation.require_nothing_missing(lowered)?;
        }
        // The commands may have made links.
        require_no_own_file(launch, &runtime)?;
        vsock::require_free(launch, &runtime)?;
        let time = if lock.request().is_incoming { LockTime::Later } else { LockTime::Now };
        let request = LockRequest { time, ..lock_request(launch, &runtime, identity.as_ref()) };
        let wait = Duration::from_secs(lock.request().lock_wait_seconds);
        let mut locks = preparation.lock_volumes(request, wait, message)?;
        // Before it leaves its host, a machine that migrates to this one writes to its volumes.
        if time == LockTime::Now {
            preparation.restore_volumes(message)?;
        }
        preparation.make_disks(message)?;
        volumes::lock_created(&launch.needs.volumes, request, &mut locks)?;
        let sealed = read_seal(lowered)?;
        let lowered = &sealed.as_ref().map_or(*lowered, |(facts, launch)| Lowered { facts, launch, ..*lowered });
        let launch = lowered.launch;
        let preparation = Preparation { launch, ..preparation };
        preparation.check_formats()?;
        for socket in launch.needs.sockets_to_clear() {
            remove_stale(preparation.absolute(socket).as_path())?;
        }
        preparation.write_files()?;
        interruption.check()?;
        let interfaces = network::make_ready(&launch.needs)?;
        lock.record_interfaces(interfaces.interfaces())?;
        for made in interfaces.interfaces() {
            message(&format!("created network interface {}", made.name));
        }
        let side_processes =
            SideProcesses::start(&launch.needs.processes, &launch.working_directory, identity.as_ref(), interruption)?;
        let launch = preparation.add_script_output(lowered, message)?;
        let descriptors = preparation.open_descriptors()?;
        interruption.check()?;
        let facts = lowered.facts.clone();
        Ok(Self { program, launch, facts, identity, side_processes, interfaces, descriptors, locks })
    }

    /// Makes `command` inherit the descriptors: those that its arguments name, and the locks on its volumes, which must
    /// live as long as the hypervisor. No other child inherits them.
    pub fn pass_descriptors(&self, command: &mut Command) {
        let named = self.descriptors.iter().map(|descriptor| descriptor.number);
        pass_descriptors(command, named.chain(self.locks.iter().map(VolumeLock::descriptor)).collect());
    }

    /// Closes this process's copies, because the hypervisor has its own.
    pub fn close_descriptors(&mut self) {
        self.descriptors.clear();
    }
}

/// Whether another host uses a volume.
fn is_elsewhere(error: &VolumeError) -> bool {
    matches!(error, VolumeError::InUse { holder, .. } if holder.is_on_another_host())
}

struct Preparation<'launch> {
    launch: &'launch Launch,
    interruption: &'launch Interruption,
    identity: Option<&'launch Identity>,
}

impl Preparation<'_> {
    /// Locks the volumes, and waits if another host has them.
    fn lock_volumes(
        &self,
        request: LockRequest<'_>,
        wait: Duration,
        message: &mut dyn FnMut(&str),
    ) -> Result<Vec<VolumeLock>, RunError> {
        let end = Instant::now() + wait;
        let mut is_waiting = false;
        loop {
            match volumes::lock_volumes(&self.launch.needs.volumes, request) {
                Err(error @ VolumeError::InUse { .. }) if is_elsewhere(&error) && Instant::now() < end => {
                    if !is_waiting {
                        message(&format!("waiting for up to {} s: {error}", wait.as_secs()));
                    }
                    is_waiting = true;
                    self.interruption.check()?;
                    sleep(LOCK_INTERVAL);
                }
                locked => return Ok(locked?),
            }
        }
    }

    fn require_nothing_missing(&self, lowered: &Lowered<'_>) -> Result<(), RunError> {
        let mut problems = missing(self.launch, CheckTime::Start);
        problems.extend(resources::unavailable(lowered, self.identity));
        if problems.is_empty() { Ok(()) } else { Err(RunError::Missing(problems)) }
    }

    fn absolute(&self, path: &HostPath) -> HostPath {
        path.below(&self.launch.working_directory)
    }

    /// Creates the directories, owned by the user that runs the hypervisor.
    fn make_directories(&self) -> Result<(), RunError> {
        let working = self.launch.working_directory.clone();
        let directories = self.launch.needs.directories.iter().map(|directory| self.absolute(directory));
        for directory in std::iter::once(working).chain(directories) {
            Directory::make(directory.as_path(), DIRECTORY_MODE, self.identity)
                .map_err(|source| RunError::File { path: directory.clone(), source })?;
        }
        Ok(())
    }

    fn run_pre_start(&self) -> Result<(), RunError> {
        for words in &self.launch.needs.pre_start {
            let Some((program, arguments)) = words.split_first() else { continue };
            let failed = |reason: String| RunError::PreStart { command: words.join(" "), reason };
            trusted_program(self.launch, program, self.identity).map_err(|error| failed(error.to_string()))?;
            let mut command = Command::new(program);
            command.args(arguments).current_dir(self.launch.working_directory.as_path());
            match self.interruption.run_with_output_on_stderr(&mut command) {
                Ok(status) if status.success() => {}
                Ok(status) => return Err(failed(format!("ended with {status}"))),
                Err(ChildError::Interrupted(interrupted)) => return Err(interrupted.into()),
                Err(ChildError::System(error)) => return Err(failed(error.to_string())),
            }
        }
        Ok(())
    }

    fn check_formats(&self) -> Result<(), RunError> {
        for disk in &self.launch.needs.probed_formats {
            volumes::check_format(disk, &self.launch.working_directory, self.launch.hypervisor)?;
        }
        Ok(())
    }

    /// Creates the disks. This can take long, so the service manager is asked for more time.
    fn make_disks(&self, message: &mut dyn FnMut(&str)) -> Result<(), RunError> {
        // Without a connection to the service manager, only the extension is lost.
        let mut manager = ServiceManager::of_environment().unwrap_or_default();
        let report = move || drop(manager.notify(EXTEND_TIMEOUT));
        self.interruption.while_reporting(report, || {
            // In a confined unit, another unit of the host module has already created it, because the cache must be out
            // of the machine's reach.
            let need = self.launch.needs.store_disk.as_ref().filter(|_| !isolation::is_confined());
            // The memory of a suspended machine fits only the image that it had.
            if let Some(need) = need.filter(|_| !keeps_store_disk(self.launch, None)) {
                store_disk::make(need, &self.launch.working_directory, self.identity, self.interruption)?;
            }
            self.make_volumes(message)
        })
    }

    /// Restores volumes that `microvm volume grow` has left half grown.
    fn restore_volumes(&self, message: &mut dyn FnMut(&str)) -> Result<(), RunError> {
        for need in &self.launch.needs.volumes {
            let need = VolumeNeed { image: self.absolute(&need.image), ..need.clone() };
            if let Some(bytes) = volumes::restore_half_grown(&need, self.interruption)? {
                message(&format!(
                    "volume {}: `microvm volume grow` was interrupted, so its old size of {bytes} bytes was restored; \
                     repeat the command when the machine is stopped",
                    need.image
                ));
            }
        }
        Ok(())
    }

    fn make_volumes(&self, message: &mut dyn FnMut(&str)) -> Result<(), RunError> {
        for need in &self.launch.needs.volumes {
            let mut need = need.clone();
            need.image = self.absolute(&need.image);
            if volumes::make_ready(&need, self.identity, self.interruption)? == VolumeState::Created {
                message(&format!("created volume {} with {}", need.image, need.fs_type));
            }
        }
        Ok(())
    }

    fn write_files(&self) -> Result<(), RunError> {
        for file in &self.launch.files {
            let path = self.absolute(&file.path);
            // A symbolic link of that name is replaced, because only the launcher writes these files.
            Place::nofollow(path.as_path())
                .and_then(|place| place.replace(file.content.as_bytes(), FILE_MODE, self.identity))
                .map_err(|source| RunError::File { path: path.clone(), source })?;
        }
        Ok(())
    }

    fn open_descriptors(&self) -> Result<Vec<PassedDescriptor>, RunError> {
        let mut passed = Vec::new();
        if let Some(need) = &self.launch.needs.initrd {
            let memory = initrd::compose(need, &self.launch.working_directory, self.identity)?;
            passed.push(place_descriptor(memory, need.descriptor)?);
        }
        for view in self.launch.needs.processes.iter().filter_map(|process| process.view.as_ref()) {
            if let Some(number) = view.descriptor {
                passed.push(place_descriptor(share_view::open_root(view, &self.launch.working_directory)?, number)?);
            }
        }
        for need in &self.launch.needs.macvtaps {
            for (descriptor, number) in macvtap::open(need)?.into_iter().zip(&need.descriptors) {
                passed.push(place_descriptor(descriptor, *number)?);
            }
        }
        Ok(passed)
    }

    /// Runs `extraArgsScript` and returns the launch with its output.
    fn add_script_output(&self, lowered: &Lowered<'_>, message: &mut dyn FnMut(&str)) -> Result<Launch, RunError> {
        let before = self.launch;
        let Some(script) = &before.needs.extra_args_script else { return Ok(before.clone()) };
        let words = self.run_script(script)?;
        let launch = lower_with_script_output(lowered.spec, lowered.facts, before.hypervisor, &words)
            .map_err(|reasons| RunError::ArgumentsRefused { script: script.clone(), reasons })?;
        for warning in launch.warnings.iter().filter(|warning| !before.warnings.contains(warning)) {
            message(&format!("warning: {warning}"));
        }
        for socket in launch.needs.sockets_to_clear().filter(|socket| !before.needs.sockets_to_remove.contains(socket))
        {
            remove_stale(self.absolute(socket).as_path())?;
        }
        Ok(launch)
    }

    fn run_script(&self, script: &HostPath) -> Result<Vec<String>, RunError> {
        let failed = |reason: String| RunError::ExtraArguments { script: script.clone(), reason };
        // With a slash, it is a path also if it is only a name in the spec.
        let program = self.absolute(script);
        let program =
            trusted_program(self.launch, program.as_str(), self.identity).map_err(|error| failed(error.to_string()))?;
        let mut command = Command::new(program);
        command.current_dir(self.launch.working_directory.as_path());
        match self.interruption.run_for_output(&mut command) {
            Ok(ended) if ended.output.contains('\0') => Err(failed("its output contains a zero byte".to_owned())),
            Ok(ended) if ended.status.success() => Ok(ended.output.split_whitespace().map(str::to_owned).collect()),
            Ok(ended) => Err(failed(format!("ended with {}", ended.status))),
            Err(ChildError::Interrupted(interrupted)) => Err(interrupted.into()),
            Err(ChildError::System(error)) => Err(failed(error.to_string())),
        }
    }
}

/// Reads the root hash of a sealed store disk. Returns the facts with it, and the launch with the kernel parameter.
pub(super) fn read_seal(lowered: &Lowered<'_>) -> Result<Option<(HostFacts, Launch)>, RunError> {
    let Some(image) = &lowered.launch.needs.sealed_image else { return Ok(None) };
    let mut facts = lowered.facts.clone();
    facts.store_seal = Some(store_seal::read(image, &lowered.launch.working_directory)?);
    let launch = lower_with_script_output(lowered.spec, &facts, lowered.launch.hypervisor, &[])
        .map_err(RunError::SealRefused)?;
    Ok(Some((facts, launch)))
}

/// Duplicates a descriptor to the number that the hypervisor's arguments name, closed on exec in other children.
fn place_descriptor(descriptor: OwnedFd, number: i32) -> Result<PassedDescriptor, RunError> {
    let failed = |source| RunError::System { action: "passing a file descriptor to the hypervisor", source };
    let placed = fcntl(&descriptor, FcntlArg::F_DUPFD_CLOEXEC(number)).map_err(|errno| failed(errno.into()))?;
    let passed = PassedDescriptor { number: placed };
    if placed == number {
        return Ok(passed);
    }
    Err(failed(io::Error::other(format!("descriptor {number} is already in use"))))
}
