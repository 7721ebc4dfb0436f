//! What each hypervisor supports. Each hypervisor has one table, from which refusals, Nix assertions and the tables in
//! the manual are derived.

mod uses;

pub use uses::{Condition, Constant, Expected, Test, Use, conditions, uses};

use crate::spec::Hypervisor;

/// Whether a hypervisor supports a feature.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Support {
    /// It is supported.
    Yes,
    /// It is supported, with a note for the user.
    With(&'static str),
    /// It is supported with a limitation.
    Partly(&'static str),
    /// It is not supported, with the reason.
    No(&'static str),
}

impl Support {
    /// Whether it is supported, possibly with a limitation.
    pub fn is_supported(self) -> bool {
        !matches!(self, Self::No(_))
    }
}

/// How the launcher handles a feature that the hypervisor does not support.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unsupported {
    /// The machine is refused.
    Refuse,
    /// The feature is ignored with a warning, because the guest works without it.
    Warn,
}

/// A feature that not every hypervisor supports.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[allow(missing_docs, reason = "`Feature::row` describes each")]
pub enum Feature {
    StoreDisk,
    LiveStoreDisk,
    PmemStoreDisk,
    SealedStoreDisk,
    VolumeSerial,
    VolumeDirect,
    VolumeQcow2,
    VolumeVhd,
    VolumeVhdx,
    NineP,
    NinePReadOnly,
    NinePSecurityModel,
    Virtiofs,
    InterfaceUser,
    InterfaceTap,
    InterfaceMacvtap,
    InterfaceBridge,
    TapMultiQueue,
    TapVhost,
    ForwardFromHost,
    ForwardFromGuest,
    Vsock,
    GuestNotification,
    Balloon,
    InitialBalloon,
    HotplugMemory,
    HugePages,
    DevicePci,
    DeviceUsb,
    Credentials,
    CpuModel,
    WithoutRng,
    MachineId,
    Console,
    GracefulStop,
    Suspend,
    LiveMigration,
    WithoutKvm,
    OtherArchitecture,
    Graphics,
}

impl Feature {
    /// All features, in the order of the tables.
    pub const ALL: [Feature; 40] = [
        Self::StoreDisk,
        Self::LiveStoreDisk,
        Self::PmemStoreDisk,
        Self::SealedStoreDisk,
        Self::VolumeSerial,
        Self::VolumeDirect,
        Self::VolumeQcow2,
        Self::VolumeVhd,
        Self::VolumeVhdx,
        Self::NineP,
        Self::NinePReadOnly,
        Self::NinePSecurityModel,
        Self::Virtiofs,
        Self::InterfaceUser,
        Self::InterfaceTap,
        Self::InterfaceMacvtap,
        Self::InterfaceBridge,
        Self::TapMultiQueue,
        Self::TapVhost,
        Self::ForwardFromHost,
        Self::ForwardFromGuest,
        Self::Vsock,
        Self::GuestNotification,
        Self::Balloon,
        Self::InitialBalloon,
        Self::HotplugMemory,
        Self::HugePages,
        Self::DevicePci,
        Self::DeviceUsb,
        Self::Credentials,
        Self::CpuModel,
        Self::WithoutRng,
        Self::MachineId,
        Self::Console,
        Self::GracefulStop,
        Self::Suspend,
        Self::LiveMigration,
        Self::WithoutKvm,
        Self::OtherArchitecture,
        Self::Graphics,
    ];

    /// Returns the name of the feature in tables and messages.
    pub fn row(self) -> &'static str {
        match self {
            Self::StoreDisk => "store disk as the read-only /dev/vda",
            Self::LiveStoreDisk => "a store disk without an image",
            Self::PmemStoreDisk => "the store disk as persistent memory",
            Self::SealedStoreDisk => "a sealed store disk",
            Self::VolumeSerial => "serial numbers of disks",
            Self::VolumeDirect => "direct I/O on disks",
            Self::VolumeQcow2 => "qcow2 images",
            Self::VolumeVhd => "vhd images",
            Self::VolumeVhdx => "vhdx images",
            Self::NineP => "9p shares",
            Self::NinePReadOnly => "read-only 9p shares",
            Self::NinePSecurityModel => "security models of 9p shares",
            Self::Virtiofs => "virtiofs shares",
            Self::InterfaceUser => "user networking",
            Self::InterfaceTap => "tap interfaces",
            Self::InterfaceMacvtap => "macvtap interfaces",
            Self::InterfaceBridge => "interfaces that a helper adds to a bridge",
            Self::TapMultiQueue => "one queue pair per CPU on taps",
            Self::TapVhost => "vhost-net on taps",
            Self::ForwardFromHost => "ports forwarded from the host",
            Self::ForwardFromGuest => "ports forwarded from the guest",
            Self::Vsock => "vsock",
            Self::GuestNotification => "the guest's readiness over vsock",
            Self::Balloon => "a balloon",
            Self::InitialBalloon => "a balloon filled at start",
            Self::HotplugMemory => "hot-plugged memory",
            Self::HugePages => "huge pages",
            Self::DevicePci => "PCI devices of the host",
            Self::DeviceUsb => "USB devices of the host",
            Self::Credentials => "credentials",
            Self::CpuModel => "CPU models",
            Self::WithoutRng => "machines without an entropy source",
            Self::MachineId => "the machine id",
            Self::Console => "a console to connect to later",
            Self::GracefulStop => "a graceful stop",
            Self::Suspend => "suspending and resuming",
            Self::LiveMigration => "live migration to another host",
            Self::WithoutKvm => "running without KVM",
            Self::OtherArchitecture => "guests of another architecture",
            Self::Graphics => "a screen",
        }
    }

    /// Returns the option of the machine spec that uses the feature, as in `volumes.*.serial`; empty if there is none.
    pub fn option(self) -> String {
        match self {
            Self::StoreDisk => "storeDisk".to_owned(),
            Self::TapMultiQueue => "vcpu".to_owned(),
            Self::OtherArchitecture => "architecture".to_owned(),
            _ => conditions(self).next().map(Condition::pattern).unwrap_or_default(),
        }
    }

    /// Returns how the launcher handles the feature on a hypervisor that does not support it.
    pub fn when_unsupported(self) -> Unsupported {
        match self {
            // The guest also finds its volumes by label or device name, and packets arrive, only slower.
            Self::VolumeSerial | Self::VolumeDirect | Self::TapVhost | Self::NinePSecurityModel => Unsupported::Warn,
            _ => Unsupported::Refuse,
        }
    }
}

