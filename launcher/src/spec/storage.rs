//! Disks and shared directories as the user writes them.

use super::yes;
use crate::path::HostPath;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// The read-only first disk, which holds the system closure.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct StoreDisk {
    /// The image. With `plan`: where the image is made; null is `NAME-store.squashfs` in the state directory.
    #[serde(default)]
    pub image: Option<HostPath>,
    /// A plan of the image builder, from which the image is made with the host's cache before the machine starts.
    #[serde(default)]
    pub plan: Option<HostPath>,
    /// The image builder that carries out the plan; null is `microvm-image` from the search path.
    #[serde(default)]
    pub builder: Option<HostPath>,
    /// The image builder's cache; null is the builder's own default.
    #[serde(default)]
    pub cache: Option<HostPath>,
    /// Its serial number, at most 20 bytes: `/dev/disk/by-id/virtio-SERIAL` in the guest, whatever its letter.
    #[serde(default)]
    pub serial: Option<String>,
    /// Whether to read it past the page cache of the host.
    #[serde(default)]
    pub direct: bool,
}

/// A disk image with a file system that the guest mounts.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Volume {
    /// The image: a file, or a block device.
    pub image: HostPath,
    /// Size in MiB when it is created.
    #[serde(default, rename = "size")]
    pub size_mib: Option<u64>,
    /// The file system: ext2, ext3, ext4, xfs, btrfs, vfat...
    #[serde(default = "ext4")]
    pub fs_type: String,
    /// The file system's label.
    #[serde(default)]
    pub label: Option<String>,
    /// The disk's serial number, at most 20 bytes: `/dev/disk/by-id/virtio-SERIAL` in the guest.
    #[serde(default)]
    pub serial: Option<String>,
    /// Whether the guest may only read it.
    #[serde(default)]
    pub read_only: bool,
    /// Whether to go past the page cache of the host.
    #[serde(default)]
    pub direct: bool,
    /// Whether to create it before the start when there is no such file.
    #[serde(default = "yes")]
    pub auto_create: bool,
    /// Further arguments for mkfs.
    #[serde(default)]
    pub mkfs_extra_args: Vec<String>,
    /// Where the guest mounts it; null is nowhere.
    #[serde(default)]
    pub mount_point: Option<String>,
    /// The image's format.
    #[serde(default)]
    pub image_type: ImageType,
}

fn ext4() -> String {
    "ext4".to_owned()
}

/// The format of a disk image.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum ImageType {
    /// The disk's bytes as they are.
    #[default]
    Raw,
    /// qemu's copy on write format, version 2 or 3.
    Qcow2,
    /// Microsoft's older format.
    Vhd,
    /// Microsoft's newer format.
    Vhdx,
}

impl ImageType {
    /// The word in the machine spec.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Raw => "raw",
            Self::Qcow2 => "qcow2",
            Self::Vhd => "vhd",
            Self::Vhdx => "vhdx",
        }
    }
}

/// A directory of the host that the guest mounts.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Share {
    /// The protocol.
    #[serde(default)]
    pub proto: ShareProtocol,
    /// The name by which the guest finds it.
    pub tag: String,
    /// The directory on the host.
    pub source: HostPath,
    /// The virtiofs daemon's socket; null is `NAME-virtiofs-TAG.sock` in the state directory.
    #[serde(default)]
    pub socket: Option<HostPath>,
    /// Where the guest mounts it.
    pub mount_point: String,
    /// Whether the guest may only read it.
    #[serde(default)]
    pub read_only: bool,
    /// 9p: whose rights the guest's files get on the host.
    #[serde(default)]
    pub security_model: SecurityModel,
    /// virtiofs: what the guest may keep in its cache.
    #[serde(default)]
    pub cache: Cache,
    /// virtiofs: whether POSIX access control lists work; excludes translated user ids.
    #[serde(default = "yes")]
    pub posix_acl: bool,
    /// virtiofs: further arguments for the daemon.
    #[serde(default)]
    pub extra_args: Vec<String>,
}

/// How a directory is shared.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum ShareProtocol {
    /// Plan 9's protocol, spoken by the hypervisor itself.
    #[default]
    #[serde(rename = "9p")]
    NineP,
    /// FUSE over virtio, spoken by a daemon beside the hypervisor.
    Virtiofs,
}

impl ShareProtocol {
    /// The word in the machine spec.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::NineP => "9p",
            Self::Virtiofs => "virtiofs",
        }
    }
}

/// Whose rights a 9p guest's files get on the host.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum SecurityModel {
    /// The guest's owner and mode; needs root.
    Passthrough,
    /// Like passthrough, but failing to set the owner is no error.
    #[default]
    None,
    /// Owner and mode in extended attributes.
    Mapped,
    /// Owner and mode in hidden files.
    MappedFile,
}

impl SecurityModel {
    /// The word in the machine spec.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Passthrough => "passthrough",
            Self::None => "none",
            Self::Mapped => "mapped",
            Self::MappedFile => "mapped-file",
        }
    }
}

/// What a virtiofs guest may keep in its cache.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Cache {
    /// As the daemon sees fit.
    #[default]
    Auto,
    /// Everything, for directories that nobody else changes.
    Always,
    /// Metadata only.
    Metadata,
    /// Nothing.
    Never,
}

impl Cache {
    /// The word in the machine spec and in the daemon's option.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Auto => "auto",
            Self::Always => "always",
            Self::Metadata => "metadata",
            Self::Never => "never",
        }
    }
}
