//! Validation of a machine's Unix sockets: the lengths of their paths, and that they differ.

use super::checked::{CheckedGraphics, CheckedShare, CheckedVsock};
use super::findings::Findings;
use super::names;
use super::storage::plain;
use crate::path::HostPath;
use crate::spec::{MachineSpec, ShareProtocol};

/// The parts of a machine that have sockets.
pub(super) struct Sockets<'checked> {
    pub(super) shares: &'checked [CheckedShare],
    pub(super) vsock: Option<&'checked CheckedVsock>,
    pub(super) graphics: Option<&'checked CheckedGraphics>,
}

/// Checks all sockets, and returns the control socket.
pub(super) fn control_socket(spec: &MachineSpec, own: &Sockets<'_>, findings: &mut Findings) -> HostPath {
    let control = spec.socket.clone().unwrap_or_else(|| HostPath::new(format!("{}.sock", spec.name)));
    let mut sockets = vec![("socket".to_owned(), control.clone())];
    if let Some(console) = &spec.console_socket {
        sockets.push(("consoleSocket".to_owned(), console.clone()));
    }
    if let Some(vsock) = own.vsock {
        // The guest's notification arrives at a socket whose name contains the port.
        let longest = vsock.notify_port.map(|port| HostPath::new(format!("{}_{port}", vsock.socket)));
        sockets.push(("vsock.socket".to_owned(), longest.unwrap_or_else(|| vsock.socket.clone())));
    }
    for (index, share) in own.shares.iter().enumerate() {
        if share.share.proto == ShareProtocol::Virtiofs {
            sockets.push((format!("shares[{index}].socket"), share.socket.clone()));
        }
    }
    if spec.store_disk.as_ref().is_some_and(|disk| disk.live) {
        sockets.push(("storeDisk.live".to_owned(), super::storage::live_socket(spec)));
    }
    if let Some(graphics) = own.graphics {
        sockets.push(("graphics.socket".to_owned(), graphics.socket.clone()));
    }
    for (option, socket) in &sockets {
        findings.require(option, names::socket_path(socket));
    }
    findings.require_distinct("socket", sockets.iter().map(|(option, socket)| (option.clone(), plain(socket))));
    control
}
