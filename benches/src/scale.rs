//! `benches scale`: synthetic stores with more and more small files, and with more and more bytes, to see how time and
//! memory grow.

use std::fs::{self, File};
use std::io::{BufWriter, Write};
use std::path::Path;

use crate::comparison::{Candidate, Comparison, Environment, Preparation, read_closure};
use crate::error::{Error, file};
use crate::method::Method;
use crate::results::{Growth, Results, StoreResults};
use crate::store_tree::StoreTree;
use crate::tool::{Cache, Packing, Programs, Source, Tool};

const FILES_PER_PATH: usize = 100;
const FILES_PER_DIRECTORY: usize = 20;
const MAX_WORDS: u64 = 200;
const LARGE_FILE_BYTES: usize = 16_000_000;
/// Length of the text from which large files are made, in slices of up to [`SLICE_BYTES`], so that they compress like
/// text.
const POOL_BYTES: usize = 1 << 20;
const SLICE_BYTES: usize = 2048;
/// A low level, so that compression does not hide the cost per file.
const PACKING: Packing = Packing { level: 3, block_bytes: 128 * 1024 };

/// The stores to create.
#[derive(Debug, Clone)]
pub struct Extent {
    /// Numbers of small files, one store for each.
    pub files: Vec<usize>,
    /// Megabytes in large files, one store for each.
    pub megabytes: Vec<usize>,
    /// How often each candidate runs.
    pub rounds: usize,
    /// Names of the candidates; if there are none, all.
    pub only: Vec<String>,
}

/// Measures all tools on every store of `extent`, each created in its own directory in `place`.
///
/// # Errors
/// When a store can't be made or a program fails.
pub fn run(extent: &Extent, place: &Path) -> Result<Results, Error> {
    let programs = Programs::prepare()?;
    let method = Method::now(&programs)?;
    let files = extent.files.iter().map(|count| (Growth::Files, *count));
    let bytes = extent.megabytes.iter().map(|megabytes| (Growth::Bytes, *megabytes));
    // The kernel counts the memory of this program at the start of a child for the child's peak memory. It grows with
    // the number of files, so the stores with few files come first.
    let stores = bytes
        .chain(files)
        .map(|(growth, size)| {
            let directory = tempfile::tempdir_in(place).map_err(file("create a directory in", place))?;
            measure_store((growth, size), extent, directory.path(), &programs)
        })
        .collect::<Result<_, Error>>()?;
    Ok(Results::of_stores(method, stores))
}

fn measure_store(
    (growth, size): (Growth, usize),
    extent: &Extent,
    directory: &Path,
    programs: &Programs,
) -> Result<StoreResults, Error> {
    let what = match growth {
        Growth::Files => format!("{size} files"),
        Growth::Bytes => format!("{size} MB"),
    };
    crate::message(&format!("scale: making a store of {what}"));
    let made = match growth {
        Growth::Files => make_small_files(directory, size)?,
        Growth::Bytes => make_large_files(directory, size * 1_000_000)?,
    };
    let mut tree = StoreTree::unchanging(directory);
    let mut environment = Environment { tree: &mut tree, programs, scratch: directory };
    let comparisons = vec![environment.run(&comparison(&what, directory, &extent.only), extent.rounds)?];
    let read_seconds = vec![read_closure(&tree)?];
    Ok(StoreResults {
        name: what.replace(' ', "-"),
        growth: Some(growth),
        nar_bytes: made.bytes,
        files: made.files,
        read_seconds,
        comparisons,
        notes: Vec::new(),
        readings: Vec::new(),
        guest_readings: Vec::new(),
    })
}

fn comparison(what: &str, scratch: &Path, only: &[String]) -> Comparison {
    let ours = |cache| Tool::Ours { packing: Some(PACKING), source: Source::PathList, cache };
    let cached = Cache::At(scratch.join("cache"));
    let candidates = [
        ("microvm-image", ours(Cache::None), Preparation::Nothing),
        ("microvm-image, filling a cache", ours(cached.clone()), Preparation::Nothing),
        ("microvm-image, nothing changed, plain list", ours(cached), Preparation::NothingChanged),
        ("mksquashfs", Tool::Mksquashfs(PACKING), Preparation::Nothing),
        ("gensquashfs", Tool::Gensquashfs(Some(PACKING)), Preparation::Nothing),
    ];
    let candidates = candidates
        .into_iter()
        .filter(|(name, ..)| only.is_empty() || only.iter().any(|wanted| wanted == name))
        .map(|(name, tool, preparation)| Candidate { name: name.to_owned(), tool, preparation })
        .collect();
    Comparison { title: format!("{what}, level {}, 128K", PACKING.level), candidates }
}

/// The content of a synthetic store.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Made {
    files: usize,
    bytes: u64,
}

