//! Trees of files as data, and on disk as store paths in a store directory.

use super::scratch;
use super::seeded::Seeded;
use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs::{self, File, Permissions};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};

/// A file, directory or symbolic link.
#[derive(Clone, Debug)]
pub enum Item {
    File {
        content: Content,
        executable: bool,
    },
    Symlink(Vec<u8>),
    Directory(BTreeMap<Vec<u8>, Item>),
    /// Another name of the file at this path, which is relative to the store directory.
    HardLink(Vec<u8>),
}

/// The content of a file.
#[derive(Clone, Debug)]
pub enum Content {
    Bytes(Vec<u8>),
    /// A file of this length that is zero except for the pieces at their offsets.
    Sparse {
        size_bytes: u64,
        pieces: Vec<(u64, Vec<u8>)>,
    },
}

impl Item {
    pub fn file(bytes: impl Into<Vec<u8>>) -> Self {
        Self::File { content: Content::Bytes(bytes.into()), executable: false }
    }

    pub fn program(bytes: impl Into<Vec<u8>>) -> Self {
        Self::File { content: Content::Bytes(bytes.into()), executable: true }
    }

    pub fn sparse(size_bytes: u64, pieces: impl Into<Vec<(u64, Vec<u8>)>>) -> Self {
        Self::File { content: Content::Sparse { size_bytes, pieces: pieces.into() }, executable: false }
    }

    pub fn symlink(target: impl Into<Vec<u8>>) -> Self {
        Self::Symlink(target.into())
    }

    pub fn directory<N: Into<Vec<u8>>>(entries: impl IntoIterator<Item = (N, Item)>) -> Self {
        Self::Directory(entries.into_iter().map(|(name, item)| (name.into(), item)).collect())
    }

    /// Creates it at a path, whose parent directory must exist.
    pub fn write(&self, path: &Path, store_dir: &Path) {
        match self {
            Self::File { content, executable } => {
                let file = File::create_new(path).unwrap();
                match content {
                    Content::Bytes(bytes) => file.write_all_at(bytes, 0).unwrap(),
                    Content::Sparse { size_bytes, pieces } => {
                        file.set_len(*size_bytes).unwrap();
                        pieces.iter().for_each(|(at, bytes)| file.write_all_at(bytes, *at).unwrap());
                    }
                }
                let mode = if *executable { 0o555 } else { 0o444 };
                file.set_permissions(Permissions::from_mode(mode)).unwrap();
            }
            Self::Symlink(target) => symlink(OsStr::from_bytes(target), path).unwrap(),
            Self::Directory(entries) => {
                fs::create_dir(path).unwrap();
                for (name, item) in entries {
                    item.write(&path.join(OsStr::from_bytes(name)), store_dir);
                }
            }
            Self::HardLink(first) => fs::hard_link(store_dir.join(OsStr::from_bytes(first)), path).unwrap(),
        }
    }
}

/// Returns a base name that Nix would accept. The same name always gives the same base name.
pub fn base_name(name: &str) -> String {
    const DIGITS: &[u8] = b"0123456789abcdfghijklmnpqrsvwxyz";
    let hash = blake3::hash(name.as_bytes());
    let hash: String = hash.as_bytes().iter().map(|byte| char::from(DIGITS[usize::from(byte % 32)])).collect();
    format!("{hash}-{name}")
}

/// A store directory that is removed when it is dropped.
pub struct Store {
    directory: tempfile::TempDir,
}

impl Store {
    /// Creates a store with these store paths, given by the name part of their base names.
    pub fn new<'n>(store_paths: impl IntoIterator<Item = (&'n str, Item)>) -> Self {
        Self::made_in(tempfile::tempdir().unwrap(), store_paths)
    }

    /// Same as [`Self::new`], in a directory in which creating very many files is fast.
    pub fn in_memory<'n>(store_paths: impl IntoIterator<Item = (&'n str, Item)>) -> Self {
        Self::made_in(scratch::directory(), store_paths)
    }

    fn made_in<'n>(directory: tempfile::TempDir, store_paths: impl IntoIterator<Item = (&'n str, Item)>) -> Self {
        let store = Self { directory };
        for (name, item) in store_paths {
            item.write(&store.store_path(name), store.path());
        }
        store
    }

    /// Returns the store directory.
    pub fn path(&self) -> &Path {
        self.directory.path()
    }

    /// Returns the path of a store path, given its name.
    pub fn store_path(&self, name: &str) -> PathBuf {
        self.path().join(base_name(name))
    }
}

/// Returns a tree with everything that a store can contain, some of it twice.
pub fn mixed_tree(seed: u64) -> Item {
    let mut seeded = Seeded::new(seed);
    let shared = seeded.text(300_000);
    let mut entries: Vec<(Vec<u8>, Item)> = vec![
        (b"empty".to_vec(), Item::file("")),
        (b"empty-directory".to_vec(), Item::directory::<Vec<u8>>([])),
        (b"one-byte".to_vec(), Item::file("x")),
        (b"program".to_vec(), Item::program(seeded.text(70_000))),
        (b"shared-1".to_vec(), Item::file(shared.clone())),
        (b"shared-2".to_vec(), Item::file(shared)),
        (b"noise".to_vec(), Item::file(seeded.noise(200_000))),
        (b"block".to_vec(), Item::file(seeded.text(131_072))),
        (b"two-blocks".to_vec(), Item::file(seeded.text(262_144))),
        (b"block-and-one".to_vec(), Item::file(seeded.text(131_073))),
        (b"zeros".to_vec(), Item::file(vec![0; 400_000])),
        (b"sparse".to_vec(), Item::sparse(3_000_000, [(1_000_000, b"middle".to_vec()), (2_999_999, b"!".to_vec())])),
        (b"link".to_vec(), Item::symlink("program")),
        (b"long-link".to_vec(), Item::symlink("t".repeat(4095))),
        (b"dangling link".to_vec(), Item::symlink("../nowhere/\u{fc}")),
        (b"not-utf8-\xff\xfe\x80".to_vec(), Item::file("name")),
        (b"new\nline".to_vec(), Item::file("name")),
        ("n".repeat(255).into_bytes(), Item::file("long name")),
    ];
    let small = (0..400).map(|number| {
        let length = seeded.index(3000);
        (format!("file-{number:03}"), Item::file(seeded.text(length)))
    });
    entries.push((b"many".to_vec(), Item::directory(small.collect::<Vec<_>>())));
    let deep = (0..30).fold(Item::file("deepest"), |inner, level| {
        Item::directory([(format!("level-{level}"), inner), ("beside".to_owned(), Item::symlink(".."))])
    });
    entries.push((b"deep".to_vec(), deep));
    Item::directory(entries)
}
