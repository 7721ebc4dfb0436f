//! Validation of a machine spec, independent of the hypervisor: `MachineSpec` to [`CheckedSpec`]. Finds all problems at
//! once.

mod across;
mod checked;
mod findings;
mod graphics;
mod guest;
mod machine;
mod names;
mod network;
mod sockets;
mod storage;
mod zero_bytes;

pub use across::check_across;
pub(crate) use checked::device_name;
pub use checked::{
    Balloon, CheckedGraphics, CheckedInterface, CheckedShare, CheckedSpec, CheckedVolume, CheckedVsock, Disk,
    DiskBackend, DiskRole, HotplugMemory, InterfaceKind, Kernel, LiveStore, Memory, View,
};
pub use findings::Problem;
pub(crate) use storage::OWN_FILES;

use crate::capability::uses;
use crate::spec::{HypervisorSections, MachineSpec};
use findings::Findings;
use serde_json::Value;
use sockets::Sockets;

/// Validates a machine spec.
///
/// # Errors
/// Returns all problems that the spec has on every hypervisor; the list is not empty.
pub fn check(spec: &MachineSpec) -> Result<CheckedSpec, Vec<Problem>> {
    let mut findings = Findings::new(&spec.name);
    machine::check(spec, &mut findings);
    guest::check(spec, &mut findings);
    let (disks, volumes, store_disk) = storage::disks(spec, &mut findings);
    let is_sealed = spec.store_disk.as_ref().is_some_and(|disk| disk.verity);
    let sealed_image = disks.first().filter(|_| is_sealed).map(|disk| disk.image.clone());
    let shares = storage::shares(spec, &mut findings);
    storage::mount_points(spec, &mut findings);
    let interfaces = network::interfaces(spec, &mut findings);
    network::forward_ports(spec, &mut findings);
    let vsock = network::vsock(spec, &mut findings);
    let graphics = graphics::graphics(spec, &mut findings);
    let own = Sockets { shares: &shares, vsock: vsock.as_ref(), graphics: graphics.as_ref() };
    let control_socket = sockets::control_socket(spec, &own, &mut findings);
    let document = serde_json::to_value(spec).unwrap_or_else(|error| {
        findings.problem("version", format!("the machine spec cannot be written as JSON: {error}"));
        Value::Null
    });
    zero_bytes::check(&document, &mut findings);
    let memory = machine::memory(spec);
    if !findings.problems.is_empty() {
        return Err(findings.problems);
    }
    Ok(CheckedSpec {
        name: spec.name.clone(),
        hypervisor: spec.hypervisor,
        architecture: spec.architecture,
        vcpu: spec.vcpu,
        cpu: spec.cpu.clone(),
        memory,
        kernel: Kernel {
            image: spec.kernel.clone(),
            vmlinux: spec.vmlinux.clone(),
            initrd: spec.initrd.clone(),
            parameters: spec.kernel_params.clone(),
        },
        machine_id: spec.machine_id.as_deref().and_then(names::canonical_uuid),
        store_disk,
        sealed_image,
        disks,
        volumes,
        shares,
        writable_store_overlay: spec.writable_store_overlay.clone(),
        interfaces,
        forward_ports: spec.forward_ports.clone(),
        vsock,
        devices: spec.devices.clone(),
        rng: spec.rng,
        graphics,
        credential_files: spec.credential_files.clone(),
        control_socket,
        console_socket: spec.console_socket.clone(),
        user: spec.user.clone(),
        pre_start: spec.pre_start.clone(),
        extra_args_script: spec.extra_args_script.clone(),
        process_name: spec.pretty_procnames.then(|| format!("microvm@{}", spec.name)),
        sections: HypervisorSections::of(spec),
        virtiofsd: spec.virtiofsd.clone(),
        uses: uses(&document),
        warnings: findings.warnings,
    })
}

#[cfg(test)]
mod tests;
