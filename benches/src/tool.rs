//! The compared programs, and their command lines to pack a store.

use std::path::{Path, PathBuf};
use std::process::Command;

use crate::error::Error;
use crate::store_tree::StoreTree;
use crate::workspace;

/// The number of threads of every program: all cores of a machine with two, as microvm.nix would pass.
pub const JOBS: usize = 2;

/// The source of the closure for `microvm-image`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Source {
    /// `--closure-info`: NAR hashes are known.
    ClosureInfo,
    /// `--paths-from`: no hashes are known, so content must be hashed.
    PathList,
}

/// Whether `microvm-image` uses a cache.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Cache {
    /// `--no-cache`.
    None,
    /// `--cache DIR`.
    At(PathBuf),
}

/// Level and block size, if they are not the program's defaults.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Packing {
    /// zstd's level.
    pub level: u32,
    /// Bytes of a data block before compression.
    pub block_bytes: u32,
}

/// A program with its settings.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Tool {
    /// `microvm-image build`; without packing it uses its defaults.
    Ours {
        /// Level and block size.
        packing: Option<Packing>,
        /// Where the closure comes from.
        source: Source,
        /// With or without cache.
        cache: Cache,
    },
    /// One of these with more options.
    With(Box<Tool>, &'static [&'static str]),
    /// mksquashfs of squashfs-tools.
    Mksquashfs(Packing),
    /// gensquashfs of squashfs-tools-ng; `None`: as microvm.nix calls it, `-c zstd -j N`.
    Gensquashfs(Option<Packing>),
    /// mkfs.erofs of erofs-utils as microvm.nix calls it.
    MkfsErofs,
    /// `cp` of a finished image: a lower bound for writing an image. The data may still be in memory when it ends.
    Copy(PathBuf),
    /// The same, and `sync` of the copy: images of `microvm-image` are on disk when it ends.
    CopySynced(PathBuf),
    /// Opens, reads and closes the files in a list, without a program of a peer.
    ReadFiles(PathBuf),
}

/// Where the programs are.
#[derive(Debug, Clone)]
pub struct Programs {
    /// The directory of peers.sh's wrappers.
    pub peers: PathBuf,
    /// Our own program.
    pub microvm_image: PathBuf,
}

impl Programs {
    /// Unpacks the peers with `peers.sh` and builds our own program.
    ///
    /// # Errors
    /// When they can't be unpacked or built.
    pub fn prepare() -> Result<Self, Error> {
        let peers = workspace::run(
            Command::new(workspace::root().join("benches/peers.sh")).arg(workspace::fixtures().join("peers")),
        )?;
        let microvm_image = workspace::release_program("imagebuilder", "microvm-image")?;
        Ok(Self { peers: PathBuf::from(peers.trim()).join("bin"), microvm_image })
    }
}

impl Tool {
    /// Returns the cache it uses, if any.
    #[must_use]
    pub fn cache_directory(&self) -> Option<&Path> {
        match self {
            Self::Ours { cache: Cache::At(directory), .. } => Some(directory),
            Self::With(tool, _) => tool.cache_directory(),
            _ => None,
        }
    }

    /// Returns whether it writes the output.
    #[must_use]
    pub fn makes_an_image(&self) -> bool {
        !matches!(self, Self::ReadFiles(_))
    }

    /// Returns the command that packs `tree` into `output`.
    #[must_use]
    pub fn command(&self, programs: &Programs, tree: &StoreTree, output: &Path) -> Command {
        let jobs = JOBS.to_string();
        match self {
            Self::Ours { packing, source, cache } => {
                let mut command = Command::new(&programs.microvm_image);
                command.args(["build", "--quiet", "--jobs", &jobs, "--store-dir"]).arg(tree.store());
                match source {
                    Source::ClosureInfo => command.arg("--closure-info").arg(tree.closure_info()),
                    Source::PathList => command.arg("--paths-from").arg(tree.closure_info().join("store-paths")),
                };
                match cache {
                    Cache::None => command.arg("--no-cache"),
                    Cache::At(directory) => command.arg("--cache").arg(directory),
                };
                if let Some(packing) = packing {
                    command.args(["--level", &packing.level.to_string()]);
                    command.args(["--block-size", &packing.block_bytes.to_string()]);
                }
                command.arg("--output").arg(output);
                command
            }
            Self::With(tool, options) => {
                let mut command = tool.command(programs, tree, output);
                command.args(*options);
                command
            }
            Self::Mksquashfs(packing) => {
                let mut command = Command::new(programs.peers.join("mksquashfs"));
                command.arg(tree.store()).arg(output);
                command.args([
                    "-noappend",
                    "-no-progress",
                    "-quiet",
                    "-all-root",
                    "-processors",
                    &jobs,
                    "-comp",
                    "zstd",
                ]);
                command.args([
                    "-Xcompression-level",
                    &packing.level.to_string(),
                    "-b",
                    &packing.block_bytes.to_string(),
                ]);
                command
            }
            Self::Gensquashfs(packing) => {
                let mut command = Command::new(programs.peers.join("gensquashfs"));
                command.args(["-q", "-f", "-c", "zstd", "-j", &jobs, "-D"]).arg(tree.store());
                if let Some(packing) = packing {
                    command.args(["-X", &format!("level={}", packing.level), "-b", &packing.block_bytes.to_string()]);
                }
                command.arg(output);
                command
            }
            Self::MkfsErofs => {
                let mut command = Command::new(programs.peers.join("mkfs.erofs"));
                command.args(["--quiet", "-zlz4hc", "-Eztailpacking", "-Efragments", "-T", "0", "--all-root"]);
                command.arg(output).arg(tree.store());
                command
            }
            Self::Copy(image) => {
                let mut command = Command::new("cp");
                command.arg("--reflink=never").arg(image).arg(output);
                command
            }
            Self::CopySynced(image) => {
                let mut command = Command::new("sh");
                command.args(["-ec", "cp --reflink=never \"$0\" \"$1\"; sync \"$1\""]).arg(image).arg(output);
                command
            }
            Self::ReadFiles(list) => {
                let own = std::env::current_exe().unwrap_or_else(|_| PathBuf::from("benches"));
                let mut command = Command::new(own);
                command.arg("read-files").arg(list);
                command
            }
        }
    }
}
