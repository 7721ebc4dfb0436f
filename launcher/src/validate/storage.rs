//! Validation of disks and shares: their order, device names, and values that must be unique.

use super::checked::{CheckedShare, CheckedVolume, Disk, DiskBackend, DiskRole, LiveStore, device_name};
use super::findings::Findings;
use super::names;
use crate::launch::{StoreDiskNeed, suspended_directory};
use crate::name::check_name;
use crate::path::HostPath;
use crate::spec::{ImageType, InodeFileHandles, MachineSpec, Share, ShareProtocol, StoreDisk, StoreTransport, Volume};
use std::path::Path;
use volume_maker::FileSystem;

/// The serial number that the image builder gives to a disk that it serves.
const LIVE_SERIAL: &str = "nix-store";
/// Files in the state directory that the launcher and the resource agent write and read.
pub(crate) const OWN_FILES: [&str; 6] = ["booted", "clone.json", "current", "flake", "microvm.log", "toplevel"];
/// The length of a file is a signed number of 64 bits.
const FILE_MAX_MIB: u64 = 1 << 43;
/// `MAX_TAG_LEN` in qemu's hw/9pfs/9p.h without the final NUL.
const MAX_9P_TAG_BYTES: usize = 31;
/// The tag field of `struct virtio_fs_config` in linux/virtio_fs.h.
const MAX_VIRTIOFS_TAG_BYTES: usize = 36;

pub(super) fn disks(
    spec: &MachineSpec,
    findings: &mut Findings,
) -> (Vec<Disk>, Vec<CheckedVolume>, Option<StoreDiskNeed>) {
    let mut disks = Vec::new();
    let mut need = None;
    if let Some(store_disk) = &spec.store_disk {
        let (disk, store_disk_need) = check_store_disk(spec, store_disk, findings);
        disks.push(disk);
        need = store_disk_need;
    }
    let mut volumes = Vec::new();
    for (index, volume) in spec.volumes.iter().enumerate() {
        check_volume(index, volume, findings);
        // Persistent memory is not a disk and has no drive letter.
        let letters = disks.iter().filter(|disk| disk.backend != DiskBackend::Pmem).count();
        disks.push(volume_disk(letters, index, volume));
        volumes.push(CheckedVolume {
            fs_type: volume.fs_type.clone(),
            label: volume.label.clone(),
            // A file in the place of a missing device would be in the memory of the host.
            creation_size_mib: volume.size_mib.filter(|_| volume.auto_create && !volume.image.is_device()),
            mkfs_extra_args: volume.mkfs_extra_args.clone(),
        });
    }
    let images = disks.iter().map(|disk| (format!("{}.image", disk.option), plain(&disk.image)));
    for disk in &disks {
        let is_lock = |other: &&Disk| plain(&disk.image) == format!("{}.lock", plain(&other.image));
        if let Some(other) = disks.iter().find(is_lock) {
            let reason = format!("`{}` is the lock file of {}.image; choose another name", disk.image, other.option);
            findings.problem(format!("{}.image", disk.option), reason);
        }
    }
    check_reserved(spec, &disks, findings);
    findings.require_distinct("image", images);
    let serials = disks.iter().filter_map(|disk| Some((format!("{}.serial", disk.option), disk.serial.as_deref()?)));
    findings.require_distinct("serial number", serials);
    let labels = spec.volumes.iter().enumerate();
    let labels =
        labels.filter_map(|(index, volume)| Some((format!("volumes[{index}].label"), volume.label.as_deref()?)));
    findings.require_distinct("label", labels);
    (disks, volumes, need)
}

