//! Gives blocks of zeros back to the disk: mkfs programs write out empty journals, 64 MiB of them for XFS.

use nix::fcntl::{FallocateFlags, fallocate};
use nix::unistd::{Whence, lseek64};
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

/// What is read at once and given back when it is all zeros; a multiple of every block size.
const CHUNK_BYTES: u64 = 1 << 16;

/// Makes holes of the zeros of a file: its content stays the same. On a filesystem without holes nothing happens.
pub(super) fn dig_holes(file: &File) -> io::Result<()> {
    let length = file.metadata()?.len();
    let mut chunk = vec![0; CHUNK_BYTES as usize];
    let mut position = 0;
    while position < length {
        // What is no data may still take space: mkfs programs allocate journals without writing them.
        let data = next_data(file, position).map_or(length, |data| data / CHUNK_BYTES * CHUNK_BYTES);
        if data > position && !dig(file, position, data) {
            return Ok(());
        }
        position = data.max(position);
        let bytes = CHUNK_BYTES.min(length - position);
        let part = &mut chunk[..bytes as usize];
        file.read_exact_at(part, position)?;
        if bytes > 0 && part.iter().all(|byte| *byte == 0) && !dig(file, position, position + bytes) {
            return Ok(());
        }
        position += bytes;
    }
    Ok(())
}

/// Whether the range is a hole now.
fn dig(file: &File, start: u64, end: u64) -> bool {
    let flags = FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
    fallocate(file, flags, start as i64, (end - start) as i64).is_ok()
}

/// Where the next byte that is not in a hole lies, if there is one.
fn next_data(file: &File, position: u64) -> Option<u64> {
    let found = lseek64(file, i64::try_from(position).ok()?, Whence::SeekData).ok()?;
    u64::try_from(found).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::MetadataExt;

    #[test]
    fn zeros_go_and_content_stays() {
        let file = tempfile::tempfile().unwrap();
        let mut content = vec![0_u8; 1_000_001];
        content[300_000] = 1;
        content[300_001] = 1;
        content[1_000_000] = 2;
        file.write_all_at(&content[..400_000], 0).unwrap();
        fallocate(&file, FallocateFlags::empty(), 0, 1_000_000).unwrap();
        file.write_all_at(&content[1_000_000..], 1_000_000).unwrap();
        file.sync_all().unwrap();
        let before = file.metadata().unwrap().blocks();
        dig_holes(&file).unwrap();
        let mut found = vec![9; content.len()];
        file.read_exact_at(&mut found, 0).unwrap();
        assert_eq!(found, content);
        assert_eq!(file.metadata().unwrap().len(), content.len() as u64);
        // Two chunks of 128 sectors hold something else than zeros.
        let after = file.metadata().unwrap().blocks();
        assert!(before > 1900 && after <= 256, "{before} sectors before, {after} after");
    }
}
