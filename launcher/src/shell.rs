//! Quoting words for a shell, so that the output of `explain` can be copied and run.

/// Quotes a word for a POSIX shell.
pub fn quote(word: &str) -> String {
    let plain = |character: char| character.is_ascii_alphanumeric() || "/._-+:@%,=^".contains(character);
    // Zsh expands `=word`, so an equals sign may not come first.
    if !word.is_empty() && word.chars().all(plain) && !word.starts_with(['=', '^']) {
        return word.to_owned();
    }
    format!("'{}'", word.replace('\'', r"'\''"))
}

#[cfg(test)]
mod tests {
    use super::quote;

    #[test]
    fn words_are_quoted_only_if_needed() {
        for (word, expected) in [
            ("console=ttyS0", "console=ttyS0"),
            ("", "''"),
            ("a b", "'a b'"),
            ("it's", r"'it'\''s'"),
            ("$HOME", "'$HOME'"),
            ("~", "'~'"),
            ("=x", "'=x'"),
            ("fds=[3,4]", "'fds=[3,4]'"),
        ] {
            assert_eq!(quote(word), expected);
        }
    }
}
