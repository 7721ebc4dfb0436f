//! Maintenance of a cache: its size, garbage collection, and a search for damaged packs.

use super::block_hashes::{BLOCK_HASHES, FILE_HASHES};
use super::{CacheError, LAYOUT_DIRECTORY, names, open_entry, refuse_link};
use crate::pack::block_hashes::BlockHashes;
use crate::pack::{Pack, PackFile, open_named};
use crate::verity::{BLOCK_BYTES, hash_blocks};
use serde::Serialize;
use std::fs;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

/// The size of a cache.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct CacheStat {
    /// Number of packs, one per store path.
    pub packs: u64,
    /// Bytes of all packs.
    pub pack_bytes: u64,
    /// Bytes of the records of outputs, of the hashes of blocks, and of a cache of the former layout.
    pub other_bytes: u64,
}

impl CacheStat {
    /// Returns the total number of bytes.
    pub fn total_bytes(&self) -> u64 {
        self.pack_bytes + self.other_bytes
    }
}

/// The result of a collection, or of a dry run.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct GcReport {
    /// Number of removed entries.
    pub removed_entries: u64,
    /// Bytes of the removed entries.
    pub removed_bytes: u64,
    /// Bytes of the remaining entries.
    pub kept_bytes: u64,
}

/// The result of a check.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct FsckReport {
    /// Number of packs that were read.
    pub entries: u64,
    /// The damaged packs, which have been removed.
    pub damaged: Vec<PathBuf>,
}

/// Whether a collection removes entries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GcMode {
    /// Unused entries are removed.
    Remove,
    /// Only count the entries that would be removed.
    DryRun,
}

/// The directory of the former layout, which had a file for each segment.
const FORMER_LAYOUT_DIRECTORY: &str = "v1";
/// A file with a temporary name that is older than this does not belong to a running build.
const TEMPORARY_AGE: Duration = Duration::from_secs(24 * 3600);
/// Minimum number of bytes that trimming frees, because every write on a full disk would cause another one.
const MIN_TRIM_BYTES: u64 = 64 << 20;

struct CacheEntry {
    path: PathBuf,
    bytes: u64,
    used: SystemTime,
}

impl CacheEntry {
    /// Returns whether it is the temporary file of a build that was killed.
    fn is_leftover(&self) -> bool {
        let is_temporary = self.path.file_name().is_some_and(|name| name.as_encoded_bytes().starts_with(b"."));
        is_temporary && self.used.elapsed().is_ok_and(|age| age > TEMPORARY_AGE)
    }
}

/// Counts the entries of the cache in `directory`. A missing cache is empty.
///
/// # Errors
/// Something in it cannot be listed.
pub fn stat(directory: &Path) -> Result<CacheStat, CacheError> {
    let bytes = |entries: &[CacheEntry]| entries.iter().map(|entry| entry.bytes).sum::<u64>();
    let root = directory.join(LAYOUT_DIRECTORY);
    let packs = list(&root.join("packs"))?;
    let mut others = list(&root.join("outputs"))?;
    others.append(&mut list(&root.join(BLOCK_HASHES))?);
    others.append(&mut list(&root.join(FILE_HASHES))?);
    others.append(&mut list(&directory.join(FORMER_LAYOUT_DIRECTORY))?);
    let other_bytes = bytes(&others);
    Ok(CacheStat { packs: packs.len() as u64, pack_bytes: bytes(&packs), other_bytes })
}

/// Removes the least recently used entries until the rest takes at most `size_max_bytes`, and the former layout if no
/// program uses it.
///
/// It does not wait for running builds, which can still read the packs that they have opened.
///
/// # Errors
/// Something cannot be listed or removed.
pub fn gc(directory: &Path, size_max_bytes: u64, collection: GcMode) -> Result<GcReport, CacheError> {
    let root = directory.join(LAYOUT_DIRECTORY);
    let mut entries = list(&root.join("packs"))?;
    entries.append(&mut list(&root.join("outputs"))?);
    entries.append(&mut list(&root.join(BLOCK_HASHES))?);
    entries.append(&mut list(&root.join(FILE_HASHES))?);
    entries.sort_by(|a, b| b.used.cmp(&a.used).then_with(|| a.path.cmp(&b.path)));
    let mut collected = GcReport::default();
    let (mut full, mut removed) = (false, Vec::new());
    for entry in entries {
        // After the limit is reached, all older entries are removed, even small ones, so that the order of use is
        // respected.
        let leftover = entry.is_leftover() || is_without_pack(&root, &entry.path);
        full |= !leftover && collected.kept_bytes + entry.bytes > size_max_bytes;
        if full || leftover {
            removed.push(entry);
        } else {
            collected.kept_bytes += entry.bytes;
        }
    }
    for entry in removed {
        collected.removed_entries += 1;
        collected.removed_bytes += entry.bytes;
        if collection == GcMode::Remove {
            remove(&entry.path)?;
            // Directories are created again when they are needed.
            if let Some(parent) = entry.path.parent().filter(|parent| !parent.ends_with("outputs")) {
                let _ = fs::remove_dir(parent);
            }
        }
    }
    if collection == GcMode::Remove {
        names::remove_dangling(&root)?;
    }
    remove_former(directory, collection, &mut collected)?;
    Ok(collected)
}

/// Returns whether a file has the hashes of a pack that no longer exists.
fn is_without_pack(root: &Path, path: &Path) -> bool {
    pack_of(root, path)
        .is_some_and(|pack| fs::symlink_metadata(pack).is_err_and(|error| error.kind() == io::ErrorKind::NotFound))
}

