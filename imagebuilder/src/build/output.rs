//! The image file. It is written without a name, and gets its name when it is complete.

use super::BuildError;
use super::publish_lock::PublishLock;
use super::seal::{Sidecar, remove_sidecar};
use crate::cache::outputs::{Durability, Published};
use crate::pack::SHARED_BLOCK_BYTES;
use crate::threads::join;
use nix::fcntl::{FallocateFlags, fallocate};
use nix::sys::statfs::{BTRFS_SUPER_MAGIC, FsType, XFS_SUPER_MAGIC, fstatfs};
use nix::sys::uio::pwritev;
use program::atomic_file::{WriteError, sync_directory_of};
use program::unnamed_file::UnnamedFile;
use rustix::fs::copy_file_range;
use rustix::io::Errno;
use sha2::{Digest, Sha256};
use std::fs::{self, File};
use std::io::{self, IoSlice};
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{SyncSender, sync_channel};
use std::thread::JoinHandle;
use thiserror::Error;

/// The image cannot be written.
#[derive(Debug, Error)]
pub enum OutputError {
    /// An operation failed.
    #[error("cannot {action} {}", .path.display())]
    Io {
        /// The operation that failed, as it follows "cannot".
        action: &'static str,
        /// The output.
        path: PathBuf,
        /// The error of the system.
        #[source]
        source: io::Error,
    },
    /// The path of the output is not suitable.
    #[error(transparent)]
    Place(#[from] crate::output::OutputError),
}

/// `BCACHEFS_STATFS_MAGIC` of the kernel's `fs/bcachefs/bcachefs_format.h`.
const BCACHEFS_SUPER_MAGIC: FsType = FsType(0xca45_1a4e);
/// Number of bytes that are allocated ahead. Writing to allocated space takes about half the time (measured on ext4).
const ALLOCATION_STEP_BYTES: u64 = 64 << 20;
/// Number of written bytes after which writing to the disk begins, so that little remains to be written when the image
/// is complete.
const WRITE_BACK_STEP_BYTES: u64 = 32 << 20;

/// Minimum number of bytes to share. A separate extent is not worth it for less.
const MIN_SHARED_BYTES: u64 = 16 << 10;

/// Frees a number of bytes on a full disk; returns false if there is nothing to free.
pub(super) type MakeRoom<'a> = &'a (dyn Fn(u64) -> bool + Sync);

/// An image that several threads write. If it is dropped before [`Self::publish`], nothing remains.
pub(super) struct ImageFile<'a> {
    file: UnnamedFile,
    target: PathBuf,
    make_room: MakeRoom<'a>,
    durability: Durability,
    write_back: WriteBack,
    /// End of the allocated space; `u64::MAX` if the file system does not support allocation.
    allocated: AtomicU64,
    /// Whether the file can share blocks with packs.
    shares: AtomicBool,
}

/// An image that has its name.
pub(super) struct InPlace {
    pub(super) published: Published,
    /// Why the seal of an earlier image could not be removed.
    pub(super) stale_seal: Option<WriteError>,
}

impl<'a> ImageFile<'a> {
    /// Begins an image that will be published at `target`.
    ///
    /// # Errors
    /// The directory of `target` is missing or not writable, or `target` is a directory or a device.
    pub(super) fn create(target: &Path, durability: Durability, make_room: MakeRoom<'a>) -> Result<Self, OutputError> {
        crate::output::check(target)?;
        let file = with_room(make_room, 0, || UnnamedFile::create_sibling(target))
            .map_err(io_error("create a file beside", target))?;
        let write_back = if durability == Durability::Synced || fs::symlink_metadata(target).is_ok() {
            WriteBack::start(file.file())
        } else {
            WriteBack::none()
        };
        Ok(Self {
            file,
            target: target.to_owned(),
            make_room,
            durability,
            write_back,
            allocated: AtomicU64::new(0),
            shares: AtomicBool::new(false),
        })
    }

    /// Returns the file.
    pub(super) fn file(&self) -> &File {
        self.file.file()
    }

