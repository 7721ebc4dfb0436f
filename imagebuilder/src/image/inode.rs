//! Reads inodes. The fourteen types on disk (seven basic, seven extended) become seven kinds.

use super::error::{ImageError, Part};
use super::metadata::Cursor;
use crate::squashfs::format::{DIRECTORY_SIZE_EXTRA, NO_FRAGMENT, NO_XATTR, inode_type};

/// Difference between the number of an extended type and that of its basic type.
const EXTENDED: u16 = 7;
/// Longest symlink target in bytes. The kernel refuses longer ones, which would not fit into a page.
const MAX_TARGET_BYTES: u32 = 4096;

/// The basic types that do not occur in a Nix store.
mod other_type {
    /// Block device.
    pub(super) const BLOCK_DEVICE: u16 = 4;
    /// Character device.
    pub(super) const CHARACTER_DEVICE: u16 = 5;
    /// Named pipe.
    pub(super) const FIFO: u16 = 6;
    /// Unix socket.
    pub(super) const SOCKET: u16 = 7;
}

/// The type of an inode, without the difference between basic and extended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum InodeType {
    /// Directory.
    Directory,
    /// Regular file.
    File,
    /// Symbolic link.
    Symlink,
    /// Block device.
    BlockDevice,
    /// Character device.
    CharacterDevice,
    /// Named pipe.
    Fifo,
    /// Unix socket.
    Socket,
}

impl InodeType {
    /// All types, in the order of their numbers.
    pub const ALL: [Self; 7] = [
        Self::Directory,
        Self::File,
        Self::Symlink,
        Self::BlockDevice,
        Self::CharacterDevice,
        Self::Fifo,
        Self::Socket,
    ];

    /// Returns the type with this basic number, which directory entries contain.
    pub(crate) fn from_basic(number: u16) -> Option<Self> {
        Some(match number {
            inode_type::BASIC_DIRECTORY => Self::Directory,
            inode_type::BASIC_FILE => Self::File,
            inode_type::BASIC_SYMLINK => Self::Symlink,
            other_type::BLOCK_DEVICE => Self::BlockDevice,
            other_type::CHARACTER_DEVICE => Self::CharacterDevice,
            other_type::FIFO => Self::Fifo,
            other_type::SOCKET => Self::Socket,
            _ => return None,
        })
    }

    /// Returns its name for messages and dumps.
    pub fn name(self) -> &'static str {
        match self {
            Self::Directory => "directory",
            Self::File => "file",
            Self::Symlink => "symlink",
            Self::BlockDevice => "block-device",
            Self::CharacterDevice => "character-device",
            Self::Fifo => "fifo",
            Self::Socket => "socket",
        }
    }
}

/// The form of an inode on disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum InodeForm {
    /// The short form, without link counts for files, extended attributes, large sizes and holes.
    Basic,
    /// The long form, with all of them.
    Extended,
}

/// An inode with its user and group id already looked up.
#[derive(Clone, Debug)]
pub struct Inode {
    /// Its number, from 1 to the superblock's count.
    pub number: u32,
    /// Basic or extended.
    pub form: InodeForm,
    /// Permission bits, including setuid, setgid and sticky.
    pub mode: u16,
    /// Number of the owner, from the id table.
    pub user_id: u32,
    /// Number of the group, from the id table.
    pub group_id: u32,
    /// Modification time in seconds since 1970.
    pub modified_at: u32,
    /// Link count: the number of names that it should have.
    pub links: u32,
    /// Number of its entry in the table of extended attributes.
    pub xattr: Option<u32>,
    /// Its type, with the fields of that type.
    pub kind: InodeKind,
    /// Where it begins in the decompressed inode table.
    pub(crate) place: u64,
    /// Where it ends in that table.
    pub(crate) end: u64,
}

/// The type of an inode, with the fields of that type.
#[derive(Clone, Debug)]
pub enum InodeKind {
    /// Directory.
    Directory(DirectoryInode),
    /// Regular file.
    File(FileInode),
    /// Symbolic link and its target.
    Symlink(Vec<u8>),
    /// Block device and its number.
    BlockDevice(u32),
    /// Character device and its number.
    CharacterDevice(u32),
    /// Named pipe.
    Fifo,
    /// Unix socket.
    Socket,
}

/// A directory's listing and index.
#[derive(Clone, Debug)]
pub struct DirectoryInode {
    /// Length of the listing in bytes.
    pub listing_bytes: u32,
    /// Inode number of its parent directory.
    pub parent_number: u32,
    /// Number of entries in its index.
    pub index_entries: u16,
    /// Position of the listing: the stored piece of the directory table, and the offset in it after decompression.
    pub(crate) listing: (u32, u16),
    /// Where the index begins in the decompressed inode table.
    pub(crate) index_place: u64,
    /// Erofs: the listing is stored like the content of a file.
    pub(crate) content: Option<FileInode>,
}

