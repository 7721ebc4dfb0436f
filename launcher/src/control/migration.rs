//! Live migration: the machine runs while its memory goes to a hypervisor on another host.
//!
//! qemu writes to, and reads from, an open file, so this program need not copy anything. cloud-hypervisor sends and
//! receives over a Unix socket that it opens itself.

use super::qmp::Session;
use super::{ControlError, Controller};
use crate::launch::ControlProtocol;
use crate::path::HostPath;
use serde_json::{Value, json};
use std::os::fd::BorrowedFd;

/// qemu's limit of 128 MiB/s protects a network that others use; a cluster has one for this.
const MAX_BYTES_PER_SECOND: u64 = 1 << 40;
/// The guest is stopped for the rest of its memory only if that is sent in this time.
const MAX_PAUSE_MILLISECONDS: u32 = 100;
/// The name of the file in qemu's monitor.
const STREAM_NAME: &str = "migration";

/// How far a live migration is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum MigrationStatus {
    /// It is in progress.
    Active,
    /// The guest has left.
    Completed,
    /// It has failed, for this reason. The guest keeps running.
    Failed(String),
}

/// Whether hypervisors with this protocol migrate through one open file.
pub fn migrates_by_file(protocol: ControlProtocol) -> bool {
    protocol == ControlProtocol::Qmp
}

impl Controller {
    /// Starts to send the running machine. The hypervisor closes its copy of the stream at the end.
    ///
    /// # Errors
    /// Returns [`ControlError`]. The machine keeps running then.
    pub fn start_to_send(&self, stream: BorrowedFd<'_>) -> Result<(), ControlError> {
        let mut session = Session::open(self)?;
        let limits = json!({"max-bandwidth": MAX_BYTES_PER_SECOND, "downtime-limit": MAX_PAUSE_MILLISECONDS});
        session.execute("migrate-set-parameters", limits)?;
        // A guest that changes its memory faster than it is sent is slowed down.
        let converge = json!({"capabilities": [{"capability": "auto-converge", "state": true}]});
        session.execute("migrate-set-capabilities", converge)?;
        session.execute_with_file("getfd", json!({"fdname": STREAM_NAME}), stream)?;
        session.execute("migrate", json!({"uri": format!("fd:{STREAM_NAME}")})).map(drop)
    }

    /// Starts to receive a machine, in a hypervisor that was started for that.
    ///
    /// # Errors
    /// Returns [`ControlError`].
    pub fn start_to_receive(&self, stream: BorrowedFd<'_>) -> Result<(), ControlError> {
        let mut session = Session::open(self)?;
        session.execute_with_file("getfd", json!({"fdname": STREAM_NAME}), stream)?;
        session.execute("migrate-incoming", json!({"uri": format!("fd:{STREAM_NAME}")})).map(drop)
    }

    /// Sends the running machine to a Unix socket, and returns when it has left. From version 53 on, cloud-hypervisor
    /// returns when it has begun to send.
    ///
    /// # Errors
    /// Returns [`ControlError`]. The machine keeps running then.
    pub fn send_through(&self, socket: &HostPath) -> Result<(), ControlError> {
        self.put(
            "/api/v1/vm.send-migration",
            Some(json!({"destination_url": format!("unix:{socket}"), "local": false})),
        )
    }

    /// Creates a Unix socket, receives a machine from it, and returns when the guest has arrived.
    ///
    /// # Errors
    /// Returns [`ControlError`].
    pub fn receive_through(&self, socket: &HostPath) -> Result<(), ControlError> {
        self.put("/api/v1/vm.receive-migration", Some(json!({"receiver_url": format!("unix:{socket}")})))
    }

    /// Whether cloud-hypervisor has a machine that it does not send. After it has sent one, it ends.
    ///
    /// # Errors
    /// Returns [`ControlError`].
    pub fn has_machine(&self) -> Result<bool, ControlError> {
        // While it sends the machine, `vm.info` returns what was true before: `VmOwnership` in vmm/src/lib.rs.
        match self.get("/api/v1/vm.counters") {
            Ok(_) => Ok(true),
            Err(ControlError::Refused { .. }) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Returns how far the migration is, on the host that the machine leaves.
    ///
    /// # Errors
    /// Returns [`ControlError`].
    pub fn migration_status(&self) -> Result<MigrationStatus, ControlError> {
        let answer = self.qmp("query-migrate", Value::Null)?;
        let text = |field: &str| answer.get(field).and_then(Value::as_str);
        Ok(match text("status") {
            Some("completed") => MigrationStatus::Completed,
            Some(status @ ("failed" | "cancelled")) => {
                MigrationStatus::Failed(text("error-desc").unwrap_or(status).to_owned())
            }
            _ => MigrationStatus::Active,
        })
    }

    /// Cancels the migration. The machine keeps running where it is.
    ///
    /// # Errors
    /// Returns [`ControlError`].
    pub fn cancel_migration(&self) -> Result<(), ControlError> {
        self.qmp("migrate_cancel", Value::Null).map(drop)
    }
}
