//! Images by the stock tools, with all the codecs and options that change what a reader meets.

use super::tools;
use std::ffi::OsStr;
use std::path::{Path, PathBuf};

/// Codecs that both tools and our reader know.
pub const CODECS: [&str; 4] = ["gzip", "xz", "lz4", "zstd"];

/// Options of mksquashfs, each set for one more image of the same tree.
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

/// Makes an image of a directory with mksquashfs; `None` when there is none.
pub fn mksquashfs(tree: &Path, image: &Path, options: &[&str]) -> Option<()> {
    let program = tools::find("mksquashfs")?;
    let fixed = ["-noappend", "-quiet", "-no-progress"].map(AsRef::<OsStr>::as_ref);
    let options = options.iter().map(AsRef::<OsStr>::as_ref);
    tools::run(program, [tree.as_os_str(), image.as_os_str()].into_iter().chain(fixed).chain(options));
    Some(())
}

/// Makes an image of a directory with gensquashfs; `None` when there is none.
pub fn gensquashfs(tree: &Path, image: &Path, options: &[&str]) -> Option<()> {
    let program = tools::find("gensquashfs")?;
    let fixed = [OsStr::new("-q"), OsStr::new("-D"), tree.as_os_str(), image.as_os_str()];
    tools::run(program, fixed.into_iter().chain(options.iter().map(AsRef::<OsStr>::as_ref)));
    Some(())
}

/// Images of a tree by both tools, each with its command line as a name.
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
