//! Checks the image's root directory against what Nix expects of a store directory.

use super::attributes::{check_attributes, check_mode};
use super::problem::{ProblemKind, Problems};
use crate::image::{FileTree, ImageError, Inode, InodeKind, InodeType};
use crate::store_root;

/// Checks the root's inode and the directory of hard links.
pub(super) fn check(image: &dyn FileTree, root: &Inode, problems: &Problems) {
    check_attributes(root, b"", store_root::GROUP, problems);
    check_mode(root, b"", store_root::MODE, problems);
    let links = match image.find(store_root::LINKS) {
        Ok((_, links)) => links,
        Err(ImageError::NotFound { .. }) => {
            let detail = "is not in the image, and Nix in a guest cannot create it in a read-only store";
            return problems.at(store_root::LINKS, ProblemKind::Missing, detail);
        }
        Err(error @ ImageError::At { .. }) => return problems.damage(error),
        Err(error) => return problems.damage(error.at(store_root::LINKS)),
    };
    check_attributes(&links, store_root::LINKS, 0, problems);
    match &links.kind {
        InodeKind::Directory(_) => {
            check_mode(&links, store_root::LINKS, store_root::LINKS_MODE, problems);
            let entries = image.walk_from(store_root::LINKS).map_or(0, |nodes| nodes.skip(1).take(1).count());
            if entries > 0 {
                problems.at(store_root::LINKS, ProblemKind::Extra, "is not empty");
            }
        }
        _ => {
            let detail = format!("is a {}, not a {}", links.inode_type().name(), InodeType::Directory.name());
            problems.at(store_root::LINKS, ProblemKind::Type, detail);
        }
    }
}
