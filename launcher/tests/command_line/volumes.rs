//! `microvm volume`: growing when a program that it runs or the command itself is killed, and names of backups.

use super::{Scratch, stderr};
use serde_json::json;
use std::fs::{self, File};
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::thread::sleep;
use std::time::Duration;
use testing::{find_tool, write_program};

const MIB: u64 = 1 << 20;

/// A machine with an ext4 volume of 16 MiB that contains a file.
struct Growing {
    machine: Scratch,
    directory: tempfile::TempDir,
    resize2fs: PathBuf,
}

impl Growing {
    fn new() -> Option<Self> {
        let (mkfs, resize2fs) = (find_tool("mkfs.ext4")?, find_tool("resize2fs")?);
        let machine = Scratch::machine(json!({"volumes": [{"image": "var.img", "size": 16, "mountPoint": "/var"}]}));
        let growing = Self { machine, directory: tempfile::tempdir().unwrap(), resize2fs };
        let tree = growing.path("tree");
        fs::create_dir(&tree).unwrap();
        fs::create_dir(growing.path("bin")).unwrap();
        fs::write(tree.join("file"), vec![7; 3 << 20]).unwrap();
        growing.set_length(16 * MIB);
        assert!(Command::new(mkfs).args(["-q", "-d"]).arg(&tree).arg(growing.image()).status().unwrap().success());
        Some(growing)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn image(&self) -> PathBuf {
        self.path("var.img")
    }

    fn length(&self) -> u64 {
        fs::metadata(self.image()).unwrap().len()
    }

    /// Returns the content of the image, without the superblock: e2fsck counts there what it has written.
    fn content(&self) -> Vec<u8> {
        let mut content = fs::read(self.image()).unwrap();
        content[1024..2048].fill(0);
        content
    }

    fn set_length(&self, bytes: u64) {
        File::options().write(true).create(true).truncate(false).open(self.image()).unwrap().set_len(bytes).unwrap();
    }

    /// Replaces resize2fs by a script, but not where it changes a copy of the file system.
    fn replace_resize2fs(&self, script: &str) {
        let real = self.resize2fs.display();
        let is_image = format!("[ \"$(readlink \"$1\")\" = {} ]", self.image().canonicalize().unwrap().display());
        let text = format!("#!/bin/sh\nreal={real}\n{is_image} || exec $real \"$@\"\n{script}\n");
        write_program(&self.path("bin/resize2fs"), &text);
    }

    fn command(&self, size: &str) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_microvm"));
        command.args(["volume", "grow", &self.machine.spec(), "/var", size, "--state-dir"]).arg(self.directory.path());
        let path = std::env::var("PATH").unwrap();
        command.env("PATH", format!("{}:{path}", self.path("bin").display()));
        command.env("MICROVM_RUNTIME_DIR", self.path("run"));
        command
    }

    fn grow(&self, size: &str) -> Output {
        self.command(size).output().unwrap()
    }

    /// Checks the file system and its file without changing anything.
    fn require_intact(&self) {
        let checked = Command::new(find_tool("e2fsck").unwrap()).args(["-f", "-n"]).arg(self.image()).output().unwrap();
        assert!(checked.status.success(), "{}", String::from_utf8_lossy(&checked.stdout));
        let read = debugfs(&self.image(), &["-R", "cat file"]);
        assert!(read.stdout == vec![7; 3 << 20], "the file has changed");
    }
}

fn debugfs(image: &Path, arguments: &[&str]) -> Output {
    Command::new(find_tool("debugfs").unwrap()).args(arguments).arg(image).output().unwrap()
}

#[test]
fn a_volume_whose_resize2fs_was_killed_needed_e2fsck_by_hand() {
    let Some(growing) = Growing::new() else { return };
    let before = growing.content();
    growing.replace_resize2fs("$real \"$@\"; kill -KILL $$");
    let failed = growing.grow("48M");
    assert_eq!(failed.status.code(), Some(1));
    let expected = "cannot grow, and keeps its size: signal: 9 (SIGKILL)";
    assert!(stderr(&failed).contains(expected), "{}", stderr(&failed));
    assert!(growing.content() == before);
    growing.require_intact();
    // One that reports success without having done anything.
    growing.replace_resize2fs("exit 0");
    let failed = growing.grow("48M");
    let expected = "cannot grow, and keeps its size: resize2fs did not write the superblock";
    assert!(stderr(&failed).contains(expected), "{}", stderr(&failed));
    assert!(growing.content() == before);
    growing.require_intact();
    fs::remove_file(growing.path("bin/resize2fs")).unwrap();
    let grown = growing.grow("48M");
    assert_eq!(grown.status.code(), Some(0), "{}", stderr(&grown));
    growing.require_intact();
}

