//! `microvm volume grow` that is cut off, by killing everything or by a power cut: the same command finishes it, and a start
//! restores the volume.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test that cannot go on fails")]

use serde_json::{Value, json};
use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::thread::sleep;
use std::time::Duration;
use testing::{Disk, find_tool, write_program};

const MIB: u64 = 1 << 20;
const OLD_BYTES: u64 = 24 * MIB;
const NEW_BYTES: u64 = 100 * MIB;
const FILES: u8 = 12;

/// A machine with one volume, which contains files.
struct Growing {
    programs: tempfile::TempDir,
    /// The state directory.
    place: PathBuf,
    tools: Tools,
}

/// Programs for ext2, ext3 and ext4.
struct Tools {
    mkfs: PathBuf,
    resize2fs: PathBuf,
    e2fsck: PathBuf,
    debugfs: PathBuf,
    strace: PathBuf,
}

fn file_content(number: u8) -> Vec<u8> {
    let bytes = 40_000 + 9_000 * usize::from(number);
    (0..bytes).map(|at| (at % 251) as u8 ^ number).collect()
}

impl Growing {
    fn new(place: &Path) -> Option<Self> {
        let tools = Tools {
            mkfs: find_tool("mke2fs")?,
            resize2fs: find_tool("resize2fs")?,
            e2fsck: find_tool("e2fsck")?,
            debugfs: find_tool("debugfs")?,
            strace: find_tool("strace")?,
        };
        let growing = Self { programs: tempfile::tempdir().unwrap(), place: place.to_owned(), tools };
        fs::create_dir(growing.path("tree")).unwrap();
        for number in 0..FILES {
            fs::write(growing.path("tree").join(format!("file{number}")), file_content(number)).unwrap();
        }
        let mut kernel = vec![0; 0x400];
        kernel[0x202..0x206].copy_from_slice(b"HdrS");
        fs::write(growing.path("bzImage"), kernel).unwrap();
        write_program(&growing.path("hypervisor"), "#!/bin/sh\nexit 0\n");
        growing.write_spec(json!({}));
        Some(growing)
    }

    fn write_spec(&self, more: Value) {
        let mut volume = json!({"image": "var.img", "size": 24, "mountPoint": "/var"});
        volume.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        let spec = json!({
            "version": 1, "name": "web", "kernel": self.path("bzImage"), "hypervisor": "qemu",
            "qemu": {"accelerator": "tcg", "program": self.path("hypervisor")}, "volumes": [volume],
        });
        fs::write(self.path("web.json"), spec.to_string()).unwrap();
    }

    fn path(&self, name: &str) -> PathBuf {
        self.programs.path().join(name)
    }

    fn image(&self) -> PathBuf {
        self.place.join("var.img")
    }

    fn length(&self) -> u64 {
        fs::metadata(self.image()).unwrap().len()
    }

    /// Creates the volume, and returns once it is on the disk.
    fn create(&self, options: &[&str]) {
        let _ = fs::remove_file(self.image());
        let image = File::create(self.image()).unwrap();
        image.set_len(OLD_BYTES).unwrap();
        let mut mkfs = Command::new(&self.tools.mkfs);
        mkfs.args(["-q", "-d"]).arg(self.path("tree")).args(options).arg(self.image());
        assert!(mkfs.status().unwrap().success(), "{options:?}");
        image.sync_all().unwrap();
        File::open(&self.place).unwrap().sync_all().unwrap();
    }

    fn microvm(&self, words: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_microvm"));
        command.args(words).arg("--state-dir").arg(&self.place).env("MICROVM_RUNTIME_DIR", self.path("run"));
        command.env("PATH", format!("{}:{}", self.path("bin").display(), std::env::var("PATH").unwrap()));
        command.env_remove("NOTIFY_SOCKET").env_remove("MICROVM_NAME").current_dir(self.programs.path());
        command
    }

    fn grow(&self) -> Command {
        self.microvm(&["volume", "grow", "web.json", "/var", "100M"])
    }

