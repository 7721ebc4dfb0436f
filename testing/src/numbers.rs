/// Texts that no option accepts as a number.
pub const NOT_NUMBERS: [&str; 15] = [
    "",
    " ",
    "x",
    "-",
    "+",
    "1.5",
    "1e9",
    "0x10",
    " 5",
    "5 ",
    "1_000",
    "NaN",
    "99999999999999999999999999999999",
    // Digits of other scripts.
    "\u{661}\u{662}",
    "\u{ff11}",
];
/// A negative number.
pub const NEGATIVE: &str = "-1";
/// The lowest number that does not fit into a signed integer of 64 bits.
pub const TWO_TO_63: &str = "9223372036854775808";
/// The lowest number that does not fit into 64 bits.
pub const TWO_TO_64: &str = "18446744073709551616";
/// A second more than the longest time that programs accept.
pub const YEAR_AND_A_SECOND: &str = "31536001";
