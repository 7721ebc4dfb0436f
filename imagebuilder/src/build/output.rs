//! The image file: written without a name, then put in its place whole.

use super::buffers::SpareBuffers;
use crate::atomic_file::{beside, sync_directory_of};
use crate::segment::Batch;
use crate::threads::both;
use nix::fcntl::{AT_FDCWD, AtFlags, FallocateFlags, fallocate};
use nix::unistd::linkat;
use sha2::{Digest, Sha256};
use std::fs::{self, File, OpenOptions};
use std::io::{self, IoSlice, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::mpsc::{SyncSender, sync_channel};
use std::thread::JoinHandle;
use thiserror::Error;

/// An image that cannot be written.
#[derive(Debug, Error)]
pub enum OutputError {
    /// An operation failed.
    #[error("cannot {action} {}", .path.display())]
    Io {
        /// What was being done.
        action: &'static str,
        /// The output.
        path: PathBuf,
        /// Why it failed.
        #[source]
        source: io::Error,
    },
    /// There is no place for it.
    #[error(transparent)]
    Place(#[from] crate::output::OutputError),
}

/// So much is allocated ahead: writing into allocated space costs about half (measured on ext4).
const ALLOCATION_STEP_BYTES: u64 = 64 << 20;

/// Segments are gathered until so many bytes, or so many segments, can be written by one call: the page cache then takes
/// large folios, which costs half of writing each segment by itself (measured on ext4).
const GATHERED_BYTES_ENOUGH: u64 = 2 << 20;
const GATHERED_SEGMENTS_ENOUGH: usize = 512;

/// The disk begins to write after so many bytes, so that little is left to wait for when the image is whole.
const WRITE_BACK_STEP_BYTES: u64 = 32 << 20;

/// Frees space for so many bytes on a full disk; false when there is nothing to free.
pub(super) type MakeRoom<'a> = &'a dyn Fn(u64) -> bool;

/// An image being written. Dropped before [`Self::publish`] it leaves nothing behind.
pub(super) struct ImageFile<'a> {
    file: File,
    make_room: MakeRoom<'a>,
    write_back: WriteBack,
    target: PathBuf,
    /// Its name meanwhile, on file systems that know no files without one.
    temporary: Option<PathBuf>,
    written: u64,
    allocated: Option<u64>,
    /// What is at the end of the image and not written yet.
    gathered: Vec<Batch>,
    gathered_bytes: u64,
    gathered_segments: usize,
}

impl<'a> ImageFile<'a> {
    /// Begins an image that will stand at `target`.
    ///
    /// # Errors
    /// `target` is in no directory, or is one, or a device, or nothing can be written beside it.
    pub(super) fn create(target: &Path, make_room: MakeRoom<'a>) -> Result<Self, OutputError> {
        crate::output::check(target)?;
        let unnamed = OpenOptions::new().read(true).write(true).custom_flags(nix::libc::O_TMPFILE).open(parent(target));
        let (file, temporary) = match unnamed {
            Ok(file) => (file, None),
            Err(error) if is_unsupported(&error) => {
                let path = beside(target);
                let file = OpenOptions::new().read(true).write(true).create_new(true).open(&path);
                (file.map_err(io_error("create a file beside", target))?, Some(path))
            }
            Err(error) => return Err(io_error("create a file beside", target)(error)),
        };
        Ok(Self {
            write_back: WriteBack::start(&file),
            file,
            make_room,
            target: target.to_owned(),
            temporary,
            written: 0,
            allocated: Some(0),
            gathered: Vec::new(),
            gathered_bytes: 0,
            gathered_segments: 0,
        })
    }

    /// Where the next byte goes.
    pub(super) fn position(&self) -> u64 {
        self.written + self.gathered_bytes
    }

    /// Appends bytes.
    ///
    /// # Errors
    /// The disk is full, say.
    pub(super) fn append(&mut self, bytes: &[u8]) -> Result<(), OutputError> {
        self.write(&mut [IoSlice::new(bytes)], bytes.len() as u64)
    }

    /// Puts the blocks of segments at the end of the image; [`Self::write_gathered`] writes them.
    pub(super) fn gather(&mut self, batch: Batch) {
        let bytes: usize = batch.segments().iter().map(|segment| segment.stored.len()).sum();
        self.gathered_bytes += bytes as u64;
        self.gathered_segments += batch.segments().len();
        self.gathered.push(batch);
    }

    /// Whether it is time to write what was gathered.
    pub(super) fn has_gathered_enough(&self) -> bool {
        self.gathered_bytes >= GATHERED_BYTES_ENOUGH || self.gathered_segments >= GATHERED_SEGMENTS_ENOUGH
    }

    /// Writes the gathered segments; to be called before anything else is appended.
    ///
    /// # Errors
    /// The disk is full, say.
    pub(super) fn write_gathered(&mut self, buffers: &SpareBuffers) -> Result<(), OutputError> {
        let batches = std::mem::take(&mut self.gathered);
        let bytes = std::mem::take(&mut self.gathered_bytes);
        self.gathered_segments = 0;
        let mut slices: Vec<_> = batches
            .iter()
            .flat_map(|batch| batch.segments().iter().map(|segment| IoSlice::new(batch.stored(segment))))
            .collect();
        self.write(&mut slices, bytes)?;
        for batch in batches {
            buffers.give(batch.into_buffer());
        }
        Ok(())
    }

    /// Writes at the end of what has been written.
    fn write(&mut self, mut slices: &mut [IoSlice<'_>], bytes: u64) -> Result<(), OutputError> {
        self.allocate(bytes);
        // Empty slices first: writing nothing cannot be told from being unable to write.
        IoSlice::advance_slices(&mut slices, 0);
        while !slices.is_empty() {
            let written = match (&self.file).write_vectored(slices) {
                Ok(0) => Err(io::ErrorKind::WriteZero.into()),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) if is_full(&error) && (self.make_room)(bytes) => continue,
                other => other,
            };
            let written = written.map_err(io_error("write", &self.target))?;
            IoSlice::advance_slices(&mut slices, written);
        }
        self.written += bytes;
        self.write_back.wrote(self.written);
        Ok(())
    }

    /// Space is allocated ahead as long as the file system can; a full disk is told by the write that meets it.
    fn allocate(&mut self, bytes: u64) {
        let Some(allocated) = self.allocated.filter(|allocated| self.written + bytes > *allocated) else { return };
        let more = bytes.max(ALLOCATION_STEP_BYTES);
        let range = i64::try_from(allocated).ok().zip(i64::try_from(more).ok());
        self.allocated = range
            .filter(|(start, length)| fallocate(&self.file, FallocateFlags::empty(), *start, *length).is_ok())
            .map(|_| allocated + more);
    }

    /// Writes the beginning, which is known last, and ends the file where it has been written to.
    ///
    /// # Errors
    /// The disk is full, say.
    pub(super) fn finish(&mut self, beginning: &[u8]) -> Result<(), OutputError> {
        self.with_room(|| self.file.write_all_at(beginning, 0)).map_err(io_error("write", &self.target))?;
        self.file.set_len(self.written).map_err(io_error("end", &self.target))
    }

    /// BLAKE3-256 and SHA-256 of the whole image, in hex.
    ///
    /// # Errors
    /// The image cannot be read back.
    pub(super) fn digests(&self) -> Result<(String, String), OutputError> {
        let fail = io_error("read back", &self.target);
        let file = BuiltFile { file: &self.file, length: self.written };
        let sha256 = || {
            let mut hasher = Sha256::new();
            file.read_back(|bytes| hasher.update(bytes)).map(|()| hex(&hasher.finalize()))
        };
        let blake3 = || {
            let mut hasher = blake3::Hasher::new();
            let read = file.read_back(|bytes| {
                hasher.update(bytes);
            });
            read.map(|()| hasher.finalize().to_hex().to_string())
        };
        both(blake3, sha256).map_err(fail)
    }

    /// Puts the image in its place, replacing what was there, and returns the file.
    ///
    /// The image is on disk before it gets its name. File systems may write the rename first; a power cut would then
    /// leave a file of the right length that is full of zeros, and destroy the old image.
    ///
    /// # Errors
    /// It cannot be written to disk, linked or renamed.
    pub(super) fn publish(mut self) -> Result<File, OutputError> {
        self.write_back.finish().and_then(|()| self.file.sync_all()).map_err(io_error("write", &self.target))?;
        let temporary = match self.temporary.take() {
            Some(path) => path,
            None => {
                // A file without a name is linked to by its descriptor; a link never replaces, so it gets a name of its
                // own first.
                let path = beside(&self.target);
                let descriptor = PathBuf::from(format!("/proc/self/fd/{}", self.file.as_raw_fd()));
                self.with_room(|| Ok(linkat(AT_FDCWD, &descriptor, AT_FDCWD, &path, AtFlags::AT_SYMLINK_FOLLOW)?))
                    .map_err(io_error("name", &self.target))?;
                path
            }
        };
        self.with_room(|| fs::rename(&temporary, &self.target)).map_err(|error| {
            let _ = fs::remove_file(&temporary);
            io_error("put in place", &self.target)(error)
        })?;
        sync_directory_of(&self.target).map_err(io_error("put in place", &self.target))?;
        self.file.try_clone().map_err(io_error("look at", &self.target))
    }

    /// Does something that takes little space, again while a full disk can be given some.
    fn with_room<T>(&self, mut attempt: impl FnMut() -> io::Result<T>) -> io::Result<T> {
        loop {
            match attempt() {
                Err(error) if is_full(&error) && (self.make_room)(0) => {}
                other => return other,
            }
        }
    }
}

/// What was written, to be read again by several threads.
struct BuiltFile<'a> {
    file: &'a File,
    length: u64,
}

