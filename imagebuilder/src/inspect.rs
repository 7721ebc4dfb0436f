//! Facts about an image, for people and programs.

use crate::erofs::reader::ErofsImage;
use crate::image::FileTree;
use crate::image::{Block, CodecOptions, FileInode, Image, ImageError, InodeKind, InodeType, each_distinct};
use crate::settings::FormatName;
use crate::squashfs::format::IMAGE_ALIGNMENT_BYTES;
use crate::verity::{self, Seal};
use serde::Serialize;

/// The facts about an image. Their serialised form is version 1 of the `inspect --json` document.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ImageFacts {
    /// Version of this document's format.
    pub version: u32,
    /// Format of the image.
    pub format: &'static str,
    /// Length of the file in bytes, including padding.
    pub image_bytes: u64,
    /// Length of the file system in bytes.
    pub bytes_used: u64,
    /// Root hash of the dm-verity tree after the image, if there is one. Only its highest block was hashed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub verity_root_hash: Option<String>,
    /// Codec of the compressed blocks. Images without compression name gzip and have only uncompressed blocks.
    pub codec: &'static str,
    /// Level, if the image contains it. Tools do not write their default level.
    pub level: Option<u32>,
    /// Data block size.
    pub block_size_bytes: u32,
    /// Creation time in seconds since 1970.
    pub made_at: u32,
    /// The flags that are set.
    pub flags: Vec<&'static str>,
    /// Inodes by kind.
    pub inodes: InodeFacts,
    /// Bytes of all file inodes, including holes. Hard links count once, equal files each time.
    pub content_bytes: u64,
    /// Number of these bytes that are in holes.
    pub hole_bytes: u64,
    /// File inodes whose content is shared with an earlier file.
    pub duplicate_files: u64,
    /// Bytes of those files.
    pub duplicate_bytes: u64,
    /// Blocks of file content; shared ones count once.
    pub data_blocks: BlockFacts,
    /// Blocks of file tails and small files.
    pub fragment_blocks: BlockFacts,
    /// The tables, in their order in the image.
    pub tables: Vec<TableFacts>,
}

/// Inodes by kind.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct InodeFacts {
    /// All of them.
    pub total: u64,
    /// Directories.
    pub directories: u64,
    /// Regular files.
    pub files: u64,
    /// Symbolic links.
    pub symlinks: u64,
    /// Block and character devices, pipes, sockets.
    pub special: u64,
    /// Additional names of files that have several.
    pub hard_links: u64,
    /// Inodes with extended attributes.
    pub with_xattrs: u64,
}

/// Blocks of one kind.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct BlockFacts {
    /// Number of blocks.
    pub blocks: u64,
    /// Number of blocks that are stored uncompressed.
    pub plain_blocks: u64,
    /// Stored bytes in the image.
    pub stored_bytes: u64,
}

impl BlockFacts {
    fn add(&mut self, block: Block) {
        self.blocks += 1;
        self.plain_blocks += u64::from(block.word.is_plain());
        self.stored_bytes += u64::from(block.word.stored_bytes());
    }
}

/// One table.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct TableFacts {
    /// Its name.
    pub name: String,
    /// Where it begins in the image.
    pub start: u64,
    /// Stored bytes in the image, without the index.
    pub stored_bytes: u64,
    /// Decompressed bytes.
    pub bytes: u64,
    /// Number of metadata blocks.
    pub blocks: u64,
    /// Number of metadata blocks that are stored uncompressed.
    pub plain_blocks: u64,
}

/// Returns the location of a file's content. Two files with the same location have the same content.
fn content_key(file: &FileInode, first: Option<Block>) -> Option<(u64, u64, u64)> {
    let tail = file.fragment.map_or(0, |fragment| (u64::from(fragment.index) + 1) << 32 | u64::from(fragment.offset));
    match first {
        Some(_) => Some((file.start, file.size_bytes, tail)),
        None if tail > 0 && file.blocks == 0 => Some((0, file.size_bytes, tail)),
        None => None,
    }
}

