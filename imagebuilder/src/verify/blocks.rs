//! Checks the data: blocks must not overlap, and each must decompress to the expected length.

use super::problem::{ProblemKind, Problems};
use crate::image::{Block, Image, ImageError, InodeKind, Part, each_distinct};
use rayon::prelude::*;

/// Number of blocks given to the threads at once.
const BATCH: usize = 256;

/// Which blocks are decompressed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Decompress {
    /// All blocks.
    All,
    /// Only fragment blocks, because the comparison with the store reads all files.
    Fragments,
}

/// A block and its kind.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Stored {
    block: Block,
    /// Its number if it is a fragment block.
    fragment: Option<u32>,
}

impl Stored {
    fn part(self) -> Part {
        self.fragment.map_or(Part::DataBlock(self.block.start), Part::FragmentBlock)
    }
}

/// Checks all blocks in the order of their positions.
///
/// Files can share whole blocks. Blocks that overlap in any other way are a problem.
pub(super) fn check_blocks(image: &Image, decompress: Decompress, problems: &Problems) {
    let tails = fragment_tails(image, problems);
    let mut batch = Vec::with_capacity(BATCH);
    let mut last: Option<Stored> = None;
    let work = |batch: &mut Vec<Stored>| {
        batch
            .par_iter()
            .for_each_init(Vec::new, |buffer, stored| check_block(image, *stored, &tails, buffer, problems));
        batch.clear();
    };
    let result = each_distinct(
        |put| stored_blocks(image, put),
        |stored: Stored| {
            if let Some(last) = last.filter(|last| last.block.end() > stored.block.start)
                && (last.block.start, last.block.word) != (stored.block.start, stored.block.word)
            {
                let detail = format!("{} and {} overlap", last.part(), stored.part());
                problems.general(ProblemKind::Layout, detail);
            }
            if last.is_none_or(|last| last.block.end() <= stored.block.end()) {
                last = Some(stored);
            }
            if decompress == Decompress::All || stored.fragment.is_some() {
                batch.push(stored);
            }
            if batch.len() == BATCH {
                work(&mut batch);
            }
            Ok::<_, ImageError>(())
        },
    );
    work(&mut batch);
    if let Err(error) = result {
        problems.damage(error);
    }
}

/// Calls `put` for all stored blocks. Damage to a single file or fragment is reported by other checks, and does not end
/// this one.
fn stored_blocks(image: &Image, put: &mut dyn FnMut(Stored)) -> Result<(), ImageError> {
    for index in 0..image.superblock().fragments {
        if let Ok(block) = image.fragment(index) {
            put(Stored { block, fragment: Some(index) });
        }
    }
    for inode in image.inodes().map_while(Result::ok) {
        if let InodeKind::File(file) = inode.kind {
            for block in image.file_blocks(&file).map_while(Result::ok).filter(|block| !block.word.is_hole()) {
                put(Stored { block, fragment: None });
            }
        }
    }
    Ok(())
}

/// Returns the minimum length of each fragment block, given the tails in it. Reports damaged size words.
fn fragment_tails(image: &Image, problems: &Problems) -> Vec<u32> {
    let count = usize::try_from(image.superblock().fragments).unwrap_or(usize::MAX);
    let mut ends = vec![0_u32; count];
    for index in 0..image.superblock().fragments {
        if let Err(error) = image.fragment(index) {
            problems.damage(error);
        }
    }
    for inode in image.inodes().map_while(Result::ok) {
        let InodeKind::File(file) = inode.kind else { continue };
        for block in image.file_blocks(&file) {
            if let Err(error) = block {
                problems.general(ProblemKind::Damaged, format!("inode {}: {}", inode.number, error.chain()));
            }
        }
        if let Some(fragment) = file.fragment
            && let Some(end) = usize::try_from(fragment.index).ok().and_then(|index| ends.get_mut(index))
        {
            *end = (*end).max(fragment.offset.saturating_add(fragment.length));
        }
    }
    ends
}

fn check_block(image: &Image, stored: Stored, tails: &[u32], buffer: &mut Vec<u8>, problems: &Problems) {
    let result = match stored.fragment {
        None => image.read_data_block(stored.block, buffer),
        Some(index) => image.read_fragment_block(index, buffer).and_then(|()| {
            let needed = usize::try_from(index).ok().and_then(|index| tails.get(index)).copied().unwrap_or_default();
            if buffer.is_empty() || (buffer.len() as u64) < u64::from(needed) {
                let reason = format!("it has {} bytes, but files use {needed}", buffer.len());
                return Err(ImageError::Damaged { part: stored.part(), reason });
            }
            Ok(())
        }),
    };
    if let Err(error) = result {
        problems.damage(error);
    }
}