/// A store under construction: `store/` and `closure-info/store-paths`.
struct Maker<'a> {
    directory: &'a Path,
    list: BufWriter<File>,
    paths: usize,
    made: Made,
}

impl<'a> Maker<'a> {
    fn new(directory: &'a Path) -> Result<Self, Error> {
        let info = directory.join("closure-info");
        fs::create_dir_all(&info).map_err(file("make", &info))?;
        let list = info.join("store-paths");
        let list = BufWriter::new(File::create(&list).map_err(file("write", &list))?);
        Ok(Self { directory, list, paths: 0, made: Made { files: 0, bytes: 0 } })
    }

    /// Begins the next store path. It gets a unique hash of the same length as in Nix.
    fn begin_path(&mut self) -> Result<std::path::PathBuf, Error> {
        let name = format!("{:032}-files-{}", self.paths, self.paths);
        self.paths += 1;
        writeln!(self.list, "/nix/store/{name}").map_err(file("list", &name))?;
        Ok(self.directory.join("store").join(name))
    }

    fn write(&mut self, path: &Path, content: &[u8]) -> Result<(), Error> {
        fs::write(path, content).map_err(file("write", path))?;
        self.count(content.len() as u64);
        Ok(())
    }

    /// Counts a file that was written.
    fn count(&mut self, bytes: u64) {
        self.made.files += 1;
        self.made.bytes += bytes;
    }

    fn end(mut self) -> Result<Made, Error> {
        self.list.flush().map_err(file("write the list of", self.directory))?;
        Ok(self.made)
    }
}

fn make_small_files(directory: &Path, count: usize) -> Result<Made, Error> {
    let mut words = Words::new();
    let mut store = Maker::new(directory)?;
    for first in (0..count).step_by(FILES_PER_PATH) {
        let path = store.begin_path()?;
        for number in 0..FILES_PER_PATH.min(count - first) {
            let subdirectory = path.join(format!("share-{}", number / FILES_PER_DIRECTORY));
            if number % FILES_PER_DIRECTORY == 0 {
                fs::create_dir_all(&subdirectory).map_err(file("make", &subdirectory))?;
            }
            store.write(&subdirectory.join(format!("file-{number}")), words.text().as_bytes())?;
        }
    }
    store.end()
}

fn make_large_files(directory: &Path, bytes: usize) -> Result<Made, Error> {
    let mut words = Words::new();
    let mut pool = String::with_capacity(POOL_BYTES + 4096);
    while pool.len() < POOL_BYTES {
        pool.push_str(&words.text());
    }
    let mut store = Maker::new(directory)?;
    for first in (0..bytes).step_by(LARGE_FILE_BYTES) {
        let path = store.begin_path()?;
        fs::create_dir_all(&path).map_err(file("make", &path))?;
        let target = path.join("data");
        let length = LARGE_FILE_BYTES.min(bytes - first);
        let mut writer = BufWriter::new(File::create(&target).map_err(file("write", &target))?);
        let mut rest = length;
        while rest > 0 {
            let start = words.below(POOL_BYTES - SLICE_BYTES);
            let end = start + (1 + words.below(SLICE_BYTES)).min(rest);
            let slice = pool.as_bytes().get(start..end).unwrap_or_default();
            writer.write_all(slice).map_err(file("write", &target))?;
            rest -= slice.len();
        }
        writer.flush().map_err(file("write", &target))?;
        store.count(length as u64);
    }
    store.end()
}

/// Text of generated words from a fixed sequence, which compresses like real text.
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

    fn below(&mut self, limit: usize) -> usize {
        usize::try_from(self.next() % limit.max(1) as u64).unwrap_or(0)
    }

    fn text(&mut self) -> String {
        let count = self.next() % MAX_WORDS;
        (0..count).map(|_| format!("{:x} ", self.next() % 5000)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn listed(directory: &Path) -> (usize, u64, usize) {
        let files = crate::reading::list(&directory.join("store")).unwrap();
        let paths = fs::read_to_string(directory.join("closure-info/store-paths")).unwrap();
        assert!(paths.lines().all(|path| path.len() > "/nix/store/".len() + 33));
        (files.len(), files.iter().map(|file| file.bytes).sum(), paths.lines().count())
    }

    #[test]
    fn a_store_of_small_files_has_as_many_files_and_paths_as_asked() {
        let directory = tempfile::tempdir().unwrap();
        let made = make_small_files(directory.path(), 250).unwrap();
        assert_eq!(listed(directory.path()), (250, made.bytes, 3));
        assert_eq!(made.files, 250);
    }

    #[test]
    fn a_store_of_large_files_has_as_many_bytes_as_asked() {
        let directory = tempfile::tempdir().unwrap();
        let made = make_large_files(directory.path(), 20_000_000).unwrap();
        assert_eq!(made, Made { files: 2, bytes: 20_000_000 });
        assert_eq!(listed(directory.path()), (2, 20_000_000, 2));
    }
}
