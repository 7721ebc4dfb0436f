//! The properties of the host that a launch depends on. This is plain data; `host` gathers it.

use crate::path::HostPath;
pub use crate::spec::Architecture;
use crate::spec::Hypervisor;
use std::collections::BTreeMap;
use std::fmt;

/// Facts about the host. `check` and `explain` use [`HostFacts::assumed`] without inspecting the host; `explain` only
/// adds what the image of the store disk says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostFacts {
    /// The processor architecture.
    pub architecture: Architecture,
    /// Whether KVM can be used.
    pub kvm: Kvm,
    /// The most virtual CPUs of a machine with the host's KVM, if known.
    pub kvm_max_vcpus: Option<u32>,
    /// The hypervisor's working directory, to which relative paths refer; absolute.
    pub state_directory: HostPath,
    /// The versions of the installed hypervisors, if known.
    pub versions: BTreeMap<Hypervisor, Version>,
    /// The format of each inspected kernel image.
    pub kernel_forms: BTreeMap<HostPath, KernelForm>,
    /// The length in bytes of each inspected kernel image, initrd and image that is mapped as persistent memory.
    pub file_bytes: BTreeMap<HostPath, u64>,
    /// The number of processors that this process may use, if known.
    pub processors: Option<u32>,
    /// The number of online processors of the host, if known.
    pub online_processors: Option<u32>,
    /// The frequency of the host's time stamp counter in kHz, if known. An emulated guest that is given it does not
    /// need to calibrate.
    pub tsc_khz: Option<u64>,
    /// Whether processes can use io_uring, which containers often forbid.
    pub io_uring_is_usable: bool,
    /// Whether the installed crosvm is built with a balloon. A crosvm without one does not have the option that turns
    /// it off.
    pub crosvm_has_balloon: bool,
    /// Whether processes can restrict themselves with landlock as cloud-hypervisor does.
    pub landlock: Landlock,
    /// A directory on a file system in memory, for files without a name.
    pub memory_directory: Option<HostPath>,
    /// An empty directory in which crosvm can jail its devices, if `/var/empty` does not exist.
    pub empty_directory: Option<HostPath>,
    /// The means to render and to show windows.
    pub desktop: Desktop,
    /// Whether the launcher runs as root.
    pub privilege: Privilege,
    /// What the guest needs to check the store disk, if the image is sealed and has been inspected.
    pub store_seal: Option<StoreSeal>,
    /// Whether it runs in a confined unit of the host module, where a hypervisor cannot create its own jail.
    pub is_confined: bool,
}

impl HostFacts {
    /// Returns the facts of a typical host, without inspecting one: x86_64, KVM, the newest hypervisors, a desktop, not
    /// root.
    pub fn assumed(state_directory: HostPath) -> Self {
        Self {
            architecture: Architecture::X86_64,
            kvm: Kvm::Usable,
            kvm_max_vcpus: None,
            state_directory,
            versions: BTreeMap::new(),
            kernel_forms: BTreeMap::new(),
            file_bytes: BTreeMap::new(),
            processors: None,
            online_processors: None,
            tsc_khz: None,
            io_uring_is_usable: true,
            crosvm_has_balloon: true,
            landlock: Landlock::Usable,
            memory_directory: Some(HostPath::from("/dev/shm")),
            empty_directory: None,
            desktop: Desktop::assumed(),
            privilege: Privilege::Unprivileged,
            store_seal: None,
            is_confined: false,
        }
    }

    /// Whether the installed hypervisor has at least this version. An unknown version counts as new.
    pub fn at_least(&self, hypervisor: Hypervisor, version: Version) -> bool {
        self.versions.get(&hypervisor).is_none_or(|installed| *installed >= version)
    }
}

/// The means to render and to show windows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Desktop {
    /// The socket of the session's Wayland compositor.
    pub wayland_socket: Option<HostPath>,
    /// The session's X11 display.
    pub x11_display: Option<String>,
    /// The node of a graphics card that can render without a window.
    pub render_node: RenderNode,
}

