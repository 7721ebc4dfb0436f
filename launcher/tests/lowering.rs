//! How a launch depends on the host: without KVM, with old versions, with different kernel images.

#![allow(clippy::expect_used, clippy::panic, reason = "a test reports by failing")]

use launcher::facts::{Architecture, Desktop, HostFacts, KernelForm, Kvm, Landlock, RenderNode, Version};
use launcher::hypervisor::{lower, runs_on};
use launcher::launch::{Access, GracefulStep, KvmUse, Launch, NotificationSocket, VsockHostEnd};
use launcher::path::HostPath;
use launcher::spec::{Hypervisor, parse::parse};
use launcher::validate::{CheckedSpec, check};
use serde_json::{Value, json};

#[path = "lowering/features.rs"]
mod features;

fn machine(fields: Value) -> CheckedSpec {
    let mut document = json!({"version": 1, "name": "web", "kernel": "/k/bzImage", "initrd": "/k/initrd"});
    if let (Value::Object(document), Value::Object(fields)) = (&mut document, fields) {
        document.extend(fields);
    }
    check(&parse(&document.to_string()).expect("a spec")).expect("a checked spec")
}

fn host() -> HostFacts {
    HostFacts::assumed(HostPath::from("/var/lib/microvms/web"))
}

fn launch(fields: Value, facts: &HostFacts, hypervisor: Hypervisor) -> Launch {
    lower(&machine(fields), facts, hypervisor).unwrap_or_else(|refusals| panic!("{refusals}"))
}

fn refusals(fields: Value, facts: &HostFacts, hypervisor: Hypervisor) -> Vec<String> {
    let refusals = lower(&machine(fields), facts, hypervisor).expect_err("a refusal");
    refusals.refusals.iter().map(ToString::to_string).collect()
}

/// Returns the argument after that option.
fn value<'launch>(launch: &'launch Launch, option: &str) -> &'launch str {
    let at = launch.arguments.iter().position(|argument| argument == option);
    at.map(|at| launch.arguments[at + 1].as_str()).unwrap_or_else(|| panic!("no {option} in {:?}", launch.arguments))
}

#[test]
fn without_kvm_qemu_emulates_with_a_warning_and_the_others_refuse() {
    let facts =
        HostFacts { kvm: Kvm::Unusable("/dev/kvm is not there".to_owned()), tsc_khz: Some(2_596_000), ..host() };
    let launch = launch(json!({}), &facts, Hypervisor::Qemu);
    assert!(value(&launch, "-machine").starts_with("q35,accel=tcg,"), "{:?}", launch.arguments);
    assert_eq!(value(&launch, "-cpu"), "max");
    assert!(value(&launch, "-append").contains("no_timer_check tsc_early_khz=2596000"));
    assert_eq!(launch.needs.kvm, KvmUse::NotUsed);
    assert_eq!(launch.warnings.len(), 1);
    assert!(launch.warnings[0].contains("/dev/kvm is not there; qemu emulates"), "{:?}", launch.warnings);
    assert!(!launch.needs.device_nodes.iter().any(|node| node.path.as_str() == "/dev/kvm"));
    assert_eq!(runs_on(&machine(json!({})), &facts), [Hypervisor::Qemu]);
    assert_eq!(
        refusals(json!({}), &facts, Hypervisor::Crosvm),
        ["web: hypervisor: crosvm needs KVM, but /dev/kvm is not there; supported by qemu"]
    );
    let strict = json!({"qemu": {"accelerator": "kvm"}});
    assert!(refusals(strict, &facts, Hypervisor::Qemu)[0].contains("requires KVM, but /dev/kvm is not there"));
}

#[test]
fn emulation_can_be_requested_without_a_warning() {
    for fields in [json!({"qemu": {"accelerator": "tcg"}}), json!({"qemu": {"machineOpts": {"accel": "tcg"}}})] {
        let launch = launch(fields, &host(), Hypervisor::Qemu);
        assert!(value(&launch, "-machine").contains("accel=tcg"));
        assert_eq!(launch.warnings, [""; 0], "a requested emulation needs no warning");
        assert_eq!((value(&launch, "-cpu"), launch.needs.kvm), ("max", KvmUse::NotUsed));
    }
}

#[test]
fn a_cpu_model_is_used_with_kvm_where_kvm_supports_it() {
    let named = launch(json!({"cpu": "EPYC,+x2apic"}), &host(), Hypervisor::Qemu);
    assert!(value(&named, "-machine").contains("accel=kvm"), "{:?}", named.arguments);
    assert_eq!((value(&named, "-cpu"), named.warnings.len()), ("EPYC,+x2apic", 0));
    let without = HostFacts { kvm: Kvm::Unusable("/dev/kvm is not there".to_owned()), ..host() };
    let emulated = launch(json!({"cpu": "EPYC"}), &without, Hypervisor::Qemu);
    assert!(value(&emulated, "-machine").contains("accel=tcg") && emulated.warnings.len() == 1);
    let arm = HostFacts { architecture: Architecture::Aarch64, ..host() };
    let emulated = launch(json!({"cpu": "cortex-a57"}), &arm, Hypervisor::Qemu);
    assert!(emulated.warnings[0].contains("cpu: names a CPU model that KVM does not run on ARM"));
    let software = HostFacts { kvm: Kvm::UsableSoftware, ..host() };
    let host_model = launch(json!({"cpu": "host"}), &software, Hypervisor::Qemu);
    assert_eq!(value(&host_model, "-cpu"), "host,-arch-capabilities");
}

