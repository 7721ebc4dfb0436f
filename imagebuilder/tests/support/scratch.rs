//! Directories for tests that make very many files.

use nix::sys::statvfs::statvfs;
use std::path::Path;
use tempfile::TempDir;

/// As much as the largest of these tests needs, three times over.
const NEEDED_BYTES: u64 = 1 << 30;

/// A temporary directory, in memory where there is room: ext4 takes seconds to give out again the thousands of inodes that
/// another test has just deleted. Extended attributes of users are not to be had there before Linux 6.6.
pub fn directory() -> TempDir {
    let memory = Path::new("/dev/shm");
    let has_room = statvfs(memory).is_ok_and(|found| found.blocks_available() * found.fragment_size() >= NEEDED_BYTES);
    let in_memory = has_room.then(|| tempfile::tempdir_in(memory).ok()).flatten();
    in_memory.unwrap_or_else(|| tempfile::tempdir().unwrap())
}
