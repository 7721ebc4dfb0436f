//! Parts of an image that only the checks and reports of this crate need: flags, regions, tables, blocks, indexes.

use super::content::Block;
use super::error::{ImageError, Part};
use super::inode::{DirectoryInode, FileInode, Inode, InodeKind};
use super::listing::{IndexEntries, Listing};
use super::metadata::MetadataTable;
use super::superblock::read_at;
use super::unique::each_distinct;
use super::xattr::XattrTables;
use super::{EXPORT_ENTRY_BYTES, Image, Region, flag};

impl Image {
    /// Returns the names of the superblock's flags that are set.
    pub fn flag_names(&self) -> Vec<&'static str> {
        flag::flag_names(self.superblock.flags)
    }

    /// Returns the bits of the superblock's flags that are not defined in squashfs 4.0.
    pub(crate) fn unknown_flags(&self) -> u16 {
        flag::unknown_flags(self.superblock.flags)
    }

    /// Returns whether the bytes after the image can belong to something else, as on a block device.
    pub(crate) fn may_exceed_image(&self) -> bool {
        self.storage.source.may_exceed_image()
    }

    /// Reads bytes of the image without decompressing them.
    pub(crate) fn read_raw(&self, buffer: &mut [u8], at: u64) -> Result<(), ImageError> {
        read_at(self.storage.source.as_ref(), buffer, at)
    }

    /// Returns the positions of the tables and their indexes.
    pub(crate) fn regions(&self) -> Vec<Region> {
        let tables = self.tables().map(|table| Region { part: table.part(), start: table.start(), end: table.end() });
        tables.chain(self.indexes.iter().copied()).collect()
    }

    /// Returns all tables, in the order in which the tools write them.
    pub(crate) fn tables(&self) -> impl Iterator<Item = &MetadataTable> {
        let optional = [self.fragments.as_ref(), self.export.as_ref(), Some(&self.id_table)];
        let xattrs = self.xattrs.as_ref().map(|xattrs| [&xattrs.values, &xattrs.ids]);
        [&self.inodes, &self.directories]
            .into_iter()
            .chain(optional.into_iter().flatten())
            .chain(xattrs.into_iter().flatten())
    }

    /// Calls `consume` once for every stored data block, in the order of their positions.
    ///
    /// # Errors
    /// An inode is damaged, or `consume` fails.
    pub(crate) fn each_data_block(
        &self,
        consume: impl FnMut(Block) -> Result<(), ImageError>,
    ) -> Result<(), ImageError> {
        let produce = |put: &mut dyn FnMut(Block)| {
            for inode in self.inodes() {
                if let InodeKind::File(file) = inode?.kind {
                    for block in self.file_blocks(&file) {
                        let block = block?;
                        if !block.word.is_hole() {
                            put(block);
                        }
                    }
                }
            }
            Ok(())
        };
        each_distinct(produce, consume)
    }

    /// Returns the first block of a file that is not a hole.
    pub(crate) fn first_stored_block(&self, file: &FileInode) -> Result<Option<Block>, ImageError> {
        self.file_blocks(file).find(|block| block.as_ref().map_or(true, |block| !block.word.is_hole())).transpose()
    }

    /// Returns the listing of a directory.
    pub(crate) fn listing(&self, number: u32, directory: &DirectoryInode) -> Result<Listing<'_>, ImageError> {
        Listing::new(&self.directories, number, directory)
    }

    /// Returns the index of a directory.
    pub(crate) fn directory_index(&self, number: u32, directory: &DirectoryInode) -> IndexEntries<'_> {
        IndexEntries::new(&self.inodes, number, directory)
    }

    /// Returns an error about an index entry of a directory.
    pub(crate) fn index_error(&self, number: u32, listing_offset: u32, reason: &str) -> ImageError {
        ImageError::damaged(Part::Listing(number), format!("its index entry for byte {listing_offset} {reason}"))
    }

    /// Returns whether a place of the decompressed directory table is in the metadata block that begins at `piece`.
    pub(crate) fn is_in_directory_piece(&self, place: u64, piece: u32) -> bool {
        self.directories.stored_place(place).is_some_and(|(stored, _)| stored == piece)
    }

    /// Checks that all extended attributes can be read.
    pub(crate) fn check_xattrs(&self) -> Result<(), ImageError> {
        self.xattrs.as_ref().map_or(Ok(()), XattrTables::check)
    }

    /// Checks that the export table has the position of the inode under its number.
    pub(crate) fn check_export(&self, inode: &Inode) -> Result<(), ImageError> {
        let Some(table) = &self.export else { return Ok(()) };
        let mut cursor = table.cursor((u64::from(inode.number) - 1) * EXPORT_ENTRY_BYTES);
        let listed = cursor.u64()?;
        let place = self.inodes.stored_place(inode.place);
        let actual = place.map(|(piece, offset)| u64::from(piece) << 16 | u64::from(offset));
        if actual == Some(listed) {
            return Ok(());
        }
        let actual = actual.unwrap_or_default();
        let reason = format!("says inode {} is at {listed:#x}, but it is at {actual:#x}", inode.number);
        Err(ImageError::damaged(Part::ExportTable, reason))
    }
}
