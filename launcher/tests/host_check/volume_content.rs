//! What `check --host`, `volumes` and `run` say about the content of volumes.

use super::{Host, is_root, run};
use serde_json::{Value, json};
use std::fs;
use std::path::Path;
use std::process::Command;

#[test]
fn a_volume_with_another_file_system_is_reported_by_check_volumes_and_run() {
    let host = Host::new();
    let image = host.path("var.img");
    fs::File::create(&image).unwrap().set_len(320 << 20).unwrap();
    if !run("mkfs.xfs", &["-q", "-L", "state"], &image) {
        return;
    }
    let volume = |extra: Value| {
        let mut volume = json!({"image": "var.img", "mountPoint": "/var"});
        volume.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
        json!({"volumes": [volume]})
    };
    let expected = "contains xfs with label `state`, but the machine spec says ext4";
    for extra in [json!({"autoCreate": false}), json!({"size": 320}), json!({"autoCreate": false, "readOnly": true})] {
        for command in [["check", "--host"].as_slice(), &["volumes"], &["run"]] {
            let (succeeded, printed) = host.say(command, volume(extra.clone()));
            assert!(!succeeded && printed.contains(expected), "{command:?} {extra}: {printed}");
        }
    }
    for extra in [json!({"autoCreate": false, "fsType": "xfs"}), json!({"autoCreate": false, "mountPoint": null})] {
        let (succeeded, printed) = host.say(&["check", "--host"], volume(extra));
        assert!(succeeded, "{printed}");
    }
    let (_, printed) = host.say(&["volumes"], volume(json!({"autoCreate": false, "fsType": "xfs", "label": "data"})));
    assert!(
        printed.contains("contains xfs with label `state`, but the machine spec says xfs with label `data`"),
        "{printed}"
    );
}

#[test]
fn common_kinds_of_content_are_reported_by_name() {
    let host = Host::new();
    for (at, magic, name) in [
        (0, b"QFI\xfb\0\0\0\x03".as_slice(), "a qcow2 image"),
        (0, b"LUKS\xba\xbe", "LUKS"),
        (536, b"LVM2 001", "LVM"),
        (512, b"EFI PART", "a GPT partition table"),
        (3, b"NTFS    ", "ntfs"),
        (4086, b"SWAPSPACE2", "swap"),
        (0x2_0000, &[0x0c, 0xb1, 0xba, 0, 0, 0, 0, 0], "zfs"),
        (1024, &[0x10, 0x20, 0xf5, 0xf2], "f2fs"),
        (0x8001, b"CD001", "iso9660"),
        (0, b"QED\0", "a QED image"),
        (1560, b"LVM2 001", "LVM"),
        (65526, b"SWAPSPACE2", "swap"),
        (4086, b"S1SUSPEND\0", "the memory of a hibernated system"),
        (32, b"NXSB", "apfs"),
        (0, b"WithouFreSpacExt", "a Parallels image"),
    ] {
        let mut content = vec![0; 1 << 20];
        content[at..at + magic.len()].copy_from_slice(magic);
        fs::write(host.path("var.img"), content).unwrap();
        let printed = host.check(json!({"volumes": [{"image": "var.img", "autoCreate": false, "mountPoint": "/var"}]}));
        assert!(
            printed.contains(&format!("contains {name}")) && printed.contains(", but the machine spec says ext4: "),
            "{name}: {printed}"
        );
    }
}

/// All commands that read the volume must refuse it with this reason, and only once, on all hypervisors.
fn require_same_answer(host: &Host, volume: &Value, expected: &str) {
    let program = host.path("hypervisor");
    testing::write_program(&program, "#!/bin/sh\nexit 0\n");
    for hypervisor in ["qemu", "cloud-hypervisor", "firecracker", "crosvm", "kvmtool"] {
        for command in [["check", "--host"].as_slice(), &["volumes"], &["run"]] {
            let arguments = [command, &["--hypervisor", hypervisor]].concat();
            let mut fields = json!({"volumes": [volume], "qemu": {"accelerator": "tcg", "program": program}});
            for section in ["cloudHypervisor", "firecracker", "crosvm", "kvmtool"] {
                fields[section] = json!({"program": program});
            }
            let (succeeded, printed) = host.say(&arguments, fields);
            assert!(!succeeded && printed.contains(expected), "{arguments:?} {volume}: {printed}");
            assert_eq!(printed.matches("var.img").count(), 1, "{arguments:?} {volume}: {printed}");
        }
    }
}

