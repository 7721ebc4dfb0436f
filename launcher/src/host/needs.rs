//! Finding the requirements of a launch that this host does not meet, without changing anything.

use super::devices::DevicePlaces;
use super::first_output::first_output;
use super::{image_features, mapped_image};
use crate::launch::{Access, FileNeed, KvmUse, Launch, Reader, SideProcessKind, VolumeNeed};
use crate::path::HostPath;
use crate::programs::{find_file_system_program, find_program_of_machine};
use crate::side_processes::{missing_group, program_of, serves_the_same};
use crate::spec::Hypervisor;
use crate::store_disk::builder_of;
use crate::volumes::{inspect, not_created};
use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, AtFlags};
use nix::sys::statfs::{HUGETLBFS_MAGIC, statfs};
use nix::unistd::{AccessFlags, faccessat};
use program::child::become_user;
use program::place::Place;
use program::user::Identity;
use std::fmt;
use std::fs::{self, OpenOptions};
use std::io::ErrorKind;
use std::os::unix::fs::FileTypeExt;
use std::path::Path;
use std::process::Command;

/// An unmet requirement.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostProblem {
    /// The option of the spec that requires it, or its name.
    pub option: String,
    /// What is missing, and the remedy.
    pub message: String,
}

impl fmt::Display for HostProblem {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}: {}", self.option, self.message)
    }
}

/// When the requirements are checked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CheckTime {
    /// At any time: everything that `run` would create itself is checked too.
    Check,
    /// Right before the start, after everything else has been created.
    Start,
}

/// Returns all unmet requirements.
pub fn missing(launch: &Launch, time: CheckTime) -> Vec<HostProblem> {
    let mut problems = Problems { launch, found: Vec::new() };
    let identity = launch.user.as_deref().map(Identity::of).and_then(Result::ok);
    let identity = identity.filter(|_| nix::unistd::geteuid().is_root());
    problems.check_as(identity.as_ref(), Problems::check_for_hypervisor, time);
    problems.check_user();
    problems.check_files(Reader::Launcher);
    problems.check_huge_pages();
    problems.check_passt(identity.as_ref());
    if time == CheckTime::Check {
        problems.check_created_files();
    }
    problems.found
}

/// Whether there is no file, also where a symbolic link leads to.
fn is_missing(path: &Path) -> bool {
    path.metadata().is_err_and(|error| error.kind() == ErrorKind::NotFound)
}

/// Checks with the effective user id, which [`Identity::see`] changes.
fn accessible(path: &Path, rights: AccessFlags) -> Result<(), Errno> {
    faccessat(AT_FDCWD, path, rights, AtFlags::AT_EACCESS)
}

struct Problems<'launch> {
    launch: &'launch Launch,
    found: Vec<HostProblem>,
}

