//! The content of an image as a list of extents and their sources: metadata in memory, ranges of store files, or zeros.
//!
//! A [`BlockMap`] describes an image completely: the image can be written to a file, can share blocks with the store by
//! reflinks, or can be served to a guest on demand. It is a pure type; it reads no file.
//!
//! A closure may have a million files, so the map is compact: 24 bytes per extent, and the paths of files are kept in
//! their trees ([`StoreFiles`]), at about 50 bytes per file.

use crate::store_path::StorePath;
use crate::tree::{Entry, NodeId, Tree};
use std::iter::FusedIterator;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use thiserror::Error;

/// The store paths that the files of an image are in.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct StoreFiles {
    store_dir: PathBuf,
    store_paths: Vec<StorePathTree>,
}

/// One store path and the files in it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StorePathTree {
    /// Its name in the store.
    pub path: StorePath,
    /// The files below the store path, without their content.
    pub tree: Tree,
}

/// A regular file of the store paths in [`StoreFiles`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct FileId {
    /// Index of the store path.
    pub store_path: u32,
    /// Node in the tree of that store path.
    pub node: NodeId,
}

/// The location of a file: a store path and the path of the file below it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoreFilePath<'a> {
    /// The directory that contains the store path.
    pub store_dir: &'a Path,
    /// The store path.
    pub store_path: &'a StorePath,
    /// Names of the directories below the store path and of the file, with slashes between them. Empty if the store
    /// path is the file.
    pub relative: Vec<u8>,
}

impl StoreFiles {
    /// Creates the list of the files of `store_paths`, which are in `store_dir`.
    pub fn new(store_dir: PathBuf, store_paths: Vec<StorePathTree>) -> Self {
        Self { store_dir, store_paths }
    }

    /// Returns the directory that contains the store paths.
    pub fn store_dir(&self) -> &Path {
        &self.store_dir
    }

    /// Returns the store paths; a [`FileId`] contains an index into them.
    pub fn store_paths(&self) -> &[StorePathTree] {
        &self.store_paths
    }

    /// Returns the length of a file in bytes; `None` if `file` is not a regular file of these store paths.
    pub fn file_size_bytes(&self, file: FileId) -> Option<u64> {
        let tree = &self.store_paths.get(usize::try_from(file.store_path).ok()?)?.tree;
        match (file.node < tree.len()).then(|| tree.entry(file.node))? {
            Entry::File { size_bytes, .. } => Some(size_bytes),
            Entry::Directory { .. } | Entry::Symlink { .. } => None,
        }
    }

    /// Returns the location of a file; `None` if `file` is not a node of these store paths.
    pub fn file_path(&self, file: FileId) -> Option<StoreFilePath<'_>> {
        let store_path = self.store_paths.get(usize::try_from(file.store_path).ok()?)?;
        let tree = &store_path.tree;
        if file.node >= tree.len() {
            return None;
        }
        let mut names = Vec::new();
        let mut node = file.node;
        while let Some(parent) = tree.parent(node) {
            names.push(tree.name(node));
            node = parent;
        }
        names.reverse();
        Some(StoreFilePath { store_dir: &self.store_dir, store_path: &store_path.path, relative: names.join(&b'/') })
    }
}

/// Where the bytes of an extent come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    /// [`BlockMap::metadata`], from `offset` on.
    Metadata {
        /// Position of its first byte in the file.
        offset: u64,
    },
    /// A store file, from `offset` on.
    File {
        /// The file.
        file: FileId,
        /// Position of its first byte in the file.
        offset: u64,
    },
    /// No source: all bytes are zero.
    Zeros,
}

/// A range of the image with one source.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Extent {
    /// First byte in the image.
    pub start: u64,
    /// Length in bytes, at least 1.
    pub length: u64,
    /// Where the bytes come from.
    pub source: Source,
}

