//! `microvm check --host` reports before the start what would make it fail: the content of volumes, places where they
//! cannot be created, and missing permissions of the machine's user.

#![allow(clippy::unwrap_used, reason = "a test reports by failing")]

use serde_json::{Value, json};
use std::fs;
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::process::Command;

/// A machine whose hypervisor is a program that does nothing.
struct Host {
    directory: tempfile::TempDir,
}

impl Host {
    fn new() -> Self {
        let host = Self { directory: tempfile::tempdir().unwrap() };
        fs::set_permissions(host.path(""), fs::Permissions::from_mode(0o755)).unwrap();
        fs::create_dir(host.path("bin")).unwrap();
        let mut kernel = vec![0; 0x400];
        kernel[0x202..0x206].copy_from_slice(b"HdrS");
        fs::write(host.path("bzImage"), kernel).unwrap();
        host
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// Returns the output of `microvm` for the machine with these fields, and whether the command succeeded.
    fn say(&self, command: &[&str], fields: Value) -> (bool, String) {
        let mut spec = json!({"version": 1, "name": "web", "kernel": "bzImage", "qemu": {"accelerator": "tcg", "program": "/bin/true"}});
        spec.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
        fs::write(self.path("web.json"), spec.to_string()).unwrap();
        let path = format!("{}:{}", self.path("bin").display(), std::env::var("PATH").unwrap());
        let mut microvm = Command::new(env!("CARGO_BIN_EXE_microvm"));
        microvm.args(command).arg("web.json").current_dir(self.path("")).env("PATH", path);
        microvm.env("MICROVM_RUNTIME_DIR", self.path("run")).env_remove("NOTIFY_SOCKET").env_remove("MICROVM_NAME");
        let output = microvm.output().unwrap();
        (output.status.success(), String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned())
    }

    fn check(&self, fields: Value) -> String {
        self.say(&["check", "--host"], fields).1
    }
}

fn run(program: &str, arguments: &[&str], last: &Path) -> bool {
    let done = Command::new(program).args(arguments).arg(last).output();
    let Ok(output) = done else {
        testing::missing(&format!("{program} is not installed"));
        return false;
    };
    assert!(output.status.success(), "{program}: {}", String::from_utf8_lossy(&output.stderr));
    true
}

fn is_root() -> bool {
    let is_root = nix::unistd::geteuid().is_root();
    if !is_root {
        testing::missing("only root can become another user");
    }
    is_root
}

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
    let expected = "holds xfs with label `state`, but the machine spec says ext4";
    for extra in [json!({"autoCreate": false}), json!({"size": 320}), json!({"autoCreate": false, "readOnly": true})] {
        for command in [["check", "--host"].as_slice(), &["volumes"], &["run"]] {
            let (succeeded, said) = host.say(command, volume(extra.clone()));
            assert!(!succeeded && said.contains(expected), "{command:?} {extra}: {said}");
        }
    }
    for extra in [json!({"autoCreate": false, "fsType": "xfs"}), json!({"autoCreate": false, "mountPoint": null})] {
        let (succeeded, said) = host.say(&["check", "--host"], volume(extra));
        assert!(succeeded, "{said}");
    }
    let (_, said) = host.say(&["volumes"], volume(json!({"autoCreate": false, "fsType": "xfs", "label": "data"})));
    assert!(said.contains("holds xfs with label `state`, but the machine spec says xfs with label `data`"), "{said}");
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
    ] {
        let mut content = vec![0; 1 << 20];
        content[at..at + magic.len()].copy_from_slice(magic);
        fs::write(host.path("var.img"), content).unwrap();
        let said = host.check(json!({"volumes": [{"image": "var.img", "autoCreate": false, "mountPoint": "/var"}]}));
        assert!(
            said.contains(&format!("holds {name}")) && said.contains(", but the machine spec says ext4"),
            "{name}: {said}"
        );
    }
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
    let expected = "holds xfs without a label, but the machine spec says ext4";
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
    let said = host.check(volume("qcow2"));
    assert!(said.contains("holds a VHD image, but the machine spec says a qcow2 image"), "{said}");
    assert!(on(volume("vhd"), "cloud-hypervisor").contains("is a dynamic VHD, and cloud-hypervisor opens"), "dynamic");
    assert!(create(&["-f", "vpc", "-o", "subformat=fixed,force_size"]));
    assert!(!on(volume("vhd"), "cloud-hypervisor").contains("VHD"), "fixed");
    assert!(create(&["-f", "qcow2", "-o", "compat=0.10"]));
    assert!(on(volume("qcow2"), "crosvm").contains("is qcow2 of version 2, and crosvm opens version 3 only"));
    assert!(create(&["-f", "qcow2", "-F", "raw", "-b", base.to_str().unwrap()]));
    for hypervisor in ["cloud-hypervisor", "crosvm"] {
        let said = on(volume("qcow2"), hypervisor);
        assert!(said.contains(&format!("has a backing file, which {hypervisor} does not open")), "{said}");
    }
    let (succeeded, said) = host.say(&["check", "--host"], volume("qcow2"));
    assert!(succeeded, "{said}");
    let data = host.path("data.raw");
    let external = format!("data_file={}", data.display());
    for (options, reason) in [(external.as_str(), "has an external data file"), ("extended_l2=on", "has extended L2")] {
        assert!(create(&["-f", "qcow2", "-o", options]));
        for hypervisor in ["cloud-hypervisor", "crosvm"] {
            let said = on(volume("qcow2"), hypervisor);
            assert!(said.contains(reason) && said.contains(&format!("{hypervisor} does not")), "{said}");
        }
    }
    // Data in the last cluster only, so that a table must be read to find it.
    fs::write(&base, [vec![0; (4 << 20) - 4096], vec![b'x'; 4096]].concat()).unwrap();
    for (options, is_refused) in [(["-c", "-S", "4k"].as_slice(), true), (&["-S", "4k"], false)] {
        let mut convert = Command::new("qemu-img");
        convert.args(["convert", "-O", "qcow2"]).args(options).args([&base, &image]);
        assert!(convert.status().unwrap().success());
        let said = on(volume("qcow2"), "crosvm");
        assert_eq!(said.contains("contains compressed clusters, which crosvm does not read"), is_refused, "{said}");
    }
}