impl Problems<'_> {
    fn add(&mut self, option: &str, message: impl Into<String>) {
        self.found.push(HostProblem { option: option.to_owned(), message: message.into() });
    }

    fn absolute(&self, path: &HostPath) -> HostPath {
        path.below(&self.launch.working_directory)
    }

    /// Runs a check as the machine's user, who runs the hypervisor.
    fn check_as(&mut self, identity: Option<&Identity>, check: impl FnOnce(&mut Self, CheckTime), time: CheckTime) {
        let first = self.found.len();
        let checked = match identity {
            Some(identity) => identity.run_as(|| check(self, time)),
            None => {
                check(self, time);
                Ok(())
            }
        };
        if let Err(error) = checked {
            self.add("user", format!("cannot check with this user's permissions: {error}"));
        }
        if let Some(user) = self.launch.user.as_deref().filter(|_| identity.is_some()) {
            for problem in &mut self.found[first..] {
                problem.message.push_str(&format!(" (user {user})"));
            }
        }
    }

    /// Checks what the hypervisor itself opens.
    fn check_for_hypervisor(&mut self, time: CheckTime) {
        if let Err(error) = find_program_of_machine(&self.launch.program, &self.launch.working_directory) {
            self.add(self.launch.hypervisor.as_str(), error.to_string());
        }
        self.check_kvm();
        self.check_files(Reader::Hypervisor);
        self.check_empty_files();
        let launch = self.launch;
        for node in &launch.needs.device_nodes {
            if let Err(error) = OpenOptions::new().read(true).write(true).open(node.path.as_path()) {
                let remedy = match error.kind() {
                    ErrorKind::PermissionDenied => {
                        "the user who runs the machine must be allowed to read and write it".to_owned()
                    }
                    _ => format!("run: sudo {}", node.remedy),
                };
                self.add(&node.option, format!("{}: {error}; {remedy}", node.path));
            }
        }
        for problem in DevicePlaces::of_host().problems(launch) {
            self.add("devices", problem);
        }
        self.check_sockets();
        let mapped = launch.needs.mapped_image.as_ref().map(|image| self.absolute(image));
        if let Some(problem) = mapped.and_then(|image| mapped_image::unsupported(image.as_path())) {
            self.add("storeDisk.image", problem);
        }
        self.check_existing_volumes(time);
    }

    /// Checks the directories of the sockets. `run` creates a missing state directory and gives it to the user, and kvmtool
    /// creates the directory of its control socket; nothing creates the others.
    fn check_sockets(&mut self) {
        let launch = self.launch;
        if !launch.working_directory.as_path().is_dir() {
            return;
        }
        for socket in &launch.needs.sockets_to_remove {
            let path = self.absolute(socket);
            let is_control = launch.control.as_ref().is_some_and(|control| control.path == *socket);
            let is_made_by_hypervisor = is_control && launch.hypervisor == Hypervisor::Kvmtool;
            let parent = path.as_path().parent().filter(|parent| !parent.is_dir());
            if let Some(parent) = parent.filter(|_| !is_made_by_hypervisor) {
                let reason = format!("{path} cannot be created: there is no directory {}", parent.display());
                self.add("socket", reason);
                continue;
            }
            let parent = path.as_path().ancestors().skip(1).find(|parent| parent.is_dir());
            if let Some(parent) = parent.filter(|_| is_control)
                && let Err(errno) = accessible(parent, AccessFlags::W_OK | AccessFlags::X_OK)
            {
                let error = std::io::Error::from(errno);
                self.add("socket", format!("{}: {error}; the control socket is created there", parent.display()));
            }
        }
    }

    fn check_files(&mut self, reader: Reader) {
        let launch = self.launch;
        for need in launch.needs.present.iter().filter(|need| need.reader == reader) {
            if !self.is_served(need) {
                self.check_file(need);
            }
        }
    }

    /// firecracker and crosvm do not load an empty initrd, and kvmtool does not start with an empty disk.
    fn check_empty_files(&mut self) {
        let launch = self.launch;
        let initrd = launch.needs.present.iter().filter(|need| need.option == "initrd");
        let empty: Vec<_> = match launch.hypervisor {
            Hypervisor::Firecracker | Hypervisor::Crosvm => {
                initrd.map(|need| (need.option.clone(), &need.path)).collect()
            }
            Hypervisor::Kvmtool => {
                // The content of a volume with a mount point is checked, too.
                let is_mounted = |image: &HostPath| {
                    launch.needs.volumes.iter().any(|volume| volume.image == *image && volume.mount_point.is_some())
                };
                let disks = launch.needs.probed_formats.iter().filter(|disk| !is_mounted(&disk.image));
                disks.map(|disk| (format!("{}.image", disk.option), &disk.image)).collect()
            }
            Hypervisor::Qemu | Hypervisor::CloudHypervisor => Vec::new(),
        };
        for (option, path) in empty {
            let path = self.absolute(path);
            if fs::metadata(path.as_path()).is_ok_and(|found| found.is_file() && found.len() == 0) {
                self.add(&option, format!("{path} is empty, which {} does not support", launch.hypervisor));
            }
        }
    }

    fn check_existing_volumes(&mut self, time: CheckTime) {
        let launch = self.launch;
        for (index, need) in launch.needs.volumes.iter().enumerate() {
            let need = VolumeNeed { image: self.absolute(&need.image), ..need.clone() };
            // It is created, also where a symbolic link leads to.
            if need.image.as_path().symlink_metadata().is_err() || is_missing(need.image.as_path()) {
                continue;
            }
            // Right before the start, the volumes are checked when they are prepared.
            let content = if time == CheckTime::Check { inspect(&need) } else { Ok(()) };
            let problem = match content {
                Ok(()) => image_features::unsupported(launch.hypervisor, &need),
                Err(error) => Some(error.to_string()),
            };
            if let Some(problem) = problem {
                self.add(&format!("volumes[{index}].image"), problem);
            }
        }
    }

    /// Checks that passt supports vhost-user. Older versions lack it and end with a list of their options. Asks as the
    /// machine's user, who also runs it.
    fn check_passt(&mut self, identity: Option<&Identity>) {
        let launch = self.launch;
        for process in launch.needs.processes.iter().filter(|process| process.kind == SideProcessKind::Passt) {
            let Ok(program) = find_program_of_machine(&process.program, &launch.working_directory) else { continue };
            let mut command = Command::new(&program);
            command.arg("--help").env_remove("NOTIFY_SOCKET");
            if let Some(identity) = identity {
                become_user(&mut command, identity);
            }
            let Ok(text) = first_output(command) else { continue };
            if !String::from_utf8_lossy(&text).contains("--vhost-user") {
                let reason = format!("{} has no --vhost-user; install passt 2024_11_27 or newer", program.display());
                self.add("interfaces", reason);
            }
        }
    }

    fn check_user(&mut self) {
        if let Some(Err(error)) = self.launch.user.as_deref().map(Identity::of) {
            self.add("user", error.to_string());
        }
    }

    fn check_kvm(&mut self) {
        if self.launch.needs.kvm != KvmUse::Required {
            return;
        }
        if let Err(error) = OpenOptions::new().read(true).write(true).open("/dev/kvm") {
            let remedy = "load kvm_intel or kvm_amd, and be a member of the group kvm";
            self.add("/dev/kvm", format!("{error}, but {} needs it: {remedy}", self.launch.hypervisor));
        }
    }

    /// Whether the share's daemon is already serving the directory. The daemon belongs to the host and may have
    /// permissions that the user who runs the machine does not have.
    fn is_served(&self, need: &FileNeed) -> bool {
        let argument = format!("--shared-dir={}", need.path);
        self.launch.needs.processes.iter().any(|process| {
            process.arguments.contains(&argument) && serves_the_same(process, &self.launch.working_directory)
        })
    }

    fn check_file(&mut self, need: &FileNeed) {
        let path = self.absolute(&need.path);
        let (flags, wants_directory) = match need.access {
            Access::Read => (AccessFlags::R_OK, false),
            Access::ReadWrite => (AccessFlags::R_OK | AccessFlags::W_OK, false),
            Access::Execute => (AccessFlags::X_OK, false),
            Access::ReadDirectory => (AccessFlags::R_OK | AccessFlags::X_OK, true),
            Access::WriteDirectory => (AccessFlags::R_OK | AccessFlags::W_OK | AccessFlags::X_OK, true),
        };
        match fs::metadata(path.as_path()) {
            Err(error) => self.add(&need.option, format!("{path}: {error}")),
            Ok(metadata) if metadata.is_dir() != wants_directory => {
                let wanted = if wants_directory { "is not a directory" } else { "is a directory, not a file" };
                self.add(&need.option, format!("{path} {wanted}"));
            }
            // Opening a FIFO waits for a writer.
            Ok(metadata) if !wants_directory && !metadata.is_file() && !metadata.file_type().is_block_device() => {
                self.add(&need.option, format!("{path} is neither a file nor a block device"));
            }
            Ok(_) => {
                if let Err(errno) = accessible(path.as_path(), flags) {
                    self.add(&need.option, format!("{path}: {}", std::io::Error::from(errno)));
                }
            }
        }
    }

    fn check_huge_pages(&mut self) {
        if let Some(directory) = &self.launch.needs.hugetlbfs {
            let found = statfs(directory.as_path()).map(|found| found.filesystem_type());
            if found != Ok(HUGETLBFS_MAGIC) {
                let mount = format!("run: sudo mkdir -p {directory} && sudo mount -t hugetlbfs none {directory}");
                self.add("hugepageMem", format!("no hugetlbfs is mounted at {directory}; {mount}"));
            }
        }
        let wanted_mib = self.launch.needs.huge_pages_mib;
        if wanted_mib == 0 {
            return;
        }
        let information = fs::read_to_string("/proc/meminfo").unwrap_or_default();
        let number = |name: &str| -> u64 {
            let line = information.lines().find_map(|line| line.strip_prefix(name));
            line.and_then(|rest| rest.split_whitespace().next()?.parse().ok()).unwrap_or(0)
        };
        let (free, size_kib) = (number("HugePages_Free:"), number("Hugepagesize:"));
        if free * size_kib < wanted_mib * 1024 {
            let pages = (wanted_mib * 1024).div_ceil(size_kib.max(1));
            self.add(
                "hugepageMem",
                format!(
                    "{} MiB of huge pages are free, but the machine needs {wanted_mib}; \
                     run: sudo sysctl vm.nr_hugepages={pages}",
                    free * size_kib / 1024
                ),
            );
        }
    }

    fn check_created_files(&mut self) {
        let launch = self.launch;
        for process in &launch.needs.processes {
            if let Err(error) = find_program_of_machine(&program_of(process), &launch.working_directory) {
                self.add(&process.name, error.to_string());
            }
            if let Some(group) = missing_group(process).filter(|_| !serves_the_same(process, &launch.working_directory))
            {
                let remedy = "create it, or set microvm.virtiofsd.group to another one or to null";
                self.add(
                    &process.name,
                    format!("this host has no group `{group}`, to which its socket must belong; {remedy}"),
                );
            }
        }
        if let Some(disk) = &launch.needs.store_disk
            && let Err(error) = find_program_of_machine(&builder_of(disk), &launch.working_directory)
        {
            self.add("storeDisk.builder", error.to_string());
        }
        for volume in &launch.needs.volumes {
            let path = self.absolute(&volume.image);
            if path.as_path().exists() {
                continue;
            }
            if volume.creation.is_none() {
                self.add("volumes", format!("{path} {}", not_created(&path)));
                continue;
            }
            if let Err(error) = find_file_system_program(&format!("mkfs.{}", volume.fs_type)) {
                self.add("volumes", format!("{path} cannot be created: {error}"));
            }
            let parents = path.as_path().ancestors().skip(1);
            let parent = parents.into_iter().find(|parent| parent.symlink_metadata().is_ok());
            let parent = parent.filter(|parent| parent.exists() && !parent.is_dir());
            let problem = match parent {
                Some(parent) => Some(format!("{} is not a directory", parent.display())),
                None => Place::check_create_with_parents(path.as_path()).err().map(|error| error.to_string()),
            };
            if let Some(problem) = problem {
                self.add("volumes", format!("{path} cannot be created: {problem}"));
            }
        }
    }
}
