//! The files of one store path in a compact form, because a closure can have a million of them.

use thiserror::Error;

/// Number of a node in its tree; the root is 0.
pub type NodeId = u32;

/// The nodes of a store path in depth-first order, with names sorted by their bytes. The root is a directory, a regular
/// file or a symbolic link.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tree {
    nodes: Vec<Node>,
    /// Names and symlink targets, one after the other.
    text: Vec<u8>,
    /// Sizes of the regular files, in the order of the nodes.
    file_sizes: Vec<u64>,
    /// The directory to which nodes are currently added.
    open_directory: NodeId,
}

/// A node: 24 bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Node {
    name_start: u32,
    name_bytes: u16,
    /// Its parent directory; the root is its own parent.
    parent: NodeId,
    kind: Kind,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Directory { end: NodeId },
    File { executable: bool, file: u32 },
    Symlink { target_start: u32, target_bytes: u16 },
}

/// A node with the properties that Nix preserves: no owner, no time, and only the executable bit of the mode.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Entry<'a> {
    /// A directory. The nodes below it are those after it, up to but not including `end`.
    Directory {
        /// The number after its last node.
        end: NodeId,
    },
    /// A regular file.
    File {
        /// Whether the owner may execute it.
        executable: bool,
        /// Its number among the files of the tree.
        file: u32,
        /// Its length in bytes.
        size_bytes: u64,
    },
    /// A symbolic link.
    Symlink {
        /// The target as stored in the link, not resolved.
        target: &'a [u8],
    },
}

/// A file cannot be added to a tree.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum TreeError {
    /// The tree has more than 4 Gi nodes or 4 GiB of names, which do not fit into its 32-bit numbers.
    #[error("it contains more than 4294967295 files or bytes of names")]
    TooLarge,
    /// A name is longer than Linux allows.
    #[error("the name {0:?} is longer than 255 bytes")]
    NameTooLong(String),
    /// A target is longer than Linux allows.
    #[error("a symbolic link target is longer than 4095 bytes")]
    TargetTooLong,
}

/// Longest name in bytes.
const MAX_NAME_BYTES: usize = 255;
/// Longest symlink target in bytes; the kernel refuses squashfs inodes with longer ones.
const MAX_TARGET_BYTES: usize = 4095;

impl Tree {
    /// Returns the number of nodes, including directories and the root.
    pub fn len(&self) -> NodeId {
        // `push` keeps the number below 2^32.
        u32::try_from(self.nodes.len()).unwrap_or(u32::MAX)
    }

    /// Returns true if the tree does not even have a root.
    pub fn is_empty(&self) -> bool {
        self.nodes.is_empty()
    }

    /// Returns the lengths of the regular files in bytes, in the order of the nodes.
    pub fn file_sizes(&self) -> &[u64] {
        &self.file_sizes
    }

    /// Returns a node's name, which is empty for the root.
    pub fn name(&self, node: NodeId) -> &[u8] {
        let Node { name_start, name_bytes, .. } = self.nodes[node as usize];
        self.text(name_start, name_bytes)
    }