    /// Writes bytes at a position.
    ///
    /// # Errors
    /// Writing fails, for example because the disk is full.
    pub(super) fn write_at(&self, slices: &mut [IoSlice<'_>], at: u64) -> Result<(), OutputError> {
        let bytes: usize = slices.iter().map(|slice| slice.len()).sum();
        write_all_at(self.file(), slices, at, self.make_room).map_err(io_error("write", &self.target))?;
        self.write_back.record_written(bytes as u64);
        Ok(())
    }

    /// Tries something that needs a little space beside the image. On a full disk it tries again while space can be freed.
    ///
    /// # Errors
    /// Those of `attempt`.
    pub(super) fn with_room<T>(&self, attempt: impl FnMut() -> io::Result<T>) -> io::Result<T> {
        with_room(self.make_room, 0, attempt)
    }

    /// Returns the path that the image will have.
    pub(super) fn target(&self) -> &Path {
        &self.target
    }

    /// Reads bytes that were written before.
    ///
    /// # Errors
    /// The disk fails.
    pub(super) fn read_at(&self, buffer: &mut [u8], at: u64) -> Result<(), OutputError> {
        self.file().read_exact_at(buffer, at).map_err(io_error("read back", &self.target))
    }

    /// Whether the image is on a file system that shares blocks between files.
    pub(super) fn may_share_blocks(&self) -> bool {
        fstatfs(self.file()).is_ok_and(|found| {
            let kind = found.filesystem_type();
            [BTRFS_SUPER_MAGIC, XFS_SUPER_MAGIC, BCACHEFS_SUPER_MAGIC].contains(&kind)
        })
    }

    /// Determines whether this file can share blocks with `pack`. Call it before anything is written.
    ///
    /// # Errors
    /// The file cannot be emptied afterwards.
    pub(super) fn try_sharing(&self, pack: &File) -> Result<(), OutputError> {
        if rustix::fs::ioctl_ficlone(self.file(), pack).is_ok() {
            self.shares.store(true, Ordering::Relaxed);
            // Sharing blocks would free space that is allocated ahead.
            self.allocated.store(u64::MAX, Ordering::Relaxed);
            self.file().set_len(0).map_err(io_error("write", &self.target))?;
        }
        Ok(())
    }

    /// Shares whole blocks of a pack, from `from` on, with the range `to` of this file. Returns the part of `to` that
    /// is shared; the caller has to write the rest.
    pub(super) fn share(&self, pack: &File, from: u64, to: Range<u64>) -> Range<u64> {
        let nothing = to.start..to.start;
        let first = to.start.next_multiple_of(SHARED_BLOCK_BYTES);
        let end = to.end - to.end % SHARED_BLOCK_BYTES;
        let is_aligned = from % SHARED_BLOCK_BYTES == to.start % SHARED_BLOCK_BYTES;
        if !self.shares.load(Ordering::Relaxed) || !is_aligned || end < first + MIN_SHARED_BYTES {
            return nothing;
        }
        let (mut source, mut target) = (from + (first - to.start), first);
        while target < end {
            let left = usize::try_from(end - target).unwrap_or(usize::MAX);
            // The call advances both offsets. These file systems share blocks for it, and copy what they cannot share.
            match copy_file_range(pack, Some(&mut source), self.file(), Some(&mut target), left) {
                Ok(0) => break,
                Ok(_) | Err(Errno::INTR) => {}
                // For example the disk is full. Writing the same bytes then reports the error.
                Err(_) => break,
            }
        }
        if target < end { nothing } else { first..end }
    }

    /// Allocates space up to `end` in advance if the file system can do it. A full disk is reported by the write that
    /// finds no space.
    pub(super) fn allocate(&self, end: u64) {
        let allocated = self.allocated.load(Ordering::Relaxed);
        if end <= allocated {
            return;
        }
        let more = (end - allocated).max(ALLOCATION_STEP_BYTES);
        let range = i64::try_from(allocated).ok().zip(i64::try_from(more).ok());
        let done = range
            .filter(|(start, length)| fallocate(self.file(), FallocateFlags::empty(), *start, *length).is_ok())
            .map_or(u64::MAX, |_| allocated + more);
        self.allocated.store(done, Ordering::Relaxed);
    }

    /// Removes everything that was written.
    ///
    /// # Errors
    /// The file cannot be truncated.
    pub(super) fn restart(&self) -> Result<(), OutputError> {
        if !self.shares.load(Ordering::Relaxed) {
            self.allocated.store(0, Ordering::Relaxed);
        }
        self.file().set_len(0).map_err(io_error("write", &self.target))
    }

    /// Writes the beginning, whose content is known last, and sets the length of the file.
    ///
    /// # Errors
    /// Writing fails, for example because the disk is full.
    pub(super) fn finish(&self, beginning: &[u8], length: u64) -> Result<(), OutputError> {
        self.write_at(&mut [IoSlice::new(beginning)], 0)?;
        self.file().set_len(length).map_err(io_error("set the length of", &self.target))
    }

    /// Computes the BLAKE3-256 and the SHA-256 of the whole image, in hex.
    ///
    /// # Errors
    /// The image cannot be read back.
    pub(super) fn digests(&self) -> Result<(String, String), OutputError> {
        let file = self.file();
        let sha256 = || {
            let mut hasher = Sha256::new();
            read_back(file, |bytes| hasher.update(bytes)).map(|()| hex(&hasher.finalize()))
        };
        let blake3 = || {
            let mut hasher = blake3::Hasher::new();
            let read = read_back(file, |bytes| {
                hasher.update(bytes);
            });
            read.map(|()| hasher.finalize().to_hex().to_string())
        };
        join(blake3, sha256).map_err(io_error("read back", &self.target))
    }

    /// Begins to write everything to disk, if the image will be synced. Call it when little remains to be written.
    pub(super) fn write_out(&self) {
        self.write_back.request();
    }

    /// Gives the image and its seal their names, replacing existing files. Without a seal, that of an earlier image is
    /// removed.
    ///
    /// An image that replaces another is synced before it gets its name. Otherwise the file system could write the
    /// rename first, and a power cut would leave a file of the right length that is full of zeros, and destroy the old
    /// image. The seal gets its name first, so that an image in place always has one. If only the seal is new, the
    /// kernel refuses to open the earlier image with it.
    ///
    /// # Errors
    /// They cannot be written to disk, linked or renamed.
    pub(super) fn publish(mut self, seal: Option<&Sidecar>) -> Result<InPlace, BuildError> {
        let mut seal_to_publish = seal;
        let mut lock = None;
        if self.durability == Durability::UnsyncedIfNew && fs::symlink_metadata(&self.target).is_err() {
            lock = Some(PublishLock::take(&self.target));
            seal_to_publish.take().map_or(Ok(()), |seal| seal.publish(&self))?;
            // A full disk, and file systems that cannot rename in this way, are left to the code below.
            if self.file.publish_new(&self.target).is_ok() {
                return Ok(self.in_place(false, seal)?);
            }
        }
        self.sync(seal)?;
        let _lock = lock.unwrap_or_else(|| PublishLock::take(&self.target));
        seal_to_publish.map_or(Ok(()), |seal| seal.publish(&self))?;
        self.with_room(|| self.file.publish(&self.target)).map_err(io_error("put in place", &self.target))?;
        let in_place = self.in_place(true, seal)?;
        // Both are in this directory.
        sync_directory_of(&self.target).map_err(io_error("put in place", &self.target))?;
        Ok(in_place)
    }

    /// Waits until the image and its seal are on disk. The seal is synced at the same time, because it would otherwise
    /// wait for the disk to write the image, and the image then for the seal.
    fn sync(&mut self, seal: Option<&Sidecar>) -> Result<(), BuildError> {
        let (file, write_back) = (self.file.file(), &mut self.write_back);
        let mut image = || write_back.finish().and_then(|()| file.sync_all());
        let failed = io_error("write", &self.target);
        let Some(seal) = seal else { return Ok(image().map_err(failed)?) };
        let ((), sealed) = join(image, || Ok(seal.sync())).map_err(failed)?;
        Ok(sealed?)
    }

    fn in_place(&self, is_synced: bool, seal: Option<&Sidecar>) -> Result<InPlace, OutputError> {
        let stale_seal = if seal.is_none() { remove_sidecar(&self.target).err() } else { None };
        let file = self.file().try_clone().map_err(io_error("inspect", &self.target))?;
        Ok(InPlace { published: Published { file, is_synced }, stale_seal })
    }
}

/// Writes all slices at a position. On a full disk it tries again while space can be freed.
pub(super) fn write_all_at(
    file: &File,
    mut slices: &mut [IoSlice<'_>],
    mut at: u64,
    make_room: MakeRoom<'_>,
) -> io::Result<()> {
    // Remove empty slices, because writing 0 bytes looks the same as being unable to write.
    IoSlice::advance_slices(&mut slices, 0);
    while !slices.is_empty() {
        let offset = i64::try_from(at).map_err(|_| io::ErrorKind::FileTooLarge)?;
        let left: usize = slices.iter().map(|slice| slice.len()).sum();
        let some = &slices[..slices.len().min(MAX_SLICES)];
        let written = match with_room(make_room, left as u64, || Ok(pwritev(file, some, offset)?)) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            written => written?,
        };
        at += written as u64;
        IoSlice::advance_slices(&mut slices, written);
    }
    Ok(())
}

/// Tries something that needs `bytes` bytes on the disk, again and again while the disk is full and space can be freed.
fn with_room<T>(make_room: MakeRoom<'_>, bytes: u64, mut attempt: impl FnMut() -> io::Result<T>) -> io::Result<T> {
    let mut is_last = false;
    loop {
        match attempt() {
            Err(error) if is_full(&error) && !is_last => {
                // Another thread may have freed space after the attempt and left nothing to remove.
                is_last = !make_room(bytes);
            }
            other => return other,
        }
    }
}

/// Maximum number of slices in one system call, `IOV_MAX` of Linux.
const MAX_SLICES: usize = 1024;

fn read_back(file: &File, mut take: impl FnMut(&[u8])) -> io::Result<()> {
    let mut buffer = vec![0; 1 << 20];
    let mut position = 0;
    loop {
        let read = file.read_at(&mut buffer, position)?;
        if read == 0 {
            return Ok(());
        }
        take(&buffer[..read]);
        position += read as u64;
    }
}

/// A thread that writes the page cache to disk while the image is being made.
struct WriteBack {
    written: AtomicU64,
    /// Number of written bytes when the thread was last notified.
    requested_at: AtomicU64,
    /// `None` without a thread; everything is then written at the end.
    thread: Option<(SyncSender<()>, JoinHandle<io::Result<()>>)>,
}

impl WriteBack {
    /// Leaves writing to the kernel, which begins after some seconds, or at the end.
    fn none() -> Self {
        Self { written: AtomicU64::new(0), requested_at: AtomicU64::new(0), thread: None }
    }

