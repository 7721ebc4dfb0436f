//! The user's own arguments for a hypervisor: they work together with ours, or are refused with an error that names them.

#![allow(clippy::expect_used, clippy::panic, reason = "a test reports by failing")]

use launcher::facts::{HostFacts, Kvm, Landlock, Version};
use launcher::hypervisor::{lower, lower_with_script_output};
use launcher::launch::Launch;
use launcher::path::HostPath;
use launcher::spec::{Hypervisor, parse::parse};
use launcher::validate::{CheckedSpec, check};
use serde_json::{Value, json};

fn machine(fields: Value) -> CheckedSpec {
    let mut document = json!({"version": 1, "name": "web", "kernel": "/k/bzImage", "initrd": "/k/initrd"});
    if let (Value::Object(document), Value::Object(fields)) = (&mut document, fields) {
        document.extend(fields);
    }
    check(&parse(&document.to_string()).expect("a spec")).expect("a checked spec")
}

fn outcome(fields: Value, hypervisor: Hypervisor) -> Result<Launch, String> {
    let facts = HostFacts::assumed(HostPath::from("/var/lib/microvms/web"));
    lower(&machine(fields), &facts, hypervisor).map_err(|refusals| refusals.to_string())
}

fn launch(fields: Value, hypervisor: Hypervisor) -> Launch {
    outcome(fields, hypervisor).unwrap_or_else(|refusal| panic!("{refusal}"))
}

fn refusal(fields: Value, hypervisor: Hypervisor) -> String {
    outcome(fields.clone(), hypervisor).expect_err(&fields.to_string())
}

/// Returns the argument after that option, which must occur once.
fn value<'launch>(launch: &'launch Launch, option: &str) -> &'launch str {
    let at: Vec<_> = (0..launch.arguments.len()).filter(|at| launch.arguments[*at] == option).collect();
    assert_eq!(at.len(), 1, "{option} in {:?}", launch.arguments);
    &launch.arguments[at[0] + 1]
}

/// Returns the PCI slots of the devices, in order.
fn addresses(launch: &Launch) -> Vec<u32> {
    let devices = launch.arguments.iter().filter_map(|argument| argument.split_once(",addr=0x"));
    let slots = devices.map(|(_, rest)| rest.split([',', '.']).next().unwrap_or_default());
    slots.map(|slot| u32::from_str_radix(slot, 16).expect("a slot")).collect()
}

fn extra(section: &str, arguments: &[&str]) -> Value {
    json!({section: {"extraArgs": arguments}})
}

#[test]
fn ids_of_the_user_cannot_conflict_with_ours_in_qemu() {
    let taken = ["console", "control", "net0", "disk0", "share0", "memory", "usb", "balloon", "hotplug"];
    let everything = json!({
        "balloon": true, "hotplugMem": 128,
        "storeDisk": {"image": "/s"},
        "interfaces": [{"type": "user", "id": "lan", "mac": "02:00:00:00:00:01"}],
        "shares": [{"proto": "virtiofs", "tag": "t", "source": "/s", "mountPoint": "/s"}],
        "devices": [{"bus": "usb", "path": "hostbus=1,hostaddr=2"}],
    });
    let arguments = launch(everything, Hypervisor::Qemu).arguments;
    let ours: Vec<_> =
        arguments.iter().flat_map(|argument| argument.split(',')).filter_map(|part| part.strip_prefix("id=")).collect();
    assert!(ours.len() >= taken.len(), "{ours:?}");
    for id in ours {
        assert!(id.starts_with("microvm-"), "{id} could be the user's");
    }
    for argument in ["virtio-rng-pci,id=microvm-net0", "{\"driver\":\"virtio-rng-pci\",\"id\":\"microvm-x\"}"] {
        let refused = refusal(extra("qemu", &["-device", argument]), Hypervisor::Qemu);
        assert!(refused.contains("qemu.extraArgs: qemu cannot use ids that start with `microvm-`"), "{refused}");
    }
    for (device, expected) in [
        (json!({"id": "microvm-a"}), "devices[0].qemu.id: qemu cannot use ids"),
        (json!({"id": "0a"}), "devices[0].qemu.id: qemu requires ids of letters"),
        (json!({"id": "a", "deviceExtraArgs": "id=a"}), "qemu.deviceExtraArgs: qemu already has the id `a`"),
    ] {
        let refused =
            refusal(json!({"devices": [{"bus": "pci", "path": "0000:01:00.0", "qemu": device}]}), Hypervisor::Qemu);
        assert!(refused.contains(expected), "{refused}");
    }
}

#[test]
fn the_low_pci_addresses_stay_free_for_the_user() {
    let disks = |count: usize| (0..count).map(|index| json!({"image": format!("{index}.img"), "size": 1}));
    let machine = |arguments: &[&str]| {
        let mut fields = extra("qemu", arguments);
        fields["qemu"]["machine"] = json!("q35");
        fields["volumes"] = disks(4).collect();
        fields
    };
    // Ours ascend, so that the guest numbers the disks in order; 0x1f contains the chip set.
    let plain = addresses(&launch(machine(&[]), Hypervisor::Qemu));
    assert_eq!(plain, [0x1a, 0x1b, 0x1c, 0x1d, 0x1e]);
    for taken in ["addr=1c", "addr=0x1c", "addr=0x1c.0", "bus=pcie.0,addr=0x1c"] {
        let words = format!("virtio-rng-pci,{taken}");
        let beside = launch(machine(&["-device", &words]), Hypervisor::Qemu);
        let ours: Vec<u32> = beside
            .arguments
            .iter()
            .filter(|argument| **argument != words)
            .filter_map(|argument| {
                let (_, rest) = argument.split_once(",addr=0x")?;
                u32::from_str_radix(rest.split(',').next()?, 16).ok()
            })
            .collect();
        assert_eq!(ours, [0x19, 0x1a, 0x1b, 0x1d, 0x1e], "{taken}");
    }
    let crowd: Vec<&str> = std::iter::repeat_n(["-device", "virtio-rng-pci"], 26).flatten().collect();
    let refused = refusal(machine(&crowd), Hypervisor::Qemu);
    assert!(refused.contains("supports at most 30 devices, but this machine has 31"), "{refused}");
}

