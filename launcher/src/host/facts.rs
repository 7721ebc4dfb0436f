//! Gathering the facts about the host. A launch should start within milliseconds, but asking a hypervisor for its
//! version takes longer. Therefore answers are cached, together with the identity of the program file.

use super::{desktop, kvm, landlock};
use crate::facts::{Architecture, HostFacts, KernelForm, Privilege, Version};
use crate::hypervisor::description;
use crate::interruption::{ChildError, Interrupted, Interruption};
use crate::isolation;
use crate::path::HostPath;
use crate::programs::find_program_of_machine;
use crate::spec::{Hypervisor, HypervisorSections, MachineSpec, StoreTransport};
use crate::state::RuntimeDirectory;
use crate::store_seal::{self, SealError};
use crate::validate::{CheckedSpec, DiskBackend};
use nix::fcntl::OFlag;
use nix::unistd::{SysconfVar, sysconf};
use program::child::become_user;
use program::place::{Directory, Place};
use program::user::Identity;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Read};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

/// How long to compare the time stamp counter with the clock, which gives its rate to about one part in ten thousand.
const TSC_MEASUREMENT: Duration = Duration::from_millis(10);

/// How long a hypervisor may take to print its version. After that, its version counts as unknown.
const VERSION_TIMEOUT: Duration = Duration::from_secs(10);

/// The cache file in the runtime directory.
const FACTS_FILE: &str = "host-facts.json";
/// crosvm's empty directory in the runtime directory. The leading dot distinguishes it from all machine names.
const EMPTY_DIRECTORY: &str = ".empty";

/// Why the facts could not be gathered.
#[derive(Debug, thiserror::Error)]
pub enum FactsError {
    /// The current directory is not available.
    #[error("the current directory cannot be used: {0}")]
    CurrentDirectory(io::Error),
    /// A signal asked the launcher to stop.
    #[error(transparent)]
    Interrupted(#[from] Interrupted),
}

/// A kernel image and its form.
pub type KernelImage = (HostPath, KernelForm);

/// The facts that are cached between starts.
#[derive(Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Remembered {
    boot_id: String,
    tsc_khz: Option<u64>,
    versions: BTreeMap<String, ProgramVersion>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct ProgramVersion {
    file: FileIdentity,
    version: Option<(u32, u32, u32)>,
}

/// The properties of a file that change when a program is reinstalled.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct FileIdentity {
    device: u64,
    inode: u64,
    size_bytes: u64,
    changed_seconds: i64,
    changed_nanoseconds: i64,
}

/// Gathers the facts about this host for one machine on one hypervisor.
///
/// # Errors
/// Returns [`FactsError`].
pub fn gather(
    spec: &MachineSpec,
    hypervisor: Hypervisor,
    state_directory: HostPath,
    runtime: &RuntimeDirectory,
    interruption: &Interruption,
) -> Result<HostFacts, FactsError> {
    let current = std::env::current_dir().map_err(FactsError::CurrentDirectory)?;
    let state_directory = state_directory.below(&HostPath::new(current.to_string_lossy()));
    let mut facts = HostFacts::assumed(state_directory.clone());
    facts.architecture = if cfg!(target_arch = "aarch64") { Architecture::Aarch64 } else { Architecture::X86_64 };
    facts.kvm = kvm::probe(Path::new("/dev/kvm"));
    facts.kvm_max_vcpus = kvm::max_vcpus(Path::new("/dev/kvm"));
    facts.privilege = if nix::unistd::geteuid().is_root() { Privilege::Root } else { Privilege::Unprivileged };
    facts.is_confined = isolation::is_confined();
    facts.processors = std::thread::available_parallelism().ok().and_then(|count| u32::try_from(count.get()).ok());
    facts.online_processors =
        sysconf(SysconfVar::_NPROCESSORS_ONLN).ok().flatten().and_then(|count| count.try_into().ok());
    for kernel in std::iter::once(&spec.kernel).chain(&spec.vmlinux) {
        if let Ok(form) = kernel_form(kernel.below(&state_directory).as_path()) {
            facts.kernel_forms.insert(kernel.clone(), form);
        }
    }
    let mapped = spec.store_disk.as_ref().filter(|disk| disk.transport == StoreTransport::Pmem);
    let mapped = mapped.and_then(|disk| disk.image.as_ref());
    for file in std::iter::once(&spec.kernel).chain(&spec.initrd).chain(mapped) {
        if let Ok(metadata) = fs::metadata(file.below(&state_directory).as_path()) {
            facts.file_bytes.insert(file.clone(), metadata.len());
        }
    }
    if hypervisor == Hypervisor::CloudHypervisor {
        facts.landlock = landlock::probe();
        facts.memory_directory = memory_directory(Path::new("/dev/shm"));
    }
    facts.empty_directory = empty_directory(hypervisor, runtime);
    if spec.graphics.enable {
        facts.desktop = desktop::probe();
    }
    remember(spec, hypervisor, runtime, interruption, &mut facts)?;
    Ok(facts)
}

