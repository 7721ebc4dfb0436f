//! The service's packs. They are in its own cache directory, made from the host's store, and limited to a given total
//! size.

use super::protocol::WantedFile;
use super::{PackStore, WantedPack, in_one_line, reopen};
use crate::build::{BuildError, PackRequest, make_pack};
use crate::cache::block_hashes::BlocksOf;
use crate::cache::maintenance::{GcMode, gc};
use crate::cache::{Cache, CacheError, UnfinishedPack};
use crate::open_files::OpenFiles;
use crate::pack::block_hashes::BlockHashes;
use crate::pack::{PackFile, PackOpener, settings_name};
use crate::plan::PlannedPath;
use crate::settings::ImageSettings;
use crate::verity::{BLOCK_BYTES, hash_blocks};
use std::error::Error;
use std::fs::{self, File};
use std::io;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

/// Percentage of the maximum size that remains after a collection, so that not every new pack causes another one.
const TRIM_TO_PERCENT: u64 = 90;
/// Maximum number of attempts to make a pack on a full disk.
const MAX_ATTEMPTS: usize = 4;
/// Number of blocks of a pack that are read and hashed at once, 64 KiB.
const HASHED_AT_ONCE: usize = 16;

/// The settings of [`KeptPacks`].
#[derive(Clone, Debug)]
pub struct KeptPacksOptions {
    /// The cache directory, which only the service uses.
    pub cache: PathBuf,
    /// The directory that contains the files of the store paths.
    pub store_dir: PathBuf,
    /// Largest size of the cache in bytes.
    pub size_max_bytes: u64,
    /// Number of threads that make one pack.
    pub jobs: usize,
}

/// A [`PackStore`] in a cache directory.
#[derive(Debug)]
pub struct KeptPacks {
    options: KeptPacksOptions,
    /// Used to find packs. To keep a pack, the cache is opened again, because it remembers what it has added.
    cache: Cache,
    /// Used only to make room, which one thread does at a time: a cache that has made room keeps nothing more.
    room: Cache,
    /// Number of bytes in the directory, counted by this process.
    size_bytes: Mutex<u64>,
}

impl KeptPacks {
    /// Opens the cache, and collects it if it is too large.
    ///
    /// # Errors
    /// The directory cannot be used.
    pub fn open(options: KeptPacksOptions) -> Result<Self, CacheError> {
        let (cache, room) = (Cache::open(&options.cache)?, Cache::open(&options.cache)?);
        let collected = gc(&options.cache, options.size_max_bytes, GcMode::Remove)?;
        Ok(Self { options, cache, room, size_bytes: Mutex::new(collected.kept_bytes) })
    }

    /// Makes a pack. While the disk is full, it removes the least recently used packs and tries again.
    fn make_in(
        &self,
        cache: &Cache,
        wanted: &WantedPack,
        cancel: &AtomicBool,
    ) -> Result<Arc<UnfinishedPack>, BuildError> {
        let path = &planned(wanted);
        let location = &self.options.store_dir.join(path.path.base_name());
        let directory = &cache.pack_directory(&wanted.settings);
        let earlier = cache.find_earlier_pack(path, &wanted.settings);
        let (settings, earlier, jobs) = (&wanted.settings, earlier.as_ref(), self.options.jobs);
        let request = PackRequest { path, location, settings, directory, earlier, jobs };
        let make = || {
            let fail = |source| CacheError { action: "create a directory", path: directory.clone(), source };
            fs::create_dir_all(directory).map_err(fail)?;
            make_pack(&request, cancel)
        };
        let mut made = make();
        // Another thread may have made room only for its own pack.
        for _ in 1..MAX_ATTEMPTS {
            match made {
                Err(error) if is_disk_full(&error) && self.room.make_room(wanted.nar_size_bytes.unwrap_or(0)) => {}
                other => return other,
            }
            made = make();
        }
        made
    }

    /// Returns the hashes of the blocks of a pack that exists, if they belong to it.
    fn find_block_hashes(&self, wanted: &WantedPack) -> Option<File> {
        let (path, settings) = (planned(wanted), &wanted.settings);
        let pack = self.cache.find_pack(&path, settings).ok()??;
        let pack = PackOpener::new(settings, OpenFiles::new(1)).open(pack, &path).ok()?;
        let blocks = BlocksOf::Pack(settings);
        self.cache.find_block_hashes(&path, blocks, pack.identity())?;
        self.cache.open_block_hashes(&path, blocks)
    }

