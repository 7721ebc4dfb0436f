//! Ranges of bytes in a file.

use nix::errno::Errno;
use nix::fcntl::{FallocateFlags, fallocate};
use nix::unistd::{Whence, lseek64};
use std::fs::File;
use std::io;
use std::ops::Range;

/// Returns the ranges of a file that are no holes.
pub(super) fn data_ranges(file: &File) -> io::Result<Vec<Range<u64>>> {
    let seek = |from, kind| match lseek64(file, from, kind) {
        Ok(at) => Ok(Some(at)),
        Err(Errno::ENXIO) => Ok(None),
        Err(errno) => Err(io::Error::from(errno)),
    };
    let (mut ranges, mut at) = (Vec::new(), 0);
    while let Some(start) = seek(at, Whence::SeekData)? {
        at = seek(start, Whence::SeekHole)?.unwrap_or(start);
        ranges.push(start.unsigned_abs()..at.unsigned_abs());
    }
    Ok(ranges)
}

/// Returns the parts of ranges before that position.
pub(super) fn clip(ranges: &[Range<u64>], end: u64) -> Vec<Range<u64>> {
    ranges.iter().map(|range| range.start..range.end.min(end)).filter(|range| !range.is_empty()).collect()
}

/// Makes the disk reserve space for ranges of a file, without changing its content. Does nothing on a file system that
/// cannot reserve space.
pub(super) fn reserve(file: &File, ranges: &[Range<u64>]) -> io::Result<()> {
    for range in ranges {
        let (start, length) = (range.start.cast_signed(), (range.end - range.start).cast_signed());
        match fallocate(file, FallocateFlags::FALLOC_FL_KEEP_SIZE, start, length) {
            Err(Errno::EOPNOTSUPP) => return Ok(()),
            reserved => reserved?,
        }
    }
    Ok(())
}