#[test]
fn the_slot_of_the_usb_controllers_of_q35_stays_free_if_the_user_turns_them_on() {
    for fields in [
        json!({"extraArgs": ["-usb"]}),
        json!({"extraArgs": ["-usbdevice", "tablet"]}),
        json!({"extraArgs": ["-machine", "usb=on"]}),
        json!({"machineOpts": {"usb": "on"}}),
        json!({"extraArgs": ["-machine", "usb=off"]}),
    ] {
        let mut qemu = fields.clone();
        qemu["machine"] = json!("q35");
        let disks: Vec<_> = (0..3).map(|index| json!({"image": format!("{index}.img"), "size": 1})).collect();
        let addresses = addresses(&launch(json!({"qemu": qemu, "volumes": disks}), Hypervisor::Qemu));
        let is_off = fields.to_string().contains("usb=off");
        assert_eq!(addresses.contains(&0x1d), is_off, "{fields}: {addresses:?}");
    }
}

#[test]
fn a_disk_of_the_user_is_numbered_after_ours() {
    let arguments =
        ["-device", "virtio-blk-pci,drive=x", "-device", "e1000", "-device", "virtio-blk-pci,drive=y,addr=2"];
    let mut fields = extra("qemu", &arguments);
    fields["storeDisk"] = json!({"image": "/s"});
    let arguments = launch(fields, Hypervisor::Qemu).arguments;
    for expected in [
        "virtio-blk-pci,addr=0x1c,drive=microvm-disk0",
        "virtio-rng-pci,addr=0x1d",
        "virtio-blk-pci,drive=x,addr=0x1e",
        "e1000",
        "virtio-blk-pci,drive=y,addr=2",
    ] {
        assert!(arguments.iter().any(|argument| argument == expected), "{expected} in {arguments:?}");
    }
}

#[test]
fn a_pci_device_of_the_user_selects_a_machine_with_pci() {
    let by_words = launch(extra("qemu", &["-device", "virtio-rng-pci"]), Hypervisor::Qemu);
    assert!(value(&by_words, "-machine").starts_with("q35,"), "{:?}", by_words.arguments);
    let without = launch(extra("qemu", &["-device", "isa-debug-exit"]), Hypervisor::Qemu);
    assert!(value(&without, "-machine").starts_with("microvm,"));
    let mut small = extra("qemu", &["-device", "virtio-rng-pci"]);
    small["qemu"]["machine"] = json!("microvm");
    small["qemu"]["machineOpts"] = json!({"acpi": "on"});
    assert!(value(&launch(small.clone(), Hypervisor::Qemu), "-machine").contains("pcie=on"));
    small["qemu"]["machineOpts"] = json!({"pcie": "off"});
    let refused = refusal(small, Hypervisor::Qemu);
    assert!(refused.contains("qemu.machineOpts.pcie: qemu needs PCI Express"), "{refused}");
    let many: Vec<&str> = std::iter::repeat_n(["-device", "virtio-rng-device"], 8).flatten().collect();
    assert!(value(&launch(extra("qemu", &many), Hypervisor::Qemu), "-machine").starts_with("q35,"));
}

#[test]
fn functions_of_one_card_share_a_slot_in_the_guest() {
    let device =
        |function: u8, qemu: Value| json!({"bus": "pci", "path": format!("0000:01:00.{function}"), "qemu": qemu});
    let port = json!({"qemu": {"pcieRootPorts": [{"id": "rp1"}, {"id": "rp2"}]}});
    let mut shared = port.clone();
    shared["devices"] = json!([device(0, json!({"bus": "rp1"})), device(1, json!({"bus": "rp1"}))]);
    let arguments = launch(shared, Hypervisor::Qemu).arguments;
    for expected in [
        "vfio-pci,host=0000:01:00.0,addr=0x0.0,multifunction=on,bus=rp1",
        "vfio-pci,host=0000:01:00.1,addr=0x0.1,bus=rp1",
        "pcie-root-port,id=rp1,chassis=1,addr=0x1c",
        "pcie-root-port,id=rp2,chassis=2,addr=0x1d",
    ] {
        assert!(arguments.iter().any(|argument| argument == expected), "{expected} in {arguments:?}");
    }
    let mut alone = port;
    alone["devices"] = json!([device(0, json!({"bus": "rp1"}))]);
    assert!(launch(alone, Hypervisor::Qemu).arguments.contains(&"vfio-pci,host=0000:01:00.0,bus=rp1".to_owned()));
    let words = |words: &str| json!({"deviceExtraArgs": words});
    let chosen = json!({"devices": [device(0, words("addr=5.0")), device(1, words("addr=5.1"))]});
    let arguments = launch(chosen, Hypervisor::Qemu).arguments;
    assert!(
        arguments.iter().any(|argument| argument == "vfio-pci,host=0000:01:00.0,multifunction=on,addr=5.0"),
        "{arguments:?}"
    );
}

