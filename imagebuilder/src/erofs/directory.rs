//! The content of a directory: blocks of entries, sorted by their names.

use super::format::{BLOCK_BYTES, DIRECTORY_ENTRY_BYTES, DirectoryEntry, FileType};
use crate::tree::NodeId;

/// Identifies an inode before it has a number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum InodeKey {
    /// The root directory.
    Root,
    /// The directory of hard links that Nix expects.
    Links,
    /// A node of a store path.
    Node { store_path: u32, node: NodeId },
}

/// An entry whose inode may not have a position yet.
pub(super) struct Entry<'a> {
    pub(super) name: &'a [u8],
    pub(super) file_type: FileType,
    pub(super) inode: InodeKey,
}

/// Sorts entries in the order that the kernel expects: by the bytes of their names, including `.` and `..`.
pub(super) fn sort(entries: &mut [Entry<'_>]) {
    entries.sort_unstable_by(|left, right| left.name.cmp(right.name));
}

/// Returns the entries of each block, as many as fit.
fn blocks<'e, 'a>(entries: &'e [Entry<'a>]) -> impl Iterator<Item = (&'e [Entry<'a>], u64)> {
    let mut rest = entries;
    std::iter::from_fn(move || {
        let (mut count, mut used) = (0, 0);
        for entry in rest {
            let more = used + DIRECTORY_ENTRY_BYTES + entry.name.len() as u64;
            if more > BLOCK_BYTES {
                break;
            }
            (count, used) = (count + 1, more);
        }
        let (block, remaining) = rest.split_at(count);
        rest = remaining;
        (count > 0).then_some((block, used))
    })
}

/// Returns the length of a directory's content in bytes. All blocks except the last are full.
pub(super) fn size_bytes(entries: &[Entry<'_>]) -> u64 {
    let (count, last) = blocks(entries).fold((0, 0), |(count, _), (_, used)| (count + 1, used));
    u64::saturating_sub(count, 1) * BLOCK_BYTES + last
}

/// Appends a directory's content; `nid_of` gives the number of an inode.
pub(super) fn encode(entries: &[Entry<'_>], nid_of: impl Fn(InodeKey) -> u64, out: &mut Vec<u8>) {
    let start = out.len();
    for (block, _) in blocks(entries) {
        let used = out.len() - start;
        // The block before this one is filled with zeros.
        out.resize(start + used.next_multiple_of(BLOCK_BYTES as usize), 0);
        // Both are below 4096.
        let mut name_offset = block.len() as u16 * DIRECTORY_ENTRY_BYTES as u16;
        for Entry { name, file_type, inode } in block {
            DirectoryEntry { nid: nid_of(*inode), name_offset, file_type: *file_type }.encode(out);
            name_offset += name.len() as u16;
        }
        block.iter().for_each(|entry| out.extend_from_slice(entry.name));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entries(names: &[&'static [u8]]) -> Vec<Entry<'static>> {
        let entry = |name: &&'static [u8]| Entry { name, file_type: FileType::Regular, inode: InodeKey::Root };
        let mut entries: Vec<_> = names.iter().map(entry).collect();
        sort(&mut entries);
        entries
    }

    #[test]
    fn names_including_the_dots_are_sorted_by_their_bytes() {
        let sorted = entries(&[b"..", b".", b"a", b"-x", b"..a", b".-", b"\xff", b"A", b".."]);
        let names: Vec<_> = sorted.iter().map(|entry| entry.name).collect();
        let wanted: [&[u8]; 9] = [b"-x", b".", b".-", b"..", b"..", b"..a", b"A", b"a", b"\xff"];
        assert_eq!(names, wanted);
    }

    #[test]
    fn the_counted_length_equals_the_written_length() {
        static NAME: [u8; 255] = [b'n'; 255];
        for count in [1, 2, 15, 16, 100, 341, 342] {
            for length in [1, 7, 255] {
                let names: Vec<&[u8]> = vec![&NAME[..length]; count];
                let entries = entries(&names);
                let mut out = Vec::new();
                encode(&entries, |_| 36, &mut out);
                assert_eq!(out.len() as u64, size_bytes(&entries), "{count} names of {length}");
            }
        }
    }
}
