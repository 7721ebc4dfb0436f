//! The examples of the manual are run, and must print what the page says.
//!
//! A block ```` ```console ```` holds commands, each after `$ ` (and `> ` where it goes on), and what they print. The
//! commands of a page run in order in one empty directory of their own. `<!-- run: COMMAND -->` is run in between and must
//! succeed, but is not shown; a block after `<!-- file: NAME -->` is written to that file. In what is printed `…` stands for anything within a line, and a line `…` for any lines.

use crate::error::{Error, Problem, file};
use crate::markdown::{comment, fences};
use crate::pages::Page;
use crate::programs::in_shell;
use std::fs;
use std::path::Path;

const ANYTHING: char = '…';

/// One step of a page.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Example {
    /// Index of its line, from 0.
    pub line: usize,
    /// What the shell is given.
    pub command: String,
    /// The lines that it should print; none are expected of a hidden command, which must succeed.
    pub expected: Option<Vec<String>>,
    /// Index of the first line that is not its any more.
    pub end: usize,
}

/// The commands of a page, shown and hidden, in order.
#[must_use]
pub fn examples(text: &str) -> Vec<Example> {
    let fences = fences(text);
    let fenced = |index: usize| fences.iter().any(|fence| (fence.start..=fence.end).contains(&index));
    let hidden = text.lines().enumerate().filter(|(index, _)| !fenced(*index)).filter_map(|(line, words)| {
        let command = comment(words, "run")?.to_owned();
        Some(Example { line, command, expected: None, end: line + 1 })
    });
    let mut examples: Vec<_> = hidden.collect();
    let lines: Vec<&str> = text.lines().collect();
    examples.extend(fences.iter().filter_map(|fence| {
        let before = fence.start.checked_sub(1).and_then(|index| lines.get(index))?;
        let command =
            format!("cat >{} <<'END OF FILE'\n{}\nEND OF FILE", comment(before, "file")?, fence.lines.join("\n"));
        Some(Example { line: fence.start, command, expected: None, end: fence.end })
    }));
    for fence in fences.iter().filter(|fence| fence.info == "console") {
        let mut open: Option<Example> = None;
        for (offset, line) in fence.lines.iter().enumerate() {
            let index = fence.start + 1 + offset;
            if let Some(command) = line.strip_prefix("$ ") {
                examples.extend(open.take());
                open =
                    Some(Example { line: index, command: command.to_owned(), expected: Some(vec![]), end: index + 1 });
            } else if let Some(example) = &mut open {
                example.end = index + 1;
                let printed = example.expected.get_or_insert_default();
                match line.strip_prefix("> ") {
                    Some(more) if printed.is_empty() => example.command.push_str(&format!("\n{more}")),
                    _ => printed.push(line.clone()),
                }
            }
        }
        examples.extend(open);
    }
    examples.sort_by_key(|example| example.line);
    examples
}

/// What running the examples of a page came to.
#[derive(Debug)]
pub struct Run {
    /// Where what was printed is not what the page says.
    pub problems: Vec<Problem>,
    /// The page with what was printed.
    pub text: String,
    /// How many commands were run.
    pub commands: usize,
}

/// Runs the examples of a page in `scratch/NAME`, which is emptied before.
///
/// # Errors
/// When the directory can't be made, bash can't be started, or a hidden command fails.
pub fn run(page: &Page, scratch: &Path, environment: &[(&str, String)]) -> Result<Run, Error> {
    let examples = examples(&page.text);
    let mut lines: Vec<String> = page.text.lines().map(str::to_owned).collect();
    let mut problems = Vec::new();
    if !examples.is_empty() {
        prepare(scratch)?;
    }
    let mut printed_of = Vec::new();
    for example in &examples {
        let output = in_shell(&example.command, scratch, environment)?;
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let printed: Vec<String> = text.trim_end().lines().map(|line| line.trim_end().to_owned()).collect();
        match &example.expected {
            None if !output.status.success() => {
                let reason = format!("`{}` failed: {text}", example.command);
                return Err(Error::Page { page: page.path.clone(), line: example.line + 1, reason });
            }
            None => {}
            Some(expected) if !matches(expected, &printed) => {
                let text = format!("`{}` prints something else:\n{}", example.command, printed.join("\n"));
                problems.push(Problem { page: page.path.clone(), line: example.line + 1, text });
                printed_of.push((example, printed));
            }
            Some(_) => {}
        }
    }
    for (example, printed) in printed_of.into_iter().rev() {
        let shown = example.command.lines().count();
        lines.splice(example.line + shown..example.end, printed.iter().map(|line| without_times(line)));
    }
    Ok(Run { problems, text: lines.join("\n") + "\n", commands: examples.len() })
}

