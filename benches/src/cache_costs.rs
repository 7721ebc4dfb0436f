//! What the cache costs and saves besides time: shared blocks, disk space, and stores of very many small paths.

use sha2::{Digest, Sha256};
use std::fs::{self, File};
use std::io::{BufWriter, Read, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::comparison::{ComparisonOutcome, Environment};
use crate::comparisons;
use crate::error::{Error, file};
use crate::results::StoreResults;
use crate::store_tree::StoreTree;
use crate::tool::{Cache, Programs, Source, Tool};
use crate::workspace::run;

/// A file system in a file, mounted through a loop device; unmounted when dropped. Needs root.
#[derive(Debug)]
pub struct Volume {
    directory: tempfile::TempDir,
}

impl Volume {
    /// Makes a file system of a kind (`btrfs`, `xfs`) in a sparse file of `bytes`, in `place`.
    ///
    /// # Errors
    /// When it can't be made or mounted.
    pub fn new(kind: &str, bytes: u64, place: &Path) -> Result<Self, Error> {
        let directory = tempfile::tempdir_in(place).map_err(file("create a directory in", place))?;
        let (image, point) = (directory.path().join("volume"), directory.path().join("mounted"));
        File::create(&image).and_then(|created| created.set_len(bytes)).map_err(file("write", &image))?;
        fs::create_dir(&point).map_err(file("make", &point))?;
        let path = format!("{}:/usr/sbin:/sbin", std::env::var("PATH").unwrap_or_default());
        run(Command::new(format!("mkfs.{kind}")).arg("-q").arg(&image).env("PATH", path))?;
        run(Command::new("mount").args(["-o", "loop"]).arg(&image).arg(&point))?;
        Ok(Self { directory })
    }

    /// Returns the directory on which it is mounted.
    #[must_use]
    pub fn path(&self) -> PathBuf {
        self.directory.path().join("mounted")
    }
}

impl Drop for Volume {
    fn drop(&mut self) {
        if let Err(error) = run(Command::new("umount").arg(self.path())) {
            crate::message(&format!("{error}"));
        }
    }
}

/// Measures images from the cache on a file system that shares blocks. `image` is one with our defaults.
///
/// # Errors
/// When a program fails.
pub fn on_file_system(
    kind: &str,
    (tree, programs): (&mut StoreTree, &Programs),
    image: &Path,
    rounds: usize,
) -> Result<(ComparisonOutcome, String), Error> {
    let bytes = fs::metadata(image).map_err(file("read", image))?.len();
    let place = image.parent().unwrap_or(Path::new("."));
    let volume = Volume::new(kind, bytes * 6 + (1 << 30), place)?;
    let scratch = volume.path();
    let copied = scratch.join("image");
    run(Command::new("cp").arg("--reflink=never").arg(image).arg(&copied))?;
    let comparison = comparisons::from_the_cache(kind, &scratch, &copied);
    let outcome = Environment { tree: &mut *tree, programs, scratch: &scratch }.run(&comparison, rounds)?;
    let output = scratch.join("output.image");
    let tool = Tool::Ours { packing: None, source: Source::ClosureInfo, cache: Cache::At(scratch.join("cache")) };
    run(&mut tool.command(programs, tree, &output))?;
    run(Command::new("cmp").arg(&output).arg(image))?;
    let (shared, all) = shared_blocks(&output)?;
    Ok((outcome, format!("{kind}: the image shares {} of its blocks with the cache", percent(shared, all))))
}

/// How many blocks of a file are shared with others, and how many it has.
fn shared_blocks(path: &Path) -> Result<(u64, u64), Error> {
    let search = format!("{}:/usr/sbin:/sbin", std::env::var("PATH").unwrap_or_default());
    let text = run(Command::new("filefrag").arg("-v").arg(path).env("PATH", search))?;
    let extents = text.lines().filter_map(|line| {
        let length: u64 = line.split(':').nth(3)?.trim().parse().ok()?;
        Some((if line.contains("shared") { length } else { 0 }, length))
    });
    Ok(extents.fold((0, 0), |(shared, all), (more, length)| (shared + more, all + length)))
}

#[expect(clippy::cast_precision_loss, reason = "sizes are far below 2^53")]
fn percent(part: u64, whole: u64) -> String {
    format!("{:.1} %", part as f64 * 100.0 / whole.max(1) as f64)
}

/// The closures that share a cache, and the store paths that all of them have, and that only one of them has.
const CLOSURES: usize = 20;
const COMMON_PATHS: usize = 90;
const OWN_PATHS: usize = 10;

/// Builds closures that share nine tenths of their store paths with one cache, and compares its size with an image of
/// all.
///
/// # Errors
/// When a program fails, or the store has too few paths.
pub fn many_closures(tree: &StoreTree, programs: &Programs, scratch: &Path) -> Result<String, Error> {
    let list = tree.closure_info().join("store-paths");
    let text = fs::read_to_string(&list).map_err(file("read", &list))?;
    let paths: Vec<&str> = text.lines().collect();
    let needed = COMMON_PATHS + CLOSURES * OWN_PATHS;
    let (Some(common), Some(own)) = (paths.get(..COMMON_PATHS), paths.get(COMMON_PATHS..needed)) else {
        return Err(Error::Unexpected(format!("{} has fewer than {needed} paths", list.display())));
    };
    let (cache, output, chosen) = (scratch.join("cache-of-many"), scratch.join("many.image"), scratch.join("chosen"));
    let build = |closure: &[&str], cache: Option<&Path>| -> Result<u64, Error> {
        fs::write(&chosen, closure.join("\n") + "\n").map_err(file("write", &chosen))?;
        let mut command = Command::new(&programs.microvm_image);
        command.args(["build", "--quiet", "--store-dir"]).arg(tree.store()).arg("--paths-from").arg(&chosen);
        match cache {
            Some(cache) => command.arg("--cache").arg(cache),
            None => command.arg("--no-cache"),
        };
        run(command.arg("--output").arg(&output))?;
        Ok(fs::metadata(&output).map_err(file("read", &output))?.len())
    };
    for own in own.chunks(OWN_PATHS) {
        build(&[common, own].concat(), Some(&cache))?;
    }
    let union_bytes = build(&[common, own].concat(), None)?;
    let cache_bytes = disk_bytes(&cache)?;
    #[expect(clippy::cast_precision_loss, reason = "sizes are far below 2^53")]
    let ratio = cache_bytes as f64 / union_bytes as f64;
    Ok(format!(
        "{CLOSURES} closures that share 90 % of their store paths: the cache takes {:.1} MB of disk, {ratio:.3} times \
         one image of all their paths",
        cache_bytes as f64 / 1e6
    ))
}

/// Bytes of disk below a directory.
fn disk_bytes(directory: &Path) -> Result<u64, Error> {
    let mut bytes = 0;
    for entry in fs::read_dir(directory).map_err(file("list", directory))? {
        let entry = entry.map_err(file("list", directory))?;
        let metadata = entry.metadata().map_err(file("read", entry.path()))?;
        bytes += metadata.blocks() * 512;
        if metadata.is_dir() {
            bytes += disk_bytes(&entry.path())?;
        }
    }
    Ok(bytes)
}

/// The share of processor time that the deciding thread takes, and the time with one and two threads.
///
/// # Errors
/// When the program fails or its report has no such value.
pub fn sequencer_share(tree: &StoreTree, programs: &Programs, scratch: &Path) -> Result<String, Error> {
    let build = |jobs: &str| -> Result<(f64, f64), Error> {
        let mut command = Command::new(&programs.microvm_image);
        command.args(["build", "--quiet", "--json", "--no-cache", "--jobs", jobs, "--store-dir"]).arg(tree.store());
        command.arg("--closure-info").arg(tree.closure_info()).arg("--output").arg(scratch.join("shares.image"));
        let report: serde_json::Value =
            serde_json::from_str(&run(&mut command)?).map_err(|error| Error::Unexpected(error.to_string()))?;
        let number = |pointer: &str| {
            let value = report.pointer(pointer).and_then(serde_json::Value::as_f64);
            value.ok_or_else(|| Error::Unexpected(format!("the report has no {pointer}")))
        };
        // Of the data phase: the digests that --json computes are not part of it.
        Ok((number("/seconds/blocks")?, number("/cpuSeconds/sequencer")?))
    };
    let (one, sequencer) = build("1")?;
    let (two, _) = build("2")?;
    Ok(format!(
        "the data phase takes {one:.2} s with -j1 and {two:.2} s with -j2; the sequencer's processor time is {:.1} % of the \
         former",
        sequencer / one * 100.0
    ))
}

/// Measures a store of `count` paths of one small file each, made in `place`.
///
/// # Errors
/// When the store can't be made or a program fails.
pub fn small_paths(count: usize, rounds: usize, (programs, place): (&Programs, &Path)) -> Result<StoreResults, Error> {
    let directory = tempfile::tempdir_in(place).map_err(file("create a directory in", place))?;
    let directory = directory.path();
    let nar_bytes = make_small_paths(directory, count)?;
    let mut tree = StoreTree::unchanging(directory);
    let comparison = comparisons::small_paths(directory, &directory.join("files"));
    let comparisons = vec![Environment { tree: &mut tree, programs, scratch: directory }.run(&comparison, rounds)?];
    Ok(StoreResults {
        name: format!("{count}-paths"),
        growth: None,
        nar_bytes,
        files: count,
        read_seconds: Vec::new(),
        comparisons,
        notes: Vec::new(),
        readings: Vec::new(),
        guest_readings: Vec::new(),
    })
}

/// Store paths that are files of up to 2 KiB, with their NAR hashes, in `store/` and `closure-info/`; `files` lists
/// them.
fn make_small_paths(directory: &Path, count: usize) -> Result<u64, Error> {
    let (store, info) = (directory.join("store"), directory.join("closure-info"));
    for made in [&store, &info] {
        fs::create_dir(made).map_err(file("make", made))?;
    }
    let create = |path: PathBuf| File::create(&path).map(BufWriter::new).map_err(file("write", path));
    let mut registration = create(info.join("registration"))?;
    let mut paths = create(info.join("store-paths"))?;
    let mut files = create(directory.join("files"))?;
    let mut nar_bytes = 0;
    let failed = |error| file("write", directory)(error);
    for number in 0..count {
        let name = format!("{number:032}-path-{number}");
        let content = format!("{number} ").repeat(1 + number % 300);
        let path = store.join(&name);
        fs::write(&path, &content).map_err(file("write", &path))?;
        let nar = nar_of_file(content.as_bytes());
        let hash: String = Sha256::digest(&nar).iter().map(|byte| format!("{byte:02x}")).collect();
        let size = nar.len();
        nar_bytes += size as u64;
        writeln!(registration, "/nix/store/{name}\nsha256:{hash}\n{size}\n\n0").map_err(failed)?;
        writeln!(paths, "/nix/store/{name}").map_err(failed)?;
        writeln!(files, "{}", path.display()).map_err(failed)?;
    }
    for mut written in [registration, paths, files] {
        written.flush().map_err(failed)?;
    }
    Ok(nar_bytes)
}

/// Returns the NAR of a regular file.
fn nar_of_file(content: &[u8]) -> Vec<u8> {
    let mut nar = Vec::new();
    for string in [&b"nix-archive-1"[..], b"(", b"type", b"regular", b"contents", content, b")"] {
        nar.extend_from_slice(&(string.len() as u64).to_le_bytes());
        nar.extend_from_slice(string);
        nar.resize(nar.len().next_multiple_of(8), 0);
    }
    nar
}

/// Opens, reads and closes the files in a list.
///
/// # Errors
/// When one can't be read.
pub fn read_files(list: &Path) -> Result<(), Error> {
    let text = fs::read_to_string(list).map_err(file("read", list))?;
    let mut buffer = vec![0; 64 << 10];
    for path in text.lines() {
        let mut opened = File::open(path).map_err(file("open", path))?;
        while opened.read(&mut buffer).map_err(file("read", path))? > 0 {}
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_store_of_small_paths_has_a_registration_and_a_list_of_its_files() {
        let directory = tempfile::tempdir().unwrap();
        let bytes = make_small_paths(directory.path(), 20).unwrap();
        assert!(bytes > 20 * 112, "{bytes}");
        assert_eq!(fs::read_dir(directory.path().join("store")).unwrap().count(), 20);
        read_files(&directory.path().join("files")).unwrap();
    }
}
