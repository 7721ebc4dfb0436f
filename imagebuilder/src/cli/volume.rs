//! `microvm-image volume`.

use super::failure::Failure;
use super::interrupt;
use clap::builder::{PossibleValuesParser, TypedValueParser};
use clap::{Args, Subcommand};
use imagebuilder::size;
use imagebuilder::volume::{FileSystem, VolumeRequest, create};
use serde::Serialize;
use std::ffi::OsString;
use std::path::{Path, PathBuf};

/// Create volumes: writable disks for a machine
#[derive(Debug, Args)]
pub(crate) struct VolumeArgs {
    #[command(subcommand)]
    command: VolumeCommand,
}

#[derive(Debug, Subcommand)]
enum VolumeCommand {
    Create(CreateArgs),
}

const EXAMPLES: &str = "\
Example: a volume for the overlay of a writable store
  microvm-image volume create rw-store.img --size 8G \\
    --fs ext4 --label rw-store --dir store --dir work";

/// Create a sparse file with an empty file system
///
/// The volume is written completely or not at all, and never replaces an existing file. The file system's mkfs program
/// creates it, and the result is checked. Its path is the only output on stdout.
#[derive(Debug, Args)]
#[command(override_usage = "microvm-image volume create [OPTIONS] --size <SIZE>\n           --fs <FILESYSTEM> <PATH>", after_long_help = EXAMPLES)]
struct CreateArgs {
    /// File to create
    #[arg(value_name = "PATH")]
    path: PathBuf,
    /// Size in bytes, or with a unit of 1024: 512M, 10G; a multiple of 512
    #[arg(long, value_name = "SIZE", value_parser = size::parse)]
    size: u64,
    /// File system to create in it
    #[arg(long = "fs", value_name = "FILESYSTEM", value_parser = file_system_parser())]
    file_system: FileSystem,
    /// Label of the file system: at most 16 bytes for ext4, 12 for xfs, 255 for btrfs, 11 for vfat [default: none]
    #[arg(long, value_name = "LABEL")]
    label: Option<String>,
    /// Directory to create in the file system, owned by root with mode 0755; ext4 only; can be given several times
    ///
    /// The overlay of a writable store requires two directories: --dir store --dir work
    #[arg(long = "dir", value_name = "PATH")]
    directories: Vec<PathBuf>,
    /// Argument for the mkfs program, such as --mkfs-arg=-m0; can be given several times
    #[arg(long = "mkfs-arg", value_name = "ARG", allow_hyphen_values = true)]
    mkfs_arguments: Vec<OsString>,
    /// Write a JSON report to stdout instead of the volume's path
    #[arg(long)]
    json: bool,
}

/// The `--json` report.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct VolumeReport<'a> {
    version: u32,
    path: &'a Path,
    size_bytes: u64,
    file_system: &'static str,
    label: Option<&'a str>,
    directories: &'a [PathBuf],
}

pub(crate) fn run(args: VolumeArgs) -> Result<(), Failure> {
    match args.command {
        VolumeCommand::Create(args) => run_create(args),
    }
}

fn run_create(args: CreateArgs) -> Result<(), Failure> {
    let request = VolumeRequest {
        path: args.path,
        size_bytes: args.size,
        file_system: args.file_system,
        label: args.label,
        directories: args.directories,
        mkfs_arguments: args.mkfs_arguments,
    };
    create(&request, interrupt::cancel_flag())?;
    if args.json {
        return Ok(program::output::print_json(&VolumeReport {
            version: 1,
            path: &request.path,
            size_bytes: request.size_bytes,
            file_system: request.file_system.name(),
            label: request.label.as_deref(),
            directories: &request.directories,
        })?);
    }
    Ok(program::output::print_path(&request.path)?)
}

/// The file systems that can be requested, in the order of the help text.
const FILE_SYSTEMS: [FileSystem; 4] = [FileSystem::Ext4, FileSystem::Xfs, FileSystem::Btrfs, FileSystem::Vfat];

fn file_system_parser() -> impl TypedValueParser<Value = FileSystem> {
    PossibleValuesParser::new(FILE_SYSTEMS.map(FileSystem::name))
        .map(|name| FileSystem::from_name(&name).unwrap_or(FileSystem::Ext4))
}
