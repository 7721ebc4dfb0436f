//! The list of contests.

use std::path::Path;

use crate::contest::{Contender, Contest, Preparation};
use crate::tool::{Cache, Packing, Source, Tool};

/// The block size for comparisons: the default of all tools.
const BLOCK_BYTES: u32 = 128 * 1024;
/// The compared levels of zstd.
pub const LEVELS: [u32; 3] = [3, 9, 15];

fn ours(packing: Option<Packing>, source: Source, cache: Cache) -> Tool {
    Tool::Ours { packing, source, cache }
}

fn contender(name: &str, tool: Tool) -> Contender {
    Contender { name: name.to_owned(), tool, preparation: Preparation::Nothing }
}

/// Returns the contest with the defaults of each tool, without a cache: microvm.nix's two tools, and ours.
#[must_use]
pub fn defaults(scratch: &Path) -> Contest {
    Contest {
        title: "cold build, defaults".to_owned(),
        contenders: vec![
            contender("microvm-image", ours(None, Source::ClosureInfo, Cache::None)),
            contender(
                "microvm-image, filling a cache",
                ours(None, Source::ClosureInfo, Cache::At(scratch.join("cache-cold"))),
            ),
            contender("gensquashfs -c zstd (microvm.nix)", Tool::Gensquashfs(None)),
            contender("mkfs.erofs lz4hc (microvm.nix)", Tool::MkfsErofs),
        ],
    }
}

/// Returns the contest with the same level and block size for all tools, which compares their implementations.
#[must_use]
pub fn same_level(level: u32) -> Contest {
    let packing = Packing { level, block_bytes: BLOCK_BYTES };
    Contest {
        title: format!("cold build, level {level}, 128K"),
        contenders: vec![
            contender("microvm-image", ours(Some(packing), Source::ClosureInfo, Cache::None)),
            contender("mksquashfs", Tool::Mksquashfs(packing)),
            contender("gensquashfs", Tool::Gensquashfs(Some(packing))),
        ],
    }
}

/// Returns the contest of builds after one store path of 3 MB or nothing has changed, with copies of the image. `image`
/// is any build of the closure with our defaults.
#[must_use]
pub fn rebuild(scratch: &Path, image: &Path) -> Contest {
    let cached = |name: &str, source, preparation| Contender {
        name: format!("microvm-image, {name}"),
        tool: ours(None, source, Cache::At(scratch.join(format!("cache-{}", name.replace([' ', ','], "-"))))),
        preparation,
    };
    let copy =
        |name: &str, preparation| Contender { name: name.to_owned(), tool: Tool::Copy(image.to_owned()), preparation };
    Contest {
        title: "rebuild".to_owned(),
        contenders: vec![
            copy("cp of the image", Preparation::OutputRemoved),
            copy("cp of the image over an older one", Preparation::NothingChanged),
            cached("output removed", Source::ClosureInfo, Preparation::OutputRemoved),
            cached("one path changed", Source::ClosureInfo, Preparation::OnePathChanged),
            cached("nothing changed", Source::ClosureInfo, Preparation::NothingChanged),
            cached("one path changed, plain list", Source::PathList, Preparation::OnePathChanged),
            cached("nothing changed, plain list", Source::PathList, Preparation::NothingChanged),
        ],
    }
}
