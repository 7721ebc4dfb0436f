//! Iterates over all inodes in the order of their table, whether they are in the tree or not.

use super::Image;
use super::error::{ImageError, Part};
use super::inode::Inode;

/// Reads the inode table from its beginning. It ends after an error, because the position of the next inode is then
/// unknown.
#[derive(Debug)]
pub struct InodeScan<'a> {
    image: &'a Image,
    place: u64,
    left: u32,
}

impl InodeScan<'_> {
    fn step(&mut self) -> Result<Option<Inode>, ImageError> {
        let table = &self.image.inodes;
        match (self.left, self.place < table.length()) {
            (0, false) => return Ok(None),
            (0, true) => {
                let reason = format!("bytes follow the last of {} inodes", self.image.superblock.inodes);
                return Err(ImageError::damaged(Part::InodeTable, reason));
            }
            (left, false) => {
                let reason = format!("it ends {left} inodes before the {}", self.image.superblock.inodes);
                return Err(ImageError::damaged(Part::InodeTable, reason));
            }
            (_, true) => {}
        }
        let inode = self.image.inode_at(self.place)?;
        self.place = inode.end;
        self.left -= 1;
        Ok(Some(inode))
    }
}

impl Iterator for InodeScan<'_> {
    type Item = Result<Inode, ImageError>;

    fn next(&mut self) -> Option<Self::Item> {
        let step = self.step().transpose();
        if matches!(step, Some(Err(_))) {
            self.left = 0;
            self.place = self.image.inodes.length();
        }
        step
    }
}

impl Image {
    /// Returns all inodes in the order of their table.
    pub fn inodes(&self) -> InodeScan<'_> {
        InodeScan { image: self, place: 0, left: self.superblock.inodes }
    }
}
