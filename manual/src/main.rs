//! `manual`: the checks of the manual, which scripts/manual.sh runs.

use clap::{Parser, Subcommand, ValueEnum};
use manual::error::{Error, Problem, file};
use manual::pages::{self, Page};
use manual::{examples, links, messages, parts, picture};
use std::fs;
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

/// Check the manual
#[derive(Debug, Parser)]
#[command(name = "manual", version)]
struct Arguments {
    #[command(subcommand)]
    check: Check,
}

#[derive(Debug, Subcommand)]
enum Check {
    /// Check that the targets of all links, and all named files and options, exist
    Links,
    /// Check the generated parts of pages
    Parts {
        /// Update them instead
        #[arg(long = "write", value_enum, default_value_t = Mode::Check, num_args = 0, default_missing_value = "write")]
        mode: Mode,
    },
    /// Run the examples and compare their output
    Examples {
        /// Update the pages with the output instead
        #[arg(long = "write", value_enum, default_value_t = Mode::Check, num_args = 0, default_missing_value = "write")]
        mode: Mode,
        /// Directory for the examples; each page runs in DIR/PAGE
        #[arg(long, value_name = "DIR")]
        scratch: PathBuf,
        /// Pages, relative to the root of the work tree [default: all]
        pages: Vec<PathBuf>,
    },
    /// Check that quoted messages occur in the sources
    Messages,
    /// Render the lines of a terminal on stdin, with escape sequences for colours, as SVG
    Picture,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Mode {
    Check,
    Write,
}

fn main() -> ExitCode {
    let result = run_check(Arguments::parse().check);
    let code = match &result {
        Ok(problems) if problems.is_empty() => ExitCode::SUCCESS,
        _ => ExitCode::FAILURE,
    };
    match result {
        Ok(problems) => problems.iter().for_each(|problem| message(&format!("error: {problem}"))),
        Err(error) => message(&format!("error: {error}")),
    }
    code
}

fn message(line: &str) {
    drop(writeln!(std::io::stderr(), "{line}"));
}

fn run_check(check: Check) -> Result<Vec<Problem>, Error> {
    let root = pages::root();
    let pages = pages::all(&root)?;
    match check {
        Check::Links => {
            message(&format!("manual: the links of {} pages", pages.len()));
            Ok(links::check(&root, &pages))
        }
        Check::Parts { mode } => renew_parts(&root, &pages, mode),
        Check::Examples { mode, scratch, pages: chosen } => {
            let is_chosen = |page: &&Page| page.is_in_book() && (chosen.is_empty() || chosen.contains(&page.path));
            let pages: Vec<_> = pages.iter().filter(is_chosen).collect();
            run_examples(&root, &pages, mode, &scratch)
        }
        Check::Messages => {
            let sources = messages::sources(&root)?;
            Ok(pages.iter().flat_map(|page| messages::check(page, &sources)).collect())
        }
        Check::Picture => {
            let mut text = String::new();
            std::io::stdin().read_to_string(&mut text).map_err(file("read", "stdin"))?;
            std::io::stdout().write_all(picture::svg(&text).as_bytes()).map_err(file("write", "stdout"))?;
            Ok(Vec::new())
        }
    }
}

fn renew_parts(root: &Path, pages: &[Page], mode: Mode) -> Result<Vec<Problem>, Error> {
    let mut all = Vec::new();
    for page in pages {
        let (text, problems) = parts::renew(page)?;
        all.extend(keep(root, page, (&text, problems), mode)?);
    }
    Ok(all)
}

fn run_examples(root: &Path, pages: &[&Page], mode: Mode, scratch: &Path) -> Result<Vec<Problem>, Error> {
    let fixtures =
        std::env::var("MICROVM_FIXTURES").unwrap_or_else(|_| root.join("target/fixtures").display().to_string());
    let environment = [("PROJECT", root.display().to_string()), ("MICROVM_FIXTURES", fixtures)];
    let (mut all, mut steps) = (Vec::new(), 0);
    for page in pages {
        let name = page.path.file_stem().map(PathBuf::from).unwrap_or_default();
        let run = examples::run(page, &scratch.join(name), &environment)?;
        steps += run.steps;
        all.extend(keep(root, page, (&run.text, run.problems), mode)?);
    }
    message(&format!("manual: {steps} steps of {} pages were run", pages.len()));
    Ok(all)
}

/// Writes a page that has changed, or returns its problems.
fn keep(root: &Path, page: &Page, made: (&str, Vec<Problem>), mode: Mode) -> Result<Vec<Problem>, Error> {
    let (text, problems) = made;
    if mode == Mode::Check || problems.is_empty() {
        return Ok(problems);
    }
    let path = root.join(&page.path);
    fs::write(&path, text).map_err(file("write", &path))?;
    message(&format!("manual: {} is updated", page.path.display()));
    Ok(Vec::new())
}