/// Refuses images that are other files of the machine, which something else reads or replaces.
fn check_reserved(spec: &MachineSpec, disks: &[Disk], findings: &mut Findings) {
    let store_disk = spec.store_disk.as_ref();
    let plan = store_disk.and_then(|store_disk| store_disk.plan.as_ref());
    let seal = disks.iter().find(|disk| disk.role == DiskRole::Store && store_disk.is_some_and(|disk| disk.verity));
    let suspended = suspended_directory(&spec.name).as_path().to_owned();
    let seal = seal.map(|disk| format!("{}.verity.json", plain(&disk.image)));
    let read = [("kernel", Some(&spec.kernel)), ("initrd", spec.initrd.as_ref()), ("plan of the store disk", plan)];
    for disk in disks {
        let image = plain(&disk.image);
        let is_built = disk.role == DiskRole::Store && plan.is_some() && disk.backend == DiskBackend::Image;
        // Another message names a store disk that is its own plan.
        let is_read = |(_, path): &&(&str, Option<&HostPath>)| {
            path.is_some_and(|path| plain(path) == image) && !(is_built && *path == plan)
        };
        let reason = if OWN_FILES.contains(&image) {
            format!("`{image}` is a file that microvm keeps in the state directory; choose another name")
        } else if Path::new(image) == suspended {
            format!("`{image}` is the directory in which microvm keeps the suspended machine; choose another name")
        } else if Path::new(image).starts_with(&suspended) {
            let suspended = suspended.display();
            format!(
                "`{image}` is in `{suspended}`, which is deleted when the machine resumes; choose another directory"
            )
        } else if seal.as_deref() == Some(image) {
            format!("`{image}` is the file with the root hash of the store disk; choose another name")
        } else if let Some((name, _)) = read.iter().find(is_read).filter(|_| is_built || !disk.read_only) {
            let why = if is_built { "which the store disk would replace" } else { "which its guest must not change" };
            format!("`{}` is the {name} of this machine, {why}", disk.image)
        } else {
            continue;
        };
        findings.problem(format!("{}.image", disk.option), reason);
    }
}

/// Returns a path without a leading `./`, for comparisons.
pub(super) fn plain(path: &HostPath) -> &str {
    path.as_str().trim_start_matches("./")
}

fn check_store_disk(
    spec: &MachineSpec,
    store_disk: &StoreDisk,
    findings: &mut Findings,
) -> (Disk, Option<StoreDiskNeed>) {
    for (option, path) in [
        ("storeDisk.image", &store_disk.image),
        ("storeDisk.plan", &store_disk.plan),
        ("storeDisk.builder", &store_disk.builder),
    ] {
        if let Some(path) = path {
            findings.require(option, names::file_path(path));
        }
    }
    if let Some(path) = &store_disk.cache {
        findings.require("storeDisk.cache", names::path(path));
    }
    if let Some(serial) = &store_disk.serial {
        findings.require("storeDisk.serial", names::serial(serial));
    }
    if store_disk.image.is_none() && store_disk.plan.is_none() {
        findings.problem("storeDisk", "must contain an image, or a plan to build one from; null means no store disk");
    }
    if store_disk.plan.is_some() && store_disk.plan == store_disk.image {
        findings
            .problem("storeDisk.image", "is the path of the plan; the image that is built from it needs another path");
    }
    for (option, given) in [("storeDisk.builder", &store_disk.builder), ("storeDisk.cache", &store_disk.cache)] {
        if given.is_some() && store_disk.plan.is_none() {
            findings.problem(option, "has an effect only with storeDisk.plan");
        }
    }
    check_live(store_disk, findings);
    check_verity(store_disk, findings);
    let builder = store_disk.builder.clone().unwrap_or_else(|| HostPath::from("microvm-image"));
    let backend = match store_disk.transport {
        _ if store_disk.live => DiskBackend::Live(LiveStore { builder: builder.clone(), socket: live_socket(spec) }),
        StoreTransport::Pmem => DiskBackend::Pmem,
        StoreTransport::Block => DiskBackend::Image,
    };
    let is_live = store_disk.live;
    let image = store_disk.image.clone().or_else(|| store_disk.plan.clone().filter(|_| is_live));
    let image = image.unwrap_or_else(|| StoreDisk::default_image(&spec.name));
    let need = store_disk.plan.clone().filter(|_| !is_live).map(|plan| StoreDiskNeed {
        plan,
        image: image.clone(),
        builder,
        cache: store_disk.cache.clone(),
    });
    let disk = Disk {
        option: "storeDisk".to_owned(),
        role: DiskRole::Store,
        device: if backend == DiskBackend::Pmem { "/dev/pmem0".to_owned() } else { device_name(0) },
        image,
        image_type: ImageType::Raw,
        read_only: true,
        direct: store_disk.direct,
        serial: if is_live { Some(LIVE_SERIAL.to_owned()) } else { store_disk.serial.clone() },
        mount_point: None,
        backend,
    };
    (disk, need)
}

