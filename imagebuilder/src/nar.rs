//! The hash of a NAR serialisation. Nix registers this hash for each store path.
//!
//! The format is described in Nix's manual, "Nix Archive (NAR)". Every string consists of its length in eight bytes,
//! its bytes, and zeros up to a multiple of eight. The only bit of the mode in it is the executable bit.

use crate::image::{FileTree, ImageError, InodeKind, Node, Piece};
use crate::tree::FileMode;
use sha2::{Digest, Sha256};

/// Strings are padded to a multiple of this length.
const ALIGNMENT_BYTES: u64 = 8;
/// Zeros to hash at a time.
static ZEROS: [u8; 4096] = [0; 4096];

/// The digest and length of a NAR.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NarDigest {
    /// SHA-256.
    pub sha256: [u8; 32],
    /// Length in bytes.
    pub size_bytes: u64,
}

/// Serialises the tree at `path` of the image and returns the hash.
///
/// # Errors
/// The path does not exist, contains a special file, which a NAR does not support, or is damaged.
pub fn nar_digest(image: &dyn FileTree, path: &[u8]) -> Result<NarDigest, ImageError> {
    let mut nar = NarHasher::new();
    for node in image.walk_from(path)? {
        let node = node?;
        nar.begin(node.depth, if node.depth > 0 { node.name() } else { b"" });
        add_node(&mut nar, image, &node)?;
    }
    Ok(nar.finish())
}

fn add_node(nar: &mut NarHasher, image: &dyn FileTree, node: &Node) -> Result<(), ImageError> {
    match &node.inode.kind {
        InodeKind::Directory(_) => nar.directory(),
        InodeKind::Symlink(target) => nar.symlink(target),
        InodeKind::File(file) => {
            let mode = if node.inode.mode & 0o100 == 0 { FileMode::Regular } else { FileMode::Executable };
            nar.begin_file(mode, file.size_bytes);
            let mut content = image.content(file);
            while let Some(piece) = content.next_piece()? {
                match piece {
                    Piece::Data(bytes) => nar.bytes(bytes),
                    Piece::Hole(length) => nar.zeros(length),
                }
            }
            nar.end_file(file.size_bytes);
        }
        _ => {
            let what = format!("a {} in a NAR", node.inode.inode_type().name());
            return Err(ImageError::Unsupported { what }.at(&node.path));
        }
    }
    Ok(())
}

/// Hashes a NAR while it is serialised, node by node in depth-first order.
pub(crate) struct NarHasher {
    hash: Sha256,
    size_bytes: u64,
    open_directories: usize,
}

impl NarHasher {
    /// Begins a NAR.
    pub(crate) fn new() -> Self {
        let mut nar = Self { hash: Sha256::new(), size_bytes: 0, open_directories: 0 };
        nar.text("nix-archive-1");
        nar
    }

    /// Begins a node in `depth` directories. The root has depth 0 and no name.
    pub(crate) fn begin(&mut self, depth: usize, name: &[u8]) {
        self.close_directories(depth);
        if depth > 0 {
            for text in ["entry", "(", "name"] {
                self.text(text);
            }
            self.string(name);
            self.text("node");
        }
        self.text("(");
        self.text("type");
    }

    /// The node is a directory. The nodes in it follow.
    pub(crate) fn directory(&mut self) {
        self.text("directory");
        self.open_directories += 1;
    }

    /// The node is a symbolic link.
    pub(crate) fn symlink(&mut self, target: &[u8]) {
        self.text("symlink");
        self.text("target");
        self.string(target);
        self.close();
    }

    /// The node is a regular file. Its content follows, in [`Self::bytes`], and then [`Self::end_file`].
    pub(crate) fn begin_file(&mut self, mode: FileMode, size_bytes: u64) {
        self.text("regular");
        if mode == FileMode::Executable {
            self.text("executable");
            self.text("");
        }
        self.text("contents");
        self.bytes(&size_bytes.to_le_bytes());
    }

    /// Ends a regular file.
    pub(crate) fn end_file(&mut self, size_bytes: u64) {
        self.pad(size_bytes);
        self.close();
    }

    /// Adds content of a regular file.
    pub(crate) fn bytes(&mut self, bytes: &[u8]) {
        self.hash.update(bytes);
        self.size_bytes += bytes.len() as u64;
    }

    /// Ends the NAR.
    pub(crate) fn finish(mut self) -> NarDigest {
        self.close_directories(0);
        NarDigest { sha256: self.hash.finalize().into(), size_bytes: self.size_bytes }
    }

    fn zeros(&mut self, mut count: u64) {
        while count > 0 {
            let part = count.min(ZEROS.len() as u64);
            self.bytes(&ZEROS[..usize::try_from(part).unwrap_or(ZEROS.len())]);
            count -= part;
        }
    }

    fn pad(&mut self, length: u64) {
        self.zeros(length.next_multiple_of(ALIGNMENT_BYTES) - length);
    }

    fn string(&mut self, string: &[u8]) {
        self.bytes(&(string.len() as u64).to_le_bytes());
        self.bytes(string);
        self.pad(string.len() as u64);
    }

    fn text(&mut self, text: &str) {
        self.string(text.as_bytes());
    }

    /// Ends a node, and the directory entry around it unless it is the root.
    fn close(&mut self) {
        self.text(")");
        if self.open_directories > 0 {
            self.text(")");
        }
    }

    /// Ends directories until `depth` of them are open.
    fn close_directories(&mut self, depth: usize) {
        while self.open_directories > depth {
            self.open_directories -= 1;
            self.close();
        }
    }
}
