//! What a caller wants of a new volume.

use crate::file_system::FileSystem;
use program::user::Identity;
use std::ffi::OsString;
use std::path::{Component, Path, PathBuf};

/// A volume to create.
#[derive(Clone, Copy, Debug)]
pub struct VolumeRequest<'a> {
    /// Its size in bytes. The disk stores only what mkfs writes.
    pub size_bytes: u64,
    /// Its file system.
    pub file_system: FileSystem,
    /// The label of the file system.
    pub label: Option<&'a str>,
    /// Directories to create in it, with their parents, owned by root with the mode 0755. ext4 only.
    pub directories: &'a [PathBuf],
    /// Additional arguments for the mkfs program, before the name of the file.
    pub mkfs_arguments: &'a [OsString],
    /// The mode of the file.
    pub mode: u32,
    /// The owner of the file; none for this process' user.
    pub owner: Option<&'a Identity>,
}

/// Returns `store` for `/store` and `store/`; `None` if the path does not consist of plain names. Quotes are refused
/// because debugfs reads names in quotes.
pub fn plain_path(directory: &Path) -> Option<PathBuf> {
    let text = directory.to_str()?;
    if text.contains(|character: char| character.is_control() || character == '"') {
        return None;
    }
    let mut inner = PathBuf::new();
    for component in directory.components() {
        match component {
            Component::RootDir | Component::CurDir => {}
            Component::Normal(name) => inner.push(name),
            Component::ParentDir | Component::Prefix(_) => return None,
        }
    }
    (!inner.as_os_str().is_empty()).then_some(inner)
}
