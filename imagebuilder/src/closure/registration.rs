//! The registration text of `closureInfo` and `nix-store --dump-db`. A record has five lines, and then a line for each
//! reference:
//!
//! ```text
//! /nix/store/HASH-NAME
//! sha256:NIX32            closureInfo; bare hex from --dump-db
//! 120                     length of the NAR in bytes
//!                         the deriver, or an empty line
//! 1                       number of references
//! /nix/store/HASH-NAME    the references, possibly including the path itself
//! ```

use super::check::{ClosureProblem, ClosureRecord, Position};
use crate::nar_hash;
use crate::store_path::{LocatedStorePath, StorePath};

/// The records of a registration text, and the problems with it.
pub(super) struct Registration {
    pub(super) records: Vec<ClosureRecord>,
    pub(super) problems: Vec<ClosureProblem>,
}

/// Reads a registration text. After a wrong path, hash or size, it continues with the next line. A wrong number of
/// references ends it, because the meaning of the following lines is then unknown.
pub(super) fn parse(text: &str) -> Registration {
    let mut lines = Lines { rest: text.lines(), number: 0 };
    let mut registration = Registration { records: Vec::new(), problems: Vec::new() };
    while let Some(path) = lines.next_record() {
        match record(path, &mut lines, &mut registration.problems) {
            Ok(Some(record)) => registration.records.push(record),
            Ok(None) => {}
            Err(problem) => {
                registration.problems.push(problem);
                break;
            }
        }
    }
    registration
}

/// Reads the rest of the record that begins with the line `path`; `None` if one of its lines has a problem.
fn record(
    path: &str,
    lines: &mut Lines<'_>,
    problems: &mut Vec<ClosureProblem>,
) -> Result<Option<ClosureRecord>, ClosureProblem> {
    let known_problems = problems.len();
    let position = Position::Line(lines.number);
    let located = LocatedStorePath::parse(path)
        .map_err(|error| problems.push(ClosureProblem::NotAStorePath { position, error }))
        .ok();
    let hash = lines.next("a NAR hash")?;
    let nar_hash = nar_hash::parse(hash).map_err(|_| problems.push(lines.malformed(hash, EXPECTED_HASH))).ok();
    let size = lines.next("the size of the NAR")?;
    let nar_size_bytes =
        size.parse().map_err(|_| problems.push(lines.malformed(size, "a NAR size (a number of bytes)"))).ok();
    lines.next("the deriver (or an empty line)")?;
    let count = lines.next("the number of references")?;
    let count: usize = count.parse().map_err(|_| lines.malformed(count, "a number of references"))?;
    let mut references = Vec::new();
    for _ in 0..count {
        let reference = lines.next("a reference")?;
        match LocatedStorePath::parse(reference) {
            Ok(reference) => references.push(reference.path),
            Err(error) => {
                problems.push(ClosureProblem::NotAStorePath { position: Position::Line(lines.number), error });
            }
        }
    }
    let is_valid = problems.len() == known_problems;
    Ok(located.filter(|_| is_valid).map(|located| ClosureRecord {
        position,
        located,
        nar_hash,
        nar_size_bytes,
        references: unique(references),
    }))
}

const EXPECTED_HASH: &str = "a NAR hash (`sha256:` and Nix base 32 or hex, or bare hex)";

fn unique(mut references: Vec<StorePath>) -> Vec<StorePath> {
    references.sort();
    references.dedup();
    references
}

struct Lines<'a> {
    rest: std::str::Lines<'a>,
    /// Number of the line that was returned last, counted from 1.
    number: usize,
}