#[test]
fn arguments_that_would_override_ours_in_qemu_are_refused() {
    for (arguments, expected) in [
        (["-kernel", "/k"], "-kernel instead of the launcher's; use kernel"),
        (["-append", "quiet"], "-append instead of the launcher's; use kernelParams"),
        (["--initrd", "/i"], "-initrd instead of the launcher's; use initrd"),
        (["-cpu", "EPYC"], "-cpu instead of the launcher's; use cpu"),
        (["-accel", "tcg"], "use qemu.accelerator"),
        (["-enable-kvm", "-S"], "use qemu.accelerator"),
        (["-machine", "pc"], "the type of this -machine instead of the launcher's; use qemu.machine"),
        (["-M", "graphics=off,accel=tcg"], "use qemu.accelerator"),
        (["-m", "1G"], "use mem"),
        (["-m", "slots=2,size=1G"], "use mem"),
        (["-smp", "4"], "use vcpu"),
        (["-name", "guest=x"], "use name"),
        (["-serial", "mon:stdio"], "-serial cannot be there too; set qemu.serialConsole = false"),
        (["-chardev", "stdio,id=x"], "-chardev cannot be there too"),
        (["-daemonize", "-S"], "leave -daemonize out"),
        (["-incoming", "defer"], "would wait for a migration instead of booting"),
        (["-display", "curses,charset=CP437"], "-display cannot be there too; set qemu.serialConsole = false"),
        (["-curses", "-S"], "-curses cannot be there too"),
        (["-no-shutdown", "-S"], "would keep running after the guest has shut down"),
        (["-action", "panic=none,shutdown=pause"], "leave -action out"),
    ] {
        let refused = refusal(extra("qemu", &arguments), Hypervisor::Qemu);
        assert!(refused.contains("qemu.extraArgs: qemu ") && refused.contains(expected), "{arguments:?}: {refused}");
    }
    for arguments in [["-m", "slots=2"], ["-smp", "sockets=1"], ["-name", "debug-threads=on"], ["-M", "graphics=off"]] {
        launch(extra("qemu", &arguments), Hypervisor::Qemu);
    }
    for (arguments, expected) in [
        (["-numa", "node"], "so it cannot have NUMA nodes; leave -numa out"),
        (["-mem-path", "/dev/shm"], "so it cannot be in a file; leave -mem-path out"),
    ] {
        launch(extra("qemu", &arguments), Hypervisor::Qemu);
        let mut backed = extra("qemu", &arguments);
        backed["hugepageMem"] = json!(true);
        let refused = refusal(backed, Hypervisor::Qemu);
        assert!(refused.contains(expected), "{refused}");
    }
    let on_terminal = json!({"qemu": {"serialConsole": false, "extraArgs": ["-serial", "stdio"]}});
    launch(on_terminal, Hypervisor::Qemu);
    let refused = refusal(json!({"qemu": {"machineOpts": {"a,b": "on"}}}), Hypervisor::Qemu);
    assert!(refused.contains("qemu.machineOpts: qemu has no machine option `a,b`"), "{refused}");
    for (key, expected) in [("type", "use that"), ("memory-backend", "already has a memory backend")] {
        let fields = json!({"hugepageMem": true, "qemu": {"machineOpts": {key: "x"}}});
        let refused = refusal(fields, Hypervisor::Qemu);
        assert!(refused.contains(&format!("qemu.machineOpts.{key}: qemu ")) && refused.contains(expected), "{refused}");
    }
}

#[test]
fn options_of_cloud_hypervisor_are_merged() {
    let on = |arguments: &[&str]| launch(extra("cloudHypervisor", arguments), Hypervisor::CloudHypervisor);
    assert_eq!(value(&on(&["--cpus", "max=4,affinity=[0@[1,2]]"]), "--cpus"), "boot=1,max=4,affinity=[0@[1,2]]");
    assert_eq!(value(&on(&["--cpus=topology=1:1:1:1"]), "--cpus"), "boot=1,max=1,topology=1:1:1:1");
    assert_eq!(value(&on(&["--memory", "prefault=on"]), "--memory"), "size=512M,mergeable=on,prefault=on");
    assert_eq!(value(&on(&["--memory", "shared=on"]), "--memory"), "size=512M,shared=on");
    let words = on(&["--memory", "prefault=on", "thp=off"]);
    assert_eq!(value(&words, "--memory"), "size=512M,mergeable=on,prefault=on,thp=off");
    assert_eq!(value(&on(&["--serial", "file=/tmp/x"]), "--serial"), "file=/tmp/x");
    assert_eq!(value(&on(&["--console", "pty", "-v"]), "--console"), "pty");
    assert_eq!(value(&on(&["--seccomp", "log"]), "--seccomp"), "log");
    assert_eq!(value(&on(&["--rng", "src=/dev/hwrng"]), "--rng"), "src=/dev/hwrng");
    assert_eq!(value(&on(&["--platform", "num_pci_segments=2"]), "--platform"), "num_pci_segments=2");
    let watched = on(&["--watchdog"]).arguments;
    assert_eq!(watched.iter().filter(|argument| *argument == "--watchdog").count(), 1);
    let silent = on(&["--serial", "null"]);
    assert_eq!(silent.console.guest_device, None);
    let vsock = on(&["--vsock", "cid=3,socket=/run/x.sock"]);
    assert_eq!(value(&vsock, "--vsock"), "cid=3,socket=/run/x.sock");
    assert!(vsock.needs.sockets_to_remove.contains(&"/run/x.sock".into()), "{:?}", vsock.needs.sockets_to_remove);
    let strings = json!({"machineId": "a67472e5570e5c8ab18cae3c77701050", "vsock": {"cid": 42}, "cloudHypervisor": {
        "platformOEMStrings": ["a=b"], "extraArgs": ["--platform", "oem_strings=[c=d]", "--vsock", "id=v,iommu=on"],
    }});
    let strings = launch(strings, Hypervisor::CloudHypervisor);
    let expected = "system_uuid=a67472e5-570e-5c8a-b18c-ae3c77701050,oem_strings=[a=b,c=d]";
    assert_eq!(value(&strings, "--platform"), expected);
    assert_eq!(value(&strings, "--vsock"), "cid=42,socket=web.vsock,id=v,iommu=on");
}

