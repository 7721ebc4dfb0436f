//! Tests of each rule on the smallest spec that violates it.

use super::*;
use crate::spec::parse::parse;
use serde_json::{Value, json};

/// Returns the smallest spec with these fields added or replaced.
fn spec(fields: Value) -> MachineSpec {
    let mut document = json!({"version": 1, "name": "web", "kernel": "/k/bzImage"});
    if let (Value::Object(document), Value::Object(fields)) = (&mut document, fields) {
        document.extend(fields);
    }
    parse(&document.to_string()).expect("a spec by its types")
}

fn problems(fields: Value) -> Vec<String> {
    check(&spec(fields)).expect_err("a problem").iter().map(ToString::to_string).collect()
}

fn checked(fields: Value) -> CheckedSpec {
    check(&spec(fields)).expect("no problem")
}

#[test]
fn each_rule_reports_exactly_one_problem() {
    let volume = |extra: Value| {
        let mut volume = json!({"image": "a.img", "size": 1});
        if let (Value::Object(volume), Value::Object(extra)) = (&mut volume, extra) {
            volume.extend(extra);
        }
        json!({"volumes": [volume]})
    };
    let tap = |extra: Value| {
        let mut interface = json!({"type": "tap", "id": "vm-web", "mac": "02:00:00:00:00:01"});
        if let (Value::Object(interface), Value::Object(extra)) = (&mut interface, extra) {
            interface.extend(extra);
        }
        json!({"interfaces": [interface]})
    };
    let screen = |mut fields: Value| {
        fields["enable"] = json!(true);
        json!({"graphics": fields})
    };
    let long = "x".repeat(108);
    for (fields, expected) in [
        (json!({"name": "../web"}), "../web: name: `../web` must start with a letter"),
        (json!({"name": "a/b"}), "a/b: name: `a/b` contains '/'"),
        (json!({"vcpu": 0}), "web: vcpu: must be at least 1"),
        (json!({"mem": 0}), "web: mem: must be at least 1 MiB"),
        (
            json!({"mem": 513, "hugepageMem": true}),
            "web: mem: 513 MiB is not a multiple of 2 MiB, the size of huge pages",
        ),
        (json!({"mem": 8_589_934_592_u64}), "web: mem: 8589934592 MiB is more than a machine can have"),
        (
            json!({"hotplugMem": 4, "hotpluggedMem": 6}),
            "web: hotpluggedMem: must not be more than hotplugMem, which is 4 MiB",
        ),
        (json!({"hotplugMem": 5, "hotpluggedMem": 4}), "web: hotplugMem: must be even"),
        (screen(json!({"backend": "cocoa"})), "web: graphics.backend: \"cocoa\" is supported on macOS only"),
        (screen(json!({"vulkan": "venus", "gl": false})), "web: graphics.vulkan: requires the host's OpenGL"),
        (screen(json!({"vulkan": "venus", "hostmem": "3G"})), "web: graphics.hostmem: `3G` is not a size"),
        (screen(json!({"vulkan": "venus", "hostmem": "4G,x=y"})), "web: graphics.hostmem: `4G,x=y` is not a size"),
        (screen(json!({"program": "-gpu"})), "web: graphics.program: `-gpu` would be taken for an option"),
        (
            screen(json!({"socket": "web.sock"})),
            "web: graphics.socket: the socket `web.sock` is already used by socket",
        ),
        (json!({"initialBalloonMem": 4}), "web: initialBalloonMem: requires balloon = true"),
        (
            json!({"balloon": true, "initialBalloonMem": 512}),
            "web: initialBalloonMem: must be less than mem, which is 512 MiB",
        ),
        (json!({"kernel": ""}), "web: kernel: must not be empty"),
        (json!({"kernel": "-k"}), "web: kernel: `-k` would be taken for an option"),
        (json!({"kernelParams": ["a\nb"]}), "web: kernelParams[0]: `a\\nb` contains the control character"),
        (json!({"machineId": "web"}), "web: machineId: must be a UUID"),
        (
            json!({"credentialFiles": {"a/b": "/run/a"}}),
            "web: credentialFiles.a/b: `a/b` cannot be the name of a credential",
        ),
        (json!({"devices": [{"bus": "pci", "path": "1:0"}]}), "web: devices[0].path: `1:0` is not a PCI address"),
        (json!({"user": "a b"}), "web: user: `a b` cannot be the name of a user"),
        (json!({"preStart": [[]]}), "web: preStart[0]: must name a program"),
        (json!({"socket": long}), "web: socket: `xxx"),
        (json!({"consoleSocket": "web.sock"}), "web: consoleSocket: the socket `web.sock` is already used by socket"),
        (json!({"storeDisk": {}}), "web: storeDisk: must contain an image, or a plan"),
        (
            json!({"storeDisk": {"image": "a", "cache": "/c"}}),
            "web: storeDisk.cache: has an effect only with storeDisk.plan",
        ),
        (volume(json!({"size": null})), "web: volumes[0].size: must be set, because autoCreate is on"),
        (volume(json!({"size": 0})), "web: volumes[0].size: must be at least 1 MiB"),
        (volume(json!({"fsType": "ntfs"})), "web: volumes[0].fsType: `ntfs` cannot be created; use one of ext2"),
        (
            volume(json!({"label": "seventeen-bytes-x"})),
            "web: volumes[0].label: `seventeen-bytes-x` has 17 bytes, but a label of ext4 has at most 16",
        ),
        (volume(json!({"label": "a/b"})), "web: volumes[0].label: `a/b` cannot be a name below"),
        (
            volume(json!({"serial": "twenty-one-bytes-long"})),
            "web: volumes[0].serial: `twenty-one-bytes-long` has 21 bytes",
        ),
        (volume(json!({"imageType": "qcow2"})), "web: volumes[0].imageType: only raw images can be created"),
        (volume(json!({"mountPoint": "var"})), "web: volumes[0].mountPoint: `var` must be an absolute path"),
        (
            json!({"storeDisk": {"image": "a.img"}, "volumes": [{"image": "./a.img", "size": 1}]}),
            "web: volumes[0].image: the image `a.img` is already used by storeDisk.image",
        ),
        (
            json!({"initrd": "/boot/initrd", "volumes": [{"image": "/boot/initrd", "autoCreate": false}]}),
            "web: volumes[0].image: `/boot/initrd` is the initrd of this machine, which its guest must not change",
        ),
        (
            json!({"volumes": [{"image": "./microvm.log", "size": 1}]}),
            "web: volumes[0].image: `microvm.log` is a file that microvm keeps in the state directory",
        ),
        (
            json!({"volumes": [{"image": "./web.suspended/var.img", "size": 1}]}),
            "web: volumes[0].image: `web.suspended/var.img` is in `web.suspended`, which is deleted when the machine resumes",
        ),
        (
            json!({"volumes": [{"image": "web.suspended", "size": 1}]}),
            "web: volumes[0].image: `web.suspended` is the directory in which microvm keeps the suspended machine",
        ),
        (
            json!({"storeDisk": {"plan": "/p", "image": "a", "verity": true}, "volumes": [{"image": "a.verity.json", "size": 1}]}),
            "web: volumes[0].image: `a.verity.json` is the file with the root hash of the store disk",
        ),
        (
            json!({"storeDisk": {"plan": "/p"}, "volumes": [{"image": "/p", "size": 1}]}),
            "web: volumes[0].image: `/p` is the plan of the store disk of this machine, which its guest must not change",
        ),
        (
            json!({"initrd": "/initrd", "storeDisk": {"plan": "/p", "image": "/initrd"}}),
            "web: storeDisk.image: `/initrd` is the initrd of this machine, which the store disk would replace",
        ),
        (json!({"storeDisk": {"image": "a/"}}), "web: storeDisk.image: `a/` is the path of a directory"),
        (json!({"storeDisk": {"plan": "/p/"}}), "web: storeDisk.plan: `/p/` is the path of a directory"),
        (json!({"volumes": [{"image": "a/", "size": 1}]}), "web: volumes[0].image: `a/` is the path of a directory"),
        (
            json!({"volumes": [{"image": "a", "size": 1}, {"image": "./a.lock", "size": 1}]}),
            "web: volumes[1].image: `./a.lock` is the lock file of volumes[0].image",
        ),
        (
            json!({"shares": [{"tag": "a/b", "source": "/s", "mountPoint": "/s"}]}),
            "web: shares[0].tag: `a/b` contains '/'",
        ),
        (
            json!({"shares": [{"tag": "x".repeat(32), "source": "/s", "mountPoint": "/s"}]}),
            "has 32 bytes, but the tag of such a share has at most 31",
        ),
        (
            json!({"shares": [{"proto": "virtiofs", "tag": "a", "source": "/s", "mountPoint": "/s", "extraArgs": ["--translate-uid=map:0:1:1"]}]}),
            "web: shares[0].posixAcl: is incompatible with translated",
        ),
        (
            json!({"shares": [{"tag": "a", "source": "/s", "mountPoint": "/rw"}], "writableStoreOverlay": "/rw/store"}),
            "web: writableStoreOverlay: is on a 9p share",
        ),
        (
            json!({"volumes": [{"image": "a", "size": 1, "readOnly": true, "mountPoint": "/rw"}], "writableStoreOverlay": "/rw"}),
            "web: writableStoreOverlay: is on volumes[0], which is read-only",
        ),
        (
            tap(json!({"id": "a-name-that-is-too-long"})),
            "web: interfaces[0].id: `a-name-that-is-too-long` has 23 bytes",
        ),
        (tap(json!({"mac": "02"})), "web: interfaces[0].mac: `02` is not a MAC address"),
        (
            tap(json!({"bridge": "br0"})),
            "web: interfaces[0].bridge: has an effect only with type = \"bridge\", but the type is \"tap\"",
        ),
        (tap(json!({"type": "bridge"})), "web: interfaces[0].bridge: must be set"),
        (tap(json!({"type": "macvtap"})), "web: interfaces[0].macvtap: must be set"),
        (
            tap(json!({"type": "user", "tap": {"vhost": true}})),
            "web: interfaces[0].tap.vhost: has an effect only with type = \"tap\"",
        ),
        (
            json!({"forwardPorts": [{"host": {"port": 1}, "guest": {"port": 2}}]}),
            "web: forwardPorts: require an interface with type = \"user\"",
        ),
        (json!({"vsock": {"cid": 2}}), "web: vsock.cid: 2 is reserved"),
        (json!({"vsock": {"cid": 4_294_967_295_u32}}), "web: vsock.cid: 4294967295 is reserved"),
        (json!({"vsock": {"notify": true}}), "web: vsock.notify: requires vsock.cid"),
    ] {
        let found = problems(fields.clone());
        assert!(found.len() == 1 && found[0].contains(expected), "{fields}\n wanted {expected}\n found  {found:#?}");
    }
}