#[test]
fn the_cpu_model_host_is_refused_when_emulating() {
    let without = HostFacts { kvm: Kvm::Unusable("/dev/kvm is not there".to_owned()), ..host() };
    let refused = refusals(json!({"cpu": "host"}), &without, Hypervisor::Qemu);
    let expected = "web: cpu: qemu supports the CPU model `host` only with KVM, but /dev/kvm is not there; \
                    set cpu to null or \"max\"; no other hypervisor supports it";
    assert_eq!(refused, [expected]);
    let asked = json!({"cpu": "host,-sgx", "qemu": {"accelerator": "tcg"}});
    assert!(refusals(asked, &host(), Hypervisor::Qemu)[0].contains("and this machine is emulated"));
}

#[test]
fn more_cpus_than_a_hypervisor_supports_are_refused() {
    for (hypervisor, most) in [
        (Hypervisor::Qemu, 288),
        (Hypervisor::CloudHypervisor, 8192),
        (Hypervisor::Firecracker, 32),
        (Hypervisor::Crosvm, 254),
        (Hypervisor::Kvmtool, 255),
    ] {
        launch(json!({"vcpu": most}), &host(), hypervisor);
        let refused = refusals(json!({"vcpu": most + 1}), &host(), hypervisor);
        assert!(refused[0].contains(&format!("web: vcpu: {hypervisor} supports at most {most} CPUs")), "{refused:?}");
        let facts = HostFacts { kvm_max_vcpus: Some(2), ..host() };
        let refused = refusals(json!({"vcpu": 3}), &facts, hypervisor);
        assert!(refused[0].contains("uses this host's KVM, which supports at most 2 CPUs"), "{refused:?}");
    }
    let emulated = json!({"vcpu": 256, "qemu": {"accelerator": "tcg"}});
    assert!(refusals(emulated, &host(), Hypervisor::Qemu)[0].contains("supports at most 255 CPUs when it emulates"));
}

#[test]
fn hot_plugged_memory_of_cloud_hypervisor_must_be_a_multiple_of_its_step() {
    let on = |most: u64, initial: u64| json!({"hotplugMem": most, "hotpluggedMem": initial});
    launch(on(256, 128), &host(), Hypervisor::CloudHypervisor);
    for (fields, option) in [(on(200, 0), "hotplugMem"), (on(256, 64), "hotpluggedMem")] {
        let refused = refusals(fields, &host(), Hypervisor::CloudHypervisor);
        assert!(refused[0].contains(&format!("web: {option}: cloud-hypervisor plugs memory in steps of 128 MiB")));
    }
}

#[test]
fn an_initrd_that_is_larger_than_the_memory_is_refused() {
    let file_bytes = [(HostPath::from("/k/initrd"), 500 << 20), (HostPath::from("/k/bzImage"), 12 << 20)].into();
    let facts = HostFacts { file_bytes, ..host() };
    for hypervisor in Hypervisor::ALL {
        let refused = refusals(json!({}), &facts, hypervisor);
        assert!(refused[0].contains("cannot load the kernel and the initrd, 512 MiB in total, into 512 MiB of memory"));
        launch(json!({"mem": 513}), &facts, hypervisor);
    }
}

#[test]
fn persistent_memory_that_ends_within_a_huge_page_is_refused_where_it_is_unsupported() {
    let fields = || json!({"storeDisk": {"image": "/s.erofs", "transport": "pmem"}});
    let facts = |bytes: u64| HostFacts { file_bytes: [(HostPath::from("/s.erofs"), bytes)].into(), ..host() };
    for hypervisor in [Hypervisor::Qemu, Hypervisor::CloudHypervisor] {
        launch(fields(), &facts(4 << 20), hypervisor);
        for bytes in [0, 4096, (2 << 20) + 4096] {
            let refused = refusals(fields(), &facts(bytes), hypervisor);
            let reason = "maps images whose length is a multiple of 2 MiB, and /s.erofs has";
            assert!(refused[0].contains(&format!("{reason} {bytes} bytes")), "{refused:?}");
        }
    }
    for hypervisor in [Hypervisor::Firecracker, Hypervisor::Crosvm] {
        launch(fields(), &facts((2 << 20) + 4096), hypervisor);
    }
}

#[test]
fn kernel_parameters_beyond_ascii_are_refused_where_they_are_unsupported() {
    let fields = || json!({"kernelParams": ["quiet", "name=m\u{fc}ller"]});
    for hypervisor in [Hypervisor::CloudHypervisor, Hypervisor::Crosvm] {
        let refused = refusals(fields(), &host(), hypervisor);
        assert!(
            refused[0].contains("web: kernelParams[1]: ") && refused[0].contains("this one contains `\u{fc}`"),
            "{refused:?}"
        );
    }
    for hypervisor in [Hypervisor::Qemu, Hypervisor::Firecracker, Hypervisor::Kvmtool] {
        launch(fields(), &host(), hypervisor);
    }
}

