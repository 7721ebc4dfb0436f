//! Explaining a launch in plain English: the disks as the guest names them, mounts, requirements, and the exact
//! command.

use crate::launch::{Access, FileToWrite, GuestDisk, KvmUse, Launch, NotificationSocket, VolumeNeed, VsockHostEnd};
use crate::refusal::Refusals;
use crate::shell::quote;
use crate::spec::Hypervisor;
use crate::validate::{CheckedSpec, Disk, DiskBackend, DiskRole, InterfaceKind};
use std::fmt::Write as _;

/// The outcome of the same machine on each other hypervisor.
pub type OtherHypervisors = Vec<(Hypervisor, Result<(), Refusals>)>;

/// Returns the explanation of a launch.
pub fn explain(spec: &CheckedSpec, launch: &Launch, others: &OtherHypervisors) -> String {
    let mut text = Text::default();
    text.line(&format!("{} on {}, in {}", launch.name, launch.hypervisor, launch.working_directory));
    for warning in &launch.warnings {
        text.line(&format!("warning: {warning}"));
    }
    text.section("Disks, in guest order", &disks(launch));
    text.section("Mounts", &mounts(spec, launch));
    text.section("Store", &store_ways(spec));
    text.section("Network", &network(spec));
    text.section("Reachable at", &endpoints(launch));
    text.section("Must exist before the start", &required(launch));
    text.section("Created before the start", &created(launch));
    for file in &launch.files {
        text.section(&format!("Writes {}", file.path), &file_lines(file));
    }
    text.section("Command", &[command(launch)]);
    text.section("Other hypervisors", &other_hypervisors(others));
    text.text
}

/// Returns the command in a form that can be pasted into a shell.
pub fn command(launch: &Launch) -> String {
    let mut lines = vec![format!("cd {}", quote(launch.working_directory.as_str()))];
    for macvtap in &launch.needs.macvtaps {
        for descriptor in &macvtap.descriptors {
            lines.push(format!("exec {descriptor}<>/dev/tap$(cat /sys/class/net/{}/ifindex)", macvtap.name));
        }
    }
    let environment = launch.environment.iter().map(|(name, value)| format!("{name}={}", quote(value)));
    let words = std::iter::once(launch.program.as_str()).chain(launch.arguments.iter().map(String::as_str)).map(quote);
    lines.push(environment.chain(words).collect::<Vec<_>>().join(" "));
    lines.join("\n")
}

#[derive(Default)]
struct Text {
    text: String,
}

impl Text {
    fn line(&mut self, line: &str) {
        self.text.push_str(line);
        self.text.push('\n');
    }

    fn section(&mut self, title: &str, paragraphs: &[String]) {
        if paragraphs.is_empty() {
            return;
        }
        self.line(&format!("\n{title}:"));
        for paragraph in paragraphs {
            for line in paragraph.lines() {
                self.line(&format!("  {line}"));
            }
        }
    }
}

fn disks(launch: &Launch) -> Vec<String> {
    let mut disks: Vec<_> = launch.disks.iter().collect();
    disks.sort_by_key(|disk| (disk.device.len(), &disk.device));
    let lines = disks.into_iter().map(|disk| {
        let mut line = format!("{}  {}", disk.device, if disk.read_only { "read-only " } else { "read-write" });
        let _ = write!(line, "  {}", disk.image);
        if let Some(serial) = &disk.serial {
            let _ = write!(line, "  {}", by_serial(serial));
        }
        line
    });
    lines.collect()
}

/// Returns the mounts that the guest's NixOS module makes (`nixos-modules/microvm/mounts.nix`).
fn mounts(spec: &CheckedSpec, launch: &Launch) -> Vec<String> {
    let mut lines = Vec::new();
    // With an overlay, the store is mounted below it.
    let store = if spec.writable_store_overlay.is_some() { "/nix/.ro-store" } else { "/nix/store" };
    let mut has_store_disk = false;
    let mut volumes = spec.volumes.iter();
    for (disk, guest_disk) in spec.disks.iter().zip(&launch.disks) {
        if disk.role == DiskRole::Store {
            has_store_disk = true;
            let device = mount_device(guest_disk, None);
            // nixos-modules/microvm/sealed-store.nix
            let device = match &spec.sealed_image {
                Some(_) => format!("/dev/mapper/nix-store, {device} sealed: the guest checks each block that it reads"),
                None => device,
            };
            let built = if spec.store_disk.is_some() { ", an image that this host builds from its plan" } else { "" };
            lines.push(format!("{store}  store disk  {device}{}{built}", describe_transport(disk)));
        } else if let Some(volume) = volumes.next()
            && let Some(mount_point) = &disk.mount_point
        {
            let device = mount_device(guest_disk, volume.label.as_deref());
            lines.push(format!("{mount_point}  {}  {device}", volume.fs_type));
        }
    }
    for checked in &spec.shares {
        let share = &checked.share;
        let rights = if share.read_only { ", read-only" } else { "" };
        let (point, protocol) = (&share.mount_point, share.proto.as_str());
        let part = share.closure.as_ref().map_or_else(String::new, |closure| format!(", only the paths in {closure}"));
        lines.push(format!("{point}  {protocol}  tag {}, from {}{rights}{part}", share.tag, share.source));
    }
    let mut shares = spec.shares.iter().map(|checked| &checked.share);
    if !has_store_disk
        && let Some(share) = shares.find(|share| share.source.as_str() == "/nix/store")
        && share.mount_point != store
    {
        lines.push(format!("{store}  bind  {}, read-only", share.mount_point));
    }
    if let Some(overlay) = &spec.writable_store_overlay {
        lines.push(format!("/nix/store  overlay  writable layer in {overlay}"));
    }
    lines
}