#[test]
fn options_of_the_spec_cannot_be_given_to_cloud_hypervisor_again() {
    for (arguments, expected) in [
        (["--cpus", "boot=4"], "takes boot of --cpus from vcpu; set that"),
        (["--memory", "size=1G"], "takes size of --memory from mem; set that"),
        (["--kernel", "/k"], "does not accept --kernel here; use kernel"),
        (["--cmdline", "quiet"], "use kernelParams"),
        (["--api-socket=x", "-v"], "use socket"),
        (["--memory", "shared=on,mergeable=on"], "leave `mergeable=on` out"),
        (["--memory", "hugepages=on"], "takes hugepages of --memory from hugepageMem; set that"),
        (["--memory=size=1G", "mergeable=on"], "takes size of --memory from mem; set that"),
        (["--memory=shared=on", "mergeable=on"], "leave `mergeable=on` out"),
        (["--no-shutdown", "-v"], "would keep running after the guest has shut down"),
        (["--restore", "source_url=file:///x"], "does not accept --restore here"),
    ] {
        let refused = refusal(extra("cloudHypervisor", &arguments), Hypervisor::CloudHypervisor);
        assert!(
            refused.contains("cloudHypervisor.extraArgs: ") && refused.contains(expected),
            "{arguments:?}: {refused}"
        );
    }
    let twice = refusal(extra("cloudHypervisor", &["--cpus", "max=2", "--cpus", "max=3"]), Hypervisor::CloudHypervisor);
    assert!(twice.contains("accepts --cpus only once, but it is given twice"), "{twice}");
    let empty = refusal(extra("qemu", &["", ""]), Hypervisor::Qemu);
    assert_eq!(empty.matches("cannot be given an empty argument").count(), 1, "{empty}");
    // Found by random machines: it failed when everything else had been made.
    for option in ["--debug-console", "--event-monitor", "--log-file", "--log-format", "--rtc", "--tpm"] {
        let given = [option, "path=a", &format!("{option}=path=a")];
        let twice = refusal(extra("cloudHypervisor", &given), Hypervisor::CloudHypervisor);
        assert!(twice.contains(&format!("accepts {option} only once, but it is given twice")), "{twice}");
    }
    launch(extra("cloudHypervisor", &["--pvpanic", "--watchdog", "--pvpanic"]), Hypervisor::CloudHypervisor);
    let mut shared = extra("cloudHypervisor", &["--memory", "shared=off"]);
    shared["shares"] = json!([{"proto": "virtiofs", "tag": "t", "source": "/s", "mountPoint": "/s"}]);
    let shared = refusal(shared, Hypervisor::CloudHypervisor);
    assert!(shared.contains("leave `shared=off` out"), "{shared}");
    let mut console = extra("cloudHypervisor", &["--serial", "null"]);
    console["consoleSocket"] = json!("console.sock");
    let console = refusal(console, Hypervisor::CloudHypervisor);
    assert!(console.contains("consoleSocket: cloud-hypervisor has no serial console to serve"), "{console}");
}

#[test]
fn options_that_a_hypervisor_accepts_once_are_refused_if_the_launcher_sets_them() {
    for (section, hypervisor, arguments, expected) in [
        ("crosvm", Hypervisor::Crosvm, ["--cpus", "4"], "cannot be given --cpus, because"),
        ("crosvm", Hypervisor::Crosvm, ["-m", "4"], "use mem"),
        ("crosvm", Hypervisor::Crosvm, ["--socket=x", "-p"], "cannot be given --socket, because"),
        ("kvmtool", Hypervisor::Kvmtool, ["-c", "4"], "use vcpu"),
        ("kvmtool", Hypervisor::Kvmtool, ["-m512", "--sdl"], "use mem"),
        ("kvmtool", Hypervisor::Kvmtool, ["--params", "x"], "use kernelParams"),
        ("kvmtool", Hypervisor::Kvmtool, ["-kbzImage", "--sdl"], "use kernel"),
        ("kvmtool", Hypervisor::Kvmtool, ["--cpu", "4"], "write the name in full, such as --cpus"),
        (
            "kvmtool",
            Hypervisor::Kvmtool,
            ["--debug-s", "--debug"],
            "write the name in full, such as --debug-single-step",
        ),
        ("kvmtool", Hypervisor::Kvmtool, ["--no-r", "--sdl"], "write the name in full, such as --rng"),
        ("kvmtool", Hypervisor::Kvmtool, ["--no-rng", "--sdl"], "use rng"),
        ("kvmtool", Hypervisor::Kvmtool, ["--no-nodefaults", "--sdl"], "the launcher configures all devices itself"),
        ("firecracker", Hypervisor::Firecracker, ["--no-api", "--id"], "cannot be given --no-api, because"),
    ] {
        let refused = refusal(extra(section, &arguments), hypervisor);
        let option = format!("{section}.extraArgs: {hypervisor} ");
        assert!(refused.contains(&option) && refused.contains(expected), "{arguments:?}: {refused}");
    }
    for serial in ["type=file,path=x", "type=file,path=x,num=1,hardware=serial"] {
        let refused = refusal(extra("crosvm", &["--serial", serial]), Hypervisor::Crosvm);
        assert!(refused.contains("crosvm.extraArgs: crosvm has the console on the first serial port"), "{refused}");
    }
    for serial in ["--serial=type=file,path=x,num=2", "--serial=type=file,path=x,hardware=virtio-console"] {
        launch(extra("crosvm", &[serial, "--no-rng"]), Hypervisor::Crosvm);
    }
    let mut disks = extra("kvmtool", &["-da.img", "-d", "b.img"]);
    disks["volumes"] = (0..3).map(|index| json!({"image": format!("{index}.img"), "size": 1})).collect();
    let refused = refusal(disks, Hypervisor::Kvmtool);
    assert!(refused.contains("supports at most 4 disks, but this machine has 5"), "{refused}");
    // The user can give options that the launcher does not.
    launch(extra("crosvm", &["--vsock", "3"]), Hypervisor::Crosvm);
    let network = launch(extra("kvmtool", &["--debug", "-n", "mode=user"]), Hypervisor::Kvmtool);
    assert_eq!(value(&network, "-n"), "mode=user");
}