#[test]
fn sockets_that_the_launcher_binds_are_refused_if_their_absolute_path_is_too_long() {
    let deep = HostFacts::assumed(HostPath::new(format!("/{}", "d".repeat(85))));
    let console = refusals(json!({"consoleSocket": "a-console-of-web.sock"}), &deep, Hypervisor::Qemu);
    assert!(console[0].contains("web: consoleSocket: qemu needs a socket at /ddd"), "{console:?}");
    assert!(
        console[0].contains("which has 108 bytes, but the path of a Unix socket can have at most 107"),
        "{console:?}"
    );
    launch(json!({"consoleSocket": "a-console-of-we.sock"}), &deep, Hypervisor::Qemu);
    let notified = || json!({"vsock": {"cid": 3, "notify": true}});
    for hypervisor in [Hypervisor::CloudHypervisor, Hypervisor::Firecracker] {
        launch(notified(), &deep, hypervisor);
        let deeper = HostFacts::assumed(HostPath::new(format!("/{}", "d".repeat(87))));
        let refused = refusals(notified(), &deeper, hypervisor);
        assert!(refused[0].contains(&format!("web: vsock.socket: {hypervisor} needs a socket at")), "{refused:?}");
    }
}

#[test]
fn crosvm_gets_the_absolute_path_of_a_relative_9p_share() {
    let share = json!({"shares": [{"tag": "t", "source": "data", "mountPoint": "/data"}]});
    let launch = launch(share, &host(), Hypervisor::Crosvm);
    assert_eq!(value(&launch, "--shared-dir"), "/var/lib/microvms/web/data:t:type=p9");
}

#[test]
fn huge_pages_require_hugetlbfs_where_the_hypervisor_reads_it() {
    use Hypervisor::{CloudHypervisor, Crosvm, Firecracker, Kvmtool, Qemu};
    for (hypervisor, reads) in
        [(Qemu, false), (CloudHypervisor, true), (Firecracker, false), (Crosvm, false), (Kvmtool, true)]
    {
        let needs = launch(json!({"hugepageMem": true}), &host(), hypervisor).needs;
        assert_eq!(needs.hugetlbfs.is_some(), reads, "{hypervisor}");
    }
}

#[test]
fn software_kvm_gets_a_supported_cpu_and_a_warning() {
    let facts = HostFacts { kvm: Kvm::UsableSoftware, ..host() };
    let qemu = launch(json!({}), &facts, Hypervisor::Qemu);
    assert_eq!(value(&qemu, "-cpu"), "host,-arch-capabilities");
    for launch in [qemu, launch(json!({}), &facts, Hypervisor::Firecracker)] {
        assert!(launch.warnings[0].contains("--accel tcg"), "{:?}", launch.warnings);
    }
    let emulated = launch(json!({"qemu": {"accelerator": "tcg"}}), &facts, Hypervisor::Qemu);
    assert_eq!(emulated.warnings, [""; 0]);
}

#[test]
fn qemu_uses_a_machine_with_pci_if_the_devices_exceed_microvm() {
    let volumes = |count: usize| {
        let volumes = (0..count).map(|index| json!({"image": format!("{index}.img"), "size": 1}));
        json!({"volumes": volumes.collect::<Vec<_>>()})
    };
    // The entropy source is a device too.
    assert!(value(&launch(volumes(7), &host(), Hypervisor::Qemu), "-machine").starts_with("microvm,"));
    assert!(value(&launch(volumes(8), &host(), Hypervisor::Qemu), "-machine").starts_with("q35,"));
    let mut small = volumes(8);
    small["qemu"] = json!({"machine": "microvm"});
    let small = launch(small, &host(), Hypervisor::Qemu);
    assert!(value(&small, "-machine").contains("pcie=on"), "{:?}", small.arguments);
    assert!(small.arguments.iter().any(|argument| argument.starts_with("virtio-blk-pci,")));
    assert!(refusals(volumes(30), &host(), Hypervisor::Qemu)[0].contains("qemu supports at most 30 devices"));
    let hotplug = json!({"hotplugMem": 512, "qemu": {"machine": "microvm"}});
    assert!(
        refusals(hotplug, &host(), Hypervisor::Qemu)[0]
            .starts_with("web: hotplugMem: qemu does not support hot-plugged memory")
    );
}

#[test]
fn machine_options_of_the_user_replace_the_chosen_ones() {
    let launch = launch(json!({"qemu": {"machineOpts": {"rtc": "on", "accel": "kvm:tcg"}}}), &host(), Hypervisor::Qemu);
    assert_eq!(value(&launch, "-machine"), "microvm,accel=kvm:tcg,rtc=on");
}