#[test]
fn an_image_whose_end_was_missing_was_called_present_and_failed_in_the_guest() {
    let host = Host::new();
    let image = host.path("var.img");
    for (mkfs, mib) in [("mkfs.ext4", 32_u64), ("mkfs.xfs", 320), ("mkfs.btrfs", 128)] {
        let fs_type = mkfs.trim_start_matches("mkfs.");
        fs::write(&image, "").unwrap();
        fs::File::options().write(true).open(&image).unwrap().set_len(mib << 20).unwrap();
        if !run(mkfs, &["-q"], &image) {
            continue;
        }
        let volume = |extra: Value| {
            let mut volume = json!({"image": "var.img", "mountPoint": "/var", "fsType": fs_type});
            volume.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
            volume
        };
        let whole = json!({"volumes": [volume(json!({"size": mib}))]});
        let (succeeded, printed) = host.say(&["check", "--host"], whole);
        assert!(succeeded, "{printed}");
        fs::File::options().write(true).open(&image).unwrap().set_len(1 << 20).unwrap();
        let expected = format!("has 1048576 bytes, but its {fs_type} has {}: its end is missing", mib << 20);
        for extra in
            [json!({"size": mib}), json!({"autoCreate": false}), json!({"autoCreate": false, "readOnly": true})]
        {
            require_same_answer(&host, &volume(extra), &expected);
        }
    }
    for bytes in [0, 100, 4095] {
        fs::write(&image, vec![0; bytes]).unwrap();
        let expected = format!("contains only {bytes} bytes, but the machine spec says ext4: ");
        for extra in [json!({"size": 32}), json!({"autoCreate": false})] {
            let mut volume = json!({"image": "var.img", "mountPoint": "/var"});
            volume.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
            require_same_answer(&host, &volume, &expected);
        }
    }
}

#[test]
fn a_directory_in_the_place_of_a_volume_was_reported_twice() {
    let host = Host::new();
    fs::create_dir(host.path("var.img")).unwrap();
    for volume in [json!({"image": "var.img", "size": 32}), json!({"image": "var.img", "autoCreate": false})] {
        require_same_answer(&host, &volume, "var.img: Is a directory");
    }
}

#[test]
fn a_volume_with_unknown_content_or_none_was_listed_as_ext4() {
    let host = Host::new();
    let image = host.path("var.img");
    let listed = |volume: Value| {
        let (succeeded, printed) = host.say(&["volumes"], json!({"volumes": [volume]}));
        assert!(succeeded, "{printed}");
        printed
    };
    let foreign = json!({"image": "var.img", "autoCreate": false, "mountPoint": "/var"});
    fs::write(&image, vec![0; 1 << 20]).unwrap();
    assert!(listed(foreign.clone()).ends_with("var.img  no known file system  present\n"));
    let rows = host.say(&["volumes", "--json"], json!({"volumes": [foreign]})).1;
    let rows: Value = serde_json::from_str(&rows).unwrap();
    assert_eq!((&rows[0]["fsType"], &rows[0]["state"]), (&Value::Null, &json!("present")));
    fs::write(&image, [b"LUKS\xba\xbe".as_slice(), &[0; 1 << 20]].concat()).unwrap();
    assert!(listed(json!({"image": "var.img", "autoCreate": false})).ends_with("var.img  LUKS  present\n"));
    fs::write(&image, [b"QFI\xfb\0\0\0\x03".as_slice(), &[0; 1 << 20]].concat()).unwrap();
    let qcow2 = json!({"image": "var.img", "autoCreate": false, "imageType": "qcow2"});
    assert!(listed(qcow2).ends_with("var.img  a qcow2 image  present\n"));
}

