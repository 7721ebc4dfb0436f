//! The progress of a build: a bar on a terminal, a line every few seconds elsewhere.

use imagebuilder::progress::{Phase, Progress, Silent};
use imagebuilder::size;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use program::output::colours_are_permitted;
use rustix::termios;
use std::env;
use std::io::{self, IsTerminal};
use std::time::{Duration, Instant};

/// How much is printed on stderr.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verbosity {
    /// Only warnings and errors.
    Quiet,
    /// Also progress and a summary.
    Normal,
}

/// Time between two lines if stderr is not a terminal.
const LINE_INTERVAL: Duration = Duration::from_secs(5);
/// How often the bar is drawn per second.
const DRAWS_PER_SECOND: u8 = 10;

/// Returns a bar if stderr is a terminal that can show one, otherwise lines.
pub(crate) fn on_stderr(verbosity: Verbosity) -> Box<dyn Progress> {
    match verbosity {
        Verbosity::Quiet => Box::new(Warnings::default()),
        Verbosity::Normal if shows_a_bar() => Box::new(Bar::new()),
        Verbosity::Normal => Box::new(Lines::new()),
    }
}

/// Whether stderr is a terminal with a size. Nix gives builders a terminal without one, whose output it logs.
fn shows_a_bar() -> bool {
    let dumb = env::var_os("TERM").is_none_or(|term| term == "dumb");
    !dumb && io::stderr().is_terminal() && termios::tcgetwinsize(io::stderr()).is_ok_and(|size| size.ws_col > 0)
}

/// Prints only warnings.
#[derive(Default)]
struct Warnings(Silent);

impl Progress for Warnings {
    fn begin(&mut self, phase: Phase, total_bytes: u64) {
        self.0.begin(phase, total_bytes);
    }

    fn advance(&mut self, input_bytes: u64, cached_bytes: u64, stored_bytes: u64) {
        self.0.advance(input_bytes, cached_bytes, stored_bytes);
    }

    fn warn(&mut self, message: &str) {
        program::output::message(&format!("warning: {message}"));
    }
}

/// The progress of the current phase.
struct Count {
    phase: Phase,
    began: Instant,
    total_bytes: u64,
    input_bytes: u64,
    cached_bytes: u64,
    stored_bytes: u64,
}

impl Count {
    fn new(phase: Phase, total_bytes: u64) -> Self {
        Self { phase, began: Instant::now(), total_bytes, input_bytes: 0, cached_bytes: 0, stored_bytes: 0 }
    }

    fn advance(&mut self, input_bytes: u64, cached_bytes: u64, stored_bytes: u64) {
        self.input_bytes += input_bytes;
        self.cached_bytes += cached_bytes;
        self.stored_bytes += stored_bytes;
    }

    fn name(&self) -> &'static str {
        match self.phase {
            Phase::Scan => "scan",
            Phase::Blocks => "build",
            Phase::Tables => "tables",
            Phase::Publish => "publish",
        }
    }

    /// Bytes read, cached share, compression ratio and time left, as far as they are known:
    /// `480.2/1434.1 MiB, 43% cached, ratio 0.33, 12 s left`. At most 56 characters for less than 10 TiB.
    fn facts(&self, elapsed: Duration) -> String {
        if self.total_bytes == 0 {
            return String::new();
        }
        let mut facts = size::human_of(self.input_bytes, self.total_bytes);
        if self.input_bytes > 0 {
            let input = self.input_bytes as f64;
            let cached = self.cached_bytes as f64 * 100.0 / input;
            let ratio = self.stored_bytes as f64 / input;
            let left = elapsed.as_secs_f64() * self.total_bytes.saturating_sub(self.input_bytes) as f64 / input;
            facts.push_str(&format!(", {cached:.0}% cached, ratio {ratio:.2}, {}", time_left(left)));
        }
        facts
    }

    fn line(&self, elapsed: Duration) -> String {
        let facts = self.facts(elapsed);
        if facts.is_empty() { self.name().to_owned() } else { format!("{}: {facts}", self.name()) }
    }
}