/// The rows of the summary: the name of the row, and the features that it combines.
const SUMMARY: [(&str, &[Feature]); 19] = [
    ("store disk, raw volumes", &[Feature::StoreDisk]),
    ("store disk without an image", &[Feature::LiveStoreDisk]),
    ("store disk as persistent memory", &[Feature::PmemStoreDisk]),
    ("qcow2, vhd and vhdx images", &[Feature::VolumeQcow2, Feature::VolumeVhd, Feature::VolumeVhdx]),
    ("disk serial numbers, direct I/O", &[Feature::VolumeSerial, Feature::VolumeDirect]),
    ("9p shares", &[Feature::NineP, Feature::NinePReadOnly, Feature::NinePSecurityModel]),
    ("virtiofs shares", &[Feature::Virtiofs]),
    ("networking without root", &[Feature::InterfaceUser]),
    ("tap and macvtap interfaces", &[Feature::InterfaceTap, Feature::InterfaceMacvtap]),
    ("forwarded ports", &[Feature::ForwardFromHost, Feature::ForwardFromGuest]),
    ("vsock, readiness of the guest", &[Feature::Vsock, Feature::GuestNotification]),
    ("balloon, also filled at the start", &[Feature::Balloon, Feature::InitialBalloon]),
    ("hot-plugged memory", &[Feature::HotplugMemory]),
    ("huge pages", &[Feature::HugePages]),
    ("PCI and USB devices of the host", &[Feature::DevicePci, Feature::DeviceUsb]),
    ("credentials", &[Feature::Credentials]),
    ("graceful stop, suspend and resume", &[Feature::GracefulStop, Feature::Suspend]),
    ("running without KVM", &[Feature::WithoutKvm]),
    ("graphics", &[Feature::Graphics]),
];

/// Returns the most important features as a Markdown table of yes, no and partly, without notes.
pub fn summary_table(support: impl Fn(Hypervisor, Feature) -> Support) -> String {
    let mut table = table_head();
    for (row, features) in SUMMARY {
        table.push_str(&format!("\n| {row} |"));
        for hypervisor in Hypervisor::ALL {
            let supported =
                |feature: &Feature| matches!(support(hypervisor, *feature), Support::Yes | Support::With(_));
            let cell = if features.iter().all(supported) {
                "yes"
            } else if features.iter().any(|feature| support(hypervisor, *feature).is_supported()) {
                "partly"
            } else {
                "no"
            };
            table.push_str(&format!(" {cell} |"));
        }
    }
    table.push('\n');
    table
}

/// Returns the head of a Markdown table with one column per hypervisor.
fn table_head() -> String {
    let names = Hypervisor::ALL.map(|hypervisor| format!(" {hypervisor} |")).concat();
    format!("| |{names}\n|---|{}", "---|".repeat(Hypervisor::ALL.len()))
}

/// Returns the tables of all hypervisors as one Markdown table, with the reasons as numbered notes below it.
pub fn markdown_table(support: impl Fn(Hypervisor, Feature) -> Support) -> String {
    let mut notes: Vec<&'static str> = Vec::new();
    let mut number_of = |note: &'static str| {
        let at = notes.iter().position(|known| *known == note).unwrap_or_else(|| {
            notes.push(note);
            notes.len() - 1
        });
        at + 1
    };
    let mut table = table_head();
    for feature in Feature::ALL {
        table.push_str(&format!("\n| {} |", feature.row()));
        for hypervisor in Hypervisor::ALL {
            let cell = match support(hypervisor, feature) {
                Support::Yes => "yes".to_owned(),
                Support::With(note) => format!("yes [{}]", number_of(note)),
                Support::Partly(note) => format!("partly [{}]", number_of(note)),
                Support::No(reason) => format!("no [{}]", number_of(reason)),
            };
            table.push_str(&format!(" {cell} |"));
        }
    }
    table.push_str("\n\n");
    for (index, note) in notes.iter().enumerate() {
        table.push_str(&format!("{}. {note}\n", index + 1));
    }
    table
}
