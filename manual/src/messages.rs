//! Checks that messages in blocks ```` ```message ```` occur in the sources, so that the programs can print them.
//!
//! `…` matches the variable parts of a message. Messages that a page can provoke should be examples instead.

use crate::error::{Error, Problem, file};
use crate::markdown::fences;
use crate::pages::Page;
use std::fs;
use std::path::Path;

/// The shortest part of a message that identifies its origin.
const SHORTEST_PART: usize = 6;

/// Returns the text of all sources with messages.
///
/// # Errors
/// When one can't be read.
pub fn sources(root: &Path) -> Result<String, Error> {
    let mut text = String::new();
    for directory in [
        "imagebuilder/src",
        "launcher/src",
        "program/src",
        "volume-maker/src",
        "nixos-modules",
        "scripts",
        "fixtures/closure",
    ] {
        collect(&root.join(directory), &mut text)?;
    }
    Ok(text)
}

fn collect(directory: &Path, text: &mut String) -> Result<(), Error> {
    for entry in fs::read_dir(directory).map_err(file("list", directory))? {
        let entry = entry.map_err(file("list", directory))?;
        let path = entry.path();
        if path.is_dir() {
            collect(&path, text)?;
        } else if path.extension().is_some_and(|extension| ["rs", "nix", "sh"].iter().any(|name| extension == *name)) {
            text.push_str(&joined(&fs::read_to_string(&path).map_err(file("read", &path))?));
        }
    }
    Ok(())
}

/// Joins string literals that continue on the next line, and unescapes quotes.
fn joined(source: &str) -> String {
    let mut pieces = source.split("\\\n");
    let first = pieces.next().unwrap_or_default().to_owned();
    let text = pieces.fold(first, |text, piece| text + piece.trim_start());
    text.replace("\\\"", "\"").replace("''${", "${")
}

/// Returns the quoted messages that do not occur in the sources.
#[must_use]
pub fn check(page: &Page, sources: &str) -> Vec<Problem> {
    let mut problems = Vec::new();
    for fence in fences(&page.text).iter().filter(|fence| fence.info == "message") {
        for (offset, line) in fence.lines.iter().enumerate() {
            let message = ["error: ", "warning: ", "hint: "].iter().find_map(|label| line.strip_prefix(label));
            let parts: Vec<_> = message.unwrap_or(line).split('…').map(str::trim).collect();
            let identifying: Vec<_> = parts.iter().filter(|part| part.len() >= SHORTEST_PART).collect();
            let text = match identifying.iter().find(|part| !sources.contains(**part)) {
                Some(part) => format!("no source says `{part}`"),
                None if identifying.is_empty() => format!("`{line}` is too short to look up"),
                None => continue,
            };
            problems.push(Problem { page: page.path.clone(), line: fence.start + 2 + offset, text });
        }
    }
    problems
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_that_is_not_in_the_sources_is_reported() {
        let text = "```message\nerror: cannot read …: it is gone\nerror: cannot fly …\n…\n```\n";
        let page = Page { path: "page.md".into(), text: text.to_owned() };
        let sources = joined("\"cannot read {path}: \\\n    it is gone\"");
        let problems: Vec<_> = check(&page, &sources).iter().map(ToString::to_string).collect();
        assert_eq!(problems, ["page.md:3: no source says `cannot fly`", "page.md:4: `…` is too short to look up"]);
    }
}
