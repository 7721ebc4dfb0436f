//! Facts about an image, for people and programs.

use crate::erofs::reader::ErofsImage;
use crate::image::FileTree;
use crate::image::{Block, CodecOptions, FileInode, Image, ImageError, Inode, InodeKind, InodeType, each_distinct};
use crate::settings::FormatName;
use crate::squashfs::format::IMAGE_ALIGNMENT_BYTES;
use crate::verity::{self, Seal};
use serde::Serialize;

/// The facts about an image. Their serialised form is version 1 of the `inspect --json` document.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
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

/// The size of a table, and where it is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct TableFacts {
    /// Its name, as in `inode table`.
    pub name: String,
    /// Where it begins in the image.
    pub start: u64,
    /// Stored bytes in the image, without the index.
    pub stored_bytes: u64,
    /// Length in bytes when it is decompressed.
    pub bytes: u64,
    /// Number of metadata blocks.
    pub blocks: u64,
    /// Number of metadata blocks that are stored uncompressed.
    pub plain_blocks: u64,
}

/// The location of a file's content: its position, its length in bytes, and a number that distinguishes contents of the
/// same position and length. Two files with the same location have the same content.
type ContentLocation = (u64, u64, u64);

impl ImageFacts {
    /// Returns the facts that need no superblock of a certain format. The file system has `bytes_used` bytes; the hash
    /// tree of dm-verity begins after `data_bytes` bytes, if there is one.
    fn new(format: FormatName, image: &dyn FileTree, bytes_used: u64, data_bytes: u64) -> Result<Self, ImageError> {
        Ok(Self {
            version: 1,
            format: format.name(),
            image_bytes: image.length_bytes(),
            bytes_used,
            verity_root_hash: verity_root_hash(image, data_bytes)?,
            ..Self::default()
        })
    }

    /// Counts an inode, or one of its names.
    fn count(&mut self, inode: &Inode) {
        let inodes = &mut self.inodes;
        inodes.total += 1;
        match inode.inode_type() {
            InodeType::Directory => inodes.directories += 1,
            InodeType::File => inodes.files += 1,
            InodeType::Symlink => inodes.symlinks += 1,
            _ => inodes.special += 1,
        }
        inodes.with_xattrs += u64::from(inode.xattr.is_some());
        if let InodeKind::File(file) = &inode.kind {
            self.content_bytes = self.content_bytes.saturating_add(file.size_bytes);
            self.hole_bytes = self.hole_bytes.saturating_add(file.hole_bytes);
        }
    }

    /// Counts the files that share their content with an earlier file. `each_file` passes the content of each file that
    /// has its own blocks to its argument, and can be called several times; `distinct` receives each content once.
    fn count_duplicates(
        &mut self,
        mut each_file: impl FnMut(&mut dyn FnMut(ContentLocation)) -> Result<(), ImageError>,
        mut distinct: impl FnMut(ContentLocation),
    ) -> Result<(), ImageError> {
        let (mut files, mut bytes) = (0, 0_u64);
        let produce = |put: &mut dyn FnMut(ContentLocation)| {
            (files, bytes) = (0, 0);
            each_file(&mut |location| {
                files += 1;
                bytes = bytes.saturating_add(location.1);
                put(location);
            })
        };
        let (mut distinct_files, mut distinct_bytes) = (0, 0_u64);
        each_distinct(produce, |location| {
            distinct_files += 1;
            distinct_bytes = distinct_bytes.saturating_add(location.1);
            distinct(location);
            Ok(())
        })?;
        self.duplicate_files = files - distinct_files;
        self.duplicate_bytes = bytes.saturating_sub(distinct_bytes);
        Ok(())
    }
}

/// Returns the location of a file's content in a squashfs, or `None` for an empty file.
fn content_location(file: &FileInode, first: Option<Block>) -> Option<ContentLocation> {
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
    let data_bytes = superblock.bytes_used.next_multiple_of(IMAGE_ALIGNMENT_BYTES);
    let mut facts = ImageFacts {
        codec: image.compression().name(),
        level: image.codec_options().and_then(CodecOptions::level),
        block_size_bytes: superblock.block_size_bytes,
        made_at: superblock.made_at,
        flags: image.flag_names(),
        tables: table_facts(image),
        ..ImageFacts::new(FormatName::Squashfs, image, superblock.bytes_used, data_bytes)?
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
        facts.count(&inode);
        if inode.inode_type() != InodeType::Directory {
            facts.inodes.hard_links += u64::from(inode.links.saturating_sub(1));
        }
    }
    let each_file = |put: &mut dyn FnMut(ContentLocation)| {
        for inode in image.inodes() {
            if let InodeKind::File(file) = &inode?.kind {
                let first = image.first_stored_block(file)?;
                content_location(file, first).into_iter().for_each(&mut *put);
            }
        }
        Ok(())
    };
    facts.count_duplicates(each_file, |_| {})
}

/// Collects the facts of an erofs image. It walks the tree twice and reads no file content.
///
/// # Errors
/// The tree is damaged.
pub fn inspect_erofs(image: &ErofsImage) -> Result<ImageFacts, ImageError> {
    let superblock = image.superblock();
    let block_bytes = superblock.block_bytes();
    let mut facts = ImageFacts {
        codec: "none",
        // At most 64 KiB.
        block_size_bytes: u32::try_from(block_bytes).unwrap_or(u32::MAX),
        made_at: u32::try_from(superblock.epoch).unwrap_or(u32::MAX),
        flags: superblock.feature_names(),
        ..ImageFacts::new(FormatName::Erofs, image, superblock.bytes(), superblock.bytes())?
    };
    for node in image.walk()? {
        facts.count(&node?.inode);
    }
    // The walk counted every name.
    facts.inodes.hard_links = facts.inodes.total.saturating_sub(superblock.inodes);
    let each_file = |put: &mut dyn FnMut(ContentLocation)| {
        for node in image.walk()? {
            if let InodeKind::File(file) = node?.inode.kind
                && file.blocks > 0
            {
                put((file.start, file.size_bytes, file.blocks));
            }
        }
        Ok(())
    };
    let mut blocks = 0;
    facts.count_duplicates(each_file, |(_, _, of_content)| blocks += of_content)?;
    let stored_bytes = blocks.saturating_mul(block_bytes);
    facts.data_blocks = BlockFacts { blocks, plain_blocks: blocks, stored_bytes };
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
