//! Builds the squashfs of a Nix closure: see ARCHITECTURE.md.
