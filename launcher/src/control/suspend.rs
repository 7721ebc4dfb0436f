//! Saving a machine's memory and devices, and loading them into a new process.
//!
//! qemu gets an open file, so that it works without any access to the directory. The others create several files in a
//! directory.

use super::qmp::Session;
use super::{ControlError, Controller};
use crate::launch::{ControlProtocol, HttpRequest, SAVED_FILE, SAVED_MEMORY, crosvm_directory};
use crate::path::HostPath;
use nix::fcntl::OFlag;
use nix::sys::stat::fstat;
use nix::unistd::geteuid;
use program::place::{MAX_READ_BYTES, Place};
use program::plural::counted;
use program::user::Identity;
use serde_json::{Value, json};
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::AsFd;
use std::thread;
use std::time::{Duration, Instant};

/// How often a hypervisor is asked whether it has finished.
const POLL_INTERVAL: Duration = Duration::from_millis(5);
/// qemu's limit of 128 MiB/s protects a network; a file needs none.
const MAX_BYTES_PER_SECOND: u64 = 1 << 40;
/// The name of the file in qemu's monitor, and the number of its set of descriptors.
const FILE_NAME: &str = "saved-machine";
const FILE_SET: u32 = 7;
/// How long cloud-hypervisor may take to load the memory of a machine that was resumed.
const LOADING_TIMEOUT: Duration = Duration::from_secs(120);
/// What cloud-hypervisor answers until then: `VmRestoring` in vmm/src/vm.rs.
const LOADING: &str = "on-demand memory restore is still in progress";
/// The file in which cloud-hypervisor saves the configuration of a machine.
const SAVED_CONFIGURATION: &str = "config.json";
/// Only the machine's user may read what is in a machine's memory.
const SAVED_MODE: u32 = 0o600;
/// The migration capability with which each page has a fixed place in the file (since 9.0).
const MAPPED_RAM: &str = "mapped-ram";

/// Where a machine is saved.
#[derive(Debug)]
pub enum SavedMachine {
    /// One file, opened for writing to save the machine, or for reading to load it.
    File(File),
    /// A directory, by its absolute path.
    Directory(HostPath),
}

/// When cloud-hypervisor loads the memory of a machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MemoryLoading {
    /// All of it before the guest continues.
    BeforeTheGuestContinues,
    /// Each page when the guest uses it, with userfaultfd(2). Versions before 52 ignore this.
    OnDemand,
}

/// Whether hypervisors with this protocol save a machine in one open file.
pub fn saves_to_file(protocol: ControlProtocol) -> bool {
    protocol == ControlProtocol::Qmp
}

impl Controller {
    /// Stops the guest's CPUs and devices. Does nothing if they are stopped already.
    ///
    /// # Errors
    /// Returns [`ControlError`].
    pub fn pause(&self) -> Result<(), ControlError> {
        match self.protocol {
            ControlProtocol::Qmp => self.qmp("stop", Value::Null).map(drop),
            ControlProtocol::CloudHypervisorHttp if self.status()? == "Paused" => Ok(()),
            ControlProtocol::CloudHypervisorHttp => self.put("/api/v1/vm.pause", None),
            ControlProtocol::FirecrackerHttp => self.set_firecracker_state("Paused"),
            ControlProtocol::CrosvmSeqpacket => self.crosvm(&json!("SuspendVm")).map(drop),
            ControlProtocol::Kvmtool => Err(unsupported()),
        }
    }

    /// Lets the guest continue. Does nothing if it runs already.
    ///
    /// # Errors
    /// Returns [`ControlError`].
    pub fn unpause(&self) -> Result<(), ControlError> {
        match self.protocol {
            ControlProtocol::Qmp => self.qmp("cont", Value::Null).map(drop),
            ControlProtocol::CloudHypervisorHttp if self.status()? == "Running" => Ok(()),
            ControlProtocol::CloudHypervisorHttp => self.put("/api/v1/vm.resume", None),
            ControlProtocol::FirecrackerHttp => self.set_firecracker_state("Resumed"),
            ControlProtocol::CrosvmSeqpacket => self.crosvm(&json!("ResumeVm")).map(drop),
            ControlProtocol::Kvmtool => Err(unsupported()),
        }
    }

