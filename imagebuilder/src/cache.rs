//! The cache: compressed segments by content, and manifests of store paths by NAR hash.
//!
//! ```text
//! CACHE/v1/
//!   lock                                  shared flock of every build, exclusive flock of gc and fsck
//!   tmp/                                  files being written
//!   manifests/HASH-NAME/NARHASH           the tree of a store path with the hashes of its files
//!   segments/CODEC-ENCODER-BLOCKSIZE/xx/…  compressed blocks, by kind and BLAKE3 of their content
//!   outputs/HASH                          what was built where, to see that nothing has to be done
//! ```
//!
//! An entry is written to `tmp` and renamed to its place, so it is there whole or not at all, and is never changed
//! afterwards. Its bytes carry a checksum over what it holds and what it is called: truncation, flipped bits and
//! entries moved to another name are found out when it is read, and the entry is made again. The checksum is no
//! signature: who may write to the directory can forge entries. See `docs/cache.md` for what is trusted.

pub mod maintenance;
pub mod manifest;
pub mod outputs;
pub mod segments;

use crate::settings::ImageSettings;
use nix::errno::Errno;
use nix::fcntl::OFlag;
use std::fs::{self, File, OpenOptions, Permissions, TryLockError};
use std::io::{self, Read, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError, RwLock};
use std::thread;
use std::time::{Duration, SystemTime};
use thiserror::Error;

/// Version of the directory's form; another form is another directory beside it.
const FORM: &str = "v1";

/// A cache that cannot be used.
#[derive(Debug, Error)]
#[error("cannot {action} in the cache, {}", .path.display())]
pub struct CacheError {
    /// What was being done.
    pub action: &'static str,
    /// To what.
    pub path: PathBuf,
    /// Why it failed.
    #[source]
    pub source: io::Error,
}

/// An open cache; while it is open nothing in it is collected.
#[derive(Debug)]
pub struct Cache {
    root: PathBuf,
    segments: PathBuf,
    /// Entries that this build has written; `None` once the build has given them up and writes no more.
    written: Mutex<Option<Vec<PathBuf>>>,
    /// Held shared while an entry is written.
    writing: RwLock<()>,
    /// Closing the file releases the lock.
    _lock: File,
}

/// What became of an entry that was looked for.
#[derive(Debug)]
pub enum Lookup<T> {
    /// It is there and sound.
    Hit(T),
    /// It is not there.
    Miss,
    /// Something is there that is not what it should be.
    Damaged,
}

impl Cache {
    /// Opens the cache in `directory` for builds with `settings`, making what is not there yet.
    ///
    /// # Errors
    /// The directory cannot be made or locked.
    pub fn open(directory: &Path, settings: &ImageSettings) -> Result<Self, CacheError> {
        Self::open_unless(directory, settings, &AtomicBool::new(false))
    }

    /// The same, but gives up waiting for a collection to end once `cancel` is set.
    ///
    /// # Errors
    /// Those of [`Cache::open`]; one whose source is [`io::ErrorKind::Interrupted`] when `cancel` was set.
    pub fn open_unless(directory: &Path, settings: &ImageSettings, cancel: &AtomicBool) -> Result<Self, CacheError> {
        let root = directory.join(FORM);
        let segments = root.join("segments").join(segments::settings_directory(settings));
        let make = |path: &Path| {
            refuse_link(path).and_then(|()| fs::create_dir_all(path)).map_err(|source| CacheError {
                action: "make a directory",
                path: path.to_owned(),
                source,
            })
        };
        make(&root)?;
        let lock = lock_shared(&root, cancel)?;
        // A collection removes empty directories, so the directories are made after waiting for it.
        for part in ["tmp", "manifests", "outputs", "segments"] {
            make(&root.join(part))?;
        }
        make(&segments)?;
        Ok(Self { root, segments, written: Mutex::new(Some(Vec::new())), writing: RwLock::new(()), _lock: lock })
    }

    /// Writes an entry whole and then gives it its name, replacing what bears it. Does nothing once the build has given
    /// its entries up.
    fn publish(&self, path: &Path, parts: &[&[u8]]) -> Result<(), CacheError> {
        let _writing = self.writing.read().unwrap_or_else(PoisonError::into_inner);
        if self.written().is_none() {
            return Ok(());
        }
        self.write_entry(path, parts)?;
        match self.written().as_mut() {
            Some(written) => written.push(path.to_owned()),
            // Given up by another thread in the meantime.
            None => _ = fs::remove_file(path),
        }
        Ok(())
    }

    fn written(&self) -> std::sync::MutexGuard<'_, Option<Vec<PathBuf>>> {
        // The list is whole at every moment, whichever thread ended while it held the lock.
        self.written.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Frees space on a full disk: first gives up the entries of this build, which then writes no more of them, and
    /// afterwards removes the entries that were used least recently, at least `bytes` of them. True if something was
    /// removed.
    ///
    /// Other builds may be running: an entry that they miss is made again.
    pub fn make_room(&self, bytes: u64) -> bool {
        let given_up = self.written().take();
        // Entries that are being written take space until they are removed.
        drop(self.writing.write().unwrap_or_else(PoisonError::into_inner));
        let removed = match given_up {
            Some(written) if !written.is_empty() => {
                written.iter().filter(|path| fs::remove_file(path).is_ok()).count() > 0
            }
            _ => maintenance::trim(&self.root, bytes),
        };
        // Some file systems free the space of removed files only with the next commit of their journal.
        let _ = File::open(&self.root).and_then(|root| root.sync_all());
        removed
    }

