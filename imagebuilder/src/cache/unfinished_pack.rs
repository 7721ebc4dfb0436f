//! The file of a pack from its creation until it gets its name.

use program::unnamed_file::UnnamedFile;
use std::fs::File;
use std::sync::{PoisonError, RwLock};

/// A pack that several threads write. Discarding it frees its space for good: a write that has begun is waited for, and
/// later ones have no effect.
#[derive(Debug)]
pub struct UnfinishedPack {
    file: UnnamedFile,
    is_discarded: RwLock<bool>,
}

impl UnfinishedPack {
    /// Begins a pack in an empty file.
    pub fn new(file: UnnamedFile) -> Self {
        Self { file, is_discarded: RwLock::new(false) }
    }

    /// Returns the open file. Only [`Self::write`] should change it while other threads use the pack.
    pub fn file(&self) -> &File {
        self.file.file()
    }

    /// Returns the file, to give it its name.
    pub(super) fn unnamed(&self) -> &UnnamedFile {
        &self.file
    }

    /// Calls a function that writes to the file; `None` without a call if the pack was discarded.
    pub fn write<T>(&self, write: impl FnOnce(&File) -> T) -> Option<T> {
        let is_discarded = self.is_discarded.read().unwrap_or_else(PoisonError::into_inner);
        (!*is_discarded).then(|| write(self.file()))
    }

    /// Discards the pack. Returns whether that freed space.
    pub fn discard(&self) -> bool {
        let mut is_discarded = self.is_discarded.write().unwrap_or_else(PoisonError::into_inner);
        *is_discarded = true;
        let file = self.file();
        file.metadata().is_ok_and(|metadata| metadata.len() > 0) && file.set_len(0).is_ok()
    }

    /// Returns whether the pack was discarded.
    pub fn is_discarded(&self) -> bool {
        *self.is_discarded.read().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cache::Cache;
    use crate::plan::PlannedPath;
    use crate::settings::ImageSettings;
    use crate::store_path::StorePath;
    use std::fs;
    use std::os::unix::fs::FileExt;
    use std::sync::atomic::{AtomicUsize, Ordering};

    #[test]
    fn a_pack_that_has_its_name_is_removed_but_not_cut_short_for_its_readers() {
        let directory = tempfile::tempdir().unwrap();
        let (cache, settings) = (Cache::open(directory.path()).unwrap(), ImageSettings::default());
        let path = StorePath::from_base_name("0c0wqvhs4gn6a6ps1q4a9qd3h2ra2bnv-hello").unwrap();
        let path = PlannedPath { path, nar_hash: Some([7; 32]), nar_size_bytes: None };
        let [kept, unfinished] = [(); 2].map(|()| cache.new_pack(&settings).unwrap().unwrap());
        for pack in [&kept, &unfinished] {
            pack.write(|file| file.write_all_at(b"content", 0)).unwrap().unwrap();
        }
        cache.keep_pack(&path, &settings, &kept).unwrap();
        drop(kept);
        let by_another_build = cache.find_pack(&path, &settings).unwrap().unwrap();
        assert!(cache.make_room(0));
        assert!(cache.find_pack(&path, &settings).unwrap().is_none());
        let mut content = [0; 7];
        by_another_build.file().read_exact_at(&mut content, 0).unwrap();
        assert_eq!(&content, b"content");
        assert!(unfinished.is_discarded());
        assert_eq!(fs::read_dir(cache.pack_directory(&settings)).unwrap().count(), 0);
    }

    #[test]
    fn nothing_is_written_to_a_pack_after_it_was_discarded() {
        let directory = tempfile::tempdir().unwrap();
        for _ in 0..50 {
            let pack = UnfinishedPack::new(UnnamedFile::create_sibling(&directory.path().join("pack")).unwrap());
            let writes = AtomicUsize::new(0);
            std::thread::scope(|scope| {
                for thread in 0..3 {
                    let (pack, writes) = (&pack, &writes);
                    scope.spawn(move || {
                        while pack.write(|file| file.write_all_at(b"data", thread * 4)).is_some() {
                            writes.fetch_add(1, Ordering::Relaxed);
                        }
                    });
                }
                while writes.load(Ordering::Relaxed) < 10 {
                    std::thread::yield_now();
                }
                assert!(pack.discard());
            });
            assert_eq!(pack.file().metadata().unwrap().len(), 0);
            assert!(pack.is_discarded() && !pack.discard());
        }
    }
}