/// Returns the path of the pack whose hashes are in the file `path`; `None` for other files.
fn pack_of(root: &Path, path: &Path) -> Option<PathBuf> {
    Some(root.join("packs").join(path.strip_prefix(root.join(BLOCK_HASHES)).ok()?))
}

fn remove(path: &Path) -> Result<(), CacheError> {
    match fs::remove_file(path) {
        // Another collection, or a build on a full disk, has already removed it.
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other.map_err(|source| CacheError { action: "remove an entry", path: path.to_owned(), source }),
    }
}

/// Removes a cache of the former layout, unless an older version of the program uses it and holds its lock.
fn remove_former(directory: &Path, collection: GcMode, collected: &mut GcReport) -> Result<(), CacheError> {
    let former = directory.join(FORMER_LAYOUT_DIRECTORY);
    let entries = list(&former)?;
    if !former.is_dir() {
        return Ok(());
    }
    let bytes: u64 = entries.iter().map(|entry| entry.bytes).sum();
    let lock = open_entry(&former.join("lock")).ok().flatten();
    let is_used = lock.as_ref().is_some_and(|lock| lock.file().try_lock().is_err());
    if is_used {
        collected.kept_bytes += bytes;
        return Ok(());
    }
    collected.removed_entries += entries.len() as u64;
    collected.removed_bytes += bytes;
    if collection == GcMode::Remove {
        fs::remove_dir_all(&former).map_err(|source| CacheError { action: "remove", path: former, source })?;
    }
    Ok(())
}

/// Removes the least recently used packs, at least `bytes` bytes and at least [`MIN_TRIM_BYTES`], or hashes of blocks if
/// there are no packs. Returns whether something was removed.
pub(super) fn trim(root: &Path, bytes: u64) -> bool {
    let wanted = bytes.max(MIN_TRIM_BYTES);
    ["packs", BLOCK_HASHES, FILE_HASHES].into_iter().any(|name| remove_oldest(&root.join(name), wanted))
}

fn remove_oldest(directory: &Path, wanted_bytes: u64) -> bool {
    let mut entries = list(directory).unwrap_or_default();
    entries.sort_by(|a, b| a.used.cmp(&b.used).then_with(|| a.path.cmp(&b.path)));
    let mut removed = 0;
    for entry in entries {
        if removed >= wanted_bytes {
            break;
        }
        if fs::remove_file(&entry.path).is_ok() {
            removed += entry.bytes.max(1);
        }
    }
    removed > 0
}

/// Reads every pack and the hashes of its blocks, and removes the damaged ones.
///
/// # Errors
/// Something cannot be read or removed.
pub fn fsck(directory: &Path) -> Result<FsckReport, CacheError> {
    let root = directory.join(LAYOUT_DIRECTORY);
    let mut checked = FsckReport::default();
    for entry in list(&root.join("packs"))? {
        checked.entries += 1;
        let fail = |source| CacheError { action: "check a pack", path: entry.path.clone(), source };
        let pack = open_pack(&entry.path).map_err(fail)?;
        if !pack.map_or(Ok(false), |pack| pack.check_segments()).map_err(fail)? {
            remove(&entry.path)?;
            checked.damaged.push(entry.path);
        }
    }
    for entry in list(&root.join(BLOCK_HASHES))? {
        let fail = |source| CacheError { action: "check hashes of blocks", path: entry.path.clone(), source };
        let Some(pack) = pack_of(&root, &entry.path).map(|pack| open_pack(&pack)).transpose().map_err(fail)?.flatten()
        else {
            // Without their pack, nothing shows whether they are right.
            remove(&entry.path)?;
            continue;
        };
        let file = open_entry(&entry.path).map_err(fail)?;
        if !file.map_or(Ok(false), |file| has_hashes_of(&pack, &file)).map_err(fail)? {
            remove(&entry.path)?;
            checked.damaged.push(entry.path);
        }
    }
    Ok(checked)
}

/// Opens a pack; `None` if it is not the pack of its path in the cache.
fn open_pack(path: &Path) -> io::Result<Option<Pack>> {
    let name = |path: Option<&Path>| path.and_then(Path::file_name).and_then(|name| name.to_str()).map(str::to_owned);
    match (open_entry(path)?, name(path.parent()), name(Some(path))) {
        (Some(file), Some(settings), Some(name)) => open_named(file, &settings, &name),
        _ => Ok(None),
    }
}

/// Returns whether a file has hashes of the blocks of a pack, and all of them are right.
fn has_hashes_of(pack: &Pack, file: &PackFile) -> io::Result<bool> {
    let expected_bytes = pack.identity().hashes_file_bytes();
    if !file.metadata().is_file() || file.metadata().len() != expected_bytes as u64 {
        return Ok(false);
    }
    let mut content = vec![0; expected_bytes];
    file.file().read_exact_at(&mut content, 0)?;
    let Some(hashes) = BlockHashes::decode(pack.identity(), content) else { return Ok(false) };
    let mut block = vec![0; BLOCK_BYTES as usize];
    for (number, hash) in hashes.known() {
        pack.read(number * BLOCK_BYTES, &mut block)?;
        if hash_blocks(&block) != hash {
            return Ok(false);
        }
    }
    Ok(true)
}

/// Lists all files below a directory.
fn list(directory: &Path) -> Result<Vec<CacheEntry>, CacheError> {
    let fail = |path: &Path, source| CacheError { action: "list", path: path.to_owned(), source };
    if let Some(parent) = directory.parent() {
        refuse_link(parent).map_err(|source| fail(parent, source))?;
    }
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
                // It was removed in the meantime.
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