    /// Writes an entry whole and then gives it its name, replacing what bears it.
    fn write_entry(&self, path: &Path, parts: &[&[u8]]) -> Result<(), CacheError> {
        let fail = |source| CacheError { action: "write an entry", path: path.to_owned(), source };
        // Other builds write here, too, of this process and of others that may even have the same process number.
        path.parent().map_or(Ok(()), refuse_link).map_err(fail)?;
        let mut file = tempfile::Builder::new()
            .permissions(Permissions::from_mode(0o644))
            .tempfile_in(self.root.join("tmp"))
            .map_err(fail)?;
        parts.iter().try_for_each(|part| file.write_all(part)).map_err(fail)?;
        let file = match file.persist(path) {
            Ok(_) => return Ok(()),
            Err(error) => match error.error.kind() {
                io::ErrorKind::NotFound => {
                    path.parent().map_or(Ok(()), fs::create_dir_all).map_err(fail)?;
                    error.file
                }
                // No entry is a directory, and as long as one is there, every build makes the entry in vain.
                io::ErrorKind::IsADirectory => {
                    fs::remove_dir_all(path).map_err(fail)?;
                    error.file
                }
                _ => return Err(fail(error.error)),
            },
        };
        file.persist(path).map(drop).map_err(|error| fail(error.error))
    }
}

/// How long a build waits before it asks for the lock again.
const LOCK_INTERVAL: Duration = Duration::from_millis(20);

/// Entries are stamped when they are used, but not more often than this: gc needs no finer order.
const STAMP_INTERVAL: Duration = Duration::from_secs(3600);

/// Reads an entry to `start` in `buffer` and says how long it is: 0 for one longer than `bytes_max`, which no entry is.
/// Stamps it as used.
fn read_entry(path: &Path, bytes_max: u64, buffer: &mut Vec<u8>, start: usize) -> io::Result<usize> {
    let mut file = match own_file(File::options().read(true)).open(path) {
        // A link in the place of an entry is none.
        Err(error) if error.raw_os_error() == Some(Errno::ELOOP as i32) => return Ok(0),
        other => other?,
    };
    let metadata = file.metadata()?;
    if !metadata.is_file() {
        return Ok(0);
    }
    if metadata.modified()?.elapsed().is_ok_and(|age| age > STAMP_INTERVAL) {
        // A cache that can only be read serves as well; its entries just look unused.
        let _ = file.set_modified(SystemTime::now());
    }
    let length = usize::try_from(metadata.len()).ok().filter(|_| metadata.len() <= bytes_max).unwrap_or(0);
    let end = start + length;
    if buffer.len() < end {
        buffer.resize(end, 0);
    }
    match file.read_exact(&mut buffer[start..end]) {
        // Nobody shortens an entry, so this one is damaged: its checksum will tell.
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Ok(0),
        other => other.map(|()| length),
    }
}

/// Opens nothing but what this program made: who may write to the cache could have put a link in its place, which leads out
/// of it, or a pipe, of which the opening would wait for ever.
fn own_file(options: &mut OpenOptions) -> &mut OpenOptions {
    options.custom_flags((OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK).bits())
}

/// Refuses a directory of the cache that is a link: what is made or collected below it would be elsewhere.
fn refuse_link(directory: &Path) -> io::Result<()> {
    if fs::symlink_metadata(directory).is_ok_and(|metadata| metadata.is_symlink()) {
        return Err(io::Error::other("it is a symbolic link, which leads out of the cache: remove it"));
    }
    Ok(())
}

/// Takes the lock of a build. A collection that holds it takes seconds, so it is asked for again and again: a build that
/// waits in the kernel would not notice that it is to stop.
fn lock_shared(root: &Path, cancel: &AtomicBool) -> Result<File, CacheError> {
    let (file, path) = open_lock(root)?;
    loop {
        match file.try_lock_shared() {
            Ok(()) => return Ok(file),
            Err(TryLockError::Error(source)) => return Err(CacheError { action: "lock", path, source }),
            Err(TryLockError::WouldBlock) => {}
        }
        if cancel.load(Ordering::Relaxed) {
            return Err(CacheError { action: "lock", path, source: io::ErrorKind::Interrupted.into() });
        }
        thread::sleep(LOCK_INTERVAL);
    }
}

/// Takes the lock of a collection, when no build uses the cache any more. Closing the file releases it.
fn lock_exclusive(root: &Path) -> Result<File, CacheError> {
    let (file, path) = open_lock(root)?;
    file.lock().map_err(|source| CacheError { action: "lock", path, source })?;
    Ok(file)
}

fn open_lock(root: &Path) -> Result<(File, PathBuf), CacheError> {
    let path = root.join("lock");
    let fail = |source| CacheError { action: "lock", path: path.clone(), source };
    refuse_link(root).map_err(fail)?;
    let file = own_file(File::options().create(true).append(true)).open(&path).map_err(fail)?;
    Ok((file, path))
}

/// Checksum of an entry: over its kind, what it is called, and what it holds.
fn checksum(kind: &str, name: &[&[u8]], content: &[u8]) -> [u8; 32] {
    let mut hasher = blake3::Hasher::new_derive_key(kind);
    for part in name {
        hasher.update(part);
    }
    hasher.update(content);
    *hasher.finalize().as_bytes()
}
