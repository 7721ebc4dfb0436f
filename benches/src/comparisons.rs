//! The list of comparisons.

use std::path::Path;

use crate::comparison::{Candidate, Comparison, Preparation};
use crate::tool::{Cache, Packing, Source, Tool};

/// The block size for comparisons: the default of all tools.
const BLOCK_BYTES: u32 = 128 * 1024;
/// The compared levels of zstd.
pub const LEVELS: [u32; 3] = [3, 9, 15];

fn ours(packing: Option<Packing>, source: Source, cache: Cache) -> Tool {
    Tool::Ours { packing, source, cache }
}

fn with(candidate: Candidate, options: &'static [&'static str]) -> Candidate {
    Candidate { tool: Tool::With(Box::new(candidate.tool), options), ..candidate }
}

fn candidate(name: &str, tool: Tool) -> Candidate {
    Candidate { name: name.to_owned(), tool, preparation: Preparation::Nothing }
}

/// Returns the comparison with the defaults of each tool, without a cache: microvm.nix's two tools, and ours.
#[must_use]
pub fn defaults() -> Comparison {
    Comparison {
        title: "cold build, defaults".to_owned(),
        candidates: vec![
            candidate("microvm-image", ours(None, Source::ClosureInfo, Cache::None)),
            candidate("gensquashfs -c zstd (microvm.nix)", Tool::Gensquashfs(None)),
            candidate("mkfs.erofs lz4hc (microvm.nix)", Tool::MkfsErofs),
        ],
    }
}

/// What filling a cache and sealing add to a build.
#[must_use]
pub fn filling(scratch: &Path) -> Comparison {
    Comparison {
        title: "first build".to_owned(),
        candidates: vec![
            candidate("microvm-image", ours(None, Source::ClosureInfo, Cache::None)),
            candidate(
                "microvm-image, filling a cache",
                ours(None, Source::ClosureInfo, Cache::At(scratch.join("cache-cold"))),
            ),
            with(candidate("microvm-image, sealed", ours(None, Source::ClosureInfo, Cache::None)), &["--verity"]),
        ],
    }
}

/// Returns the comparison with the same level and block size for all tools, which compares their implementations.
#[must_use]
pub fn same_level(level: u32) -> Comparison {
    let packing = Packing { level, block_bytes: BLOCK_BYTES };
    Comparison {
        title: format!("cold build, level {level}, 128K"),
        candidates: vec![
            candidate("microvm-image", ours(Some(packing), Source::ClosureInfo, Cache::None)),
            candidate("mksquashfs", Tool::Mksquashfs(packing)),
            candidate("gensquashfs", Tool::Gensquashfs(Some(packing))),
        ],
    }
}

/// The comparison at the lowest level of [`LEVELS`], of a store that the kernel must read from the disk.
#[must_use]
pub fn from_disk() -> Comparison {
    let Comparison { title, candidates } = same_level(LEVELS[0]);
    let from_disk = |candidate| Candidate { preparation: Preparation::NothingInMemory, ..candidate };
    Comparison { title: format!("{title}, not in memory"), candidates: candidates.into_iter().map(from_disk).collect() }
}

/// Returns the comparison of builds after one store path of 3 MB or nothing has changed, with copies of the image.
/// `image` is any build of the closure with our defaults.
#[must_use]
pub fn rebuild(scratch: &Path, image: &Path) -> Comparison {
    let cached = |name: &str, source, preparation| Candidate {
        name: format!("microvm-image, {name}"),
        tool: ours(None, source, Cache::At(scratch.join(format!("cache-{}", name.replace([' ', ','], "-"))))),
        preparation,
    };
    let new_file = Preparation::OutputRemoved;
    let copy = |name: &str, tool, preparation| Candidate { name: name.to_owned(), tool, preparation };
    Comparison {
        title: "rebuild".to_owned(),
        candidates: vec![
            copy("cp of the image into a new file", Tool::Copy(image.to_owned()), new_file),
            copy("cp and sync", Tool::CopySynced(image.to_owned()), new_file),
            cached("image from the cache into a new file", Source::ClosureInfo, new_file),
            with(cached("image from the cache, not synced", Source::ClosureInfo, new_file), &["--no-sync"]),
            with(cached("sealed image from the cache", Source::ClosureInfo, new_file), &["--verity"]),
            with(
                cached("sealed image from the cache, not synced", Source::ClosureInfo, new_file),
                &["--no-sync", "--verity"],
            ),
            cached("one path changed, new file", Source::ClosureInfo, Preparation::OnePathChanged),
            cached("nothing changed", Source::ClosureInfo, Preparation::NothingChanged),
            cached("plain list, new file", Source::PathList, new_file),
            cached("plain list, one path changed, new file", Source::PathList, Preparation::OnePathChanged),
        ],
    }
}

/// The part of [`rebuild`] for large closures: one path changed and a plain list, against copying the image.
#[must_use]
pub fn one_path_changed(scratch: &Path, image: &Path) -> Comparison {
    let candidates = rebuild(scratch, image).candidates.into_iter();
    let parts = ["microvm-image, one path changed, new file", "microvm-image, plain list, new file"];
    let is_part = |name: &str| name.starts_with("cp") || parts.contains(&name);
    Comparison {
        title: "one path changed".to_owned(),
        candidates: candidates.filter(|candidate| is_part(&candidate.name)).collect(),
    }
}

/// An image from the cache on another file system, against copying the image there.
#[must_use]
pub fn from_the_cache(file_system: &str, scratch: &Path, image: &Path) -> Comparison {
    let candidate =
        |name: &str, tool| Candidate { name: name.to_owned(), tool, preparation: Preparation::OutputRemoved };
    Comparison {
        title: format!("image from the cache, {file_system}"),
        candidates: vec![
            candidate("cp of the image into a new file", Tool::Copy(image.to_owned())),
            candidate("cp and sync", Tool::CopySynced(image.to_owned())),
            candidate("microvm-image", ours(None, Source::ClosureInfo, Cache::At(scratch.join("cache")))),
        ],
    }
}

/// An image of very many small store paths, against opening, reading and closing the files in `list`.
#[must_use]
pub fn small_paths(scratch: &Path, list: &Path) -> Comparison {
    let new_file = Preparation::OutputRemoved;
    let cache = Cache::At(scratch.join("cache"));
    Comparison {
        title: "small store paths".to_owned(),
        candidates: vec![
            Candidate {
                name: "open, read and close of every file".to_owned(),
                tool: Tool::ReadFiles(list.to_owned()),
                preparation: new_file,
            },
            Candidate {
                name: "microvm-image, from the cache".to_owned(),
                tool: ours(None, Source::ClosureInfo, cache),
                preparation: new_file,
            },
            candidate("microvm-image, without a cache", ours(None, Source::ClosureInfo, Cache::None)),
        ],
    }
}
