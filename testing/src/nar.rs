//! The NAR hash of a store path, computed independently of the programs.

use sha2::{Digest, Sha256};
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

/// Returns the SHA-256 of the NAR serialisation of a file, directory or symbolic link, which Nix registers for a store
/// path.
pub fn nar_sha256(path: &Path) -> [u8; 32] {
    let mut nar = Vec::new();
    put(&mut nar, b"nix-archive-1");
    put_node(&mut nar, path);
    Sha256::digest(&nar).into()
}

fn put(nar: &mut Vec<u8>, string: &[u8]) {
    nar.extend_from_slice(&(string.len() as u64).to_le_bytes());
    nar.extend_from_slice(string);
    nar.resize(nar.len().next_multiple_of(8), 0);
}

fn put_all(nar: &mut Vec<u8>, strings: &[&str]) {
    strings.iter().for_each(|string| put(nar, string.as_bytes()));
}

fn put_node(nar: &mut Vec<u8>, path: &Path) {
    let metadata = fs::symlink_metadata(path).unwrap();
    put_all(nar, &["(", "type"]);
    if metadata.is_symlink() {
        put_all(nar, &["symlink", "target"]);
        put(nar, fs::read_link(path).unwrap().as_os_str().as_bytes());
    } else if metadata.is_dir() {
        put(nar, b"directory");
        let mut names: Vec<_> = fs::read_dir(path).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        names.sort_by(|a, b| a.as_bytes().cmp(b.as_bytes()));
        for name in names {
            put_all(nar, &["entry", "(", "name"]);
            put(nar, name.as_bytes());
            put(nar, b"node");
            put_node(nar, &path.join(name));
            put(nar, b")");
        }
    } else {
        put(nar, b"regular");
        if metadata.permissions().mode() & 0o100 != 0 {
            put_all(nar, &["executable", ""]);
        }
        put(nar, b"contents");
        put(nar, &fs::read(path).unwrap());
    }
    put(nar, b")");
}