#[test]
fn a_volume_that_is_a_directory_or_cannot_be_created_is_reported() {
    let host = Host::new();
    fs::create_dir(host.path("directory.img")).unwrap();
    fs::write(host.path("file"), "").unwrap();
    let volume = |image: &str, auto_create: bool| json!({"volumes": [{"image": image, "size": 16, "autoCreate": auto_create, "readOnly": !auto_create}]});
    for auto_create in [true, false] {
        for command in [["check", "--host"].as_slice(), &["volumes"], &["run"]] {
            let (succeeded, said) = host.say(command, volume("directory.img", auto_create));
            assert!(!succeeded && said.contains("directory.img"), "{command:?}: {said}");
        }
    }
    let said = host.check(volume("file/below/var.img", true));
    assert!(
        said.contains("file/below/var.img cannot be created: ") && said.contains("file is not a directory"),
        "{said}"
    );
    let mut unknown = volume("var.img", true);
    unknown["volumes"][0]["fsType"] = json!("f2fs");
    let has_f2fs = Command::new("mkfs.f2fs").arg("-V").output().is_ok();
    let said = host.check(unknown);
    assert!(has_f2fs || said.contains("var.img cannot be created: mkfs.f2fs is not installed"), "{said}");
}

#[test]
fn mkfs_is_found_where_it_is_not_in_the_path_of_ordinary_users() {
    if !Path::new("/usr/sbin/mkfs.ext4").exists() {
        testing::missing("mkfs.ext4 is not in /usr/sbin");
        return;
    }
    let host = Host::new();
    // Writes the spec.
    host.check(json!({"volumes": [{"image": "var.img", "size": 16}]}));
    let mut microvm = Command::new(env!("CARGO_BIN_EXE_microvm"));
    microvm.args(["check", "--host", "web.json"]).current_dir(host.path("")).env("PATH", "/usr/bin:/bin");
    let output = microvm.env("MICROVM_RUNTIME_DIR", host.path("run")).output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(!said.contains("mkfs"), "{said}");
}