/// Adds to the facts what the command line takes from the image of the store disk: the length of an image that is mapped
/// as persistent memory, and the seal of a sealed one. Returns warnings about what could not be read. An image that the
/// host builds does not exist before the first start.
pub fn inspect_store_disk(spec: &CheckedSpec, facts: &mut HostFacts) -> Vec<String> {
    let mut warnings = Vec::new();
    for disk in spec.disks.iter().filter(|disk| disk.backend == DiskBackend::Pmem) {
        match fs::metadata(disk.image.below(&facts.state_directory).as_path()) {
            Ok(metadata) => drop(facts.file_bytes.insert(disk.image.clone(), metadata.len())),
            Err(error) if spec.hypervisor == Hypervisor::Qemu => warnings.push(format!(
                "{}.image: the length of {} is unknown ({error}); the command below is for an image of 2 MiB, and `run` \
                 uses the image's length",
                disk.option, disk.image
            )),
            Err(_) => {}
        }
    }
    if let Some(image) = &spec.sealed_image {
        match store_seal::read(image, &facts.state_directory) {
            Ok(seal) => facts.store_seal = Some(seal),
            // The command then names what it will contain.
            Err(SealError::NoDocument { .. }) => {}
            Err(error) => warnings.push(format!("storeDisk.verity: {error}")),
        }
    }
    warnings
}

/// Returns the directory if its files are in memory only.
fn memory_directory(directory: &Path) -> Option<HostPath> {
    let statistics = nix::sys::statfs::statfs(directory).ok()?;
    let is_memory = statistics.filesystem_type() == nix::sys::statfs::TMPFS_MAGIC;
    is_memory.then(|| HostPath::new(directory.to_string_lossy()))
}

fn remember(
    spec: &MachineSpec,
    hypervisor: Hypervisor,
    runtime: &RuntimeDirectory,
    interruption: &Interruption,
    facts: &mut HostFacts,
) -> Result<(), Interrupted> {
    let path = runtime.path().join(FACTS_FILE);
    let boot_id = fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default().trim().to_owned();
    let stored = recall(&path).unwrap_or_default();
    let mut known = if stored.boot_id == boot_id { stored } else { Remembered { boot_id, ..Remembered::default() } };
    let mut learnt = false;
    let program = program_of(spec, hypervisor, spec.architecture.unwrap_or(facts.architecture));
    if let Ok(program) = find_program_of_machine(&program, &facts.state_directory) {
        let file = identity(&program);
        let key = program.to_string_lossy().into_owned();
        let noted = known.versions.get(&key).filter(|noted| Some(&noted.file) == file.as_ref());
        let version = match noted {
            Some(noted) => noted.version.map(|(major, minor, patch)| Version(major, minor, patch)),
            None => {
                let version = ask_version(&program, hypervisor, spec.user.as_deref(), interruption)?;
                if let Some(file) = file {
                    let version = version.map(|Version(major, minor, patch)| (major, minor, patch));
                    known.versions.insert(key, ProgramVersion { file, version });
                    learnt = true;
                }
                version
            }
        };
        facts.versions.extend(version.map(|version| (hypervisor, version)));
    }
    if description(hypervisor).uses_tsc_frequency {
        learnt |= known.tsc_khz.is_none();
        known.tsc_khz = known.tsc_khz.or_else(measure_tsc_khz);
        facts.tsc_khz = known.tsc_khz;
    }
    if learnt {
        store(runtime, &known);
    }
    Ok(())
}

