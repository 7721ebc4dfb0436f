//! Creates volumes, which are disk images with an empty file system, and recognises what a disk image contains.
//! `microvm` and `microvm-image` both use it.
//!
//! A volume is created as an unnamed file that mkfs reaches by its descriptor. It is read back, and gets its name only
//! if nothing else has that name: no file is ever overwritten, and no other process sees an incomplete volume.
//!
//! ```
//! use std::io::Write;
//! use volume_maker::file_system;
//!
//! // A disk image is recognised by its superblock.
//! let mut image = tempfile::tempfile()?;
//! image.write_all(b"XFSB")?;
//! image.set_len(16 << 20)?;
//! let found = file_system(&image)?.expect("an XFS superblock");
//! assert_eq!((found.fs_type, found.label.as_deref()), ("xfs", Some("")));
//! # Ok::<(), std::io::Error>(())
//! ```

mod create;
mod file_system;
mod image_format;
mod mkfs;
mod read_back;
mod request;
mod sparse;
mod superblock;

pub use create::{CommandOutput, CreateError, Run, RunError, create};
pub use file_system::{FileSystem, LabelProblem, TooSmall};
pub use image_format::{FormatKind, ImageFormat, image_format};
pub use mkfs::find as find_program;
pub use read_back::ReadBackError;
pub use request::{VolumeRequest, plain_path};
pub use superblock::{FoundFileSystem, file_system, is_recognised};