impl<'a> Lines<'a> {
    /// Returns the next line that is not empty. Empty lines between records are ignored.
    fn next_record(&mut self) -> Option<&'a str> {
        loop {
            let line = self.rest.next()?;
            self.number += 1;
            if !line.trim_end().is_empty() {
                return Some(line.trim_end());
            }
        }
    }

    fn next(&mut self, expected: &'static str) -> Result<&'a str, ClosureProblem> {
        self.number += 1;
        let line = self.rest.next();
        line.map(str::trim_end).ok_or(ClosureProblem::Truncated { position: Position::Line(self.number), expected })
    }

    fn malformed(&self, text: &str, expected: &'static str) -> ClosureProblem {
        ClosureProblem::Malformed { position: Position::Line(self.number), text: text.to_owned(), expected }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// The output of Nixpkgs' `closureInfo` for two paths.
    const CLOSURE_INFO: &str = "\
/nix/store/8cj96c53yr12pyhmdp42winkcqyydskk-b
sha256:0b31ifi74fghg3sv6m2d9bgphkcg268fig4kvqf6kcwgqb18140c
168

1
/nix/store/ww5ixrr91z8mx6fzy97kwzl5lv5slwdr-a
/nix/store/ww5ixrr91z8mx6fzy97kwzl5lv5slwdr-a
sha256:1z63q11s9hppsav4x9kh767bqr7ypmw7ncg3wjncgs4lijvx8li2
120

0
";
    /// The output of `nix-store --dump-db` (Nix 2.8.0) for the same paths, in another order.
    const DUMP_DB: &str = "\
/nix/store/ww5ixrr91z8mx6fzy97kwzl5lv5slwdr-a
2252d4b78c94e8c7ace4e3317b78bdfe64bc8e3970a64eb6d2f7c2a443c0c3fc
120

0
/nix/store/8cj96c53yr12pyhmdp42winkcqyydskk-b
0c9080c2c28fb3691cde93bce890118f4d78df4a4d54b3f578f03972a28b612c
168

1
/nix/store/ww5ixrr91z8mx6fzy97kwzl5lv5slwdr-a
";

    type Facts = (String, Option<[u8; 32]>, Option<u64>, Vec<StorePath>);

    fn sorted(text: &str) -> Vec<Facts> {
        let Registration { records, problems } = parse(text);
        assert_eq!(problems, []);
        let mut facts: Vec<_> = records
            .into_iter()
            .map(|record| (record.located.path.to_string(), record.nar_hash, record.nar_size_bytes, record.references))
            .collect();
        facts.sort();
        facts
    }

    fn problems(text: &str) -> Vec<String> {
        parse(text).problems.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn both_forms_give_the_same_records() {
        let facts = sorted(CLOSURE_INFO);
        assert_eq!(facts, sorted(DUMP_DB));
        assert_eq!(facts.len(), 2);
        assert_eq!(facts[0].3.len(), 1);
    }

    #[test]
    fn carriage_returns_and_empty_lines_between_records_are_ignored() {
        assert_eq!(sorted(&CLOSURE_INFO.replace('\n', "\r\n")), sorted(CLOSURE_INFO));
        assert_eq!(sorted(&format!("{CLOSURE_INFO}\n\n")), sorted(CLOSURE_INFO));
        assert_eq!(sorted(""), []);
    }

    #[test]
    fn all_wrong_lines_are_reported() {
        let text = CLOSURE_INFO.replace("168", "-168").replace("sha256:1z6", "sha256:ez6").replace("120", "12x0");
        assert_eq!(
            problems(&text),
            [
                "line 3: \"-168\" is not a NAR size (a number of bytes)",
                "line 8: \"sha256:ez63q11s9hppsav4x9kh767bqr7ypmw7ncg3wjncgs4lijvx8li2\" is not a NAR hash (`sha256:` and Nix \
                 base 32 or hex, or bare hex)",
                "line 9: \"12x0\" is not a NAR size (a number of bytes)",
            ]
        );
        assert_eq!(
            problems(&CLOSURE_INFO.replace("-b\n", "\n")),
            ["line 1: \"/nix/store/8cj96c53yr12pyhmdp42winkcqyydskk\" is not a store path: no dash follows the hash"]
        );
    }

    #[test]
    fn a_wrong_number_of_references_ends_the_reading() {
        assert_eq!(
            problems(&CLOSURE_INFO.replacen("\n1\n", "\none\n", 1)),
            ["line 5: \"one\" is not a number of references"]
        );
        assert_eq!(
            problems(&CLOSURE_INFO.replacen("\n0\n", "\n1\n", 1)),
            ["line 12: the text ends where a reference is expected"]
        );
        assert_eq!(
            problems(&CLOSURE_INFO[..CLOSURE_INFO.find("168").unwrap()]),
            ["line 3: the text ends where the size of the NAR is expected"]
        );
        // A loop over this number would take years, but the text ends first.
        assert_eq!(
            problems(&CLOSURE_INFO.replacen("\n0\n", "\n18446744073709551615\n", 1)),
            ["line 12: the text ends where a reference is expected"]
        );
    }

    prop_compose! {
        fn some_record()(
            name in "[0-9abcdf-np-sv-z]{32}-[a-z]{1,5}",
            hash: [u8; 32],
            size: u64,
            references in prop::collection::btree_set("[0-9abcdf-np-sv-z]{32}-[a-z]{1,5}", 0..4),
        ) -> (String, [u8; 32], u64, Vec<String>) {
            (name, hash, size, references.into_iter().collect())
        }
    }

    proptest! {
        #[test]
        fn printing_and_parsing_are_inverse(given in prop::collection::vec(some_record(), 0..6)) {
            let mut text = String::new();
            for (name, hash, size, references) in &given {
                let hash = nar_hash::print(hash);
                text.push_str(&format!("/nix/store/{name}\n{hash}\n{size}\n\n{}\n", references.len()));
                references.iter().for_each(|reference| text.push_str(&format!("/nix/store/{reference}\n")));
            }
            let Registration { records, problems } = parse(&text);
            prop_assert!(problems.is_empty());
            let read: Vec<_> = records
                .into_iter()
                .map(|record| {
                    let references = record.references.iter().map(ToString::to_string).collect();
                    (record.located.path.to_string(), record.nar_hash.unwrap(), record.nar_size_bytes.unwrap(), references)
                })
                .collect();
            prop_assert_eq!(read, given);
        }

        #[test]
        fn any_text_is_accepted_or_refused_without_a_panic(text in ".*", cut in 0..CLOSURE_INFO.len(), byte: char) {
            let _ = parse(&text);
            let _ = parse(&format!("{}{byte}{}", &CLOSURE_INFO[..cut], &CLOSURE_INFO[cut..]));
        }
    }
}
