//! Checks that do not need the tree: positions of the tables, padding, all inodes, the export table.

use super::problem::{ProblemKind, Problems};
use crate::image::{Image, ImageError, Inode, InodeKind, InodeSet, InodeType};
use crate::squashfs::format::{IMAGE_ALIGNMENT_BYTES, flags};

/// Number of bytes after the file system that are checked. Padding is never longer.
pub(super) const MAX_PADDING_BYTES: u64 = 1 << 20;

/// The facts about all inodes, collected by reading their table.
#[derive(Debug)]
pub(super) struct Inodes {
    /// The link count in each inode, by number.
    pub(super) links: Vec<u32>,
    /// The numbers of the inodes in the table.
    pub(super) present: InodeSet,
    /// The numbers of the directories.
    pub(super) directories: InodeSet,
}

/// Checks that the tables follow each other without gaps. The kernel refuses an index that does not end where the next
/// table begins.
pub(super) fn check_layout(image: &Image, problems: &Problems) {
    let superblock = image.superblock();
    let unknown = image.unknown_flags();
    if unknown != 0 {
        problems.general(ProblemKind::Damaged, format!("superblock: flags {unknown:#06x} are unknown"));
    }
    let mut regions = image.regions();
    regions.sort_unstable_by_key(|region| (region.start, region.end));
    let mut end = superblock.inode_table;
    for region in &regions {
        if region.start != end {
            let place = if region.start < end { "overlaps what is before it" } else { "leaves a gap before it" };
            let detail =
                format!("{}: begins at byte {} and {place}, which ends at byte {end}", region.part, region.start);
            problems.general(ProblemKind::Layout, detail);
        }
        end = end.max(region.end);
    }
    if end != superblock.bytes_used {
        let detail =
            format!("superblock: says {} bytes are used, but the last table ends at byte {end}", superblock.bytes_used);
        problems.general(ProblemKind::Layout, detail);
    }
    let fragments = superblock.fragments > 0;
    if fragments && superblock.has(flags::NO_FRAGMENTS) {
        problems.general(
            ProblemKind::Damaged,
            "superblock: its flags say there are no fragments, but their number is not 0",
        );
    }
    if superblock.has(flags::EXPORTABLE) && superblock.export_table.is_none() {
        problems
            .general(ProblemKind::Export, "superblock: its flags say there is an export table, but it has no position");
    }
}

/// Checks that the file system is followed by zeros up to the next 4 KiB, and in a file up to its end.
pub(super) fn check_padding(image: &Image, trailing_bytes: u64, problems: &Problems) {
    let used = image.superblock().bytes_used;
    let padded = used.next_multiple_of(IMAGE_ALIGNMENT_BYTES);
    let length = image.length_bytes();
    if length < padded && !length.is_multiple_of(IMAGE_ALIGNMENT_BYTES) && length != used {
        problems.general(
            ProblemKind::Padding,
            format!("padding: the image ends at byte {length}, neither with nor without padding"),
        );
    }
    let allowed_bytes = if image.may_exceed_image() { 0 } else { trailing_bytes };
    let end = length.min(padded.saturating_add(allowed_bytes));
    let mut at = used;
    let mut buffer = [0; IMAGE_ALIGNMENT_BYTES as usize];
    while at < end {
        let count = usize::try_from(end - at).unwrap_or(usize::MAX).min(buffer.len());
        if let Err(error) = image.read_raw(&mut buffer[..count], at) {
            problems.damage(error);
            return;
        }
        if let Some(position) = buffer[..count].iter().position(|byte| *byte != 0) {
            let at = at + position as u64;
            problems.general(
                ProblemKind::Padding,
                format!("padding: byte {at} is not zero, but the file system ends at {used}"),
            );
            return;
        }
        at += count as u64;
    }
}

/// Reads all inodes and checks that each number is used once, that the export table is correct, that attributes are
/// readable, and that no tail is empty.
pub(super) fn check_inodes(image: &Image, problems: &Problems) -> Inodes {
    if let Err(error) = image.check_xattrs() {
        problems.damage(error);
    }
    let count = image.superblock().inodes;
    let slots = usize::try_from(count).unwrap_or(usize::MAX).saturating_add(1);
    let (present, directories) = (InodeSet::new(count), InodeSet::new(count));
    let mut inodes = Inodes { links: vec![0; slots], present, directories };
    for inode in image.inodes() {
        let inode = match inode {
            Ok(inode) => inode,
            Err(error) => {
                problems.damage(error);
                break;
            }
        };
        let number = inode.number;
        if !inodes.present.insert(number) {
            problems.general(ProblemKind::Damaged, format!("inode table: two inodes have the number {number}"));
        }
        if let Some(links) = usize::try_from(number).ok().and_then(|number| inodes.links.get_mut(number)) {
            *links = inode.links;
        }
        if inode.inode_type() == InodeType::Directory {
            inodes.directories.insert(number);
        }
        check_inode(image, &inode, problems);
    }
    inodes
}

fn check_inode(image: &Image, inode: &Inode, problems: &Problems) {
    match image.check_export(inode) {
        Ok(()) => {}
        Err(ImageError::Damaged { part, reason }) => {
            problems.general(ProblemKind::Export, format!("{part}: {reason}"));
        }
        Err(error) => problems.damage(error),
    }
    let InodeKind::File(file) = &inode.kind else { return };
    let damaged = |detail: String| problems.general(ProblemKind::Damaged, format!("inode {}: {detail}", inode.number));
    if file.fragment.is_some_and(|fragment| fragment.length == 0) {
        // Opening such a file fails with EINVAL.
        damaged("has a fragment for an empty tail".to_owned());
    }
    if file.hole_bytes > file.size_bytes {
        damaged(format!("{} of {} bytes are holes", file.hole_bytes, file.size_bytes));
    }
}
