//! The SHA-256 of a store path's NAR serialisation, in the four formats that Nix uses.

use thiserror::Error;

/// The digits of Nix's base 32 in the order of their values. It has no e, o, t and u.
const NIX_BASE32: &[u8; 32] = b"0123456789abcdfghijklmnpqrsvwxyz";
/// The digits of base 64 in the order of their values (RFC 4648, section 4).
const BASE64: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
/// Number of characters for 32 bytes in Nix's base 32.
const NIX_BASE32_LENGTH: usize = 52;
/// Number of characters for 32 bytes in hex.
const HEX_LENGTH: usize = 64;
/// Number of characters for 32 bytes in base 64, including the `=` at the end.
const BASE64_LENGTH: usize = 44;

/// The values of the digits of Nix's base 32, by their bytes. A search for each digit would take a tenth of the time that
/// reading a closure of thousands of store paths takes.
const VALUES: [Option<u8>; 256] = {
    let mut values = [None; 256];
    let mut value = 0;
    while value < NIX_BASE32.len() {
        values[NIX_BASE32[value] as usize] = Some(value as u8);
        value += 1;
    }
    values
};

/// A text that is not the SHA-256 of a NAR.
#[derive(Debug, Error, PartialEq, Eq)]
#[error(
    "{text:?} is not a NAR hash: it must be `sha256:` and 52 characters of Nix base 32 or 64 of hex, 64 of hex alone, or `sha256-` and base 64"
)]
pub struct NarHashError {
    /// The text.
    pub text: String,
}

/// Parses `sha256:NIX32` (closureInfo, `.attrs.json`), `sha256:HEX`, `HEX` (`nix-store --dump-db`) or the SRI format
/// `sha256-BASE64`.
///
/// # Errors
/// The text has another format, or is a hash of another kind.
pub fn parse(text: &str) -> Result<[u8; 32], NarHashError> {
    let digits = text.strip_prefix("sha256:");
    let hash = match (digits, text.strip_prefix("sha256-")) {
        (Some(digits), _) if digits.len() == NIX_BASE32_LENGTH => from_nix_base32(digits.as_bytes()),
        (Some(digits), _) => from_hex(digits.as_bytes()),
        (None, Some(digits)) => from_base64(digits.as_bytes()),
        (None, None) => from_hex(text.as_bytes()),
    };
    hash.ok_or_else(|| NarHashError { text: text.to_owned() })
}

/// Formats a hash as `sha256:` and Nix's base 32, the format that plans contain and that Nix itself prints.
pub fn print(hash: &[u8; 32]) -> String {
    let mut text = String::with_capacity("sha256:".len() + NIX_BASE32_LENGTH);
    text.push_str("sha256:");
    // Nix counts the digits from the end of the hash, five bits each, lowest first, and writes the highest first.
    for digit in (0..NIX_BASE32_LENGTH).rev() {
        let (byte, shift) = (digit * 5 / 8, digit * 5 % 8);
        let low = u16::from(hash[byte]);
        let high = hash.get(byte + 1).map_or(0, |next| u16::from(*next) << 8);
        text.push(char::from(NIX_BASE32[usize::from((high | low) >> shift & 0x1f)]));
    }
    text
}

fn from_nix_base32(digits: &[u8]) -> Option<[u8; 32]> {
    let mut hash = [0; 32];
    for (position, digit) in digits.iter().rev().enumerate() {
        let value = u16::from(VALUES[usize::from(*digit)]?);
        let (byte, shift) = (position * 5 / 8, position * 5 % 8);
        let [low, high] = (value << shift).to_le_bytes();
        hash[byte] |= low;
        match hash.get_mut(byte + 1) {
            Some(next) => *next |= high,
            // 52 digits have four bits more than 32 bytes. They must be zero, or two texts would stand for the same
            // hash.
            None if high != 0 => return None,
            None => {}
        }
    }
    Some(hash)
}

fn from_hex(digits: &[u8]) -> Option<[u8; 32]> {
    if digits.len() != HEX_LENGTH {
        return None;
    }
    let mut hash = [0; 32];
    for (byte, pair) in hash.iter_mut().zip(digits.chunks_exact(2)) {
        let high = char::from(pair[0]).to_digit(16)?;
        let low = char::from(pair[1]).to_digit(16)?;
        *byte = u8::try_from(high << 4 | low).ok()?;
    }
    Some(hash)
}

fn from_base64(digits: &[u8]) -> Option<[u8; 32]> {
    let digits = digits.strip_suffix(b"=").filter(|_| digits.len() == BASE64_LENGTH)?;
    let mut hash = [0; 32];
    let mut bytes = hash.iter_mut();
    let (mut pending, mut pending_bits) = (0_u32, 0);
    for digit in digits {
        let value = BASE64.iter().position(|known| known == digit)? as u32;
        pending = pending << 6 | value;
        pending_bits += 6;
        if pending_bits >= 8 {
            pending_bits -= 8;
            *bytes.next()? = (pending >> pending_bits) as u8;
            pending &= (1 << pending_bits) - 1;
        }
    }
    // 43 digits have two bits more than 32 bytes. They must be zero.
    (pending == 0).then_some(hash)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// The SHA-256 of the empty string, as printed by `nix hash convert`.
    const OF_NOTHING: [&str; 4] = [
        "sha256:0mdqa9w1p6cmli6976v4wi0sw9r4p5prkj7lzfd1877wk11c9c73",
        "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
        "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
        "sha256-47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU=",
    ];

    #[test]
    fn all_four_formats_give_the_same_hash() {
        let hash = parse(OF_NOTHING[0]).unwrap();
        assert_eq!(hash[..4], [0xe3, 0xb0, 0xc4, 0x42]);
        for text in OF_NOTHING {
            assert_eq!(parse(text).as_ref(), Ok(&hash), "{text}");
        }
        assert_eq!(print(&hash), OF_NOTHING[0]);
    }

    #[test]
    fn other_texts_are_refused() {
        for text in [
            "",
            "sha256:",
            "sha256-",
            "sha1:0mdqa9w1p6cmli6976v4wi0sw9r4p5prkj7lzfd1877wk11c9c73",
            "0mdqa9w1p6cmli6976v4wi0sw9r4p5prkj7lzfd1877wk11c9c73",
            "sha256:0mdqa9w1p6cmli6976v4wi0sw9r4p5prkj7lzfd1877wk11c9c7",
            "sha256:emdqa9w1p6cmli6976v4wi0sw9r4p5prkj7lzfd1877wk11c9c73",
            // A hash with extra bits at its end.
            "sha256:zmdqa9w1p6cmli6976v4wi0sw9r4p5prkj7lzfd1877wk11c9c73",
            "sha256-47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFV=",
            "sha256-47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU",
            "g3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
        ] {
            assert_eq!(parse(text), Err(NarHashError { text: text.to_owned() }));
        }
    }

    proptest! {
        #[test]
        fn printing_and_parsing_are_inverse(hash: [u8; 32]) {
            prop_assert_eq!(parse(&print(&hash)), Ok(hash));
            let hex: String = hash.iter().map(|byte| format!("{byte:02x}")).collect();
            prop_assert_eq!(parse(&hex), Ok(hash));
        }

        #[test]
        fn any_text_is_accepted_or_refused_without_a_panic(text in "(sha256[:-])?.*") {
            let _ = parse(&text);
        }
    }
}
