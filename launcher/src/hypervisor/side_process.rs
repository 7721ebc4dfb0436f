//! The commands of the processes beside a hypervisor: a virtiofs daemon per share, passt for user networking, crosvm's
//! graphics card, and the server of a store disk without an image.

use super::description;
use super::launch_builder::LaunchBuilder;
use crate::launch::{ClosureView, OnExit, SideProcess, SideProcessKind, VIEW};
use crate::path::HostPath;
use crate::spec::{ForwardFrom, ForwardPort, InodeFileHandles};
use crate::validate::{CheckedGraphics, CheckedShare, CheckedSpec, LiveStore};

/// Which side provides the tag of a virtiofs share to the guest.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum TagProvider {
    /// The hypervisor. qemu 7.1 to 8.0 crashes if the daemon also provides it.
    Hypervisor,
    /// The daemon: crosvm requests the tag from it, and a daemon without one ends at the guest's first read.
    Daemon,
}

/// Returns the virtiofs daemon of a share.
pub(super) fn virtiofsd(builder: &LaunchBuilder<'_>, checked: &CheckedShare, tag_provider: TagProvider) -> SideProcess {
    let (settings, share) = (&builder.spec.virtiofsd, &checked.share);
    // With a closure, it runs where only the view is.
    let directory = if share.closure.is_some() { VIEW } else { share.source.as_str() };
    // A file handle reaches every file of the file system, also those that the view does not show.
    let file_handles = if share.closure.is_some() { InodeFileHandles::Never } else { settings.inode_file_handles };
    let mut arguments = vec![
        format!("--socket-path={}", checked.socket),
        format!("--shared-dir={directory}"),
        format!("--cache={}", share.cache.as_str()),
        format!("--inode-file-handles={}", file_handles.as_str()),
    ];
    if let Some(group) = &settings.group {
        arguments.push(format!("--socket-group={group}"));
    }
    if let Some(threads) = settings.thread_pool_size.or(builder.facts.processors) {
        arguments.push(format!("--thread-pool-size={threads}"));
    }
    if share.posix_acl || checked.holds_overlay {
        arguments.push("--xattr".to_owned());
    }
    if share.posix_acl {
        arguments.push("--posix-acl".to_owned());
    }
    if checked.holds_overlay {
        // The overlay stores attributes in the namespace `trusted`, which only root of the host can write. They are
        // mapped to ordinary attributes on the host.
        arguments.push("--xattrmap=:map::user.virtiofs.:".to_owned());
    }
    if share.read_only {
        arguments.push("--readonly".to_owned());
    }
    if share.closure.is_some() {
        // Each path of the view is a mount. The guest would mount each one too, which takes minutes at shutdown, and
        // could not have the share below an overlay.
        arguments.push("--no-announce-submounts".to_owned());
    }
    if tag_provider == TagProvider::Daemon {
        arguments.push(format!("--tag={}", share.tag));
    }
    arguments.extend(settings.extra_args.iter().chain(&share.extra_args).cloned());
    SideProcess {
        kind: SideProcessKind::Virtiofsd,
        name: share.tag.clone(),
        program: settings.program.clone().unwrap_or_else(|| HostPath::from("virtiofsd")),
        arguments,
        socket: checked.socket.clone(),
        view: closure_view(checked, None),
        on_exit: OnExit::Restart,
    }
}

fn closure_view(checked: &CheckedShare, descriptor: Option<i32>) -> Option<ClosureView> {
    let (source, control) = (checked.share.source.clone(), checked.control.clone());
    checked.share.closure.clone().map(|closure| ClosureView { source, closure, control, descriptor })
}

/// Returns the process that keeps the view of a closure-only share which the hypervisor serves, if it is one.
pub(super) fn share_view(checked: &CheckedShare, descriptor: i32) -> Option<SideProcess> {
    let view = closure_view(checked, Some(descriptor))?;
    Some(SideProcess {
        kind: SideProcessKind::ShareView,
        name: checked.share.tag.clone(),
        program: HostPath::from("microvm"),
        arguments: Vec::new(),
        socket: view.control.clone(),
        view: Some(view),
        on_exit: OnExit::Report,
    })
}

/// Returns passt, which provides user networking to a hypervisor that supports only vhost-user.
pub(super) fn passt(interface: &str, socket: &HostPath, ports: &[ForwardPort]) -> SideProcess {
    let mut arguments = vec![
        "--foreground".to_owned(),
        "--vhost-user".to_owned(),
        "--one-off".to_owned(),
        format!("--socket={socket}"),
    ];
    for forward in ports.iter().filter(|forward| forward.from == ForwardFrom::Host) {
        let address =
            if forward.host.address.is_empty() { String::new() } else { format!("{}/", forward.host.address) };
        let ports = format!("{address}{}:{}", forward.host.port, forward.guest.port);
        arguments.push(format!("--{}-ports={ports}", forward.proto.as_str()));
    }
    SideProcess {
        kind: SideProcessKind::Passt,
        name: interface.to_owned(),
        program: HostPath::from("passt"),
        arguments,
        socket: socket.clone(),
        view: None,
        on_exit: OnExit::Restart,
    }
}

/// Returns crosvm's graphics card, which shows the guest's screen on a Wayland desktop.
pub(super) fn crosvm_gpu(
    spec: &CheckedSpec,
    graphics: &CheckedGraphics,
    wayland_socket: &HostPath,
    parameters: &serde_json::Value,
) -> SideProcess {
    let words = ["--no-syslog", "--log-level", "warn", "device", "gpu"];
    let mut arguments = words.map(str::to_owned).to_vec();
    for (option, value) in [
        ("--socket-path", graphics.socket.to_string()),
        ("--wayland-sock", wayland_socket.to_string()),
        ("--params", parameters.to_string()),
    ] {
        arguments.extend([option.to_owned(), value]);
    }
    let program = graphics.program.clone().or_else(|| spec.sections.crosvm.program.clone());
    SideProcess {
        kind: SideProcessKind::CrosvmGpu,
        name: spec.name.clone(),
        program: program.unwrap_or_else(|| HostPath::from("crosvm")),
        arguments,
        socket: graphics.socket.clone(),
        view: None,
        on_exit: OnExit::Restart,
    }
}

/// The image builder, which serves the store disk while the machine runs.
pub(super) fn live_store(builder: &LaunchBuilder<'_>, live: &LiveStore, plan: &HostPath, queues: u32) -> SideProcess {
    let arguments = ["serve", "--plan", plan.as_str(), "--socket", live.socket.as_str(), "--queues"];
    let mut arguments = arguments.map(str::to_owned).to_vec();
    arguments.push(queues.to_string());
    let reconnects = description(builder.hypervisor).reconnects_disks;
    let on_exit = if reconnects { OnExit::Restart } else { OnExit::Report };
    SideProcess {
        kind: SideProcessKind::StoreDisk,
        name: builder.spec.name.clone(),
        program: live.builder.clone(),
        arguments,
        socket: live.socket.clone(),
        view: None,
        on_exit,
    }
}