    /// Saves the paused machine.
    ///
    /// # Errors
    /// Returns [`ControlError`]. The machine can continue then.
    pub fn save(&self, saved: &SavedMachine) -> Result<(), ControlError> {
        match (self.protocol, saved) {
            (ControlProtocol::Qmp, SavedMachine::File(file)) => self.migrate_to(file),
            (ControlProtocol::CloudHypervisorHttp, SavedMachine::Directory(directory)) => {
                self.save_when_loaded(&json!({"destination_url": format!("file://{directory}")}))
            }
            (ControlProtocol::FirecrackerHttp, SavedMachine::Directory(directory)) => {
                let body = json!({
                    "snapshot_type": "Full",
                    "snapshot_path": HostPath::from(SAVED_FILE).below(directory),
                    "mem_file_path": HostPath::from(SAVED_MEMORY).below(directory),
                });
                self.put("/snapshot/create", Some(body))
            }
            (ControlProtocol::CrosvmSeqpacket, SavedMachine::Directory(directory)) => {
                let take = json!({
                    "snapshot_path": crosvm_directory(directory), "compress_memory": false, "encrypt": false,
                });
                self.crosvm(&json!({"Snapshot": {"Take": take}})).map(drop)
            }
            _ => Err(unsupported()),
        }
    }

    /// Loads a machine into a hypervisor that was started for that, and lets the guest continue. `renamed` is the
    /// configuration of a clone, if the machine was saved under the names of another one.
    ///
    /// # Errors
    /// Returns [`ControlError`]. The hypervisor must be ended then.
    pub fn load(
        &self,
        saved: &SavedMachine,
        memory: MemoryLoading,
        renamed: Option<&Value>,
    ) -> Result<(), ControlError> {
        match (self.protocol, saved) {
            (ControlProtocol::Qmp, SavedMachine::File(file)) => self.migrate_from(file),
            (ControlProtocol::CloudHypervisorHttp, SavedMachine::Directory(directory)) => {
                if let Some(configuration) = renamed {
                    rename_saved(directory, configuration)?;
                }
                let mut body = json!({"source_url": format!("file://{directory}")});
                if memory == MemoryLoading::OnDemand {
                    body["memory_restore_mode"] = json!("OnDemand");
                }
                self.put("/api/v1/vm.restore", Some(body))?;
                self.unpause()
            }
            (ControlProtocol::FirecrackerHttp, SavedMachine::Directory(directory)) => {
                // The file is mapped, so that only the pages that the guest uses are read.
                let memory = HostPath::from(SAVED_MEMORY).below(directory);
                let mut body = json!({
                    "snapshot_path": HostPath::from(SAVED_FILE).below(directory),
                    "mem_backend": {"backend_type": "File", "backend_path": memory},
                    "resume_vm": true,
                });
                if let Some(configuration) = renamed {
                    rename(&mut body, configuration);
                }
                self.put("/snapshot/load", Some(body))
            }
            // It has loaded the machine before it answers the first request.
            (ControlProtocol::CrosvmSeqpacket, SavedMachine::Directory(_)) => {
                self.crosvm(&json!("ResumeVcpus")).map(drop)
            }
            _ => Err(unsupported()),
        }
    }

    /// Saves a machine of cloud-hypervisor. One that was resumed must have its whole memory first, which cloud-hypervisor loads
    /// while the guest runs.
    fn save_when_loaded(&self, body: &Value) -> Result<(), ControlError> {
        let end = Instant::now() + LOADING_TIMEOUT;
        loop {
            match self.put("/api/v1/vm.snapshot", Some(body.clone())) {
                Err(ControlError::Refused { answer, .. }) if answer.contains(LOADING) && Instant::now() < end => {
                    thread::sleep(POLL_INTERVAL);
                }
                saved => return saved,
            }
        }
    }

    pub(super) fn put(&self, path: &str, body: Option<Value>) -> Result<(), ControlError> {
        self.http(&HttpRequest { method: "PUT".to_owned(), path: path.to_owned(), body }).map(drop)
    }

    fn set_firecracker_state(&self, state: &str) -> Result<(), ControlError> {
        let body = Some(json!({"state": state}));
        self.http(&HttpRequest { method: "PATCH".to_owned(), path: "/vm".to_owned(), body }).map(drop)
    }

    fn migrate_to(&self, file: &File) -> Result<(), ControlError> {
        let mut session = Session::open(self)?;
        session.execute("migrate-set-parameters", json!({"max-bandwidth": MAX_BYTES_PER_SECOND}))?;
        let uri = pass_file(&mut session, file)?;
        session.execute("migrate", json!({"uri": uri}))?;
        wait_for_migration(&mut session, "migrate")
    }

    fn migrate_from(&self, file: &File) -> Result<(), ControlError> {
        let mut session = Session::open(self)?;
        let uri = pass_file(&mut session, file)?;
        session.execute("migrate-incoming", json!({"uri": uri}))?;
        wait_for_migration(&mut session, "migrate-incoming")?;
        session.execute("cont", Value::Null).map(drop)
    }
}

