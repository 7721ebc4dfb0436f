//! Suggestions for misspelt words.

use strsim::osa_distance;

/// Returns the known word nearest to `word`, if it is similar enough.
pub fn nearest<'known>(word: &str, known: impl Iterator<Item = &'known str>) -> Option<&'known str> {
    let folded = fold(word);
    known
        .map(|candidate| (osa_distance(&folded, &fold(candidate)), candidate))
        .filter(|(distance, candidate)| *distance * 3 <= word.chars().count().max(candidate.chars().count()))
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, candidate)| candidate)
}

/// Removes the differences that are confused most often: letter case, dashes and underscores.
fn fold(word: &str) -> String {
    word.chars().filter(|character| *character != '-' && *character != '_').flat_map(char::to_lowercase).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_misspelt_word_gets_a_suggestion_and_an_unrelated_one_none() {
        let known = ["vcpu", "mem", "readOnly", "hotplugMem", "volumes"];
        for (word, expected) in [
            ("vpcu", Some("vcpu")),
            ("vcpus", Some("vcpu")),
            ("read_only", Some("readOnly")),
            ("hotplugmem", Some("hotplugMem")),
            ("volume", Some("volumes")),
            ("telephone", None),
        ] {
            assert_eq!(nearest(word, known.into_iter()), expected, "{word}");
        }
    }
}