#[test]
fn all_problems_are_reported_at_once() {
    let found = problems(json!({
        "name": "a b", "vcpu": 0, "mem": 0,
        "interfaces": [{"type": "tap", "id": "t", "mac": "x"}, {"type": "tap", "id": "t", "mac": "02:00:00:00:00:01"}],
    }));
    assert_eq!(found.len(), 5, "{found:#?}");
}

#[test]
fn the_store_disk_comes_first_and_the_volumes_follow() {
    let spec = checked(json!({
        "storeDisk": {"plan": "/nix/store/x-plan.json"},
        "volumes": [{"image": "a.img", "size": 1}, {"image": "/dev/vg/b", "readOnly": true}],
    }));
    let disks: Vec<_> =
        spec.disks.iter().map(|disk| (disk.device.as_str(), disk.image.as_str(), disk.read_only)).collect();
    assert_eq!(
        disks,
        [("/dev/vda", "web-store.squashfs", true), ("/dev/vdb", "a.img", false), ("/dev/vdc", "/dev/vg/b", true)]
    );
    assert_eq!(spec.store_disk.expect("made from a plan").builder.as_str(), "microvm-image");
}

#[test]
fn two_interfaces_can_have_the_same_mac_address_only_with_user_networking() {
    let machine = |kind: &str| {
        let interface = |kind: &str, id: &str| json!({"type": kind, "id": id, "mac": "02:00:00:00:00:01"});
        json!({"interfaces": [interface(kind, "a"), interface("tap", "b")]})
    };
    assert_eq!(checked(machine("user")).interfaces.len(), 2);
    let message = "web: interfaces[1].mac: the MAC address `02:00:00:00:00:01` is already used by interfaces[0].mac";
    assert_eq!(problems(machine("tap")), [message]);
}

