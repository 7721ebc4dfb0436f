//! A start does not overwrite or remove a file that the user has named for something else.

use super::Host;
use serde_json::{Value, json};
use std::fs;
use std::os::unix::fs::symlink;

#[test]
fn a_volume_that_is_a_file_of_its_machine_under_another_name_is_refused_and_unchanged() {
    let host = Host::new();
    fs::write(host.path("flake"), "github:some/flake").unwrap();
    std::os::unix::fs::symlink("flake", host.path("link")).unwrap();
    let before = fs::read(host.path("bzImage")).unwrap();
    let absolute = |name: &str| host.path(name).to_str().unwrap().to_owned();
    for (image, own) in [
        (absolute("flake"), "flake"),
        ("x/../flake".to_owned(), "flake"),
        ("link".to_owned(), "flake"),
        // It does not exist yet.
        (absolute("microvm.log"), "microvm.log"),
        (format!("{}/./booted", host.path("").display()), "booted"),
        (absolute("bzImage"), "bzImage"),
        ("x/../bzImage".to_owned(), "bzImage"),
    ] {
        let fields = json!({"volumes": [{"image": image, "size": 1, "fsType": "ext4"}]});
        for command in [["check", "--host"].as_slice(), &["volumes"], &["run"]] {
            let (succeeded, printed) = host.say(command, fields.clone());
            let expected = format!("is the file {own}, ");
            assert!(!succeeded && printed.contains(&expected), "{command:?} {image}: {printed}");
        }
    }
    assert_eq!(fs::read_to_string(host.path("flake")).unwrap(), "github:some/flake");
    assert_eq!(fs::read(host.path("bzImage")).unwrap(), before);
    assert!(!host.path("microvm.log").exists() && !host.path("booted").exists());
    // `resume` deletes the directory of the suspended machine with everything in it.
    fs::create_dir(host.path("web.suspended")).unwrap();
    std::os::unix::fs::symlink("web.suspended", host.path("state")).unwrap();
    for image in [absolute("web.suspended/var.img"), "state/a/var.img".to_owned(), "web.suspended/var.img".to_owned()] {
        let fields = json!({"volumes": [{"image": image, "size": 1, "fsType": "ext4"}]});
        for command in [["check", "--host"].as_slice(), &["volumes"], &["run"]] {
            let (succeeded, printed) = host.say(command, fields.clone());
            let expected = "which is deleted when the machine resumes";
            assert!(!succeeded && printed.contains(expected), "{command:?} {image}: {printed}");
        }
    }
    assert_eq!(fs::read_dir(host.path("web.suspended")).unwrap().count(), 0);
    // The state directory of another machine is another directory.
    let other = tempfile::tempdir().unwrap();
    let image = other.path().join("flake").to_str().unwrap().to_owned();
    let (succeeded, printed) =
        host.say(&["check", "--host"], json!({"volumes": [{"image": image, "size": 1, "fsType": "ext4"}]}));
    assert!(succeeded, "{printed}");
}

/// Refuses the machine by every command that would use the file, and checks that the file is unchanged.
fn assert_refused(host: &Host, fields: Value, files: &[&str], option: &str, role: &str) {
    for name in files {
        fs::create_dir_all(host.path(name).parent().unwrap()).unwrap();
        fs::write(host.path(name), "precious").unwrap();
    }
    for command in [["check"].as_slice(), &["check", "--host"], &["run"]] {
        let (succeeded, printed) = host.say(command, fields.clone());
        let problem = printed.lines().find(|line| line.contains(&format!("{option}: ")) && line.contains(role));
        assert!(!succeeded && problem.is_some(), "{command:?} {fields}: {printed}");
        assert_eq!(printed.matches(role).count(), 1, "{command:?} {fields}: {printed}");
        for name in files {
            assert_eq!(fs::read_to_string(host.path(name)).unwrap(), "precious", "{command:?} {fields}: {name}");
        }
    }
    files.iter().for_each(|name| fs::remove_file(host.path(name)).unwrap());
}

