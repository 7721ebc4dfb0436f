//! The capability tables and the obstacles to suspending, compared with lowering for every feature.

use super::{host, machine};
use launcher::capability::{Feature, conditions};
use launcher::hypervisor::{lower, support, suspend_refusals};
use launcher::spec::Hypervisor;
use serde_json::{Value, json};

/// Returns the smallest machine that uses the feature; null if no option does.
fn asking_for(feature: Feature) -> Value {
    let volume = |name: &str, value: Value| json!({"volumes": [{"image": "a", "autoCreate": false, name: value}]});
    let share = |proto: &str, name: &str, value: Value| json!({"shares": [{"proto": proto, "tag": "t", "source": "/s", "mountPoint": "/s", name: value}]});
    let interface = |kind: &str, name: &str, value: Value| json!({"interfaces": [{"type": kind, "id": "i", "mac": "02:00:00:00:00:01", name: value}]});
    let forward = |from: &str, address: &str| {
        let mut fields = interface("user", "bridge", Value::Null);
        fields["forwardPorts"] = json!([{"from": from, "host": {"port": 1}, "guest": {"port": 2, "address": address}}]);
        fields
    };
    match feature {
        Feature::StoreDisk => json!({"storeDisk": {"image": "/s.squashfs"}}),
        Feature::LiveStoreDisk => json!({"storeDisk": {"plan": "/plan.json", "live": true}}),
        Feature::PmemStoreDisk => json!({"storeDisk": {"image": "/s.erofs", "transport": "pmem"}}),
        Feature::SealedStoreDisk => json!({"storeDisk": {"image": "/s.squashfs", "verity": true}}),
        Feature::VolumeSerial => volume("serial", json!("s")),
        Feature::VolumeDirect => volume("direct", json!(true)),
        Feature::VolumeQcow2 => volume("imageType", json!("qcow2")),
        Feature::VolumeVhd => volume("imageType", json!("vhd")),
        Feature::VolumeVhdx => volume("imageType", json!("vhdx")),
        Feature::NineP => share("9p", "readOnly", json!(false)),
        Feature::NinePReadOnly => share("9p", "readOnly", json!(true)),
        Feature::NinePSecurityModel => share("9p", "securityModel", json!("mapped")),
        Feature::Virtiofs => share("virtiofs", "readOnly", json!(true)),
        Feature::InterfaceUser => interface("user", "bridge", Value::Null),
        Feature::InterfaceTap => interface("tap", "bridge", Value::Null),
        Feature::InterfaceMacvtap => interface("macvtap", "macvtap", json!({"link": "eth0", "mode": "bridge"})),
        Feature::InterfaceBridge => interface("bridge", "bridge", json!("br0")),
        Feature::TapVhost => interface("tap", "tap", json!({"vhost": true})),
        Feature::ForwardFromHost => forward("host", ""),
        Feature::ForwardFromGuest => forward("guest", "10.0.2.10"),
        Feature::Vsock => json!({"vsock": {"cid": 3}}),
        Feature::GuestNotification => json!({"vsock": {"cid": 3, "notify": true}}),
        Feature::InitialBalloon => json!({"balloon": true, "initialBalloonMem": 64}),
        Feature::HotplugMemory => json!({"hotplugMem": 256, "hotpluggedMem": 0}),
        Feature::DevicePci => json!({"devices": [{"bus": "pci", "path": "0000:01:00.0"}]}),
        Feature::DeviceUsb => json!({"devices": [{"bus": "usb", "path": "hostbus=1,hostaddr=2"}]}),
        Feature::Credentials => json!({"credentialFiles": {"a": "/a"}}),
        Feature::CpuModel => json!({"cpu": "EPYC"}),
        Feature::MachineId => json!({"machineId": "a67472e5570e5c8ab18cae3c77701050"}),
        Feature::Console => json!({"consoleSocket": "console.sock"}),
        Feature::OtherArchitecture => json!({"architecture": "aarch64"}),
        Feature::TapMultiQueue
        | Feature::GracefulStop
        | Feature::Suspend
        | Feature::LiveMigration
        | Feature::WithoutKvm => Value::Null,
        _ => asking_by_condition(feature),
    }
}

