//! What the rest of the launcher must know about a hypervisor: one table each, in the hypervisor's own module.

use super::launch_builder::LaunchBuilder;
use crate::capability::{Feature, Support};
use crate::launch::{ControlProtocol, Launch};
use crate::path::HostPath;
use crate::refusal::Refusal;
use crate::spec::{Architecture, Hypervisor};

/// What the launcher must know about a hypervisor besides its capabilities and its arguments.
#[derive(Debug)]
pub struct Description {
    /// Which one this is.
    pub hypervisor: Hypervisor,
    /// Its programs: one, or one per architecture of the guest.
    pub programs: &'static [HypervisorProgram],
    /// The option that prints its version; none if nothing depends on its version.
    pub version_option: Option<&'static str>,
    /// How it connects the guest's vsock to the host.
    pub vsock: VsockTransport,
    /// The protocol of its control socket.
    pub protocol: ControlProtocol,
    /// How credentials reach the guest.
    pub credentials: CredentialTransport,
    /// What it does not open although it supports the format; none if it opens every image of its formats.
    pub image_limits: Option<ImageLimits>,
    /// Whether it needs an empty directory for jailed devices.
    pub needs_empty_directory: bool,
    /// Whether the frequency of the host's time stamp counter is passed to it.
    pub uses_tsc_frequency: bool,
    /// Whether it connects again to a process that serves a disk after that process has ended. Only then is such a process
    /// restarted.
    pub(super) reconnects_disks: bool,
    /// Its capability table.
    pub(super) support: fn(Feature) -> Support,
    /// Returns why a machine that uses a feature cannot be suspended, if it cannot: a reason that continues a sentence
    /// with the hypervisor's name.
    pub(super) suspend_obstacle: fn(Feature) -> Option<&'static str>,
    /// Returns why a machine that uses a feature cannot be cloned, although it can be suspended.
    pub(super) clone_obstacle: fn(Feature) -> Option<&'static str>,
    /// Changes the launch so that it loads a machine that was saved in this directory, which is an absolute path.
    pub(super) resume: fn(&mut Launch, &HostPath),
    /// Turns a machine into a launch.
    pub(super) lower: fn(LaunchBuilder<'_>) -> Result<Launch, Vec<Refusal>>,
}

/// A program of a hypervisor, and the packages that contain it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HypervisorProgram {
    /// The architecture of its guests; none if it is the host's.
    pub architecture: Option<Architecture>,
    /// Its file name.
    pub name: &'static str,
    /// The package of Debian, if there is one.
    pub debian_package: Option<&'static str>,
    /// The package of nixpkgs.
    pub nix_package: &'static str,
}

/// How a hypervisor connects the guest's vsock to the host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum VsockTransport {
    /// Through the kernel's vhost-vsock.
    Kernel,
    /// Through a Unix socket.
    UnixSocket,
}

/// How credentials reach the guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CredentialTransport {
    /// The hypervisor reads the files itself.
    Hypervisor,
    /// The launcher adds them to the initrd.
    Initrd,
}

/// What a hypervisor with its own readers of qcow2 and VHD does not open. All of them refuse backing files, external
/// data files, encryption, extended L2 entries and dynamic VHDs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ImageLimits {
    /// Whether it opens qcow2 of version 2, and compressed clusters.
    pub opens_old_and_compressed_qcow2: bool,
}

impl Description {
    /// Returns the default program for guests of this architecture.
    pub fn program(&self, architecture: Architecture) -> HostPath {
        let fits = |program: &&HypervisorProgram| program.architecture.is_none_or(|own| own == architecture);
        HostPath::new(self.programs.iter().find(fits).map_or(self.hypervisor.as_str(), |program| program.name))
    }
}
