//! A text that describes an image except for the content of its files, one line per item. It depends only on the
//! image, for reading, for `diff`, and for golden tests.

use crate::erofs::reader::ErofsImage;
use crate::image::{Block, Escaped, FileInode, FileTree as _, Image, ImageError, Inode, InodeForm, InodeKind, Node};
use std::io::{self, Write};
use thiserror::Error;

/// A dump is incomplete.
#[derive(Debug, Error)]
pub enum DumpError {
    /// The image is damaged.
    #[error(transparent)]
    Image(#[from] ImageError),
    /// The text cannot be written.
    #[error("cannot write the dump")]
    Write(#[from] io::Error),
}

/// Writes the dump: the superblock, the tree in the order of its names, the tables.
///
/// # Errors
/// The image is damaged, or `out` cannot be written.
pub fn dump(image: &Image, out: &mut dyn Write) -> Result<(), DumpError> {
    let superblock = image.superblock();
    write!(out, "squashfs codec={}", image.compression().name())?;
    if let Some(options) = image.codec_options() {
        write!(out, " options=({options})")?;
    }
    writeln!(
        out,
        " block-size={} made={} inodes={} bytes-used={} flags={}",
        superblock.block_size_bytes,
        superblock.made_at,
        superblock.inodes,
        superblock.bytes_used,
        image.flag_names().join(",")
    )?;
    for node in image.walk()? {
        dump_node(image, &node?, out)?;
    }
    for table in image.tables() {
        writeln!(
            out,
            "table {} at={} stored={} bytes={} blocks={} plain={}",
            table.part().to_string().replace(' ', "-"),
            table.start(),
            table.end() - table.start(),
            table.length(),
            table.pieces(),
            table.plain_pieces()
        )?;
    }
    for (index, id) in image.ids().iter().enumerate() {
        writeln!(out, "id {index} {id}")?;
    }
    for index in 0..superblock.fragments {
        let fragment = image.fragment(index)?;
        writeln!(out, "fragment {index} at={} stored={}", fragment.start, stored(fragment))?;
    }
    Ok(())
}

/// Writes `/path type mode owner:group mtime inode links` and the fields of the inode's type.
fn dump_node(image: &Image, node: &Node, out: &mut dyn Write) -> Result<(), DumpError> {
    dump_attributes(node, out)?;
    let inode = &node.inode;
    match &inode.kind {
        InodeKind::Directory(directory) => {
            write!(
                out,
                " parent={} listing={} index={}",
                directory.parent_number, directory.listing_bytes, directory.index_entries
            )?;
        }
        InodeKind::File(file) => dump_file(image, file, out)?,
        InodeKind::Symlink(target) => write!(out, " -> {}", Escaped(target))?,
        InodeKind::BlockDevice(number) | InodeKind::CharacterDevice(number) => {
            let (major, minor) = device_numbers(*number);
            write!(out, " device={major}:{minor}")?;
        }
        InodeKind::Fifo | InodeKind::Socket => {}
    }
    dump_xattrs(image, inode, out)?;
    writeln!(out)?;
    Ok(())
}

/// Writes `/path type mode owner:group mtime inode links`. A `+` after the type marks the longer form of an inode.
fn dump_attributes(node: &Node, out: &mut dyn Write) -> Result<(), DumpError> {
    let inode = &node.inode;
    let extended = if inode.form == InodeForm::Extended { "+" } else { "" };
    write!(
        out,
        "/{} {}{extended} {:04o} {}:{} mtime={} inode={} links={}",
        Escaped(&node.path),
        inode.inode_type().name(),
        inode.mode,
        inode.user_id,
        inode.group_id,
        inode.modified_at,
        inode.number,
        inode.links
    )?;
    Ok(())
}

/// Writes the location of the content: ` at=96 blocks=3450,4096p,hole*12 fragment=0+120`.
fn dump_file(image: &Image, file: &FileInode, out: &mut dyn Write) -> Result<(), DumpError> {
    write!(out, " size={}", file.size_bytes)?;
    let mut holes = 0_u64;
    let mut separator = format!(" at={} blocks=", file.start);
    let mut blocks = image.file_blocks(file);
    loop {
        let block = blocks.next().transpose()?;
        match block {
            Some(block) if block.word.is_hole() => {
                holes += 1;
                continue;
            }
            _ if holes > 0 => {
                write!(out, "{separator}hole*{holes}")?;
                holes = 0;
                ",".clone_into(&mut separator);
            }
            _ => {}
        }
        match block {
            Some(block) => write!(out, "{separator}{}", stored(block))?,
            None => break,
        }
        ",".clone_into(&mut separator);
    }
    if let Some(fragment) = file.fragment {
        write!(out, " fragment={}+{}", fragment.index, fragment.offset)?;
    }
    Ok(())
}

fn dump_xattrs(image: &Image, inode: &Inode, out: &mut dyn Write) -> Result<(), DumpError> {
    for xattr in image.xattrs(inode)? {
        write!(out, " xattr:{}={}", Escaped(&xattr.name), Escaped(&xattr.value))?;
    }
    Ok(())
}

/// Formats the stored length of a block, with a `p` if it is stored uncompressed.
fn stored(block: Block) -> String {
    let plain = if block.word.is_plain() { "p" } else { "" };
    format!("{}{plain}", block.word.stored_bytes())
}

/// Returns the major and minor number, which are packed as in the kernel's `new_decode_dev`.
fn device_numbers(number: u32) -> (u32, u32) {
    ((number >> 8) & 0xfff, (number & 0xff) | ((number >> 12) & 0xf_ff00))
}

/// Writes the dump of an erofs image: the superblock, and the tree ordered by names.
///
/// # Errors
/// The image is damaged, or `out` cannot be written.
pub fn dump_erofs(image: &ErofsImage, out: &mut dyn Write) -> Result<(), DumpError> {
    let superblock = image.superblock();
    writeln!(
        out,
        "erofs block-size={} made={} inodes={} bytes-used={} root={} features={}",
        superblock.block_bytes(),
        superblock.epoch,
        superblock.inodes,
        superblock.bytes(),
        superblock.root_nid,
        superblock.feature_names().join(",")
    )?;
    for node in image.walk()? {
        let node = node?;
        dump_attributes(&node, out)?;
        match &node.inode.kind {
            InodeKind::Directory(directory) => {
                write!(out, " listing={}", directory.listing_bytes)?;
                if let Some(content) = &directory.content {
                    dump_place(image, content, out)?;
                }
            }
            InodeKind::File(file) => {
                write!(out, " size={}", file.size_bytes)?;
                dump_place(image, file, out)?;
            }
            InodeKind::Symlink(target) => write!(out, " -> {}", Escaped(target))?,
            InodeKind::BlockDevice(number) | InodeKind::CharacterDevice(number) => {
                let (major, minor) = device_numbers(*number);
                write!(out, " device={major}:{minor}")?;
            }
            InodeKind::Fifo | InodeKind::Socket => {}
        }
        if node.inode.xattr.is_some() {
            write!(out, " xattrs")?;
        }
        writeln!(out)?;
    }
    Ok(())
}

/// Writes the location of content: ` at=8192 blocks=3 tail=120@1216`.
fn dump_place(image: &ErofsImage, file: &FileInode, out: &mut dyn Write) -> Result<(), DumpError> {
    if file.blocks > 0 {
        write!(out, " at={} blocks={}", file.start, file.blocks)?;
    }
    let in_blocks = file.blocks.saturating_mul(image.superblock().block_bytes());
    if file.size_bytes > in_blocks {
        write!(out, " tail={}@{}", file.size_bytes - in_blocks, file.place)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::device_numbers;

    #[test]
    fn device_numbers_are_unpacked_as_the_kernel_does() {
        assert_eq!(device_numbers(0x0803), (8, 3));
        // mknod with 259 and 0x1234: the upper bits of the minor number are above the major number.
        assert_eq!(device_numbers(0x0121_0334), (259, 0x1234));
    }
}
