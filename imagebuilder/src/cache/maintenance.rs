//! Looking after a cache: how large it is, making it smaller, finding what is damaged.

use super::{CacheError, FORM, lock_exclusive, manifest, refuse_link, segments};
use serde::Serialize;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

/// What a cache holds.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct CacheStat {
    /// Manifests of store paths.
    pub manifests: u64,
    /// Their bytes.
    pub manifest_bytes: u64,
    /// Compressed segments.
    pub segments: u64,
    /// Their bytes.
    pub segment_bytes: u64,
    /// Records of outputs and leftovers of builds that were killed.
    pub other_bytes: u64,
}

impl CacheStat {
    /// Bytes of everything.
    pub fn total_bytes(&self) -> u64 {
        self.manifest_bytes + self.segment_bytes + self.other_bytes
    }
}

/// What a collection removed, or would remove.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Collected {
    /// Entries removed.
    pub removed_entries: u64,
    /// Their bytes.
    pub removed_bytes: u64,
    /// Bytes that are left.
    pub kept_bytes: u64,
}

/// What a check found.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Checked {
    /// Entries read.
    pub entries: u64,
    /// Those that were damaged; they have been removed.
    pub damaged: Vec<PathBuf>,
}

/// Whether a collection takes place or is only foretold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Collection {
    /// Remove.
    Remove,
    /// Only count.
    DryRun,
}

struct CacheEntry {
    path: PathBuf,
    bytes: u64,
    used: SystemTime,
}

/// Counts what the cache in `directory` holds; a cache that is not there holds nothing.
///
/// # Errors
/// Something in it cannot be listed.
pub fn stat(directory: &Path) -> Result<CacheStat, CacheError> {
    let root = directory.join(FORM);
    let sum = |part: &str| -> Result<(u64, u64), CacheError> {
        let entries = list(&root.join(part))?;
        Ok((entries.len() as u64, entries.iter().map(|entry| entry.bytes).sum()))
    };
    let (manifests, manifest_bytes) = sum("manifests")?;
    let (segments, segment_bytes) = sum("segments")?;
    let other_bytes = sum("outputs")?.1 + sum("tmp")?.1;
    Ok(CacheStat { manifests, manifest_bytes, segments, segment_bytes, other_bytes })
}

/// Removes what was used least recently until the rest takes at most `size_max_bytes`, and all leftovers.
///
/// Waits for running builds, and builds that start meanwhile wait for it: so nothing in use is taken.
///
/// # Errors
/// Something cannot be listed or removed.
pub fn gc(directory: &Path, size_max_bytes: u64, collection: Collection) -> Result<Collected, CacheError> {
    let root = directory.join(FORM);
    if !root.is_dir() {
        return Ok(Collected::default());
    }
    let _lock = lock_exclusive(&root)?;
    let mut entries = list(&root.join("manifests"))?;
    entries.append(&mut list(&root.join("segments"))?);
    entries.append(&mut list(&root.join("outputs"))?);
    entries.sort_by(|a, b| b.used.cmp(&a.used).then_with(|| a.path.cmp(&b.path)));
    let mut collected = Collected::default();
    let mut remove = list(&root.join("tmp"))?;
    let mut full = false;
    for entry in entries {
        // Once the limit is met everything older goes: a small old entry does not outlive a large newer one.
        full |= collected.kept_bytes + entry.bytes > size_max_bytes;
        if full {
            remove.push(entry);
        } else {
            collected.kept_bytes += entry.bytes;
        }
    }
    for entry in remove {
        collected.removed_entries += 1;
        collected.removed_bytes += entry.bytes;
        if collection == Collection::Remove {
            let fail = |source| CacheError { action: "remove an entry", path: entry.path.clone(), source };
            fs::remove_file(&entry.path).map_err(fail)?;
            remove_if_empty(entry.path.parent());
        }
    }
    Ok(collected)
}

/// Removes the entries used least recently, at least `bytes` of them and at least [`TRIM_BYTES_MIN`]. True if something
/// was removed.
pub(super) fn trim(root: &Path, bytes: u64) -> bool {
    let mut entries: Vec<CacheEntry> =
        ["manifests", "segments"].iter().flat_map(|part| list(&root.join(part)).unwrap_or_default()).collect();
    entries.sort_by(|a, b| a.used.cmp(&b.used).then_with(|| a.path.cmp(&b.path)));
    let (wanted, mut removed) = (bytes.max(TRIM_BYTES_MIN), 0);
    for entry in entries {
        if removed >= wanted {
            break;
        }
        if fs::remove_file(&entry.path).is_ok() {
            removed += entry.bytes.max(1);
        }
    }
    removed > 0
}

/// A full disk is met at every write, so trimming makes room for many of them.
const TRIM_BYTES_MIN: u64 = 64 << 20;

/// Says whether the entry in a file is sound.
type Check = fn(&Path) -> io::Result<bool>;

/// Reads every entry and removes the damaged ones.
///
/// # Errors
/// Something cannot be read or removed.
pub fn fsck(directory: &Path) -> Result<Checked, CacheError> {
    let root = directory.join(FORM);
    let mut checked = Checked::default();
    if !root.is_dir() {
        return Ok(checked);
    }
    let _lock = lock_exclusive(&root)?;
    for (part, check) in [("manifests", manifest::check_entry as Check), ("segments", segments::check_entry)] {
        for entry in list(&root.join(part))? {
            checked.entries += 1;
            let fail = |source| CacheError { action: "check an entry", path: entry.path.clone(), source };
            if !check(&entry.path).map_err(fail)? {
                fs::remove_file(&entry.path).map_err(fail)?;
                checked.damaged.push(entry.path);
            }
        }
    }
    Ok(checked)
}

/// Directories are made again when they are needed.
fn remove_if_empty(directory: Option<&Path>) {
    if let Some(directory) = directory {
        let _ = fs::remove_dir(directory);
    }
}

/// All files below a directory.
fn list(directory: &Path) -> Result<Vec<CacheEntry>, CacheError> {
    let fail = |path: &Path, source| CacheError { action: "list", path: path.to_owned(), source };
    refuse_link(directory).map_err(|source| fail(directory, source))?;
    let mut found = Vec::new();
    let mut open = vec![directory.to_owned()];
    while let Some(directory) = open.pop() {
        let entries = match fs::read_dir(&directory) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            other => other.map_err(|error| fail(&directory, error))?,
        };
        for entry in entries {
            let entry = entry.map_err(|error| fail(&directory, error))?;
            let path = entry.path();
            let metadata = match entry.metadata() {
                // A build renamed or removed it meanwhile.
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                other => other.map_err(|error| fail(&path, error))?,
            };
            if metadata.is_dir() {
                open.push(path);
            } else {
                let used = metadata.modified().map_err(|error| fail(&path, error))?;
                found.push(CacheEntry { path, bytes: metadata.len(), used });
            }
        }
    }
    Ok(found)
}
