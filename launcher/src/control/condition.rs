//! Whether a machine runs, from the state that its hypervisor reports.

use crate::launch::ControlProtocol;
use serde::{Deserialize, Serialize};

/// What a hypervisor does with its machine.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub enum Condition {
    /// The guest runs, or is paused by somebody who will let it continue.
    Runs,
    /// The guest does not run yet: the hypervisor waits for it, or loads it.
    Waits,
    /// The guest has migrated to another host, or has shut down. The hypervisor is no longer needed.
    HasLeft,
    /// The guest cannot continue. The text is the hypervisor's name for its state.
    Failed(String),
}

/// Returns the condition for a state in the hypervisor's terms: `RunState` in qemu's qapi/run-state.json, `VmState` of
/// cloud-hypervisor, and `state` in firecracker's `InstanceInfo`. crosvm and kvmtool report running or paused.
pub fn condition_of(protocol: ControlProtocol, state: &str) -> Condition {
    let [runs, waits, has_left] = match protocol {
        ControlProtocol::Qmp => [
            ["running", "paused", "suspended", "save-vm", "restore-vm", "finish-migrate", "debug", "watchdog"]
                .as_slice(),
            &["inmigrate", "prelaunch", "colo"],
            &["postmigrate", "shutdown"],
        ],
        ControlProtocol::CloudHypervisorHttp => {
            [["Running", "Paused", "BreakPoint"].as_slice(), &["Created"], &["Shutdown"]]
        }
        ControlProtocol::FirecrackerHttp => [["Running", "Paused"].as_slice(), &["Not started"], &[]],
        ControlProtocol::CrosvmSeqpacket | ControlProtocol::Kvmtool => [["running", "paused"].as_slice(), &[], &[]],
    };
    let is_in = |states: &[&str]| states.contains(&state);
    if is_in(runs) {
        Condition::Runs
    } else if is_in(waits) {
        Condition::Waits
    } else if is_in(has_left) {
        Condition::HasLeft
    } else {
        Condition::Failed(state.to_owned())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_unknown_state_counts_as_failed() {
        let qemu = |state| condition_of(ControlProtocol::Qmp, state);
        assert_eq!(qemu("running"), Condition::Runs);
        assert_eq!(qemu("inmigrate"), Condition::Waits);
        assert_eq!(qemu("postmigrate"), Condition::HasLeft);
        for state in ["io-error", "internal-error", "guest-panicked", "new-in-2030"] {
            assert_eq!(qemu(state), Condition::Failed(state.to_owned()));
        }
        assert_eq!(condition_of(ControlProtocol::FirecrackerHttp, "Not started"), Condition::Waits);
        assert_eq!(condition_of(ControlProtocol::CrosvmSeqpacket, "running"), Condition::Runs);
    }
}