/// Formats the time left: in seconds below two minutes, in minutes above.
fn time_left(seconds: f64) -> String {
    if seconds < 120.0 { format!("{seconds:.0} s left") } else { format!("{:.0} min left", seconds / 60.0) }
}

/// Prints a line every few seconds.
struct Lines {
    count: Count,
    last_printed: Instant,
}

impl Lines {
    fn new() -> Self {
        Self { count: Count::new(Phase::Scan, 0), last_printed: Instant::now() }
    }

    fn print_if_due(&mut self) {
        if self.last_printed.elapsed() >= LINE_INTERVAL {
            self.last_printed = Instant::now();
            program::output::message(&self.count.line(self.count.began.elapsed()));
        }
    }
}

impl Progress for Lines {
    fn begin(&mut self, phase: Phase, total_bytes: u64) {
        self.count = Count::new(phase, total_bytes);
        self.print_if_due();
    }

    fn advance(&mut self, input_bytes: u64, cached_bytes: u64, stored_bytes: u64) {
        self.count.advance(input_bytes, cached_bytes, stored_bytes);
        self.print_if_due();
    }

    fn warn(&mut self, message: &str) {
        program::output::message(&format!("warning: {message}"));
    }
}

/// A progress bar. Dropping it removes it from the terminal, so that only the summary remains.
struct Bar {
    count: Count,
    bar: ProgressBar,
}

impl Bar {
    fn new() -> Self {
        let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr_with_hz(DRAWS_PER_SECOND));
        Self { count: Count::new(Phase::Scan, 0), bar }
    }
}

/// The bar takes the width that the text leaves: `wide_bar` shrinks to nothing before the text is cut.
fn style(with_total: bool) -> ProgressStyle {
    let colour = if colours_are_permitted() { ":.cyan" } else { "" };
    let template = if with_total {
        format!("{{prefix}} {{wide_bar{colour}}} {{msg}}")
    } else {
        "{prefix} {spinner} {msg}".to_owned()
    };
    ProgressStyle::with_template(&template).unwrap_or_else(|_| ProgressStyle::default_bar())
}

impl Progress for Bar {
    fn begin(&mut self, phase: Phase, total_bytes: u64) {
        self.count = Count::new(phase, total_bytes);
        self.bar.set_style(style(total_bytes > 0));
        self.bar.set_length(total_bytes);
        self.bar.set_position(0);
        self.bar.set_prefix(self.count.name());
        self.bar.set_message(self.count.facts(Duration::ZERO));
        self.bar.tick();
    }

    fn advance(&mut self, input_bytes: u64, cached_bytes: u64, stored_bytes: u64) {
        self.count.advance(input_bytes, cached_bytes, stored_bytes);
        self.bar.set_position(self.count.input_bytes);
        self.bar.set_message(self.count.facts(self.count.began.elapsed()));
    }

    fn warn(&mut self, message: &str) {
        self.bar.suspend(|| program::output::message(&format!("warning: {message}")));
    }
}

impl Drop for Bar {
    fn drop(&mut self) {
        self.bar.finish_and_clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn count(total_bytes: u64, input_bytes: u64) -> Count {
        let mut count = Count::new(Phase::Blocks, total_bytes);
        count.advance(input_bytes, input_bytes / 4, input_bytes / 3);
        count
    }

    #[test]
    fn a_line_contains_all_known_facts() {
        let elapsed = Duration::from_secs(30);
        assert_eq!(count(3 << 30, 1 << 30).line(elapsed), "build: 1.0/3.0 GiB, 25% cached, ratio 0.33, 60 s left");
        assert_eq!(count(3 << 30, 3 << 30).line(elapsed), "build: 3.0/3.0 GiB, 25% cached, ratio 0.33, 0 s left");
        assert_eq!(count(3 << 30, 0).line(elapsed), "build: 0.0/3.0 GiB");
        assert_eq!(count(0, 0).line(elapsed), "build");
    }

    #[test]
    fn the_longest_line_fits_into_60_columns() {
        let line = count(999 << 30, 900 << 30).facts(Duration::from_secs(100 * 3600));
        assert_eq!(line, "900.0/999.0 GiB, 25% cached, ratio 0.33, 660 min left");
        assert!("publish ".len() + line.len() <= 61, "{line}");
    }
}
