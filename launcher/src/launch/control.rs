//! How to control a running machine: its control socket, shutdown, console and vsock.

use crate::path::HostPath;
use serde::{Deserialize, Serialize};

/// The socket on which a hypervisor receives requests.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ControlSocket {
    /// How requests and responses are encoded.
    pub protocol: ControlProtocol,
    /// The path of the Unix socket.
    pub path: HostPath,
}

/// The protocol of a control socket. It also determines how to check that the hypervisor runs: `query-status`,
/// `vm.info`, `GET /`, a successful connection, or `VMSTATE`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum ControlProtocol {
    /// qemu: JSON lines on a stream.
    Qmp,
    /// cloud-hypervisor: HTTP below `/api/v1/`.
    CloudHypervisorHttp,
    /// firecracker: HTTP.
    FirecrackerHttp,
    /// crosvm: one JSON message in each direction, on a SOCK_SEQPACKET socket.
    CrosvmSeqpacket,
    /// kvmtool: binary messages on a stream.
    Kvmtool,
}

/// How to stop a machine.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Shutdown {
    /// The requests to the guest to shut down, tried in this order with pauses; empty if there are none.
    pub graceful: Vec<GracefulStep>,
    /// How to end the hypervisor if the guest does not shut down.
    pub forced: ForcedStop,
}

/// A request to the guest to shut down.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum GracefulStep {
    /// QMP `system_powerdown`: the ACPI power button.
    QmpSystemPowerdown,
    /// QMP `input-send-event` with Ctrl-Alt-Delete.
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
    /// The HTTP method, as in `PUT`.
    pub method: String,
    /// The path of the resource, as in `/api/v1/vm.shutdown`.
    pub path: String,
    /// The JSON body, if any.
    pub body: Option<serde_json::Value>,
}

/// How to end a hypervisor immediately.
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

/// The guest's console.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Console {
    /// The guest's device that is connected to the hypervisor's stdin and stdout; null if there is none.
    pub guest_device: Option<String>,
    /// The socket on which the launcher serves the console with scrollback; null leaves it on the terminal.
    pub socket: Option<HostPath>,
}

/// The guest's vsock device.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct VsockEnd {
    /// The guest's address.
    pub cid: u32,
    /// The host's end.
    pub host_end: VsockHostEnd,
}

/// The host's end of a guest's vsock.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum VsockHostEnd {
    /// AF_VSOCK sockets.
    Kernel,
    /// A Unix socket. After `CONNECT PORT`, it is connected to that port of the guest. The guest's connections to port
    /// P of the host arrive at this path followed by `_P`.
    UnixSocket(HostPath),
}

/// How the guest reports that it has booted.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct GuestNotification {
    /// The port of the host to which the guest's systemd sends `READY=1`.
    pub port: u32,
    /// The socket on which the launcher listens before the start.
    pub listen: NotificationSocket,
}

/// The socket on which the launcher listens for the guest.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum NotificationSocket {
    /// The port of an AF_VSOCK socket that accepts only connections from this address.
    Vsock {
        /// The guest's address.
        cid: u32,
    },
    /// A Unix stream socket.
    Unix(HostPath),
}

/// A balloon, which is resized over the control socket.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct BalloonDevice {
    /// The machine's memory in MiB when the balloon is empty.
    pub mem_mib: u64,
}