/// Extents that do not form an image.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum BlockMapError {
    /// An extent does not begin where the one before it ends.
    #[error("an extent begins at byte {start}, but the one before it ends at byte {expected}")]
    NotContiguous {
        /// Where it begins.
        start: u64,
        /// Where it must begin.
        expected: u64,
    },
    /// An extent without bytes.
    #[error("the extent at byte {start} is empty")]
    Empty {
        /// Where it begins.
        start: u64,
    },
    /// An extent goes beyond the end of the metadata.
    #[error("the extent at byte {start} needs {needed_bytes} bytes of metadata, but there are {available_bytes}")]
    Metadata {
        /// Where it begins.
        start: u64,
        /// Length that the metadata must have at least.
        needed_bytes: u64,
        /// Length of the metadata.
        available_bytes: u64,
    },
    /// An extent goes beyond the end of its file, or the file does not exist.
    #[error("the extent at byte {start} is not in the file that it names")]
    File {
        /// Where it begins.
        start: u64,
        /// The file.
        file: FileId,
    },
    /// The image would end after 2^64 bytes.
    #[error("the extent at byte {start} ends after 2^64 bytes")]
    TooLong {
        /// Where it begins.
        start: u64,
    },
}

/// An extent as it is kept: it ends where the next one begins. A file extent may end after its file: these bytes are
/// zeros. So the rest of a file's last block needs no extent of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct StoredExtent {
    start: u64,
    /// First byte in the metadata or the file.
    offset: u64,
    /// Index of the store path, or one of the two numbers below.
    store_path: u32,
    node: NodeId,
}

const METADATA: u32 = u32::MAX;
const ZEROS: u32 = u32::MAX - 1;

/// The content of an image: extents that follow each other without gaps, from the first byte to the last.
#[derive(Clone, Debug)]
pub struct BlockMap {
    size_bytes: u64,
    extents: Vec<StoredExtent>,
    metadata: Vec<u8>,
    files: Arc<StoreFiles>,
}

impl BlockMap {
    /// Checks extents: each begins where the one before it ends, the first at 0, and all are in their source.
    ///
    /// # Errors
    /// The extents break one of these rules.
    pub fn new(
        files: Arc<StoreFiles>,
        metadata: Vec<u8>,
        extents: impl IntoIterator<Item = Extent>,
    ) -> Result<Self, BlockMapError> {
        let mut map = Self { size_bytes: 0, extents: Vec::new(), metadata, files };
        for extent in extents {
            map.push(extent)?;
        }
        map.extents.shrink_to_fit();
        Ok(map)
    }

    fn push(&mut self, extent: Extent) -> Result<(), BlockMapError> {
        let Extent { start, length, source } = extent;
        if start != self.size_bytes {
            return Err(BlockMapError::NotContiguous { start, expected: self.size_bytes });
        }
        if length == 0 {
            return Err(BlockMapError::Empty { start });
        }
        let end = start.checked_add(length).ok_or(BlockMapError::TooLong { start })?;
        let (offset, store_path, node) = match source {
            Source::Metadata { offset } => {
                let available_bytes = self.metadata.len() as u64;
                let needed_bytes = offset.saturating_add(length);
                if needed_bytes > available_bytes {
                    return Err(BlockMapError::Metadata { start, needed_bytes, available_bytes });
                }
                (offset, METADATA, 0)
            }
            Source::File { file, offset } => {
                let size_bytes = self.files.file_size_bytes(file).filter(|_| file.store_path < ZEROS);
                if size_bytes.is_none_or(|size_bytes| offset.saturating_add(length) > size_bytes) {
                    return Err(BlockMapError::File { start, file });
                }
                (offset, file.store_path, file.node)
            }
            Source::Zeros => (0, ZEROS, 0),
        };
        self.size_bytes = end;
        if !self.continues_last(source, start) {
            self.extents.push(StoredExtent { start, offset, store_path, node });
        }
        Ok(())
    }