#[test]
fn arguments_that_a_hypervisor_accepts_only_under_a_condition_are_refused_by_name() {
    let cases: [(&str, Hypervisor, &[&str], &str); 46] = [
        (
            "crosvm",
            Hypervisor::Crosvm,
            &["--enable-hwp"],
            "accepts --enable-hwp only together with --host-cpu-topology",
        ),
        ("crosvm", Hypervisor::Crosvm, &["--itmt"], "accepts --itmt only together with --enable-hwp"),
        ("crosvm", Hypervisor::Crosvm, &["--itmt"], "only together with --host-cpu-topology or --cpu-affinity"),
        ("crosvm", Hypervisor::Crosvm, &["--itmt", "--cpu-affinity", "0=0,1"], "binds each CPU of the guest"),
        ("crosvm", Hypervisor::Crosvm, &["--host-cpu-topology", "--no-smt"], "together with --no-smt"),
        ("crosvm", Hypervisor::Crosvm, &["--gdb=1", "--suspended"], "does not accept --gdb together with --suspended"),
        ("crosvm", Hypervisor::Crosvm, &["--balloon-control=/x"], "--no-balloon together with --balloon-control"),
        ("crosvm", Hypervisor::Crosvm, &["--pstore=a", "--pstore", "b"], "accepts --pstore only once"),
        ("crosvm", Hypervisor::Crosvm, &["--no-pmu"], "has --no-pmu on ARM only"),
        ("crosvm", Hypervisor::Crosvm, &["--bios", "/b"], "does not accept --bios here"),
        ("crosvm", Hypervisor::Crosvm, &["--restore", "/s"], "it would restore another machine"),
        ("crosvm", Hypervisor::Crosvm, &["--unmap-guest-memory-on-fork"], "only together with --disable-sandbox"),
        ("crosvm", Hypervisor::Crosvm, &["--host-ip", "10.0.0.1"], "accepts --host-ip only together with --netmask"),
        ("crosvm", Hypervisor::Crosvm, &["--vsock", "3", "--vsock", "4"], "accepts --vsock or --cid only once"),
        ("crosvm", Hypervisor::Crosvm, &["--serial=type=file,path=x,num=2,stdin"], "leave stdin out of --serial"),
        ("crosvm", Hypervisor::Crosvm, &["--serial=num=2", "--serial", "num=2"], "gives serial 2 twice"),
        ("crosvm", Hypervisor::Crosvm, &["--serial=hardware=virtio-console,earlycon"], "does not accept earlycon"),
        ("crosvm", Hypervisor::Crosvm, &["--protected-vm", "--protected-vm-without-firmware"], "have 2"),
        ("crosvm", Hypervisor::Crosvm, &["--irqchip", "split", "--split-irqchip"], "--irqchip together with"),
        ("firecracker", Hypervisor::Firecracker, &["--no-seccomp", "--seccomp-filter", "/f"], "together with"),
        ("firecracker", Hypervisor::Firecracker, &["--boot-timer", "--boot-timer"], "--boot-timer only once"),
        (
            "firecracker",
            Hypervisor::Firecracker,
            &["--id", "web_1"],
            "letters, digits and hyphens, but --id is `web_1`",
        ),
        ("firecracker", Hypervisor::Firecracker, &["--describe-snapshot", "/s"], "would print text and exit"),
        ("kvmtool", Hypervisor::Kvmtool, &["--sdl", "--vnc"], "accepts --vnc or --sdl or --gtk only once"),
        ("kvmtool", Hypervisor::Kvmtool, &["--debug-single-step"], "does not accept --debug-single-step here"),
        ("kvmtool", Hypervisor::Kvmtool, &["--firmware", "/f"], "does not accept --firmware here"),
        ("kvmtool", Hypervisor::Kvmtool, &["--vsock=3", "--vsock", "4"], "accepts --vsock only once"),
        ("cloudHypervisor", Hypervisor::CloudHypervisor, &["--platform", "iommu_segments=0"], "leave 0 out"),
        ("cloudHypervisor", Hypervisor::CloudHypervisor, &["--platform", "iommu_segments=[0-1]"], "leave 0 out"),
        ("cloudHypervisor", Hypervisor::CloudHypervisor, &["--platform", "iommu_segments=1"], "has no PCI segment 1"),
        ("cloudHypervisor", Hypervisor::CloudHypervisor, &["--platform", "num_pci_segments=97"], "supports 1 to 96"),
        ("cloudHypervisor", Hypervisor::CloudHypervisor, &["--disk", "path=/a,pci_segment=2"], "has no PCI segment 2"),
        (
            "cloudHypervisor",
            Hypervisor::CloudHypervisor,
            &["--platform", "num_pci_segments=2,iommu_segments=1", "--disk", "path=/a,pci_segment=1"],
            "needs iommu=on for the --disk on PCI segment 1",
        ),
        ("cloudHypervisor", Hypervisor::CloudHypervisor, &["--cpus", "max=0"], "max=0 of --cpus is too few"),
        ("cloudHypervisor", Hypervisor::CloudHypervisor, &["--cpus", "topology=2:1:1:1"], "needs a product of 1"),
        ("cloudHypervisor", Hypervisor::CloudHypervisor, &["--cpus", "max=3,topology=3:1:1:1"], "at most 2 threads"),
        ("cloudHypervisor", Hypervisor::CloudHypervisor, &["--memory", "hugepage_size=2M"], "set hugepageMem"),
        ("cloudHypervisor", Hypervisor::CloudHypervisor, &["--balloon", "size=512M"], "smaller than the memory"),
        (
            "cloudHypervisor",
            Hypervisor::CloudHypervisor,
            &["--vsock", "cid=2,socket=/v"],
            "does not accept 2 as the cid",
        ),
        (
            "cloudHypervisor",
            Hypervisor::CloudHypervisor,
            &["--console", "file"],
            "needs a path in --console: file=PATH",
        ),
        ("cloudHypervisor", Hypervisor::CloudHypervisor, &["--disk", "path=/a,id=x", "path=/b,id=x"], "has the id `x`"),
        ("cloudHypervisor", Hypervisor::CloudHypervisor, &["--disk", "path=/a,id=__x"], "ids that start with `__`"),
        (
            "cloudHypervisor",
            Hypervisor::CloudHypervisor,
            &["--disk", "path=/a,rate_limit_group=g"],
            "the id `g`, which",
        ),
        ("cloudHypervisor", Hypervisor::CloudHypervisor, &["--device", "path=/d", "path=/d/"], "/d/ is given twice"),
        (
            "cloudHypervisor",
            Hypervisor::CloudHypervisor,
            &["--memory", "shared=off", "--fs", "tag=t,socket=/s"],
            "needs shared memory for --fs; leave `shared=off` of --memory out",
        ),
        ("qemu", Hypervisor::Qemu, &["-smp", "4"], "use vcpu"),
    ];
    for (section, hypervisor, arguments, expected) in cases {
        let refused = refusal(extra(section, arguments), hypervisor);
        let option = format!("{section}.extraArgs: {hypervisor} ");
        assert!(refused.contains(&option) && refused.contains(expected), "{arguments:?}: {refused}");
    }
    let two = |mut fields: Value| {
        fields["vcpu"] = json!(2);
        fields
    };
    assert!(refusal(two(extra("crosvm", &["--gdb", "1234"])), Hypervisor::Crosvm).contains("only with one CPU"));
    let mut facts = HostFacts::assumed("/var/lib/microvms/web".into());
    facts.online_processors = Some(4);
    let topology = machine(two(extra("crosvm", &["--host-cpu-topology"])));
    let refused = lower(&topology, &facts, Hypervisor::Crosvm).expect_err("a refusal").to_string();
    assert!(refused.contains("vcpu is 2 and the host has 4"), "{refused}");
    facts.kvm = Kvm::UsableSoftware;
    let hyperv = machine(extra("cloudHypervisor", &["--cpus", "kvm_hyperv=on"]));
    let refused = lower(&hyperv, &facts, Hypervisor::CloudHypervisor).expect_err("a refusal").to_string();
    assert!(refused.contains("this host's KVM is emulated"), "{refused}");
    // What meets the conditions is accepted.
    let balloon = |mut fields: Value| {
        fields["balloon"] = json!(true);
        fields
    };
    launch(extra("crosvm", &["--host-cpu-topology", "--enable-hwp", "--itmt"]), Hypervisor::Crosvm);
    launch(two(extra("crosvm", &["--enable-hwp", "--host-cpu-topology", "--itmt"])), Hypervisor::Crosvm);
    launch(balloon(extra("crosvm", &["--balloon-control", "/x"])), Hypervisor::Crosvm);
    // crosvm accepts a switch again.
    launch(extra("crosvm", &["--no-usb", "--s2idle", "--s2idle"]), Hypervisor::Crosvm);
    let segments = ["--platform", "num_pci_segments=2,iommu_segments=[1]", "--disk", "path=/a,pci_segment=1,iommu=on"];
    launch(extra("cloudHypervisor", &segments), Hypervisor::CloudHypervisor);
    for device in [["--fs", "tag=t,socket=/s"], ["--net", "vhost_user=on,socket=/s"], ["--user-device", "socket=/s"]] {
        let shared = launch(extra("cloudHypervisor", &device), Hypervisor::CloudHypervisor);
        assert_eq!(value(&shared, "--memory"), "size=512M,shared=on", "{device:?}");
    }
}