#[test]
fn an_older_cloud_hypervisor_gets_only_options_that_it_supports() {
    let disk = json!({"volumes": [{"image": "a.img", "size": 1}], "machineId": "a67472e5570e5c8ab18cae3c77701050"});
    let old = |version| HostFacts { versions: [(Hypervisor::CloudHypervisor, version)].into(), ..host() };
    let launch_on = |version| launch(disk.clone(), &old(version), Hypervisor::CloudHypervisor);
    assert_eq!(value(&launch_on(Version(50, 0, 0)), "--disk"), "path=a.img");
    assert_eq!(value(&launch_on(Version(50, 1, 0)), "--disk"), "path=a.img,image_type=raw");
    assert_eq!(value(&launch_on(Version(51, 0, 0)), "--platform"), "uuid=a67472e5-570e-5c8a-b18c-ae3c77701050");
    assert!(value(&launch_on(Version(53, 0, 0)), "--platform").starts_with("system_uuid="));
    let serial = json!({"volumes": [{"image": "a.img", "size": 1, "serial": "s"}]});
    let refused = refusals(serial, &old(Version(34, 0, 0)), Hypervisor::CloudHypervisor);
    assert!(refused[0].contains("supports serial numbers from version 35.0.0 on"), "{refused:?}");
}

#[test]
fn an_older_firecracker_gets_only_fields_that_it_supports() {
    let facts = HostFacts { versions: [(Hypervisor::Firecracker, Version(1, 13, 1))].into(), ..host() };
    let balloon = launch(json!({"balloon": true}), &facts, Hypervisor::Firecracker);
    assert!(!balloon.files[0].content.contains("free_page_reporting"));
    let hotplug = json!({"hotplugMem": 512, "hotpluggedMem": 0});
    assert!(
        refusals(hotplug, &facts, Hypervisor::Firecracker)[0].contains("supports virtio-mem from version 1.14.0 on")
    );
}

#[test]
fn a_machine_beyond_firecrackers_limits_is_refused() {
    let on = |fields| refusals(fields, &host(), Hypervisor::Firecracker);
    assert!(on(json!({"vcpu": 33}))[0].starts_with("web: vcpu: firecracker supports at most 32 CPUs"));
    assert!(on(json!({"hotplugMem": 200, "hotpluggedMem": 0}))[0].contains("plugs memory in slots of 128 MiB"));
    assert!(
        on(json!({"hotplugMem": 128}))[0]
            .starts_with("web: hotpluggedMem: firecracker plugs memory in only while it runs")
    );
}

#[test]
fn a_kernel_form_that_a_hypervisor_cannot_boot_is_refused() {
    use Hypervisor::{CloudHypervisor, Crosvm, Firecracker, Kvmtool, Qemu};
    let known = [Qemu, CloudHypervisor, Firecracker, Crosvm, Kvmtool];
    for (form, supported_by) in [
        (KernelForm::BzImage, known.to_vec()),
        (KernelForm::ElfPvh, vec![Qemu, CloudHypervisor, Firecracker, Crosvm]),
        (KernelForm::Elf, vec![Firecracker, Crosvm]),
        (KernelForm::Unknown, vec![]),
    ] {
        let facts = HostFacts { kernel_forms: [(HostPath::from("/k/bzImage"), form)].into(), ..host() };
        let mut runs_on = runs_on(&machine(json!({})), &facts);
        runs_on.retain(|hypervisor| known.contains(hypervisor));
        assert_eq!(runs_on, supported_by, "{form:?}");
    }
    let facts = HostFacts {
        kernel_forms: [(HostPath::from("/k/bzImage"), KernelForm::BzImage)].into(),
        versions: [(Firecracker, Version(1, 16, 0))].into(),
        ..host()
    };
    assert!(refusals(json!({}), &facts, Firecracker)[0].contains("boots bzImages only from version 1.17.0 on"));
    let both = json!({"vmlinux": "/k/vmlinux"});
    let launch = launch(both, &facts, Firecracker);
    assert!(launch.files[0].content.contains("\"kernel_image_path\": \"/k/vmlinux\""));
}

#[test]
fn a_kernel_command_line_that_would_be_truncated_is_refused() {
    let fields = |bytes: usize| json!({"kernelParams": ["x".repeat(bytes)]});
    for hypervisor in Hypervisor::ALL {
        let refused = refusals(fields(2047), &host(), hypervisor);
        assert!(refused[0].contains("of kernel parameters, but the kernel supports at most 2047"), "{refused:?}");
        assert!(lower(&machine(fields(1700)), &host(), hypervisor).is_ok(), "{hypervisor}");
    }
}

#[test]
fn taps_have_the_number_of_queues_that_the_hypervisor_opens() {
    let fields =
        || json!({"vcpu": 4, "user": "alice", "interfaces": [{"type": "tap", "id": "t0", "mac": "02:00:00:00:00:01"}]});
    for (hypervisor, pairs) in [
        (Hypervisor::Qemu, 4),
        (Hypervisor::CloudHypervisor, 4),
        (Hypervisor::Firecracker, 1),
        (Hypervisor::Crosvm, 4),
        (Hypervisor::Kvmtool, 1),
    ] {
        let launch = launch(fields(), &host(), hypervisor);
        let tap = &launch.needs.taps[0];
        assert_eq!((tap.queue_pairs, tap.multi_queue, tap.vnet_hdr), (pairs, pairs > 1, true), "{hypervisor}");
        assert_eq!(tap.owner.as_deref(), Some("alice"));
    }
}

#[test]
fn crosvm_opens_a_tap_with_vhost_net_with_a_single_queue() {
    let interface = json!({"type": "tap", "id": "t0", "mac": "02:00:00:00:00:01", "tap": {"vhost": true}});
    let launch = launch(json!({"vcpu": 4, "interfaces": [interface]}), &host(), Hypervisor::Crosvm);
    assert_eq!(value(&launch, "--net"), "tap-name=t0,mac=02:00:00:00:00:01,vhost-net");
    assert!(!launch.needs.taps[0].multi_queue);
}

