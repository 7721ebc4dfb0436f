//! What Nix expects of a store directory beside the store paths. It makes and changes what it misses, even for a command
//! that only reads, and fails where it cannot: in an image nothing can be made later.
//!
//! Nix' `LocalStore` makes `.links`, in which `nix-store --optimise` keeps its hard links, and where a group of build users
//! exists it gives the store directory to it, with mode 1775 (tried with Nix 2.8 and 2.26, with and without the group).

/// Mode of the store directory: the build users may add to it, and nobody may remove what is another's.
pub const MODE: u16 = 0o1775;
/// The group of the store directory. NixOS gives its `nixbld` this number, and its stage 2 this group to the directory.
pub const GROUP: u32 = 30_000;
/// The directory of hard links. No store path has such a name.
pub const LINKS: &[u8] = b".links";
/// Its mode, as Nix makes it.
pub const LINKS_MODE: u16 = 0o755;
