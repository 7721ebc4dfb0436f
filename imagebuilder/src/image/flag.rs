//! The names of the superblock's flags.

use crate::squashfs::format::flags;

/// Flags that this project never sets.
mod other {
    /// A remnant of squashfs 3, which the kernel does not check.
    pub(super) const UNCHECKED: u16 = 1 << 2;
    /// All tails of files are in fragments.
    pub(super) const ALWAYS_FRAGMENTS: u16 = 1 << 5;
    /// Extended attributes are stored uncompressed.
    pub(super) const PLAIN_XATTRS: u16 = 1 << 8;
}

/// All flags of squashfs 4.0, in the order of their bits.
const NAMES: [(u16, &str); 12] = [
    (flags::PLAIN_INODES, "plain-inodes"),
    (flags::PLAIN_DATA, "plain-data"),
    (other::UNCHECKED, "unchecked"),
    (flags::PLAIN_FRAGMENTS, "plain-fragments"),
    (flags::NO_FRAGMENTS, "no-fragments"),
    (other::ALWAYS_FRAGMENTS, "always-fragments"),
    (flags::DUPLICATES, "duplicates"),
    (flags::EXPORTABLE, "exportable"),
    (other::PLAIN_XATTRS, "plain-xattrs"),
    (flags::NO_XATTRS, "no-xattrs"),
    (flags::CODEC_OPTIONS, "codec-options"),
    (flags::PLAIN_IDS, "plain-ids"),
];

/// Returns the names of the flags that are set.
pub(crate) fn flag_names(set: u16) -> Vec<&'static str> {
    NAMES.iter().filter(|(flag, _)| set & flag != 0).map(|(_, name)| *name).collect()
}

/// Returns the bits in `set` that are not flags of squashfs 4.0.
pub(crate) fn unknown_flags(set: u16) -> u16 {
    NAMES.iter().fold(set, |rest, (flag, _)| rest & !flag)
}
