//! `benches scale`: stores of ever more small files, to see how time and memory grow.

use std::fs::{self, File};
use std::io::{BufWriter, Write};
use std::path::Path;

use crate::builds::programs;
use crate::contest::{Arena, Contender, Contest, Preparation, read_closure};
use crate::error::{Error, file};
use crate::method::Method;
use crate::results::{Results, StoreResults};
use crate::store_tree::StoreTree;
use crate::tool::{Cache, Packing, Source, Tool};

const FILES_PER_PATH: usize = 100;
const FILES_PER_DIRECTORY: usize = 20;
const MOST_WORDS: u64 = 200;
/// Low, so that what each file costs is not hidden behind compression.
const PACKING: Packing = Packing { level: 3, block_bytes: 128 * 1024 };

/// Measures all tools on a made-up store of each count of files, made in a directory of its own in `place`.
///
/// # Errors
/// When a store can't be made or a program fails.
pub fn run(counts: &[usize], rounds: usize, place: &Path) -> Result<Results, Error> {
    let programs = programs()?;
    let method = Method::now(&programs)?;
    let mut stores = Vec::new();
    for &count in counts {
        let directory = tempfile::tempdir_in(place).map_err(file("make a directory in", place))?;
        crate::talk(&format!("scale: making a store of {count} files"));
        let total_bytes = make_store(directory.path(), count)?;
        let mut tree = StoreTree::unchanging(directory.path());
        let mut arena = Arena { tree: &mut tree, programs: &programs, scratch: directory.path() };
        let contests = vec![arena.run(&contest(count, directory.path()), rounds)?];
        let read_seconds = vec![read_closure(&tree)?];
        stores.push(StoreResults {
            name: format!("{count}-small-files"),
            nar_bytes: total_bytes,
            files: count,
            read_seconds,
            contests,
            readings: Vec::new(),
            guest_readings: Vec::new(),
        });
    }
    Ok(Results { method, stores })
}

fn contest(count: usize, scratch: &Path) -> Contest {
    let ours = |cache| Tool::Ours { packing: Some(PACKING), source: Source::PathList, cache };
    let cached = Cache::At(scratch.join("cache"));
    let contenders = [
        ("microvm-image", ours(Cache::None), Preparation::Nothing),
        ("microvm-image, filling a cache", ours(cached.clone()), Preparation::Nothing),
        ("microvm-image, nothing changed, plain list", ours(cached), Preparation::NothingChanged),
        ("mksquashfs", Tool::Mksquashfs(PACKING), Preparation::Nothing),
        ("gensquashfs", Tool::Gensquashfs(Some(PACKING)), Preparation::Nothing),
    ];
    let contenders = contenders
        .into_iter()
        .map(|(name, tool, preparation)| Contender { name: name.to_owned(), tool, preparation })
        .collect();
    Contest { title: format!("{count} files, level {}, 128K", PACKING.level), contenders }
}

/// Writes `store/` and `closure-info/store-paths`; returns the bytes of all files.
fn make_store(directory: &Path, count: usize) -> Result<u64, Error> {
    let mut words = Words::new();
    let mut total_bytes = 0;
    let info = directory.join("closure-info");
    fs::create_dir_all(&info).map_err(file("make", &info))?;
    let list_path = info.join("store-paths");
    let mut list = BufWriter::new(File::create(&list_path).map_err(file("write", &list_path))?);
    for (index, first) in (0..count).step_by(FILES_PER_PATH).enumerate() {
        let name = format!("{}-files-{index}", store_hash(index));
        let path = directory.join("store").join(&name);
        for number in 0..FILES_PER_PATH.min(count - first) {
            let subdirectory = path.join(format!("share-{}", number / FILES_PER_DIRECTORY));
            if number % FILES_PER_DIRECTORY == 0 {
                fs::create_dir_all(&subdirectory).map_err(file("make", &subdirectory))?;
            }
            let text = words.text();
            total_bytes += text.len() as u64;
            let target = subdirectory.join(format!("file-{number}"));
            fs::write(&target, text).map_err(file("write", &target))?;
        }
        writeln!(list, "/nix/store/{name}").map_err(file("write", &list_path))?;
    }
    list.flush().map_err(file("write", &list_path))?;
    Ok(total_bytes)
}

/// 32 letters as Nix's base 32 has them, another for each index.
fn store_hash(index: usize) -> String {
    format!("{index:032}")
}

/// Text that compresses like text: made-up words, from a fixed sequence.
struct Words {
    state: u64,
}

impl Words {
    fn new() -> Self {
        Self { state: 0x2545_f491_4f6c_dd1d }
    }

    fn next(&mut self) -> u64 {
        self.state ^= self.state << 13;
        self.state ^= self.state >> 7;
        self.state ^= self.state << 17;
        self.state
    }

    fn text(&mut self) -> String {
        let count = self.next() % MOST_WORDS;
        (0..count).map(|_| format!("{:x} ", self.next() % 5000)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_store_of_small_files_has_as_many_files_and_paths_as_asked() {
        let directory = tempfile::tempdir().unwrap();
        let total_bytes = make_store(directory.path(), 250).unwrap();
        let files = crate::reading::list(&directory.path().join("store")).unwrap();
        assert_eq!(files.len(), 250);
        assert_eq!(files.iter().map(|file| file.bytes).sum::<u64>(), total_bytes);
        let paths = fs::read_to_string(directory.path().join("closure-info/store-paths")).unwrap();
        assert_eq!(paths.lines().count(), 3);
        assert!(paths.lines().all(|path| path.len() > "/nix/store/".len() + 33));
    }
}
