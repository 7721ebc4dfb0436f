//! Invariant: a forged pack with a valid checksum is refused, or is a valid pack of some store path: names of one
//! component, hashes for each file, blocks inside the pack. Input: the length of the blocks (u16), and the index after
//! the names.

#![no_main]

use fuzz::{Scratch, planned_path};
use imagebuilder::open_files::OpenFiles;
use imagebuilder::pack::{PackFile, PackOpener, settings_name};
use imagebuilder::segment::range_count;
use imagebuilder::settings::ImageSettings;
use imagebuilder::tree::Entry;
use libfuzzer_sys::fuzz_target;
use std::fs::File;
use std::path::PathBuf;
use std::sync::LazyLock;

static FILE: LazyLock<PathBuf> = LazyLock::new(|| Scratch::new().path().join("pack"));

fuzz_target!(|bytes: &[u8]| {
    let Some((blocks, rest)) = bytes.split_first_chunk() else { return };
    let (path, settings) = (planned_path(), ImageSettings::default());
    let mut index = Vec::new();
    let text = |text: &str, index: &mut Vec<u8>| {
        index.extend_from_slice(&(text.len() as u16).to_le_bytes());
        index.extend_from_slice(text.as_bytes());
    };
    text(path.path.base_name(), &mut index);
    index.push(1);
    index.extend_from_slice(&[7; 32]);
    text(&settings_name(&settings), &mut index);
    index.extend_from_slice(rest);
    let mut pack = vec![0; usize::from(u16::from_le_bytes(*blocks))];
    pack.extend_from_slice(&index);
    pack.extend_from_slice(b"microvm-pack\0\0\0\x01");
    pack.extend_from_slice(&(index.len() as u64).to_le_bytes());
    pack.extend_from_slice(blake3::hash(&index).as_bytes());
    std::fs::write(&*FILE, &pack).expect("a pack");
    let opener = PackOpener::new(&settings, OpenFiles::new(1));
    let Ok(opened) = opener.open(PackFile::new(File::open(&*FILE).expect("a pack")).expect("a file"), &path) else {
        return;
    };
    let mut ranges = 0;
    let tree = opened.tree();
    for node in 0..tree.len() {
        let name = tree.name(node);
        assert!(!name.contains(&b'/') && name != b"." && name != b".." && name.is_empty() == (node == 0));
        if let Entry::File { size_bytes, .. } = tree.entry(node) {
            ranges += range_count(size_bytes);
        }
    }
    assert_eq!(ranges, opened.range_hashes().len());
    assert_eq!(opened.segments().len(), opened.layout().pieces.len());
    for segment in opened.segments() {
        assert!(segment.at + u64::from(segment.bytes) <= pack.len() as u64);
    }
    opened.check_segments().expect("all blocks can be read");
});
