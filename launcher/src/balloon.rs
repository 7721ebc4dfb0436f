//! The balloon of a running machine: the memory that the guest has returned to the host.

use crate::control::{ControlError, Controller};
use crate::launch::{ControlProtocol, HttpRequest, Launch};
use serde_json::{Value, json};

const MIB: u64 = 1 << 20;

/// Why a balloon cannot be read or resized.
#[derive(Debug, thiserror::Error)]
pub enum BalloonError {
    /// The machine has no balloon.
    #[error("{0} has no balloon: set `balloon = true` in the machine spec and restart it")]
    None(String),
    /// The machine has no control socket.
    #[error("{0} has no control socket")]
    NoControl(String),
    /// The requested size exceeds the memory.
    #[error("a balloon of {size_mib} MiB does not fit into the {mem_mib} MiB of {name}")]
    TooLarge {
        /// The machine.
        name: String,
        /// The requested size.
        size_mib: u64,
        /// The machine's memory.
        mem_mib: u64,
    },
    /// The hypervisor does not report the size.
    #[error("{0} does not report the size of its balloon")]
    SizeNotReported(&'static str),
    /// The hypervisor refuses the request, or does not respond.
    #[error(transparent)]
    Control(#[from] ControlError),
}

/// Sets the target size of the balloon. The guest decides when and how far it follows.
///
/// # Errors
/// Returns [`BalloonError`].
pub fn resize(launch: &Launch, size_mib: u64) -> Result<(), BalloonError> {
    let (protocol, controller, mem_mib) = find_balloon(launch)?;
    if size_mib > mem_mib {
        return Err(BalloonError::TooLarge { name: launch.name.clone(), size_mib, mem_mib });
    }
    let put = |method: &str, path: &str, body: Value| HttpRequest {
        method: method.to_owned(),
        path: path.to_owned(),
        body: Some(body),
    };
    match protocol {
        // qemu's value is the memory that the guest keeps.
        ControlProtocol::Qmp => controller.qmp("balloon", json!({"value": (mem_mib - size_mib) * MIB})).map(drop),
        ControlProtocol::CloudHypervisorHttp => {
            controller.http(&put("PUT", "/api/v1/vm.resize", json!({"desired_balloon": size_mib * MIB}))).map(drop)
        }
        ControlProtocol::FirecrackerHttp => {
            controller.http(&put("PATCH", "/balloon", json!({"amount_mib": size_mib}))).map(drop)
        }
        ControlProtocol::CrosvmSeqpacket => {
            let adjust = json!({"Adjust": {"num_bytes": size_mib * MIB, "wait_for_success": false}});
            controller.crosvm(&json!({"BalloonCommand": adjust})).map(drop)
        }
        ControlProtocol::Kvmtool => return Err(BalloonError::SizeNotReported("kvmtool")),
    }?;
    Ok(())
}

/// Changes the target size of kvmtool's balloon. kvmtool supports only changes, and never reports the size.
///
/// # Errors
/// Returns [`BalloonError`].
pub fn change(launch: &Launch, change_mib: i32) -> Result<(), BalloonError> {
    let (_, controller, _) = find_balloon(launch)?;
    Ok(controller.kvmtool_balloon(change_mib)?)
}

/// Whether the balloon supports only changes.
pub fn resizes_in_steps(launch: &Launch) -> bool {
    launch.control.as_ref().is_some_and(|socket| socket.protocol == ControlProtocol::Kvmtool)
}

/// Returns the size of the balloon in MiB, as the hypervisor reports it.
///
/// # Errors
/// Returns [`BalloonError`].
pub fn size_mib(launch: &Launch) -> Result<u64, BalloonError> {
    let (protocol, controller, mem_mib) = find_balloon(launch)?;
    let number = |answer: &Value, pointer: &str, hypervisor| {
        answer.pointer(pointer).and_then(Value::as_u64).ok_or(BalloonError::SizeNotReported(hypervisor))
    };
    match protocol {
        ControlProtocol::Qmp => {
            let left = number(&controller.qmp("query-balloon", Value::Null)?, "/actual", "qemu")?;
            Ok(mem_mib.saturating_sub(left / MIB))
        }
        ControlProtocol::CloudHypervisorHttp => {
            let left = number(&controller.get("/api/v1/vm.info")?, "/memory_actual_size", "cloud-hypervisor")?;
            Ok(mem_mib.saturating_sub(left / MIB))
        }
        ControlProtocol::FirecrackerHttp => number(&controller.get("/balloon")?, "/amount_mib", "firecracker"),
        ControlProtocol::CrosvmSeqpacket => {
            let answer = controller.crosvm(&json!({"BalloonCommand": "Stats"}))?;
            Ok(number(&answer, "/BalloonStats/balloon_actual", "crosvm")? / MIB)
        }
        ControlProtocol::Kvmtool => Err(BalloonError::SizeNotReported("kvmtool")),
    }
}

fn find_balloon(launch: &Launch) -> Result<(ControlProtocol, Controller, u64), BalloonError> {
    let balloon = launch.balloon.as_ref().ok_or_else(|| BalloonError::None(launch.name.clone()))?;
    let socket = launch.control.as_ref().ok_or_else(|| BalloonError::NoControl(launch.name.clone()))?;
    Ok((socket.protocol, Controller::new(socket, &launch.working_directory), balloon.mem_mib))
}
