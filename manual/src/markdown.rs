//! The parts of Markdown that the checks need: fences, headings, links, code spans, comments.

/// A fenced block.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fence {
    /// The text after the opening backticks.
    pub info: String,
    /// Index of the opening line, counted from 0.
    pub start: usize,
    /// Index of the closing line.
    pub end: usize,
    /// The lines between.
    pub lines: Vec<String>,
}

/// Returns the fenced blocks of a text. An unclosed block ends with the text.
#[must_use]
pub fn fences(text: &str) -> Vec<Fence> {
    let mut fences = Vec::new();
    let mut open: Option<Fence> = None;
    for (index, line) in text.lines().enumerate() {
        match (&mut open, line.strip_prefix("```")) {
            (Some(_), Some("")) => {
                if let Some(mut fence) = open.take() {
                    fence.end = index;
                    fences.push(fence);
                }
            }
            (Some(fence), _) => {
                fence.end = index + 1;
                fence.lines.push(line.to_owned());
            }
            (None, Some(info)) => {
                open = Some(Fence { info: info.trim().to_owned(), start: index, end: index + 1, lines: Vec::new() });
            }
            (None, None) => {}
        }
    }
    fences.extend(open);
    fences
}

/// Returns the lines that are neither fenced nor indented by four spaces, each with its index from 0.
pub fn prose(text: &str) -> impl Iterator<Item = (usize, &str)> {
    let fences = fences(text);
    text.lines().enumerate().filter(move |(index, line)| {
        !line.starts_with("    ") && !fences.iter().any(|fence| (fence.start..=fence.end).contains(index))
    })
}

/// Returns the line without its code spans, and the code spans.
#[must_use]
pub fn without_code(line: &str) -> (String, Vec<String>) {
    let (mut rest, mut spans) = (String::new(), Vec::new());
    for (index, part) in line.split('`').enumerate() {
        if index % 2 == 0 {
            rest.push_str(part);
        } else {
            spans.push(part.to_owned());
        }
    }
    (rest, spans)
}

/// Returns the targets of the links and pictures of a line.
#[must_use]
pub fn targets(line: &str) -> Vec<String> {
    let (line, _) = without_code(line);
    let mut targets = Vec::new();
    let mut rest = line.as_str();
    while let Some((_, behind)) = rest.split_once("](") {
        let Some((target, after)) = behind.split_once(')') else { break };
        targets.push(target.split_whitespace().next().unwrap_or_default().to_owned());
        rest = after;
    }
    targets
}

/// Returns the anchors of the headings of a text, by the rule that GitHub and mdBook share.
#[must_use]
pub fn anchors(text: &str) -> Vec<String> {
    let mut anchors: Vec<String> = Vec::new();
    for (_, line) in prose(text) {
        let heading = line.trim_start_matches('#');
        if heading.len() == line.len() || !heading.starts_with(' ') {
            continue;
        }
        let plain = anchor(heading);
        let mut unique = plain.clone();
        let mut count = 0;
        while anchors.contains(&unique) {
            count += 1;
            unique = format!("{plain}-{count}");
        }
        anchors.push(unique);
    }
    anchors
}

fn anchor(heading: &str) -> String {
    let mut text = String::new();
    let mut rest = heading.trim();
    // Only the text of a link is part of the anchor.
    while let Some((before, behind)) = rest.split_once("](") {
        text.push_str(before);
        rest = behind.split_once(')').map_or("", |(_, after)| after);
    }
    text.push_str(rest);
    text.chars()
        .filter_map(|character| match character {
            ' ' => Some('-'),
            '-' | '_' => Some(character),
            other if other.is_alphanumeric() => Some(other.to_ascii_lowercase()),
            _ => None,
        })
        .collect()
}

/// Returns the value of a comment on its own line, `<!-- KEY: VALUE -->`.
#[must_use]
pub fn comment<'a>(line: &'a str, key: &str) -> Option<&'a str> {
    let inner = line.trim().strip_prefix("<!--")?.strip_suffix("-->")?.trim();
    Some(inner.strip_prefix(key)?.strip_prefix(':')?.trim())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fences_are_found_with_their_positions() {
        let found = fences("a\n```console\n$ x\ny\n```\n```\nopen");
        assert_eq!(found.len(), 2);
        assert_eq!((found[0].info.as_str(), found[0].start, found[0].end), ("console", 1, 4));
        assert_eq!(found[0].lines, ["$ x", "y"]);
        assert_eq!((found[1].info.as_str(), found[1].end), ("", 7));
    }

    #[test]
    fn targets_of_links_and_pictures_are_found_but_not_those_in_code() {
        assert_eq!(targets("[a](b.md#c) ![d](e.svg \"title\") `[f](g)`"), ["b.md#c", "e.svg"]);
    }

    #[test]
    fn anchors_are_those_of_github_and_mdbook() {
        let text = "# The `microvm` command, all\n\n## A [link](x.md) here\n## A link here\n```\n# no\n```\n#no\n";
        assert_eq!(anchors(text), ["the-microvm-command-all", "a-link-here", "a-link-here-1"]);
        assert_eq!(anchors("### `microvm.shares.*.proto`"), ["microvmsharesproto"]);
    }

    #[test]
    fn the_value_of_a_comment_with_a_key_is_found() {
        assert_eq!(comment("<!-- run: ls -l -->", "run"), Some("ls -l"));
        assert_eq!(comment("<!-- run: ls -l -->", "made by"), None);
        assert_eq!(comment("text", "run"), None);
    }
}
