//! Extended attributes. A Nix store has none, but images from other tools can.

use super::error::{ImageError, Part};
use super::metadata::{Cursor, MetadataTable, Storage};
use super::superblock::{TakeLe, read_at};
use std::sync::Arc;

/// Bytes of an entry of the id table.
const ID_ENTRY_BYTES: u64 = 16;
/// Bytes in front of the id table's index.
const HEAD_BYTES: u64 = 16;
/// Set in the type of an attribute whose value is stored elsewhere.
const VALUE_ELSEWHERE: u16 = 0x100;
/// Longest value in bytes that Linux supports.
const MAX_VALUE_BYTES: u32 = 65_536;
/// Maximum size in bytes of all names and values of one inode. Values can be shared, so a small table can expand to
/// gigabytes.
const MAX_INODE_BYTES: usize = 4 << 20;
/// The prefix of names, by the low byte of the type.
const PREFIXES: [&str; 3] = ["user.", "trusted.", "security."];

/// The two tables of extended attributes.
#[derive(Debug)]
pub(crate) struct XattrTables {
    /// The position of the attributes of each inode that has some.
    pub(crate) ids: MetadataTable,
    /// Names and values.
    pub(crate) values: MetadataTable,
    /// Number of entries in the id table.
    pub(crate) count: u32,
    /// Where the index ends in the image.
    pub(crate) end: u64,
}

/// One extended attribute.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Xattr {
    /// Name with its prefix.
    pub name: Vec<u8>,
    /// The bytes of its value.
    pub value: Vec<u8>,
}

impl XattrTables {
    /// Opens the tables whose head is at a position of the image.
    pub(crate) fn open(storage: &Arc<Storage>, head_at: u64) -> Result<Self, ImageError> {
        let mut head = [0; HEAD_BYTES as usize];
        read_at(storage.source.as_ref(), &mut head, head_at)?;
        let mut fields = &head[..];
        let cut_off = || ImageError::damaged(Part::XattrIdTable, "its header is truncated");
        let values_at = fields.take_u64().ok_or_else(cut_off)?;
        let count = fields.take_u32().ok_or_else(cut_off)?;
        if count == 0 {
            return Err(ImageError::damaged(Part::XattrIdTable, "it has no entries"));
        }
        let length = u64::from(count) * ID_ENTRY_BYTES;
        let (ids, end) = MetadataTable::indexed(storage, Part::XattrIdTable, head_at, head_at + HEAD_BYTES, length)?;
        let values = MetadataTable::scan(storage, Part::XattrTable, values_at, ids.start())?;
        Ok(Self { ids, values, count, end })
    }

    /// Returns where the list of an entry of the id table begins, and its number of attributes.
    fn list(&self, index: u32) -> Result<(Cursor<'_>, u32), ImageError> {
        if index >= self.count {
            let reason = format!("something refers to entry {index} of {}", self.count);
            return Err(ImageError::damaged(Part::XattrIdTable, reason));
        }
        let mut cursor = self.ids.cursor(u64::from(index) * ID_ENTRY_BYTES);
        let place = self.place(cursor.u64()?)?;
        Ok((self.values.cursor(place), cursor.u32()?))
    }

    /// Reads the attributes of an entry of the id table.
    pub(crate) fn read(&self, index: u32) -> Result<Vec<Xattr>, ImageError> {
        let (mut cursor, count) = self.list(index)?;
        let mut xattrs = Vec::new();
        let mut bytes = 0;
        for _ in 0..count {
            let (name, elsewhere) = read_name(&mut cursor)?;
            let value = match elsewhere {
                false => read_value(&mut cursor)?,
                true => read_value(&mut self.values.cursor(self.value_place(&mut cursor)?))?,
            };
            bytes += name.len() + value.len();
            if bytes > MAX_INODE_BYTES {
                let reason = format!("entry {index} has too many bytes of attributes");
                return Err(ImageError::Limit { part: Part::XattrTable, reason, limit: MAX_INODE_BYTES as u64 });
            }
            xattrs.push(Xattr { name, value });
        }
        Ok(xattrs)
    }

    /// Checks all lists without reading the values. Lists must not overlap, so the time depends on the length of the
    /// table, not on the number of entries.
    pub(crate) fn check(&self) -> Result<(), ImageError> {
        let mut bytes_left = self.values.length();
        for index in 0..self.count {
            let (mut cursor, count) = self.list(index)?;
            let mut from = cursor.place();
            for _ in 0..count {
                let (_, elsewhere) = read_name(&mut cursor)?;
                match elsewhere {
                    false => skip_value(&mut cursor)?,
                    true => skip_value(&mut self.values.cursor(self.value_place(&mut cursor)?))?,
                }
                let left = bytes_left.checked_sub(cursor.place() - from);
                bytes_left = left.ok_or_else(|| {
                    ImageError::damaged(Part::XattrTable, "its lists overlap: together they are longer than the table")
                })?;
                from = cursor.place();
            }
        }
        Ok(())
    }

    /// Reads the position of a value that is not in its list.
    fn value_place(&self, cursor: &mut Cursor<'_>) -> Result<u64, ImageError> {
        if cursor.u32()? != 8 {
            return Err(ImageError::damaged(Part::XattrTable, "a reference to a value is not 8 bytes long"));
        }
        self.place(cursor.u64()?)
    }

    fn place(&self, reference: u64) -> Result<u64, ImageError> {
        let piece = u32::try_from(reference >> 16).map_err(|_| {
            ImageError::damaged(Part::XattrTable, format!("something refers to {reference:#x}, past its end"))
        })?;
        self.values.place(piece, (reference & 0xffff) as u16)
    }
}

/// Reads a name and returns it with its prefix, and whether the value is stored elsewhere.
fn read_name(cursor: &mut Cursor<'_>) -> Result<(Vec<u8>, bool), ImageError> {
    let type_number = cursor.u16()?;
    let prefix = PREFIXES.get(usize::from(type_number & 0xff));
    let prefix = prefix.filter(|_| type_number & !(VALUE_ELSEWHERE | 0xff) == 0).ok_or_else(|| {
        ImageError::damaged(Part::XattrTable, format!("an attribute has the unknown type {type_number}"))
    })?;
    let mut name = prefix.as_bytes().to_vec();
    let start = name.len();
    name.resize(start + usize::from(cursor.u16()?), 0);
    cursor.read(&mut name[start..])?;
    Ok((name, type_number & VALUE_ELSEWHERE != 0))
}

fn value_bytes(cursor: &mut Cursor<'_>) -> Result<u32, ImageError> {
    let length = cursor.u32()?;
    if length > MAX_VALUE_BYTES {
        return Err(ImageError::damaged(Part::XattrTable, format!("a value has {length} bytes")));
    }
    Ok(length)
}

fn read_value(cursor: &mut Cursor<'_>) -> Result<Vec<u8>, ImageError> {
    let mut value = vec![0; usize::try_from(value_bytes(cursor)?).unwrap_or_default()];
    cursor.read(&mut value)?;
    Ok(value)
}

fn skip_value(cursor: &mut Cursor<'_>) -> Result<(), ImageError> {
    let length = value_bytes(cursor)?;
    cursor.skip(u64::from(length))
}
