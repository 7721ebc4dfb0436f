//! Skipping a test, with a word about why.

/// Says why a test does not run.
#[expect(clippy::print_stderr, reason = "nothing is skipped in silence")]
pub(crate) fn skipped(why: &str) {
    eprintln!("skipped: {why}");
}
