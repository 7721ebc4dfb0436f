//! An initrd that is composed at the start: the machine's own initrd, followed by an archive with credentials, which
//! the kernel unpacks over it. It exists in memory only, so that no secret is left on a disk.

use crate::launch::ComposedInitrd;
use crate::path::HostPath;
use cpio::newc::{Builder, trailer};
use nix::fcntl::{AT_FDCWD, OFlag, openat};
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::stat::Mode;
use program::place::Place;
use program::user::Identity;
use std::fs::File;
use std::io::{self, Read, Seek, Write};
use std::os::fd::OwnedFd;
use std::os::unix::fs::fchown;

/// Why the initrd could not be composed.
#[derive(Debug, thiserror::Error)]
pub enum InitrdError {
    /// A file could not be read.
    #[error("{path}: {source}")]
    Read {
        /// The file.
        path: HostPath,
        /// The error of the system.
        source: io::Error,
    },
    /// The file in memory could not be created or written.
    #[error("cannot create the initrd with the credentials in memory: {0}")]
    Memory(#[from] io::Error),
}

const DIRECTORY_MODE: u32 = 0o040_500;
const FILE_MODE: u32 = 0o100_400;

/// Composes the initrd, and returns its descriptor, positioned at the start. The hypervisor opens it again, as `owner`.
///
/// # Errors
/// Returns [`InitrdError`].
pub fn compose(
    initrd: &ComposedInitrd,
    working_directory: &HostPath,
    owner: Option<&Identity>,
) -> Result<OwnedFd, InitrdError> {
    let read = |path: &HostPath| {
        let path = path.below(working_directory);
        // The guest receives the content, so root must not be made to read its own files for a machine's user.
        let content = open_file(&path)?;
        read_all(content).map_err(|source| InitrdError::Read { path, source })
    };
    let mut entries = Vec::new();
    for (name, path) in &initrd.credentials {
        entries.push((name.as_str(), read(path)?));
    }
    let mut file = File::from(match &initrd.memory_directory {
        Some(directory) => nameless_file(directory, owner)?,
        None => memfd_create(c"initrd", MFdFlags::MFD_CLOEXEC).map_err(io::Error::from)?,
    });
    let base = initrd.base.below(working_directory);
    let mut source = open_file(&base)?;
    let base_bytes = io::copy(&mut source, &mut file)?;
    file.write_all(&vec![0; padding(base_bytes)])?;
    file.write_all(&archive(&initrd.directory, &entries)?)?;
    file.rewind()?;
    Ok(file.into())
}

/// A file that nobody can give a name to (open(2), O_TMPFILE with O_EXCL).
fn nameless_file(directory: &HostPath, owner: Option<&Identity>) -> io::Result<OwnedFd> {
    let flags = OFlag::O_TMPFILE | OFlag::O_EXCL | OFlag::O_RDWR | OFlag::O_CLOEXEC;
    let file = openat(AT_FDCWD, directory.as_path(), flags, Mode::S_IRUSR | Mode::S_IWUSR)?;
    if let Some(owner) = owner {
        fchown(&file, Some(owner.user().as_raw()), Some(owner.group().as_raw()))?;
    }
    Ok(file)
}

fn open_file(path: &HostPath) -> Result<File, InitrdError> {
    let opened = Place::of(path.as_path()).and_then(|place| place.open(OFlag::O_RDONLY));
    opened.map_err(|source| InitrdError::Read { path: path.clone(), source })
}

fn read_all(mut file: File) -> io::Result<Vec<u8>> {
    let mut content = Vec::new();
    file.read_to_end(&mut content)?;
    Ok(content)
}

/// Returns the number of bytes to the next multiple of four.
fn padding(bytes: u64) -> usize {
    usize::try_from(bytes.wrapping_neg() % 4).unwrap_or(0)
}

/// Returns a cpio archive in the "newc" format: Documentation/driver-api/early-userspace/buffer-format.rst of the
/// kernel.
fn archive(directory: &str, files: &[(&str, Vec<u8>)]) -> io::Result<Vec<u8>> {
    let mut archive = Vec::new();
    let mut inode = 1..;
    let mut parent = String::new();
    for part in directory.split('/').filter(|part| !part.is_empty()) {
        parent = if parent.is_empty() { part.to_owned() } else { format!("{parent}/{part}") };
        archive = append(archive, Builder::new(&parent).mode(DIRECTORY_MODE).nlink(2), inode.next(), &[])?;
    }
    for (name, content) in files {
        let entry = Builder::new(&format!("{parent}/{name}")).mode(FILE_MODE);
        archive = append(archive, entry, inode.next(), content)?;
    }
    trailer(archive)
}

fn append(archive: Vec<u8>, entry: Builder, inode: Option<u32>, content: &[u8]) -> io::Result<Vec<u8>> {
    let bytes = u32::try_from(content.len()).map_err(|_| io::ErrorKind::FileTooLarge)?;
    let mut writer = entry.ino(inode.unwrap_or_default()).write(archive, bytes);
    writer.write_all(content)?;
    writer.finish()
}

#[cfg(test)]
mod tests {
    use super::*;
    use cpio::newc::Reader;
    use std::collections::BTreeMap;
    use std::fs;