/// The socket at which the store disk is served.
pub(super) fn live_socket(spec: &MachineSpec) -> HostPath {
    HostPath::new(format!("{}-store.sock", spec.name))
}

/// What a disk without an image cannot have, and what persistent memory cannot.
fn check_live(store_disk: &StoreDisk, findings: &mut Findings) {
    let is_pmem = store_disk.transport == StoreTransport::Pmem;
    if store_disk.live {
        if store_disk.plan.is_none() {
            findings.problem("storeDisk.live", "needs storeDisk.plan, which says what to serve");
        }
        for (option, given) in [("storeDisk.image", &store_disk.image), ("storeDisk.cache", &store_disk.cache)] {
            if given.is_some() {
                findings.problem(option, "cannot be used with storeDisk.live, which creates no image");
            }
        }
        if store_disk.direct {
            findings
                .problem("storeDisk.direct", "cannot be used with storeDisk.live, which reads through the page cache");
        }
        if store_disk.serial.as_deref().is_some_and(|serial| serial != LIVE_SERIAL) {
            findings.problem("storeDisk.serial", format!("is always `{LIVE_SERIAL}` with storeDisk.live"));
        }
        if is_pmem {
            let reason = "\"pmem\" maps an image, and storeDisk.live has none; choose one of the two";
            findings.problem("storeDisk.transport", reason);
        }
    } else if is_pmem {
        if store_disk.plan.is_some() {
            let reason = "maps an existing image; set storeDisk.image to it, without a plan";
            findings.problem("storeDisk.transport", reason);
        }
        if store_disk.serial.is_some() {
            findings
                .problem("storeDisk.serial", "cannot be used with the transport \"pmem\", which has no serial number");
        }
        if store_disk.direct {
            findings
                .problem("storeDisk.direct", "cannot be used with the transport \"pmem\", which maps the page cache");
        }
    }
}

/// What cannot be sealed: a disk without an image, and one that the guest maps, because dm-verity checks blocks when they
/// are read from a device.
fn check_verity(store_disk: &StoreDisk, findings: &mut Findings) {
    if !store_disk.verity {
        return;
    }
    if store_disk.live {
        let reason = "checks an image, and storeDisk.live has none; choose one of the two";
        findings.problem("storeDisk.verity", reason);
    }
    if store_disk.transport == StoreTransport::Pmem {
        let reason = "checks blocks that the guest reads from a disk, but the transport \"pmem\" maps them into its memory; \
                      choose one of the two";
        findings.problem("storeDisk.verity", reason);
    }
}

fn volume_disk(place: usize, index: usize, volume: &Volume) -> Disk {
    Disk {
        option: format!("volumes[{index}]"),
        role: DiskRole::Volume,
        device: device_name(place),
        image: volume.image.clone(),
        image_type: volume.image_type,
        read_only: volume.read_only,
        direct: volume.direct,
        serial: volume.serial.clone(),
        mount_point: volume.mount_point.clone(),
        backend: DiskBackend::Image,
    }
}

