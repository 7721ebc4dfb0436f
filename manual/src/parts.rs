//! Regenerates the parts of pages between `<!-- made by: WORDS -->` and `<!-- end of: WORDS -->`.
//!
//! `manual commands of PROGRAM` is the help of all commands of a program, `manual features of HYPERVISOR` its column of
//! the capability table. Anything else is a program with arguments that prints the part.

use crate::error::{Error, Problem};
use crate::markdown::comment;
use crate::pages::Page;
use crate::programs::output;
use serde_json::Value;
use std::fmt::Write as _;

/// Regenerates all parts of a page. Returns the new page and the parts that differ.
///
/// # Errors
/// A part has no end, or its program fails.
pub fn renew(page: &Page) -> Result<(String, Vec<Problem>), Error> {
    let (mut text, mut problems) = (String::new(), Vec::new());
    let mut lines = page.text.lines().enumerate();
    while let Some((index, line)) = lines.next() {
        let _ = writeln!(text, "{line}");
        let Some(words) = comment(line, "made by") else { continue };
        let wrong = |reason: String| Error::Page { page: page.path.clone(), line: index + 1, reason };
        let (mut found, mut is_closed) = (String::new(), false);
        for (_, inner) in lines.by_ref() {
            is_closed = comment(inner, "end of") == Some(words);
            if is_closed {
                break;
            }
            let _ = writeln!(found, "{inner}");
        }
        if !is_closed {
            return Err(wrong(format!("there is no `<!-- end of: {words} -->`")));
        }
        let made = make(words).map_err(|error| wrong(error.to_string()))?;
        if made != found {
            let text = format!("the output of `{words}` has changed: `manual parts --write` updates it");
            problems.push(Problem { page: page.path.clone(), line: index + 1, text });
        }
        let _ = writeln!(text, "{made}<!-- end of: {words} -->");
    }
    Ok((text, problems))
}

fn make(words: &str) -> Result<String, Error> {
    let words: Vec<&str> = words.split_whitespace().collect();
    match words.as_slice() {
        ["manual", "commands", "of", program] => commands(program),
        ["manual", "features", "of", hypervisor] => features(hypervisor),
        [program, arguments @ ..] => output(program, arguments),
        [] => Ok(String::new()),
    }
}

/// Returns the help of a program and all its commands.
fn commands(program: &str) -> Result<String, Error> {
    let mut text = String::new();
    write_command(&mut text, program, &[])?;
    Ok(text)
}

fn write_command(text: &mut String, program: &str, words: &[&str]) -> Result<(), Error> {
    let help = output(program, &[words, &["--help"]].concat())?;
    if !words.is_empty() {
        let _ = write!(text, "\n## {program} {}\n", words.join(" "));
    }
    let _ = write!(text, "\n```text\n{}\n```\n", help.trim_end());
    for name in command_names(&help) {
        write_command(text, program, &[words, &[name]].concat())?;
    }
    Ok(())
}

/// Returns the names in the list of commands of a help text, without `help`.
fn command_names(help: &str) -> Vec<&str> {
    let list = help.lines().skip_while(|line| *line != "Commands:").skip(1).take_while(|line| !line.is_empty());
    let named = list.filter_map(|line| line.strip_prefix("  ").filter(|line| !line.starts_with(' ')));
    named.filter_map(|line| line.split_whitespace().next()).filter(|name| *name != "help").collect()
}

/// Returns the features of one hypervisor, from the capability table.
fn features(hypervisor: &str) -> Result<String, Error> {
    let command = "microvm capabilities --json";
    let wrong = |reason: &str| Error::Program { command: command.to_owned(), reason: reason.to_owned() };
    let document = output("microvm", &["capabilities", "--json"])?;
    let table: Value = serde_json::from_str(&document).map_err(|error| wrong(&error.to_string()))?;
    let (mut can, mut cannot) = (String::new(), String::new());
    for feature in table.as_array().ok_or_else(|| wrong("it does not print a list"))? {
        let name = feature["feature"].as_str().unwrap_or_default();
        let option = match feature["option"].as_str().unwrap_or_default() {
            "" => "-".to_owned(),
            option => format!("`{option}`"),
        };
        let cell = &feature["hypervisors"][hypervisor];
        let note = cell["note"].as_str().unwrap_or_default();
        let (list, words) = match cell["supported"].as_bool() {
            Some(true) => (&mut can, if note.is_empty() { "yes" } else { note }),
            Some(false) => (&mut cannot, note),
            None => return Err(wrong(&format!("it has no column for {hypervisor}"))),
        };
        let _ = writeln!(list, "| {name} | {option} | {words} |");
    }
    Ok(format!(
        "\nSupported:\n\n| feature | field of the machine spec | how |\n|---|---|---|\n{can}\n\
         Not supported, with the reason that `microvm check` prints:\n\n| feature | field of the machine spec | why |\n|---|---|---|\n{cannot}\n"
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn page(text: &str) -> Page {
        Page { path: "page.md".into(), text: text.to_owned() }
    }

    #[test]
    fn a_part_is_updated_and_the_rest_is_unchanged() {
        let old = "a\n<!-- made by: echo new -->\nold\n<!-- end of: echo new -->\nb\n";
        let (text, problems) = renew(&page(old)).unwrap();
        assert_eq!(text, old.replace("\nold", "\nnew"));
        assert_eq!(problems.len(), 1);
        assert!(renew(&page(&text)).unwrap().1.is_empty());
    }

    #[test]
    fn a_part_without_end_or_with_a_failing_program_is_an_error() {
        assert!(renew(&page("<!-- made by: echo new -->\nold\n")).is_err());
        assert!(renew(&page("<!-- made by: false -->\n<!-- end of: false -->\n")).is_err());
    }

    #[test]
    fn the_names_of_commands_are_read_from_a_help_text() {
        let help = "About\n\nCommands:\n  run    Start\n         it\n  help   Print\n\nOptions:\n  -h\n";
        assert_eq!(command_names(help), ["run"]);
    }
}
