//! What crosvm refuses about the user's arguments, although each is valid without the others: `validate_config` in
//! src/crosvm/config.rs, and `TryFrom<RunCommand>` in src/crosvm/cmdline.rs.

use super::super::conditions::{Condition, GivenArguments, check_conditions, values};
use super::super::launch_builder::LaunchBuilder;
use crate::facts::Architecture;
use std::collections::BTreeSet;

const OPTION: &str = "crosvm.extraArgs";

const CONDITIONS: [Condition; 22] = [
    Condition::Refused("--bios", "the kernel is booted without a firmware"),
    Condition::Refused("--restore", "it would restore another machine"),
    Condition::Needs("--enable-hwp", &["--host-cpu-topology"]),
    Condition::Needs("--itmt", &["--enable-hwp"]),
    Condition::Needs("--itmt", &["--host-cpu-topology", "--cpu-affinity"]),
    Condition::Needs("--unmap-guest-memory-on-fork", &["--disable-sandbox"]),
    Condition::Needs("--host-ip", &["--netmask"]),
    Condition::Needs("--host-ip", &["--mac"]),
    Condition::Needs("--netmask", &["--host-ip"]),
    Condition::Needs("--mac", &["--host-ip"]),
    Condition::Excludes("--host-cpu-topology", &["--no-smt", "--cpu-affinity", "--cpu-capacity", "--cpu-cluster"]),
    Condition::Excludes("--gdb", &["--suspended", "--suspended-vcpus"]),
    Condition::Excludes("--suspended", &["--suspended-vcpus"]),
    Condition::Excludes("--no-balloon", &["--balloon-control", "--balloon-page-reporting"]),
    Condition::Excludes("--swap", &["--disable-sandbox"]),
    Condition::Excludes("--irqchip", &["--split-irqchip"]),
    Condition::Excludes("--hypervisor", &["--kvm-device"]),
    Condition::Excludes("--cid", &["--vsock"]),
    Condition::Excludes("--vhost-vsock-device", &["--vhost-vsock-fd"]),
    Condition::AtMostOne(&["--gpu"]),
    Condition::AtMostOne(&["--root", "--rwroot"]),
    Condition::AtMostOne(&[
        "--protected-vm",
        "--protected-vm-with-firmware",
        "--protected-vm-without-firmware",
        "--unprotected-vm-with-firmware",
    ]),
];

/// Options with a value that crosvm accepts once, apart from those that the launcher sets (`RunCommand` in
/// src/crosvm/cmdline.rs). A switch may be repeated.
const ONCE: &str = "--async-executor --balloon-bias-mib --balloon-control --balloon-ws-num-bins --battery --bus-lock-ratelimit \
    --core-scheduling --cpu-affinity --dump-device-tree-blob --dynamic-power-coefficient --gdb --gpu-cgroup-path --host-ip \
    --hypervisor --irqchip --kvm-device --mac --mmio-address-range --nested --net-vq-pairs --netmask --pci --pci-hotplug-slots \
    --pci-start --pflash --pstore --rt-cpus --seccomp-policy-dir --swap --syslog-tag --vcpu-cgroup-path --vhost-net-device \
    --vhost-user-connect-timeout-ms --vhost-vsock-device --vhost-vsock-fd --x-display";

/// Options that crosvm has only where its guests are ARM machines.
const ARM_ONLY: [&str; 9] = [
    "--dev-pm",
    "--ffa",
    "--mte",
    "--no-pmu",
    "--smccc-trng",
    "--swiotlb",
    "--vfio-platform-pm",
    "--virt-cpufreq",
    "--virt-cpufreq-upstream",
];