    /// Keeps the hashes of all blocks of a pack; `None` if the pack has been removed. Making it again would take much
    /// longer than it takes the client to hash its own copy. Checks the pack, because its identity is that of its index: a
    /// damaged pack would otherwise give wrong hashes to intact ones.
    fn make_block_hashes(&self, wanted: &WantedPack, cancel: &AtomicBool) -> Result<Option<File>, String> {
        let fail = |error: &dyn Error| in_one_line(error);
        let of_pack = WantedPack { file: WantedFile::Pack, ..wanted.clone() };
        let Some(file) = self.find(&of_pack).map_err(|error| fail(&error))? else { return Ok(None) };
        let file = PackFile::new(file).map_err(|error| fail(&error))?;
        let path = planned(wanted);
        let opener = PackOpener::new(&wanted.settings, OpenFiles::new(1));
        let pack = opener.open(file, &path).map_err(|error| fail(&error))?;
        if !pack.check_segments().map_err(|error| fail(&error))? {
            return Err("the pack is damaged; `microvm-image cache fsck` removes it".to_owned());
        }
        let (identity, blocks) = (pack.identity(), BlocksOf::Pack(&wanted.settings));
        let mut hashes = BlockHashes::unknown(identity);
        let mut data = vec![0; HASHED_AT_ONCE * BLOCK_BYTES as usize];
        let count = usize::try_from(identity.segments_bytes / BLOCK_BYTES).map_err(|error| fail(&error))?;
        for first in (0..count).step_by(HASHED_AT_ONCE) {
            if cancel.load(Ordering::Relaxed) {
                return Err("it was cancelled".to_owned());
            }
            let end = count.min(first + HASHED_AT_ONCE);
            let data = &mut data[..(end - first) * BLOCK_BYTES as usize];
            pack.read(first as u64 * BLOCK_BYTES, data).map_err(|error| fail(&error))?;
            hashes.add(first..end, &hash_blocks(data));
        }
        let cache = Cache::open(&self.options.cache).map_err(|error| fail(&error))?;
        cache.keep_block_hashes(&path, blocks, (identity, &hashes)).map_err(|error| fail(&error))?;
        // A garbage collection may have removed them in the meantime.
        let Some(kept) = cache.open_block_hashes(&path, blocks) else { return Ok(None) };
        self.count(&kept)?;
        Ok(Some(kept))
    }

    /// Counts a new pack, and collects the cache if it has become too large.
    fn count(&self, pack: &File) -> Result<(), String> {
        let mut size_bytes = self.size_bytes.lock().unwrap_or_else(PoisonError::into_inner);
        *size_bytes += pack.metadata().map_err(|error| in_one_line(&error))?.len();
        if *size_bytes > self.options.size_max_bytes {
            let kept = self.options.size_max_bytes / 100 * TRIM_TO_PERCENT;
            let collected = gc(&self.options.cache, kept, GcMode::Remove);
            *size_bytes = collected.map_err(|error| in_one_line(&error))?.kept_bytes;
        }
        Ok(())
    }
}

impl PackStore for KeptPacks {
    fn encoder(&self, settings: &ImageSettings) -> String {
        settings_name(settings)
    }

    fn find(&self, wanted: &WantedPack) -> io::Result<Option<File>> {
        if wanted.file == WantedFile::BlockHashes {
            return Ok(self.find_block_hashes(wanted));
        }
        let found = self.cache.find_pack(&planned(wanted), &wanted.settings).map_err(io::Error::other)?;
        Ok(found.map(PackFile::into_file))
    }

    fn make(&self, wanted: &WantedPack, cancel: &AtomicBool) -> Result<Option<File>, String> {
        if wanted.file == WantedFile::BlockHashes {
            return self.make_block_hashes(wanted, cancel);
        }
        let cache = Cache::open(&self.options.cache).map_err(|error| in_one_line(&error))?;
        let pack = self.make_in(&cache, wanted, cancel).map_err(|error| in_one_line(&error))?;
        let file = reopen(pack.file()).map_err(|error| in_one_line(&error))?;
        // A pack that cannot be kept is still sent to the client.
        if cache.keep_pack(&planned(wanted), &wanted.settings, &pack).is_ok() {
            self.count(&file)?;
        }
        Ok(Some(file))
    }
}

fn planned(wanted: &WantedPack) -> PlannedPath {
    PlannedPath { path: wanted.path.clone(), nar_hash: Some(wanted.nar_hash), nar_size_bytes: wanted.nar_size_bytes }
}

fn is_disk_full(error: &(dyn Error + 'static)) -> bool {
    let mut next = Some(error);
    while let Some(error) = next {
        if let Some(io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded) =
            error.downcast_ref().map(io::Error::kind)
        {
            return true;
        }
        next = error.source();
    }
    false
}
