//! Images made by our own builder.

use super::store_tree::{Item, Store, base_name};
use imagebuilder::build::{BuildOptions, CacheTrust, Digests, Durability, build};
use imagebuilder::closure::Closure;
use imagebuilder::plan::{ImagePlan, PlannedPath};
use imagebuilder::progress::Silent;
use imagebuilder::settings::{Compression, ImageFormat, ImageSettings};
use imagebuilder::store_path::StorePath;
use std::fs;
use std::path::Path;
use std::sync::atomic::AtomicBool;

/// Returns a closure of all store paths in a store, without hashes.
pub fn closure(store_dir: &Path) -> Closure {
    let names = fs::read_dir(store_dir).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let mut paths: Vec<_> = names
        .map(|name| PlannedPath {
            path: StorePath::from_base_name(&name).unwrap(),
            nar_hash: None,
            nar_size_bytes: None,
        })
        .collect();
    paths.sort_unstable_by(|a, b| a.path.cmp(&b.path));
    Closure { store_dir: store_dir.to_owned(), paths }
}

/// Builds an image of all store paths in a store.
pub fn build_image(store_dir: &Path, settings: impl Into<ImageFormat>, image: &Path) {
    let plan = ImagePlan::new(closure(store_dir), settings);
    let options = BuildOptions {
        output: image.to_owned(),
        cache: None,
        packs: None,
        cache_trust: CacheTrust::Checksums,
        jobs: 2,
        digests: Digests::Skip,
        durability: Durability::Synced,
    };
    build(&plan, &options, &mut Silent, &AtomicBool::new(false)).unwrap();
}

/// Returns settings with a codec and a block size.
pub fn settings(compression: Compression, block_size_bytes: u64) -> ImageSettings {
    ImageSettings::new(compression, None, Some(block_size_bytes), None).unwrap()
}

/// An image in memory whose blocks and tables are all uncompressed, so that single fields can be changed.
pub struct PlainImage {
    pub bytes: Vec<u8>,
}

impl PlainImage {
    /// Builds an image of one store path named `tree`.
    pub fn new(item: Item) -> Self {
        let store = Store::new([("tree", item)]);
        let directory = tempfile::tempdir().unwrap();
        let image = directory.path().join("image");
        build_image(store.path(), settings(Compression::None, 4096), &image);
        Self { bytes: fs::read(&image).unwrap() }
    }

    /// Returns the position of these bytes, which must occur exactly once after `from`.
    pub fn find_from(&self, from: usize, wanted: &[u8]) -> usize {
        let windows = self.bytes[from..].windows(wanted.len()).enumerate();
        let found: Vec<usize> = windows.filter(|(_, window)| *window == wanted).map(|(at, _)| at + from).collect();
        assert_eq!(found.len(), 1, "{:?} is at {found:?}", wanted.escape_ascii().to_string());
        found[0]
    }

    /// Returns where the inode with this number begins.
    pub fn inode(&self, number: u32) -> usize {
        // After the type and mode, the owner and group are entry 0, the time is 1, and then the number follows.
        let mut wanted = vec![0, 0, 0, 0, 1, 0, 0, 0];
        wanted.extend_from_slice(&number.to_le_bytes());
        self.find_from(self.u64_at(64) as usize, &wanted) - 4
    }

    /// Returns where the directory entry with this name begins.
    pub fn entry(&self, name: &[u8]) -> usize {
        let mut wanted = (name.len() as u16 - 1).to_le_bytes().to_vec();
        wanted.extend_from_slice(name);
        self.find_from(self.u64_at(72) as usize, &wanted) - 6
    }

    pub fn u64_at(&self, at: usize) -> u64 {
        u64::from_le_bytes(self.bytes[at..at + 8].try_into().unwrap())
    }

    pub fn u32_at(&self, at: usize) -> u32 {
        u32::from_le_bytes(self.bytes[at..at + 4].try_into().unwrap())
    }

    /// Overwrites bytes.
    pub fn put(&mut self, at: usize, bytes: &[u8]) {
        self.bytes[at..at + bytes.len()].copy_from_slice(bytes);
    }

    /// Gives an entry another name of the same length.
    pub fn rename(&mut self, from: &[u8], to: &[u8]) {
        assert_eq!(from.len(), to.len());
        let at = self.entry(from) + 8;
        self.put(at, to);
    }
}

/// Returns the path in the image of a file in the store path named `tree`.
pub fn in_tree(path: &str) -> String {
    format!("/{}/{path}", base_name("tree"))
}
