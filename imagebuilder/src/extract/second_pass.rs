//! The second pass: creates hard links, and sets the mode and time of directories after everything in them is created.

use super::target::{TargetDirectory, open_directory, set_mode_and_time};
use super::write::top_depth;
use super::{ExtractError, ExtractOptions, Linked, write_error};
use crate::image::{FileTree, ImagePath, InodeKind, InodeType, Node};
use nix::fcntl::AtFlags;
use nix::unistd::linkat;
use std::collections::HashMap;
use std::ffi::OsStr;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};

/// Maximum size in bytes of the names that are remembered to create links to them.
const MAX_REMEMBERED_BYTES: usize = 64 << 20;

/// Walks the tree again and returns the number of hard links created.
pub(super) fn finish(
    image: &dyn FileTree,
    options: ExtractOptions<'_>,
    target: &TargetDirectory,
    cancel: &AtomicBool,
) -> Result<u64, ExtractError> {
    let mut pass = SecondPass {
        target,
        top_depth: top_depth(image, options)?,
        linked: Linked::default(),
        first_names: HashMap::new(),
        remembered_bytes: 0,
        open: Vec::new(),
        hard_links: 0,
    };
    for node in image.walk_from(options.path)? {
        if cancel.load(Ordering::Relaxed) {
            return Err(ExtractError::Interrupted);
        }
        pass.visit(&node?)?;
    }
    pass.leave(0)?;
    Ok(pass.hard_links)
}

struct SecondPass<'a> {
    target: &'a TargetDirectory,
    top_depth: usize,
    linked: Linked,
    /// The first name of each inode that has several names according to its link count.
    first_names: HashMap<u32, Vec<u8>>,
    remembered_bytes: usize,
    open: Vec<OpenDirectory>,
    hard_links: u64,
}

struct OpenDirectory {
    directory: OwnedFd,
    path: PathBuf,
    mode: u16,
    modified_at: u32,
}

impl SecondPass<'_> {
    fn visit(&mut self, node: &Node) -> Result<(), ExtractError> {
        if node.depth < self.top_depth {
            return Ok(());
        }
        self.leave(node.depth - self.top_depth)?;
        let inode = &node.inode;
        if let InodeKind::Directory(_) = inode.kind {
            return self.enter(node);
        }
        if inode.links < 2 || !matches!(inode.inode_type(), InodeType::File | InodeType::Symlink) {
            return Ok(());
        }
        if self.linked.is_later_name(inode) {
            return self.link(node);
        }
        self.remembered_bytes += node.path.len();
        if self.remembered_bytes > MAX_REMEMBERED_BYTES {
            return Err(ExtractError::TooManyLinks { path: ImagePath(node.path.clone()) });
        }
        self.first_names.insert(inode.number, node.path.clone());
        Ok(())
    }

    fn enter(&mut self, node: &Node) -> Result<(), ExtractError> {
        let path = self.target.path_of(&node.path);
        let name = OsStr::from_bytes(node.name());
        let opened = match self.open.last() {
            Some(parent) => open_directory(&parent.directory, name),
            None => open_directory(self.target.open()?, name),
        };
        let directory = opened.map_err(write_error("open directory", path.clone()))?;
        let (mode, modified_at) = (node.inode.mode, node.inode.modified_at);
        self.open.push(OpenDirectory { directory, path, mode, modified_at });
        Ok(())
    }

    /// Sets the mode and time of the directories at `depth` or deeper, which are complete, and closes them.
    fn leave(&mut self, depth: usize) -> Result<(), ExtractError> {
        while self.open.len() > depth {
            let Some(done) = self.open.pop() else { break };
            set_mode_and_time(&done.directory, done.mode, done.modified_at)
                .map_err(write_error("set mode and time of", done.path))?;
        }
        Ok(())
    }

    fn link(&mut self, node: &Node) -> Result<(), ExtractError> {
        let Some(first) = self.first_names.get(&node.inode.number) else { return Ok(()) };
        let (from, from_name) = self.target.open_parent(first)?;
        let name = OsStr::from_bytes(node.name());
        let made = match self.open.last() {
            Some(parent) => linkat(&from, from_name, &parent.directory, name, AtFlags::empty()),
            None => linkat(&from, from_name, self.target.open()?, name, AtFlags::empty()),
        };
        made.map_err(write_error("create hard link", self.target.path_of(&node.path)))?;
        self.hard_links += 1;
        Ok(())
    }
}
