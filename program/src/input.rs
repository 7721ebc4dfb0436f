//! Numbers and text files that people pass to a program. The standard library's errors describe digits and streams;
//! these say what is expected.

use std::fs::File;
use std::io::{self, Read};
use std::num::{IntErrorKind, ParseIntError};
use std::path::Path;
use std::str::FromStr;

/// The longest time that a command line or a configuration can contain, in seconds: a year. The clock does not
/// overflow.
pub const MAX_SECONDS: u64 = 31_536_000;

/// Parses a whole number of the command line.
///
/// # Errors
/// Returns what the text must be instead.
pub fn whole_number<Number: FromStr<Err = ParseIntError>>(text: &str) -> Result<Number, String> {
    text.parse().map_err(|error: ParseIntError| match error.kind() {
        IntErrorKind::PosOverflow => "it is too large".to_owned(),
        IntErrorKind::Zero => "it must be at least 1".to_owned(),
        _ => "it must be a whole number".to_owned(),
    })
}

/// Parses a whole number of the command line that is at most `MAX`.
///
/// # Errors
/// Returns what the text must be instead.
pub fn up_to<const MAX: u64>(text: &str) -> Result<u64, String> {
    let number = text.parse().ok().filter(|number| *number <= MAX);
    number.ok_or_else(|| format!("it must be a whole number from 0 to {MAX}"))
}

/// Parses a whole number of the command line that is at least 1 and at most `MAX`.
///
/// # Errors
/// Returns what the text must be instead.
pub fn from_one_up_to<const MAX: u64>(text: &str) -> Result<u64, String> {
    let number = text.parse().ok().filter(|number| (1..=MAX).contains(number));
    number.ok_or_else(|| format!("it must be a whole number from 1 to {MAX}"))
}

/// The longest list, graph or plan. That of a closure with a million paths has some hundred MiB; a longer one is something
/// else, such as an endless device.
const MAX_INPUT_BYTES: u64 = 1 << 30;

/// Reads everything to its end.
///
/// # Errors
/// Fails if it cannot be read, or is longer than 1 GiB.
pub fn read_to_end(reader: impl Read) -> io::Result<Vec<u8>> {
    read_up_to(reader, MAX_INPUT_BYTES)
}

/// Reads everything to its end, if that is not more than `limit` bytes, a multiple of 1 KiB.
///
/// # Errors
/// Fails if it cannot be read, or is longer.
pub fn read_up_to(reader: impl Read, limit: u64) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    reader.take(limit + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > limit {
        let limit = if limit < 1 << 20 { format!("{} KiB", limit >> 10) } else { format!("{} MiB", limit >> 20) };
        let reason = format!("it is longer than {limit}, the limit for such a file");
        return Err(io::Error::new(io::ErrorKind::FileTooLarge, reason));
    }
    Ok(bytes)
}

/// Reads a text file.
///
/// # Errors
/// Fails if it cannot be read, is not text, or is longer than 1 GiB.
pub fn read_text(path: &Path) -> io::Result<String> {
    let text = String::from_utf8(read_to_end(File::open(path)?)?);
    text.map_err(|error| text_error(io::Error::new(io::ErrorKind::InvalidData, error)))
}

/// Replaces the error of [`io::Read::read_to_string`] for a file that is not text.
pub fn text_error(error: io::Error) -> io::Error {
    if error.kind() == io::ErrorKind::InvalidData {
        return io::Error::new(error.kind(), "the file is not UTF-8 text");
    }
    error
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::num::NonZero;

    #[test]
    fn a_wrong_number_is_refused_with_what_it_must_be() {
        assert_eq!(whole_number::<u32>("7"), Ok(7));
        for text in ["", "x", "-1", "1.5", "7s"] {
            assert_eq!(whole_number::<u32>(text), Err("it must be a whole number".to_owned()), "{text}");
            assert_eq!(up_to::<10>(text), Err("it must be a whole number from 0 to 10".to_owned()), "{text}");
        }
        assert_eq!(whole_number::<u32>("4294967296"), Err("it is too large".to_owned()));
        assert_eq!(whole_number::<NonZero<usize>>("0"), Err("it must be at least 1".to_owned()));
        assert_eq!((up_to::<10>("10"), up_to::<10>("11").is_err()), (Ok(10), true));
        assert_eq!((from_one_up_to::<10>("10"), from_one_up_to::<10>("0").is_err()), (Ok(10), true));
    }

    #[test]
    fn a_binary_file_is_called_one_instead_of_a_stream() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("binary");
        std::fs::write(&path, [0xff, 0xfe]).unwrap();
        let error = text_error(std::fs::read_to_string(&path).unwrap_err());
        assert_eq!(error.to_string(), "the file is not UTF-8 text");
        assert_eq!(read_text(&path).unwrap_err().to_string(), "the file is not UTF-8 text");
    }

    #[test]
    fn an_endless_device_filled_the_memory() {
        let error = read_up_to(std::fs::File::open("/dev/zero").unwrap(), 2 << 20).unwrap_err();
        assert_eq!(error.to_string(), "it is longer than 2 MiB, the limit for such a file");
    }
}
