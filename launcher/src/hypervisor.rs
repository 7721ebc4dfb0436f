//! Turning a checked machine spec into the command that runs it. There is one module per hypervisor; each one is free
//! of side effects and independent of the others.

mod cloud_hypervisor;
mod conditions;
mod crosvm;
mod description;
mod firecracker;
mod kvmtool;
mod launch_builder;
mod qemu;
mod renderer;
mod side_process;

pub use description::{CredentialTransport, Description, HypervisorProgram, ImageLimits, VsockTransport};

use crate::capability::{Feature, Support, Unsupported};
use crate::facts::HostFacts;
use crate::launch::Launch;
use crate::path::HostPath;
use crate::refusal::{Refusal, Refusals};
use crate::spec::Hypervisor;
use crate::validate::CheckedSpec;
use launch_builder::LaunchBuilder;

/// Returns the description of a hypervisor.
pub fn description(hypervisor: Hypervisor) -> &'static Description {
    match hypervisor {
        Hypervisor::Qemu => &qemu::DESCRIPTION,
        Hypervisor::CloudHypervisor => &cloud_hypervisor::DESCRIPTION,
        Hypervisor::Firecracker => &firecracker::DESCRIPTION,
        Hypervisor::Crosvm => &crosvm::DESCRIPTION,
        Hypervisor::Kvmtool => &kvmtool::DESCRIPTION,
    }
}

/// Returns whether a hypervisor supports a feature, from its capability table.
pub fn support(hypervisor: Hypervisor, feature: Feature) -> Support {
    (description(hypervisor).support)(feature)
}

/// Returns the capability tables of all hypervisors as one Markdown table.
pub fn capability_table() -> String {
    crate::capability::markdown_table(support)
}

/// Returns the launch of the machine on this hypervisor: the command and everything that it needs.
///
/// # Errors
/// Returns all reasons why the hypervisor cannot run the machine, each with the hypervisors that can.
pub fn lower(spec: &CheckedSpec, facts: &HostFacts, hypervisor: Hypervisor) -> Result<Launch, Refusals> {
    lower_on(spec, facts, hypervisor).map_err(|refusals| with_alternatives(spec, facts, refusals))
}

/// Returns the launch of the machine with the output of its `extraArgsScript`, which is treated like the hypervisor's
/// `extraArgs`.
///
/// # Errors
/// Returns all reasons why the hypervisor does not accept this output, each a sentence that starts with the hypervisor's name.
pub fn lower_with_script_output(
    spec: &CheckedSpec,
    facts: &HostFacts,
    hypervisor: Hypervisor,
    output: &[String],
) -> Result<Launch, Vec<String>> {
    let mut spec = spec.clone();
    spec.sections.extra_args_mut(hypervisor).extend_from_slice(output);
    // Without the output, the machine was accepted, so every refusal is about the output.
    let reason = |refusal: Refusal| format!("{hypervisor} {}", refusal.reason);
    lower_on(&spec, facts, hypervisor).map_err(|refusals| refusals.into_iter().map(reason).collect())
}

/// Returns the hypervisors that can run the machine unchanged.
pub fn runs_on(spec: &CheckedSpec, facts: &HostFacts) -> Vec<Hypervisor> {
    Hypervisor::ALL.into_iter().filter(|hypervisor| lower_on(spec, facts, *hypervisor).is_ok()).collect()
}

/// Returns why a machine cannot be suspended on its hypervisor; empty if it can.
pub fn suspend_refusals(spec: &CheckedSpec) -> Vec<Refusal> {
    transfer_refusals(spec, Feature::Suspend)
}

/// Returns why a machine cannot move to another host while it runs; empty if it can. What keeps a machine from being
/// saved keeps it from being sent, too.
pub fn live_migration_refusals(spec: &CheckedSpec) -> Vec<Refusal> {
    transfer_refusals(spec, Feature::LiveMigration)
}

