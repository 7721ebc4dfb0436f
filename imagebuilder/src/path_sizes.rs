//! How many bytes of an image each store path takes.
//!
//! Shared content is counted once. A block that several store paths use counts for the first of them, in the order of
//! their names, and as shared for the others. A fragment block counts for each path in proportion to its bytes in the
//! block. So the stored bytes of all paths add up to the image without its tables.

use crate::erofs::reader::ErofsImage;
use crate::image::{FileTree, FragmentRef, Image, ImageError, ImagePath, InodeKind, each_distinct};
use crate::store_root;
use serde::{Serialize, Serializer};

/// The bytes of every store path. Its serialised form is version 1 of the `size --json` document.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct PathSizes {
    /// Version of this document's format.
    pub version: u32,
    /// Bytes of the file system.
    pub bytes_used: u64,
    /// Bytes of the superblock and the tables (names, inodes, positions).
    pub tables_bytes: u64,
    /// The entries of the image's root, largest first.
    pub paths: Vec<PathSize>,
}

/// The bytes of one store path.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct PathSize {
    /// The path in the image.
    #[serde(serialize_with = "as_text")]
    pub path: ImagePath,
    /// Regular files.
    pub files: u64,
    /// Bytes of all its files, including holes. Equal files count each time.
    pub content_bytes: u64,
    /// Bytes of the image that count for this path.
    pub stored_bytes: u64,
    /// Bytes of the image that this path uses and that count for another path.
    pub shared_bytes: u64,
}

fn as_text<S: Serializer>(path: &ImagePath, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(path)
}

/// A data block and a path that uses it: start, stored bytes, path.
type BlockUse = (u64, u32, u32);
/// A piece of a fragment block and a path that uses it: fragment, offset, length, path.
type PieceUse = (u32, u32, u32, u32);

/// Computes the size of each entry of the root. No file content is read.
///
/// # Errors
/// The image is damaged.
pub fn path_sizes(image: &Image) -> Result<PathSizes, ImageError> {
    let mut paths = list_paths(image)?;
    add_data_blocks(image, &mut paths)?;
    add_fragment_blocks(image, &mut paths)?;
    Ok(finish(paths, image.superblock().bytes_used))
}

/// Computes the size of each entry of the root of an erofs image: the blocks and tails of its files. Inodes and
/// directories count as tables.
///
/// # Errors
/// The image is damaged.
pub fn path_sizes_erofs(image: &ErofsImage) -> Result<PathSizes, ImageError> {
    let block_bytes = image.superblock().block_bytes();
    let mut paths = list_paths(image)?;
    each_file(image, |path, file| {
        let in_blocks = file.blocks.saturating_mul(block_bytes);
        if let Some(path) = path_at(&mut paths, path) {
            path.stored_bytes = path.stored_bytes.saturating_add(file.size_bytes.saturating_sub(in_blocks));
        }
        Ok(())
    })?;
    let uses = |put: &mut dyn FnMut((u64, u64, u32))| {
        each_file(image, |path, file| {
            if file.blocks > 0 {
                put((file.start, file.blocks, path));
            }
            Ok(())
        })
    };
    let mut paid = None;
    each_distinct(uses, |(start, blocks, path)| {
        let first = paid.replace(start) != Some(start);
        if let Some(path) = path_at(&mut paths, path) {
            let bytes = if first { &mut path.stored_bytes } else { &mut path.shared_bytes };
            *bytes = bytes.saturating_add(blocks.saturating_mul(block_bytes));
        }
        Ok(())
    })?;
    Ok(finish(paths, image.superblock().bytes()))
}

/// Lists the entries of the root, with the content of their files.
fn list_paths(image: &dyn FileTree) -> Result<Vec<PathSize>, ImageError> {
    let mut paths: Vec<PathSize> = Vec::new();
    for node in image.walk()? {
        let node = node?;
        if node.depth == 1 {
            let path = ImagePath(node.path);
            paths.push(PathSize { path, files: 0, content_bytes: 0, stored_bytes: 0, shared_bytes: 0 });
        }
        if let (InodeKind::File(file), Some(path)) = (&node.inode.kind, paths.last_mut()) {
            path.files += 1;
            path.content_bytes = path.content_bytes.saturating_add(file.size_bytes);
        }
    }
    Ok(paths)
}