#[test]
fn a_volume_was_not_locked_while_resize2fs_outlived_a_killed_microvm() {
    let Some(growing) = Growing::new() else { return };
    let (started, go) = (growing.path("started"), growing.path("go"));
    let wait = format!("while [ ! -e {} ]; do sleep 0.1; done", go.display());
    growing.replace_resize2fs(&format!(": > {}; {wait}; exec $real \"$@\"", started.display()));
    let mut command = growing.command("48M");
    let mut microvm = command.stdin(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    while !started.exists() {
        assert!(microvm.try_wait().unwrap().is_none(), "it ended early");
        sleep(Duration::from_millis(20));
    }
    microvm.kill().unwrap();
    microvm.wait().unwrap();
    let refused = growing.grow("64M");
    assert!(stderr(&refused).contains("is in use by"), "{}", stderr(&refused));
    fs::write(go, "").unwrap();
    let finished = loop {
        let output = growing.grow("48M");
        if !stderr(&output).contains("is in use by") {
            break output;
        }
        sleep(Duration::from_millis(50));
    };
    assert_eq!(finished.status.code(), Some(0), "{}", stderr(&finished));
    assert_eq!(growing.length(), 48 * MIB);
    growing.require_intact();
}

/// resize2fs that is interrupted leaves an invalid resize inode, seen by killing it at each of its writes. The image has no
/// record of what was overwritten, as after a power cut with an earlier release.
#[test]
fn a_half_grown_volume_without_a_record_is_repaired_only_by_a_person() {
    let Some(growing) = Growing::new() else { return };
    for request in ["clri <7>", "ssv state 3"] {
        debugfs(&growing.image(), &["-w", "-R", request]);
    }
    growing.set_length(48 * MIB);
    let command = format!("e2fsck -f {}", growing.image().display());
    for size in ["48M", "64M"] {
        let refused = growing.grow(size);
        assert_eq!(refused.status.code(), Some(1), "{size}");
        assert!(stderr(&refused).contains(&format!("repair it as its owner: {command}")), "{}", stderr(&refused));
        assert_eq!(growing.length(), 48 * MIB);
    }
    let repaired = Command::new(find_tool("e2fsck").unwrap()).args(["-f", "-y"]).arg(growing.image()).output().unwrap();
    assert_eq!(repaired.status.code(), Some(1), "{}", String::from_utf8_lossy(&repaired.stdout));
    let grown = growing.grow("48M");
    assert_eq!(grown.status.code(), Some(0), "{}", stderr(&grown));
    growing.require_intact();
}

/// The kernel marks a file system after any error (`ssv state 2`), and mke2fs leaves out a last group that is too small.
#[test]
fn growing_a_damaged_volume_that_resize2fs_had_not_touched_deleted_its_files() {
    let Some(growing) = Growing::new() else { return };
    growing.set_length(17 * MIB);
    for request in ["ssv state 2", "clri /"] {
        debugfs(&growing.image(), &["-w", "-R", request]);
    }
    let before = growing.content();
    for size in ["17M", "48M"] {
        let refused = growing.grow(size);
        assert_eq!(refused.status.code(), Some(1), "{size}");
        let (text, expected) = (stderr(&refused), "has errors that e2fsck does not repair without a decision");
        assert!(text.contains(expected) && text.contains("RUN fsck MANUALLY"), "{text}");
        assert!(growing.content() == before, "{size}: the volume has changed");
    }
    assert_eq!(growing.length(), 17 * MIB);
}

/// A host with the machines web and db. web has a volume.
struct Host {
    spec: Scratch,
    directory: tempfile::TempDir,
}

impl Host {
    fn new() -> Self {
        let spec = Scratch::machine(json!({
            "hypervisor": "qemu", "volumes": [{"image": "var.img", "size": 1, "mountPoint": "/var"}],
            "shares": [{"proto": "virtiofs", "tag": "home", "source": "/home", "mountPoint": "/home", "socket": "../../daemon"}],
        }));
        let host = Self { spec, directory: tempfile::tempdir().unwrap() };
        for name in ["web", "db"] {
            fs::create_dir_all(host.machine(name)).unwrap();
        }
        fs::write(host.machine("web").join("var.img"), vec![0; 1 << 20]).unwrap();
        host
    }

    fn path(&self) -> &Path {
        self.directory.path()
    }

    fn machine(&self, name: &str) -> PathBuf {
        self.path().join("machines").join(name)
    }

    fn backup(&self, file: &Path) -> Output {
        let web = self.machine("web");
        let mut command = Command::new(env!("CARGO_BIN_EXE_microvm"));
        command.args(["volume", "backup", &self.spec.spec(), "/var"]).arg(file).arg("--state-dir").arg(&web);
        command.env("MICROVM_STATE_DIR", self.path().join("machines"));
        command.env("MICROVM_RUNTIME_DIR", self.path().join("run"));
        command.current_dir(&web).output().unwrap()
    }

    fn require_refused(&self, file: &Path) {
        let refused = self.backup(file);
        assert_eq!(refused.status.code(), Some(2), "{}: {}", file.display(), stderr(&refused));
        assert!(stderr(&refused).contains("; choose another name"), "{}", stderr(&refused));
        assert!(!self.machine("web").join(file).exists(), "{}", file.display());
    }
}

#[test]
fn a_backup_took_the_name_of_a_file_that_microvm_keeps_in_a_state_directory() {
    let host = Host::new();
    let [web, db] = ["web", "db"].map(|name| host.machine(name));
    symlink(&web, host.path().join("link")).unwrap();
    let absolute = ["current", "booted", "clone.json", "web.suspended"].map(|name| web.join(name));
    fs::create_dir_all(db.join("db.suspended")).unwrap();
    let others = [
        "link/flake",
        "machines/db/../db/current",
        "machines/db/toplevel",
        "machines/db/db.suspended/backup",
        "machines/db/db-firecracker.json",
        // A socket with a name that the machine spec sets, and the record beside it.
        "daemon",
        "daemon.command",
        // A file in the place of a socket kept the machine from starting.
        "link/web.sock",
        "machines/db/db.sock",
        "machines/db/db-virtiofs-store.sock",
        "machines/db/db.vsock",
        "machines/db/db.vsock_1024",
        // The next start deleted or replaced it.
        "machines/db/db-ro.paths",
        "machines/db/db-ro.paths.command",
        "machines/db/db-ro.paths.new",
        "machines/db/db-virtiofs-ro.sock.command",
        "link/web-ro.paths",
        "link/web-ro.paths.command",
        "link/web-ro.paths.new",
    ];
    let others = others.map(|name| host.path().join(name));
    let relative = ["current", "./microvm.log", "web-firecracker.json"].map(PathBuf::from);
    for file in absolute.iter().chain(&others).chain(&relative) {
        host.require_refused(file);
    }
    for file in ["var.backup", "current.backup", "../db/web.suspended"] {
        let copied = host.backup(&web.join(file));
        assert_eq!(copied.status.code(), Some(0), "{file}: {}", stderr(&copied));
    }
}

/// `delete mail` removed the backup `.mail.lock`, and a start overwrites the lock file of a volume.
#[test]
fn a_backup_took_the_name_of_a_lock_or_of_a_machine_and_was_deleted_with_it() {
    let host = Host::new();
    let elsewhere = host.path().join("elsewhere");
    fs::create_dir_all(elsewhere.join("mail.suspended")).unwrap();
    symlink(&elsewhere, host.machine("mail")).unwrap();
    symlink(host.path().join("machines"), host.path().join("link")).unwrap();
    symlink(host.machine("db").join("db.suspended"), host.path().join("saved")).unwrap();
    fs::create_dir(host.machine("db").join("db.suspended")).unwrap();
    let names = [
        "machines/.mail.lock",
        "machines/.mail.new",
        "machines/.names@.lock",
        "machines/future",
        "link/future",
        "machines/db/../future",
        "machines/mail/mail.suspended/backup",
        "machines/db/var.img.lock",
        "elsewhere/var.img.lock",
        "saved/backup",
    ];
    for name in names {
        host.require_refused(&host.path().join(name));
    }
    let copied = host.backup(&host.path().join("elsewhere/var.backup"));
    assert_eq!(copied.status.code(), Some(0), "{}", stderr(&copied));
}

#[test]
fn a_limit_of_the_size_of_files_ended_the_launcher_without_a_message() {
    if find_tool("mkfs.ext4").is_none() {
        return;
    }
    let machine = Scratch::machine(json!({"volumes": [{"image": "var.img", "size": 16, "mountPoint": "/var"}]}));
    let directory = tempfile::tempdir().unwrap();
    let script = "ulimit -f 600 && exec \"$0\" volumes \"$1\"";
    let output = Command::new("sh")
        .args(["-c", script, env!("CARGO_BIN_EXE_microvm"), &machine.spec()])
        .current_dir(&directory)
        .output()
        .unwrap();
    let message = stderr(&output);
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    assert!(message.contains("File too large (os error 27)"), "{message}");
    assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 0);
}
