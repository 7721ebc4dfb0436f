//! What the host is, as far as a launch depends on it: plain data that the probing half fills in.

use crate::path::HostPath;
pub use crate::spec::Architecture;
use crate::spec::Hypervisor;
use std::collections::BTreeMap;
use std::fmt;

/// Facts about the host. [`HostFacts::assumed`] is what `check` and `explain` go by without inspecting the host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostFacts {
    /// The processor architecture.
    pub architecture: Architecture,
    /// Whether the kernel's virtualisation can be used.
    pub kvm: Kvm,
    /// The most virtual CPUs that a machine of the kernel's KVM has, as far as known.
    pub kvm_most_vcpus: Option<u32>,
    /// The directory in which the hypervisor runs and to which relative paths refer; absolute.
    pub state_directory: HostPath,
    /// The versions of the hypervisors that are installed, as far as known.
    pub versions: BTreeMap<Hypervisor, Version>,
    /// The format of each inspected kernel image.
    pub kernel_forms: BTreeMap<HostPath, KernelForm>,
    /// The length in bytes of each inspected kernel image and initrd.
    pub file_bytes: BTreeMap<HostPath, u64>,
    /// Online processors of the host, as far as known.
    pub processors: Option<u32>,
    /// Frequency of the host's time stamp counter in kHz, as far as known: an emulated guest that knows it need not
    /// calibrate.
    pub tsc_khz: Option<u64>,
    /// Whether processes can use io_uring, which containers often forbid.
    pub io_uring_is_usable: bool,
    /// Whether the installed crosvm is built with a balloon; one without does not know the option that turns it off.
    pub crosvm_has_balloon: bool,
    /// An empty directory in which crosvm can jail its devices, if `/var/empty` is not there.
    pub empty_directory: Option<HostPath>,
    /// What there is to draw with and to show windows on.
    pub desktop: Desktop,
    /// Whether the launcher runs as root.
    pub privilege: Privilege,
    /// Whether it runs in the jail that a unit of the host module is, where a hypervisor cannot make one of its own.
    pub is_confined: bool,
}

impl HostFacts {
    /// A typical host, without inspecting one: x86_64, KVM, the newest hypervisors, a desktop, not root.
    pub fn assumed(state_directory: HostPath) -> Self {
        Self {
            architecture: Architecture::X86_64,
            kvm: Kvm::Usable,
            kvm_most_vcpus: None,
            state_directory,
            versions: BTreeMap::new(),
            kernel_forms: BTreeMap::new(),
            file_bytes: BTreeMap::new(),
            processors: None,
            tsc_khz: None,
            io_uring_is_usable: true,
            crosvm_has_balloon: true,
            empty_directory: None,
            desktop: Desktop::assumed(),
            privilege: Privilege::Unprivileged,
            is_confined: false,
        }
    }

    /// Whether the installed hypervisor is at least of this version; one whose version is unknown is taken for new.
    pub fn at_least(&self, hypervisor: Hypervisor, version: Version) -> bool {
        self.versions.get(&hypervisor).is_none_or(|installed| *installed >= version)
    }
}

/// What there is to draw with and to show windows on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Desktop {
    /// The socket of the Wayland compositor in whose session the launcher runs.
    pub wayland_socket: Option<HostPath>,
    /// The X11 display of that session.
    pub x11_display: Option<String>,
    /// The node of a graphics card that draws without a window.
    pub render_node: RenderNode,
}

impl Desktop {
    /// Wayland and one graphics card.
    fn assumed() -> Self {
        Self {
            wayland_socket: Some(HostPath::from("/run/user/1000/wayland-0")),
            x11_display: None,
            render_node: RenderNode::Usable(HostPath::from("/dev/dri/renderD128")),
        }
    }

    /// Whether programs can open windows.
    pub fn has_windows(&self) -> bool {
        self.wayland_socket.is_some() || self.x11_display.is_some()
    }
}

/// The node of a graphics card that draws without a window.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RenderNode {
    /// It can be read and written.
    Usable(HostPath),
    /// There is none that can; why.
    Unusable(String),
}

/// Whether the kernel's virtualisation can be used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Kvm {
    /// `/dev/kvm` makes machines.
    Usable,
    /// It does, but is the software kind (the module kvm_pvm), which knows fewer CPU registers and under which kernels hang
    /// that were not made for it.
    UsableSoftware,
    /// It does not; why.
    Unusable(String),
}

impl Kvm {
    /// Whether a hypervisor that needs KVM can run.
    pub fn is_usable(&self) -> bool {
        !matches!(self, Self::Unusable(_))
    }
}

/// Whose rights the launcher has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Privilege {
    /// Those of root.
    Root,
    /// Those of an ordinary user.
    Unprivileged,
}

/// What a kernel image is, by its first bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KernelForm {
    /// Linux's compressed boot image for x86.
    BzImage,
    /// An ELF with a note that says where to enter it under PVH.
    ElfPvh,
    /// An ELF without one.
    Elf,
    /// Something else.
    Unknown,
}

/// The version of a hypervisor: major, minor, patch.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Version(pub u32, pub u32, pub u32);

impl Version {
    /// The first version number in a program's answer to `--version`: a number, or two or three joined by dots.
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
    fn versions_are_found_in_what_the_programs_print() {
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
    fn an_unknown_version_is_taken_for_new() {
        let mut facts = HostFacts::assumed("/var/lib/microvms/web".into());
        assert!(facts.at_least(Hypervisor::Qemu, Version(9, 0, 0)));
        facts.versions.insert(Hypervisor::Qemu, Version(7, 2, 22));
        assert!(!facts.at_least(Hypervisor::Qemu, Version(9, 0, 0)));
        assert!(facts.at_least(Hypervisor::Qemu, Version(7, 2, 0)));
    }
}
