//! What Nix expects in a store directory besides the store paths. Nix creates missing parts even for commands that only
//! read, and fails if it cannot. A mounted image is read-only, so it must contain all of them.
//!
//! Nix's `LocalStore` creates `.links`, in which `nix-store --optimise` keeps its hard links. If there is a group of
//! build users, it gives the store directory to that group and sets the mode 1775 (tested with Nix 2.8 and 2.26, with
//! and without the group).

/// Mode of the store directory: build users can create entries, but not remove those of other users.
pub const MODE: u16 = 0o1775;
/// The group of the store directory. It is the number of `nixbld` in NixOS, whose stage 2 gives the directory to this
/// group.
pub const GROUP: u32 = 30_000;
/// The directory of hard links. No store path can have this name.
pub const LINKS: &[u8] = b".links";
/// Mode of the directory of hard links, the same as Nix uses.
pub const LINKS_MODE: u16 = 0o755;