#[test]
fn a_machine_with_more_devices_than_slots_is_refused() {
    let volumes = |count: usize| {
        let volumes = (0..count).map(|index| json!({"image": format!("{index}.img"), "size": 1}));
        json!({"volumes": volumes.collect::<Vec<_>>()})
    };
    // Besides the disks, there are the entropy source and cloud-hypervisor's watchdog.
    for (hypervisor, most) in [
        (Hypervisor::Qemu, 29),
        (Hypervisor::CloudHypervisor, 29),
        (Hypervisor::Firecracker, 16),
        (Hypervisor::Crosvm, 28),
        (Hypervisor::Kvmtool, 4),
    ] {
        assert!(lower(&machine(volumes(most)), &host(), hypervisor).is_ok(), "{hypervisor}");
        assert!(refusals(volumes(most + 1), &host(), hypervisor)[0].contains("but this machine has"), "{hypervisor}");
    }
}

#[test]
fn credentials_are_passed_by_fw_cfg_or_in_the_initrd() {
    let fields = || json!({"credentialFiles": {"token": "/run/secrets/token"}});
    let qemu = launch(fields(), &host(), Hypervisor::Qemu);
    assert_eq!(value(&qemu, "-fw_cfg"), "name=opt/io.systemd.credentials/token,file=/run/secrets/token");
    assert_eq!(qemu.needs.initrd, None);
    for hypervisor in Hypervisor::ALL.into_iter().skip(1) {
        let launch = launch(fields(), &host(), hypervisor);
        let initrd = launch.needs.initrd.expect("an initrd composed at the start");
        assert_eq!((initrd.base.as_str(), initrd.descriptor), ("/k/initrd", 100));
        let spoken =
            launch.arguments.join(" ") + &launch.files.iter().map(|file| file.content.clone()).collect::<String>();
        assert!(spoken.contains("/proc/self/fd/100") && !spoken.contains("secrets"), "{hypervisor}: {spoken}");
    }
    let without = json!({"initrd": null, "credentialFiles": {"token": "/run/secrets/token"}});
    assert!(refusals(without, &host(), Hypervisor::Crosvm)[0].contains("in the initrd, but there is no initrd"));
    let long = json!({"credentialFiles": {"a-name-of-twenty-nine-bytes-x": "/run/secrets/token"}});
    assert!(refusals(long, &host(), Hypervisor::Qemu)[0].contains("supports credential names of at most 28 bytes"));
}

#[test]
fn the_guest_notifies_the_port_or_socket_of_its_hypervisor() {
    let fields = || json!({"vsock": {"cid": 42, "notify": true}});
    let port = (1 << 30) + 42;
    for hypervisor in Hypervisor::ALL {
        let launch = launch(fields(), &host(), hypervisor);
        let spoken =
            launch.arguments.join(" ") + &launch.files.iter().map(|file| file.content.clone()).collect::<String>();
        assert!(spoken.contains(&format!("vmm.notify_socket:vsock-stream:2:{port}")), "{hypervisor}: {spoken}");
        let (vsock, notification) = (launch.vsock.expect("vsock"), launch.notification.expect("a notification"));
        assert_eq!(notification.port, port);
        let by_unix_socket = matches!(hypervisor, Hypervisor::CloudHypervisor | Hypervisor::Firecracker);
        if by_unix_socket {
            assert_eq!(vsock.host_end, VsockHostEnd::UnixSocket("web.vsock".into()));
            assert_eq!(notification.listen, NotificationSocket::Unix(format!("web.vsock_{port}").into()));
        } else {
            assert_eq!(vsock.host_end, VsockHostEnd::Kernel);
            assert_eq!(notification.listen, NotificationSocket::Vsock { cid: 42 });
        }
    }
}

#[test]
fn the_sandbox_of_qemu_is_off_only_for_the_bridge_helper() {
    let bridge = json!({"interfaces": [{"type": "bridge", "id": "lan", "mac": "02:00:00:00:00:01", "bridge": "br0"}]});
    assert_eq!(
        value(&launch(json!({}), &host(), Hypervisor::Qemu), "-sandbox"),
        "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny"
    );
    assert!(!launch(bridge, &host(), Hypervisor::Qemu).arguments.iter().any(|argument| argument == "-sandbox"));
}

#[test]
fn options_that_firecracker_accepts_once_are_not_given_twice() {
    let extra = |arguments: Value| json!({"firecracker": {"extraArgs": arguments}});
    let plain = launch(json!({}), &host(), Hypervisor::Firecracker);
    assert_eq!(value(&plain, "--level"), "Warning");
    let chosen = launch(extra(json!(["--level", "Debug"])), &host(), Hypervisor::Firecracker);
    assert_eq!(value(&chosen, "--level"), "Debug");
    assert_eq!(chosen.arguments.iter().filter(|argument| *argument == "--level").count(), 1);
    let refused = refusals(extra(json!(["--config-file", "x"])), &host(), Hypervisor::Firecracker);
    assert!(refused[0].contains("cannot be given --config-file, because the launcher already sets it"), "{refused:?}");
}

