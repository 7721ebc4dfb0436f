//! Escaping untrusted text for display: a name in a machine spec must not move the cursor of a terminal, or add a line
//! that looks like another message.

use std::borrow::Cow;

/// Escapes all control characters, so that the text stays on one line.
pub fn one_line(text: &str) -> Cow<'_, str> {
    escaped(text, char::is_control)
}

/// Escapes all control characters except newlines and tabs.
pub fn lines(text: &str) -> Cow<'_, str> {
    escaped(text, |character| character.is_control() && character != '\n' && character != '\t')
}

fn escaped(text: &str, is_escaped: impl Fn(char) -> bool) -> Cow<'_, str> {
    if !text.contains(&is_escaped) {
        return Cow::Borrowed(text);
    }
    let mut shown = String::with_capacity(text.len() + 8);
    for character in text.chars() {
        if is_escaped(character) {
            shown.extend(character.escape_default());
        } else {
            shown.push(character);
        }
    }
    Cow::Owned(shown)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn control_characters_are_shown_as_escapes() {
        assert_eq!(one_line("a\u{1b}[31mred\nerror: no\r\u{9b}x"), "a\\u{1b}[31mred\\nerror: no\\r\\u{9b}x");
        assert_eq!(lines("a\u{1b}[31m\n\tb"), "a\\u{1b}[31m\n\tb");
        assert!(matches!(one_line("Grüße 'quoted' \\n"), Cow::Borrowed(_)));
    }
}
