//! How often a build reads the files of the store, counted by strace(1). What `docs/cache.md` and `docs/performance.md` say
//! about it is checked here.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod program;

use imagebuilder::nar_hash;
use program::{Workspace, has_tool};
use std::collections::BTreeMap;
use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

const ONE: &str = "3aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa-one";
const TWO: &str = "4aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa-two";
const SPARSE: &str = "5aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa-sparse";

/// Four places of a file, which are compared before a large file counts as equal to another one, and single bytes, which are
/// read to find out whether the file is in memory.
const SAMPLES_BYTES: u64 = 4 * 4096 + 16;
/// Larger than the ranges in which large files are read.
const LARGE_BYTES: usize = 9 << 20;

fn noise(what: &str, bytes: usize) -> Vec<u8> {
    let mut noise = vec![0; bytes];
    blake3::Hasher::new().update(what.as_bytes()).finalize_xof().fill(&mut noise);
    noise
}

/// Creates two store paths with large and small files, some of equal size and some equal, and lists and plans of them.
fn workspace() -> Workspace {
    let workspace = Workspace::new();
    for name in [ONE, TWO] {
        let path = workspace.path("store").join(name);
        fs::create_dir_all(path.join("share")).unwrap();
        fs::write(path.join("unlike"), noise(name, LARGE_BYTES + name.len())).unwrap();
        fs::write(path.join("of-equal-size"), noise(name, LARGE_BYTES)).unwrap();
        fs::write(path.join("equal"), noise("equal", LARGE_BYTES + 4096)).unwrap();
        fs::write(path.join("medium"), noise(name, 300_000)).unwrap();
        for number in 0..20 {
            fs::write(path.join("share").join(number.to_string()), noise(name, 1000 + number)).unwrap();
            fs::write(path.join("share").join(format!("equal-{number}")), noise("small", 500)).unwrap();
        }
    }
    write_plans(&workspace, "both", &[ONE, TWO]);
    workspace
}

/// Writes a list of store paths, and a plan that has their NAR hashes.
fn write_plans(workspace: &Workspace, name: &str, store_paths: &[&str]) {
    workspace.write(&format!("{name}.list"), &store_paths.join("\n"));
    let line = format!("plan --paths-from {name}.list --store-dir store --level 1");
    let mut plan: serde_json::Value = serde_json::from_str(&workspace.run(&line).success()).unwrap();
    for (planned, store_path) in plan["paths"].as_array_mut().unwrap().iter_mut().zip(store_paths) {
        let hash = testing::nar_sha256(&workspace.path("store").join(store_path));
        planned["narHash"] = nar_hash::print(&hash).into();
    }
    workspace.write(&format!("{name}.json"), &plan.to_string());
}

/// How many bytes of each file of the store were read.
type Reads = BTreeMap<PathBuf, u64>;

/// Builds an image, and returns what was read of the store.
fn reads(workspace: &Workspace, options: &str) -> Reads {
    let _ = fs::remove_file(workspace.path("image"));
    let _ = fs::remove_dir_all(workspace.path("calls"));
    fs::create_dir(workspace.path("calls")).unwrap();
    let build = workspace.command(format!("build {options} -q -j2 -o image").split(' '));
    // Everything that can move the content of a file. A file for each thread, whose lines are whole.
    let calls = "trace=read,pread64,readv,preadv,preadv2,copy_file_range,sendfile,splice,mmap";
    let mut command = workspace.command_of(Path::new("strace"), ["-ff", "-y", "-s0", "-e", calls, "-o", "calls/of"]);
    command.arg(build.get_program()).args(build.get_args());
    let output = command.output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let store = workspace.path("store");
    let mut reads = Reads::new();
    for file in fs::read_dir(workspace.path("calls")).unwrap() {
        for line in fs::read_to_string(file.unwrap().path()).unwrap().lines() {
            // pread64(7</tmp/x/store/3aaa-one/unlike>, ""..., 4194304, 0) = 4194304
            let Some((call, rest)) = line.split_once('(') else { continue };
            let Some((_, (path, _))) = rest.split_once('<').map(|(first, rest)| (first, rest.split_once('>').unwrap()))
            else {
                continue;
            };
            let Ok(file) = Path::new(path).strip_prefix(&store) else { continue };
            assert_ne!(call, "mmap", "{line}");
            let result = line.rsplit_once(" = ").unwrap().1;
            // The rest of the line names the error.
            let bytes: i64 = result.split(' ').next().unwrap().parse().unwrap();
            *reads.entry(file.to_owned()).or_default() += u64::try_from(bytes).unwrap_or(0);
        }
    }
    reads
}