impl BuiltFile<'_> {
    fn read_back(&self, mut take: impl FnMut(&[u8])) -> io::Result<()> {
        let mut buffer = vec![0; 1 << 20];
        let mut position = 0;
        while position < self.length {
            let read = self.file.read_at(&mut buffer, position)?;
            if read == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            take(&buffer[..read]);
            position += read as u64;
        }
        Ok(())
    }
}

impl Drop for ImageFile<'_> {
    fn drop(&mut self) {
        if let Some(path) = &self.temporary {
            let _ = fs::remove_file(path);
        }
    }
}

/// A thread that has the disk write what is in the page cache while the image is being made.
struct WriteBack {
    /// Where it was last asked, in bytes of the image.
    asked_at: u64,
    /// `None` when no thread could be started: then all is written at the end.
    thread: Option<(SyncSender<()>, JoinHandle<io::Result<()>>)>,
}

impl WriteBack {
    fn start(file: &File) -> Self {
        let thread = file.try_clone().ok().and_then(|file| {
            let (sender, receiver) = sync_channel(1);
            // An error is reported to one call only, so the first one is kept.
            let write = move || receiver.iter().map(|()| file.sync_data()).fold(Ok(()), Result::and);
            let thread = std::thread::Builder::new().name("microvm-image write-back".to_owned()).spawn(write);
            thread.ok().map(|thread| (sender, thread))
        });
        Self { asked_at: 0, thread }
    }

    /// The image has grown to so many bytes.
    fn wrote(&mut self, written: u64) {
        if let Some((sender, _)) = &self.thread
            && written - self.asked_at >= WRITE_BACK_STEP_BYTES
            && sender.try_send(()).is_ok()
        {
            self.asked_at = written;
        }
    }

    /// Waits for the thread.
    fn finish(&mut self) -> io::Result<()> {
        let Some((sender, thread)) = self.thread.take() else { return Ok(()) };
        drop(sender);
        thread.join().unwrap_or_else(|_| Err(io::Error::other("the thread that writes back ended early")))
    }
}

/// Whether the disk, or the user's share of it, is full.
fn is_full(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
}

/// File systems without O_TMPFILE say so, and kernels or sandboxes without it take the path for a directory to open.
fn is_unsupported(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error(),
        Some(nix::libc::EOPNOTSUPP | nix::libc::EISDIR | nix::libc::EINVAL | nix::libc::ENOENT)
    )
}

fn parent(path: &Path) -> &Path {
    path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

fn io_error(action: &'static str, path: &Path) -> impl Fn(io::Error) -> OutputError {
    let path = path.to_owned();
    move |source| OutputError::Io { action, path: path.clone(), source }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