    /// Kills resize2fs at that system call on the image, and the command that waits for it.
    fn cut_resize2fs(&self, call: &str, number: u32) {
        let (strace, real, image) = (&self.tools.strace, self.tools.resize2fs.display(), self.image());
        let script = format!(
            "#!/bin/sh\n[ \"$(readlink \"$1\")\" = {} ] || exec {real} \"$@\"\n\
             cp --sparse=always {} {}\n{} -qq -o /dev/null -e trace={call} -e inject={call}:signal=KILL:when={number} {real} \"$@\"\n\
             kill -KILL $PPID\n",
            image.canonicalize().unwrap().display(),
            image.display(),
            self.path("before").display(),
            strace.display(),
        );
        let programs = self.path("bin");
        fs::create_dir(&programs).unwrap();
        write_program(&programs.join("resize2fs"), &script);
        let cut = self.grow().output().unwrap();
        assert_eq!(cut.status.code(), None, "{call} {number}: {}", text(&cut));
        fs::remove_dir_all(programs).unwrap();
    }

    /// Kills `grow` at that system call of its own. Returns false if it ended before.
    fn cut_grow(&self, call: &str, number: u32) -> bool {
        let grow = self.grow();
        let mut strace = Command::new(&self.tools.strace);
        let inject = format!("inject={call}:signal=KILL:when={number}");
        strace.args(["-qq", "-o", "/dev/null", "-e", &format!("trace={call}"), "-e", &inject]);
        strace.arg(grow.get_program()).args(grow.get_args()).current_dir(self.programs.path());
        strace.envs(grow.get_envs().filter_map(|(name, value)| Some((name, value?))));
        let ended = strace.output().unwrap();
        assert!(matches!(ended.status.code(), None | Some(0)), "{call} {number}: {}", text(&ended));
        ended.status.code().is_none()
    }

    /// Waits until the killed processes have released the locks.
    fn when_unlocked(&self, mut command: impl FnMut() -> Command) -> Output {
        loop {
            let output = command().output().unwrap();
            if !text(&output).contains("is in use by") {
                return output;
            }
            sleep(Duration::from_millis(20));
        }
    }

    /// Repeats the command, which must finish.
    fn grow_again(&self, case: &str) {
        let grown = self.when_unlocked(|| self.grow());
        assert!(grown.status.success(), "{case}: {}", text(&grown));
        assert_eq!(self.length(), NEW_BYTES, "{case}");
        self.require_intact(case);
    }

    /// Starts the machine, which must restore the volume. Returns what it printed.
    fn start(&self) -> Output {
        self.when_unlocked(|| self.microvm(&["run", "web.json"]))
    }

    fn require_intact(&self, case: &str) {
        let checked = Command::new(&self.tools.e2fsck).args(["-f", "-n"]).arg(self.image()).output().unwrap();
        assert_eq!(checked.status.code(), Some(0), "{case}: {}", text(&checked));
        for number in 0..FILES {
            let read = self.debugfs(&format!("cat file{number}"), &[]);
            assert!(read.stdout == file_content(number), "{case}: file{number} has changed");
        }
    }

    fn debugfs(&self, request: &str, options: &[&str]) -> Output {
        let mut debugfs = Command::new(&self.tools.debugfs);
        debugfs.args(options).args(["-R", request]).arg(self.image()).output().unwrap()
    }
}

fn text(output: &Output) -> String {
    String::from_utf8_lossy(&[output.stdout.as_slice(), &output.stderr].concat()).into_owned()
}

/// Layouts in which resize2fs works differently: it moves inode tables and blocks of files if no blocks are reserved for the
/// descriptors of further groups.
const LAYOUTS: [&[&str]; 6] = [
    &["-t", "ext4", "-b", "1024"],
    &["-t", "ext4", "-b", "4096"],
    &["-t", "ext4", "-b", "1024", "-O", "^64bit,^metadata_csum,^flex_bg"],
    &["-t", "ext4", "-b", "1024", "-O", "^resize_inode"],
    &["-t", "ext4", "-b", "1024", "-O", "meta_bg,^resize_inode"],
    &["-t", "ext2", "-b", "1024"],
];