/// A file's content.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FileInode {
    /// Length in bytes.
    pub size_bytes: u64,
    /// Where the first block begins in the image.
    pub start: u64,
    /// Number of blocks, not counting a tail in a fragment.
    pub blocks: u64,
    /// Number of bytes in holes, according to the inode.
    pub hole_bytes: u64,
    /// The fragment with the file's tail.
    pub fragment: Option<FragmentRef>,
    /// Squashfs: position of the size words in the decompressed inode table. Erofs: position of the tail in the image.
    pub(crate) place: u64,
}

/// A piece of a fragment block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FragmentRef {
    /// Number of the fragment block.
    pub index: u32,
    /// Where the piece begins in the decompressed block.
    pub offset: u32,
    /// Length of the piece in bytes.
    pub length: u32,
}

impl Inode {
    /// Returns the type without its fields.
    pub fn inode_type(&self) -> InodeType {
        match self.kind {
            InodeKind::Directory(_) => InodeType::Directory,
            InodeKind::File(_) => InodeType::File,
            InodeKind::Symlink(_) => InodeType::Symlink,
            InodeKind::BlockDevice(_) => InodeType::BlockDevice,
            InodeKind::CharacterDevice(_) => InodeType::CharacterDevice,
            InodeKind::Fifo => InodeType::Fifo,
            InodeKind::Socket => InodeType::Socket,
        }
    }
}

/// The facts about an image that are needed to read an inode.
#[derive(Clone, Copy, Debug)]
pub(crate) struct InodeContext<'a> {
    /// The id table.
    pub(crate) ids: &'a [u32],
    /// Number of inodes.
    pub(crate) inodes: u32,
    /// Data block size.
    pub(crate) block_size_bytes: u32,
    /// Number of fragment blocks.
    pub(crate) fragments: u32,
    /// Number of entries in the table of extended attributes.
    pub(crate) xattrs: u32,
}

/// Reads the inode at the cursor.
pub(crate) fn read_inode(mut cursor: Cursor<'_>, context: InodeContext<'_>) -> Result<Inode, ImageError> {
    let place = cursor.place();
    let part = Part::Inode(place);
    let damaged = |reason: String| ImageError::damaged(part, reason);
    let number_of_type = cursor.u16()?;
    let (form, basic) = match number_of_type {
        1..=EXTENDED => (InodeForm::Basic, number_of_type),
        _ => (InodeForm::Extended, number_of_type.wrapping_sub(EXTENDED)),
    };
    let inode_type =
        InodeType::from_basic(basic).ok_or_else(|| damaged(format!("no inode has the type {number_of_type}")))?;
    let mode = cursor.u16()?;
    if mode & !0o7777 != 0 {
        return Err(damaged(format!("its mode {mode:o} has bits that are not permissions")));
    }
    let look_up = |cursor: &mut Cursor<'_>| {
        let index = cursor.u16()?;
        let id = context.ids.get(usize::from(index)).copied();
        id.ok_or_else(|| damaged(format!("it uses id {index} of {}", context.ids.len())))
    };
    let user_id = look_up(&mut cursor)?;
    let group_id = look_up(&mut cursor)?;
    let modified_at = cursor.u32()?;
    let number = cursor.u32()?;
    if number == 0 || number > context.inodes {
        return Err(damaged(format!("its number is {number}, but there are {} inodes", context.inodes)));
    }
    let body = match (inode_type, form) {
        (InodeType::Directory, InodeForm::Basic) => read_basic_directory(&mut cursor)?,
        (InodeType::Directory, InodeForm::Extended) => read_extended_directory(&mut cursor)?,
        (InodeType::File, InodeForm::Basic) => read_basic_file(&mut cursor, context, part)?,
        (InodeType::File, InodeForm::Extended) => read_extended_file(&mut cursor, context, part)?,
        (other, form) => read_other(&mut cursor, other, form, part)?,
    };
    let xattr = (body.xattr != NO_XATTR).then_some(body.xattr);
    if xattr.is_some_and(|xattr| xattr >= context.xattrs) {
        return Err(damaged(format!("it uses extended attributes {} of {}", body.xattr, context.xattrs)));
    }
    Ok(Inode {
        number,
        form,
        mode,
        user_id,
        group_id,
        modified_at,
        links: body.links,
        xattr,
        kind: body.kind,
        place,
        end: cursor.place(),
    })
}

/// The fields that follow the first sixteen bytes, which all inodes have.
struct Body {
    links: u32,
    xattr: u32,
    kind: InodeKind,
}

fn read_basic_directory(cursor: &mut Cursor<'_>) -> Result<Body, ImageError> {
    let listing_piece = cursor.u32()?;
    let links = cursor.u32()?;
    let size = u32::from(cursor.u16()?);
    let listing = (listing_piece, cursor.u16()?);
    let parent_number = cursor.u32()?;
    let kind = InodeKind::Directory(DirectoryInode {
        listing_bytes: size.saturating_sub(DIRECTORY_SIZE_EXTRA),
        parent_number,
        index_entries: 0,
        listing,
        index_place: cursor.place(),
        content: None,
    });
    Ok(Body { links, xattr: NO_XATTR, kind })
}