#[test]
fn a_start_replaced_files_of_the_user_that_have_the_name_of_a_record_or_a_lock() {
    let host = Host::new();
    let volume = |image: &str| json!({"image": image, "size": 1});
    let live = json!({"plan": "plan", "live": true});
    fs::write(host.path("plan"), "").unwrap();
    let share = json!({"proto": "virtiofs", "tag": "fs", "source": "shared", "mountPoint": "/fs", "socket": "fs.sock"});
    let program = json!({"program": "/bin/true"});
    let record = "the record of the command that serves web-store.sock";
    let written = "is the file web-firecracker.json, which every start writes";
    let lock = "is the file data.img.lock, the lock file of volumes[0].image";
    symlink("fs.sock.command", host.path("link")).unwrap();
    let at = |name: &str| host.path(name).to_str().unwrap().to_owned();
    for (fields, file, option, role) in [
        (
            json!({"hypervisor": "crosvm", "crosvm": program, "storeDisk": live, "volumes": [volume("web-store.sock.command")]}),
            "web-store.sock.command",
            "volumes[0].image",
            record,
        ),
        (
            json!({"storeDisk": live, "initrd": at("x/../web-store.sock.command")}),
            "web-store.sock.command",
            "initrd",
            record,
        ),
        (
            json!({"shares": [share], "storeDisk": {"plan": "plan", "image": "link"}}),
            "fs.sock.command",
            "storeDisk.image",
            "is the file fs.sock.command, the record of the command that serves fs.sock",
        ),
        (
            json!({"hypervisor": "firecracker", "firecracker": program, "initrd": "web-firecracker.json"}),
            "web-firecracker.json",
            "initrd",
            written,
        ),
        (
            json!({
                "hypervisor": "firecracker", "firecracker": program, "initrd": "bzImage",
                "credentialFiles": {"secret": at("web-firecracker.json")},
            }),
            "web-firecracker.json",
            "credentialFiles.secret",
            written,
        ),
        (
            json!({"volumes": [volume("data.img")], "initrd": "bzImage", "credentialFiles": {"secret": "data.img.lock"}}),
            "data.img.lock",
            "credentialFiles.secret",
            lock,
        ),
        (
            json!({"volumes": [volume("data.img")], "extraArgsScript": "./data.img.lock"}),
            "data.img.lock",
            "extraArgsScript",
            lock,
        ),
        (
            json!({"initrd": "toplevel"}),
            "toplevel",
            "initrd",
            "is the file toplevel, which microvm keeps in the state directory",
        ),
    ] {
        assert_refused(&host, fields, &[file], option, role);
    }
}

#[test]
fn a_start_replaced_a_file_of_the_user_in_the_runtime_directory() {
    let host = Host::new();
    fs::create_dir_all(host.path("run/web")).unwrap();
    for name in ["launch.json", "suspend.lock", "console.sock"] {
        let image = host.path(&format!("run/web/{name}"));
        fs::write(&image, "precious").unwrap();
        let image = image.to_str().unwrap();
        let fields = json!({"volumes": [{"image": image, "autoCreate": false}]});
        for command in [["check", "--host"].as_slice(), &["run"]] {
            let (succeeded, printed) = host.say(command, fields.clone());
            let expected = "a record of this machine in its runtime directory";
            assert!(!succeeded && printed.contains(expected), "{command:?} {name}: {printed}");
            assert_eq!(fs::read_to_string(image).unwrap(), "precious", "{name}");
        }
        fs::remove_file(image).unwrap();
    }
}

#[test]
fn a_file_with_the_name_of_a_socket_or_two_sockets_with_one_name_failed_after_everything_was_made() {
    let host = Host::new();
    let share = |socket: &str| json!([{"proto": "virtiofs", "tag": "fs", "source": "shared", "mountPoint": "/fs", "socket": socket}]);
    let control = "is the file web.sock, the control socket of this machine";
    let served = "the socket of the virtiofs daemon of share `fs`";
    for (fields, option, role) in [
        (json!({"volumes": [{"image": "x/../web.sock", "size": 1}]}), "volumes[0].image", control),
        (json!({"initrd": "web.sock"}), "initrd", control),
        (
            json!({"credentialFiles": {"a": "c.sock"}, "consoleSocket": "c.sock"}),
            "credentialFiles.a",
            "c.sock, the socket of its console",
        ),
        (json!({"shares": share("x/../web.sock")}), "socket", served),
        (json!({"shares": share("clone.json")}), "shares", "is the file clone.json, which microvm keeps"),
        (
            json!({"socket": "fs.sock.command", "shares": share("fs.sock")}),
            "socket",
            "the record of the command that serves fs.sock",
        ),
        (
            json!({"consoleSocket": "d.lock", "volumes": [{"image": "d", "size": 1}]}),
            "consoleSocket",
            "the lock file of volumes[0].image",
        ),
        (
            json!({
                "hypervisor": "firecracker", "firecracker": {"program": "/bin/true"}, "vsock": {"cid": 3, "notify": true},
                "volumes": [{"image": "web.vsock_1073741827", "size": 1}],
            }),
            "volumes[0].image",
            "the socket at which its guest reports that it has booted",
        ),
    ] {
        assert_refused(&host, fields, &[], option, role);
        assert!(!host.path("web.sock").exists() && !host.path("d").exists());
    }
}

#[test]
fn a_volume_that_is_the_store_disk_under_another_name_was_found_by_check_only() {
    let host = Host::new();
    symlink("store.img", host.path("link")).unwrap();
    let role = "is the file store.img, the storeDisk.image of this machine, which its guest must not change";
    let fields = json!({"storeDisk": {"image": "store.img"}, "volumes": [{"image": "link", "autoCreate": false}]});
    assert_refused(&host, fields, &["store.img"], "volumes[0].image", role);
    fs::write(host.path("store.img"), "").unwrap();
    let read_only = json!({"image": "link", "autoCreate": false, "readOnly": true});
    let (succeeded, printed) =
        host.say(&["check"], json!({"storeDisk": {"image": "store.img"}, "volumes": [read_only]}));
    assert!(succeeded, "{printed}");
}
