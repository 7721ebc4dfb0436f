//! `microvm pci-setup|register|unregister SPEC`: prepares the host for a machine, and registers the machine.

use crate::cli::host_machine::failure;
use crate::cli::machine::failed;
use crate::cli::spec_file::{SpecArguments, read};
use launcher::imperative::{PciBus, register, unregister};
use launcher::spec::DeviceBus;
use program::failure::Failure;
use program::user::Identity;
use std::process::{Command, Stdio};

/// Bind a machine's PCI devices to vfio-pci
#[derive(clap::Args)]
pub(crate) struct PciArguments {
    #[command(flatten)]
    spec: SpecArguments,
    /// The user who may open the devices
    #[arg(long, value_name = "USER")]
    owner: Option<String>,
}

/// Register a running machine with systemd-machined
#[derive(clap::Args)]
pub(crate) struct RegisterArguments {
    #[command(flatten)]
    spec: SpecArguments,
    /// Process ID of the machine [default: $MAINPID, which systemd sets]
    #[arg(long, value_name = "PID", value_parser = program::input::whole_number::<u32>)]
    leader: Option<u32>,
}

/// Unregister a machine from systemd-machined
#[derive(clap::Args)]
pub(crate) struct UnregisterArguments {
    #[command(flatten)]
    spec: SpecArguments,
}

pub(crate) fn pci_setup(arguments: &PciArguments) -> Result<(), Failure> {
    let spec = read(&arguments.spec.spec, &arguments.spec.overrides)?;
    let owner = arguments.owner.as_deref().map(Identity::of).transpose().map_err(failed)?;
    // Some kernels have it built in. If it is missing, the first device reports that.
    let _ = Command::new("modprobe").arg("vfio-pci").stderr(Stdio::null()).status();
    let devices = spec.devices.iter().filter(|device| device.bus == DeviceBus::Pci);
    let bus = PciBus::default();
    let problems: Vec<_> = devices
        .filter_map(|device| bus.bind_to_vfio(&device.path, owner.as_ref()).err())
        .map(|error| format!("{}: {error}", spec.name))
        .collect();
    if problems.is_empty() { Ok(()) } else { Err(Failure::problems(problems)) }
}

pub(crate) fn register_machine(arguments: &RegisterArguments) -> Result<(), Failure> {
    let spec = read(&arguments.spec.spec, &arguments.spec.overrides)?;
    let of_systemd = || std::env::var("MAINPID").ok()?.parse().ok();
    let leader = arguments
        .leader
        .or_else(of_systemd)
        .ok_or_else(|| Failure::usage("the machine's process id is unknown: neither --leader nor $MAINPID is set"))?;
    register(&spec.name, spec.machine_id.as_deref(), leader).map_err(|error| failure(&error))
}

pub(crate) fn unregister_machine(arguments: &UnregisterArguments) -> Result<(), Failure> {
    let spec = read(&arguments.spec.spec, &arguments.spec.overrides)?;
    unregister(&spec.name).map_err(|error| failure(&error))
}
