//! Directories for tests that create very many files.

use nix::sys::statvfs::statvfs;
use std::path::Path;
use tempfile::TempDir;

/// Three times as much as the largest of these tests needs.
const NEEDED_BYTES: u64 = 1 << 30;

/// Creates a temporary directory, in memory if there is enough room: ext4 needs seconds to reuse the thousands of
/// inodes that another test has just deleted. Before Linux 6.6, user extended attributes are not supported in memory.
pub fn directory() -> TempDir {
    let memory = Path::new("/dev/shm");
    let has_room = statvfs(memory).is_ok_and(|found| found.blocks_available() * found.fragment_size() >= NEEDED_BYTES);
    let in_memory = has_room.then(|| tempfile::tempdir_in(memory).ok()).flatten();
    in_memory.unwrap_or_else(|| tempfile::tempdir().unwrap())
}
