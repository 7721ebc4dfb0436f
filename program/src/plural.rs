//! Numbers with nouns in messages.

use std::fmt::Display;

/// Returns a number and an English noun, which stays singular for 1. The noun has a regular plural.
pub fn counted<Number: Display + PartialEq + From<u8>>(number: Number, noun: &str) -> String {
    if number == Number::from(1) {
        return format!("{number} {noun}");
    }
    match noun.strip_suffix('y') {
        Some(stem) => format!("{number} {stem}ies"),
        None => format!("{number} {noun}s"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_one_thing_is_singular() {
        assert_eq!([0, 1, 2].map(|number: u64| counted(number, "file")), ["0 files", "1 file", "2 files"]);
        assert_eq!([1, 3].map(|number: usize| counted(number, "directory")), ["1 directory", "3 directories"]);
    }
}