/// Reads the cache if root or this user has written it. Another user must not be able to give root false facts.
fn recall(path: &Path) -> Option<Remembered> {
    let (text, writer) = Place::nofollow(path).and_then(|place| place.read()).ok()??;
    if !writer.is_root() && writer != nix::unistd::geteuid() {
        return None;
    }
    serde_json::from_slice(&text).ok()
}

/// Writes the cache. A failure is ignored, because the facts can be gathered again.
fn store(runtime: &RuntimeDirectory, known: &Remembered) {
    let Ok(text) = serde_json::to_vec(known) else { return };
    let directory = Directory::make(runtime.path(), 0o750, None);
    let _ = directory.and_then(|directory| directory.place(FACTS_FILE).replace(&text, 0o640, None));
}

fn identity(program: &Path) -> Option<FileIdentity> {
    let metadata = fs::metadata(program).ok()?;
    Some(FileIdentity {
        device: metadata.dev(),
        inode: metadata.ino(),
        size_bytes: metadata.size(),
        changed_seconds: metadata.ctime(),
        changed_nanoseconds: metadata.ctime_nsec(),
    })
}

/// Returns the program of a hypervisor: the spec's, or the default name.
fn program_of(spec: &MachineSpec, hypervisor: Hypervisor, architecture: Architecture) -> HostPath {
    let sections = HypervisorSections::of(spec);
    sections.program(hypervisor).cloned().unwrap_or_else(|| description(hypervisor).program(architecture))
}

/// Asks as the user who will run the hypervisor, if there is one, because that user may be able to replace the program.
fn ask_version(
    program: &Path,
    hypervisor: Hypervisor,
    user: Option<&str>,
    interruption: &Interruption,
) -> Result<Option<Version>, Interrupted> {
    let Some(option) = description(hypervisor).version_option else { return Ok(None) };
    let mut command = Command::new(program);
    command.arg(option);
    if let Some(user) = user.filter(|_| nix::unistd::geteuid().is_root()) {
        // The start of a machine whose user does not exist is refused later.
        let Ok(identity) = Identity::of(user) else { return Ok(None) };
        become_user(&mut command, &identity);
    }
    match interruption.run_captured_within(&mut command, VERSION_TIMEOUT) {
        Ok(ended) if ended.status.success() => Ok(Version::find_in(&ended.output)),
        Err(ChildError::Interrupted(interrupted)) => Err(interrupted),
        _ => Ok(None),
    }
}

/// Returns the empty directory for jailed devices, if the hypervisor needs one and the host has no `/var/empty`.
fn empty_directory(hypervisor: Hypervisor, runtime: &RuntimeDirectory) -> Option<HostPath> {
    if !description(hypervisor).needs_empty_directory || Path::new("/var/empty").is_dir() {
        return None;
    }
    let directory = Directory::make(&runtime.path().join(EMPTY_DIRECTORY), 0o755, None).ok()?;
    Some(HostPath::new(directory.path().to_string_lossy()))
}

/// Detects the form of a kernel image from its first bytes.
///
/// # Errors
/// Fails if the image cannot be read.
pub fn kernel_form(path: &Path) -> io::Result<KernelForm> {
    let mut file = Place::of(path)?.open(OFlag::O_RDONLY)?;
    let mut start = [0; 0x210];
    let count = read_up_to(&mut file, &mut start)?;
    // Documentation/arch/x86/boot.rst: "HdrS" at 0x202.
    if count >= 0x206 && &start[0x202..0x206] == b"HdrS" {
        return Ok(KernelForm::BzImage);
    }
    if count < 64 || &start[..4] != b"\x7fELF" {
        return Ok(KernelForm::Unknown);
    }
    Ok(if has_pvh_note(&file, &start)? { KernelForm::ElfPvh } else { KernelForm::Elf })
}

