//! The image file: written without a name, then put in its place whole.

use super::buffers::SpareBuffers;
use crate::atomic_file::beside;
use crate::segment::Batch;
use nix::fcntl::{AT_FDCWD, AtFlags, FallocateFlags, fallocate};
use nix::unistd::linkat;
use sha2::{Digest, Sha256};
use std::fs::{self, File, OpenOptions};
use std::io::{self, IoSlice, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
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

/// An image being written. Dropped before [`Self::publish`] it leaves nothing behind.
#[derive(Debug)]
pub(super) struct ImageFile {
    file: File,
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

impl ImageFile {
    /// Begins an image that will stand at `target`.
    ///
    /// # Errors
    /// `target` is in no directory, or is one, or a device, or nothing can be written beside it.
    pub(super) fn create(target: &Path) -> Result<Self, OutputError> {
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
            file,
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
            let written = match self.file.write_vectored(slices) {
                Ok(0) => Err(io::ErrorKind::WriteZero.into()),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                other => other,
            };
            let written = written.map_err(io_error("write", &self.target))?;
            IoSlice::advance_slices(&mut slices, written);
        }
        self.written += bytes;
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
        self.file.write_all_at(beginning, 0).map_err(io_error("write", &self.target))?;
        self.file.set_len(self.written).map_err(io_error("end", &self.target))
    }

    /// BLAKE3-256 and SHA-256 of the whole image, in hex.
    ///
    /// # Errors
    /// The image cannot be read back.
    pub(super) fn digests(&self) -> Result<(String, String), OutputError> {
        let fail = io_error("read back", &self.target);
        let (blake3, sha256) = std::thread::scope(|scope| {
            let sha256 = scope.spawn(|| {
                let mut hasher = Sha256::new();
                self.read_back(|bytes| hasher.update(bytes)).map(|()| hex(&hasher.finalize()))
            });
            let mut hasher = blake3::Hasher::new();
            let blake3 = self.read_back(|bytes| {
                hasher.update(bytes);
            });
            let sha256 = sha256.join().unwrap_or_else(|_| Err(io::Error::other("the hashing thread ended early")));
            (blake3.map(|()| hasher.finalize().to_hex().to_string()), sha256)
        });
        blake3.and_then(|blake3| Ok((blake3, sha256?))).map_err(fail)
    }

    fn read_back(&self, mut take: impl FnMut(&[u8])) -> io::Result<()> {
        let mut buffer = vec![0; 1 << 20];
        let mut position = 0;
        while position < self.written {
            let read = self.file.read_at(&mut buffer, position)?;
            if read == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            take(&buffer[..read]);
            position += read as u64;
        }
        Ok(())
    }

    /// Puts the image in its place, replacing what stood there.
    ///
    /// # Errors
    /// It cannot be linked or renamed.
    pub(super) fn publish(mut self) -> Result<(), OutputError> {
        let temporary = match self.temporary.take() {
            Some(path) => path,
            None => {
                // A file without a name is linked to by its descriptor; a link never replaces, so it gets a name of its
                // own first.
                let path = beside(&self.target);
                let descriptor = PathBuf::from(format!("/proc/self/fd/{}", self.file.as_raw_fd()));
                linkat(AT_FDCWD, &descriptor, AT_FDCWD, &path, AtFlags::AT_SYMLINK_FOLLOW)
                    .map_err(|errno| io_error("name", &self.target)(errno.into()))?;
                path
            }
        };
        fs::rename(&temporary, &self.target).map_err(|error| {
            let _ = fs::remove_file(&temporary);
            io_error("put in place", &self.target)(error)
        })
    }
}

impl Drop for ImageFile {
    fn drop(&mut self) {
        if let Some(path) = &self.temporary {
            let _ = fs::remove_file(path);
        }
    }
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