fn check_volume(index: usize, volume: &Volume, findings: &mut Findings) {
    let option = |name: &str| format!("volumes[{index}].{name}");
    findings.require(option("image"), names::file_path(&volume.image));
    if let Some(serial) = &volume.serial {
        findings.require(option("serial"), names::serial(serial));
    }
    findings.require(option("fsType"), check_name(&volume.fs_type));
    let file_system = FileSystem::from_name(&volume.fs_type);
    if let Some(label) = &volume.label {
        findings.require(option("label"), names::no_control_characters(label));
        if label.is_empty() || label.contains('/') {
            findings.problem(option("label"), format!("`{label}` cannot be a name below /dev/disk/by-label"));
        }
        if let Some(file_system) = file_system.filter(|file_system| label.len() > file_system.label_max_bytes()) {
            let (name, most) = (file_system.name(), file_system.label_max_bytes());
            let reason = format!("`{label}` has {} bytes, but a label of {name} has at most {most}", label.len());
            findings.problem(option("label"), reason);
        }
    }
    if !volume.auto_create {
        return;
    }
    let is_device = volume.image.is_device();
    if volume.size_mib.is_none() && !is_device {
        findings.problem(option("size"), "must be set, because autoCreate is on");
    }
    if volume.size_mib == Some(0) {
        findings.problem(option("size"), "must be at least 1 MiB");
    }
    if let Some(mib) = volume.size_mib.filter(|mib| *mib >= FILE_MAX_MIB) {
        findings.problem(option("size"), format!("{mib} MiB is more than a file can have; the unit is MiB"));
    }
    if file_system.is_none() && !is_device {
        let known = FileSystem::ALL.map(FileSystem::name).join(", ");
        let reason = format!("`{}` cannot be created; use one of {known}, or set autoCreate = false", volume.fs_type);
        findings.problem(option("fsType"), reason);
    }
    if volume.image_type != ImageType::Raw {
        findings.problem(option("imageType"), "only raw images can be created; set autoCreate = false");
    }
}

pub(super) fn shares(spec: &MachineSpec, findings: &mut Findings) -> Vec<CheckedShare> {
    let mut shares = Vec::new();
    for (index, share) in spec.shares.iter().enumerate() {
        let option = |name: &str| format!("shares[{index}].{name}");
        let tag_bytes = match share.proto {
            ShareProtocol::NineP => MAX_9P_TAG_BYTES,
            ShareProtocol::Virtiofs => MAX_VIRTIOFS_TAG_BYTES,
        };
        findings.require(option("tag"), names::share_tag(&share.tag, tag_bytes));
        findings.require(option("source"), names::path(&share.source));
        let translates = |argument: &String| argument.starts_with("--translate-");
        let translated = share.extra_args.iter().chain(&spec.virtiofsd.extra_args).any(translates);
        if share.proto == ShareProtocol::Virtiofs && share.posix_acl && translated {
            findings.problem(option("posixAcl"), "is incompatible with translated user and group ids; set it to false");
        }
        let holds_overlay = overlay_lies_on(spec, &share.mount_point);
        if holds_overlay && share.proto == ShareProtocol::NineP {
            let reason = "is on a 9p share, where the kernel's overlay can neither rename nor delete; \
                          use a volume or a virtiofs share";
            findings.problem("writableStoreOverlay", reason);
        }
        if holds_overlay && share.read_only {
            findings.problem("writableStoreOverlay", format!("is on the read-only share `{}`", share.tag));
        }
        if let Some(closure) = &share.closure {
            findings.require(option("closure"), names::path(closure));
            check_view(spec, index, findings);
        }
        let control = HostPath::new(format!("{}-{}.paths", spec.name, share.tag));
        shares.push(CheckedShare { share: share.clone(), socket: share_socket(spec, share), control, holds_overlay });
    }
    let tags =
        spec.shares.iter().enumerate().map(|(index, share)| (format!("shares[{index}].tag"), share.tag.as_str()));
    findings.require_distinct("tag", tags);
    shares
}

