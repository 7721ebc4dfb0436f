//! Numbers on the command line that are none, or are out of range, are refused before anything else happens.

use crate::{microvm, stderr};
use testing::{NEGATIVE, NOT_NUMBERS, TWO_TO_63, TWO_TO_64, YEAR_AND_A_SECOND};

#[test]
fn numbers_that_are_none_or_out_of_range_are_refused_with_what_they_must_be() {
    let seconds = [NEGATIVE, "1k", YEAR_AND_A_SECOND, TWO_TO_63, TWO_TO_64];
    // The words before and after the number, and the numbers that only this option refuses.
    let options: [(&[&str], &[&str], &[&str]); 12] = [
        (&["stop", "--timeout"], &["web"], &seconds),
        (&["run", "--stop-timeout"], &["machine.json"], &seconds),
        (&["install", "--stop-timeout"], &["machine.json"], &seconds),
        (&["cluster", "apply", "--wait"], &["cluster.json"], &seconds),
        (&["cluster", "drain", "--wait"], &["host"], &seconds),
        (&["cluster", "move", "--wait"], &["web", "host"], &seconds),
        (&["unit", "send", "web"], &[], &["1k", YEAR_AND_A_SECOND, TWO_TO_63, TWO_TO_64]),
        (&["balloon", "web"], &[], &["1k", "--1", "+-1", "+2147483648", "-2147483649", TWO_TO_64]),
        (
            &["volume", "grow", "machine.json", "var.img"],
            &[],
            &["+5G", "1Q", "1GB", "1 G", TWO_TO_63, "8388608T", TWO_TO_64],
        ),
        (&["vsock-connect", "3"], &[], &["4294967296", TWO_TO_64]),
        (&["register", "--leader"], &["machine.json"], &[NEGATIVE, "4294967296", TWO_TO_64]),
        (&["clean-up-after", "--state-dir", "/", "web"], &["5"], &[TWO_TO_64]),
    ];
    for (before, after, refused) in &options {
        for number in NOT_NUMBERS.iter().chain(*refused) {
            let arguments = [before, &[*number][..], after].concat();
            let output = microvm(&arguments);
            assert_eq!(output.status.code(), Some(2), "{arguments:?}: {output:?}");
            let message = stderr(&output);
            assert!(message.starts_with("error: ") && !message.contains("panicked"), "{arguments:?}: {message}");
            assert!(*number != NEGATIVE || !message.contains("unexpected argument"), "{arguments:?}: {message}");
        }
    }
}
