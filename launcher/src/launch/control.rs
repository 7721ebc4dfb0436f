//! How to talk to a machine that runs: its control socket, how it stops, its console, its vsock.

use crate::path::HostPath;
use serde::{Deserialize, Serialize};

/// The socket on which a hypervisor takes commands.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ControlSocket {
    /// What is spoken on it.
    pub protocol: ControlProtocol,
    /// Where it is.
    pub path: HostPath,
}

/// What is spoken on a control socket. It also decides how to find out that the hypervisor runs: `query-status`,
/// `vm.info`, `GET /`, that the socket answers, and its `VMSTATE`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum ControlProtocol {
    /// qemu: JSON lines on a stream.
    Qmp,
    /// cloud-hypervisor: HTTP below `/api/v1/`.
    CloudHypervisorHttp,
    /// firecracker: HTTP.
    FirecrackerHttp,
    /// crosvm: one JSON message each way on a SOCK_SEQPACKET socket.
    CrosvmSeqpacket,
    /// kvmtool: binary messages on a stream.
    Kvmtool,
}

/// How to stop a machine.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Shutdown {
    /// What asks the guest to shut down, tried in this order with time between them; empty if there is nothing.
    pub graceful: Vec<GracefulStep>,
    /// What ends the hypervisor when the guest does not.
    pub forced: ForcedStop,
}

/// A request to the guest to shut down.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum GracefulStep {
    /// QMP `system_powerdown`: the ACPI power button.
    QmpSystemPowerdown,
    /// QMP `input-send-event` with ctrl-alt-delete.
    QmpCtrlAltDelete,
    /// An HTTP request.
    Http(HttpRequest),
    /// crosvm's `Powerbtn` message.
    CrosvmPowerButton,
    /// kvmtool's debug message with a magic system request key, sent over the serial port.
    KvmtoolSysrq(char),
}

/// An HTTP request on a control socket.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct HttpRequest {
    /// The method.
    pub method: String,
    /// The path.
    pub path: String,
    /// The JSON body, if any.
    pub body: Option<serde_json::Value>,
}

/// What ends a hypervisor at once.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum ForcedStop {
    /// QMP `quit`.
    QmpQuit,
    /// An HTTP request.
    Http(HttpRequest),
    /// crosvm's `Exit` message.
    CrosvmExit,
    /// kvmtool's stop message.
    KvmtoolStop,
    /// SIGTERM to the process.
    Terminate,
}

/// Where the guest's console is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Console {
    /// The guest's device behind the hypervisor's standard input and output; null if there is none.
    pub guest_device: Option<String>,
    /// The socket on which the launcher is to serve it with scrollback; null leaves it on the terminal.
    pub socket: Option<HostPath>,
}

/// The guest's vsock device.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct VsockEnd {
    /// The guest's address.
    pub cid: u32,
    /// How the host reaches it.
    pub host_end: VsockHostEnd,
}

/// How the host reaches a guest's vsock.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum VsockHostEnd {
    /// By AF_VSOCK sockets.
    Kernel,
    /// By a unix socket: after `CONNECT PORT` it leads to that port of the guest; the guest's connections to port P
    /// of the host arrive at this path followed by `_P`.
    UnixSocket(HostPath),
}

/// How the guest reports that it has booted.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct GuestNotification {
    /// The port of the host to which the guest's systemd sends `READY=1`.
    pub port: u32,
    /// Where the launcher listens for it, with a stream socket, before the start.
    pub listen: NotificationSocket,
}

/// Where the launcher listens for the guest.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum NotificationSocket {
    /// On the port of an AF_VSOCK socket, taking only connections from this address.
    Vsock {
        /// The guest's address.
        cid: u32,
    },
    /// On a unix socket.
    Unix(HostPath),
}

/// A balloon, resized over the control socket.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct BalloonDevice {
    /// The machine's memory in MiB with an empty balloon.
    pub mem_mib: u64,
}