impl Desktop {
    /// Returns a desktop with Wayland and one graphics card.
    fn assumed() -> Self {
        Self {
            wayland_socket: Some(HostPath::from("/run/user/1000/wayland-0")),
            x11_display: None,
            render_node: RenderNode::Usable(HostPath::from("/dev/dri/renderD128")),
        }
    }

    /// Whether programs can open windows.
    pub fn has_desktop(&self) -> bool {
        self.wayland_socket.is_some() || self.x11_display.is_some()
    }
}

/// The node of a graphics card that can render without a window.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RenderNode {
    /// It can be read and written.
    Usable(HostPath),
    /// No node can be used, for this reason.
    Unusable(String),
}

/// Whether KVM can be used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Kvm {
    /// `/dev/kvm` can create machines.
    Usable,
    /// It can, but is implemented in software (the module kvm_pvm), which supports fewer CPU registers and under which
    /// kernels that were not built for it hang.
    UsableSoftware,
    /// It cannot be used, for this reason.
    Unusable(String),
}

impl Kvm {
    /// Whether a hypervisor that requires KVM can run.
    pub fn is_usable(&self) -> bool {
        !matches!(self, Self::Unusable(_))
    }
}

/// Whether landlock can be used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Landlock {
    /// The kernel restricts all access rights that cloud-hypervisor asks for.
    Usable,
    /// The reason why it cannot be used.
    Unusable(String),
}

/// What a guest needs to check a sealed store disk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoreSeal {
    /// Hash of the whole image: 64 hexadecimal digits.
    pub root_hash: String,
    /// The position of the hash tree's superblock in the image.
    pub hash_offset_bytes: u64,
}

/// The privileges of the launcher.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Privilege {
    /// It runs as root.
    Root,
    /// It runs as an ordinary user.
    Unprivileged,
}

/// The form of a kernel image, detected from its first bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KernelForm {
    /// Linux's compressed boot image for x86.
    BzImage,
    /// An ELF with a note that contains its PVH entry point.
    ElfPvh,
    /// An ELF without such a note.
    Elf,
    /// Any other file.
    Unknown,
}

/// The version of a hypervisor: major, minor, patch.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Version(pub u32, pub u32, pub u32);

impl Version {
    /// Finds the first version number in the output of `--version`: a number, or two or three joined by dots.
    pub fn find_in(answer: &str) -> Option<Version> {
        answer
            .split(|character: char| character.is_whitespace() || character == '(')
            .map(|word| word.trim_start_matches('v'))
            .find_map(|word| {
                let mut parts = word.split(|character: char| !character.is_ascii_digit());
                let major = parts.next()?.parse().ok()?;
                let mut next = || parts.next().and_then(|part| part.parse().ok()).unwrap_or(0);
                Some(Version(major, next(), next()))
            })
    }
}

impl fmt::Display for Version {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}.{}.{}", self.0, self.1, self.2)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_found_in_the_output_of_the_programs() {
        for (answer, version) in [
            ("QEMU emulator version 7.2.22 (Debian 1:7.2+dfsg-7+deb12u18)", Some(Version(7, 2, 22))),
            ("cloud-hypervisor v53.0", Some(Version(53, 0, 0))),
            ("cloud-hypervisor v54.0-12-gabcdef", Some(Version(54, 0, 12))),
            ("Firecracker v1.17.0-dev", Some(Version(1, 17, 0))),
            ("kvm tool 3.18.0", Some(Version(3, 18, 0))),
            ("virtiofsd 1.14.0", Some(Version(1, 14, 0))),
            ("no number here", None),
        ] {
            assert_eq!(Version::find_in(answer), version, "{answer}");
        }
    }

    #[test]
    fn an_unknown_version_counts_as_new() {
        let mut facts = HostFacts::assumed("/var/lib/microvms/web".into());
        assert!(facts.at_least(Hypervisor::Qemu, Version(9, 0, 0)));
        facts.versions.insert(Hypervisor::Qemu, Version(7, 2, 22));
        assert!(!facts.at_least(Hypervisor::Qemu, Version(9, 0, 0)));
        assert!(facts.at_least(Hypervisor::Qemu, Version(7, 2, 0)));
    }
}