#[test]
fn what_would_let_virtiofsd_leave_a_closure_is_refused() {
    let machine = |handles: &str, arguments: &[&str]| {
        let share = json!({
            "proto": "virtiofs", "tag": "store", "source": "/nix/store", "closure": "closure", "mountPoint": "/nix/store",
            "readOnly": true, "extraArgs": arguments,
        });
        json!({"shares": [share], "virtiofsd": {"inodeFileHandles": handles, "extraArgs": arguments}})
    };
    for allowed in [&["--log-level=debug"][..], &["--modcaps=-mknod:-chown", "--sandbox=namespace"]] {
        assert_eq!(checked(machine("prefer", allowed)).shares.len(), 1, "{allowed:?}");
    }
    for refused in [
        "--modcaps=+dac_read_search",
        "--modcaps=-chown:+sys_admin",
        "--modcaps",
        "--sandbox=none",
        "--sandbox",
        "-o",
        "-osource=/",
    ] {
        let found = problems(machine("never", &[refused]));
        assert_eq!(found.len(), 2, "{found:?}");
        let reason = format!("`{refused}` changes what virtiofsd can reach");
        assert!(found[0].starts_with("web: virtiofsd.extraArgs: ") && found[0].contains(&reason), "{found:?}");
        assert!(found[1].starts_with("web: shares[0].extraArgs: ") && found[1].contains(&reason), "{found:?}");
    }
    let found = problems(machine("mandatory", &[]));
    assert!(found[0].starts_with("web: virtiofsd.inodeFileHandles: \"mandatory\" lets virtiofsd open"), "{found:?}");
}

