//! `microvm-image size`.

use super::failure::Failure;
use clap::Args;
use imagebuilder::open_image::OpenImage;
use imagebuilder::path_sizes::{path_sizes, path_sizes_erofs};
use std::fmt::Write;
use std::path::PathBuf;

/// Show how many bytes of an image each store path takes up
///
/// It prints one line per store path, largest first, with three sizes in bytes: `stored` is what the path adds to the
/// image, `shared` is counted as stored by another path, and `content` is the size of its files.
#[derive(Debug, Args)]
pub(crate) struct SizeArgs {
    /// Image file, or a block device with an image on it
    image: PathBuf,
    /// Show only the N largest store paths [default: all]
    #[arg(long, value_name = "N", value_parser = program::input::whole_number::<usize>)]
    top: Option<usize>,
    /// Write JSON to stdout
    #[arg(long)]
    json: bool,
}

pub(crate) fn run(args: &SizeArgs) -> Result<(), Failure> {
    let sizes = OpenImage::open(&args.image).and_then(|image| match &image {
        OpenImage::Squashfs(image) => path_sizes(image),
        OpenImage::Erofs(image) => path_sizes_erofs(image),
    });
    let mut sizes = sizes.map_err(|error| Failure::unreadable_image(&args.image, &error))?;
    // They are sorted by their size.
    sizes.paths.truncate(args.top.unwrap_or(usize::MAX));
    if args.json {
        return Ok(program::output::print_json(&sizes)?);
    }
    let mut text = format!("{:>14} {:>14} {:>14}  path\n", "stored", "shared", "content");
    for path in &sizes.paths {
        // Writing to a string does not fail.
        _ = writeln!(
            text,
            "{:>14} {:>14} {:>14}  {}",
            path.stored_bytes, path.shared_bytes, path.content_bytes, path.path
        );
    }
    _ = writeln!(text, "{:>14} {:>14} {:>14}  tables", sizes.tables_bytes, 0, 0);
    Ok(program::output::print(text)?)
}
