//! Compares an image with the store. It walks both at the same time, in the order of their names.

use super::attributes::check_attributes;
use super::problem::{ProblemKind, Problems};
use super::root;
use crate::closure::Closure;
use crate::image::{Escaped, FileInode, FilePart, FileTree, ImageError, InodeKind, InodeType, Node, Nodes};
use crate::store_root;
use program::plural::counted;
use std::collections::VecDeque;
use std::fs::{self, Metadata};
use std::io;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

/// Number of bytes of a file that a thread compares at a time, so that all threads can work on a large file.
const PART_BYTES: u64 = 16 << 20;
/// A file, or a part of it, whose bytes must be compared.
#[derive(Debug)]
pub(super) struct Comparison<'a> {
    /// Its path in the image.
    pub(super) path: Vec<u8>,
    /// Its path in the store.
    pub(super) store_path: PathBuf,
    /// The whole file.
    pub(super) file: FileInode,
    /// The part to compare.
    pub(super) part: FilePart<'a>,
}

/// A file that is compared in parts.
struct Queued<'a> {
    path: Vec<u8>,
    store_path: PathBuf,
    file: FileInode,
    parts: Box<dyn Iterator<Item = FilePart<'a>> + Send + 'a>,
}

/// Walks image and store together. Reports differences in names and inodes, and yields the files to compare.
///
/// The root of the image corresponds to the store directory, of which only the planned paths count.
pub(super) struct StoreComparison<'a> {
    image: &'a dyn FileTree,
    problems: &'a Problems,
    store_dir: &'a Path,
    walk: Nodes<'a>,
    /// For each directory above the current node, the names in the store that have not been found in the image yet.
    levels: Vec<Level>,
    /// Nodes below this depth are skipped, because the store has no counterpart.
    skip_below: Option<usize>,
    /// The file whose parts are compared next.
    file: Option<Queued<'a>>,
}

#[derive(Debug)]
struct Level {
    path: Vec<u8>,
    names: VecDeque<Vec<u8>>,
}

impl<'a> StoreComparison<'a> {
    pub(super) fn new(
        image: &'a dyn FileTree,
        closure: &'a Closure,
        problems: &'a Problems,
    ) -> Result<Self, ImageError> {
        let names = closure.paths.iter().map(|planned| planned.path.base_name().as_bytes().to_vec()).collect();
        Ok(Self {
            image,
            problems,
            store_dir: &closure.store_dir,
            walk: image.walk()?,
            levels: vec![Level { path: Vec::new(), names }],
            skip_below: None,
            file: None,
        })
    }

    fn store_path(&self, path: &[u8]) -> PathBuf {
        self.store_dir.join(Path::new(std::ffi::OsStr::from_bytes(path)))
    }

    /// Ends the directories that do not contain a node of this depth, and reports the names that the image lacks in
    /// them.
    fn leave(&mut self, depth: usize) {
        while self.levels.len() > depth.max(1) {
            self.leave_one();
        }
    }

    fn leave_one(&mut self) {
        let Some(level) = self.levels.pop() else { return };
        for name in level.names {
            self.missing(&level.path, &name);
        }
    }

    fn missing(&self, directory: &[u8], name: &[u8]) {
        let mut path = directory.to_vec();
        if !path.is_empty() {
            path.push(b'/');
        }
        path.extend_from_slice(name);
        self.problems.at(&path, ProblemKind::Missing, "is in the store but not in the image");
    }

    fn pair(&mut self, node: Node) {
        if self.skip_below.is_some_and(|depth| node.depth > depth) {
            return;
        }
        self.skip_below = None;
        if node.depth == 0 {
            return root::check(self.image, &node.inode, self.problems);
        }
        self.leave(node.depth);
        if node.path == store_root::LINKS {
            self.skip_below = Some(node.depth);
            return;
        }
        if !self.take(node.name()) {
            self.problems.at(&node.path, ProblemKind::Extra, "is in the image but not in the store");
            self.skip_below = Some(node.depth);
            return;
        }
        let store_path = self.store_path(&node.path);
        match fs::symlink_metadata(&store_path) {
            Ok(metadata) => self.compare(node, store_path, &metadata),
            Err(error) => {
                self.unreadable(&node.path, &store_path, &error);
                self.skip_below = Some(node.depth);
            }
        }
    }

    /// Removes a name from the store's names in the current directory, and reports names that the image lacks. False if
    /// the store has no such name.
    fn take(&mut self, name: &[u8]) -> bool {
        let Some(level) = self.levels.last_mut() else { return false };
        let directory = level.path.clone();
        let mut skipped = Vec::new();
        while level.names.front().is_some_and(|stored| stored.as_slice() < name) {
            skipped.extend(level.names.pop_front());
        }
        let found = level.names.front().is_some_and(|stored| stored == name);
        if found {
            level.names.pop_front();
        }
        for name in skipped {
            self.missing(&directory, &name);
        }
        found
    }

    /// Skips a node that cannot be read. If it is the rest of a listing, the remaining names of the store are not
    /// reported as missing.
    fn pass_damaged(&mut self, path: &[u8]) {
        let depth = if path.is_empty() { 0 } else { path.split(|byte| *byte == b'/').count() };
        if self.skip_below.is_some_and(|skipped| depth > skipped) {
            return;
        }
        self.skip_below = None;
        if self.levels.get(depth).is_some_and(|level| level.path == path) {
            self.leave(depth + 1);
            if let Some(level) = self.levels.last_mut() {
                level.names.clear();
            }
        } else {
            self.leave(depth);
            let name = path.rsplit(|byte| *byte == b'/').next().unwrap_or_default();
            self.take(name);
        }
    }