/// Passes the file to qemu and returns its URI. The file contains a stream, or has a fixed place for each page if qemu
/// supports that, which is faster and never longer than the memory.
fn pass_file(session: &mut Session<'_>, file: &File) -> Result<String, ControlError> {
    let capabilities = session.execute("query-migrate-capabilities", Value::Null)?;
    let is_mapped_ram = |capability: &Value| capability.get("capability").and_then(Value::as_str) == Some(MAPPED_RAM);
    if !capabilities.as_array().is_some_and(|all| all.iter().any(is_mapped_ram)) {
        session.execute_with_file("getfd", json!({"fdname": FILE_NAME}), file.as_fd())?;
        return Ok(format!("fd:{FILE_NAME}"));
    }
    let enable = json!({"capabilities": [{"capability": MAPPED_RAM, "state": true}]});
    session.execute("migrate-set-capabilities", enable)?;
    session.execute_with_file("add-fd", json!({"fdset-id": FILE_SET}), file.as_fd())?;
    Ok(format!("file:/dev/fdset/{FILE_SET}"))
}

fn wait_for_migration(session: &mut Session<'_>, request: &str) -> Result<(), ControlError> {
    loop {
        let answer = session.execute("query-migrate", Value::Null)?;
        let text = |field: &str| answer.get(field).and_then(Value::as_str);
        match text("status") {
            Some("completed") => return Ok(()),
            Some(status @ ("failed" | "cancelled" | "cancelling")) => {
                let answer = text("error-desc").unwrap_or(status).to_owned();
                return Err(ControlError::Refused { request: request.to_owned(), answer });
            }
            // The connection's deadline ends the loop.
            _ => thread::sleep(POLL_INTERVAL),
        }
    }
}

/// Makes firecracker use the interfaces and the socket of this configuration.
fn rename(body: &mut Value, configuration: &Value) {
    let interfaces = configuration.get("network-interfaces").and_then(Value::as_array).into_iter().flatten();
    let interfaces: Vec<_> = interfaces
        .map(|interface| json!({"iface_id": interface["iface_id"], "host_dev_name": interface["host_dev_name"]}))
        .collect();
    if !interfaces.is_empty() {
        body["network_overrides"] = Value::Array(interfaces);
    }
    if let Some(socket) = configuration.get("vsock").and_then(|vsock| vsock.get("uds_path")) {
        body["vsock_override"] = json!({"uds_path": socket});
    }
}

/// Makes cloud-hypervisor use the interfaces, the socket and the rules of this configuration: it has no option for
/// that, and reads them from its file.
fn rename_saved(directory: &HostPath, configuration: &Value) -> Result<(), ControlError> {
    let path = HostPath::from(SAVED_CONFIGURATION).below(directory);
    let failed = |reason: String| ControlError::SavedConfiguration { path: path.clone(), reason };
    let place = Place::nofollow(path.as_path()).map_err(|error| failed(error.to_string()))?;
    let (text, owner) = read_saved(&place).map_err(|error| match error.kind() {
        io::ErrorKind::NotFound => failed("it is missing".to_owned()),
        _ => failed(error.to_string()),
    })?;
    let saved = serde_json::from_slice(&text).map_err(|error| failed(error.to_string()))?;
    let renamed = renamed_configuration(saved, configuration).map_err(failed)?;
    // Only root can own the files of another user.
    let owner = geteuid().is_root().then_some(owner);
    place.replace(renamed.to_string().as_bytes(), SAVED_MODE, owner.as_ref()).map_err(|error| failed(error.to_string()))
}

/// Reads a file of the machine's user, to whom the directory belongs, and returns its content and owner.
fn read_saved(place: &Place) -> io::Result<(Vec<u8>, Identity)> {
    let file = place.open(OFlag::O_RDONLY)?;
    let stat = fstat(&file)?;
    if stat.st_uid != place.directory().owner()?.as_raw() {
        return Err(io::Error::new(io::ErrorKind::PermissionDenied, "it belongs to another user than its directory"));
    }
    let mut text = Vec::new();
    file.take(MAX_READ_BYTES).read_to_end(&mut text)?;
    Ok((text, Identity::of_ids(stat.st_uid, stat.st_gid)))
}