fn read_extended_directory(cursor: &mut Cursor<'_>) -> Result<Body, ImageError> {
    let links = cursor.u32()?;
    let size = cursor.u32()?;
    let listing_piece = cursor.u32()?;
    let parent_number = cursor.u32()?;
    let index_entries = cursor.u16()?;
    let listing = (listing_piece, cursor.u16()?);
    let xattr = cursor.u32()?;
    let index_place = cursor.place();
    for _ in 0..index_entries {
        cursor.skip(8)?;
        let name_bytes = u64::from(cursor.u32()?) + 1;
        cursor.skip(name_bytes)?;
    }
    let kind = InodeKind::Directory(DirectoryInode {
        listing_bytes: size.saturating_sub(DIRECTORY_SIZE_EXTRA),
        parent_number,
        index_entries,
        listing,
        index_place,
        content: None,
    });
    Ok(Body { links, xattr, kind })
}

fn read_basic_file(cursor: &mut Cursor<'_>, context: InodeContext<'_>, part: Part) -> Result<Body, ImageError> {
    let start = u64::from(cursor.u32()?);
    let fragment = (cursor.u32()?, cursor.u32()?);
    let size_bytes = u64::from(cursor.u32()?);
    let sizes = FileSizes { start, size_bytes, hole_bytes: 0, fragment };
    let kind = InodeKind::File(sizes.read_words(cursor, context, part)?);
    Ok(Body { links: 1, xattr: NO_XATTR, kind })
}

fn read_extended_file(cursor: &mut Cursor<'_>, context: InodeContext<'_>, part: Part) -> Result<Body, ImageError> {
    let start = cursor.u64()?;
    let size_bytes = cursor.u64()?;
    let hole_bytes = cursor.u64()?;
    let links = cursor.u32()?;
    let fragment = (cursor.u32()?, cursor.u32()?);
    let xattr = cursor.u32()?;
    let sizes = FileSizes { start, size_bytes, hole_bytes, fragment };
    let kind = InodeKind::File(sizes.read_words(cursor, context, part)?);
    Ok(Body { links, xattr, kind })
}

/// The fields that both forms of a file have.
struct FileSizes {
    start: u64,
    size_bytes: u64,
    hole_bytes: u64,
    fragment: (u32, u32),
}

impl FileSizes {
    /// Computes the number of size words and skips them.
    fn read_words(
        self,
        cursor: &mut Cursor<'_>,
        context: InodeContext<'_>,
        part: Part,
    ) -> Result<FileInode, ImageError> {
        let block_size = u64::from(context.block_size_bytes);
        let (index, offset) = self.fragment;
        let tail = u32::try_from(self.size_bytes % block_size).unwrap_or_default();
        let (blocks, fragment) = if index == NO_FRAGMENT {
            (self.size_bytes.div_ceil(block_size), None)
        } else {
            if index >= context.fragments {
                let reason = format!("it uses fragment block {index} of {}", context.fragments);
                return Err(ImageError::damaged(part, reason));
            }
            if tail > 0 && offset.checked_add(tail).is_none_or(|end| end > context.block_size_bytes) {
                let reason = format!("its tail of {tail} bytes is at byte {offset} of fragment block {index}");
                return Err(ImageError::damaged(part, reason));
            }
            (self.size_bytes / block_size, Some(FragmentRef { index, offset, length: tail }))
        };
        let words_place = cursor.place();
        let words_bytes = blocks.checked_mul(4);
        cursor.skip(words_bytes.unwrap_or(u64::MAX)).map_err(|_| {
            ImageError::damaged(part, format!("its size of {} bytes needs more blocks than it lists", self.size_bytes))
        })?;
        Ok(FileInode {
            size_bytes: self.size_bytes,
            start: self.start,
            blocks,
            hole_bytes: self.hole_bytes,
            fragment,
            place: words_place,
        })
    }
}

fn read_other(cursor: &mut Cursor<'_>, inode_type: InodeType, form: InodeForm, part: Part) -> Result<Body, ImageError> {
    let links = cursor.u32()?;
    let kind = match inode_type {
        InodeType::Symlink => {
            let length = cursor.u32()?;
            if length == 0 || length > MAX_TARGET_BYTES {
                return Err(ImageError::damaged(part, format!("its target has {length} bytes")));
            }
            let mut target = vec![0; usize::try_from(length).unwrap_or_default()];
            cursor.read(&mut target)?;
            if target.contains(&0) {
                return Err(ImageError::damaged(part, "its target contains a zero byte"));
            }
            InodeKind::Symlink(target)
        }
        InodeType::BlockDevice => InodeKind::BlockDevice(cursor.u32()?),
        InodeType::CharacterDevice => InodeKind::CharacterDevice(cursor.u32()?),
        InodeType::Fifo => InodeKind::Fifo,
        InodeType::Socket | InodeType::Directory | InodeType::File => InodeKind::Socket,
    };
    let xattr = match form {
        InodeForm::Basic => NO_XATTR,
        InodeForm::Extended => cursor.u32()?,
    };
    Ok(Body { links, xattr, kind })
}
