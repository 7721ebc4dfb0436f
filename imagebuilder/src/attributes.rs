//! The attributes of everything in a Nix store. They are the same in every image format.

/// Modification time, in seconds since 1970.
pub const MODIFIED_AT: u32 = 1;
/// Mode of a directory.
pub const MODE_DIRECTORY: u16 = 0o555;
/// Mode of an executable file.
pub const MODE_EXECUTABLE: u16 = 0o555;
/// Mode of any other file.
pub const MODE_REGULAR: u16 = 0o444;
/// Mode of a symbolic link.
pub const MODE_SYMLINK: u16 = 0o777;
