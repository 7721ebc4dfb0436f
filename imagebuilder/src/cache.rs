//! The cache: one pack for each store path and settings, and records of finished builds.
//!
//! ```text
//! CACHE/v2/
//!   packs/SETTINGS/HASHPART-NARHASH       the pack of a store path
//!   names/SETTINGS/NAME                   link to the most recent pack of a store path with this name
//!   verity/SETTINGS/HASHPART-NARHASH      the hashes of dm-verity of the pack's blocks, for sealed images
//!   verity-files/HASHPART-NARHASH         the same of the blocks of its files, for sealed EROFS images
//!   outputs/HASH                          records of built images, to detect that nothing must be done
//! ```
//!
//! A pack is written to a file without a name, which gets its name when it is complete, and is never changed
//! afterwards. Nothing is locked: an open pack can be read even after it was removed, and a build that lacks one makes
//! it again. The content of a pack is checked when it is opened and read; see `docs/cache.md` for what is trusted.

pub mod block_hashes;
pub mod maintenance;
mod names;
pub mod outputs;
mod unfinished_pack;

pub use unfinished_pack::UnfinishedPack;

use crate::pack::{PackFile, file_name, settings_name};
use crate::plan::PlannedPath;
use crate::settings::ImageSettings;
use nix::errno::Errno;
use nix::fcntl::OFlag;
use program::unnamed_file::UnnamedFile;
use rustix::fs::{Mode, OFlags, openat};
use std::ffi::OsString;
use std::fs::{self, File, OpenOptions, Permissions};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, TryLockError, Weak};
use std::thread;
use std::time::{Duration, Instant, SystemTime};
use thiserror::Error;

/// Version of the directory's layout. Each version has its own directory.
pub(crate) const LAYOUT_DIRECTORY: &str = "v2";

/// An operation on the cache failed.
#[derive(Debug, Error)]
#[error("cannot {action} in the cache, {}", .path.display())]
pub struct CacheError {
    /// The operation that failed, as it follows "cannot".
    pub action: &'static str,
    /// The file or directory.
    pub path: PathBuf,
    /// The error of the system.
    #[source]
    pub source: io::Error,
}

/// An open cache.
#[derive(Debug)]
pub struct Cache {
    root: PathBuf,
    /// The packs that this build has added; `None` after it has discarded them and adds nothing more.
    added: Mutex<Option<Added>>,
    /// Held by the thread that frees space.
    making_room: Mutex<()>,
    /// A directory of packs and the names in it.
    listing: Mutex<Option<(PathBuf, Vec<OsString>)>>,
    /// Descriptors of directories of packs, by the settings of the packs.
    kept_directories: Mutex<Vec<(ImageSettings, Arc<OwnedFd>)>>,
}

#[derive(Debug, Default)]
struct Added {
    /// The path of each pack that has its name. A thread may still have its file open.
    kept: Vec<(PathBuf, Weak<UnfinishedPack>)>,
    being_made: Vec<Weak<UnfinishedPack>>,
}

/// Maximum number of directories of packs that stay open.
const MAX_KEPT_DIRECTORIES: usize = 8;
/// Maximum time in which a thread that has kept a pack closes its file.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(5);
/// Minimum interval between two updates of a used pack's time. Garbage collection does not need a finer order.
const STAMP_INTERVAL: Duration = Duration::from_secs(3600);

impl Cache {
    /// Opens the cache in `directory`, and creates missing directories. Users have the same permissions below
    /// `directory` as in it, regardless of the umask.
    ///
    /// # Errors
    /// A directory cannot be created, or a directory of the cache is a symbolic link.
    pub fn open(directory: &Path) -> Result<Self, CacheError> {
        let root = directory.join(LAYOUT_DIRECTORY);
        let fail = |path: &Path, source| CacheError { action: "create a directory", path: path.to_owned(), source };
        fs::create_dir_all(directory).map_err(|source| fail(&root, source))?;
        for path in [
            root.clone(),
            root.join("packs"),
            root.join("outputs"),
            root.join(names::NAMES),
            root.join(block_hashes::BLOCK_HASHES),
            root.join(block_hashes::FILE_HASHES),
        ] {
            make_directory(&path).map_err(|source| fail(&path, source))?;
        }
        Ok(Self {
            root,
            added: Mutex::new(Some(Added::default())),
            making_room: Mutex::default(),
            listing: Mutex::new(None),
            kept_directories: Mutex::default(),
        })
    }

    /// Returns the directory of the packs made with `settings`.
    pub fn pack_directory(&self, settings: &ImageSettings) -> PathBuf {
        self.root.join("packs").join(settings_name(settings))
    }

    fn pack_path(&self, path: &PlannedPath, settings: &ImageSettings) -> PathBuf {
        self.pack_directory(settings).join(file_name(path))
    }

