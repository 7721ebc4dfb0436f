//! Skipping a test with a printed reason.

/// Prints why a test is skipped.
#[expect(clippy::print_stderr, reason = "nothing is skipped in silence")]
pub(crate) fn skipped(why: &str) {
    eprintln!("skipped: {why}");
}
