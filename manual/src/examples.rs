//! Runs the examples of the manual and compares their output with the pages.
//!
//! A block ```` ```console ```` contains commands, each after `$ ` (continued after `> `), and their output. The
//! commands of a page run in order, in an empty directory that belongs to the page and is shown as `/home/user`.
//!
//! - `<!-- run: COMMAND -->` is a hidden command, which must succeed.
//! - The block after a line `<!-- file: NAME -->` is written to that file.
//! - In the output, `…` matches any text within a line, and a line `…` matches any lines.
//! - Progress lines of a build are left out of the output, because a fast machine prints none.
//! - In a block ```` ```console varying ````, numbers, hashes and widths of columns are not compared.

use crate::comparison::{Strictness, is_progress, matches};
use crate::error::{Error, Problem, file};
use crate::markdown::{Fence, comment, fences};
use crate::pages::Page;
use crate::programs::in_shell;
use std::fs;
use std::path::Path;

/// The name of the directory of the examples on the pages.
const SHOWN_DIRECTORY: &str = "/home/user";

/// One step of a page.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Step {
    /// Index of its first line, counted from 0.
    pub line: usize,
    /// The command for the shell.
    pub command: String,
    /// The expected result.
    pub expected: Expected,
    /// Index of the line after its last line.
    pub end: usize,
}

/// The expected result of a step.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Expected {
    /// The command succeeds, with any output.
    Success,
    /// The command prints these lines; it may fail.
    Lines(Vec<String>, Strictness),
}

/// Returns the steps of a page, shown and hidden, in order.
#[must_use]
pub fn steps(text: &str) -> Vec<Step> {
    let fences = fences(text);
    let lines: Vec<&str> = text.lines().collect();
    let fenced = |index: usize| fences.iter().any(|fence| (fence.start..=fence.end).contains(&index));
    let hidden = lines.iter().enumerate().filter(|(index, _)| !fenced(*index)).filter_map(|(line, words)| {
        let command = comment(words, "run")?.to_owned();
        Some(Step { line, command, expected: Expected::Success, end: line + 1 })
    });
    let mut steps: Vec<_> = hidden.collect();
    for fence in &fences {
        let before = fence.start.checked_sub(1).and_then(|index| lines.get(index)).copied().unwrap_or_default();
        if let Some(name) = comment(before, "file") {
            let command = format!("cat >{name} <<'END OF FILE'\n{}\nEND OF FILE", fence.lines.join("\n"));
            steps.push(Step { line: fence.start, command, expected: Expected::Success, end: fence.end });
        }
        match fence.info.as_str() {
            "console" => steps.extend(commands(fence, Strictness::Exact)),
            "console varying" => steps.extend(commands(fence, Strictness::Shape)),
            _ => {}
        }
    }
    steps.sort_by_key(|step| step.line);
    steps
}

/// Returns the commands of a block with their output.
fn commands(fence: &Fence, strictness: Strictness) -> Vec<Step> {
    let mut steps: Vec<Step> = Vec::new();
    for (offset, line) in fence.lines.iter().enumerate() {
        let line_index = fence.start + 1 + offset;
        if let Some(command) = line.strip_prefix("$ ") {
            let expected = Expected::Lines(Vec::new(), strictness);
            steps.push(Step { line: line_index, command: command.to_owned(), expected, end: line_index + 1 });
        } else if let Some(Step { command, expected: Expected::Lines(printed, _), end, .. }) = steps.last_mut() {
            *end = line_index + 1;
            match line.strip_prefix("> ") {
                Some(more) if printed.is_empty() => {
                    command.push('\n');
                    command.push_str(more);
                }
                _ => printed.push(line.clone()),
            }
        }
    }
    steps
}

/// The result of running the steps of a page.
#[derive(Debug)]
pub struct Run {
    /// Differences between the output and the page.
    pub problems: Vec<Problem>,
    /// The page with the actual output.
    pub text: String,
    /// The number of steps that were run.
    pub steps: usize,
}

/// Runs the steps of a page in the directory `scratch`, after emptying it.
///
/// # Errors
/// When the directory can't be made, bash can't be started, or a step that must succeed fails.
pub fn run(page: &Page, scratch: &Path, environment: &[(&str, String)]) -> Result<Run, Error> {
    let steps = steps(&page.text);
    let (mut problems, mut differences) = (Vec::new(), Vec::new());
    if !steps.is_empty() {
        prepare(scratch)?;
    }
    for step in &steps {
        let output = in_shell(&step.command, scratch, environment)?;
        let text = String::from_utf8_lossy(&output.stdout).replace(&scratch.display().to_string(), SHOWN_DIRECTORY);
        let lines = text.trim_end().lines().map(str::trim_end);
        let printed: Vec<String> = lines.filter(|line| !is_progress(line)).map(str::to_owned).collect();
        match &step.expected {
            Expected::Success if !output.status.success() => {
                let reason = format!("`{}` failed: {text}", step.command);
                return Err(Error::Page { page: page.path.clone(), line: step.line + 1, reason });
            }
            Expected::Lines(expected, strictness) if !matches(expected, &printed, *strictness) => {
                let text = format!("`{}` prints something else:\n{}", step.command, printed.join("\n"));
                problems.push(Problem { page: page.path.clone(), line: step.line + 1, text });
                differences.push((step, printed));
            }
            _ => {}
        }
    }
    let mut lines: Vec<String> = page.text.lines().map(str::to_owned).collect();
    for (step, printed) in differences.into_iter().rev() {
        lines.splice(step.line + step.command.lines().count()..step.end, printed);
    }
    Ok(Run { problems, text: lines.join("\n") + "\n", steps: steps.len() })
}

fn prepare(scratch: &Path) -> Result<(), Error> {
    match fs::remove_dir_all(scratch) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(file("empty", scratch)(error)),
        _ => {}
    }
    fs::create_dir_all(scratch).map_err(file("make", scratch))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_difference_is_reported_and_the_page_updated() {
        let scratch = std::env::temp_dir().join(format!("manual-example-{}", std::process::id()));
        let text = "<!-- file: f -->\n```text\nold\n```\n<!-- run: test -s f -->\n```console\n$ cat f\nold\n$ echo one &&\n> pwd\nwrong\n```\n";
        let page = Page { path: "page.md".into(), text: text.to_owned() };
        let run = run(&page, &scratch, &[]).unwrap();
        fs::remove_dir_all(&scratch).unwrap();
        assert_eq!((run.steps, run.problems.len()), (4, 1));
        assert_eq!(run.problems[0].line, 9);
        assert_eq!(run.text, text.replace("wrong", "one\n/home/user"));
    }

    #[test]
    fn a_hidden_command_that_fails_is_an_error() {
        let scratch = std::env::temp_dir().join(format!("manual-hidden-{}", std::process::id()));
        let page = Page { path: "page.md".into(), text: "<!-- run: false -->\n".to_owned() };
        let error = run(&page, &scratch, &[]).unwrap_err().to_string();
        fs::remove_dir_all(&scratch).unwrap();
        assert!(error.starts_with("page.md:1: `false` failed"), "{error}");
    }
}
