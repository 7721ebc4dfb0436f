//! `microvm-image cache`.

use super::cache_location::CacheDirectoryArgs;
use super::cache_serve;
use super::failure::Failure;
use clap::{Args, Subcommand};
use imagebuilder::cache::maintenance::{GcMode, fsck, gc, stat};
use imagebuilder::size;
use program::plural::counted;
use serde::Serialize;
use std::path::Path;

/// Inspect and clean up the cache
#[derive(Debug, Args)]
pub(crate) struct CacheArgs {
    #[command(subcommand)]
    command: CacheCommand,
}

#[derive(Debug, Subcommand)]
enum CacheCommand {
    /// Print the cache's directory
    Path(CommonArgs),
    /// Print the number and size of entries
    Stat(CommonArgs),
    /// Remove the least recently used entries
    ///
    /// Running builds are not disturbed: they can read what they have opened. A cache of the former layout is removed
    /// as well, once no older version of the program uses it.
    Gc {
        #[command(flatten)]
        common: CommonArgs,
        /// Size of the remaining entries in bytes, or with a unit of 1024: 500M, 20G; 0 removes everything
        #[arg(long, value_name = "SIZE", value_parser = size::parse)]
        max_size: u64,
        /// Print what would be removed, and remove nothing
        #[arg(long)]
        dry_run: bool,
    },
    /// Read all packs and remove damaged ones
    ///
    /// Builds do not depend on this: they detect and replace damaged packs.
    Fsck(CommonArgs),
    Serve(Box<cache_serve::ServeArgs>),
}

#[derive(Debug, Args)]
struct CommonArgs {
    #[command(flatten)]
    directory: CacheDirectoryArgs,
    /// Write JSON to stdout
    #[arg(long)]
    json: bool,
}

/// Version of all JSON documents of this command.
const VERSION: u32 = 2;

/// A JSON document: the cache's directory, and what was found there.
#[derive(Serialize)]
struct Document<'a, Facts: Serialize> {
    version: u32,
    path: &'a Path,
    #[serde(flatten)]
    facts: Facts,
}

pub(crate) fn run(args: CacheArgs) -> Result<(), Failure> {
    match args.command {
        CacheCommand::Path(common) => {
            let directory = common.directory.directory()?;
            if common.json { print_json(&directory, ()) } else { Ok(program::output::print_path(&directory)?) }
        }
        CacheCommand::Stat(common) => run_stat(&common),
        CacheCommand::Gc { common, max_size, dry_run } => {
            run_gc(&common, max_size, if dry_run { GcMode::DryRun } else { GcMode::Remove })
        }
        CacheCommand::Fsck(common) => run_fsck(&common),
        CacheCommand::Serve(args) => cache_serve::run(&args),
    }
}

fn print_json(path: &Path, facts: impl Serialize) -> Result<(), Failure> {
    Ok(program::output::print_json(&Document { version: VERSION, path, facts })?)
}

fn run_stat(common: &CommonArgs) -> Result<(), Failure> {
    #[derive(Serialize)]
    #[serde(rename_all = "camelCase")]
    struct Facts<Counts: Serialize> {
        #[serde(flatten)]
        counts: Counts,
        total_bytes: u64,
    }
    let directory = common.directory.existing_directory()?;
    let counts = stat(&directory)?;
    let total_bytes = counts.total_bytes();
    if common.json {
        return print_json(&directory, Facts { counts, total_bytes });
    }
    let text = format!(
        "{}\n  packs  {} of {} store paths\n  other  {}\n  total  {}\n",
        directory.display(),
        size::human(counts.pack_bytes),
        counts.packs,
        size::human(counts.other_bytes),
        size::human(total_bytes),
    );
    Ok(program::output::print(text)?)
}

fn run_gc(common: &CommonArgs, max_size: u64, collection: GcMode) -> Result<(), Failure> {
    let directory = common.directory.existing_directory()?;
    let collected = gc(&directory, max_size, collection)?;
    if common.json {
        return print_json(&directory, collected);
    }
    let verb = match collection {
        GcMode::Remove => "removed",
        GcMode::DryRun => "would remove",
    };
    let (entries, removed) = (counted(collected.removed_entries, "entry"), size::human(collected.removed_bytes));
    Ok(program::output::print(
        format!("{verb} {entries}, {removed}; {} remain\n", size::human(collected.kept_bytes)).as_bytes(),
    )?)
}

fn run_fsck(common: &CommonArgs) -> Result<(), Failure> {
    let directory = common.directory.existing_directory()?;
    let checked = fsck(&directory)?;
    if common.json {
        return print_json(&directory, checked);
    }
    for path in &checked.damaged {
        program::output::message(&format!("damaged, removed: {}", path.display()));
    }
    let (packs, damaged) = (counted(checked.entries, "pack"), checked.damaged.len());
    Ok(program::output::print(format!("read {packs}; damaged and removed: {damaged}\n"))?)
}