/// System calls of resize2fs. The last ones write the superblock.
const CALLS: [(&str, u32); 9] = [
    ("pwrite64", 1),
    ("pwrite64", 2),
    ("pwrite64", 7),
    ("pwrite64", 14),
    ("fsync", 1),
    ("fsync", 2),
    ("write", 1),
    ("write", 5),
    ("write", 9),
];

#[test]
fn a_volume_whose_growth_was_killed_with_resize2fs_could_not_grow_any_more() {
    let directory = tempfile::tempdir().unwrap();
    let Some(growing) = Growing::new(directory.path()) else { return };
    for layout in LAYOUTS {
        for (call, number) in CALLS {
            let case = format!("{layout:?}: {call} {number}");
            growing.create(layout);
            growing.cut_resize2fs(call, number);
            assert!(growing.length() > NEW_BYTES, "{case}: there is no record");
            growing.grow_again(&case);
        }
    }
}

#[test]
fn a_machine_started_with_a_volume_that_was_half_grown() {
    let directory = tempfile::tempdir().unwrap();
    let Some(growing) = Growing::new(directory.path()) else { return };
    for (layout, (call, number)) in LAYOUTS.into_iter().zip(CALLS.into_iter().step_by(2).cycle()) {
        let case = format!("{layout:?}: {call} {number}");
        growing.create(layout);
        growing.cut_resize2fs(call, number);
        let started = growing.start();
        assert!(started.status.success(), "{case}: {}", text(&started));
        let expected = "`microvm volume grow` was interrupted, so its old size of 25165824 bytes was restored";
        assert!(text(&started).contains(expected), "{case}: {}", text(&started));
        assert_eq!(growing.length(), OLD_BYTES, "{case}");
        growing.require_intact(&case);
        assert!(!text(&growing.start()).contains("interrupted"), "{case}");
        growing.grow_again(&case);
    }
}

#[test]
fn a_power_cut_while_a_volume_grew_damaged_its_file_system() {
    let directory = tempfile::tempdir().unwrap();
    for kind in ["ext4", "xfs"] {
        let Some(disk) = Disk::new(directory.path(), kind) else { continue };
        let Some(growing) = Growing::new(disk.path()) else { return };
        for (index, (call, number)) in CALLS.into_iter().enumerate() {
            let case = format!("{kind}: {call} {number}");
            growing.create(LAYOUTS[index % LAYOUTS.len()]);
            growing.cut_resize2fs(call, number);
            if index % 2 == 0 {
                disk.commit_metadata();
            }
            disk.cut_power();
            growing.grow_again(&case);
            disk.cut_power();
            growing.require_intact(&case);
        }
    }
}

/// A disk writes blocks in any order.
#[test]
fn a_power_cut_that_lost_some_blocks_of_a_growing_volume_damaged_its_file_system() {
    let directory = tempfile::tempdir().unwrap();
    let Some(growing) = Growing::new(directory.path()) else { return };
    let mut random = fastrand::Rng::with_seed(10);
    for layout in LAYOUTS {
        growing.create(layout);
        growing.cut_resize2fs("write", 9);
        let [before, after] = [growing.path("before"), growing.image()].map(|path| fs::read(path).unwrap());
        assert_eq!(before.len(), after.len());
        let written: Vec<_> =
            (0..before.len()).step_by(1024).filter(|at| before[*at..*at + 1024] != after[*at..*at + 1024]).collect();
        assert!(!written.is_empty(), "{layout:?}: resize2fs has written nothing");
        let image = File::options().write(true).open(growing.image()).unwrap();
        for chance in [0.1, 0.5, 0.9] {
            let case = format!("{layout:?}: {chance} of {} blocks lost", written.len());
            image.set_len(before.len() as u64).unwrap();
            image.write_all_at(&before, 0).unwrap();
            for at in written.iter().copied().filter(|_| random.f64() > chance) {
                image.write_all_at(&after[at..at + 1024], at as u64).unwrap();
            }
            growing.grow_again(&case);
        }
    }
}