    fn unreadable(&self, path: &[u8], store_path: &Path, error: &io::Error) {
        match error.kind() {
            io::ErrorKind::NotFound => {
                self.problems.at(path, ProblemKind::Extra, "is in the image but not in the store");
            }
            _ => self.problems.at(path, ProblemKind::Store, format!("cannot read {}: {error}", store_path.display())),
        }
    }

    fn compare(&mut self, node: Node, store_path: PathBuf, metadata: &Metadata) {
        let inode = &node.inode;
        check_attributes(inode, &node.path, 0, self.problems);
        let store_type = inode_type_of(metadata);
        if inode.inode_type() != store_type {
            let detail =
                format!("is a {} in the image, but a {} in the store", inode.inode_type().name(), store_type.name());
            self.problems.at(&node.path, ProblemKind::Type, detail);
            self.skip_below = Some(node.depth);
            return;
        }
        let mode = canonical_mode(metadata);
        if u32::from(inode.mode) != mode {
            let detail = format!("has mode {:04o} in the image, but {mode:04o} in the store", inode.mode);
            self.problems.at(&node.path, ProblemKind::Mode, detail);
        }
        match &node.inode.kind {
            InodeKind::Directory(_) => self.enter(node.path, &store_path),
            InodeKind::Symlink(target) => self.compare_target(&node.path, target, &store_path),
            InodeKind::File(file) if file.size_bytes != metadata.len() => {
                let detail = format!(
                    "has {} in the image, but {} in the store",
                    counted(file.size_bytes, "byte"),
                    metadata.len()
                );
                self.problems.at(&node.path, ProblemKind::Size, detail);
            }
            InodeKind::File(file) => self.queue_file(node.path.clone(), store_path, file.clone()),
            _ => {}
        }
    }

    fn enter(&mut self, path: Vec<u8>, store_path: &Path) {
        match sorted_names(store_path) {
            Ok(names) => self.levels.push(Level { path, names }),
            Err(error) => {
                self.unreadable(&path, store_path, &error);
                self.skip_below = Some(self.levels.len());
            }
        }
    }

    fn compare_target(&self, path: &[u8], target: &[u8], store_path: &Path) {
        match fs::read_link(store_path) {
            Ok(store_target) if store_target.as_os_str().as_bytes() == target => {}
            Ok(store_target) => {
                let store_target = Escaped(store_target.as_os_str().as_bytes());
                let detail = format!("points to {} in the image, but to {store_target} in the store", Escaped(target));
                self.problems.at(path, ProblemKind::Target, detail);
            }
            Err(error) => self.unreadable(path, store_path, &error),
        }
    }

    /// Makes a file the next one to compare, in parts if it is large.
    fn queue_file(&mut self, path: Vec<u8>, store_path: PathBuf, file: FileInode) {
        let parts: Box<dyn Iterator<Item = FilePart<'a>> + Send + 'a> = if file.size_bytes <= PART_BYTES {
            Box::new(std::iter::once(FilePart { offset: 0, content: self.image.content(&file) }))
        } else {
            self.image.parts(&file, PART_BYTES)
        };
        self.file = Some(Queued { path, store_path, file, parts });
    }

    /// Returns the next part of the current file.
    fn next_part(&mut self) -> Option<Comparison<'a>> {
        let Queued { path, store_path, file, parts } = self.file.as_mut()?;
        match parts.next() {
            Some(part) => {
                Some(Comparison { path: path.clone(), store_path: store_path.clone(), file: file.clone(), part })
            }
            None => {
                self.file = None;
                None
            }
        }
    }
}

impl<'a> Iterator for StoreComparison<'a> {
    type Item = Comparison<'a>;

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            if let Some(comparison) = self.next_part() {
                return Some(comparison);
            }
            match self.walk.next() {
                Some(Ok(node)) => self.pair(node),
                // The checks of the tree report the damage.
                Some(Err(ImageError::At { path, .. })) => self.pass_damaged(&path.0),
                Some(Err(_)) => self.pass_damaged(b""),
                None => {
                    self.leave(0);
                    self.leave_one();
                    return None;
                }
            }
        }
    }
}

/// Returns the names in a directory, in the order of their bytes.
fn sorted_names(directory: &Path) -> io::Result<VecDeque<Vec<u8>>> {
    let names: io::Result<Vec<_>> =
        fs::read_dir(directory)?.map(|entry| entry.map(|entry| entry.file_name().into_vec())).collect();
    let mut names = names?;
    names.sort_unstable();
    Ok(names.into())
}

fn inode_type_of(metadata: &Metadata) -> InodeType {
    let file_type = metadata.file_type();
    match () {
        () if file_type.is_dir() => InodeType::Directory,
        () if file_type.is_file() => InodeType::File,
        () if file_type.is_symlink() => InodeType::Symlink,
        () if file_type.is_block_device() => InodeType::BlockDevice,
        () if file_type.is_char_device() => InodeType::CharacterDevice,
        () if file_type.is_fifo() => InodeType::Fifo,
        () => InodeType::Socket,
    }
}

/// Returns the mode that Nix sets for everything in a store: readable by all, and executable by all if the owner can
/// execute it.
fn canonical_mode(metadata: &Metadata) -> u32 {
    match (metadata.file_type().is_symlink(), metadata.mode() & 0o100) {
        (true, _) => 0o777,
        (false, 0) => 0o444,
        (false, _) => 0o555,
    }
}