    /// Returns the name, mode and content of each entry.
    fn entries(mut archive: &[u8]) -> Vec<(String, u32, Vec<u8>)> {
        let mut entries = Vec::new();
        loop {
            let mut reader = Reader::new(archive).unwrap();
            if reader.entry().is_trailer() {
                return entries;
            }
            let (name, mode) = (reader.entry().name().to_owned(), reader.entry().mode());
            let mut content = Vec::new();
            reader.read_to_end(&mut content).unwrap();
            entries.push((name, mode, content));
            archive = reader.finish().unwrap();
        }
    }

    #[test]
    fn credentials_follow_the_initrd() {
        let directory = tempfile::tempdir().unwrap();
        fs::write(directory.path().join("initrd"), b"12345").unwrap();
        fs::write(directory.path().join("secret"), b"hunter2").unwrap();
        let need = ComposedInitrd {
            base: "initrd".into(),
            directory: "run/credentials/@initrd".to_owned(),
            credentials: BTreeMap::from([("password".to_owned(), HostPath::from("secret"))]),
            descriptor: 100,
            memory_directory: None,
        };
        let made = compose(&need, &directory.path().to_str().unwrap().into(), None).unwrap();
        let mut bytes = Vec::new();
        File::from(made).read_to_end(&mut bytes).unwrap();
        assert_eq!(&bytes[..8], b"12345\0\0\0");
        let found = entries(&bytes[8..]);
        let names: Vec<_> = found.iter().map(|(name, mode, _)| (name.as_str(), *mode)).collect();
        assert_eq!(
            names,
            [
                ("run", DIRECTORY_MODE),
                ("run/credentials", DIRECTORY_MODE),
                ("run/credentials/@initrd", DIRECTORY_MODE),
                ("run/credentials/@initrd/password", FILE_MODE)
            ]
        );
        assert_eq!(found[3].2, b"hunter2");
    }

    #[test]
    fn root_does_not_read_its_own_file_through_a_link_of_the_machines_user() {
        if !nix::unistd::geteuid().is_root() {
            return testing::skipped("needs root: the test shows that root does not follow another user's link");
        }
        let directory = tempfile::tempdir().unwrap();
        for name in ["initrd", "shadow"] {
            fs::write(directory.path().join(name), "root's").unwrap();
        }
        std::os::unix::fs::symlink("shadow", directory.path().join("secret")).unwrap();
        std::os::unix::fs::lchown(directory.path().join("secret"), Some(65534), None).unwrap();
        let need = ComposedInitrd {
            base: "initrd".into(),
            directory: "c".to_owned(),
            credentials: BTreeMap::from([("password".to_owned(), HostPath::from("secret"))]),
            descriptor: 100,
            memory_directory: None,
        };
        let error = compose(&need, &directory.path().to_str().unwrap().into(), None).unwrap_err().to_string();
        assert!(error.contains("root does not follow a symbolic link of nobody"), "{error}");
    }

    #[test]
    fn the_error_for_a_missing_credential_names_it() {
        let directory = tempfile::tempdir().unwrap();
        fs::write(directory.path().join("initrd"), b"").unwrap();
        let need = ComposedInitrd {
            base: "initrd".into(),
            directory: "c".to_owned(),
            credentials: BTreeMap::from([("password".to_owned(), HostPath::from("secret"))]),
            descriptor: 100,
            memory_directory: None,
        };
        let error = compose(&need, &directory.path().to_str().unwrap().into(), None).unwrap_err();
        assert!(error.to_string().contains("/secret: "), "{error}");
    }
}
