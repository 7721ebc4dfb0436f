//! Images made by the stock tools, with all codecs and options that matter for a reader.

use super::tools;
use std::ffi::OsStr;
use std::path::{Path, PathBuf};

/// Codecs that both tools and our reader support.
pub const CODECS: [&str; 4] = ["gzip", "xz", "lz4", "zstd"];

/// Sets of options for mksquashfs. Each is used for one image of the same tree.
const MKSQUASHFS_OPTIONS: [&[&str]; 8] = [
    &["-comp", "zstd", "-b", "4096"],
    &["-comp", "zstd", "-b", "1048576", "-Xcompression-level", "1"],
    &["-comp", "gzip", "-noI", "-noD", "-noF", "-noX"],
    &["-comp", "zstd", "-noI"],
    &["-comp", "gzip", "-no-fragments", "-no-exports", "-Xcompression-level", "3"],
    &["-comp", "xz", "-no-duplicates", "-Xbcj", "x86"],
    &["-comp", "lz4", "-Xhc", "-nopad"],
    &["-comp", "gzip", "-tailends", "-all-root", "-all-time", "1"],
];

/// Makes an image of a directory with mksquashfs; `None` if it is not installed.
pub fn mksquashfs(tree: &Path, image: &Path, options: &[&str]) -> Option<()> {
    let program = testing::find_tool("mksquashfs")?;
    let fixed = ["-noappend", "-quiet", "-no-progress"].map(AsRef::<OsStr>::as_ref);
    let options = options.iter().map(AsRef::<OsStr>::as_ref);
    tools::run(program, [tree.as_os_str(), image.as_os_str()].into_iter().chain(fixed).chain(options));
    Some(())
}

/// Makes an image of a directory with gensquashfs; `None` if it is not installed.
pub fn gensquashfs(tree: &Path, image: &Path, options: &[&str]) -> Option<()> {
    let program = testing::find_tool("gensquashfs")?;
    let fixed = [OsStr::new("-q"), OsStr::new("-D"), tree.as_os_str(), image.as_os_str()];
    tools::run(program, fixed.into_iter().chain(options.iter().map(AsRef::<OsStr>::as_ref)));
    Some(())
}

/// Makes images of a tree with both tools. Each has its command line as its name.
pub fn images(tree: &Path, directory: &Path) -> Vec<(String, PathBuf)> {
    let mut images = Vec::new();
    let path = |number: usize| directory.join(format!("image-{number}"));
    let plain: Vec<Vec<&str>> = CODECS.iter().map(|codec| vec!["-comp", *codec]).collect();
    for options in plain.iter().map(Vec::as_slice).chain(MKSQUASHFS_OPTIONS) {
        let image = path(images.len());
        if mksquashfs(tree, &image, options).is_some() {
            images.push((format!("mksquashfs {options:?}"), image));
        }
    }
    for codec in CODECS {
        let image = path(images.len());
        if gensquashfs(tree, &image, &["-c", codec, "--keep-time", "--exportable"]).is_some() {
            images.push((format!("gensquashfs {codec}"), image));
        }
    }
    images
}
