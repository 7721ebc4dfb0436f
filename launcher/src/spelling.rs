//! Suggestions for misspelt words.

/// Returns the known word nearest to `word`, if it is similar enough.
pub fn nearest<'known>(word: &str, known: impl Iterator<Item = &'known str>) -> Option<&'known str> {
    let folded = fold(word);
    known
        .map(|candidate| (distance(&folded, &fold(candidate)), candidate))
        .filter(|(distance, candidate)| *distance * 3 <= word.chars().count().max(candidate.chars().count()))
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, candidate)| candidate)
}

/// Removes the differences that are confused most often: letter case, dashes and underscores.
fn fold(word: &str) -> Vec<char> {
    word.chars().filter(|character| *character != '-' && *character != '_').flat_map(char::to_lowercase).collect()
}

/// Returns the number of insertions, deletions, replacements and swaps of neighbours between two words.
fn distance(left: &[char], right: &[char]) -> usize {
    let mut table = vec![vec![0; right.len() + 1]; left.len() + 1];
    table[0] = (0..=right.len()).collect();
    for row in 1..=left.len() {
        table[row][0] = row;
        for column in 1..=right.len() {
            let replaced = table[row - 1][column - 1] + usize::from(left[row - 1] != right[column - 1]);
            let mut least = replaced.min(table[row - 1][column] + 1).min(table[row][column - 1] + 1);
            let swapped =
                row > 1 && column > 1 && left[row - 1] == right[column - 2] && left[row - 2] == right[column - 1];
            if swapped {
                least = least.min(table[row - 2][column - 2] + 1);
            }
            table[row][column] = least;
        }
    }
    table[left.len()][right.len()]
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