#[test]
fn arguments_with_which_no_hypervisor_starts_a_machine_are_refused() {
    let sections = ["qemu", "cloudHypervisor", "firecracker", "crosvm", "kvmtool"];
    for (section, hypervisor) in sections.into_iter().zip(Hypervisor::ALL) {
        for (argument, expected) in [
            ("", "an empty argument"),
            ("--", "cannot be given `--`, because the launcher adds options after it"),
            ("--help", "would print text and exit with --help, instead of starting the machine"),
            ("--version", "would print text and exit with --version"),
            ("disk.img", "cannot be given `disk.img` first, because it is not an option"),
        ] {
            if argument == "disk.img" && hypervisor == Hypervisor::Qemu {
                continue;
            }
            let refused = refusal(extra(section, &[argument]), hypervisor);
            assert!(refused.contains(&format!("{section}.extraArgs: {hypervisor} ")), "{refused}");
            assert!(refused.contains(expected), "{refused}");
        }
    }
}

#[test]
fn two_arguments_of_the_user_with_the_same_id_are_refused() {
    for (first, second, id) in [
        (["-chardev", "null,id=log"], ["-chardev", "file,path=/l,id=log"], "log"),
        (["-netdev", "user,id=lan"], ["-netdev", r#"{"type":"user","id":"lan"}"#], "lan"),
        (["-netdev", "user,id=lan"], ["-nic", "user,id=lan"], "lan"),
        (["-drive", "if=none,id=d,file=/a"], ["-drive", "if=none,file=/b,id=d"], "d"),
        (["-blockdev", "null-co,node-name=d"], ["-drive", "if=none,id=d,file=/b"], "d"),
        (["-object", "rng-random,id=r"], ["--object", "rng-builtin,id=r"], "r"),
        (["-fsdev", "local,id=f,path=/a"], ["-fsdev", "local,id=f,path=/b"], "f"),
    ] {
        let printed = refusal(extra("qemu", &[first, second].concat()), Hypervisor::Qemu);
        assert!(
            printed.contains("qemu.extraArgs") && printed.contains(&format!("already has the id `{id}`")),
            "{printed}"
        );
    }
    // Ids of different kinds do not conflict.
    let apart = [
        "-chardev",
        "null,id=x",
        "-netdev",
        "user,id=x",
        "-drive",
        "if=none,id=x,file=/a",
        "-object",
        "rng-builtin,id=x",
    ];
    launch(extra("qemu", &apart), Hypervisor::Qemu);
}

#[test]
fn lists_of_firecrackers_extra_config_are_appended_and_elements_with_the_same_id_merged() {
    let with = |configuration: Value| {
        json!({
            "volumes": [{"image": "/v.img", "size": 16, "mountPoint": "/v"}],
            "interfaces": [{"type": "tap", "id": "lan", "mac": "02:00:00:00:00:01"}],
            "firecracker": {"extraConfig": configuration},
        })
    };
    let document = |configuration: Value| -> Value {
        let launch = launch(with(configuration), Hypervisor::Firecracker);
        serde_json::from_str(&launch.files[0].content).expect("a document")
    };
    let plain = document(json!({}));
    let theirs = json!({"drive_id": "mine", "path_on_host": "/m.img", "is_root_device": false});
    let ours = plain["drives"][0]["drive_id"].clone();
    let limit = json!({"bandwidth": {"size": 1, "refill_time": 1}});
    let merged = document(json!({
        "drives": [theirs, {"drive_id": ours, "rate_limiter": limit}],
        "network-interfaces": [{"iface_id": "second", "host_dev_name": "t", "guest_mac": "02:00:00:00:00:02"}],
    }));
    let drives = merged["drives"].as_array().expect("a list");
    assert_eq!(drives.len(), 2);
    assert_eq!((&drives[0]["rate_limiter"], &drives[1]), (&limit, &theirs));
    assert_eq!(drives[0]["path_on_host"], plain["drives"][0]["path_on_host"]);
    let interfaces = merged["network-interfaces"].as_array().expect("a list");
    assert_eq!((interfaces.len(), &interfaces[0]), (2, &plain["network-interfaces"][0]));
    let printed = refusal(with(json!({"drives": [theirs, theirs]})), Hypervisor::Firecracker);
    assert!(
        printed.contains("firecracker.extraConfig.drives") && printed.contains("`mine` is given twice"),
        "{printed}"
    );
    let printed = refusal(with(json!({"network-interfaces": {}})), Hypervisor::Firecracker);
    assert!(
        printed.contains("firecracker.extraConfig.network-interfaces") && printed.contains("requires a list"),
        "{printed}"
    );
}

#[test]
fn cloud_hypervisor_gets_rules_for_what_it_opens_without_having_its_own() {
    let rules = |launch: &Launch| {
        assert_eq!(launch.arguments.iter().filter(|argument| *argument == "--landlock").count(), 1);
        let words = launch.arguments.windows(2).filter(|words| words[0] == "--landlock-rules");
        let (suspended, rules): (Vec<_>, Vec<_>) =
            words.map(|words| words[1].clone()).partition(|rule| rule == "path=web.suspended,access=rw");
        assert_eq!(suspended.len(), 1, "for the memory of a suspended machine");
        rules
    };
    let on = |fields: Value| launch(fields, Hypervisor::CloudHypervisor);
    let tap = json!([{"type": "tap", "id": "vm-web", "mac": "02:00:00:00:00:01"}]);
    assert_eq!(rules(&on(json!({"interfaces": tap}))), ["path=/sys/devices/virtual/net,access=r"]);
    assert_eq!(rules(&on(json!({"vsock": {"cid": 42}}))), ["path=.,access=w"]);
    // It has a rule of its own for the directory of such a path.
    assert_eq!(rules(&on(json!({"vsock": {"cid": 42, "socket": "/run/web/vsock"}}))), [""; 0]);
    let group = "path=/dev/vfio,access=rw";
    let device = "path=/sys/bus/pci/devices/0000:01:00.0,access=r";
    assert_eq!(rules(&on(json!({"devices": [{"bus": "pci", "path": "0000:01:00.0"}]}))), [device, group]);
    let arguments = [
        ["--device", "path=/sys/bus/pci/devices/0000:01:00.0,id=card"].as_slice(),
        &["--net", "tap=vm-other,mac=02:00:00:00:00:02"],
        &["--landlock", "--landlock-rules", "path=/srv/disks,access=rw"],
    ];
    let merged = on(extra("cloudHypervisor", &arguments.concat()));
    let tap = "path=/sys/devices/virtual/net,access=r";
    assert_eq!(rules(&merged), ["path=/srv/disks,access=rw", device, group, tap]);
}

#[test]
fn cloud_hypervisor_runs_without_landlock_where_it_could_not_start_with_it() {
    let secret = json!({"initrd": "/k/initrd", "credentialFiles": {"token": "/run/token"}});
    type Change = fn(&mut HostFacts);
    let no_landlock: Change = |facts| facts.landlock = Landlock::Unusable("Linux 6.1".to_owned());
    let old: Change = |facts| {
        facts.versions.insert(Hypervisor::CloudHypervisor, Version(40, 0, 0));
    };
    let no_memory: Change = |facts| facts.memory_directory = None;
    let cases: [(Value, Change, &str); 3] = [
        (json!({}), no_landlock, "Linux 6.1"),
        (json!({}), old, "only version 41.0.0 or later has it"),
        (secret.clone(), no_memory, "needs a tmpfs at /dev/shm for the initrd with the credentials"),
    ];
    for (fields, change, reason) in cases {
        let mut facts = HostFacts::assumed("/var/lib/microvms/web".into());
        change(&mut facts);
        let launch = lower(&machine(fields), &facts, Hypervisor::CloudHypervisor).expect("a launch");
        assert!(launch.arguments.iter().all(|argument| !argument.starts_with("--landlock")), "{:?}", launch.arguments);
        let warning = format!("web: hypervisor: cloud-hypervisor runs without landlock: {reason}");
        assert_eq!(launch.warnings, [warning]);
    }
    let with = launch(secret, Hypervisor::CloudHypervisor);
    assert_eq!(with.needs.initrd.and_then(|initrd| initrd.memory_directory), Some("/dev/shm".into()));
}

#[test]
fn the_output_of_a_script_is_checked_and_merged_like_extra_args() {
    let with = |section: &str, arguments: &[&str], hypervisor: Hypervisor, output: &[&str]| {
        let mut fields = extra(section, arguments);
        fields["extraArgsScript"] = json!("arguments.sh");
        let facts = HostFacts::assumed(HostPath::from("/var/lib/microvms/web"));
        let output: Vec<_> = output.iter().map(|word| (*word).to_owned()).collect();
        lower_with_script_output(&machine(fields), &facts, hypervisor, &output)
    };
    let on_qemu = |output: &[&str]| with("qemu", &["-chardev", "null,id=log"], Hypervisor::Qemu, output);
    let harmless = on_qemu(&["-device", "pvpanic-pci", "-netdev", "user,id=lan"]).expect("a launch");
    assert!(harmless.arguments.iter().any(|argument| argument.starts_with("pvpanic-pci")), "{:?}", harmless.arguments);
    assert_eq!(value(&harmless, "-netdev"), "user,id=lan");
    assert!(harmless.arguments.contains(&"null,id=log".to_owned()), "the spec's own arguments stay");
    assert!(value(&harmless, "-sandbox").contains("spawn=deny"));
    let starts = on_qemu(&["-netdev", "tap,id=lan,script=/up"]).expect("a launch");
    assert!(!value(&starts, "-sandbox").contains("spawn=deny"));
    for (output, expected) in [
        (["-chardev", "null,id=log"], "already has the id `log`"),
        (["-append", "quiet"], "-append instead of the launcher's; use kernelParams"),
        (["-daemonize", "-S"], "leave -daemonize out"),
        (["-chardev", "null,id=microvm-console"], "choose another id"),
    ] {
        let reasons = on_qemu(&output).expect_err("a refusal").join("\n");
        assert!(reasons.starts_with("qemu ") && reasons.contains(expected), "{output:?}: {reasons}");
    }
    let on_cloud = |output: &[&str]| with("cloudHypervisor", &["-v"], Hypervisor::CloudHypervisor, output);
    let merged = on_cloud(&["--cpus", "max=4", "--vsock", "cid=3,socket=/run/x.sock"]).expect("a launch");
    assert_eq!(value(&merged, "--cpus"), "boot=1,max=4");
    assert!(merged.needs.sockets_to_remove.contains(&"/run/x.sock".into()));
    let device = on_cloud(&["--net", "tap=vm-other,mac=02:00:00:00:00:02"]).expect("a launch");
    assert!(device.arguments.contains(&"path=/sys/devices/virtual/net,access=r".to_owned()), "{:?}", device.arguments);
    let reasons = on_cloud(&["--kernel", "/k", "--cpus", "boot=2"]).expect_err("refusals");
    assert_eq!(reasons.len(), 2, "{reasons:?}");
    for (section, hypervisor, output) in [
        ("crosvm", Hypervisor::Crosvm, ["--cpus", "4"]),
        ("firecracker", Hypervisor::Firecracker, ["--config-file", "/c"]),
        ("kvmtool", Hypervisor::Kvmtool, ["-c", "4"]),
    ] {
        let reasons = with(section, &[], hypervisor, &output).expect_err("a refusal");
        assert!(reasons[0].contains(&format!("cannot be given {}, because", output[0])), "{reasons:?}");
    }
}

#[test]
fn a_volume_is_not_the_file_into_which_the_configuration_of_the_hypervisor_is_written() {
    let files = launch(json!({}), Hypervisor::Firecracker).files;
    let volumes = json!([{"image": files[0].path, "size": 8}]);
    let refused = refusal(json!({"volumes": volumes}), Hypervisor::Firecracker);
    assert!(refused.contains("volumes[0].image: firecracker has its configuration in this file"), "{refused}");
    launch(json!({"volumes": volumes}), Hypervisor::Qemu);
}
