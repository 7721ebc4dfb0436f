//! The content of an image according to each reader, in a form that can be compared.

use super::scratch;
use super::tools::{self, KernelMount};
use backhand::{FilesystemReader, InnerNode};
use imagebuilder::image::{InodeKind, Piece};
use imagebuilder::open_image::OpenImage;
use std::collections::BTreeMap;
use std::fs::{self, File, Metadata};
use std::io::{BufReader, Read};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;

/// A file or directory in a tree.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Seen {
    pub mode: u32,
    pub what: What,
}

/// Its type, with the digest of its content.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum What {
    Directory,
    Symlink(String),
    File { size_bytes: u64, blake3: String },
    Other(&'static str),
}

/// A tree as a map from its paths, without its root.
pub type Snapshot = BTreeMap<String, Seen>;

fn shown(path: &[u8]) -> String {
    path.escape_ascii().to_string()
}

fn hash_zeros(hasher: &mut blake3::Hasher, mut length: u64) {
    static ZEROS: [u8; 1 << 16] = [0; 1 << 16];
    while length > 0 {
        let count = length.min(ZEROS.len() as u64);
        hasher.update(&ZEROS[..count as usize]);
        length -= count;
    }
}

/// Hashes the content from a reader, and counts its length.
fn file(mut reader: impl Read) -> What {
    let mut hasher = blake3::Hasher::new();
    let mut buffer = vec![0; 1 << 17];
    let mut size_bytes = 0;
    loop {
        match reader.read(&mut buffer).unwrap() {
            0 => return What::File { size_bytes, blake3: hasher.finalize().to_string() },
            count => {
                hasher.update(&buffer[..count]);
                size_bytes += count as u64;
            }
        }
    }
}

/// Reads a directory on disk, with its actual modes.
pub fn directory(root: &Path) -> Snapshot {
    snapshot_directory(root, |metadata| metadata.permissions().mode() & 0o7777)
}

/// Returns the expected content of an image of a store directory: its paths with the modes that Nix sets, and the
/// directory of hard links.
pub fn store(root: &Path) -> Snapshot {
    let mut snapshot = store_path(root);
    snapshot.insert(".links".to_owned(), Seen { mode: 0o755, what: What::Directory });
    snapshot
}

/// Reads a store path, with the modes that Nix sets.
pub fn store_path(root: &Path) -> Snapshot {
    snapshot_directory(root, |metadata| match (metadata.is_symlink(), metadata.mode() & 0o100) {
        (true, _) => 0o777,
        (false, 0) => 0o444,
        (false, _) => 0o555,
    })
}

fn snapshot_directory(root: &Path, mode: impl Fn(&Metadata) -> u32) -> Snapshot {
    let mut snapshot = Snapshot::new();
    let mut waiting = vec![Vec::new()];
    while let Some(directory) = waiting.pop() {
        for entry in fs::read_dir(root.join(std::ffi::OsStr::from_bytes(&directory))).unwrap() {
            let entry = entry.unwrap();
            let mut path = directory.clone();
            if !path.is_empty() {
                path.push(b'/');
            }
            path.extend(entry.file_name().into_vec());
            let metadata = entry.metadata().unwrap();
            let what = if metadata.is_dir() {
                waiting.push(path.clone());
                What::Directory
            } else if metadata.is_symlink() {
                What::Symlink(shown(fs::read_link(entry.path()).unwrap().as_os_str().as_bytes()))
            } else if metadata.is_file() {
                file(File::open(entry.path()).unwrap())
            } else {
                What::Other("special")
            };
            snapshot.insert(shown(&path), Seen { mode: mode(&metadata), what });
        }
    }
    snapshot
}

/// Reads an image with our own reader.
pub fn our_reader(path: &Path) -> Snapshot {
    let image = OpenImage::open(path).unwrap();
    let image = image.tree();
    let nodes = image.walk().unwrap().map(Result::unwrap).filter(|node| node.depth > 0);
    let seen = nodes.map(|node| {
        let what = match &node.inode.kind {
            InodeKind::Directory(_) => What::Directory,
            InodeKind::Symlink(target) => What::Symlink(shown(target)),
            InodeKind::File(inode) => {
                let mut hasher = blake3::Hasher::new();
                let mut size_bytes = 0;
                let mut content = image.content(inode);
                while let Some(piece) = content.next_piece().unwrap() {
                    match piece {
                        Piece::Data(bytes) => {
                            hasher.update(bytes);
                            size_bytes += bytes.len() as u64;
                        }
                        Piece::Hole(length) => {
                            hash_zeros(&mut hasher, length);
                            size_bytes += length;
                        }
                    }
                }
                What::File { size_bytes, blake3: hasher.finalize().to_string() }
            }
            _ => What::Other("special"),
        };
        (shown(&node.path), Seen { mode: u32::from(node.inode.mode), what })
    });
    seen.collect()
}

/// Reads an image with backhand, which refuses symlink targets of 256 bytes or more.
pub fn backhand(path: &Path) -> Snapshot {
    let reader = FilesystemReader::from_reader(BufReader::new(File::open(path).unwrap())).unwrap();
    let mut snapshot = Snapshot::new();
    for node in reader.files().skip(1) {
        let what = match &node.inner {
            InnerNode::Dir(_) => What::Directory,
            InnerNode::Symlink(symlink) => What::Symlink(shown(symlink.link.as_os_str().as_bytes())),
            InnerNode::File(inode) => file(reader.file(inode).reader()),
            _ => What::Other("special"),
        };
        let path = node.fullpath.strip_prefix("/").unwrap().as_os_str().as_bytes();
        snapshot.insert(shown(path), Seen { mode: u32::from(node.header.permissions), what });
    }
    snapshot
}

/// Reads an image by extracting it with unsquashfs; `None` if it is not installed.
pub fn unsquashfs(image: &Path) -> Option<Snapshot> {
    let program = testing::find_tool("unsquashfs")?;
    let target = scratch::directory();
    let output = target.path().join("out");
    tools::run(
        program,
        ["-no-progress".as_ref(), "-quiet".as_ref(), "-d".as_ref(), output.as_os_str(), image.as_os_str()],
    );
    Some(directory(&output))
}

/// Reads an image with the kernel through a loop mount; `None` if it cannot be mounted.
pub fn kernel(image: &Path) -> Option<Snapshot> {
    let mount = KernelMount::new(image)?;
    Some(directory(mount.path()))
}

/// Fails with the first differences between two snapshots.
pub fn assert_same(name: &str, seen: &Snapshot, wanted: &Snapshot) {
    if seen == wanted {
        return;
    }
    let paths: std::collections::BTreeSet<_> = seen.keys().chain(wanted.keys()).collect();
    let different = paths.into_iter().filter(|path| seen.get(*path) != wanted.get(*path));
    let problems: Vec<String> = different
        .take(5)
        .map(|path| format!("{path}:\n  {:?}\n  not {:?}", seen.get(path), wanted.get(path)))
        .collect();
    panic!("{name} sees {} paths of {}:\n{}", seen.len(), wanted.len(), problems.join("\n"));
}
