//! Untrusted text in messages. A name in a machine spec or an image must not move the cursor of the terminal on which
//! an error about it is printed, and must not add a line that looks like another message.

use std::borrow::Cow;
use std::fmt::{self, Write};

/// Escapes all control characters, so that the text stays on one line.
pub fn one_line(text: &str) -> Cow<'_, str> {
    escaped(text, char::is_control)
}

/// Shows a text like [`one_line`]. Of a longer text, shows the beginning and the end, each with half of that many characters.
pub fn excerpt(text: &str, most_characters: usize) -> Cow<'_, str> {
    let length = text.chars().count();
    if length <= most_characters {
        return one_line(text);
    }
    let half = most_characters / 2;
    let begin: String = text.chars().take(half).collect();
    let end: String = text.chars().skip(length - half).collect();
    Cow::Owned(format!("{}…{}", one_line(&begin), one_line(&end)))
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

/// Shows bytes as text without whitespace: printable UTF-8 is unchanged, everything else becomes `\xNN`.
///
/// It escapes backslashes, whitespace, control characters, bytes that are not UTF-8, and characters that reorder text
/// on a terminal. Different byte strings always give different texts, and the bytes can be recovered from the text.
#[derive(Clone, Copy, Debug)]
pub struct Escaped<'a>(pub &'a [u8]);

/// Returns whether a character changes the order in which a terminal shows others.
fn reorders_text(character: char) -> bool {
    matches!(character, '\u{200e}' | '\u{200f}' | '\u{061c}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

impl fmt::Display for Escaped<'_> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        for chunk in self.0.utf8_chunks() {
            for character in chunk.valid().chars() {
                let hidden = character.is_control() || character.is_whitespace() || reorders_text(character);
                if hidden || character == '\\' {
                    for byte in character.encode_utf8(&mut [0; 4]).bytes() {
                        write!(formatter, "\\x{byte:02x}")?;
                    }
                } else {
                    formatter.write_char(character)?;
                }
            }
            for byte in chunk.invalid() {
                write!(formatter, "\\x{byte:02x}")?;
            }
        }
        Ok(())
    }
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

    #[test]
    fn of_a_long_text_the_beginning_and_the_end_are_shown() {
        assert_eq!(excerpt("short\n", 6), "short\\n");
        assert_eq!(excerpt("é123456789", 4), "é1…89");
    }

    #[test]
    fn characters_that_break_a_line_or_control_a_terminal_are_escaped() {
        for (bytes, shown) in [
            (&b"plain-1.0"[..], "plain-1.0"),
            ("gr\u{fc}n".as_bytes(), "gr\u{fc}n"),
            (b"a b\tc\nd", "a\\x20b\\x09c\\x0ad"),
            (b"back\\slash", "back\\x5cslash"),
            (b"\xff\xfe\x80", "\\xff\\xfe\\x80"),
            (b"\x1b[31m", "\\x1b[31m"),
            ("\u{202e}txt".as_bytes(), "\\xe2\\x80\\xaetxt"),
            ("\u{a0}".as_bytes(), "\\xc2\\xa0"),
            (b"", ""),
        ] {
            assert_eq!(Escaped(bytes).to_string(), shown);
        }
    }
}