    /// Opens the pack of a store path for reading, without checking it, and updates its time. For a path without a NAR
    /// hash, it opens a pack of that path with any hash.
    ///
    /// # Errors
    /// The pack exists, but cannot be opened.
    pub fn find_pack(&self, path: &PlannedPath, settings: &ImageSettings) -> Result<Option<PackFile>, CacheError> {
        let name = file_name(path);
        // This takes a third of the time of opening the whole path, and a closure can have thousands of store paths.
        if let Some(found) = self.open_in_kept_directory(settings, &name) {
            return Ok(Some(found));
        }
        // The directory can have been removed by a collection and created again, so its path decides.
        let directory = self.pack_directory(settings);
        let mut place = directory.join(name);
        let found = refuse_link(&directory).and_then(|()| match open_entry(&place)? {
            None if path.nar_hash.is_none() => {
                let Some(name) = self.name_with_any_hash(&directory, path.path.hash_part())? else {
                    return Ok(None);
                };
                place = directory.join(name);
                open_entry(&place)
            }
            found => {
                if found.is_some() {
                    self.forget_directory(settings);
                }
                Ok(found)
            }
        });
        found.map_err(|source| CacheError { action: "open a pack", path: place, source })
    }

    /// Opens an entry of a directory of packs through a descriptor of the directory that stays open.
    fn open_in_kept_directory(&self, settings: &ImageSettings, name: &str) -> Option<PackFile> {
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let file = File::from(openat(self.kept_directory(settings)?, name, flags, Mode::empty()).ok()?);
        stamped(file).ok()
    }

    fn kept_directory(&self, settings: &ImageSettings) -> Option<Arc<OwnedFd>> {
        let mut kept = self.kept();
        if let Some((_, descriptor)) = kept.iter().find(|(of, _)| of == settings) {
            return Some(descriptor.clone());
        }
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let opened = rustix::fs::open(self.pack_directory(settings), flags, Mode::empty());
        let descriptor = Arc::new(opened.ok()?);
        // A build has one, a service has one for each setting that its clients use.
        if kept.len() == MAX_KEPT_DIRECTORIES {
            kept.remove(0);
        }
        kept.push((*settings, descriptor.clone()));
        Some(descriptor)
    }

    /// Closes the descriptor of a directory that has been replaced, so that it is opened again.
    fn forget_directory(&self, settings: &ImageSettings) {
        self.kept().retain(|(of, _)| of != settings);
    }