fn read_up_to(file: &mut File, buffer: &mut [u8]) -> io::Result<usize> {
    let mut filled = 0;
    while filled < buffer.len() {
        match file.read(&mut buffer[filled..])? {
            0 => break,
            count => filled += count,
        }
    }
    Ok(filled)
}

/// Whether an ELF64 file has a note with the owner "Xen" and the type 18, XEN_ELFNOTE_PHYS32_ENTRY.
fn has_pvh_note(file: &File, header: &[u8]) -> io::Result<bool> {
    const MAX_NOTES_BYTES: u64 = 1 << 20;
    // Linux has five. Limited, because a malicious file could have 65,535, each with the longest notes.
    const MAX_PROGRAM_HEADERS: u64 = 64;
    let number = |bytes: &[u8], at: usize, count: usize| {
        bytes
            .get(at..at + count)
            .unwrap_or_default()
            .iter()
            .rev()
            .fold(0u64, |value, byte| value << 8 | u64::from(*byte))
    };
    let (table, entry_bytes, entries) = (number(header, 32, 8), number(header, 54, 2), number(header, 56, 2));
    for index in 0..entries.min(MAX_PROGRAM_HEADERS) {
        let mut entry = [0; 56];
        // Saturating, because the offset in the file is untrusted; reading beyond the end then fails.
        file.read_exact_at(&mut entry, table.saturating_add(index * entry_bytes))?;
        let (kind, offset, size) = (number(&entry, 0, 4), number(&entry, 8, 8), number(&entry, 32, 8));
        if kind != 4 || size > MAX_NOTES_BYTES {
            continue;
        }
        let mut notes = vec![0; usize::try_from(size).unwrap_or(0)];
        file.read_exact_at(&mut notes, offset)?;
        let mut at = 0;
        while at + 12 <= notes.len() {
            let field = |index: usize| usize::try_from(number(&notes, at + 4 * index, 4)).unwrap_or(usize::MAX >> 1);
            let (name_bytes, descriptor_bytes) = (field(0), field(1));
            if field(2) == 18 && notes[at + 12..].starts_with(b"Xen\0") {
                return Ok(true);
            }
            at += 12 + name_bytes.next_multiple_of(4) + descriptor_bytes.next_multiple_of(4);
        }
    }
    Ok(false)
}

#[cfg(target_arch = "x86_64")]
fn measure_tsc_khz() -> Option<u64> {
    let (begin, ticks_before) = (Instant::now(), time_stamp());
    std::thread::sleep(TSC_MEASUREMENT);
    let (elapsed, ticks_after) = (begin.elapsed(), time_stamp());
    let ticks = u128::from(ticks_after.checked_sub(ticks_before)?);
    u64::try_from(ticks * 1_000_000 / elapsed.as_nanos().max(1)).ok().filter(|khz| *khz > 0)
}

#[cfg(target_arch = "x86_64")]
#[expect(unsafe_code, reason = "the time stamp counter is read by an intrinsic")]
fn time_stamp() -> u64 {
    // SAFETY: every x86_64 processor has the instruction, and Linux lets programs use it.
    unsafe { core::arch::x86_64::_rdtsc() }
}