#[test]
fn a_second_user_network_of_kvmtool_is_refused_also_among_extra_arguments() {
    let user = json!([{"type": "user", "id": "t0", "mac": "02:00:00:00:00:01"}]);
    for extra in [json!(["-n", "mode=user"]), json!(["--network=mode=user"]), json!(["-nguest_mac=02:00:00:00:00:02"])]
    {
        let fields = json!({"interfaces": user, "kvmtool": {"extraArgs": extra}});
        let refused = refusals(fields, &host(), Hypervisor::Kvmtool);
        assert!(
            refused[0].contains("kvmtool.extraArgs: kvmtool supports at most one interface with user networking"),
            "{refused:?}"
        );
    }
    launch(json!({"kvmtool": {"extraArgs": ["-n", "mode=user"]}}), &host(), Hypervisor::Kvmtool);
    launch(json!({"interfaces": user, "kvmtool": {"extraArgs": ["-n", "mode=none"]}}), &host(), Hypervisor::Kvmtool);
}

#[test]
fn hyper_threading_of_firecracker_requires_an_even_number_of_vcpus() {
    let fields = |vcpu: u32| json!({"vcpu": vcpu, "firecracker": {"extraConfig": {"machine-config": {"smt": true}}}});
    let refused = refusals(fields(7), &host(), Hypervisor::Firecracker);
    assert!(
        refused[0].contains("extraConfig.machine-config.smt: firecracker requires an even number of vCPUs"),
        "{refused:?}"
    );
    for vcpu in [1, 2, 8] {
        launch(fields(vcpu), &host(), Hypervisor::Firecracker);
    }
}

#[test]
fn kvmtools_socket_is_below_its_home_and_a_path_that_is_too_long_is_refused() {
    let launch = launch(json!({}), &host(), Hypervisor::Kvmtool);
    assert_eq!(launch.environment["HOME"], "/var/lib/microvms/web");
    assert_eq!(launch.control.expect("a socket").path.as_str(), "/var/lib/microvms/web/.lkvm/web.sock");
    let deep = HostFacts::assumed(HostPath::new(format!("/{}", "d".repeat(100))));
    assert!(
        refusals(json!({}), &deep, Hypervisor::Kvmtool)[0]
            .contains("but the path of a Unix socket can have at most 107")
    );
}

#[test]
fn without_io_uring_disks_use_threads_or_synchronous_io() {
    let facts = HostFacts { io_uring_is_usable: false, ..host() };
    let disk = || json!({"storeDisk": {"image": "/s.squashfs"}});
    assert!(value(&launch(disk(), &facts, Hypervisor::Qemu), "-drive").contains("aio=threads"));
    let firecracker = launch(disk(), &facts, Hypervisor::Firecracker);
    assert!(firecracker.files[0].content.contains("\"io_engine\": \"Sync\""));
    assert!(firecracker.warnings[0].contains("this host has no io_uring"));
}

#[test]
fn a_crosvm_built_without_the_balloon_does_not_get_the_option_no_balloon() {
    let facts = HostFacts { crosvm_has_balloon: false, ..host() };
    assert!(!launch(json!({}), &facts, Hypervisor::Crosvm).arguments.contains(&"--no-balloon".to_owned()));
    assert!(refusals(json!({"balloon": true}), &facts, Hypervisor::Crosvm)[0].contains("is built without the balloon"));
}

fn graphics(fields: Value) -> Value {
    let mut graphics = json!({"enable": true});
    if let (Value::Object(graphics), Value::Object(fields)) = (&mut graphics, fields) {
        graphics.extend(fields);
    }
    json!({"graphics": graphics})
}

/// Returns a host without a graphics card, but with these displays.
fn without_card(wayland: Option<&str>, x11: Option<&str>) -> HostFacts {
    let desktop = Desktop {
        wayland_socket: wayland.map(HostPath::from),
        x11_display: x11.map(str::to_owned),
        render_node: RenderNode::Unusable("there is no /dev/dri/renderD*".to_owned()),
    };
    HostFacts { desktop, ..host() }
}

#[test]
fn the_host_renders_the_screen_if_it_can() {
    let on = |fields: Value, facts: &HostFacts| {
        let launch = launch(graphics(fields), facts, Hypervisor::Qemu);
        let card = launch.arguments.iter().find(|argument| argument.starts_with("virtio-gpu")).cloned();
        let card = card.unwrap_or_default();
        let card = card.split_once(",addr=").map_or(card.as_str(), |(name, _)| name).to_owned();
        (value(&launch, "-display").to_owned(), card, launch.warnings)
    };
    let expect = |display: &str, card: &str| (display.to_owned(), card.to_owned(), Vec::<String>::new());
    let headless = |gl: Value| json!({"backend": "headless", "gl": gl});
    let node = "egl-headless,rendernode=/dev/dri/renderD128";
    assert_eq!(on(json!({}), &host()), expect("gtk,gl=on", "virtio-gpu-gl-pci"));
    assert_eq!(on(headless(Value::Null), &host()), expect(node, "virtio-gpu-gl-pci"));
    assert_eq!(on(headless(json!(false)), &host()), expect("none", "virtio-gpu-pci"));
    let x11 = without_card(None, Some(":0"));
    assert_eq!(on(json!({"gl": false}), &x11), expect("gtk,gl=off", "virtio-gpu-pci"));
    assert_eq!(on(json!({"gl": true}), &x11), expect("gtk,gl=on", "virtio-gpu-gl-pci"), "the desktop's OpenGL renders");
    let (display, card, warnings) = on(headless(Value::Null), &x11);
    assert_eq!((display.as_str(), card.as_str()), ("none", "virtio-gpu-pci"));
    let warning =
        "web: graphics.gl: there is no /dev/dri/renderD*; the guest renders in software, without the host's OpenGL";
    assert_eq!(warnings, [warning]);
    let refused = refusals(graphics(headless(json!(true))), &x11, Hypervisor::Qemu);
    assert!(refused[0].contains("requires the host's OpenGL, but there is no /dev/dri/renderD*"), "{refused:?}");
}

