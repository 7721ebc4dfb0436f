//! The hash of the NAR serialisation of a path in an image. Nix registers this hash for each store path.
//!
//! The format is described in Nix's manual, "Nix Archive (NAR)". Every string consists of its length in eight bytes,
//! its bytes, and zeros up to a multiple of eight. The only bit of the mode in it is the executable bit.

use crate::image::{FileInode, FileTree, ImageError, InodeKind, Node, Piece};
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
    let mut nar = Nar { hash: Sha256::new(), size_bytes: 0 };
    nar.text("nix-archive-1");
    let mut open_directories = 0;
    for node in image.walk_from(path)? {
        let node = node?;
        while open_directories > node.depth {
            nar.close_directory(open_directories);
            open_directories -= 1;
        }
        if node.depth > 0 {
            for text in ["entry", "(", "name"] {
                nar.text(text);
            }
            nar.string(node.name());
            nar.text("node");
        }
        nar.text("(");
        nar.text("type");
        nar.node(image, &node)?;
        match node.inode.kind {
            InodeKind::Directory(_) => open_directories += 1,
            _ => nar.close(node.depth),
        }
    }
    while open_directories > 0 {
        nar.close_directory(open_directories);
        open_directories -= 1;
    }
    Ok(NarDigest { sha256: nar.hash.finalize().into(), size_bytes: nar.size_bytes })
}

struct Nar {
    hash: Sha256,
    size_bytes: u64,
}

impl Nar {
    fn bytes(&mut self, bytes: &[u8]) {
        self.hash.update(bytes);
        self.size_bytes += bytes.len() as u64;
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

    /// Writes the part after `type`, up to the closing parenthesis.
    fn node(&mut self, image: &dyn FileTree, node: &Node) -> Result<(), ImageError> {
        match &node.inode.kind {
            InodeKind::Directory(_) => self.text("directory"),
            InodeKind::Symlink(target) => {
                self.text("symlink");
                self.text("target");
                self.string(target);
            }
            InodeKind::File(file) => {
                self.text("regular");
                if node.inode.mode & 0o100 != 0 {
                    self.text("executable");
                    self.text("");
                }
                self.text("contents");
                self.content(image, file)?;
            }
            _ => {
                let what = format!("a {} in a NAR", node.inode.inode_type().name());
                return Err(ImageError::Unsupported { what }.at(&node.path));
            }
        }
        Ok(())
    }

    fn content(&mut self, image: &dyn FileTree, file: &FileInode) -> Result<(), ImageError> {
        self.bytes(&file.size_bytes.to_le_bytes());
        let mut content = image.content(file);
        while let Some(piece) = content.next_piece()? {
            match piece {
                Piece::Data(bytes) => self.bytes(bytes),
                Piece::Hole(length) => self.zeros(length),
            }
        }
        self.pad(file.size_bytes);
        Ok(())
    }

    /// Ends a node, and the directory entry around it unless it is the root.
    fn close(&mut self, depth: usize) {
        self.text(")");
        if depth > 0 {
            self.text(")");
        }
    }

    /// Ends the innermost open directory.
    fn close_directory(&mut self, open_directories: usize) {
        self.close(open_directories - 1);
    }
}
