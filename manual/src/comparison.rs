//! Compares the output of a program with a page.

/// How strictly the lines of a block are compared.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Strictness {
    /// Every character must match.
    Exact,
    /// Numbers, hashes and runs of spaces may differ: the page shows one run on one closure.
    Shape,
}

/// The first words of the progress lines that `microvm-image` prints every few seconds.
const PHASES: [&str; 4] = ["scan", "build", "tables", "publish"];

/// Returns whether a line is a progress line of a build, which a fast machine does not print: `build: 27.0/69.1 MiB,
/// …`, or only the phase while its size is unknown.
#[must_use]
pub fn is_progress(line: &str) -> bool {
    let Some(rest) = PHASES.iter().find_map(|phase| line.strip_prefix(phase)) else { return false };
    rest.is_empty()
        || rest.strip_prefix(": ").is_some_and(|facts| facts.starts_with(|first: char| first.is_ascii_digit()))
}

const ANYTHING: char = '…';
/// Length of a store path's hash in characters; hashes in hex are longer.
const HASH_LENGTH: usize = 32;

/// Returns whether the printed lines match the expected ones. In the expected lines, `…` matches any text within a
/// line, and a line `…` matches any lines.
#[must_use]
pub fn matches(expected: &[String], printed: &[String], strictness: Strictness) -> bool {
    match expected.split_first() {
        None => printed.is_empty(),
        Some((line, rest)) if line.trim() == "…" => {
            (0..=printed.len()).any(|skipped| matches(rest, &printed[skipped..], strictness))
        }
        Some((line, rest)) => printed.split_first().is_some_and(|(found, others)| {
            let is_line = match strictness {
                Strictness::Exact => line_matches(line, found),
                Strictness::Shape => line_matches(&shape(line), &shape(found)),
            };
            is_line && matches(rest, others, strictness)
        }),
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

/// Replaces each hash and number in the line with `#`, and multiple spaces with one.
fn shape(line: &str) -> String {
    let mut words = Vec::new();
    for word in line.split_whitespace() {
        let parts = word.split_inclusive(|character: char| !character.is_ascii_alphanumeric() && character != '.');
        words.push(parts.map(part_shape).collect::<String>());
    }
    words.join(" ")
}

fn part_shape(part: &str) -> String {
    let core = part.trim_end_matches(|character: char| !character.is_ascii_alphanumeric());
    let is_hash = core.len() >= HASH_LENGTH && core.chars().all(|character| character.is_ascii_alphanumeric());
    // A size may be in KiB in one run and in MiB in another.
    let is_unit = ["KiB", "MiB", "GiB"].contains(&core);
    match core {
        _ if is_hash => part.replacen(core, "#", 1),
        _ if is_unit => part.replacen(core, "B", 1),
        _ => without_digits(part),
    }
}

/// Replaces each number with `#`, also within a version such as `deb12u14`.
fn without_digits(part: &str) -> String {
    let mut text = String::new();
    let mut characters = part.chars().peekable();
    while let Some(character) = characters.next() {
        if !character.is_ascii_digit() {
            text.push(character);
            continue;
        }
        while characters.next_if(|next| next.is_ascii_digit() || *next == '.').is_some() {}
        text.push('#');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(text: &str) -> Vec<String> {
        text.lines().map(str::to_owned).collect()
    }

    #[test]
    fn ellipses_match_any_text() {
        let is = |expected, printed| matches(&lines(expected), &lines(printed), Strictness::Exact);
        assert!(is("a … c\n…\nend", "a bb c\nx\ny\nend"));
        assert!(is("a\n…", "a"));
        assert!(!is("a … c", "a b d"));
        assert!(!is("a", "a\nb"));
        assert!(!is("", "more"));
        assert!(!is("a 1", "a 2"));
    }

    #[test]
    fn progress_lines_are_recognised_and_the_summary_is_not() {
        for line in ["build: 27.0/69.1 MiB, 0% cached, ratio 0.37, 9 s left", "build: 0.0/69.1 MiB", "scan", "publish"]
        {
            assert!(is_progress(line), "{line}");
        }
        for line in ["built system.squashfs in 8.04 s", "building", "build: failed", "tables of contents", ""] {
            assert!(!is_progress(line), "{line}");
        }
    }

    #[test]
    fn shapes_do_not_contain_numbers_and_hashes() {
        let is = |expected, printed| matches(&lines(expected), &lines(printed), Strictness::Shape);
        assert!(is("built in 0.68 s", "built in 12 s"));
        assert!(is("  cache    0 B (0 %) reused", "  cache  65.0 MiB (100 %) reused"));
        assert!(is("/rn0zv2869jgrk9079mipal8h3qfwnjiv-linux 1,2", "/0c0wqvhs4gn6a6ps1q4a9qd3h2ra2bnv-linux 30,400"));
        assert!(!is("built in 0.68 s", "made in 0.68 s"));
        assert!(is("libc6-2.36-9+deb12u14", "libc6-2.37-10+deb13u1"));
        assert!(!is("ttyS0", "tty0"));
    }
}
