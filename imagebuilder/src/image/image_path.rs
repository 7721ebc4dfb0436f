//! Paths inside an image.

use program::escape::Escaped;
use std::fmt;

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
    fn a_path_is_shown_absolute_and_escaped() {
        assert_eq!(ImagePath(b"a/b c".to_vec()).to_string(), "/a/b\\x20c");
    }
}