fn transfer_refusals(spec: &CheckedSpec, transfer: Feature) -> Vec<Refusal> {
    let refusal = |feature: Feature, option: String, reason: &str| Refusal {
        machine: spec.name.clone(),
        option,
        hypervisor: spec.hypervisor,
        reason: reason.to_owned(),
        supported_by: Hypervisor::ALL.into_iter().filter(|other| can_transfer(*other, transfer, feature)).collect(),
    };
    if let Support::No(reason) = support(spec.hypervisor, transfer) {
        return vec![refusal(transfer, "hypervisor".to_owned(), reason)];
    }
    let obstacle = description(spec.hypervisor).suspend_obstacle;
    let refused = spec.uses.iter().filter_map(|used| Some((obstacle(used.feature)?, used)));
    refused.map(|(reason, used)| refusal(used.feature, used.option.clone(), reason)).collect()
}

/// Returns why a machine cannot be cloned on its hypervisor; empty if it can.
pub fn clone_refusals(spec: &CheckedSpec) -> Vec<Refusal> {
    let refusals = suspend_refusals(spec);
    if !refusals.is_empty() {
        return refusals;
    }
    let obstacle = description(spec.hypervisor).clone_obstacle;
    let can_clone = |other: Hypervisor, feature: Feature| {
        let obstacle = description(other).clone_obstacle;
        let is_macvtap = feature == Feature::InterfaceMacvtap;
        !is_macvtap
            && can_transfer(other, Feature::Suspend, feature)
            && [feature, Feature::Suspend].into_iter().all(|each| obstacle(each).is_none())
    };
    let refusal = |feature: Feature, option: &str, reason: &str| Refusal {
        machine: spec.name.clone(),
        option: option.to_owned(),
        hypervisor: spec.hypervisor,
        reason: reason.to_owned(),
        supported_by: Hypervisor::ALL.into_iter().filter(|other| can_clone(*other, feature)).collect(),
    };
    let in_general = obstacle(Feature::Suspend).map(|reason| refusal(Feature::Suspend, "hypervisor", reason));
    // A macvtap interface delivers nothing to an address that is not its own, and the guest keeps the address.
    let of_interface =
        |feature| (feature == Feature::InterfaceMacvtap).then_some("cannot change the guest's MAC address");
    let reason = |feature| obstacle(feature).or_else(|| of_interface(feature));
    let used = spec.uses.iter().filter_map(|used| Some((reason(used.feature)?, used)));
    in_general.into_iter().chain(used.map(|(reason, used)| refusal(used.feature, &used.option, reason))).collect()
}

/// Whether the hypervisor supports the feature and can save or send a machine that uses it.
fn can_transfer(hypervisor: Hypervisor, transfer: Feature, feature: Feature) -> bool {
    let supports = |feature| support(hypervisor, feature).is_supported();
    supports(transfer) && supports(feature) && (description(hypervisor).suspend_obstacle)(feature).is_none()
}

/// Returns the launch that loads a suspended machine, which was saved in this directory, instead of booting one.
#[must_use]
pub fn resumed(mut launch: Launch, directory: &HostPath) -> Launch {
    (description(launch.hypervisor).resume)(&mut launch, directory);
    launch
}

/// Returns the launch whose hypervisor receives the machine from another host, or `None` if it does not support that. It
/// starts as for a machine that is resumed, and the same requests fill it.
pub fn receiving(launch: Launch) -> Option<Launch> {
    let supports = support(launch.hypervisor, Feature::LiveMigration).is_supported();
    let directory = launch.working_directory.clone();
    supports.then(|| resumed(launch, &directory))
}

fn lower_on(spec: &CheckedSpec, facts: &HostFacts, hypervisor: Hypervisor) -> Result<Launch, Vec<Refusal>> {
    let mut builder = LaunchBuilder::new(spec, facts, hypervisor);
    for used in &spec.uses {
        let Support::No(reason) = support(hypervisor, used.feature) else { continue };
        match used.feature.when_unsupported() {
            Unsupported::Refuse => builder.refuse(&used.option, reason),
            Unsupported::Warn => builder.warn(&used.option, &format!("{hypervisor} {reason}; it is ignored")),
        }
    }
    (description(hypervisor).lower)(builder)
}

/// Lowers the machine for every hypervisor, and lists with each refusal the hypervisors that do not refuse the same
/// subject.
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
                refusal.supported_by.push(hypervisor);
            }
        }
    }
    Refusals { refusals, runs_on }
}
