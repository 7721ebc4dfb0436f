//! A plain list of store paths, one per line.

use super::check::{ClosureProblem, ClosureRecord, Position};
use crate::store_path::LocatedStorePath;

/// Reads a list. It is assumed to be complete, because it has no references; it has no hashes either. Blank lines, a
/// carriage return before the newline, blanks around a path and slashes after it are accepted.
pub(super) fn parse(text: &str) -> (Vec<ClosureRecord>, Vec<ClosureProblem>) {
    let (mut records, mut problems) = (Vec::new(), Vec::new());
    for (index, line) in text.lines().enumerate() {
        let (line, position) = (line.trim(), Position::Line(index + 1));
        if line.is_empty() {
            continue;
        }
        match LocatedStorePath::parse(line) {
            Ok(located) => {
                records.push(ClosureRecord {
                    position,
                    located,
                    nar_hash: None,
                    nar_size_bytes: None,
                    references: vec![],
                });
            }
            Err(error) => problems.push(ClosureProblem::NotAStorePath { position, error }),
        }
    }
    (records, problems)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const A: &str = "0aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa-a";
    const B: &str = "0bbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb-b";

    fn names(text: &str) -> Vec<String> {
        let (records, problems) = parse(text);
        assert_eq!(problems, []);
        records.into_iter().map(|record| record.located.path.to_string()).collect()
    }

    #[test]
    fn blanks_carriage_returns_and_trailing_slashes_are_accepted() {
        for text in [
            format!("/nix/store/{A}\n/nix/store/{B}\n"),
            format!("/nix/store/{A}\n/nix/store/{B}"),
            format!("/nix/store/{A}\r\n/nix/store/{B}\r\n"),
            format!("\n\n/nix/store/{A}\n\n \n/nix/store/{B}\n\n"),
            format!("/nix/store/{A}/\n/nix/store/{B}//\r\n"),
            format!("  /nix//store/{A} \n\t{B}"),
        ] {
            assert_eq!(names(&text), [A, B], "{text:?}");
        }
        assert_eq!(names(""), Vec::<String>::new());
    }

    #[test]
    fn all_lines_that_are_not_store_paths_are_reported() {
        let (records, problems) = parse(&format!("/etc/passwd\n{A}\n\n/nix/store/{B}/bin\n"));
        assert_eq!(records.len(), 1);
        let messages: Vec<String> = problems.iter().map(ToString::to_string).collect();
        assert_eq!(
            messages,
            [
                "line 1: \"/etc/passwd\" is not a store path: it is shorter than the 32 characters of the hash"
                    .to_owned(),
                format!(
                    "line 4: \"/nix/store/{B}/bin\" is not a store path: it is inside a store path; name the store path itself"
                ),
            ]
        );
    }

    proptest! {
        #[test]
        fn printing_and_parsing_are_inverse(given in prop::collection::vec("[0-9abcdf-np-sv-z]{32}-[a-z]{1,5}", 0..9)) {
            prop_assert_eq!(names(&given.join("\n")), given);
        }

        #[test]
        fn any_text_is_accepted_or_refused_without_a_panic(text in ".*") {
            let _ = parse(&text);
        }
    }
}