/// Checks that every file was read `times` times, and at most `more_bytes` bytes of it once more.
#[track_caller]
fn assert_read(workspace: &Workspace, reads: &Reads, times: impl Fn(&Path) -> u64, more_bytes: u64) {
    let mut files = 0;
    for store_path in [ONE, TWO] {
        let mut open = vec![PathBuf::from(store_path)];
        while let Some(path) = open.pop() {
            let at = workspace.path("store").join(&path);
            if at.is_dir() {
                open.extend(fs::read_dir(at).unwrap().map(|entry| path.join(entry.unwrap().file_name())));
                continue;
            }
            let (length, read) = (fs::metadata(&at).unwrap().len(), reads.get(&path).copied().unwrap_or(0));
            let least = times(&path) * length;
            assert!((least..=least + more_bytes).contains(&read), "{}: {read} of {length} bytes", path.display());
            files += 1;
        }
    }
    assert_eq!(files, 2 * 44);
}

fn name_is(path: &Path, name: &str) -> bool {
    path.file_name().is_some_and(|found| found == name)
}

#[test]
fn a_build_from_a_list_with_a_full_cache_reads_every_file_exactly_once() {
    if !has_tool("strace") {
        return;
    }
    let workspace = workspace();
    let build = "--paths-from both.list --store-dir store --level 1 --cache cache";
    reads(&workspace, build);
    assert_read(&workspace, &reads(&workspace, build), |_| 1, 0);
    // Packs that were made with NAR hashes serve a list as well.
    fs::remove_dir_all(workspace.path("cache")).unwrap();
    reads(&workspace, "--plan both.json --cache cache");
    assert_read(&workspace, &reads(&workspace, build), |_| 1, 0);
}

#[test]
fn a_build_with_nar_hashes_and_a_full_cache_reads_nothing_of_the_store() {
    if !has_tool("strace") {
        return;
    }
    let workspace = workspace();
    let build = "--plan both.json --cache cache";
    reads(&workspace, build);
    assert_eq!(reads(&workspace, build), Reads::new());
}

#[test]
fn a_first_build_reads_every_file_once_and_once_more_for_its_nar_hash() {
    if !has_tool("strace") {
        return;
    }
    let workspace = workspace();
    // Both store paths have a large file with the same content. It is hashed first in both, and only the first is read
    // again, to be compressed.
    let is_compared = |path: &Path| u64::from(name_is(path, "equal") && path.starts_with(ONE));
    let list = "--paths-from both.list --store-dir store --level 1";
    for (build, times) in [
        (format!("{list} --no-cache"), 1),
        (format!("{list} --cache of-list"), 1),
        ("--plan both.json --no-cache".to_owned(), 1),
        ("--plan both.json --cache of-plan".to_owned(), 2),
    ] {
        assert_read(&workspace, &reads(&workspace, &build), |path| times + is_compared(path), SAMPLES_BYTES);
    }
}

#[test]
fn an_erofs_image_is_made_by_reading_files_once_and_those_that_may_be_equal_twice() {
    if !has_tool("strace") {
        return;
    }
    let workspace = workspace();
    let build = "--paths-from both.list --store-dir store --format erofs --no-cache";
    let reads = reads(&workspace, build);
    let total =
        |name: &str| -> u64 { reads.iter().filter(|(path, _)| name_is(path, name)).map(|(_, read)| read).sum() };
    let length = |name: &str| fs::metadata(workspace.path("store").join(ONE).join(name)).unwrap().len();
    // Two files are hashed, and one of them is copied.
    assert!((3 * length("equal")..=3 * length("equal") + 2 * SAMPLES_BYTES).contains(&total("equal")), "{reads:?}");
    for name in ["unlike", "of-equal-size", "medium"] {
        assert!((2 * length(name)..=2 * length(name) + 2 * SAMPLES_BYTES).contains(&total(name)), "{name}: {reads:?}");
    }
}

#[test]
fn holes_are_read_by_no_build() {
    if !has_tool("strace") {
        return;
    }
    let workspace = Workspace::new();
    fs::create_dir_all(workspace.path("store").join(SPARSE)).unwrap();
    for name in ["one", "two"] {
        let file = File::create(workspace.path("store").join(SPARSE).join(name)).unwrap();
        file.set_len(96 << 20).unwrap();
        file.write_all_at(b"data", 50 << 20).unwrap();
    }
    write_plans(&workspace, "sparse", &[SPARSE]);
    let list = "--paths-from sparse.list --store-dir store";
    for build in [
        format!("{list} --level 1 --no-cache"),
        format!("{list} --level 1 --cache cache"),
        // Compared with the pack.
        format!("{list} --level 1 --cache cache"),
        "--plan sparse.json --cache with-hashes".to_owned(),
        format!("{list} --format erofs --no-cache"),
        format!("{list} --format erofs --verity --no-cache"),
    ] {
        let read: u64 = reads(&workspace, &build).values().sum();
        assert!(read < 1 << 20, "{build}: {read} bytes");
    }
}
