//! Disks and shared directories, as written in the spec.

use super::default_true;
use crate::path::HostPath;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// The read-only first disk, which holds the system closure.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct StoreDisk {
    /// The image. With `plan`, the file to build; null means `NAME-store.squashfs` in the state directory.
    #[serde(default)]
    pub image: Option<HostPath>,
    /// An image plan. The image is built from it with the host's cache before the machine starts.
    #[serde(default)]
    pub plan: Option<HostPath>,
    /// The image builder; null means `microvm-image` from the search path.
    #[serde(default)]
    pub builder: Option<HostPath>,
    /// The image builder's cache directory; null means the builder's default.
    #[serde(default)]
    pub cache: Option<HostPath>,
    /// The disk's serial number, at most 20 bytes. The guest finds the disk as `/dev/disk/by-id/virtio-SERIAL`.
    #[serde(default)]
    pub serial: Option<String>,
    /// Whether to bypass the host's page cache (direct I/O).
    #[serde(default)]
    pub direct: bool,
    /// Whether the image builder serves the disk of `plan` from the host's store while the machine runs. No image is
    /// built. The guest sees an EROFS with the serial number `nix-store`.
    #[serde(default)]
    pub live: bool,
    /// How the guest reads the disk.
    #[serde(default)]
    pub transport: StoreTransport,
    /// Whether the image is sealed with dm-verity. The launcher reads the root hash from `IMAGE.verity.json` at the
    /// start and passes it to the guest as the kernel parameter `microvm.store_verity=ROOT_HASH:HASH_OFFSET_BYTES`.
    #[serde(default)]
    pub verity: bool,
}

impl StoreDisk {
    /// Returns the image that is built for a machine from a plan, if the spec names none.
    pub fn default_image(machine: &str) -> HostPath {
        HostPath::new(format!("{machine}-store.squashfs"))
    }
}

/// How the guest reads the store disk.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum StoreTransport {
    /// As a disk, through the guest's own page cache.
    #[default]
    Block,
    /// As persistent memory. The image is mapped into the guest, so the host and all guests share its pages in memory.
    Pmem,
}

/// A disk image with a file system.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Volume {
    /// The image: a file, or a block device.
    pub image: HostPath,
    /// Size of a new image in MiB.
    #[serde(default, rename = "size")]
    pub size_mib: Option<u64>,
    /// The file system: ext2, ext3, ext4, xfs, btrfs, vfat...
    #[serde(default = "ext4")]
    pub fs_type: String,
    /// The file system's label.
    #[serde(default)]
    pub label: Option<String>,
    /// The disk's serial number, at most 20 bytes. The guest finds the disk as `/dev/disk/by-id/virtio-SERIAL`.
    #[serde(default)]
    pub serial: Option<String>,
    /// Whether the guest has read access only.
    #[serde(default)]
    pub read_only: bool,
    /// Whether to bypass the host's page cache (direct I/O).
    #[serde(default)]
    pub direct: bool,
    /// Whether to create the image before the start if it does not exist.
    #[serde(default = "default_true")]
    pub auto_create: bool,
    /// Additional arguments for mkfs.
    #[serde(default)]
    pub mkfs_extra_args: Vec<String>,
    /// Where the guest mounts it; null means that it is not mounted.
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
    /// The plain contents of the disk.
    #[default]
    Raw,
    /// qemu's copy-on-write format, version 2 or 3.
    Qcow2,
    /// The older format of Microsoft Virtual PC and Hyper-V.
    Vhd,
    /// The format of newer versions of Hyper-V.
    Vhdx,
}

impl ImageType {
    /// Returns the value as written in the machine spec.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Raw => "raw",
            Self::Qcow2 => "qcow2",
            Self::Vhd => "vhd",
            Self::Vhdx => "vhdx",
        }
    }
}

/// A host directory that the guest mounts.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Share {
    /// The protocol.
    #[serde(default)]
    pub proto: ShareProtocol,
    /// The name by which the guest mounts it.
    pub tag: String,
    /// The directory on the host.
    pub source: HostPath,
    /// The virtiofs daemon's socket; null means `NAME-virtiofs-TAG.sock` in the state directory.
    #[serde(default)]
    pub socket: Option<HostPath>,
    /// A list of store paths, one per line, for a share of a store: the guest sees only these. `microvm share-path`
    /// adds others while the machine runs. Null means everything in `source`.
    #[serde(default)]
    pub closure: Option<HostPath>,
    /// Where the guest mounts it.
    pub mount_point: String,
    /// Whether the guest has read access only.
    #[serde(default)]
    pub read_only: bool,
    /// 9p only: how owners and modes of the guest's files are stored on the host.
    #[serde(default)]
    pub security_model: SecurityModel,
    /// virtiofs only: what the guest caches.
    #[serde(default)]
    pub cache: Cache,
    /// virtiofs only: whether POSIX access control lists are supported. They cannot be combined with translated user
    /// IDs.
    #[serde(default = "default_true")]
    pub posix_acl: bool,
    /// virtiofs only: additional arguments for the daemon.
    #[serde(default)]
    pub extra_args: Vec<String>,
}

/// How a directory is shared.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum ShareProtocol {
    /// The 9P protocol, served by the hypervisor itself.
    #[default]
    #[serde(rename = "9p")]
    NineP,
    /// FUSE over virtio, served by a separate daemon.
    Virtiofs,
}

impl ShareProtocol {
    /// Returns the value as written in the machine spec.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::NineP => "9p",
            Self::Virtiofs => "virtiofs",
        }
    }
}

/// How a 9p share stores owners and modes of the guest's files on the host.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum SecurityModel {
    /// As owner and mode on the host; requires root.
    Passthrough,
    /// Like `passthrough`, but ignores errors when setting the owner.
    #[default]
    None,
    /// In extended attributes.
    Mapped,
    /// In hidden files.
    MappedFile,
}

impl SecurityModel {
    /// Returns the value as written in the machine spec.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Passthrough => "passthrough",
            Self::None => "none",
            Self::Mapped => "mapped",
            Self::MappedFile => "mapped-file",
        }
    }
}

/// What the guest of a virtiofs share caches.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Cache {
    /// Data and metadata, for a limited time.
    #[default]
    Auto,
    /// Everything, without a time limit; only for directories that nobody else changes.
    Always,
    /// Metadata only.
    Metadata,
    /// Nothing.
    Never,
}

impl Cache {
    /// Returns the value as written in the machine spec and in the daemon's option.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Auto => "auto",
            Self::Always => "always",
            Self::Metadata => "metadata",
            Self::Never => "never",
        }
    }
}
