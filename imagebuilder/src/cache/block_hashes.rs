//! The hashes of dm-verity of blocks: one file for each pack, and one for each store path in EROFS images, under the name
//! that the pack of the store path has.

use super::{Cache, CacheError, make_directory, open_entry, refuse_link};
use crate::pack::block_hashes::{BlockHashes, PackIdentity};
use crate::pack::{file_name, settings_name};
use crate::plan::PlannedPath;
use crate::settings::ImageSettings;
use program::unnamed_file::UnnamedFile;
use std::fs::File;
use std::io::{Read, Write};
use std::path::PathBuf;
use std::sync::Weak;

/// Directory of the hashes of packs, in the root of the cache.
pub(super) const BLOCK_HASHES: &str = "verity";
/// Directory of the hashes of the files of store paths, in the root of the cache.
pub(super) const FILE_HASHES: &str = "verity-files";

/// The blocks that hashes belong to.
#[derive(Clone, Copy, Debug)]
pub enum BlocksOf<'a> {
    /// Those of a pack with these settings.
    Pack(&'a ImageSettings),
    /// Those of the files of a store path, which EROFS images contain as they are.
    Files,
}

impl Cache {
    /// Returns the hashes of the blocks of a pack, and updates the time of their file. Returns `None` if they are
    /// missing, damaged, or of another pack; whatever the reason, the blocks are hashed again.
    pub fn find_block_hashes(
        &self,
        path: &PlannedPath,
        blocks: BlocksOf<'_>,
        pack: &PackIdentity,
    ) -> Option<BlockHashes> {
        let place = self.block_hashes_path(path, blocks);
        place.parent().map_or(Ok(()), refuse_link).ok()?;
        let file = open_entry(&place).ok()??;
        let expected_bytes = pack.hashes_file_bytes();
        if !file.metadata().is_file() || file.metadata().len() != expected_bytes as u64 {
            return None;
        }
        let mut content = vec![0; expected_bytes];
        file.file().read_exact(&mut content).ok()?;
        BlockHashes::decode(pack, content)
    }

    /// Opens the file with the hashes of the blocks of a pack without checking it, and updates its time.
    pub fn open_block_hashes(&self, path: &PlannedPath, blocks: BlocksOf<'_>) -> Option<File> {
        let place = self.block_hashes_path(path, blocks);
        place.parent().map_or(Ok(()), refuse_link).ok()?;
        Some(open_entry(&place).ok()??.into_file())
    }

    /// Keeps the hashes of the blocks of a pack, and replaces existing ones.
    ///
    /// # Errors
    /// They cannot be written.
    pub fn keep_block_hashes(
        &self,
        path: &PlannedPath,
        blocks: BlocksOf<'_>,
        (pack, hashes): (&PackIdentity, &BlockHashes),
    ) -> Result<(), CacheError> {
        let place = self.block_hashes_path(path, blocks);
        let fail = |source| CacheError { action: "keep hashes of blocks", path: place.clone(), source };
        let directory = place.parent().map_or(Ok(()), make_directory);
        let file = directory.and_then(|()| UnnamedFile::create_sibling(&place)).map_err(fail)?;
        file.file().write_all(&hashes.encode(pack)).map_err(fail)?;
        self.keep(&place, &file, Weak::new())
    }

    fn block_hashes_path(&self, path: &PlannedPath, blocks: BlocksOf<'_>) -> PathBuf {
        let directory = match blocks {
            BlocksOf::Pack(settings) => self.root.join(BLOCK_HASHES).join(settings_name(settings)),
            BlocksOf::Files => self.root.join(FILE_HASHES),
        };
        directory.join(file_name(path))
    }
}
