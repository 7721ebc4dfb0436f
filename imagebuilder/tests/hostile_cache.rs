//! A cache that somebody else may write to: whatever lies in the place of an entry, the build ends, its image is right, and
//! nothing outside of the cache is read into it, written, stamped or removed.

#![allow(clippy::unwrap_used, clippy::panic, reason = "tests")]

mod program;

use imagebuilder::cache::segments::checksum;
use imagebuilder::segment::{SegmentKey, SegmentKind};
use nix::sys::stat::Mode;
use nix::unistd::mkfifo;
use program::{TOOLS, Workspace};
use std::fs;
use std::os::unix::fs::{MetadataExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::{Duration, SystemTime};

/// Puts something in the place of an entry; the second path is a file outside of the cache.
type Attack = fn(&Path, &Path);

struct Target {
    workspace: Workspace,
    image: Vec<u8>,
}

impl Target {
    /// A store, a cache that has its image, and beside them a file that is nobody's business.
    fn new() -> Self {
        let workspace = Workspace::with_store();
        workspace.write("victim", "precious");
        let long_ago = SystemTime::now() - Duration::from_secs(1_000_000);
        fs::File::options().write(true).open(workspace.path("victim")).unwrap().set_modified(long_ago).unwrap();
        let mut target = Self { workspace, image: Vec::new() };
        assert_eq!(target.build("image").status.code(), Some(0));
        target.image = target.workspace.read("image");
        target
    }

    fn run(&self, arguments: &[&str]) -> Output {
        let program = self.workspace.command(arguments);
        // A program that waits for ever fails the test, too; it may hold back a milder signal.
        let mut command = Command::new("timeout");
        command.args(["--signal=KILL", "120"]).arg(program.get_program()).args(program.get_args());
        command.current_dir(self.workspace.root()).env("MICROVM_IMAGE_CACHE", self.workspace.path("cache"));
        command.output().unwrap()
    }

    fn build(&self, output: &str) -> Output {
        self.run(&["build", "--closure-info", "info", "--store-dir", "store", "--quiet", "-o", output])
    }

    fn part(&self, name: &str) -> PathBuf {
        self.workspace.path("cache/v1").join(name)
    }

    fn entries(&self, part: &str) -> Vec<PathBuf> {
        let (mut open, mut found) = (vec![self.part(part)], Vec::new());
        while let Some(directory) = open.pop() {
            for entry in fs::read_dir(directory).unwrap() {
                let path = entry.unwrap().path();
                if path.is_dir() { open.push(path) } else { found.push(path) }
            }
        }
        assert!(!found.is_empty(), "{part}");
        found
    }

    #[track_caller]
    fn assert_built(&self, output: &str) {
        let built = self.build(output);
        assert_eq!(built.status.code(), Some(0), "{}", String::from_utf8_lossy(&built.stderr));
        assert!(self.workspace.read(output) == self.image, "the image differs");
        self.assert_unharmed();
    }

    #[track_caller]
    fn assert_unharmed(&self) {
        assert_eq!(self.workspace.read("victim"), b"precious");
        let modified = fs::metadata(self.workspace.path("victim")).unwrap().modified().unwrap();
        assert!(modified.elapsed().unwrap() > Duration::from_secs(500_000), "it was stamped");
    }
}

const ATTACKS: [(&str, Attack); 6] = [
    ("pipe", |entry, _| mkfifo(entry, Mode::S_IRWXU).unwrap()),
    ("directory", |entry, _| fs::create_dir(entry).unwrap()),
    ("link to a file", |entry, victim| symlink(victim, entry).unwrap()),
    ("link to itself", |entry, _| symlink(entry, entry).unwrap()),
    ("link to an endless device", |entry, _| symlink("/dev/zero", entry).unwrap()),
    ("endless hole", |entry, _| fs::File::create(entry).unwrap().set_len(1 << 42).unwrap()),
];

fn entries_replaced_by_anything_else(part: &str) {
    for (name, attack) in ATTACKS {
        let target = Target::new();
        for entry in target.entries(part) {
            fs::remove_file(&entry).unwrap();
            attack(&entry, &target.workspace.path("victim"));
        }
        target.assert_built("again");
        // The image of the record is in its place: what is said of it may not be believed.
        target.assert_built("image");
        for command in [&["cache", "fsck"][..], &["cache", "stat"], &["cache", "gc", "--max-size", "0"]] {
            assert!(target.run(command).status.code().is_some(), "{name}: {command:?} does not end");
            target.assert_unharmed();
        }
        target.assert_built("at-last");
    }
}

#[test]
fn manifests_replaced_by_pipes_directories_links_and_holes() {
    entries_replaced_by_anything_else("manifests");
}

#[test]
fn a_directory_in_the_place_of_an_entry_is_replaced_so_that_the_next_build_need_not_warn() {
    let target = Target::new();
    for entry in [target.entries("manifests"), target.entries("segments")].concat() {
        fs::remove_file(&entry).unwrap();
        fs::create_dir_all(entry.join("with/something")).unwrap();
    }
    target.assert_built("again");
    let output = target.build("once-more");
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && !stderr.contains("warning"), "{stderr}");
    target.assert_unharmed();
}

#[test]
fn segments_replaced_by_pipes_directories_links_and_holes() {
    entries_replaced_by_anything_else("segments");
}