#[test]
fn a_volume_that_a_symbolic_link_leads_to_was_reported_as_missing_although_run_creates_it() {
    if testing::find_tool("mkfs.ext4").is_none() {
        return;
    }
    let host = Host::new();
    std::os::unix::fs::symlink("elsewhere.img", host.path("var.img")).unwrap();
    let fields = json!({"volumes": [{"image": "var.img", "size": 32, "mountPoint": "/var"}]});
    let (succeeded, printed) = host.say(&["check", "--host"], fields.clone());
    assert!(succeeded, "{printed}");
    let missing = json!({"volumes": [{"image": "var.img", "autoCreate": false, "mountPoint": "/var"}]});
    let (succeeded, printed) = host.say(&["check", "--host"], missing);
    assert!(!succeeded && printed.contains("does not exist, and `autoCreate` is off"), "{printed}");
    let (succeeded, printed) = host.say(&["volumes"], fields);
    assert!(succeeded && printed.ends_with("ext4  created\n") && host.path("elsewhere.img").exists(), "{printed}");
}

/// The guest wrote to the host's memory, and the device could not get its name when it was connected.
#[test]
fn a_file_was_created_in_the_place_of_a_device_that_was_not_connected() {
    let host = Host::new();
    let device = format!("/dev/microvm-test-{}", std::process::id());
    for extra in [json!({"size": 32}), json!({}), json!({"autoCreate": false})] {
        let mut volume = json!({"image": device, "mountPoint": "/var"});
        volume.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
        for command in [["check", "--host"].as_slice(), &["volumes"], &["run"]] {
            let (succeeded, printed) = host.say(command, json!({"volumes": [volume]}));
            let is_created = ["", ".lock"].map(|ending| fs::remove_file(format!("{device}{ending}")).is_ok());
            let expected = format!("{device} does not exist");
            assert!(!succeeded && printed.contains(&expected), "{command:?} {volume}: {printed}");
            assert_eq!(is_created, [false; 2], "{command:?} {volume}");
            let remedy = "connect the device, or change `image`";
            assert!(printed.contains(remedy) && !printed.contains("autoCreate"), "{command:?} {volume}: {printed}");
        }
    }
}

/// Of most types, the label is not read.
#[test]
fn a_volume_whose_label_is_not_read_was_refused_because_of_its_label() {
    let host = Host::new();
    fs::write(host.path("var.img"), [b"\0\0\0EXFAT   ".as_slice(), &[0; 1 << 20]].concat()).unwrap();
    let volume = |fs_type: &str| json!({"image": "var.img", "autoCreate": false, "mountPoint": "/var", "fsType": fs_type, "label": "data"});
    let (succeeded, printed) = host.say(&["check", "--host"], json!({"volumes": [volume("exfat")]}));
    assert!(succeeded, "{printed}");
    let printed = host.check(json!({"volumes": [volume("xfs")]}));
    assert!(
        printed.contains(
            "contains exfat, but the machine spec says xfs with label `data`: change the spec, or use another image"
        ),
        "{printed}"
    );
}

#[test]
fn a_block_device_with_another_file_system_is_not_reported_as_present() {
    if !is_root() {
        return;
    }
    let host = Host::new();
    let image = host.path("disk");
    fs::File::create(&image).unwrap().set_len(320 << 20).unwrap();
    let attached = Command::new("losetup").args(["--find", "--show"]).arg(&image).output().unwrap();
    if !attached.status.success() {
        testing::missing(&format!("no loop device: {}", String::from_utf8_lossy(&attached.stderr)));
        return;
    }
    let device = String::from_utf8(attached.stdout).unwrap().trim().to_owned();
    let fields = json!({"volumes": [{"image": device, "mountPoint": "/var"}]});
    let empty = host.say(&["volumes"], fields.clone());
    let made = run("mkfs.xfs", &["-q"], Path::new(&device));
    let (checked, listed) = (host.check(fields.clone()), host.say(&["volumes"], fields));
    assert!(Command::new("losetup").args(["--detach", &device]).status().unwrap().success());
    assert!(empty.0 && empty.1.contains("present"), "{}", empty.1);
    let expected = "contains xfs without a label, but the machine spec says ext4";
    assert!(!made || (checked.contains(expected) && listed.1.contains(expected)), "{checked}\n{}", listed.1);
}

