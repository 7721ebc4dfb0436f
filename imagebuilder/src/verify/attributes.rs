//! Checks the attributes of an inode.

use super::problem::{ProblemKind, Problems};
use crate::image::Inode;

/// Modification time of everything in a Nix store, in seconds since 1970.
const STORE_TIME: u32 = 1;

/// Checks the owner, which must be root, the group, the time and the extended attributes.
pub(super) fn check_attributes(inode: &Inode, path: &[u8], group: u32, problems: &Problems) {
    if (inode.user_id, inode.group_id) != (0, group) {
        let detail = format!("belongs to {}:{}, not to 0:{group}", inode.user_id, inode.group_id);
        problems.at(path, ProblemKind::Owner, detail);
    }
    if inode.modified_at != STORE_TIME {
        problems.at(path, ProblemKind::Time, format!("was modified at {}, not at 1", inode.modified_at));
    }
    if inode.xattr.is_some() {
        problems.at(path, ProblemKind::Xattrs, "has extended attributes, which store paths do not have");
    }
}

/// Checks the permission bits.
pub(super) fn check_mode(inode: &Inode, path: &[u8], mode: u16, problems: &Problems) {
    if inode.mode != mode {
        problems.at(path, ProblemKind::Mode, format!("has mode {:04o}, not {mode:04o}", inode.mode));
    }
}