#[test]
fn a_window_without_a_desktop_is_refused() {
    let bare = without_card(None, None);
    let refused = refusals(graphics(json!({"gl": false})), &bare, Hypervisor::Qemu);
    assert_eq!(refused.len(), 1);
    assert!(refused[0].contains("graphics.backend: qemu opens a window, but neither"), "{refused:?}");
    launch(graphics(json!({"backend": "headless"})), &bare, Hypervisor::Qemu);
    let x11 = refusals(graphics(json!({"gl": false})), &without_card(None, Some(":0")), Hypervisor::Crosvm);
    assert!(x11[0].contains("a Wayland desktop only") && x11[0].ends_with("; supported by qemu"), "{x11:?}");
    let comma = refusals(graphics(json!({"gl": false})), &without_card(Some("/a,name=b"), None), Hypervisor::Crosvm);
    assert!(comma[0].contains("a comma ends a path"), "{comma:?}");
}

#[test]
fn the_graphics_card_of_crosvm_is_a_side_process() {
    let fields = graphics(json!({"socket": "card.sock", "program": "/gpu/crosvm"}));
    let drawn = launch(fields, &host(), Hypervisor::Crosvm);
    assert_eq!(value(&drawn, "--vhost-user"), "type=gpu,socket=card.sock");
    let process = &drawn.needs.processes[0];
    assert_eq!((process.program.as_str(), process.socket.as_str()), ("/gpu/crosvm", "card.sock"));
    let parameters = process.arguments.last().expect("parameters");
    assert!(parameters.contains("virgl") && parameters.contains("cross-domain"), "{parameters}");
    let software = launch(graphics(json!({"gl": false})), &without_card(Some("/w"), None), Hypervisor::Crosvm);
    let parameters = software.needs.processes[0].arguments.last().expect("parameters");
    assert!(parameters.contains("\"backend\":\"2d\"") && !parameters.contains("virgl"), "{parameters}");
}

#[test]
fn a_screen_uses_three_pci_slots() {
    let mut fields = graphics(json!({}));
    let volumes = (0..27).map(|index| json!({"image": format!("{index}.img"), "size": 1}));
    fields["volumes"] = volumes.collect::<Vec<_>>().into();
    let refused = refusals(fields, &host(), Hypervisor::Qemu);
    assert!(refused[0].contains("supports at most 30 devices, but this machine has 31"), "{refused:?}");
    let mut small = graphics(json!({}));
    small["qemu"] = json!({"machine": "microvm"});
    assert!(value(&launch(small, &host(), Hypervisor::Qemu), "-machine").contains("pcie=on"));
}

#[test]
fn vulkan_requires_a_new_qemu_and_the_hosts_opengl() {
    let fields = || graphics(json!({"vulkan": "venus", "hostmem": "4G"}));
    let new = launch(fields(), &host(), Hypervisor::Qemu);
    assert!(new.arguments.contains(&"virtio-gpu-gl-pci,addr=0x1c,blob=on,hostmem=4G,venus=on".to_owned()), "{new:?}");
    let old = HostFacts { versions: [(Hypervisor::Qemu, Version(9, 1, 2))].into(), ..host() };
    let refused = refusals(fields(), &old, Hypervisor::Qemu);
    assert!(
        refused[0].contains("graphics.vulkan: qemu supports Vulkan in the guest from version 9.2.0 on"),
        "{refused:?}"
    );
    let mut headless = fields();
    headless["graphics"]["backend"] = json!("headless");
    let refused = refusals(headless, &without_card(None, None), Hypervisor::Qemu);
    assert!(refused[0].contains("graphics.vulkan: qemu requires the host's OpenGL, but"), "{refused:?}");
}

#[test]
fn on_arm_the_machine_model_is_virt_and_the_console_is_ttyama0() {
    let facts = HostFacts { architecture: Architecture::Aarch64, ..host() };
    let qemu = launch(json!({}), &facts, Hypervisor::Qemu);
    assert_eq!(qemu.program.as_str(), "qemu-system-aarch64");
    assert!(value(&qemu, "-machine").starts_with("virt,accel=kvm,"));
    assert!(value(&qemu, "-append").starts_with("console=ttyAMA0 "));
    assert_eq!(qemu.shutdown.graceful, [GracefulStep::QmpSystemPowerdown], "there is no keyboard to press keys on");
    let firecracker = launch(json!({}), &facts, Hypervisor::Firecracker);
    assert_eq!(firecracker.shutdown.graceful, [], "ctrl-alt-delete is x86 only");
}