fn prepare(scratch: &Path) -> Result<(), Error> {
    match fs::remove_dir_all(scratch) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(file("empty", scratch)(error)),
        _ => {}
    }
    fs::create_dir_all(scratch).map_err(file("make", scratch))
}

/// Whether the printed lines are the expected ones.
fn matches(expected: &[String], printed: &[String]) -> bool {
    match expected.split_first() {
        None => printed.is_empty(),
        Some((line, rest)) if line.trim() == "…" => {
            (0..=printed.len()).any(|skipped| matches(rest, &printed[skipped..]))
        }
        Some((line, rest)) => {
            printed.split_first().is_some_and(|(found, others)| line_matches(line, found) && matches(rest, others))
        }
    }
}

fn line_matches(expected: &str, printed: &str) -> bool {
    let Some((first, rest)) = expected.split_once(ANYTHING) else { return expected == printed };
    let Some(mut printed) = printed.strip_prefix(first) else { return false };
    let mut parts: Vec<_> = rest.split(ANYTHING).collect();
    let last = parts.pop().unwrap_or_default();
    for part in parts {
        match printed.split_once(part) {
            Some((_, after)) => printed = after,
            None => return false,
        }
    }
    printed.ends_with(last)
}

/// The line with `…` for the seconds and memory of `in 0.68 s` and `47.9 MiB at most`, which no two runs have alike.
fn without_times(line: &str) -> String {
    let words: Vec<&str> = line.split(' ').collect();
    let is_number = |word: &str| !word.is_empty() && word.chars().all(|digit| digit.is_ascii_digit() || digit == '.');
    let shown = words.iter().enumerate().map(|(index, word)| {
        let next = words.get(index + 1).copied().unwrap_or_default().trim_end_matches([',', ';', ':']);
        let is_memory = next == "MiB" && words.get(index + 2) == Some(&"at");
        if is_number(word) && (["s", "ms", "min"].contains(&next) || is_memory) { "…" } else { word }
    });
    shown.collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(text: &str) -> Vec<String> {
        text.lines().map(str::to_owned).collect()
    }

    #[test]
    fn ellipses_stand_for_anything() {
        assert!(matches(&lines("a … c\n…\nend"), &lines("a bb c\nx\ny\nend")));
        assert!(matches(&lines("a\n…"), &lines("a")));
        assert!(!matches(&lines("a … c"), &lines("a b d")));
        assert!(!matches(&lines("a"), &lines("a\nb")));
        assert!(!matches(&[], &lines("more")));
    }

    #[test]
    fn a_page_is_run_compared_and_written_anew() {
        let scratch = std::env::temp_dir().join(format!("manual-example-{}", std::process::id()));
        let text = "<!-- file: f -->\n```text\nold\n```\n<!-- run: test -s f -->\n```console\n$ cat f\nold\n$ echo one &&\n> echo built in 1.5 s\nwrong\n```\n";
        let page = Page { path: "page.md".into(), text: text.to_owned() };
        let run = run(&page, &scratch, &[]).unwrap();
        fs::remove_dir_all(&scratch).unwrap();
        assert_eq!(run.problems.len(), 1);
        assert_eq!(run.problems[0].line, 9);
        assert_eq!(run.text, text.replace("wrong", "one\nbuilt in … s"));
    }

    #[test]
    fn a_hidden_command_must_succeed() {
        let scratch = std::env::temp_dir().join(format!("manual-hidden-{}", std::process::id()));
        let page = Page { path: "page.md".into(), text: "<!-- run: false -->\n".to_owned() };
        let error = run(&page, &scratch, &[]).unwrap_err().to_string();
        fs::remove_dir_all(&scratch).unwrap();
        assert!(error.starts_with("page.md:1: `false` failed"), "{error}");
    }
}