    /// Returns the type and properties of a node.
    pub fn entry(&self, node: NodeId) -> Entry<'_> {
        match self.nodes[node as usize].kind {
            Kind::Directory { end } => Entry::Directory { end },
            Kind::File { executable, file } => {
                Entry::File { executable, file, size_bytes: self.file_sizes[file as usize] }
            }
            Kind::Symlink { target_start, target_bytes } => {
                Entry::Symlink { target: self.text(target_start, target_bytes) }
            }
        }
    }

    /// Returns the parent directory of a node; `None` for the root.
    pub fn parent(&self, node: NodeId) -> Option<NodeId> {
        (node > 0).then(|| self.nodes[node as usize].parent)
    }

    /// Returns the entries of a directory, in the order of their names. Other nodes have none.
    pub fn children(&self, directory: NodeId) -> impl Iterator<Item = NodeId> + '_ {
        let end = self.end(directory);
        let mut next = directory + 1;
        std::iter::from_fn(move || {
            let node = next;
            (node < end).then(|| {
                next = self.end(node);
                node
            })
        })
    }

    /// Returns the number after the last node at or below `node`.
    fn end(&self, node: NodeId) -> NodeId {
        match self.nodes[node as usize].kind {
            Kind::Directory { end } => end,
            Kind::File { .. } | Kind::Symlink { .. } => node + 1,
        }
    }

    fn text(&self, start: u32, bytes: u16) -> &[u8] {
        &self.text[start as usize..start as usize + usize::from(bytes)]
    }

    /// Appends a directory. Nodes appended after it are inside it, until [`Self::close_directory`] is called.
    ///
    /// # Errors
    /// The tree is too large, or the name is too long.
    pub fn open_directory(&mut self, name: &[u8]) -> Result<NodeId, TreeError> {
        let directory = self.push(name, Kind::Directory { end: 0 })?;
        self.open_directory = directory;
        Ok(directory)
    }

    /// Ends a directory.
    pub fn close_directory(&mut self, directory: NodeId) {
        let end = self.len();
        let node = &mut self.nodes[directory as usize];
        node.kind = Kind::Directory { end };
        self.open_directory = node.parent;
    }

    /// Appends a regular file.
    ///
    /// # Errors
    /// The tree is too large, or the name is too long.
    pub fn add_file(&mut self, name: &[u8], size_bytes: u64, mode: FileMode) -> Result<NodeId, TreeError> {
        let file = u32::try_from(self.file_sizes.len()).map_err(|_| TreeError::TooLarge)?;
        self.file_sizes.push(size_bytes);
        self.push(name, Kind::File { executable: mode == FileMode::Executable, file })
    }

    /// Appends a symbolic link.
    ///
    /// # Errors
    /// The tree is too large, or the name or the target is too long.
    pub fn add_symlink(&mut self, name: &[u8], target: &[u8]) -> Result<NodeId, TreeError> {
        if target.len() > MAX_TARGET_BYTES {
            return Err(TreeError::TargetTooLong);
        }
        let (target_start, target_bytes) = self.push_text(target)?;
        self.push(name, Kind::Symlink { target_start, target_bytes })
    }

    fn push(&mut self, name: &[u8], kind: Kind) -> Result<NodeId, TreeError> {
        if name.len() > MAX_NAME_BYTES {
            return Err(TreeError::NameTooLong(String::from_utf8_lossy(name).into_owned()));
        }
        let node = u32::try_from(self.nodes.len()).ok().filter(|node| *node < u32::MAX).ok_or(TreeError::TooLarge)?;
        let (name_start, name_bytes) = self.push_text(name)?;
        self.nodes.push(Node { name_start, name_bytes, parent: self.open_directory, kind });
        Ok(node)
    }

    fn push_text(&mut self, text: &[u8]) -> Result<(u32, u16), TreeError> {
        let start = u32::try_from(self.text.len()).map_err(|_| TreeError::TooLarge)?;
        self.text.extend_from_slice(text);
        Ok((start, u16::try_from(text.len()).map_err(|_| TreeError::TooLarge)?))
    }

    /// Returns the length of the tree's NAR serialisation in bytes.
    ///
    /// Source: the grammar in the thesis about Nix (figure 5.2): every string consists of its length in 8 bytes and its
    /// bytes, padded with zeros to a multiple of 8.
    pub fn nar_size_bytes(&self) -> u64 {
        let mut total = nar_string(b"nix-archive-1".len() as u64);
        for node in 0..self.len() {
            if node > 0 {
                // "entry" "(" "name" NAME "node" … ")"
                let name = self.name(node).len() as u64;
                total +=
                    nar_string(5) + nar_string(1) + nar_string(4) + nar_string(name) + nar_string(4) + nar_string(1);
            }
            // "(" "type" TYPE … ")"
            total += nar_string(1) + nar_string(4) + nar_string(1);
            total += match self.entry(node) {
                Entry::Directory { .. } => nar_string(9),
                Entry::Symlink { target } => nar_string(7) + nar_string(6) + nar_string(target.len() as u64),
                Entry::File { executable, size_bytes, .. } => {
                    let mark = if executable { nar_string(10) + nar_string(0) } else { 0 };
                    nar_string(7) + mark + nar_string(8) + nar_string(size_bytes)
                }
            };
        }
        total
    }
}

/// Returns the number of bytes in a NAR for a string of `bytes` bytes.
fn nar_string(bytes: u64) -> u64 {
    8 + bytes.next_multiple_of(8)
}

/// The only property of a file's mode that Nix preserves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FileMode {
    /// 0444.
    Regular,
    /// 0555.
    Executable,
}