#[test]
fn a_guest_of_another_architecture_is_emulated_or_refused() {
    let fields = || json!({"architecture": "aarch64", "cpu": "cortex-a57"});
    let qemu = launch(json!({"architecture": "aarch64"}), &HostFacts { tsc_khz: Some(1), ..host() }, Hypervisor::Qemu);
    assert_eq!(qemu.program.as_str(), "qemu-system-aarch64");
    assert!(value(&qemu, "-machine").starts_with("virt,accel=tcg,"), "{:?}", qemu.arguments);
    assert!(!value(&qemu, "-append").contains("tsc_early_khz"));
    assert_eq!(value(&launch(fields(), &host(), Hypervisor::Qemu), "-cpu"), "cortex-a57");
    let refused = refusals(json!({"architecture": "aarch64"}), &host(), Hypervisor::Kvmtool);
    assert_eq!(
        refused,
        ["web: architecture: kvmtool cannot run a guest for aarch64 on a host with x86_64; supported by qemu"]
    );
    let strict = json!({"architecture": "aarch64", "qemu": {"accelerator": "kvm"}});
    assert!(refusals(strict, &host(), Hypervisor::Qemu)[0].contains("can only be emulated"));
}

#[test]
fn features_that_the_guest_does_not_need_are_omitted_with_a_warning() {
    let fields = json!({"volumes": [{"image": "a.img", "size": 1, "serial": "s", "direct": true}]});
    let launch = launch(fields, &host(), Hypervisor::Firecracker);
    assert_eq!(launch.warnings.len(), 2, "{:?}", launch.warnings);
    assert!(launch.warnings[0].contains("web: volumes[0].serial: firecracker cannot set serial numbers"));
    assert_eq!(launch.disks[0].serial, None);
}

#[test]
fn the_launch_lists_everything_that_must_exist() {
    let fields = json!({
        "vmlinux": "/k/vmlinux",
        "storeDisk": {"plan": "/s/plan.json"},
        "volumes": [{"image": "a.img", "size": 4, "label": "data"}],
        "shares": [{"proto": "virtiofs", "tag": "t", "source": "/srv", "mountPoint": "/srv"}],
        "preStart": [["/bin/true"]],
    });
    let needs = launch(fields, &host(), Hypervisor::CloudHypervisor).needs;
    let present: Vec<_> = needs.present.iter().map(|presence| (presence.path.as_str(), presence.access)).collect();
    assert_eq!(
        present,
        [
            ("/s/plan.json", Access::Read),
            ("/srv", Access::WriteDirectory),
            ("/k/vmlinux", Access::Read),
            ("/k/initrd", Access::Read),
        ]
    );
    let store_disk = needs.store_disk.as_ref().expect("made from the plan");
    assert_eq!((store_disk.plan.as_str(), store_disk.image.as_str()), ("/s/plan.json", "web-store.squashfs"));
    assert_eq!(needs.volumes[0].creation.as_ref().map(|creation| creation.size_mib), Some(4));
    assert_eq!(needs.processes[0].socket.as_str(), "web-virtiofs-t.sock");
    assert_eq!(needs.pre_start, [["/bin/true"]]);
    let sockets: Vec<_> = needs.sockets_to_remove.iter().map(HostPath::as_str).collect();
    assert_eq!(sockets, ["web-virtiofs-t.sock", "web.sock"]);
    // A service of the host may serve the share already.
    let to_clear: Vec<_> = needs.sockets_to_clear().map(HostPath::as_str).collect();
    assert_eq!(to_clear, ["web.sock"]);
}

/// When the guest restarts, such a version opens its disks again without a check of the launcher.
#[test]
fn an_old_cloud_hypervisor_gets_a_raw_disk_that_its_guest_writes_to_only_if_it_cannot_open_other_files() {
    let fields = |read_only: bool, image_type: &str| json!({"volumes": [{"image": "a.img", "autoCreate": false, "readOnly": read_only, "imageType": image_type}]});
    let facts = |major: u32, landlock: Landlock, is_confined: bool| {
        let versions = [(Hypervisor::CloudHypervisor, Version(major, 0, 0))].into();
        HostFacts { versions, landlock, is_confined, ..host() }
    };
    let without = || Landlock::Unusable("Linux 6.1".to_owned());
    let accepts =
        |fields: Value, facts: HostFacts| lower(&machine(fields), &facts, Hypervisor::CloudHypervisor).is_ok();
    let refused = refusals(fields(false, "raw"), &facts(50, without(), false), Hypervisor::CloudHypervisor);
    assert!(refused[0].contains("volumes[0].image: cloud-hypervisor detects the format of a disk"), "{refused:?}");
    assert!(accepts(fields(false, "raw"), facts(50, Landlock::Usable, false)));
    assert!(accepts(fields(false, "raw"), facts(50, without(), true)));
    assert!(accepts(fields(false, "raw"), facts(51, without(), false)));
    assert!(accepts(fields(true, "raw"), facts(50, without(), false)));
    assert!(accepts(fields(false, "qcow2"), facts(50, without(), false)));
}