/// `grow` is killed at its own writes, so that the record is missing, incomplete or unused, or was just removed.
#[test]
fn a_power_cut_before_and_after_resize2fs_left_a_volume_with_a_wrong_length() {
    let directory = tempfile::tempdir().unwrap();
    for kind in ["ext4", "xfs"] {
        let Some(disk) = Disk::new(directory.path(), kind) else { continue };
        let Some(growing) = Growing::new(disk.path()) else { return };
        for call in ["pwrite64", "fsync", "ftruncate", "fallocate"] {
            // It writes many ranges one after the other.
            for number in (1..8).chain((8..).step_by(23)) {
                let case = format!("{kind}: {call} {number}");
                growing.create(LAYOUTS[0]);
                if !growing.cut_grow(call, number) {
                    assert!(number > 1, "{call} is not called");
                    break;
                }
                if number % 2 == 0 {
                    disk.commit_metadata();
                }
                disk.cut_power();
                if number % 3 == 0 {
                    let started = growing.start();
                    assert!(started.status.success(), "{case}: {}", text(&started));
                    growing.require_intact(&case);
                }
                let grown = growing.when_unlocked(|| growing.grow());
                // It may have finished before.
                let is_done = text(&grown).contains(&format!("already has {NEW_BYTES} bytes"));
                assert!(grown.status.success() || is_done, "{case}: {}", text(&grown));
                assert_eq!(growing.length(), NEW_BYTES, "{case}");
                growing.require_intact(&case);
            }
        }
    }
}

/// Something else than microvm has started a guest from it, or mounted it.
#[test]
fn a_half_grown_volume_that_was_mounted_since_is_not_overwritten_with_older_blocks() {
    let directory = tempfile::tempdir().unwrap();
    let Some(growing) = Growing::new(directory.path()) else { return };
    for (field, value) in [("mnt_count", "1"), ("mtime", "20300101000000"), ("lastcheck", "20300101000000")] {
        growing.create(LAYOUTS[0]);
        growing.cut_resize2fs("write", 1);
        let set = growing.debugfs(&format!("ssv {field} {value}"), &["-w"]);
        assert!(set.status.success(), "{}", text(&set));
        let before = fs::read(growing.image()).unwrap();
        let started = growing.start();
        assert!(started.status.success() && !text(&started).contains("restored"), "{}", text(&started));
        assert!(fs::read(growing.image()).unwrap() == before, "{field}");
    }
}

#[test]
fn a_machine_that_only_reads_a_half_grown_volume_is_refused_with_the_remedy() {
    let directory = tempfile::tempdir().unwrap();
    let Some(growing) = Growing::new(directory.path()) else { return };
    growing.create(LAYOUTS[1]);
    growing.cut_resize2fs("write", 1);
    growing.write_spec(json!({"readOnly": true, "autoCreate": false}));
    for words in [["check", "--host", "web.json"].as_slice(), &["volumes", "web.json"], &["run", "web.json"]] {
        let refused = growing.when_unlocked(|| growing.microvm(words));
        let expected = "is half grown, because `microvm volume grow` was interrupted: repeat that command";
        assert!(!refused.status.success() && text(&refused).contains(expected), "{words:?}: {}", text(&refused));
    }
    growing.grow_again("readOnly");
    let started = growing.start();
    assert!(started.status.success(), "{}", text(&started));
}

#[test]
fn a_backup_of_a_half_grown_volume_is_restored_at_the_next_start() {
    let directory = tempfile::tempdir().unwrap();
    let Some(growing) = Growing::new(directory.path()) else { return };
    growing.create(LAYOUTS[1]);
    growing.cut_resize2fs("write", 1);
    let backup = growing.path("backup");
    let words = |action| ["volume", action, "web.json", "/var", backup.to_str().unwrap()];
    let saved = growing.when_unlocked(|| growing.microvm(&words("backup")));
    assert!(saved.status.success(), "{}", text(&saved));
    fs::remove_file(growing.image()).unwrap();
    let restored = growing.when_unlocked(|| growing.microvm(&words("restore")));
    assert!(restored.status.success(), "{}", text(&restored));
    assert!(text(&growing.start()).contains("restored"));
    assert_eq!(growing.length(), OLD_BYTES);
    growing.require_intact("backup");
}