    fn kept(&self) -> MutexGuard<'_, Vec<(ImageSettings, Arc<OwnedFd>)>> {
        self.kept_directories.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns the name of a pack of a store path. The directory is listed only once.
    fn name_with_any_hash(&self, directory: &Path, hash_part: &str) -> io::Result<Option<OsString>> {
        let mut listing = self.listing.lock().unwrap_or_else(PoisonError::into_inner);
        if listing.as_ref().is_none_or(|(listed, _)| listed != directory) {
            let entries = match fs::read_dir(directory) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
                other => other?,
            };
            let mut names =
                entries.map(|entry| entry.map(|entry| entry.file_name())).collect::<io::Result<Vec<_>>>()?;
            names.sort_unstable();
            *listing = Some((directory.to_owned(), names));
        }
        let hash_part = hash_part.as_bytes();
        let first = |names: &[OsString]| {
            let at = names.partition_point(|name| name.as_encoded_bytes() < hash_part);
            names.get(at).filter(|name| name.as_encoded_bytes().starts_with(hash_part)).cloned()
        };
        Ok(listing.as_ref().and_then(|(_, names)| first(names)))
    }

    /// Creates an empty file for a pack; `None` after this build has discarded its packs.
    ///
    /// # Errors
    /// The file cannot be created.
    pub fn new_pack(&self, settings: &ImageSettings) -> Result<Option<Arc<UnfinishedPack>>, CacheError> {
        let directory = self.pack_directory(settings);
        let place = directory.join("pack");
        let made = refuse_link(&directory)
            .and_then(|()| match UnnamedFile::create_sibling(&place) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => {
                    make_directory(&directory).and_then(|()| UnnamedFile::create_sibling(&place))
                }
                other => other,
            })
            .map_err(|source| CacheError { action: "create a pack", path: directory, source })?;
        let made = Arc::new(UnfinishedPack::new(made));
        Ok(self.added().as_mut().map(|added| {
            added.being_made.retain(|file| file.strong_count() > 0);
            added.being_made.push(Arc::downgrade(&made));
            made
        }))
    }

    /// Gives a complete pack its name, and replaces an existing one. Does nothing after this build has discarded its
    /// packs.
    ///
    /// # Errors
    /// It cannot be linked.
    pub fn keep_pack(
        &self,
        path: &PlannedPath,
        settings: &ImageSettings,
        pack: &Arc<UnfinishedPack>,
    ) -> Result<(), CacheError> {
        self.keep(&self.pack_path(path, settings), pack.unnamed(), Arc::downgrade(pack))?;
        self.record_name(path, settings);
        Ok(())
    }

    /// Gives a file its name. `pack` is the pack that it is, if any.
    fn keep(&self, place: &Path, file: &UnnamedFile, pack: Weak<UnfinishedPack>) -> Result<(), CacheError> {
        let mut added = self.added();
        let Some(added) = added.as_mut() else { return Ok(()) };
        let publish = || match file.publish(place) {
            // Garbage collection removes empty directories.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                place.parent().map_or(Ok(()), make_directory).and_then(|()| file.publish(place))
            }
            // An entry is never a directory. A directory in its place would prevent all builds from keeping the entry.
            Err(error) if error.kind() == io::ErrorKind::IsADirectory => {
                fs::remove_dir_all(place).and_then(|()| file.publish(place))
            }
            other => other,
        };
        // Anyone who can enter the directory can read the pack, regardless of the umask of its creator.
        place
            .parent()
            .map_or(Ok(()), refuse_link)
            .and_then(|()| file.file().set_permissions(Permissions::from_mode(0o644)))
            .and_then(|()| publish())
            .map_err(|source| CacheError { action: "keep a pack", path: place.to_owned(), source })?;
        // Others can open it by its name, and read it after it was removed. So it is never made shorter.
        added.being_made.retain(|made| made.strong_count() > 0 && !made.ptr_eq(&pack));
        added.kept.push((place.to_owned(), pack));
        Ok(())
    }

    /// Removes the pack of a store path.
    ///
    /// # Errors
    /// The pack exists, but cannot be removed.
    pub fn remove_pack(&self, path: &PlannedPath, settings: &ImageSettings) -> Result<(), CacheError> {
        let place = self.pack_path(path, settings);
        match fs::remove_file(&place) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            other => other.map_err(|source| CacheError { action: "remove a pack", path: place, source }),
        }
    }

    fn added(&self) -> MutexGuard<'_, Option<Added>> {
        // The lists are always consistent, even if a thread has panicked while it held the lock.
        self.added.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Frees space on a full disk. First it discards the packs of this build, which then adds nothing more. If that
    /// frees nothing, it removes the least recently used packs, at least `bytes` bytes. Returns whether space was freed,
    /// by this thread or by another one that it waited for.
    pub fn make_room(&self, bytes: u64) -> bool {
        let _alone = match self.making_room.try_lock() {
            Ok(alone) => alone,
            Err(TryLockError::Poisoned(poisoned)) => poisoned.into_inner(),
            Err(TryLockError::WouldBlock) => {
                drop(self.making_room.lock());
                return true;
            }
        };
        let discarded = self.added().take();
        let mut removed = false;
        if let Some(added) = discarded {
            for pack in added.being_made.iter().filter_map(Weak::upgrade) {
                removed |= pack.discard();
            }
            for (path, _) in &added.kept {
                removed |= fs::remove_file(path).is_ok();
            }
            // The space of a removed file is free when the last thread has closed it, which is about to happen.
            let deadline = Instant::now() + CLOSE_TIMEOUT;
            while added.kept.iter().any(|(_, pack)| pack.strong_count() > 0) && Instant::now() < deadline {
                thread::sleep(Duration::from_millis(1));
            }
        }
        let removed = removed || maintenance::trim(&self.root, bytes);
        // Some file systems free the space of removed files only at the next commit of their journal.
        let _ = File::open(&self.root).and_then(|root| root.sync_all());
        removed
    }
}

/// Opens an entry of the cache and updates its time. Users who can write to the cache could have replaced the entry
/// with a link to an outside file, or with a pipe, whose opening would block for ever; both are refused.
fn open_entry(path: &Path) -> io::Result<Option<PackFile>> {
    open_unstamped(path)?.map(stamped).transpose()
}

/// Updates the time of an entry, unless that was done recently.
fn stamped(file: File) -> io::Result<PackFile> {
    let entry = PackFile::new(file)?;
    let metadata = entry.metadata();
    if metadata.is_file() && metadata.modified()?.elapsed().is_ok_and(|age| age > STAMP_INTERVAL) {
        // A read-only cache is usable too; its entries just look unused.
        let _ = entry.file().set_modified(SystemTime::now());
    }
    Ok(entry)
}

/// Same as [`open_entry`], but does not update the time.
fn open_unstamped(path: &Path) -> io::Result<Option<File>> {
    let mut options = OpenOptions::new();
    options.read(true).custom_flags((OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK).bits());
    match options.open(path) {
        // A link in place of an entry is ignored.
        Err(error) if error.raw_os_error() == Some(Errno::ELOOP as i32) => Ok(None),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        other => other.map(Some),
    }
}

/// Creates a directory of the cache with the permissions of its parent, regardless of the umask.
fn make_directory(path: &Path) -> io::Result<()> {
    refuse_link(path)?;
    match fs::create_dir(path) {
        Ok(()) => {
            let above = path.parent().map(fs::metadata).transpose()?;
            fs::set_permissions(path, Permissions::from_mode(above.map_or(0o755, |above| above.mode() & 0o3777)))
        }
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists && path.is_dir() => Ok(()),
        Err(error) => Err(error),
    }
}

/// Refuses a directory of the cache that is a link, because files outside of the cache would be created or collected.
fn refuse_link(directory: &Path) -> io::Result<()> {
    if fs::symlink_metadata(directory).is_ok_and(|metadata| metadata.is_symlink()) {
        return Err(io::Error::other("it is a symbolic link, which leads out of the cache: remove it"));
    }
    Ok(())
}