    /// Returns whether an extent at `start` continues the last entry, so that it needs no entry itself.
    fn continues_last(&self, source: Source, start: u64) -> bool {
        let Some(last) = self.extents.last() else { return false };
        let end_at = last.offset + (start - last.start);
        match (self.source(last), source) {
            (Source::Zeros, Source::Zeros) => true,
            (Source::Metadata { .. }, Source::Metadata { offset }) => offset == end_at,
            (Source::File { file, .. }, Source::Zeros) => {
                self.files.file_size_bytes(file).is_none_or(|size| size <= end_at)
            }
            (Source::File { file: last, .. }, Source::File { file, offset }) => file == last && offset == end_at,
            _ => false,
        }
    }

    fn source(&self, stored: &StoredExtent) -> Source {
        let StoredExtent { offset, store_path, node, .. } = *stored;
        match store_path {
            METADATA => Source::Metadata { offset },
            ZEROS => Source::Zeros,
            _ => Source::File { file: FileId { store_path, node }, offset },
        }
    }

    /// Returns the length of the image in bytes.
    pub fn size_bytes(&self) -> u64 {
        self.size_bytes
    }

    /// Returns the bytes that are in no store file; [`Source::Metadata`] refers to them.
    pub fn metadata(&self) -> &[u8] {
        &self.metadata
    }

    /// Returns the store paths of the files.
    pub fn files(&self) -> &Arc<StoreFiles> {
        &self.files
    }

    /// Returns the location of a file; `None` if `file` is not from this map.
    pub fn file_path(&self, file: FileId) -> Option<StoreFilePath<'_>> {
        self.files.file_path(file)
    }

    /// Returns the extents of a range of the image, in order, cut to the range; it takes logarithmic time to find the
    /// first. The part of the range after the end of the image is ignored.
    pub fn extents_in(&self, range: Range<u64>) -> Extents<'_> {
        let next = self.extents.partition_point(|extent| extent.start <= range.start).saturating_sub(1);
        Extents { map: self, next, at: range.start, end: range.end.min(self.size_bytes) }
    }

    /// Returns all extents in order.
    pub fn extents(&self) -> Extents<'_> {
        self.extents_in(0..self.size_bytes)
    }
}

/// The iterator of [`BlockMap::extents_in`].
#[derive(Clone, Debug)]
pub struct Extents<'a> {
    map: &'a BlockMap,
    /// The kept extent that contains `at`.
    next: usize,
    at: u64,
    end: u64,
}

impl Iterator for Extents<'_> {
    type Item = Extent;

    fn next(&mut self) -> Option<Extent> {
        if self.at >= self.end {
            return None;
        }
        let stored = self.map.extents.get(self.next)?;
        let kept_end = self.map.extents.get(self.next + 1).map_or(self.map.size_bytes, |next| next.start);
        let start = self.at;
        let into = start - stored.start;
        let (source, source_end) = match self.map.source(stored) {
            Source::Metadata { offset } => (Source::Metadata { offset: offset + into }, kept_end),
            Source::Zeros => (Source::Zeros, kept_end),
            Source::File { file, offset } => {
                let left = self.map.files.file_size_bytes(file).unwrap_or_default().saturating_sub(offset);
                let file_end = stored.start.saturating_add(left).min(kept_end);
                if start < file_end {
                    (Source::File { file, offset: offset + into }, file_end)
                } else {
                    (Source::Zeros, kept_end)
                }
            }
        };
        if source_end == kept_end && kept_end <= self.end {
            self.next += 1;
        }
        self.at = source_end.min(self.end);
        Some(Extent { start, length: self.at - start, source })
    }
}

