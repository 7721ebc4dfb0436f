//! The second pass: writes inodes, directories and symbolic links to memory, and records the positions of everything
//! else.

use super::directory::{self, InodeKey};
use super::format::{BLOCK_BYTES, Inode, NO_BLOCK, SLOT_BYTES, SUPERBLOCK_OFFSET, Superblock, put_checksum};
use super::layout::{
    Content, DAX_ALIGNMENT_BYTES, ErofsError, InodeLayout, Inodes, Output, Places, Profile, SameContent,
};
use crate::block_map::{BlockMap, Extent, FileId, Source, StoreFiles};
use std::sync::Arc;

/// Lays out the image of a store whose store paths are `files`. Equal arguments give equal images.
///
/// # Errors
/// The closure has more files, names or bytes than the format supports.
pub fn block_map(files: Arc<StoreFiles>, profile: Profile, same: &SameContent) -> Result<BlockMap, ErofsError> {
    let inodes = Inodes::new(&files, profile, same)?;
    let places = Places::of(&inodes)?;
    let metadata_bytes = u64::from(places.data_start()) * BLOCK_BYTES;
    let length =
        usize::try_from(metadata_bytes).map_err(|_| ErofsError::TooLarge { what: "more memory than there is" })?;
    let mut emitter = Emitter {
        places: &places,
        same,
        metadata: vec![0; length],
        tails: Vec::new(),
        data: Vec::new(),
        written_groups: vec![false; same.groups()],
        number: 0,
        record: Vec::new(),
    };
    inodes.walk(&mut emitter)?;
    emitter.finish(&files, profile)
}

/// The tail of a file, which is stored after its inode.
struct Tail {
    start: u64,
    length: u64,
    file: FileId,
    offset: u64,
}

/// The blocks of a file.
struct Data {
    start_block: u32,
    blocks: u32,
    file: FileId,
}

struct Emitter<'a> {
    places: &'a Places<'a>,
    same: &'a SameContent,
    /// The inode area and the directory area.
    metadata: Vec<u8>,
    tails: Vec<Tail>,
    /// The blocks of files, in the order of their positions.
    data: Vec<Data>,
    written_groups: Vec<bool>,
    number: u32,
    record: Vec<u8>,
}

impl Output for Emitter<'_> {
    fn inode(&mut self, key: InodeKey, shape: &InodeLayout, content: &Content<'_>) -> Result<(), ErofsError> {
        let place = self.places.at(key);
        let area = match content {
            Content::File(_) => self.places.data_start(),
            Content::Directory(_) | Content::Symlink(_) => self.places.directory_start(),
        };
        let start_block = if shape.blocks > 0 { area + place.start } else { NO_BLOCK };
        self.number += 1;
        let inode = Inode {
            file_type: shape.file_type,
            mode: shape.mode,
            group_id: shape.group_id,
            links: shape.links,
            size_bytes: shape.size_bytes,
            layout: shape.layout(),
            start_block,
            number: self.number,
        };
        let at = u64::from(place.nid) * SLOT_BYTES;
        let mut record = std::mem::take(&mut self.record);
        record.clear();
        inode.encode(&mut record);
        self.put(at, &record);
        let tail_at = at + record.len() as u64;
        record.clear();
        match content {
            Content::File(file) => self.file(*file, shape, start_block, tail_at),
            Content::Symlink(target) => self.put_content(target, shape, start_block, tail_at),
            Content::Directory(entries) => {
                directory::encode(entries, |inode| u64::from(self.places.at(inode).nid), &mut record);
                self.put_content(&record, shape, start_block, tail_at);
            }
        }
        self.record = record;
        Ok(())
    }
}

impl Emitter<'_> {
    fn put(&mut self, at: u64, bytes: &[u8]) {
        // The first pass has checked that all positions are in the metadata.
        let at = at as usize;
        self.metadata[at..at + bytes.len()].copy_from_slice(bytes);
    }

    /// Writes content to memory: whole blocks, and the rest after the inode.
    fn put_content(&mut self, content: &[u8], shape: &InodeLayout, start_block: u32, tail_at: u64) {
        let (blocks, tail) = content.split_at(content.len() - shape.tail_bytes as usize);
        if !blocks.is_empty() {
            self.put(u64::from(start_block) * BLOCK_BYTES, blocks);
        }
        self.put(tail_at, tail);
    }

    fn file(&mut self, file: FileId, shape: &InodeLayout, start_block: u32, tail_at: u64) {
        if shape.tail_bytes > 0 {
            let offset = shape.size_bytes - shape.tail_bytes;
            self.tails.push(Tail { start: tail_at, length: shape.tail_bytes, file, offset });
        }
        let written =
            self.same.group_of(file).map(|group| std::mem::replace(&mut self.written_groups[group as usize], true));
        if shape.blocks > 0 && written != Some(true) {
            // The first pass has checked that all blocks have 32-bit numbers.
            self.data.push(Data { start_block, blocks: shape.blocks as u32, file });
        }
    }

    fn finish(mut self, files: &Arc<StoreFiles>, profile: Profile) -> Result<BlockMap, ErofsError> {
        let root_nid = u16::try_from(self.places.at(InodeKey::Root).nid)
            .map_err(|_| ErofsError::TooLarge { what: "a root directory beyond the first 2 MiB" })?;
        let superblock = Superblock { root_nid, inodes: u64::from(self.places.inodes()), blocks: self.places.blocks() };
        self.record.clear();
        superblock.encode(&mut self.record);
        let record = std::mem::take(&mut self.record);
        self.put(SUPERBLOCK_OFFSET, &record);
        put_checksum(&mut self.metadata[..BLOCK_BYTES as usize]);

        self.tails.sort_unstable_by_key(|tail| tail.start);
        let metadata_bytes = self.metadata.len() as u64;
        let mut done = 0;
        let metadata = self.tails.iter().map(Some).chain([None]).flat_map(|tail| {
            let until = tail.map_or(metadata_bytes, |tail| tail.start);
            let before = Extent { start: done, length: until - done, source: Source::Metadata { offset: done } };
            done = tail.map_or(until, |tail| tail.start + tail.length);
            let tail = tail.map(|Tail { start, length, file, offset }| Extent {
                start: *start,
                length: *length,
                source: Source::File { file: *file, offset: *offset },
            });
            [Some(before), tail]
        });
        let data = self.data.iter().flat_map(|Data { start_block, blocks, file }| {
            let start = u64::from(*start_block) * BLOCK_BYTES;
            let room = u64::from(*blocks) * BLOCK_BYTES;
            let length = files.file_size_bytes(*file).unwrap_or_default().min(room);
            let content = Extent { start, length, source: Source::File { file: *file, offset: 0 } };
            let rest = Extent { start: start + length, length: room - length, source: Source::Zeros };
            [Some(content), Some(rest)]
        });
        let end = u64::from(self.places.blocks()) * BLOCK_BYTES;
        let padded = match profile {
            Profile::Disk => end,
            Profile::Dax => end.next_multiple_of(DAX_ALIGNMENT_BYTES),
        };
        let padding = Extent { start: end, length: padded - end, source: Source::Zeros };
        let extents = metadata.chain(data).flatten().chain([padding]).filter(|extent| extent.length > 0);
        let extents: Vec<Extent> = extents.collect();
        Ok(BlockMap::new(Arc::clone(files), std::mem::take(&mut self.metadata), extents)?)
    }
}
