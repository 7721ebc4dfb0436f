//! Five ways to read a store. The same code runs on the host (loop mount) and in a guest.
//!
//! It uses only the standard library, so that a guest needs nothing but a static build.

use std::collections::VecDeque;
use std::fs::{self, File};
use std::io::{self, Read};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::time::Instant;

/// Files below this size count as small: most files of a store, which are read at every start of a program.
pub const SMALL_FILE_BYTES: u64 = 64 * 1024;
/// The number of random reads.
pub const RANDOM_READS: usize = 2000;

const PAGE_BYTES: u64 = 4096;
const BUFFER_BYTES: usize = 256 * 1024;

/// A way to read a store.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reading {
    /// `find -size`: lists every directory and reads the metadata of every entry.
    FindStat,
    /// Reads every file once, in the order of the directories.
    AllFiles,
    /// The same with two readers that share the list.
    AllFilesTwoReaders,
    /// Reads every file below [`SMALL_FILE_BYTES`].
    SmallFiles,
    /// Reads [`RANDOM_READS`] single pages, spread over all bytes of the store, the same ones for every image.
    RandomPages,
}

impl Reading {
    /// All ways, in the order in which they are measured.
    pub const ALL: [Self; 5] =
        [Self::FindStat, Self::AllFiles, Self::AllFilesTwoReaders, Self::SmallFiles, Self::RandomPages];

    /// Returns a name for tables.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::FindStat => "find+stat",
            Self::AllFiles => "all files",
            Self::AllFilesTwoReaders => "all, 2 readers",
            Self::SmallFiles => "files < 64K",
            Self::RandomPages => "random 4K",
        }
    }
}

/// A file of a store and its size in bytes.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct StoreFile {
    /// Relative to the store's directory.
    pub path: PathBuf,
    /// Length in bytes.
    pub bytes: u64,
}

/// Returns all regular files under `directory`, sorted by path.
///
/// # Errors
/// The first error of the file system.
pub fn list(directory: &Path) -> io::Result<Vec<StoreFile>> {
    let mut files = Vec::new();
    let mut waiting = vec![PathBuf::new()];
    while let Some(relative) = waiting.pop() {
        for entry in fs::read_dir(directory.join(&relative))? {
            let entry = entry?;
            let path = relative.join(entry.file_name());
            let metadata = entry.metadata()?;
            if metadata.is_dir() {
                waiting.push(path);
            } else if metadata.is_file() {
                files.push(StoreFile { path, bytes: metadata.size() });
            }
        }
    }
    files.sort();
    Ok(files)
}

/// Seconds that one way of reading takes; `files` is what [`list`] gave for the same content.
///
/// # Errors
/// The first error of the file system; a file shorter than listed.
pub fn seconds(reading: Reading, directory: &Path, files: &[StoreFile]) -> io::Result<f64> {
    let started = Instant::now();
    match reading {
        Reading::FindStat => {
            list(directory)?;
        }
        Reading::AllFiles => read_all(directory, &Mutex::new(files.iter().collect()))?,
        Reading::AllFilesTwoReaders => {
            let queue = Mutex::new(files.iter().collect());
            std::thread::scope(|scope| {
                let other = scope.spawn(|| read_all(directory, &queue));
                read_all(directory, &queue)?;
                other.join().unwrap_or_else(|_| Err(io::Error::other("a reader panicked")))
            })?;
        }
        Reading::SmallFiles => {
            let small = files.iter().filter(|file| file.bytes < SMALL_FILE_BYTES).collect();
            read_all(directory, &Mutex::new(small))?;
        }
        Reading::RandomPages => {
            let mut page = [0; PAGE_BYTES as usize];
            for (file, offset) in random_places(files, RANDOM_READS) {
                let wanted = (file.bytes - offset).min(PAGE_BYTES);
                File::open(directory.join(&file.path))?
                    .read_exact_at(&mut page[..usize::try_from(wanted).unwrap_or(0)], offset)?;
            }
        }
    }
    Ok(started.elapsed().as_secs_f64())
}

fn read_all(directory: &Path, queue: &Mutex<VecDeque<&StoreFile>>) -> io::Result<()> {
    let mut buffer = vec![0; BUFFER_BYTES];
    loop {
        let Some(next) = queue.lock().map_err(|_| io::Error::other("a reader panicked"))?.pop_front() else {
            return Ok(());
        };
        let mut file = File::open(directory.join(&next.path))?;
        let mut total = 0;
        loop {
            match file.read(&mut buffer)? {
                0 => break,
                read => total += read as u64,
            }
        }
        if total != next.bytes {
            return Err(io::Error::other(format!("{}: {total} bytes, not {}", next.path.display(), next.bytes)));
        }
    }
}

/// `count` pages spread evenly over the bytes of all files, by a fixed sequence: the same for every image of one store.
fn random_places(files: &[StoreFile], count: usize) -> Vec<(&StoreFile, u64)> {
    let ends: Vec<u64> = files
        .iter()
        .scan(0, |end, file| {
            *end += file.bytes;
            Some(*end)
        })
        .collect();
    let Some(&total) = ends.last().filter(|total| **total > 0) else { return Vec::new() };
    // xorshift64 with a fixed seed: it is sufficient that the positions are not sequential
    let mut state: u64 = 0x9e37_79b9_7f4a_7c15;
    (0..count)
        .filter_map(|_| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            let place = state % total;
            let index = ends.partition_point(|end| *end <= place);
            let file = files.get(index)?;
            let within = place - (ends.get(index)? - file.bytes);
            Some((file, within / PAGE_BYTES * PAGE_BYTES))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn store() -> (tempfile::TempDir, Vec<StoreFile>) {
        let directory = tempfile::tempdir().unwrap();
        fs::create_dir(directory.path().join("bin")).unwrap();
        fs::write(directory.path().join("bin/big"), vec![7; 300_000]).unwrap();
        fs::write(directory.path().join("empty"), []).unwrap();
        let files = list(directory.path()).unwrap();
        (directory, files)
    }

    #[test]
    fn files_are_listed_with_their_sizes() {
        let (_directory, files) = store();
        let expected =
            [StoreFile { path: "bin/big".into(), bytes: 300_000 }, StoreFile { path: "empty".into(), bytes: 0 }];
        assert_eq!(files, expected);
    }

    #[test]
    fn every_kind_of_reading_takes_time() {
        let (directory, files) = store();
        for reading in Reading::ALL {
            assert!(seconds(reading, directory.path(), &files).unwrap() > 0.0);
        }
    }

    #[test]
    fn a_file_that_is_shorter_than_listed_is_an_error() {
        let (directory, files) = store();
        fs::write(directory.path().join("bin/big"), "short").unwrap();
        for reading in [Reading::AllFiles, Reading::AllFilesTwoReaders, Reading::RandomPages] {
            assert!(seconds(reading, directory.path(), &files).is_err(), "{}", reading.name());
        }
    }

    #[test]
    fn random_positions_are_within_files_and_the_same_each_time() {
        let (_directory, files) = store();
        let places = random_places(&files, 500);
        assert_eq!(places.len(), 500);
        assert!(places.iter().all(|(file, offset)| *offset < file.bytes && offset % PAGE_BYTES == 0));
        assert_eq!(places, random_places(&files, 500));
        assert!(places.iter().any(|(_, offset)| *offset > 200_000), "they reach the end of the file");
    }
}
