//! The first pass: creates directories and symbolic links, and lists which files go into which directory.

use super::target::{TargetDirectory, make_directory, set_mode_and_time};
use super::{ExtractError, ExtractOptions, Linked, write_error};
use crate::image::{FileInode, FileTree, InodeKind, Node, Nodes, Piece};
use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag, openat, renameat};
use nix::sys::stat::{Mode, UtimensatFlags, fstatat, utimensat};
use nix::sys::time::TimeSpec;
use nix::unistd::{UnlinkatFlags, symlinkat, unlinkat};
use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// A file to be written.
#[derive(Debug)]
pub(super) struct WriteJob {
    directory: Arc<OwnedFd>,
    name: OsString,
    /// Its path in the output directory, for messages.
    target_path: PathBuf,
    image_path: Vec<u8>,
    file: FileInode,
    mode: u16,
    modified_at: u32,
}

/// Walks the image and creates directories and symbolic links; yields the files.
pub(super) struct TreeWriter<'a> {
    target: &'a TargetDirectory,
    walk: Nodes<'a>,
    linked: Linked,
    /// The open directories above the current node; the first is the output directory.
    directories: Vec<Arc<OwnedFd>>,
    /// The depth of the nodes that are created directly in the output directory.
    top_depth: usize,
}

impl<'a> TreeWriter<'a> {
    pub(super) fn new(
        image: &'a dyn FileTree,
        options: ExtractOptions<'_>,
        target: &'a TargetDirectory,
    ) -> Result<Self, ExtractError> {
        let walk = image.walk_from(options.path)?;
        let top_depth = top_depth(image, options)?;
        let directories = vec![Arc::new(target.open()?)];
        Ok(Self { target, walk, linked: Linked::default(), directories, top_depth })
    }

    fn make(&mut self, node: &Node) -> Result<Option<WriteJob>, ExtractError> {
        if node.depth < self.top_depth || self.linked.is_later_name(&node.inode) {
            return Ok(None);
        }
        self.directories.truncate(node.depth - self.top_depth + 1);
        let Some(directory) = self.directories.last() else { return Ok(None) };
        let name = OsStr::from_bytes(node.name());
        let target_path = self.target.path_of(&node.path);
        match &node.inode.kind {
            InodeKind::Directory(_) => {
                let made = make_directory(directory, name).map_err(write_error("create directory", target_path))?;
                self.directories.push(Arc::new(made));
                Ok(None)
            }
            InodeKind::Symlink(target) => {
                make_symlink(directory, name, target, node.inode.modified_at)
                    .map_err(write_error("create symbolic link", target_path))?;
                Ok(None)
            }
            InodeKind::File(file) => Ok(Some(WriteJob {
                directory: Arc::clone(directory),
                name: name.to_owned(),
                target_path,
                image_path: node.path.clone(),
                file: file.clone(),
                mode: node.inode.mode,
                modified_at: node.inode.modified_at,
            })),
            // Special files: the image was refused before, or they are skipped.
            _ => Ok(None),
        }
    }
}

/// Returns the depth of the nodes that are created directly in the output directory: the entries of the root, or the
/// extracted path itself.
pub(super) fn top_depth(image: &dyn FileTree, options: ExtractOptions<'_>) -> Result<usize, ExtractError> {
    let (path, _) = image.find(options.path)?;
    Ok(usize::from(path.is_empty()))
}

impl Iterator for TreeWriter<'_> {
    type Item = Result<WriteJob, ExtractError>;

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            let made = match self.walk.next()? {
                Ok(node) => self.make(&node),
                Err(error) => Err(error.into()),
            };
            if let Some(result) = made.transpose() {
                return Some(result);
            }
        }
    }
}

fn make_symlink(directory: impl AsFd, name: &OsStr, target: &[u8], modified_at: u32) -> Result<(), Errno> {
    symlinkat(OsStr::from_bytes(target), &directory, name)?;
    let time = TimeSpec::new(i64::from(modified_at), 0);
    utimensat(&directory, name, &time, &time, UtimensatFlags::NoFollowSymlink)
}

impl WriteJob {
    /// Writes the file under a temporary name and renames it when it is complete.
    pub(super) fn write(&self, image: &dyn FileTree) -> Result<(), ExtractError> {
        let fail = |action| write_error(action, self.target_path.clone());
        let (partial_name, file) = self.create_partial().map_err(fail("make"))?;
        let finish = || {
            self.fill(image, &file)?;
            set_mode_and_time(&file, self.mode, self.modified_at).map_err(fail("set mode and time of"))?;
            // The names of a listing ascend, so an existing file is not from the image. Files of other programs are not
            // replaced.
            match fstatat(&*self.directory, self.name.as_os_str(), AtFlags::AT_SYMLINK_NOFOLLOW) {
                Err(Errno::ENOENT) => {}
                Ok(_) => return Err(fail("make")(Errno::EEXIST)),
                Err(errno) => return Err(fail("make")(errno)),
            }
            renameat(&*self.directory, partial_name.as_os_str(), &*self.directory, self.name.as_os_str())
                .map_err(fail("make"))
        };
        finish().inspect_err(|_| {
            // Only the first error is reported, not that the partial file cannot be removed.
            _ = unlinkat(&*self.directory, partial_name.as_os_str(), UnlinkatFlags::NoRemoveDir);
        })
    }

    /// Creates a file with a unique name.
    fn create_partial(&self) -> Result<(OsString, File), Errno> {
        static NUMBER: AtomicU64 = AtomicU64::new(0);
        let flags = OFlag::O_WRONLY | OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        loop {
            let number = NUMBER.fetch_add(1, Ordering::Relaxed);
            let name = OsString::from_vec(format!(".partial-{}-{number}", std::process::id()).into_bytes());
            match openat(&*self.directory, name.as_os_str(), flags, Mode::S_IRUSR | Mode::S_IWUSR) {
                Err(Errno::EEXIST) => {}
                result => return Ok((name, result?.into())),
            }
        }
    }

    /// Writes the content. Holes are skipped, so that the file system does not have to store them.
    fn fill(&self, image: &dyn FileTree, file: &File) -> Result<(), ExtractError> {
        let fail = |source: io::Error| ExtractError::Write { action: "write", path: self.target_path.clone(), source };
        let mut content = image.content(&self.file);
        let mut at = 0_u64;
        let mut written_to = 0;
        while let Some(piece) = content.next_piece().map_err(|error| error.at(&self.image_path))? {
            match piece {
                Piece::Data(bytes) => {
                    file.write_all_at(bytes, at).map_err(fail)?;
                    at += bytes.len() as u64;
                    written_to = at;
                }
                Piece::Hole(length) => at += length,
            }
        }
        if written_to < at {
            file.set_len(at).map_err(fail)?;
        }
        Ok(())
    }
}
