//! Reuses the compressed blocks of the earlier version of a store path.

use crate::open_files::OpenFiles;
use crate::pack::layout::{Piece, fragment_content};
use crate::pack::{Pack, PackFile, PackOpener};
use crate::segment::{Batch, ContentHash, Segment, SegmentKind};
use crate::settings::ImageSettings;
use std::collections::HashMap;
use std::fs::File;

/// The pack of an earlier version of a store path, made with the same settings.
#[derive(Debug)]
pub(super) struct Earlier {
    pack: Pack,
    /// Its segments, by the hashes of their contents.
    segments: HashMap<(SegmentKind, ContentHash), usize>,
}

impl Earlier {
    /// Opens a pack that was found by its name; `None` if it cannot be used.
    pub(super) fn open(file: File, opener: &PackOpener) -> Option<Self> {
        let pack = opener.open_any(PackFile::new(file).ok()?).ok()?;
        let key = |piece: &Piece| match piece {
            Piece::Range { file, range, .. } => (SegmentKind::File, pack.range_hash(*file, *range)),
            Piece::Fragment(files) => {
                (SegmentKind::Fragment, fragment_content(files.iter().map(|small| pack.content(small.file))))
            }
        };
        let segments = pack.layout().pieces.iter().map(key).zip(0..).collect();
        Some(Self { pack, segments })
    }

    /// For the maker of one pack.
    pub(super) fn open_one(file: File, settings: &ImageSettings) -> Option<Self> {
        Self::open(file, &PackOpener::new(settings, OpenFiles::new(1)))
    }

    /// Returns the segment with this content after checking it; `None` if the pack has none, or it is damaged. Its
    /// bytes are read into `buffer`.
    pub(super) fn segment(
        &self,
        kind: SegmentKind,
        content: &ContentHash,
        buffer: impl FnOnce(usize) -> Vec<u8>,
    ) -> Option<Batch> {
        let number = *self.segments.get(&(kind, *content))?;
        let (piece, stored) = (&self.pack.layout().pieces[number], &self.pack.segments()[number]);
        let length = stored.bytes as usize;
        let mut batch = Batch::known(buffer(length));
        let (bytes, _) = batch.room();
        bytes.resize(length, 0);
        self.pack.read(stored.at, bytes).ok().filter(|()| Pack::is_intact(stored, bytes))?;
        batch.push(Segment {
            words: self.pack.words(stored).to_vec(),
            input_bytes: piece.input_bytes(),
            stored: 0..length,
            checksum: stored.checksum,
        });
        Some(batch)
    }
}
