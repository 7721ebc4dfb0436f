//! The resources of this host that a machine uses: disk space, memory and processor time.

use super::layout::Machine;
use super::nix::closure_bytes;
use super::update::system;
use crate::spec::MachineSpec;
use crate::state::{ProcessIdentity, proc_file};
use crate::validate::{CheckedSpec, DiskBackend, check};
use nix::sys::stat::{SFlag, mode_t};
use nix::unistd::{SysconfVar, sysconf};
use program::place::Place;
use serde::Serialize;
use std::fs;
use std::path::Path;

/// The unit of `st_blocks`: stat(2).
const ALLOCATION_UNIT_BYTES: u64 = 512;

/// The resources that a machine uses. A value is null if it cannot be determined, or if the machine is not running.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Resources {
    /// Size of the guest's system with everything that it refers to, in bytes as Nix counts them; null if the system is
    /// not in this host's store.
    pub closure_bytes: Option<u64>,
    /// Bytes that the images of its disks occupy on this host.
    pub disk_bytes: Option<u64>,
    /// Memory of the guest in MiB, including memory that is plugged in at the start.
    pub memory_mib: Option<u64>,
    /// Bytes of this host's memory that the hypervisor occupies.
    pub resident_bytes: Option<u64>,
    /// Seconds since the machine was started.
    pub uptime_seconds: Option<u64>,
}

impl Resources {
    /// Determines the resources of a machine with this runner. `hypervisor` is its process, if it is running.
    pub fn of(machine: &Machine, runner: &Path, hypervisor: Option<ProcessIdentity>) -> Self {
        let usage = hypervisor.as_ref().and_then(ProcessUsage::of);
        let spec = read_spec(runner);
        Self {
            closure_bytes: system(runner).and_then(|system| closure_bytes(&system)),
            disk_bytes: spec.as_ref().and_then(|spec| disk_bytes(spec, &machine.directory)),
            memory_mib: spec.as_ref().map(memory_mib),
            resident_bytes: usage.map(|usage| usage.resident_bytes),
            uptime_seconds: usage.map(|usage| usage.uptime_seconds),
        }
    }
}

/// Reads the spec of a runner; `None` if it is not a runner of this project.
pub fn read_spec(runner: &Path) -> Option<CheckedSpec> {
    let document = fs::read(runner.join("share/microvm/machine.json")).ok()?;
    let spec: MachineSpec = serde_json::from_slice(&document).ok()?;
    check(&spec).ok()
}

/// Returns the memory of the guest at the start.
pub fn memory_mib(spec: &CheckedSpec) -> u64 {
    spec.memory.mem_mib + spec.memory.hotplug.as_ref().map_or(0, |hotplug| hotplug.initial_mib)
}

/// Returns the allocated bytes of all images of a machine; images that do not exist yet count as empty. `None` if an
/// image cannot be examined.
pub fn disk_bytes(spec: &CheckedSpec, directory: &Path) -> Option<u64> {
    let images = spec.disks.iter().filter(|disk| !matches!(disk.backend, DiskBackend::Live(_)));
    images.map(|disk| allocated_bytes(&directory.join(disk.image.as_path()))).sum()
}

/// Returns the allocated bytes of a file; 0 if it is missing, or is a block device.
fn allocated_bytes(path: &Path) -> Option<u64> {
    let stat = match Place::of(path).and_then(|place| place.stat()) {
        Ok(stat) => stat,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => None,
        Err(_) => return None,
    };
    let is_file = |mode: mode_t| SFlag::from_bits_truncate(mode) & SFlag::S_IFMT == SFlag::S_IFREG;
    let blocks = stat.filter(|stat| is_file(stat.st_mode)).map_or(0, |stat| stat.st_blocks);
    Some(u64::try_from(blocks).unwrap_or(0) * ALLOCATION_UNIT_BYTES)
}

/// The resources that a process uses: proc_pid_stat(5) and proc_pid_status(5).
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct ProcessUsage {
    /// Resident memory in bytes. Memory that it shares with other processes counts.
    pub resident_bytes: u64,
    /// Processor time of all its threads in seconds.
    pub cpu_seconds: f64,
    /// Seconds since it was started.
    pub uptime_seconds: u64,
}

impl ProcessUsage {
    /// Reads the usage of a running process.
    pub fn of(process: &ProcessIdentity) -> Option<Self> {
        let ticks_per_second = sysconf(SysconfVar::CLK_TCK).ok().flatten().filter(|ticks| *ticks > 0)? as f64;
        let stat = proc_file(process.pid, "stat").ok()?;
        let status = proc_file(process.pid, "status").ok()?;
        let since_boot = fs::read_to_string("/proc/uptime").ok()?;
        // Fields 14 and 15, user and system time, counted from field 3, which follows the name in parentheses.
        let mut times = stat.rsplit_once(')')?.1.split_whitespace().skip(11);
        let ticks = times.next()?.parse::<u64>().ok()? + times.next()?.parse::<u64>().ok()?;
        let resident = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
        let resident_kib: u64 = resident.split_whitespace().next()?.parse().ok()?;
        let since_boot: f64 = since_boot.split_whitespace().next()?.parse().ok()?;
        // Read last, so that the values are not those of a later process with the same process id.
        process.is_alive().then_some(Self {
            resident_bytes: resident_kib * 1024,
            cpu_seconds: ticks as f64 / ticks_per_second,
            uptime_seconds: (since_boot - process.start_ticks as f64 / ticks_per_second).max(0.0) as u64,
        })
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test that cannot be set up fails")]

    use super::*;
    use crate::imperative::{Layout, MachineName};
    use std::fs::File;
    use std::io::Write;

    #[test]
    fn the_resources_of_a_running_machine_are_those_of_its_files_and_its_process() {
        let directory = tempfile::tempdir().unwrap();
        let machine = Layout::at(directory.path(), directory.path()).machine(&MachineName::new("web").unwrap());
        let runner = directory.path().join("runner");
        fs::create_dir_all(runner.join("share/microvm")).unwrap();
        fs::create_dir(&machine.directory).unwrap();
        let spec = serde_json::json!({
            "version": 1, "name": "web", "kernel": "/k/bzImage", "mem": 384, "hotplugMem": 256, "hotpluggedMem": 128,
            "storeDisk": {"plan": "/p/plan.json"},
            "volumes": [{"image": "var.img", "size": 64}, {"image": "later.img", "size": 64, "mountPoint": "/later"}],
        });
        fs::write(runner.join("share/microvm/machine.json"), spec.to_string()).unwrap();
        // Sparse: only what was written counts.
        let mut volume = File::create(machine.directory.join("var.img")).unwrap();
        volume.set_len(64 << 20).unwrap();
        volume.write_all(&vec![1; 1 << 20]).unwrap();
        volume.sync_all().unwrap();
        let own = ProcessIdentity::current().unwrap();
        let resources = Resources::of(&machine, &runner, Some(own));
        assert_eq!((resources.memory_mib, resources.closure_bytes), (Some(512), None));
        assert!(((1 << 20)..(2 << 20)).contains(&resources.disk_bytes.unwrap()), "{resources:?}");
        assert!(resources.resident_bytes.unwrap() > 1 << 20 && resources.uptime_seconds.is_some(), "{resources:?}");
        let ended = ProcessIdentity { start_ticks: own.start_ticks + 1, ..own };
        let stopped = Resources::of(&machine, &runner, Some(ended));
        assert_eq!((stopped.resident_bytes, stopped.uptime_seconds), (None, None));
    }
}