/// Sorts the paths by size, and adds the size of everything that belongs to none of them.
fn finish(mut paths: Vec<PathSize>, bytes_used: u64) -> PathSizes {
    // This directory is not a store path, and it is empty in images of closures.
    paths.retain(|path| path.path.0 != store_root::LINKS || path.files > 0);
    let blocks_bytes: u64 = paths.iter().map(|path| path.stored_bytes).sum();
    paths.sort_by(|a, b| b.stored_bytes.cmp(&a.stored_bytes).then_with(|| a.path.cmp(&b.path)));
    PathSizes { version: 1, bytes_used, tables_bytes: bytes_used.saturating_sub(blocks_bytes), paths }
}

/// Calls `visit` for every file of the image, with the number of its store path.
fn each_file(
    image: &dyn FileTree,
    mut visit: impl FnMut(u32, &crate::image::FileInode) -> Result<(), ImageError>,
) -> Result<(), ImageError> {
    let mut met = 0_u32;
    for node in image.walk()? {
        let node = node?;
        met = met.saturating_add(u32::from(node.depth == 1));
        if let InodeKind::File(file) = &node.inode.kind {
            visit(met.saturating_sub(1), file)?;
        }
    }
    Ok(())
}

fn path_at(paths: &mut [PathSize], number: u32) -> Option<&mut PathSize> {
    usize::try_from(number).ok().and_then(|number| paths.get_mut(number))
}

fn add_data_blocks(image: &Image, paths: &mut [PathSize]) -> Result<(), ImageError> {
    let uses = |put: &mut dyn FnMut(BlockUse)| {
        each_file(image, |path, file| {
            for block in image.file_blocks(file) {
                let block = block?;
                if !block.word.is_hole() {
                    put((block.start, block.word.stored_bytes(), path));
                }
            }
            Ok(())
        })
    };
    let mut paid = None;
    each_distinct(uses, |(start, stored_bytes, path)| {
        let first = paid.replace(start) != Some(start);
        if let Some(path) = path_at(paths, path) {
            let bytes = if first { &mut path.stored_bytes } else { &mut path.shared_bytes };
            *bytes = bytes.saturating_add(u64::from(stored_bytes));
        }
        Ok(())
    })
}

fn add_fragment_blocks(image: &Image, paths: &mut [PathSize]) -> Result<(), ImageError> {
    let uses = |put: &mut dyn FnMut(PieceUse)| {
        each_file(image, |path, file| {
            if let Some(FragmentRef { index, offset, length }) = file.fragment {
                put((index, offset, length, path));
            }
            Ok(())
        })
    };
    let mut shares = FragmentShares::default();
    each_distinct(uses, |piece: PieceUse| {
        if shares.fragment != Some(piece.0) {
            shares.charge(image, paths)?;
            shares.fragment = Some(piece.0);
        }
        shares.add(piece);
        Ok(())
    })?;
    shares.charge(image, paths)
}

/// The paths that use the bytes of one fragment block.
#[derive(Default)]
struct FragmentShares {
    fragment: Option<u32>,
    last_piece: Option<(u32, u32)>,
    /// For each path its number, the bytes that count for it, and the bytes that count for another path.
    users: Vec<(u32, u64, u64)>,
}

impl FragmentShares {
    fn add(&mut self, (_, offset, length, path): PieceUse) {
        let first = self.last_piece.replace((offset, length)) != Some((offset, length));
        let (own, shared) = if first { (u64::from(length), 0) } else { (0, u64::from(length)) };
        match self.users.iter_mut().find(|(user, ..)| *user == path) {
            Some((_, owned, also)) => {
                *owned += own;
                *also += shared;
            }
            None => self.users.push((path, own, shared)),
        }
    }

    /// Distributes all stored bytes over the paths, and clears the list.
    fn charge(&mut self, image: &Image, paths: &mut [PathSize]) -> Result<(), ImageError> {
        let Some(fragment) = self.fragment.take() else { return Ok(()) };
        let stored = u64::from(image.fragment(fragment)?.word.stored_bytes());
        let total: u64 = self.users.iter().map(|(_, owned, _)| owned).sum();
        let share = |bytes: u64| stored.saturating_mul(bytes).checked_div(total).unwrap_or_default();
        let (mut owned_so_far, mut paid_so_far) = (0, 0);
        for (path, owned, shared) in self.users.drain(..) {
            owned_so_far += owned;
            let pays = share(owned_so_far) - paid_so_far;
            paid_so_far += pays;
            if let Some(path) = path_at(paths, path) {
                path.stored_bytes += pays;
                path.shared_bytes += share(shared);
            }
        }
        self.last_piece = None;
        Ok(())
    }
}
