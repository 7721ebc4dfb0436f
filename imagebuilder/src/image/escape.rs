//! Shows names as one word of printable text, whatever bytes they contain.

use std::fmt::{self, Write};

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

/// A path inside an image, separated by `/` and relative to its root. It is shown escaped and with a leading `/`.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ImagePath(pub Vec<u8>);

impl fmt::Display for ImagePath {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "/{}", Escaped(&self.0))
    }
}

impl fmt::Debug for ImagePath {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, formatter)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
        assert_eq!(ImagePath(b"a/b c".to_vec()).to_string(), "/a/b\\x20c");
    }
}
