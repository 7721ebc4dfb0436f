//! `microvm-image inspect`.

use super::failure::Failure;
use clap::Args;
use imagebuilder::dump::{DumpError, dump, dump_erofs};
use imagebuilder::inspect::{BlockFacts, ImageFacts, inspect, inspect_erofs};
use imagebuilder::open_image::OpenImage;
use program::plural::counted;
use std::fmt::Write as _;
use std::io::{self, BufWriter, Write as _};
use std::path::PathBuf;

/// Show the structure of an image
///
/// With --tree, print a line for everything in it. The output depends only on the image, so that you can compare two
/// dumps with diff. Unprintable bytes are written as \xNN.
#[derive(Debug, Args)]
pub(crate) struct InspectArgs {
    /// Image file, or a block device with an image on it
    image: PathBuf,
    /// Print every inode, fragment and table as a line of text
    #[arg(long, conflicts_with = "json")]
    tree: bool,
    /// Write JSON to stdout
    #[arg(long)]
    json: bool,
}

pub(crate) fn run(args: &InspectArgs) -> Result<(), Failure> {
    let unreadable = |error: &(dyn std::error::Error + 'static)| Failure::unreadable_image(&args.image, error);
    let image = OpenImage::open(&args.image).map_err(|error| unreadable(&error))?;
    if args.tree {
        let mut out = BufWriter::new(io::stdout().lock());
        let dumped = match &image {
            OpenImage::Squashfs(image) => dump(image, &mut out),
            OpenImage::Erofs(image) => dump_erofs(image, &mut out),
        };
        return match dumped.and_then(|()| Ok(out.flush()?)) {
            // A reader that closes the pipe early, such as `head`, is not a failure.
            Err(DumpError::Write(error)) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
            Err(error) => Err(unreadable(&error)),
            Ok(()) => Ok(()),
        };
    }
    let facts = match &image {
        OpenImage::Squashfs(image) => inspect(image),
        OpenImage::Erofs(image) => inspect_erofs(image),
    };
    let facts = facts.map_err(|error| unreadable(&error))?;
    if args.json {
        return Ok(program::output::print_json(&facts)?);
    }
    Ok(program::output::print(text(&facts))?)
}

/// Formats the facts as lines with a name and a value.
fn text(facts: &ImageFacts) -> String {
    let mut out = String::new();
    let mut line = |name: &str, value: String| {
        // Writing to a string does not fail.
        _ = writeln!(out, "{name:<18}{value}");
    };
    line("format", facts.format.to_owned());
    let level = facts.level.map(|level| format!(" level {level}")).unwrap_or_default();
    line("codec", format!("{}{level}", facts.codec));
    line("block size", format!("{} bytes", facts.block_size_bytes));
    line("image", format!("{} bytes, {} used", facts.image_bytes, facts.bytes_used));
    if let Some(root_hash) = &facts.verity_root_hash {
        line("verity", format!("root hash {root_hash}"));
    }
    line("flags", facts.flags.join(" "));
    let inodes = &facts.inodes;
    line("inodes", inodes.total.to_string());
    line("  directories", inodes.directories.to_string());
    line("  files", format!("{} and {}", inodes.files, counted(inodes.hard_links, "hard link")));
    line("  symlinks", inodes.symlinks.to_string());
    line("  special", inodes.special.to_string());
    line("  with xattrs", inodes.with_xattrs.to_string());
    line("content", format!("{} bytes, {} in holes", facts.content_bytes, facts.hole_bytes));
    line("duplicates", format!("{}, {} bytes", counted(facts.duplicate_files, "file"), facts.duplicate_bytes));
    line("data blocks", blocks(&facts.data_blocks));
    line("fragment blocks", blocks(&facts.fragment_blocks));
    for table in &facts.tables {
        let value = format!(
            "{} bytes of {}, in {}, {} plain",
            table.stored_bytes,
            table.bytes,
            counted(table.blocks, "block"),
            table.plain_blocks
        );
        line(&table.name, value);
    }
    out
}

fn blocks(facts: &BlockFacts) -> String {
    format!("{} in {} bytes, {} plain", facts.blocks, facts.stored_bytes, facts.plain_blocks)
}
