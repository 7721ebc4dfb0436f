//! A cache that others can write to: whatever they put in place of an entry, the build ends, its image is correct, and
//! no file outside of the cache is read into it, written, touched or removed.

#![allow(clippy::unwrap_used, clippy::panic, reason = "tests")]

mod program;

use nix::sys::stat::Mode;
use nix::unistd::mkfifo;
use program::Workspace;
use std::fs;
use std::os::unix::fs::{MetadataExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, SystemTime};

/// Replaces an entry of the cache; the second path is a file outside of the cache.
type Attack = fn(&Path, &Path);

struct Target {
    workspace: Workspace,
    image: Vec<u8>,
}

impl Target {
    /// Creates a store, a cache with its packs, and a file outside of both.
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
        // A program that waits for ever must fail the test. It could block signals other than SIGKILL.
        let mut command = Command::new("timeout");
        command.args(["--signal=KILL", "120"]).arg(program.get_program()).args(program.get_args());
        command.current_dir(self.workspace.root()).env("MICROVM_IMAGE_CACHE", self.workspace.path("cache"));
        command.output().unwrap()
    }

    fn build(&self, output: &str) -> Output {
        self.run(&["build", "--closure-info", "info", "--store-dir", "store", "--quiet", "-o", output])
    }

    fn part(&self, name: &str) -> PathBuf {
        self.workspace.path("cache/v2").join(name)
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
        assert!(modified.elapsed().unwrap() > Duration::from_secs(500_000), "its time was changed");
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
        // The image of the record exists, but the record must not be trusted.
        target.assert_built("image");
        for command in [&["cache", "fsck"][..], &["cache", "stat"], &["cache", "gc", "--max-size", "0"]] {
            assert!(target.run(command).status.code().is_some(), "{name}: {command:?} does not end");
            target.assert_unharmed();
        }
        target.assert_built("at-last");
    }
}

#[test]
fn packs_replaced_by_pipes_directories_links_and_holes_do_not_affect_the_image() {
    entries_replaced_by_anything_else("packs");
}

#[test]
fn a_directory_in_place_of_an_entry_is_replaced_without_a_warning() {
    let target = Target::new();
    for entry in target.entries("packs") {
        fs::remove_file(&entry).unwrap();
        fs::create_dir_all(entry.join("with/something")).unwrap();
    }
    for name in ["again", "once-more"] {
        let output = target.build(name);
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success() && !stderr.contains("warning"), "{name}: {stderr}");
        assert!(target.workspace.read(name) == target.image, "{name}: the image differs");
        target.assert_unharmed();
    }
    let leftovers = |path: &PathBuf| path.extension().is_some_and(|extension| extension == "tmp");
    assert!(!target.entries("packs").iter().any(leftovers));
}

#[test]
fn records_replaced_by_pipes_directories_links_and_holes_do_not_affect_the_image() {
    entries_replaced_by_anything_else("outputs");
}

/// Changes the bytes of a pack and updates the checksum of its index.
fn forge(pack: &Path, change: impl FnOnce(&mut Vec<u8>, usize)) {
    const FOOTER_BYTES: usize = 56;
    let mut bytes = fs::read(pack).unwrap();
    let footer = bytes.split_off(bytes.len() - FOOTER_BYTES);
    let index_bytes = u64::from_le_bytes(footer[16..24].try_into().unwrap());
    let index_at = bytes.len() - usize::try_from(index_bytes).unwrap();
    if index_at == 0 {
        // The pack has no blocks.
        return;
    }
    change(&mut bytes, index_at);
    let index = &bytes[index_at.min(bytes.len())..];
    let sum = *blake3::hash(index).as_bytes();
    let length = (index.len() as u64).to_le_bytes();
    fs::write(pack, [&bytes[..], &footer[..16], &length, &sum].concat()).unwrap();
}

#[test]
fn forged_packs_with_valid_checksums_and_invalid_content_are_replaced() {
    // The last segment's size word and checksum are at the end of the index.
    let forgeries: [fn(&mut Vec<u8>, usize); 6] = [
        // A block without bytes, one longer than a block, and an uncompressed one of another length.
        |bytes, _| put_word(bytes, 0),
        |bytes, _| put_word(bytes, (1 << 24) - 1),
        |bytes, _| put_word(bytes, (1 << 24) | 1),
        // An index in which a segment is missing, one with an extra segment, and an empty one.
        |bytes, _| bytes.truncate(bytes.len() - 20),
        |bytes, _| bytes.extend([7; 20]),
        |bytes, index_at| bytes.truncate(index_at),
    ];
    for (number, forgery) in forgeries.into_iter().enumerate() {
        let target = Target::new();
        target.entries("packs").iter().for_each(|pack| forge(pack, forgery));
        let output = target.run(&["build", "--closure-info", "info", "--store-dir", "store", "--json", "-o", "again"]);
        assert!(target.workspace.read("again") == target.image, "forgery {number}");
        let report: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
        assert!(report["cache"]["rebuiltPaths"].as_u64().unwrap() > 0, "forgery {number}: {report}");
        target.assert_unharmed();
    }
}

