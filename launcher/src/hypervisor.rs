//! From a checked machine to the command that runs it: one file a hypervisor, each pure, none knowing another.

mod cloud_hypervisor;
mod crosvm;
mod drawing;
mod firecracker;
mod frame;
mod kvmtool;
mod qemu;
mod side_process;

use crate::capability::{Feature, Lenience, Support, uses};
use crate::facts::HostFacts;
use crate::launch::Launch;
use crate::refusal::{Refusal, Refusals};
use crate::spec::Hypervisor;
use crate::validate::CheckedSpec;
use frame::Frame;

/// Whether a hypervisor can do something, by its table.
pub fn support(hypervisor: Hypervisor, feature: Feature) -> Support {
    match hypervisor {
        Hypervisor::Qemu => qemu::support(feature),
        Hypervisor::CloudHypervisor => cloud_hypervisor::support(feature),
        Hypervisor::Firecracker => firecracker::support(feature),
        Hypervisor::Crosvm => crosvm::support(feature),
        Hypervisor::Kvmtool => kvmtool::support(feature),
    }
}

/// The capability tables of all hypervisors as a Markdown table.
pub fn capability_table() -> String {
    crate::capability::markdown_table(support)
}

/// The command that runs the machine on this hypervisor, and all that belongs to it.
///
/// # Errors
/// Every reason why the machine cannot run there, each with the hypervisors that could.
pub fn lower(spec: &CheckedSpec, facts: &HostFacts, hypervisor: Hypervisor) -> Result<Launch, Refusals> {
    lower_on(spec, facts, hypervisor).map_err(|refusals| with_alternatives(spec, facts, refusals))
}

/// The hypervisors on which the machine can run as it is.
pub fn runs_on(spec: &CheckedSpec, facts: &HostFacts) -> Vec<Hypervisor> {
    Hypervisor::ALL.into_iter().filter(|hypervisor| lower_on(spec, facts, *hypervisor).is_ok()).collect()
}

fn lower_on(spec: &CheckedSpec, facts: &HostFacts, hypervisor: Hypervisor) -> Result<Launch, Vec<Refusal>> {
    let mut frame = Frame::new(spec, facts, hypervisor);
    for asked in uses(spec) {
        let Support::No(reason) = support(hypervisor, asked.feature) else { continue };
        match asked.feature.lenience() {
            Lenience::Refuse => frame.refuse(asked.option, reason),
            Lenience::Warn => frame.warn(&asked.option, &format!("{hypervisor} {reason}; it is ignored")),
        }
    }
    match hypervisor {
        Hypervisor::Qemu => qemu::lower(frame),
        Hypervisor::CloudHypervisor => cloud_hypervisor::lower(frame),
        Hypervisor::Firecracker => firecracker::lower(frame),
        Hypervisor::Crosvm => crosvm::lower(frame),
        Hypervisor::Kvmtool => kvmtool::lower(frame),
    }
}

/// Finds for each refusal the hypervisors that do not refuse the same subject, by lowering for each of them.
fn with_alternatives(spec: &CheckedSpec, facts: &HostFacts, mut refusals: Vec<Refusal>) -> Refusals {
    let mut runs_on = Vec::new();
    for hypervisor in Hypervisor::ALL {
        let others = match lower_on(spec, facts, hypervisor) {
            Ok(_) => {
                runs_on.push(hypervisor);
                Vec::new()
            }
            Err(others) => others,
        };
        for refusal in &mut refusals {
            let refuses_too = others.iter().any(|other| other.subject() == refusal.subject());
            if hypervisor != refusal.hypervisor && !refuses_too {
                refusal.able.push(hypervisor);
            }
        }
    }
    Refusals { refusals, runs_on }
}
