//! `microvm explain`: shows what `run` would do.

use super::spec_file::{SpecArguments, lowered, read_checked};
use launcher::explain::{OtherHypervisors, explain};
use launcher::facts::HostFacts;
use launcher::host::inspect_store_disk;
use launcher::hypervisor::lower;
use launcher::spec::Hypervisor;
use program::failure::Failure;
use program::output::print;
use serde_json::{Map, Value, json};

/// Show a machine's disks, mounts, requirements and exact command line
#[derive(clap::Args)]
pub(crate) struct Arguments {
    #[command(flatten)]
    spec: SpecArguments,
    /// Print JSON: the launch, and whether the other hypervisors support the machine
    #[arg(long)]
    json: bool,
}

pub(crate) fn run(arguments: &Arguments) -> Result<(), Failure> {
    let overrides = &arguments.spec.overrides;
    let spec = read_checked(&arguments.spec.spec, overrides)?;
    let mut facts = HostFacts::assumed(overrides.state_directory()?);
    let unknown = inspect_store_disk(&spec, &mut facts);
    let mut launch = lowered(&spec, &facts)?;
    launch.warnings.extend(unknown);
    let others = Hypervisor::ALL.into_iter().filter(|hypervisor| *hypervisor != spec.hypervisor);
    let others: OtherHypervisors =
        others.map(|hypervisor| (hypervisor, lower(&spec, &facts, hypervisor).map(|_| ()))).collect();
    if !arguments.json {
        return print(explain(&spec, &launch, &others));
    }
    let others: Map<String, Value> =
        others.iter().map(|(name, outcome)| (name.to_string(), reasons(outcome))).collect();
    print(format!("{:#}\n", json!({"launch": launch, "others": others})))
}

/// Returns why a hypervisor refuses the machine; an empty list if it does not.
fn reasons(outcome: &Result<(), launcher::refusal::Refusals>) -> Value {
    let refusals = outcome.as_ref().err().map(|refusals| refusals.refusals.as_slice()).unwrap_or_default();
    refusals.iter().map(|refusal| json!({"option": refusal.option, "reason": refusal.reason})).collect()
}