/// Returns how the store reaches the guest, each with the fields of the spec and the NixOS options that chose it
/// (`docs/store.md`).
fn store_ways(spec: &CheckedSpec) -> Vec<String> {
    let mut lines = Vec::new();
    if let Some(disk) = spec.disks.iter().find(|disk| disk.role == DiskRole::Store) {
        let way = match (&disk.backend, &spec.store_disk) {
            (DiskBackend::Live(_), _) => {
                "live, without an image, because storeDisk.live is true (microvm.storeDiskBuild = \"live\")"
            }
            (_, Some(_)) => {
                "an image built by this host, because storeDisk.plan is set (microvm.storeDiskBuild = \"host\")"
            }
            (_, None) => {
                "an existing image, because storeDisk.plan is not set (microvm.storeDiskBuild = \"derivation\": Nix has built it)"
            }
        };
        lines.push(way.to_owned());
        if matches!(disk.backend, DiskBackend::Pmem) {
            lines.push(
                "mapped as persistent memory, because storeDisk.transport is pmem (microvm.storeDiskTransport)"
                    .to_owned(),
            );
        }
        if spec.sealed_image.is_some() {
            lines.push("sealed with dm-verity, because storeDisk.verity is true (microvm.storeDiskVerity)".to_owned());
        }
    }
    for share in spec.shares.iter().map(|checked| &checked.share).filter(|share| share.source.as_str() == "/nix/store")
    {
        lines.push(match (&share.closure, lines.is_empty()) {
            (Some(_), _) => {
                format!("share {}, limited to the closure, because its closure is set (closureOnly = true)", share.tag)
            }
            (None, true) => {
                format!(
                    "share {} of the whole store, because there is no storeDisk (microvm.storeOnDisk = false)",
                    share.tag
                )
            }
            (None, false) => {
                format!("also share {} of the whole store, because its source is /nix/store", share.tag)
            }
        });
    }
    lines
}

/// Returns how the store reaches the guest if it is not a disk image, and what that means.
fn describe_transport(disk: &Disk) -> &'static str {
    match disk.backend {
        DiskBackend::Image => "",
        DiskBackend::Live(_) => ", served from the host's store while the machine runs; there is no image",
        DiskBackend::Pmem => ", as persistent memory; the host and its guests share the image's pages in memory",
    }
}

/// Returns the device by which a disk is mounted: by its file system's label, its serial number, or its position.
fn mount_device(disk: &GuestDisk, label: Option<&str>) -> String {
    match (label, &disk.serial) {
        (Some(label), _) => format!("/dev/disk/by-label/{label}"),
        (None, Some(serial)) => by_serial(serial),
        (None, None) => disk.device.clone(),
    }
}

fn by_serial(serial: &str) -> String {
    format!("/dev/disk/by-id/virtio-{serial}")
}

fn network(spec: &CheckedSpec) -> Vec<String> {
    let mut lines = Vec::new();
    for interface in &spec.interfaces {
        let how = match &interface.kind {
            InterfaceKind::User => "user networking".to_owned(),
            InterfaceKind::Tap { vhost: false } => format!("tap {}", interface.id),
            InterfaceKind::Tap { vhost: true } => format!("tap {} with vhost-net", interface.id),
            InterfaceKind::Macvtap { link, mode } => format!("macvtap {} on {link}, {}", interface.id, mode.as_str()),
            InterfaceKind::Bridge { bridge } => format!("bridge {bridge}"),
        };
        lines.push(format!("{}  {how}", interface.mac));
    }
    for forward in &spec.forward_ports {
        let arrow = match forward.from {
            crate::spec::ForwardFrom::Host => "->",
            crate::spec::ForwardFrom::Guest => "<-",
        };
        let end = |address: &str, port: u16| format!("{}:{port}", if address.is_empty() { "*" } else { address });
        lines.push(format!(
            "{} host {} {arrow} guest {}",
            forward.proto.as_str(),
            end(&forward.host.address, forward.host.port),
            end(&forward.guest.address, forward.guest.port)
        ));
    }
    lines
}

fn endpoints(launch: &Launch) -> Vec<String> {
    let mut lines = Vec::new();
    if let Some(control) = &launch.control {
        lines.push(format!("control socket {}", control.path));
    }
    if let Some(console) = &launch.console.socket {
        lines.push(format!("console socket {console}"));
    }
    if let Some(vsock) = &launch.vsock {
        let host_end = match &vsock.host_end {
            VsockHostEnd::Kernel => "by AF_VSOCK".to_owned(),
            VsockHostEnd::UnixSocket(path) => format!("by {path}"),
        };
        lines.push(format!("vsock address {} {host_end}", vsock.cid));
    }
    if let Some(notification) = &launch.notification {
        let listener = match &notification.listen {
            NotificationSocket::Vsock { .. } => format!("vsock port {}", notification.port),
            NotificationSocket::Unix(path) => path.to_string(),
        };
        lines.push(format!("the guest sends READY=1 to {listener}"));
    }
    lines
}