#[test]
fn an_image_of_another_format_or_an_unsupported_kind_is_reported() {
    let host = Host::new();
    let (base, image) = (host.path("base.img"), host.path("var.img"));
    fs::File::create(&base).unwrap().set_len(4 << 20).unwrap();
    let volume =
        |image_type: &str| json!({"volumes": [{"image": "var.img", "autoCreate": false, "imageType": image_type}]});
    let on = |fields: Value, hypervisor: &str| host.say(&["check", "--host", "--hypervisor", hypervisor], fields).1;
    let create = |arguments: &[&str]| {
        let mut command = Command::new("qemu-img");
        command.args(["create", "-q"]).args(arguments).arg(&image);
        let needs_size = !arguments.contains(&"-b");
        let made = if needs_size { command.arg("4M").status() } else { command.status() };
        made.is_ok_and(|status| status.success())
    };
    if !create(&["-f", "vpc"]) {
        testing::missing("qemu-img does not work");
        return;
    }
    let printed = host.check(volume("qcow2"));
    assert!(printed.contains("contains a VHD image, but the machine spec says a qcow2 image"), "{printed}");
    assert!(on(volume("vhd"), "cloud-hypervisor").contains("is a dynamic VHD, and cloud-hypervisor opens"), "dynamic");
    assert!(create(&["-f", "vpc", "-o", "subformat=fixed,force_size"]));
    assert!(!on(volume("vhd"), "cloud-hypervisor").contains("VHD"), "fixed");
    assert!(create(&["-f", "qcow2", "-o", "compat=0.10"]));
    assert!(on(volume("qcow2"), "crosvm").contains("is qcow2 of version 2, and crosvm opens version 3 only"));
    assert!(create(&["-f", "qcow2", "-F", "raw", "-b", base.to_str().unwrap()]));
    for hypervisor in ["cloud-hypervisor", "crosvm"] {
        let printed = on(volume("qcow2"), hypervisor);
        assert!(printed.contains(&format!("has a backing file, which {hypervisor} does not open")), "{printed}");
    }
    let (succeeded, printed) = host.say(&["check", "--host"], volume("qcow2"));
    assert!(succeeded, "{printed}");
    let data = host.path("data.raw");
    let external = format!("data_file={}", data.display());
    for (options, reason) in [(external.as_str(), "has an external data file"), ("extended_l2=on", "has extended L2")] {
        assert!(create(&["-f", "qcow2", "-o", options]));
        for hypervisor in ["cloud-hypervisor", "crosvm"] {
            let printed = on(volume("qcow2"), hypervisor);
            assert!(printed.contains(reason) && printed.contains(&format!("{hypervisor} does not")), "{printed}");
        }
    }
    // Data in the last cluster only, so that a table must be read to find it.
    fs::write(&base, [vec![0; (4 << 20) - 4096], vec![b'x'; 4096]].concat()).unwrap();
    for (options, is_refused) in [(["-c", "-S", "4k"].as_slice(), true), (&["-S", "4k"], false)] {
        let mut convert = Command::new("qemu-img");
        convert.args(["convert", "-O", "qcow2"]).args(options).args([&base, &image]);
        assert!(convert.status().unwrap().success());
        let printed = on(volume("qcow2"), "crosvm");
        assert_eq!(
            printed.contains("contains compressed clusters, which crosvm does not read"),
            is_refused,
            "{printed}"
        );
    }
}
