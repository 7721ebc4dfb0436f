//! Checks the part of the image to extract, before anything is created.

use super::{ExtractError, ExtractOptions, ExtractReport, Linked, SpecialFiles};
use crate::image::{FileTree, ImagePath, InodeKind, InodeType};

/// The mode bits setuid and setgid.
pub(super) const SET_ID_BITS: u16 = 0o6000;

/// What an extraction will create.
#[derive(Debug)]
pub(super) struct ExtractPlan {
    /// All counts except that of hard links.
    pub(super) report: ExtractReport,
    /// Length of the prefix that is removed from all paths in the output directory: the parent of the extracted path.
    pub(super) parent_bytes: usize,
}

impl ExtractPlan {
    /// Walks the tree once, to report damaged tables and special files before anything is written.
    pub(super) fn new(image: &dyn FileTree, options: ExtractOptions<'_>) -> Result<Self, ExtractError> {
        let mut report = ExtractReport { version: 1, ..ExtractReport::default() };
        let mut first_special: Option<(ImagePath, InodeType)> = None;
        let mut linked = Linked::default();
        let mut parent_bytes = 0;
        for node in image.walk_from(options.path)? {
            let node = node?;
            if node.depth == 0 {
                parent_bytes = node.path.len() - node.name().len();
            }
            if node.path.is_empty() || linked.is_later_name(&node.inode) {
                continue;
            }
            report.set_id_bits_dropped += u64::from(node.inode.mode & SET_ID_BITS != 0);
            match &node.inode.kind {
                InodeKind::Directory(_) => report.directories += 1,
                InodeKind::File(file) => {
                    report.files += 1;
                    report.bytes = report.bytes.saturating_add(file.size_bytes);
                }
                InodeKind::Symlink(_) => report.symlinks += 1,
                _ => {
                    report.special_files_skipped += 1;
                    first_special.get_or_insert_with(|| (ImagePath(node.path), node.inode.inode_type()));
                }
            }
        }
        match (first_special, options.special_files) {
            (Some((path, kind)), SpecialFiles::Refuse) => {
                Err(ExtractError::SpecialFile { path, kind, others: report.special_files_skipped - 1 })
            }
            _ => Ok(Self { report, parent_bytes }),
        }
    }
}