/// Returns a saved configuration with the interfaces of the host, the socket and the rules of another one. What the
/// guest has in its memory stays: the MAC addresses and the vsock address.
fn renamed_configuration(mut saved: Value, configuration: &Value) -> Result<Value, String> {
    let fields = saved.as_object_mut().ok_or("it contains no configuration")?;
    let new = configuration.get("net").and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
    let interfaces = fields.get_mut("net").and_then(Value::as_array_mut).map(Vec::as_mut_slice).unwrap_or_default();
    if interfaces.len() != new.len() {
        return Err(format!("it has {}, but the machine has {}", counted(interfaces.len(), "interface"), new.len()));
    }
    for (interface, new) in interfaces.iter_mut().zip(new) {
        let interface = interface.as_object_mut().ok_or("one of its interfaces has no fields")?;
        interface.insert("tap".to_owned(), new["tap"].clone());
    }
    match (fields.get_mut("vsock").and_then(Value::as_object_mut), configuration.pointer("/vsock/socket")) {
        (Some(vsock), Some(socket)) => drop(vsock.insert("socket".to_owned(), socket.clone())),
        (None, None) => {}
        _ => return Err("the saved machine and this one do not both have a vsock device".to_owned()),
    }
    // One of them is for the directory in which the machine is saved.
    fields.insert("landlock_rules".to_owned(), configuration["landlock_rules"].clone());
    Ok(saved)
}

fn unsupported() -> ControlError {
    ControlError::Unsupported("this hypervisor cannot save and load machines".to_owned())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test that cannot be set up fails")]

    use super::*;

    /// The fields are those that cloud-hypervisor v54 has saved.
    #[test]
    fn the_saved_configuration_of_a_clone_names_its_interfaces_its_socket_and_its_directory() {
        let saved = json!({
            "net": [{"tap": "vm-web", "mac": "02:00:00:00:00:01", "id": "_net1"}, {"tap": "vm-web2", "id": "_net2"}],
            "vsock": {"cid": 42, "socket": "web.vsock", "id": "_vsock3"}, "disks": [{"path": "web-store.squashfs"}],
            "landlock_enable": true, "landlock_rules": [{"path": "web.suspended", "access": "rw"}],
        });
        let rules = json!([{"path": "one.suspended", "access": "rw"}]);
        let configuration = json!({
            "net": [{"tap": "vm-one", "mac": "02:00:00:00:00:07"}, {"tap": "vm-one2"}],
            "vsock": {"cid": 77, "socket": "one.vsock"}, "landlock_rules": rules,
        });
        let mut expected = saved.clone();
        expected["net"][0]["tap"] = "vm-one".into();
        expected["net"][1]["tap"] = "vm-one2".into();
        expected["vsock"]["socket"] = "one.vsock".into();
        expected["landlock_rules"] = rules;
        assert_eq!(renamed_configuration(saved.clone(), &configuration), Ok(expected));
        assert_eq!(
            renamed_configuration(saved, &json!({"net": [{"tap": "vm-one"}, {"tap": "vm-one2"}]})),
            Err("the saved machine and this one do not both have a vsock device".to_owned())
        );
        let many = "it has 1 interface, but the machine has 0".to_owned();
        assert_eq!(renamed_configuration(json!({"net": [1]}), &json!({})), Err(many));
        for damaged in [json!([1]), json!("text"), json!({"net": [1]})] {
            assert!(renamed_configuration(damaged, &json!({"net": [{"tap": "vm-one"}]})).is_err());
        }
    }

    #[test]
    fn only_the_machines_user_can_read_the_new_configuration_and_a_missing_or_foreign_one_is_an_error() {
        let directory = tempfile::tempdir().unwrap();
        let path = HostPath::from(directory.path().to_str().unwrap());
        let missing = rename_saved(&path, &json!({})).unwrap_err().to_string();
        assert!(missing.contains("config.json: it is missing"), "{missing}");
        let file = directory.path().join(SAVED_CONFIGURATION);
        std::fs::write(&file, r#"{"net": [{"tap": "vm-web"}]}"#).unwrap();
        rename_saved(&path, &json!({"net": [{"tap": "vm-one"}]})).unwrap();
        assert!(std::fs::read_to_string(&file).unwrap().contains(r#""tap":"vm-one""#));
        let permissions = file.metadata().unwrap().permissions();
        assert_eq!(std::os::unix::fs::PermissionsExt::mode(&permissions) & 0o7777, 0o600);
        if geteuid().is_root() {
            std::os::unix::fs::chown(&file, Some(65534), Some(65534)).unwrap();
            let foreign = rename_saved(&path, &json!({"net": [{"tap": "vm-two"}]})).unwrap_err().to_string();
            assert!(foreign.contains("it belongs to another user than its directory"), "{foreign}");
        }
    }
}