#[test]
fn the_host_is_checked_with_the_permissions_of_the_machines_user() {
    if !is_root() {
        return;
    }
    let host = Host::new();
    let fields = || json!({"user": "nobody", "volumes": [{"image": "var.img", "autoCreate": false}]});
    fs::write(host.path("var.img"), vec![0; 4096]).unwrap();
    for name in ["bzImage", "var.img"] {
        fs::set_permissions(host.path(name), fs::Permissions::from_mode(0o600)).unwrap();
    }
    let said = host.check(fields());
    for expected in ["kernel: ", "volumes[0].image: ", "socket: "] {
        let line = said.lines().find(|line| line.contains(expected)).unwrap_or_else(|| panic!("{expected} in {said}"));
        assert!(line.contains("Permission denied") && line.ends_with("(user nobody)"), "{line}");
    }
    let nobody = nix::unistd::User::from_name("nobody").unwrap().unwrap();
    for name in ["bzImage", "var.img", ""] {
        chown(host.path(name), Some(nobody.uid.as_raw()), Some(nobody.gid.as_raw())).unwrap();
    }
    let (succeeded, said) = host.say(&["check", "--host"], fields());
    assert!(succeeded, "{said}");
}

#[test]
fn a_passt_without_vhost_user_is_reported() {
    let host = Host::new();
    let fields = || {
        json!({
            "hypervisor": "cloud-hypervisor",
            "cloudHypervisor": {"program": host.path("bin/silent")},
            "interfaces": [{"type": "user", "id": "lan", "mac": "02:00:00:00:00:01"}],
        })
    };
    let program = |name: &str, text: &str| {
        let path = host.path("bin").join(name);
        fs::write(&path, text).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
    };
    // A hypervisor with an unknown version counts as new.
    program("silent", "#!/bin/sh\n");
    let write = |help: &str| program("passt", &format!("#!/bin/sh\necho 'Usage: passt [OPTION]...'\necho '{help}'\n"));
    write("  -f, --foreground");
    let said = host.check(fields());
    assert!(said.contains("passt has no --vhost-user; install passt 2024_11_27 or newer"), "{said}");
    write("  --vhost-user  Enable vhost-user mode");
    assert!(!host.check(fields()).contains("--vhost-user"));
}

#[test]
fn an_initrd_larger_than_the_memory_is_reported() {
    let host = Host::new();
    fs::File::create(host.path("initrd")).unwrap().set_len(64 << 20).unwrap();
    let said = host.check(json!({"initrd": "initrd", "mem": 64}));
    assert!(
        said.contains("mem: qemu cannot load the kernel and the initrd, 65 MiB in total, into 64 MiB of memory"),
        "{said}"
    );
}

#[test]
fn a_group_of_virtiofs_sockets_that_the_host_does_not_have_is_reported_before_the_start() {
    let host = Host::new();
    testing::write_program(&host.path("bin/virtiofsd"), "#!/bin/sh\nexit 0\n");
    let share = json!([{"proto": "virtiofs", "tag": "t", "source": "bin", "mountPoint": "/t"}]);
    let said = host.check(json!({"shares": share, "virtiofsd": {"group": "no-such-group"}}));
    assert!(said.contains("this host has no group `no-such-group`"), "{said}");
    let said = host.check(json!({"shares": share, "virtiofsd": {"group": null}}));
    assert!(!said.contains("group"), "{said}");
}