/// Overwrites the size word of the last segment, which has one block.
fn put_word(bytes: &mut [u8], word: u32) {
    let at = bytes.len() - 20;
    bytes[at..at + 4].copy_from_slice(&word.to_le_bytes());
}

#[test]
fn symlinks_in_place_of_cache_directories_are_refused_and_their_targets_are_not_collected() {
    for part in ["packs", "outputs", "names", ""] {
        let target = Target::new();
        let elsewhere = target.workspace.path("elsewhere");
        fs::create_dir(&elsewhere).unwrap();
        fs::write(elsewhere.join("precious"), "precious").unwrap();
        let directory = target.part(part);
        fs::remove_dir_all(&directory).unwrap();
        symlink(&elsewhere, directory.components().collect::<PathBuf>()).unwrap();
        for (command, code) in [
            // The image is built without the cache.
            (&["build", "--closure-info", "info", "--store-dir", "store", "--quiet", "-o", "again"][..], 0),
            (&["cache", "gc", "--max-size", "0"], 1),
            (&["cache", "fsck"], 1),
        ] {
            let output = target.run(command);
            let printed = String::from_utf8(output.stderr).unwrap();
            // fsck checks only packs.
            if !(command[1] == "fsck" && ["outputs", "names"].contains(&part)) {
                assert_eq!(output.status.code(), Some(code), "{part}: {command:?}: {printed}");
                assert!(printed.contains("it is a symbolic link, which leads out of the cache"), "{part}: {printed}");
            }
            let names: Vec<_> = fs::read_dir(&elsewhere).unwrap().map(|entry| entry.unwrap().file_name()).collect();
            assert_eq!(names, ["precious"], "{part}: {command:?}");
        }
        assert!(target.workspace.read("again") == target.image, "{part}");
    }
}

#[test]
fn a_symlink_in_place_of_a_directory_of_packs_is_not_written_to() {
    let target = Target::new();
    let elsewhere = target.workspace.path("elsewhere");
    fs::create_dir(&elsewhere).unwrap();
    let packs = fs::read_dir(target.part("packs")).unwrap().next().unwrap().unwrap().path();
    fs::remove_dir_all(&packs).unwrap();
    symlink(&elsewhere, &packs).unwrap();
    target.assert_built("again");
    assert_eq!(fs::read_dir(&elsewhere).unwrap().count(), 0);
}

#[test]
fn an_output_that_is_a_symlink_is_replaced_and_its_target_is_unchanged() {
    let target = Target::new();
    symlink("victim", target.workspace.path("link")).unwrap();
    target.assert_built("link");
    assert!(!fs::symlink_metadata(target.workspace.path("link")).unwrap().is_symlink());
    assert_eq!(fs::metadata(target.workspace.path("link")).unwrap().nlink(), 1);
}

#[test]
fn a_cache_that_is_removed_replaced_and_damaged_during_builds_only_makes_them_slower() {
    let target = &Target::new();
    let cache = target.workspace.path("cache");
    let remove = |path: &Path| match fs::symlink_metadata(path) {
        Ok(found) if found.is_dir() => _ = fs::remove_dir_all(path),
        Ok(_) => _ = fs::remove_file(path),
        Err(_) => {}
    };
    let running = &AtomicBool::new(true);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            for number in (0..).take_while(|_| running.load(Ordering::Relaxed)) {
                // Each may fail, because a build changes the cache at the same time.
                match number % 7 {
                    0 => remove(&cache),
                    1 => _ = fs::rename(&cache, target.workspace.path(&format!("former-{number}"))),
                    2 => _ = fs::write(&cache, "no directory"),
                    3 => _ = symlink("victim", &cache),
                    4 => remove(&cache.join("v2/packs")),
                    5 => remove(&cache.join("v2")),
                    _ => {
                        let packs = fs::read_dir(cache.join("v2/packs")).into_iter().flatten().flatten();
                        for pack in packs.flat_map(|settings| fs::read_dir(settings.path())).flatten().flatten() {
                            _ = fs::File::options().write(true).open(pack.path()).and_then(|pack| pack.set_len(50));
                        }
                    }
                }
                // At another moment of a build each time.
                std::thread::sleep(Duration::from_millis(number % 11));
            }
        });
        let outputs: Vec<Output> = (0..60).map(|number| target.build(&format!("image-{number}"))).collect();
        running.store(false, Ordering::Relaxed);
        for (number, output) in outputs.into_iter().enumerate() {
            let stderr = String::from_utf8_lossy(&output.stderr);
            assert_eq!(output.status.code(), Some(0), "{stderr}");
            assert!(stderr.lines().all(|line| line.starts_with("warning: ")), "{stderr}");
            assert!(target.workspace.read(&format!("image-{number}")) == target.image, "{stderr}");
        }
    });
    assert_eq!(target.workspace.read("victim"), b"precious");
}