fn table_facts(image: &Image) -> Vec<TableFacts> {
    let facts = image.tables().map(|table| TableFacts {
        name: table.part().to_string(),
        start: table.start(),
        stored_bytes: table.end() - table.start(),
        bytes: table.length(),
        blocks: table.pieces(),
        plain_blocks: table.plain_pieces(),
    });
    facts.collect()
}

/// Collects the facts. It reads the inode table twice, the second time for the blocks, but no file content.
///
/// # Errors
/// The tables are damaged.
pub fn inspect(image: &Image) -> Result<ImageFacts, ImageError> {
    let superblock = image.superblock();
    let mut facts = ImageFacts {
        version: 1,
        format: FormatName::Squashfs.name(),
        image_bytes: image.length_bytes(),
        bytes_used: superblock.bytes_used,
        verity_root_hash: verity_root_hash(image, superblock.bytes_used.next_multiple_of(IMAGE_ALIGNMENT_BYTES))?,
        codec: image.compression().name(),
        level: image.codec_options().and_then(CodecOptions::level),
        block_size_bytes: superblock.block_size_bytes,
        made_at: superblock.made_at,
        flags: image.flag_names(),
        inodes: InodeFacts::default(),
        content_bytes: 0,
        hole_bytes: 0,
        duplicate_files: 0,
        duplicate_bytes: 0,
        data_blocks: BlockFacts::default(),
        fragment_blocks: BlockFacts::default(),
        tables: table_facts(image),
    };
    count_inodes(image, &mut facts)?;
    image.each_data_block(|block| {
        facts.data_blocks.add(block);
        Ok(())
    })?;
    for index in 0..superblock.fragments {
        facts.fragment_blocks.add(image.fragment(index)?);
    }
    Ok(facts)
}

fn count_inodes(image: &Image, facts: &mut ImageFacts) -> Result<(), ImageError> {
    for inode in image.inodes() {
        let inode = inode?;
        facts.inodes.total += 1;
        match inode.inode_type() {
            InodeType::Directory => facts.inodes.directories += 1,
            InodeType::File => facts.inodes.files += 1,
            InodeType::Symlink => facts.inodes.symlinks += 1,
            _ => facts.inodes.special += 1,
        }
        if inode.inode_type() != InodeType::Directory {
            facts.inodes.hard_links += u64::from(inode.links.saturating_sub(1));
        }
        facts.inodes.with_xattrs += u64::from(inode.xattr.is_some());
        if let InodeKind::File(file) = &inode.kind {
            facts.content_bytes = facts.content_bytes.saturating_add(file.size_bytes);
            facts.hole_bytes = facts.hole_bytes.saturating_add(file.hole_bytes);
        }
    }
    let (mut files, mut bytes) = (0, 0_u64);
    let keys = |put: &mut dyn FnMut((u64, u64, u64))| {
        (files, bytes) = (0, 0);
        for inode in image.inodes() {
            if let InodeKind::File(file) = &inode?.kind {
                let first = image.first_stored_block(file)?;
                if let Some(key) = content_key(file, first) {
                    files += 1;
                    bytes = bytes.saturating_add(file.size_bytes);
                    put(key);
                }
            }
        }
        Ok::<_, ImageError>(())
    };
    let (mut distinct_files, mut distinct_bytes) = (0, 0_u64);
    each_distinct(keys, |(_, size_bytes, _)| {
        distinct_files += 1;
        distinct_bytes = distinct_bytes.saturating_add(size_bytes);
        Ok(())
    })?;
    facts.duplicate_files = files - distinct_files;
    facts.duplicate_bytes = bytes.saturating_sub(distinct_bytes);
    Ok(())
}

