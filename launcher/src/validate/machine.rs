//! Validation of the name, CPUs, memory, user, programs and the commands before the start.

use super::checked::{Balloon, HotplugMemory, Memory};
use super::findings::Findings;
use super::names;
use crate::name::check_name;
use crate::spec::{HypervisorSections, MachineSpec, ShareProtocol};

pub(super) fn check(spec: &MachineSpec, findings: &mut Findings) {
    findings.require("name", check_name(&spec.name));
    if spec.vcpu == 0 {
        findings.problem("vcpu", "must be at least 1");
    }
    if spec.cpu.as_deref().is_some_and(str::is_empty) {
        findings.problem("cpu", "must not be empty; null means the host's CPU");
    }
    let model = spec.cpu.as_deref().and_then(|cpu| cpu.split(',').next());
    if model.is_some_and(|model| matches!(model, "help" | "?")) {
        findings.problem("cpu", "would print the models that the hypervisor has, instead of starting the machine");
    }
    check_memory(spec, findings);
    if let Some(user) = &spec.user {
        findings.require("user", names::user(user));
    }
    for (index, command) in spec.pre_start.iter().enumerate() {
        if command.first().is_none_or(String::is_empty) {
            findings.problem(format!("preStart[{index}]"), "must name a program");
        }
    }
    if let Some(script) = &spec.extra_args_script {
        findings.require("extraArgsScript", names::path(script));
    }
    let sections = HypervisorSections::of(spec);
    let paths = sections.paths().into_iter().chain([("virtiofsd.program", &spec.virtiofsd.program)]);
    for (option, path) in paths {
        if let Some(path) = path {
            findings.require(option, names::path(path));
        }
    }
    if spec.virtiofsd.thread_pool_size == Some(0) {
        findings.problem("virtiofsd.threadPoolSize", "must be at least 1; null means one per CPU of the host");
    }
}

fn check_memory(spec: &MachineSpec, findings: &mut Findings) {
    if spec.mem_mib == 0 {
        findings.problem("mem", "must be at least 1 MiB");
    } else if spec.mem_mib < 32 {
        findings.warning("mem", "Linux with its initrd rarely boots with less than 32 MiB");
    }
    // A process has an address space of 128 TiB: Documentation/arch/x86/x86_64/mm.rst. A larger value is probably in the wrong
    // unit.
    for (option, mib) in [("mem", spec.mem_mib), ("hotplugMem", spec.hotplug_mem_mib)] {
        if mib >= 1 << 27 {
            findings.problem(option, format!("{mib} MiB is more than a machine can have; the unit is MiB"));
        }
    }
    if spec.hugepage_mem && spec.mem_mib % 2 == 1 {
        findings.problem("mem", format!("{} MiB is not a multiple of 2 MiB, the size of huge pages", spec.mem_mib));
    }
    if spec.hotplugged_mem_mib.is_some_and(|mib| mib > spec.hotplug_mem_mib) {
        findings.problem(
            "hotpluggedMem",
            format!("must not be more than hotplugMem, which is {} MiB", spec.hotplug_mem_mib),
        );
    }
    for (option, mib) in [("hotplugMem", Some(spec.hotplug_mem_mib)), ("hotpluggedMem", spec.hotplugged_mem_mib)] {
        // A block of virtio-mem is at least as large as a huge page.
        if mib.is_some_and(|mib| mib % 2 == 1) {
            findings.problem(option, "must be even: memory is plugged in blocks of 2 MiB or more");
        }
    }
    if spec.initial_balloon_mem_mib > 0 && !spec.balloon {
        findings.problem("initialBalloonMem", "requires balloon = true");
    }
    if spec.balloon && spec.initial_balloon_mem_mib >= spec.mem_mib {
        findings.problem("initialBalloonMem", format!("must be less than mem, which is {} MiB", spec.mem_mib));
    }
}

pub(super) fn memory(spec: &MachineSpec) -> Memory {
    let hotplug = (spec.hotplug_mem_mib > 0).then(|| HotplugMemory {
        max_mib: spec.hotplug_mem_mib,
        initial_mib: spec.hotplugged_mem_mib.unwrap_or(spec.hotplug_mem_mib),
    });
    let balloon = spec
        .balloon
        .then_some(Balloon { initial_mib: spec.initial_balloon_mem_mib, deflate_on_oom: spec.deflate_on_oom });
    Memory {
        mem_mib: spec.mem_mib,
        huge_pages: spec.hugepage_mem,
        shared: spec.shares.iter().any(|share| share.proto == ShareProtocol::Virtiofs)
            || spec.store_disk.as_ref().is_some_and(|disk| disk.live),
        hotplug,
        balloon,
    }
}