fn required(launch: &Launch) -> Vec<String> {
    let needs = &launch.needs;
    let mut lines = vec![format!("{}  the hypervisor", launch.program)];
    for presence in &needs.present {
        lines.push(format!("{}  {}, to {}", presence.path, presence.option, purpose(presence.access)));
    }
    for volume in needs.volumes.iter().filter(|volume| volume.creation.is_none()) {
        lines.push(format!("{}  volume, to {}", volume.image, purpose(volume.access)));
    }
    for node in &needs.device_nodes {
        lines.push(format!("{}  {}, to read and write; {}", node.path, node.option, node.remedy));
    }
    for device in &needs.devices {
        lines.push(format!("{} device {}  free for the guest", device.bus.as_str(), device.path));
    }
    for bridge in &needs.bridges {
        lines.push(format!("bridge {}  allowed in /etc/qemu/bridge.conf", bridge.bridge));
    }
    if needs.huge_pages_mib > 0 {
        lines.push(format!("{} MiB of huge pages", needs.huge_pages_mib));
    }
    if let Some(directory) = &needs.hugetlbfs {
        lines.push(format!("{directory}  hugetlbfs, the file system of huge pages"));
    }
    if needs.kvm == KvmUse::NotUsed {
        lines.push("no KVM: the machine is emulated".to_owned());
    }
    lines
}

fn purpose(access: Access) -> &'static str {
    match access {
        Access::Read => "read",
        Access::ReadWrite => "read and write",
        Access::Execute => "run",
        Access::ReadDirectory => "share read-only",
        Access::WriteDirectory => "share",
    }
}

fn created(launch: &Launch) -> Vec<String> {
    let needs = &launch.needs;
    let mut lines = Vec::new();
    for command in &needs.pre_start {
        lines.push(format!("run {}", command.iter().map(|word| quote(word)).collect::<Vec<_>>().join(" ")));
    }
    if let Some(disk) = &needs.store_disk {
        lines.push(format!("store disk {} by {} from {}", disk.image, disk.builder, disk.plan));
    }
    lines.extend(needs.volumes.iter().filter_map(describe_creation));
    for tap in &needs.taps {
        let queues = if tap.multi_queue { " multi_queue" } else { "" };
        let headers = if tap.vnet_hdr { " vnet_hdr" } else { "" };
        let owner = tap.owner.as_deref().unwrap_or("$USER");
        lines.push(format!(
            "tap, if it does not exist: ip tuntap add {} mode tap user {owner}{headers}{queues}",
            quote(&tap.name)
        ));
    }
    for macvtap in &needs.macvtaps {
        lines.push(format!(
            "macvtap, if it does not exist: ip link add link {} name {} address {} type macvtap mode {}",
            quote(&macvtap.link),
            quote(&macvtap.name),
            macvtap.mac,
            macvtap.mode.as_str()
        ));
    }
    for process in &needs.processes {
        let program = if process.view.is_some() { "microvm" } else { process.program.as_str() };
        let arguments = process.all_arguments();
        let words = std::iter::once(program).chain(arguments.iter().map(String::as_str));
        lines.push(format!("side process: {}", words.map(quote).collect::<Vec<_>>().join(" ")));
    }
    if let Some(initrd) = &needs.initrd {
        let names: Vec<_> = initrd.credentials.keys().map(String::as_str).collect();
        lines.push(format!(
            "descriptor {}: {} and an archive of /{} with {}, in memory only",
            initrd.descriptor,
            initrd.base,
            initrd.directory,
            names.join(", ")
        ));
    }
    if let Some(script) = &needs.extra_args_script {
        lines.push(format!("add what {script} prints to the arguments"));
    }
    lines
}

fn describe_creation(volume: &VolumeNeed) -> Option<String> {
    let creation = volume.creation.as_ref()?;
    let label = volume.label.as_ref().map(|label| format!(", label {label}")).unwrap_or_default();
    Some(format!(
        "volume {}, if it does not exist: {} MiB of {}{label}",
        volume.image, creation.size_mib, volume.fs_type
    ))
}

fn file_lines(file: &FileToWrite) -> Vec<String> {
    file.content.lines().map(str::to_owned).collect()
}

fn other_hypervisors(others: &OtherHypervisors) -> Vec<String> {
    let mut lines = Vec::new();
    for (hypervisor, outcome) in others {
        match outcome {
            Ok(()) => lines.push(format!("{hypervisor} could run it unchanged")),
            Err(refusals) => {
                let reasons = refusals.refusals.iter();
                lines.extend(reasons.map(|refusal| format!("{hypervisor} {} ({})", refusal.reason, refusal.option)));
            }
        }
    }
    lines
}