#[cfg(not(target_arch = "x86_64"))]
fn measure_tsc_khz() -> Option<u64> {
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec(program: &Path) -> MachineSpec {
        let text = serde_json::json!({
            "version": 1, "name": "web", "kernel": "/nonexistent/kernel",
            "firecracker": {"program": program.to_str().unwrap()},
        });
        serde_json::from_value(text).unwrap()
    }

    #[test]
    fn a_version_is_asked_for_again_only_when_the_program_changes() {
        let directory = tempfile::tempdir().unwrap();
        let program = directory.path().join("firecracker");
        let asked = directory.path().join("asked");
        let script = |version: &str| format!("#!/bin/sh\necho x >> {}\necho Firecracker {version}\n", asked.display());
        testing::write_program(&program, &script("v1.13.1"));
        let runtime = RuntimeDirectory::at(directory.path().join("run"));
        let interruption = Interruption::watch().unwrap();
        let versions = || {
            let facts = gather(&spec(&program), Hypervisor::Firecracker, ".".into(), &runtime, &interruption).unwrap();
            facts.versions.get(&Hypervisor::Firecracker).copied()
        };
        assert_eq!((versions(), versions()), (Some(Version(1, 13, 1)), Some(Version(1, 13, 1))));
        assert_eq!(fs::read_to_string(&asked).unwrap(), "x\n");
        testing::write_program(&program, &script("v1.14.0"));
        assert_eq!(versions(), Some(Version(1, 14, 0)));
        // A damaged cache is ignored.
        fs::write(directory.path().join("run/host-facts.json"), "{").unwrap();
        assert_eq!(versions(), Some(Version(1, 14, 0)));
    }

    #[test]
    fn cached_facts_replace_a_link_and_those_of_another_user_are_ignored() {
        let directory = tempfile::tempdir().unwrap();
        let (runtime, victim) = (RuntimeDirectory::at(directory.path()), directory.path().join("victim"));
        fs::write(&victim, "untouched").unwrap();
        let partial = format!("host-facts.new.{}", std::process::id());
        for name in [FACTS_FILE, &partial] {
            std::os::unix::fs::symlink(&victim, directory.path().join(name)).unwrap();
        }
        let known = Remembered { tsc_khz: Some(1), ..Remembered::default() };
        store(&runtime, &known);
        assert_eq!(fs::read_to_string(&victim).unwrap(), "untouched");
        let path = directory.path().join(FACTS_FILE);
        assert_eq!(recall(&path), Some(known));
        if nix::unistd::geteuid().is_root() {
            nix::unistd::chown(&path, Some(nix::unistd::Uid::from_raw(65534)), None).unwrap();
            assert_eq!(recall(&path), None);
        }
    }

    #[test]
    fn the_form_of_a_kernel_is_detected_from_its_first_bytes() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("kernel");
        let mut bytes = vec![0; 0x400];
        bytes[0x202..0x206].copy_from_slice(b"HdrS");
        fs::write(&path, &bytes).unwrap();
        assert_eq!(kernel_form(&path).unwrap(), KernelForm::BzImage);
        fs::write(&path, b"#!/bin/sh").unwrap();
        assert_eq!(kernel_form(&path).unwrap(), KernelForm::Unknown);
        assert_eq!(kernel_form(Path::new("/proc/self/exe")).unwrap(), KernelForm::Elf);
        assert!(kernel_form(&directory.path().join("none")).is_err());
    }

    /// Returns an ELF64 header whose table of program headers is at `table`.
    fn elf(table: u64, entries: u16) -> Vec<u8> {
        let mut bytes = vec![0; 64];
        bytes[..4].copy_from_slice(b"\x7fELF");
        bytes[32..40].copy_from_slice(&table.to_le_bytes());
        bytes[54..56].copy_from_slice(&56u16.to_le_bytes());
        bytes[56..58].copy_from_slice(&entries.to_le_bytes());
        bytes
    }

    #[test]
    fn an_elf_with_a_table_beyond_all_addresses_is_refused() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("kernel");
        for table in [u64::MAX, u64::MAX - 100, 1 << 63, 1 << 40] {
            fs::write(&path, elf(table, u16::MAX)).unwrap();
            assert!(kernel_form(&path).is_err(), "{table}");
        }
    }

    #[test]
    fn reading_an_elf_with_too_many_notes_ends() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("kernel");
        let mut bytes = elf(64, u16::MAX);
        for _ in 0..u16::MAX {
            let mut entry = [0; 56];
            entry[..4].copy_from_slice(&4u32.to_le_bytes());
            entry[32..40].copy_from_slice(&(1u64 << 20).to_le_bytes());
            bytes.extend(entry);
        }
        fs::write(&path, bytes).unwrap();
        assert_eq!(kernel_form(&path).unwrap(), KernelForm::Elf);
    }

    #[cfg(target_arch = "x86_64")]
    #[test]
    fn the_measured_rate_of_the_time_stamp_counter_is_plausible() {
        let khz = measure_tsc_khz().unwrap();
        assert!((100_000..100_000_000).contains(&khz), "{khz} kHz");
    }
}
