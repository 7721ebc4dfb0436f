//! Records the most recent pack of each name, so that a changed store path can reuse the blocks of its earlier version.
//!
//! `names/SETTINGS/NAME` is a symbolic link that contains the hash part of a store path; links of less than 60 bytes
//! need no block on disk. It is read, but not followed. If a link is missing or wrong, the store path is just
//! compressed as a whole.

use super::{Cache, CacheError, make_directory, open_unstamped, refuse_link};
use crate::pack::settings_name;
use crate::plan::PlannedPath;
use crate::settings::ImageSettings;
use program::atomic_file::temporary_sibling;
use std::collections::HashSet;
use std::ffi::OsString;
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

/// Directory of the links, in the root of the cache.
pub(super) const NAMES: &str = "names";

impl Cache {
    /// Opens the pack of an earlier version of a store path, without checking it.
    pub fn find_earlier_pack(&self, path: &PlannedPath, settings: &ImageSettings) -> Option<File> {
        let link = self.name_link(path, settings);
        refuse_link(link.parent()?).ok()?;
        let hash_part = fs::read_link(&link).ok()?.into_os_string().into_string().ok()?;
        let directory = self.pack_directory(settings);
        refuse_link(&directory).ok()?;
        let name = self.name_with_any_hash(&directory, &hash_part).ok()??;
        open_unstamped(&directory.join(name)).ok()?
    }

    /// Records that the pack of a store path was kept.
    pub(super) fn record_name(&self, path: &PlannedPath, settings: &ImageSettings) {
        let (link, pack) = (self.name_link(path, settings), path.path.hash_part());
        let _ = match replace_link(Path::new(pack), &link) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                link.parent().map_or(Ok(()), make_directory).and_then(|()| replace_link(Path::new(pack), &link))
            }
            other => other,
        };
    }

    fn name_link(&self, path: &PlannedPath, settings: &ImageSettings) -> PathBuf {
        self.root.join(NAMES).join(settings_name(settings)).join(name_without_version(path.path.name()))
    }
}

/// Removes digits and dots, which differ between versions; the rest distinguishes packages and their outputs.
fn name_without_version(name: &str) -> String {
    let name: String = name.chars().filter(|letter| !letter.is_ascii_digit() && *letter != '.').collect();
    if name.is_empty() { "_".to_owned() } else { name }
}

fn replace_link(target: &Path, link: &Path) -> io::Result<()> {
    link.parent().map_or(Ok(()), refuse_link)?;
    match symlink(target, link) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
        other => return other,
    }
    if fs::read_link(link).is_ok_and(|found| found == target) {
        return Ok(());
    }
    let temporary = temporary_sibling(link);
    symlink(target, &temporary)?;
    fs::rename(&temporary, link).inspect_err(|_| drop(fs::remove_file(&temporary)))
}

/// Removes the links to packs that no longer exist.
///
/// # Errors
/// The directory of the links is a symbolic link itself.
pub(super) fn remove_dangling(root: &Path) -> Result<(), CacheError> {
    let entries = |directory: &Path| fs::read_dir(directory).into_iter().flatten().flatten();
    let names = root.join(NAMES);
    refuse_link(&names).map_err(|source| CacheError { action: "list", path: names.clone(), source })?;
    for settings in entries(&names).filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir())) {
        let packs: HashSet<OsString> = entries(&root.join("packs").join(settings.file_name()))
            .filter_map(|pack| Some(pack.file_name().to_str()?.split('-').next()?.into()))
            .collect();
        for link in entries(&settings.path()) {
            if !fs::read_link(link.path()).is_ok_and(|hash_part| packs.contains(hash_part.as_os_str())) {
                let _ = fs::remove_file(link.path());
            }
        }
        // It is created again when it is needed.
        let _ = fs::remove_dir(settings.path());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_of_one_output_have_one_name() {
        assert_eq!(name_without_version("glibc-2.39-52-bin"), name_without_version("glibc-2.40-1-bin"));
        assert_ne!(name_without_version("glibc-2.39-52-bin"), name_without_version("glibc-2.39-52"));
        assert_eq!(name_without_version("1.0"), "_");
    }
}