/// Returns a machine that meets the condition of a feature, which must test one field for one value.
fn asking_by_condition(feature: Feature) -> Value {
    let condition = conditions(feature).next().expect("a condition").to_json();
    let (test, is_only) = (&condition["tests"][0], condition["tests"].as_array().map(Vec::len) == Some(1));
    assert!(is_only && condition["each"] == "" && test.get("is").is_some(), "{feature:?} needs a machine here");
    let names = test["field"].as_str().expect("a field").rsplit('.');
    names.fold(test["is"].clone(), |value, name| json!({name: value}))
}

#[test]
fn the_capability_tables_match_lowering() {
    for feature in Feature::ALL {
        let fields = asking_for(feature);
        if fields.is_null() {
            continue;
        }
        for hypervisor in Hypervisor::ALL {
            let (says, plain) =
                (support(hypervisor, feature).is_supported(), lower(&machine(json!({})), &host(), hypervisor));
            let lowered = lower(&machine(fields.clone()), &host(), hypervisor);
            let ignored = matches!(&lowered, Ok(launch) if launch.warnings.iter().any(|warning| warning.contains("it is ignored")));
            let runs = lowered.is_ok() && !ignored;
            assert_eq!(runs, says, "{feature:?} on {hypervisor}: {lowered:?}");
            assert!(!runs || lowered != plain, "{feature:?} on {hypervisor} changes nothing");
        }
    }
}

/// The hypervisors that cannot suspend a machine with the feature, among those that support it.
fn cannot_suspend(feature: Feature) -> &'static [Hypervisor] {
    use Hypervisor::{CloudHypervisor, Crosvm, Firecracker, Qemu};
    match feature {
        Feature::LiveStoreDisk => &[Qemu, CloudHypervisor, Firecracker, Crosvm],
        Feature::Virtiofs | Feature::DevicePci => &[Qemu, CloudHypervisor, Crosvm],
        Feature::NineP | Feature::Graphics => &[Qemu, Crosvm],
        Feature::VolumeQcow2 => &[CloudHypervisor, Crosvm],
        Feature::VolumeVhdx => &[Qemu, CloudHypervisor],
        // These are parts of a 9p share.
        Feature::NinePReadOnly | Feature::NinePSecurityModel => &[Qemu],
        Feature::PmemStoreDisk | Feature::VolumeVhd | Feature::DeviceUsb => &[Qemu],
        Feature::InterfaceUser | Feature::ForwardFromHost | Feature::InterfaceMacvtap => &[CloudHypervisor],
        Feature::TapVhost => &[Crosvm],
        Feature::HugePages => &[Firecracker],
        _ => &[],
    }
}

#[test]
fn a_machine_that_cannot_be_suspended_is_refused_with_the_option_that_prevents_it() {
    for feature in Feature::ALL {
        let fields = asking_for(feature);
        if fields.is_null() {
            continue;
        }
        let others = [Hypervisor::Qemu, Hypervisor::CloudHypervisor, Hypervisor::Firecracker, Hypervisor::Crosvm];
        for hypervisor in others.into_iter().filter(|hypervisor| support(*hypervisor, feature).is_supported()) {
            let mut fields = fields.clone();
            fields["hypervisor"] = json!(hypervisor);
            let refusals = suspend_refusals(&machine(fields));
            let expected = cannot_suspend(feature).contains(&hypervisor);
            assert_eq!(!refusals.is_empty(), expected, "{feature:?} on {hypervisor}: {refusals:?}");
        }
    }
    let refusals = suspend_refusals(&machine(json!({"hypervisor": "kvmtool", "balloon": true})));
    assert_eq!(
        refusals.iter().map(ToString::to_string).collect::<Vec<_>>(),
        ["web: hypervisor: kvmtool cannot save the memory and the devices of a machine; supported by qemu, \
          cloud-hypervisor, firecracker and crosvm"]
    );
}