#[test]
fn the_overlay_is_on_the_deepest_mount_point_above_it() {
    let shares = |source: &str| {
        json!({
            "writableStoreOverlay": "/nix/.rw-store",
            "shares": [
                {"proto": "virtiofs", "tag": "root", "source": source, "mountPoint": "/nix"},
                {"proto": "virtiofs", "tag": "rw", "source": "/rw", "mountPoint": "/nix/.rw-store"},
                {"proto": "virtiofs", "tag": "near", "source": "/near", "mountPoint": "/nix/.rw"},
            ],
        })
    };
    let holders: Vec<_> = checked(shares("/r")).shares.iter().map(|share| share.holds_overlay).collect();
    assert_eq!(holders, [false, true, false]);
}

#[test]
fn machines_that_use_the_same_host_resource_conflict() {
    let machine = |name: &str, fields: Value| {
        let mut fields = fields;
        fields["name"] = json!(name);
        checked(fields)
    };
    let fields = json!({
        "interfaces": [{"type": "tap", "id": "vm-a", "mac": "02:00:00:00:00:0a"}],
        "vsock": {"cid": 3},
        "storeDisk": {"image": "/nix/store/x.squashfs"},
        "volumes": [{"image": "/srv/data.img", "size": 1}],
    });
    let (first, second) = (machine("a", fields.clone()), machine("b", fields));
    let found: Vec<_> = check_across(&[&first, &second]).iter().map(ToString::to_string).collect();
    assert_eq!(found.len(), 4, "{found:#?}");
    let clash =
        "a, b: vsock.cid: the vsock address `3` is used by a's vsock.cid and b's vsock.cid; only one of them can run";
    assert!(found.iter().any(|problem| problem == clash), "{found:#?}");
    assert!(!found.iter().any(|problem| problem.contains("squashfs")), "a read-only image may be shared: {found:#?}");
    let other = machine("c", json!({"volumes": [{"image": "data.img", "size": 1}]}));
    assert_eq!(check_across(&[&first, &other]), []);
}

#[test]
fn a_second_macvtap_on_a_link_in_the_mode_passthru_is_refused() {
    let on = |id: &str, mac: u32, mode: &str| json!({"type": "macvtap", "id": id, "mac": format!("02:00:00:00:00:0{mac}"), "macvtap": {"link": "eth0", "mode": mode}});
    let both = json!([on("a", 1, "bridge"), on("b", 2, "passthru")]);
    assert_eq!(
        problems(json!({"interfaces": both})),
        [
            "web: interfaces[1].macvtap.mode: the mode \"passthru\" uses the whole link `eth0`, which interfaces[0] uses too"
        ]
    );
    let machines = |mode: &str| {
        let first = checked(json!({"name": "a", "interfaces": [on("a", 1, mode)]}));
        let second = checked(json!({"name": "b", "interfaces": [on("b", 2, "bridge")]}));
        check_across(&[&first, &second]).iter().map(ToString::to_string).collect::<Vec<_>>()
    };
    assert_eq!(machines("bridge"), [""; 0]);
    assert!(machines("passthru")[0].contains("the link `eth0` is used by a's interfaces[0].macvtap.link"));
}