    fn start(file: &File) -> Self {
        let thread = file.try_clone().ok().and_then(|file| {
            let (sender, receiver) = sync_channel(1);
            // Starting the writes without waiting for them (`sync_file_range`) is no faster: an image of 310 MB then
            // took 1.0 to 1.2 times as long (measured on ext4, on a busy disk).
            // The kernel reports an error to only one call, so the first error is kept.
            let write = move || receiver.iter().map(|()| file.sync_data()).fold(Ok(()), Result::and);
            let thread = std::thread::Builder::new().name("microvm-image write-back".to_owned()).spawn(write);
            thread.ok().map(|thread| (sender, thread))
        });
        Self { thread, ..Self::none() }
    }

    /// Writes to disk what was written until now.
    fn request(&self) {
        if let Some((sender, _)) = &self.thread {
            // If a request is waiting already, it will include this one.
            let _ = sender.try_send(());
        }
    }

    /// Records that more bytes have been written.
    fn record_written(&self, bytes: u64) {
        let written = self.written.fetch_add(bytes, Ordering::Relaxed) + bytes;
        if let Some((sender, _)) = &self.thread
            && written.saturating_sub(self.requested_at.load(Ordering::Relaxed)) >= WRITE_BACK_STEP_BYTES
            && sender.try_send(()).is_ok()
        {
            self.requested_at.store(written, Ordering::Relaxed);
        }
    }

    /// Waits for the thread.
    fn finish(&mut self) -> io::Result<()> {
        let Some((sender, thread)) = self.thread.take() else { return Ok(()) };
        drop(sender);
        thread.join().unwrap_or_else(|_| Err(io::Error::other("the thread that writes back ended early")))
    }
}

/// Returns whether the disk or the user's quota is full.
pub(super) fn is_full(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
}

fn io_error(action: &'static str, path: &Path) -> impl Fn(io::Error) -> OutputError {
    let path = path.to_owned();
    move |source| OutputError::Io { action, path: path.clone(), source }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
