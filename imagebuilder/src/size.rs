//! Parses and prints sizes such as `4K`, `128KiB`, `1M`, `2G`.

use thiserror::Error;

/// A text that is not a size.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum SizeError {
    /// The text does not begin with digits.
    #[error("{text:?} is not a size: write a number of bytes, or a number with a unit, such as 128K or 2GiB")]
    NoNumber {
        /// The text.
        text: String,
    },
    /// The letters after the number are not a unit.
    #[error(
        "{unit:?} in {text:?} is not a unit: use K, M, G or T (or KiB, MiB, GiB, TiB), each 1024 times the previous one"
    )]
    Unit {
        /// The text.
        text: String,
        /// The text after the number.
        unit: String,
    },
    /// The size does not fit into 64 bits.
    #[error("{text:?} is more than 18446744073709551615 bytes")]
    TooLarge {
        /// The text.
        text: String,
    },
}

/// Parses a size in bytes: an integer, optionally with a unit of 1024, 1024², … bytes.
///
/// `kB` and `MB` are refused because they are ambiguous: they can mean multiples of 1000 or of 1024.
///
/// # Errors
/// There is no number, the unit is unknown, or the size does not fit into 64 bits.
pub fn parse(text: &str) -> Result<u64, SizeError> {
    let digits = text.len() - text.trim_start_matches(|character: char| character.is_ascii_digit()).len();
    let (number, unit) = text.split_at(digits);
    if number.is_empty() {
        return Err(SizeError::NoNumber { text: text.to_owned() });
    }
    let shift = match unit.strip_suffix("iB").unwrap_or(unit) {
        "" if unit.is_empty() => 0,
        "B" => 0,
        "K" | "k" => 10,
        "M" | "m" => 20,
        "G" | "g" => 30,
        "T" | "t" => 40,
        _ => return Err(SizeError::Unit { text: text.to_owned(), unit: unit.to_owned() }),
    };
    number
        .parse::<u64>()
        .ok()
        .and_then(|number| number.checked_mul(1 << shift))
        .ok_or_else(|| SizeError::TooLarge { text: text.to_owned() })
}

/// Formats a size with the largest unit that divides it. [`parse`] returns the same size.
pub fn print(bytes: u64) -> String {
    for (shift, unit) in [(40, "T"), (30, "G"), (20, "M"), (10, "K")] {
        if bytes != 0 && bytes.trailing_zeros() >= shift {
            return format!("{}{unit}", bytes >> shift);
        }
    }
    bytes.to_string()
}

/// Formats a size for people, with three or four digits: `480.2 MiB`.
pub fn human(bytes: u64) -> String {
    let (divisor, unit) = unit_for(bytes);
    if unit == "B" { format!("{bytes} B") } else { format!("{:.1} {unit}", bytes as f64 / divisor) }
}

/// Formats a part and its whole in the unit of the whole: `480.2/999.0 MiB`.
pub fn human_of(part_bytes: u64, whole_bytes: u64) -> String {
    match unit_for(whole_bytes) {
        (_, "B") => format!("{part_bytes}/{whole_bytes} B"),
        (divisor, unit) => format!("{:.1}/{:.1} {unit}", part_bytes as f64 / divisor, whole_bytes as f64 / divisor),
    }
}

/// Returns the smallest unit for which the number has at most three digits before the point.
fn unit_for(bytes: u64) -> (f64, &'static str) {
    let mut divisor = 1.0;
    for unit in ["B", "KiB", "MiB", "GiB"] {
        if (bytes as f64) < 999.95 * divisor {
            return (divisor, unit);
        }
        divisor *= 1024.0;
    }
    (divisor, "TiB")
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn units_are_powers_of_1024() {
        for (text, bytes) in [
            ("0", 0),
            ("4096", 4096),
            ("512B", 512),
            ("4K", 4096),
            ("4k", 4096),
            ("128KiB", 131_072),
            ("1M", 1 << 20),
            ("2G", 2 << 30),
            ("3TiB", 3 << 40),
        ] {
            assert_eq!(parse(text), Ok(bytes), "{text}");
        }
    }

    #[test]
    fn sizes_for_people_have_three_or_four_digits() {
        for (bytes, text) in [
            (0, "0 B"),
            (999, "999 B"),
            (1000, "1.0 KiB"),
            (1536, "1.5 KiB"),
            (503_525_212, "480.2 MiB"),
            (3 << 40, "3.0 TiB"),
        ] {
            assert_eq!(human(bytes), text);
        }
        assert_eq!(human_of(1, 999), "1/999 B");
        assert_eq!(human_of(512 << 10, 3 << 20), "0.5/3.0 MiB");
    }

    #[test]
    fn texts_that_are_not_a_size_are_refused() {
        for (text, message) in [
            ("", r#""" is not a size: write a number of bytes, or a number with a unit, such as 128K or 2GiB"#),
            ("K", r#""K" is not a size: write a number of bytes, or a number with a unit, such as 128K or 2GiB"#),
            ("-1", r#""-1" is not a size: write a number of bytes, or a number with a unit, such as 128K or 2GiB"#),
            (
                "1MB",
                r#""MB" in "1MB" is not a unit: use K, M, G or T (or KiB, MiB, GiB, TiB), each 1024 times the previous one"#,
            ),
            (
                "1iB",
                r#""iB" in "1iB" is not a unit: use K, M, G or T (or KiB, MiB, GiB, TiB), each 1024 times the previous one"#,
            ),
            (
                "1.5G",
                r#"".5G" in "1.5G" is not a unit: use K, M, G or T (or KiB, MiB, GiB, TiB), each 1024 times the previous one"#,
            ),
            ("16777216T", r#""16777216T" is more than 18446744073709551615 bytes"#),
            ("18446744073709551616", r#""18446744073709551616" is more than 18446744073709551615 bytes"#),
        ] {
            assert_eq!(parse(text).unwrap_err().to_string(), message);
        }
    }

    proptest! {
        #[test]
        fn printing_and_parsing_are_inverse(bytes: u64, shift in 0..64_u32) {
            let bytes = bytes << shift;
            prop_assert_eq!(parse(&print(bytes)), Ok(bytes));
        }

        #[test]
        fn any_text_is_accepted_or_refused_without_a_panic(text in ".*") {
            let _ = parse(&text);
        }
    }
}
