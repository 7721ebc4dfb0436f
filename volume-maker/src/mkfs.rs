//! Finding the programs of file systems, and shortening their messages.

use std::env;
use std::ffi::OsStr;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

/// Directories of mkfs programs, which are not in the PATH of many users.
const SYSTEM_DIRECTORIES: [&str; 2] = ["/usr/sbin", "/sbin"];

/// Returns the part of a message before the usage, and after what is not an error. mkfs.xfs prints its usage with every
/// error, and mkfs.f2fs its settings.
pub(crate) fn without_usage(text: &str) -> String {
    let is_error = |line: &str| line.trim_start().starts_with("Error:");
    let first = text.lines().position(is_error).unwrap_or(0);
    let lines = text.lines().skip(first).take_while(|line| !line.starts_with("Usage:"));
    let message = lines.collect::<Vec<_>>().join("\n").trim().to_owned();
    if message.is_empty() { text.trim().to_owned() } else { message }
}

/// Finds a program of a file system in `$PATH`, or in the directories of the system, which are not in the `$PATH` of many
/// users.
pub fn find(program: &str) -> Option<PathBuf> {
    let path = env::var_os("PATH").unwrap_or_default();
    find_in(program, &path)
}

fn find_in(program: &str, path: &OsStr) -> Option<PathBuf> {
    env::split_paths(path)
        .chain(SYSTEM_DIRECTORIES.map(PathBuf::from))
        .map(|directory| directory.join(program))
        .find(|candidate| is_executable(candidate))
}

fn is_executable(path: &Path) -> bool {
    path.metadata().is_ok_and(|found| found.is_file() && found.permissions().mode() & 0o111 != 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_usage_is_removed_from_a_message_that_has_other_text() {
        assert_eq!(without_usage("too small\nUsage: mkfs.xfs\n[-q]\n"), "too small");
        assert_eq!(without_usage("Usage: mke2fs\n[-q]\n"), "Usage: mke2fs\n[-q]");
        let of_f2fs = "\n\tF2FS-tools: mkfs.f2fs Ver: 1.15.0\n\nInfo: total sectors = 81920 (40 MB)\n\tError: Device size is not \
                       sufficient for F2FS volume\n\tError: Failed to prepare a super block!!!\n";
        let errors =
            "Error: Device size is not sufficient for F2FS volume\n\tError: Failed to prepare a super block!!!";
        assert_eq!(without_usage(of_f2fs), errors);
    }

    #[test]
    fn the_directories_of_path_are_searched_before_those_of_the_system() {
        let directory = tempfile::tempdir().unwrap();
        let program = directory.path().join("sh");
        std::fs::write(&program, "").unwrap();
        assert_ne!(find_in("sh", directory.path().as_os_str()), Some(program.clone()), "not executable");
        std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o755)).unwrap();
        assert_eq!(find_in("sh", directory.path().as_os_str()), Some(program));
    }
}
