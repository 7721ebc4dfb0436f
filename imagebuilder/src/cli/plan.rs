//! `microvm-image plan`.

use super::failure::Failure;
use super::settings::SettingsArgs;
use super::source::{Replaced, SourceArgs};
use clap::Args;
use imagebuilder::output;
use program::atomic_file;
use std::path::PathBuf;

/// Write the plan of an image
///
/// The plan is a versioned JSON document with the store paths, their hashes, the store directory and the settings. It
/// depends only on these inputs, not on the content of the store. `microvm-image build --plan FILE` builds the same image
/// as a build with the same options.
#[derive(Debug, Args)]
pub(crate) struct PlanArgs {
    #[command(flatten)]
    source: SourceArgs,
    #[command(flatten)]
    settings: SettingsArgs,
    /// File to write the plan to [default: stdout]
    #[arg(short, long, value_name = "FILE", help_heading = "Output")]
    output: Option<PathBuf>,
}

pub(crate) fn run(args: &PlanArgs) -> Result<(), Failure> {
    if let Some(path) = &args.output {
        output::check(path)?;
        args.source.refuse_as_output(path, Replaced::Plan, None)?;
    }
    let plan = args.source.plan(&args.settings)?;
    let text = plan.to_json().map_err(|error| Failure::failed(&error).with_context("cannot write the plan as JSON"))?;
    match &args.output {
        None => Ok(program::output::print(text)?),
        Some(path) => Ok(atomic_file::write(path, text.as_bytes())?),
    }
}