/// Collects the facts of an erofs image. It walks the tree twice and reads no file content.
///
/// # Errors
/// The tree is damaged.
pub fn inspect_erofs(image: &ErofsImage) -> Result<ImageFacts, ImageError> {
    let superblock = image.superblock();
    let block_bytes = superblock.block_bytes();
    let mut facts = ImageFacts {
        version: 1,
        format: FormatName::Erofs.name(),
        image_bytes: image.length_bytes(),
        bytes_used: superblock.bytes(),
        verity_root_hash: verity_root_hash(image, superblock.bytes())?,
        codec: "none",
        level: None,
        // At most 64 KiB.
        block_size_bytes: u32::try_from(block_bytes).unwrap_or(u32::MAX),
        made_at: u32::try_from(superblock.epoch).unwrap_or(u32::MAX),
        flags: superblock.feature_names(),
        inodes: InodeFacts::default(),
        content_bytes: 0,
        hole_bytes: 0,
        duplicate_files: 0,
        duplicate_bytes: 0,
        data_blocks: BlockFacts::default(),
        fragment_blocks: BlockFacts::default(),
        tables: Vec::new(),
    };
    for node in image.walk()? {
        let inode = node?.inode;
        let inodes = &mut facts.inodes;
        inodes.total += 1;
        match inode.inode_type() {
            InodeType::Directory => inodes.directories += 1,
            InodeType::File => inodes.files += 1,
            InodeType::Symlink => inodes.symlinks += 1,
            _ => inodes.special += 1,
        }
        inodes.with_xattrs += u64::from(inode.xattr.is_some());
        if let InodeKind::File(file) = &inode.kind {
            facts.content_bytes = facts.content_bytes.saturating_add(file.size_bytes);
        }
    }
    // The walk counted every name.
    facts.inodes.hard_links = facts.inodes.total.saturating_sub(superblock.inodes);
    let (mut files, mut bytes) = (0, 0_u64);
    let files_with_blocks = |put: &mut dyn FnMut((u64, u64, u64))| {
        (files, bytes) = (0, 0);
        for node in image.walk()? {
            if let InodeKind::File(file) = node?.inode.kind
                && file.blocks > 0
            {
                files += 1;
                bytes = bytes.saturating_add(file.size_bytes);
                put((file.start, file.blocks, file.size_bytes));
            }
        }
        Ok::<_, ImageError>(())
    };
    let (mut distinct_files, mut distinct_bytes) = (0, 0_u64);
    each_distinct(files_with_blocks, |(_, blocks, size_bytes)| {
        distinct_files += 1;
        distinct_bytes = distinct_bytes.saturating_add(size_bytes);
        facts.data_blocks.blocks += blocks;
        Ok(())
    })?;
    facts.data_blocks.plain_blocks = facts.data_blocks.blocks;
    facts.data_blocks.stored_bytes = facts.data_blocks.blocks.saturating_mul(block_bytes);
    facts.duplicate_files = files - distinct_files;
    facts.duplicate_bytes = bytes.saturating_sub(distinct_bytes);
    Ok(facts)
}

/// Returns the root hash of the tree after the first `data_bytes` bytes.
fn verity_root_hash(image: &dyn FileTree, data_bytes: u64) -> Result<Option<String>, ImageError> {
    let block_bytes = verity::BLOCK_BYTES;
    if image.length_bytes() < data_bytes + block_bytes {
        return Ok(None);
    }
    let mut block = vec![0; block_bytes as usize];
    image.read_raw(&mut block, data_bytes)?;
    if !verity::is_superblock(&block) {
        return Ok(None);
    }
    // With a single data block there is no tree, and the root hash is the hash of this block.
    let highest = if data_bytes > block_bytes { data_bytes + block_bytes } else { 0 };
    if image.length_bytes() < highest + block_bytes {
        return Ok(None);
    }
    image.read_raw(&mut block, highest)?;
    Ok(Some(Seal::new(&verity::hash_blocks(&block), data_bytes).root_hash))
}