#[test]
fn records_replaced_by_pipes_directories_links_and_holes() {
    entries_replaced_by_anything_else("outputs");
}

/// Gives an entry of the segments other bytes behind its checksum, and the right checksum of these.
fn forge(entry: &Path, change: impl FnOnce(&mut Vec<u8>)) {
    let mut content = fs::read(entry).unwrap().split_off(16);
    change(&mut content);
    let (directory, file) = (entry.parent().unwrap().file_name().unwrap(), entry.file_name().unwrap());
    let (directory, file) = (directory.to_str().unwrap(), file.to_str().unwrap());
    let is_fragment = file.len() == 63;
    let key = blake3::Hash::from_hex(format!("{directory}{}", &file[..62])).unwrap();
    let kind = if is_fragment { SegmentKind::Fragment } else { SegmentKind::File };
    let sum = checksum(&SegmentKey { kind, content: *key.as_bytes() }, &[&content]);
    fs::write(entry, [&sum[..], &content[..]].concat()).unwrap();
}

#[test]
fn forged_segments_with_right_checksums_but_blocks_that_no_image_can_hold_are_made_again() {
    // Content length (u32), number of blocks (u32), size words, blocks.
    let forgeries: [fn(&mut Vec<u8>); 4] = [
        |content| {
            content.truncate(8);
            content[4..].copy_from_slice(&0u32.to_le_bytes());
        },
        |content| {
            content[4..8].copy_from_slice(&2u32.to_le_bytes());
            content.splice(12..12, [0; 4]);
        },
        |content| {
            let huge = (1u32 << 24) - 1;
            content.splice(8.., (huge | 1 << 24).to_le_bytes().into_iter().chain(vec![7; huge as usize]));
        },
        |content| content[..4].copy_from_slice(&u32::MAX.to_le_bytes()),
    ];
    for (number, forgery) in forgeries.into_iter().enumerate() {
        let target = Target::new();
        target.entries("segments").iter().for_each(|entry| forge(entry, forgery));
        let output = target.run(&["build", "--closure-info", "info", "--store-dir", "store", "--json", "-o", "again"]);
        assert!(target.workspace.read("again") == target.image, "forgery {number}");
        let report: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
        assert!(report["cache"]["rebuiltPaths"].as_u64().unwrap() > 0, "forgery {number}: {report}");
    }
}

#[test]
fn directories_of_the_cache_that_lead_out_of_it_are_refused_and_nothing_there_is_collected() {
    for part in ["tmp", "manifests", "segments", "outputs", ""] {
        let target = Target::new();
        let elsewhere = target.workspace.path("elsewhere");
        fs::create_dir(&elsewhere).unwrap();
        fs::write(elsewhere.join("precious"), "precious").unwrap();
        let directory = target.part(part);
        fs::remove_dir_all(&directory).unwrap();
        symlink(&elsewhere, directory.components().collect::<PathBuf>()).unwrap();
        for command in [
            &["build", "--closure-info", "info", "--store-dir", "store", "--quiet", "-o", "again"][..],
            &["cache", "gc", "--max-size", "0"],
            &["cache", "fsck"],
        ] {
            let output = target.run(command);
            let said = String::from_utf8(output.stderr).unwrap();
            // fsck looks at nothing below these two.
            if !(command[1] == "fsck" && (part == "tmp" || part == "outputs")) {
                assert_eq!(output.status.code(), Some(1), "{part}: {command:?}: {said}");
                assert!(said.contains("it is a symbolic link, which leads out of the cache"), "{part}: {said}");
            }
            let names: Vec<_> = fs::read_dir(&elsewhere).unwrap().map(|entry| entry.unwrap().file_name()).collect();
            assert_eq!(names, ["precious"], "{part}: {command:?}");
        }
    }
}

#[test]
fn a_manifest_s_directory_that_leads_out_of_the_cache_is_not_written_to() {
    let target = Target::new();
    let elsewhere = target.workspace.path("elsewhere");
    fs::create_dir(&elsewhere).unwrap();
    fs::remove_dir_all(target.part("manifests").join(TOOLS)).unwrap();
    symlink(&elsewhere, target.part("manifests").join(TOOLS)).unwrap();
    target.assert_built("again");
    assert_eq!(fs::read_dir(&elsewhere).unwrap().count(), 0);
}

#[test]
fn a_lock_that_leads_out_of_the_cache_makes_no_file_there() {
    let target = Target::new();
    let lock = target.part("lock");
    for make in [(|lock, root| symlink(root, lock).unwrap()) as Attack, |lock, _| mkfifo(lock, Mode::S_IRWXU).unwrap()]
    {
        fs::remove_file(&lock).unwrap();
        make(&lock, &target.workspace.path("made-by-the-lock"));
        let output = target.build("again");
        assert_eq!(output.status.code(), Some(1), "{}", String::from_utf8_lossy(&output.stderr));
        assert!(!target.workspace.path("made-by-the-lock").exists());
    }
}

#[test]
fn an_output_that_is_a_link_is_replaced_and_what_it_leads_to_is_not() {
    let target = Target::new();
    symlink("victim", target.workspace.path("link")).unwrap();
    target.assert_built("link");
    assert!(!fs::symlink_metadata(target.workspace.path("link")).unwrap().is_symlink());
    assert_eq!(fs::metadata(target.workspace.path("link")).unwrap().nlink(), 1);
}
