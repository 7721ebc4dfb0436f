//! Turns blocks of zeros into holes, because mkfs programs write empty journals (64 MiB for XFS).

use nix::fcntl::{FallocateFlags, fallocate};
use nix::unistd::{Whence, lseek64};
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

/// Length in bytes of the chunks that become holes if they contain only zeros. It is a multiple of every block size.
const CHUNK_BYTES: u64 = 1 << 16;

/// Turns the zeros of a file into holes, which does not change its content. On file systems without holes it does
/// nothing.
pub(crate) fn punch_holes(file: &File) -> io::Result<()> {
    let length = file.metadata()?.len();
    let mut chunk = vec![0; CHUNK_BYTES as usize];
    let mut position = 0;
    while position < length {
        // Ranges without data can still take space, because mkfs programs allocate journals without writing them.
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

/// Tries to turn a range into a hole, and returns whether it succeeded.
fn dig(file: &File, start: u64, end: u64) -> bool {
    let flags = FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
    fallocate(file, flags, start as i64, (end - start) as i64).is_ok()
}

/// Returns the position of the next byte that is not in a hole; `None` if there is none.
fn next_data(file: &File, position: u64) -> Option<u64> {
    let found = lseek64(file, i64::try_from(position).ok()?, Whence::SeekData).ok()?;
    u64::try_from(found).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::MetadataExt;

    #[test]
    fn zeros_become_holes_and_the_content_is_unchanged() {
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
        punch_holes(&file).unwrap();
        let mut found = vec![9; content.len()];
        file.read_exact_at(&mut found, 0).unwrap();
        assert_eq!(found, content);
        assert_eq!(file.metadata().unwrap().len(), content.len() as u64);
        // Two chunks of 128 sectors contain other bytes than zeros.
        let after = file.metadata().unwrap().blocks();
        assert!(before > 1900 && after <= 256, "{before} sectors before, {after} after");
    }
}