/// Refuses arguments that crosvm would not start with beside the others.
pub(super) fn check(builder: &mut LaunchBuilder<'_>, own: &[String]) {
    let extra = builder.spec.sections.crosvm.extra_args.clone();
    let given = GivenArguments { option: OPTION, extra: &extra, own };
    check_conditions(builder, &given, &CONDITIONS);
    for option in ONCE.split_whitespace().filter(|option| given.count(option) > 1) {
        builder.refuse(OPTION, format!("accepts {option} only once, but it is given twice"));
    }
    if builder.architecture() == Architecture::X86_64 {
        for option in ARM_ONLY.into_iter().filter(|option| given.has_extra(option)) {
            builder.refuse(OPTION, format!("has {option} on ARM only"));
        }
    }
    let names_device = |option: &str| values(&extra, "--vsock").any(|value| value.contains(option));
    let has_device = given.has_extra("--vhost-vsock-device") || given.has_extra("--vhost-vsock-fd");
    if (given.has_extra("--vsock") || given.has_extra("--cid")) && !has_device && !names_device("device=") {
        builder.need_device(OPTION, "/dev/vhost-vsock", "modprobe vhost_vsock");
    }
    check_serial(builder, &extra);
    check_cpus(builder, &given);
}

/// Refuses a second first serial port, because a port without a number would be the first, which is the console, and a
/// second reader of the standard input.
fn check_serial(builder: &mut LaunchBuilder<'_>, extra: &[String]) {
    let mut ports = BTreeSet::from([("serial".to_owned(), "1".to_owned())]);
    for value in values(extra, "--serial") {
        let setting = |key: &str| value.split(',').find_map(|part| part.strip_prefix(key)?.strip_prefix('='));
        let is_on = |key: &str| value.split(',').any(|part| part == key) || setting(key) == Some("true");
        let hardware = setting("hardware").unwrap_or("serial");
        let number = setting("num").unwrap_or("1");
        if hardware == "serial" && number == "1" {
            let reason = "has the console on the first serial port; give --serial a num=2, 3 or 4";
            builder.refuse(OPTION, reason);
        } else if !ports.insert((hardware.to_owned(), number.to_owned())) {
            builder.refuse(OPTION, format!("accepts each port once, but --serial gives {hardware} {number} twice"));
        }
        if is_on("stdin") {
            builder.refuse(OPTION, "connects the standard input to the console; leave stdin out of --serial");
        }
        if is_on("earlycon") && hardware != "serial" {
            builder.refuse(OPTION, format!("does not accept earlycon for the hardware {hardware} of --serial"));
        }
    }
    let early = |value: &str| value.split(',').any(|part| part == "earlycon" || part == "earlycon=true");
    if values(extra, "--serial").filter(|value| early(value)).count() > 1 {
        builder.refuse(OPTION, "accepts earlycon for one --serial only");
    }
}

fn check_cpus(builder: &mut LaunchBuilder<'_>, given: &GivenArguments<'_>) {
    let vcpus = builder.spec.vcpu;
    if given.has_extra("--gdb") && vcpus != 1 {
        builder.refuse(OPTION, format!("accepts --gdb only with one CPU, but vcpu is {vcpus}"));
    }
    let online = builder.facts.online_processors.filter(|online| *online != vcpus);
    if let Some(online) = online.filter(|_| given.has_extra("--host-cpu-topology")) {
        let reason = format!(
            "accepts --host-cpu-topology only with as many CPUs as the host has, but vcpu is {vcpus} and the host has {online}"
        );
        builder.refuse(OPTION, reason);
    }
    if !given.has_extra("--itmt") || given.has_extra("--host-cpu-topology") {
        return;
    }
    for affinity in values(given.extra, "--cpu-affinity") {
        if !pins_each(affinity, vcpus) {
            let reason = "accepts --itmt only if --cpu-affinity binds each CPU of the guest to another CPU of the host";
            builder.refuse(OPTION, reason);
        }
    }
}

/// Whether an affinity such as `0=4:1=5` binds this number of CPUs to one CPU each.
fn pins_each(affinity: &str, vcpus: u32) -> bool {
    let pairs: Vec<_> = affinity.split(':').filter_map(|pair| pair.split_once('=')).collect();
    let is_number = |text: &str| text.parse::<u32>().is_ok();
    let guests: BTreeSet<_> = pairs.iter().map(|(guest, _)| guest).collect();
    let hosts: BTreeSet<_> = pairs.iter().map(|(_, host)| host).filter(|host| is_number(host)).collect();
    let wanted = usize::try_from(vcpus).unwrap_or(usize::MAX);
    guests.len() == wanted && hosts.len() == wanted && affinity.split(':').count() == wanted
}
