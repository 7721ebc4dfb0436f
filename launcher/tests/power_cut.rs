//! Power cuts: files that the launcher has written are complete afterwards, or do not exist.
//!
//! A file system on a loop device is shut down without writing its log, as in a power cut, and mounted again.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test that cannot go on fails")]

use program::place::Place;
use std::fs;
use std::path::Path;
use std::process::Command;
use testing::Disk;

fn command(program: &str) -> Command {
    let mut command = Command::new(program);
    command.env("PATH", format!("{}:/usr/sbin:/sbin", std::env::var("PATH").unwrap()));
    command
}

/// Runs `microvm volumes` in that state directory.
fn volumes(state: &Path, spec: &Path) {
    let microvm = env!("CARGO_BIN_EXE_microvm");
    let done = command(microvm).arg("volumes").arg(spec).arg("--state-dir").arg(state).output().unwrap();
    assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
}

/// Runs `microvm volume` on the only volume of that state directory.
fn volume(state: &Path, spec: &Path, action: &str, last: &Path) {
    let microvm = env!("CARGO_BIN_EXE_microvm");
    let mut command = command(microvm);
    command.args(["volume", action, "--state-dir"]).arg(state).arg(spec).arg("var.img").arg(last);
    let done = command.output().unwrap();
    assert!(done.status.success(), "{action}: {}", String::from_utf8_lossy(&done.stderr));
}

#[test]
fn files_written_just_before_a_power_cut_are_complete_afterwards() {
    let directory = tempfile::tempdir().unwrap();
    let spec = directory.path().join("machine.json");
    let document = serde_json::json!({
        "version": 1, "name": "web", "kernel": "/k/bzImage", "initrd": "/k/initrd",
        "volumes": [{"image": "var.img", "size": 32, "fsType": "ext4", "label": "state", "mountPoint": "/var"}],
    });
    fs::write(&spec, document.to_string()).unwrap();
    for kind in ["ext4", "xfs"] {
        let Some(disk) = Disk::new(directory.path(), kind) else { continue };
        let (old, new) = (vec![b'o'; 100_000], vec![b'n'; 200_000]);
        let files = ["machine.json", "state.json", "plan.json"].map(|name| disk.path().join(name));
        for content in [&old, &new] {
            for file in &files {
                Place::nofollow(file).unwrap().replace(content, 0o640, None).unwrap();
            }
        }
        volumes(disk.path(), &spec);
        let (backup, second) = (disk.path().join("var.backup"), disk.path().join("second"));
        fs::create_dir(&second).unwrap();
        volume(disk.path(), &spec, "backup", &backup);
        volume(&second, &spec, "restore", &backup);
        volume(&second, &spec, "grow", Path::new("48M"));
        disk.commit_metadata();
        disk.cut_power();
        for file in &files {
            let found = fs::read(file).unwrap();
            assert!(found == new, "{kind}: {}: {} bytes", file.display(), found.len());
        }
        for image in ["var.img", "var.backup", "second/var.img"] {
            let check = command("e2fsck").args(["-f", "-n"]).arg(disk.path().join(image)).output().unwrap();
            assert!(check.status.success(), "{kind}: {image}: {}", String::from_utf8_lossy(&check.stdout));
        }
        assert_eq!(fs::metadata(second.join("var.img")).unwrap().len(), 48 << 20);
        // It matches the spec, so it is not created again.
        volumes(disk.path(), &spec);
        let names = fs::read_dir(disk.path()).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
        assert!(!names.into_iter().any(|name| name.ends_with(".new")), "{kind}: half a file is left");
    }
}

#[test]
fn a_backup_that_does_not_fit_on_its_disk_leaves_nothing() {
    if !nix::unistd::geteuid().is_root() {
        return testing::skipped("only root can mount a small file system");
    }
    let directory = tempfile::tempdir().unwrap();
    let document = serde_json::json!({
        "version": 1, "name": "web", "kernel": "/k/bzImage",
        "volumes": [{"image": "var.img", "size": 8, "mountPoint": "/var"}],
    });
    fs::write(directory.path().join("machine.json"), document.to_string()).unwrap();
    fs::write(directory.path().join("var.img"), vec![1; 8 << 20]).unwrap();
    fs::create_dir(directory.path().join("full")).unwrap();
    let script = "mount -t tmpfs -o size=2m none full || exit 9
        \"$0\" volume backup machine.json var.img full/var.backup; echo \"exit code $?\"; ls -A full";
    let mut unshare = command("unshare");
    unshare.args(["--mount", "sh", "-c", script, env!("CARGO_BIN_EXE_microvm")]).current_dir(directory.path());
    let output = unshare.output().unwrap();
    let (stdout, stderr) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    if output.status.code() == Some(9) {
        return testing::missing(&format!("mounts are needed: {stderr}"));
    }
    assert_eq!(stdout, "exit code 1\n", "{stderr}");
    assert!(stderr.contains("full/var.backup") && stderr.contains("No space left on device"), "{stderr}");
}