impl FusedIterator for Extents<'_> {}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tree::FileMode;
    use proptest::prelude::*;

    /// Returns a store path with a directory `dir` that contains files of these lengths, beginning with node 2.
    fn files(sizes: &[u64]) -> Arc<StoreFiles> {
        let mut tree = Tree::default();
        let root = tree.open_directory(b"").unwrap();
        let directory = tree.open_directory(b"dir").unwrap();
        for (number, size_bytes) in sizes.iter().enumerate() {
            tree.add_file(format!("f{number}").as_bytes(), *size_bytes, FileMode::Regular).unwrap();
        }
        tree.close_directory(directory);
        tree.add_symlink(b"link", b"dir").unwrap();
        tree.close_directory(root);
        let path = StorePath::from_base_name("0c0wqvhs4gn6a6ps1q4a9qd3h2ra2bnv-files").unwrap();
        Arc::new(StoreFiles::new(PathBuf::from("/nix/store"), vec![StorePathTree { path, tree }]))
    }

    fn file(number: u32) -> FileId {
        FileId { store_path: 0, node: 2 + number }
    }

    fn extent(start: u64, length: u64, source: Source) -> Extent {
        Extent { start, length, source }
    }

    const META: Source = Source::Metadata { offset: 0 };

    fn whole(number: u32) -> Source {
        Source::File { file: file(number), offset: 0 }
    }

    #[test]
    fn a_range_gives_its_extents_cut_at_both_ends() {
        let extents = [
            extent(0, 4096, META),
            extent(4096, 5000, whole(0)),
            extent(9096, 3192, Source::Zeros),
            extent(12288, 10, whole(1)),
        ];
        let map = BlockMap::new(files(&[5000, 10]), vec![0; 4096], extents).unwrap();
        assert_eq!(map.size_bytes(), 12298);
        assert_eq!(map.extents().collect::<Vec<_>>(), extents);
        let cut = |range| map.extents_in(range).collect::<Vec<_>>();
        assert_eq!(
            cut(4000..4200),
            [
                extent(4000, 96, Source::Metadata { offset: 4000 }),
                extent(4096, 104, Source::File { file: file(0), offset: 0 }),
            ]
        );
        assert_eq!(
            cut(9000..10_000),
            [extent(9000, 96, Source::File { file: file(0), offset: 4904 }), extent(9096, 904, Source::Zeros)]
        );
        assert_eq!(cut(10_000..10_001), [extent(10_000, 1, Source::Zeros)]);
        assert_eq!(cut(12_297..99_999), [extent(12_297, 1, Source::File { file: file(1), offset: 9 })]);
        assert_eq!(cut(12_298..99_999), []);
        assert_eq!(cut(u64::MAX..u64::MAX), []);
        assert_eq!(cut(7..7), []);
    }

    #[test]
    fn the_rest_of_a_files_last_block_takes_no_memory() {
        let extents = [extent(0, 10, whole(0)), extent(10, 4086, Source::Zeros), extent(4096, 20, whole(1))];
        let map = BlockMap::new(files(&[10, 20]), Vec::new(), extents).unwrap();
        assert_eq!(map.extents.len(), 2);
        assert_eq!(size_of::<StoredExtent>(), 24);
        assert_eq!(map.extents().collect::<Vec<_>>(), extents);
    }

    #[test]
    fn zeros_between_two_parts_of_a_file_stay_zeros() {
        let second = Source::File { file: file(0), offset: 5 };
        let extents = [extent(0, 5, whole(0)), extent(5, 3, Source::Zeros), extent(8, 5, second)];
        let map = BlockMap::new(files(&[10]), Vec::new(), extents).unwrap();
        assert_eq!(map.extents().collect::<Vec<_>>(), extents);
    }

    #[test]
    fn extents_that_do_not_form_an_image_are_refused() {
        let refused =
            |extents: &[Extent]| BlockMap::new(files(&[10]), vec![0; 8], extents.iter().copied()).unwrap_err();
        assert_eq!(refused(&[extent(1, 1, META)]), BlockMapError::NotContiguous { start: 1, expected: 0 });
        assert_eq!(
            refused(&[extent(0, 2, META), extent(1, 1, META)]),
            BlockMapError::NotContiguous { start: 1, expected: 2 }
        );
        assert_eq!(refused(&[extent(0, 0, META)]), BlockMapError::Empty { start: 0 });
        let metadata = |needed_bytes| BlockMapError::Metadata { start: 0, needed_bytes, available_bytes: 8 };
        assert_eq!(refused(&[extent(0, 9, META)]), metadata(9));
        assert_eq!(refused(&[extent(0, 9, Source::Metadata { offset: u64::MAX })]), metadata(u64::MAX));
        let too_long = [extent(0, 1, Source::Zeros), extent(1, u64::MAX, Source::Zeros)];
        assert_eq!(refused(&too_long), BlockMapError::TooLong { start: 1 });
        // Beyond the end of a file; nodes that are not files or do not exist; store paths that do not exist.
        for (file, offset, length) in [
            (file(0), 0, 11),
            (file(0), 10, 1),
            (file(0), u64::MAX, 1),
            (FileId { store_path: 0, node: 1 }, 0, 1),
            (file(1), 0, 1),
            (file(9), 0, 1),
            (FileId { store_path: 1, node: 0 }, 0, 1),
            (FileId { store_path: ZEROS, node: 0 }, 0, 1),
            (FileId { store_path: METADATA, node: 0 }, 0, 1),
        ] {
            assert_eq!(
                refused(&[extent(0, length, Source::File { file, offset })]),
                BlockMapError::File { start: 0, file }
            );
        }
    }

    #[test]
    fn files_are_found_by_their_names() {
        let files = files(&[10, 20]);
        let place = files.file_path(file(1)).unwrap();
        assert_eq!(place.relative, b"dir/f1");
        assert_eq!(place.store_path.name(), "files");
        assert_eq!(place.store_dir, Path::new("/nix/store"));
        assert_eq!(files.file_size_bytes(file(1)), Some(20));
        assert_eq!(files.file_path(file(7)), None);
        assert_eq!(files.file_path(FileId { store_path: 1, node: 0 }), None);
        assert_eq!(files.file_path(FileId { store_path: 0, node: 0 }).unwrap().relative, b"");
    }

    /// Returns the origin of every byte according to the extents: the number of the source and the position in it.
    fn bytes_of(extents: impl Iterator<Item = Extent>) -> Vec<(u64, u64, u64)> {
        extents
            .flat_map(|Extent { start, length, source }| {
                let (number, offset, step) = match source {
                    Source::Metadata { offset } => (0, offset, 1),
                    Source::File { file, offset } => (u64::from(file.node), offset, 1),
                    Source::Zeros => (u64::MAX, 0, 0),
                };
                (0..length).map(move |byte| (start + byte, number, offset + byte * step))
            })
            .collect()
    }

    prop_compose! {
        /// Contiguous extents of all kinds, from three files with 40 bytes each and 60 bytes of metadata.
        fn extents()(parts in prop::collection::vec((0..5_u32, 0..20_u64, 1..20_u64), 0..40)) -> Vec<Extent> {
            let mut start = 0;
            parts.into_iter().map(|(kind, offset, length)| {
                let source = match kind {
                    0 => Source::Metadata { offset },
                    1 => Source::Zeros,
                    kind => Source::File { file: file(kind - 2), offset: offset + (20 - length) },
                };
                let extent = Extent { start, length, source };
                start += length;
                extent
            }).collect()
        }
    }

    proptest! {
        #[test]
        fn every_range_has_the_bytes_of_the_extents_it_is_cut_from(extents in extents(), from in 0..900_u64, length in 0..300_u64) {
            let map = BlockMap::new(files(&[40, 40, 40]), vec![0; 60], extents.iter().copied()).unwrap();
            prop_assert_eq!(bytes_of(map.extents()), bytes_of(extents.iter().copied()));
            let wanted: Vec<_> =
                bytes_of(extents.into_iter()).into_iter().filter(|(at, ..)| (from..from + length).contains(at)).collect();
            prop_assert!(map.extents_in(from..from + length).all(|extent| extent.length > 0));
            prop_assert_eq!(bytes_of(map.extents_in(from..from + length)), wanted);
        }
    }
}