/// What would let a guest, or a daemon that a guest has taken over, reach more than the closure.
fn check_view(spec: &MachineSpec, index: usize, findings: &mut Findings) {
    let share = &spec.shares[index];
    let option = |name: &str| format!("shares[{index}].{name}");
    if !share.read_only {
        findings.problem(option("closure"), "needs readOnly: the guest must not write to the view of the store");
    }
    if share.proto != ShareProtocol::Virtiofs {
        return;
    }
    if spec.virtiofsd.inode_file_handles == InodeFileHandles::Mandatory {
        let reason = format!(
            "\"mandatory\" lets virtiofsd open every file of the host's file system, but the share `{}` shows only a \
             closure; use \"prefer\", with which only its other shares use file handles",
            share.tag
        );
        findings.problem("virtiofsd.inodeFileHandles", reason);
    }
    for (option, arguments) in
        [("virtiofsd.extraArgs".to_owned(), &spec.virtiofsd.extra_args), (option("extraArgs"), &share.extra_args)]
    {
        let opening = arguments.iter().find(|argument| opens_view(argument));
        if let Some(argument) = opening {
            let reason = format!(
                "`{argument}` changes what virtiofsd can reach, but the share `{}` shows only a closure; remove it",
                share.tag
            );
            findings.problem(option, reason);
        }
    }
}

/// Whether an argument of virtiofsd is an option that decides which files it can reach: its directory, its sandbox, more
/// capabilities, and `-o`, which can set all of these.
fn opens_view(argument: &str) -> bool {
    let (name, value) = argument.split_once('=').unwrap_or((argument, ""));
    match name {
        "--modcaps" => !value.split(':').all(|change| change.starts_with('-')),
        "--sandbox" => value != "namespace",
        "--shared-dir" | "--inode-file-handles" => true,
        _ => argument.starts_with("-o"),
    }
}

fn share_socket(spec: &MachineSpec, share: &Share) -> HostPath {
    share.socket.clone().unwrap_or_else(|| HostPath::new(format!("{}-virtiofs-{}.sock", spec.name, share.tag)))
}

/// Whether the overlay's directory is on this mount point, that is, whether it is the deepest mount point above it.
fn overlay_lies_on(spec: &MachineSpec, mount_point: &str) -> bool {
    let Some(overlay) = &spec.writable_store_overlay else { return false };
    let volumes = spec.volumes.iter().filter_map(|volume| volume.mount_point.as_deref());
    let shares = spec.shares.iter().map(|share| share.mount_point.as_str());
    let deepest = volumes.chain(shares).filter(|point| lies_below(overlay, point)).max_by_key(|point| point.len());
    deepest == Some(mount_point)
}

fn lies_below(path: &str, directory: &str) -> bool {
    let directory = directory.trim_end_matches('/');
    path.strip_prefix(directory).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}

pub(super) fn mount_points(spec: &MachineSpec, findings: &mut Findings) {
    let volumes = spec.volumes.iter().enumerate();
    let volumes =
        volumes.filter_map(|(index, volume)| Some((format!("volumes[{index}]"), volume.mount_point.as_deref()?)));
    let shares = spec.shares.iter().enumerate();
    let shares = shares.map(|(index, share)| (format!("shares[{index}]"), share.mount_point.as_str()));
    let points: Vec<_> = volumes.chain(shares).map(|(owner, point)| (format!("{owner}.mountPoint"), point)).collect();
    for (option, point) in &points {
        findings.require(option, names::guest_path(point));
    }
    findings.require_distinct("mount point", points.into_iter());
    if let Some(overlay) = &spec.writable_store_overlay {
        findings.require("writableStoreOverlay", names::guest_path(overlay));
    }
    for (index, volume) in spec.volumes.iter().enumerate() {
        let holds_overlay = volume.mount_point.as_deref().is_some_and(|point| overlay_lies_on(spec, point));
        if holds_overlay && volume.read_only {
            findings.problem("writableStoreOverlay", format!("is on volumes[{index}], which is read-only"));
        }
    }
}
