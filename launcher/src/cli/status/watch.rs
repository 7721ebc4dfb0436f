//! `microvm status --watch`: a table of the machines and the resources that they use, redrawn on the terminal.

use super::{Row, rows};
use launcher::imperative::{Layout, MachineName, ProcessUsage, disk_bytes, memory_mib, read_spec};
use launcher::state::RuntimeDirectory;
use program::failure::Failure;
use program::output::print;
use std::collections::HashMap;
use std::io::IsTerminal;
use std::time::{Duration, Instant};

/// Time between two tables.
const INTERVAL: Duration = Duration::from_secs(2);
/// The longest shown part of a name. With it, a line has 60 columns.
const MAX_NAME: usize = 18;

/// Prints the table repeatedly until a signal ends the program.
pub(super) fn watch(names: &[String], runtime: &RuntimeDirectory) -> Result<(), Failure> {
    if !std::io::stdout().is_terminal() {
        return Err(Failure::usage("--watch requires a terminal, but stdout is not one")
            .with_hint("`microvm list --json` prints the same values once"));
    }
    let mut before: HashMap<i32, (f64, Instant)> = HashMap::new();
    loop {
        let mut lines = Vec::new();
        for row in rows(names, runtime)? {
            let line = Line::of(&row, &before);
            if let (Some(running), Some(usage)) = (row.activity.running(), line.usage) {
                before.insert(running.hypervisor.pid, (usage.cpu_seconds, Instant::now()));
            }
            lines.push(line);
        }
        let size = rustix::termios::tcgetwinsize(std::io::stdout()).ok();
        let size = size.map(|size| (usize::from(size.ws_row), usize::from(size.ws_col)));
        print(screen(&table(&lines), size.filter(|(rows, columns)| *rows > 1 && *columns > 0)))?;
        std::thread::sleep(INTERVAL);
    }
}

/// The values of one machine.
struct Line {
    name: String,
    state: &'static str,
    usage: Option<ProcessUsage>,
    /// Processors used since the previous table.
    processors: Option<f64>,
    memory_mib: Option<u64>,
    disk_bytes: Option<u64>,
}

impl Line {
    fn of(row: &Row, before: &HashMap<i32, (f64, Instant)>) -> Self {
        let running = row.activity.running();
        let usage = running.and_then(|running| ProcessUsage::of(&running.hypervisor));
        let earlier = running.and_then(|running| before.get(&running.hypervisor.pid));
        let processors = usage.zip(earlier).map(|(usage, (seconds, at))| {
            (usage.cpu_seconds - seconds).max(0.0) / at.elapsed().as_secs_f64().max(0.001)
        });
        let machine = MachineName::new(&row.name).ok().and_then(|name| Layout::of_environment().existing(&name).ok());
        let spec = machine.as_ref().and_then(|machine| read_spec(&machine.runner().ok()?));
        Self {
            name: row.name.clone(),
            state: row.state(),
            usage,
            processors,
            memory_mib: spec.as_ref().map(memory_mib),
            disk_bytes: machine.zip(spec).and_then(|(machine, spec)| disk_bytes(&spec, &machine.directory)),
        }
    }

    fn text(&self, width: usize) -> String {
        let processors = self.processors.map(|used| format!("{:.0}%", used * 100.0));
        let resident = self.usage.map(|usage| short_size(usage.resident_bytes));
        let memory = self.memory_mib.map(|mib| short_size(mib << 20));
        let memory = match (resident, memory) {
            (Some(resident), Some(memory)) => format!("{resident}/{memory}"),
            (resident, memory) => resident.or(memory).unwrap_or_else(unknown),
        };
        row_text(
            width,
            [
                &self.name.chars().take(MAX_NAME).collect::<String>(),
                self.state,
                &processors.unwrap_or_else(unknown),
                &memory,
                &self.disk_bytes.map_or_else(unknown, short_size),
                &self.usage.map_or_else(unknown, |usage| short_time(usage.uptime_seconds)),
            ],
        )
    }
}

fn unknown() -> String {
    "-".to_owned()
}

fn row_text(width: usize, [name, state, processors, memory, disk, uptime]: [&str; 6]) -> String {
    format!("{name:width$} {state:9} {processors:>5} {memory:>11} {disk:>6} {uptime:>6}\n")
}

/// The table, at most 60 columns wide.
fn table(lines: &[Line]) -> String {
    let width = lines.iter().map(|line| line.name.chars().count()).max().unwrap_or(0).clamp("machine".len(), MAX_NAME);
    let heading = row_text(width, ["machine", "state", "cpu", "memory", "disk", "uptime"]);
    heading + &lines.iter().map(|line| line.text(width)).collect::<String>()
}

/// Returns what redraws the terminal with this number of rows and columns: a line too many or too long would make it
/// scroll.
fn screen(table: &str, size: Option<(usize, usize)>) -> String {
    let (rows, columns) = size.unwrap_or((usize::MAX, usize::MAX));
    let mut lines: Vec<String> = table.lines().map(|line| line.chars().take(columns).collect()).collect();
    // The cursor is in the line after the last one.
    if lines.len() > rows - 1 {
        let shown = rows.saturating_sub(2);
        let more = format!("{} more; specify which to show", lines.len() - shown);
        lines.truncate(shown);
        lines.push(more.chars().take(columns).collect());
    }
    // Home; each line and the rest of the screen are cleared after they are written, so that nothing flickers.
    let text: String = lines.iter().map(|line| format!("{line}\x1b[K\n")).collect();
    format!("\x1b[H{text}\x1b[J")
}

/// A size in at most five characters: `0K`, `512K`, `1.2M`, `1023M`, `32G`.
fn short_size(bytes: u64) -> String {
    let (mut size, mut unit) = (bytes as f64 / 1024.0, 'K');
    for next in ['M', 'G', 'T'] {
        if size < 1023.5 {
            break;
        }
        (size, unit) = (size / 1024.0, next);
    }
    if size >= 9.95 || size.fract() == 0.0 { format!("{size:.0}{unit}") } else { format!("{size:.1}{unit}") }
}

/// A duration in at most six characters: `12s`, `5m03s`, `3h05m`, `2d03h`, `4000d`.
fn short_time(seconds: u64) -> String {
    let (minutes, hours, days) = (seconds / 60, seconds / 3600, seconds / 86400);
    match () {
        () if minutes == 0 => format!("{seconds}s"),
        () if hours == 0 => format!("{minutes}m{:02}s", seconds % 60),
        () if days == 0 => format!("{hours}h{:02}m", minutes % 60),
        () if days < 100 => format!("{days}d{:02}h", hours % 24),
        () => format!("{days}d"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_has_at_most_60_columns_and_says_what_is_unknown() {
        let line = |name: &str, state, uptime_seconds| Line {
            name: name.to_owned(),
            state,
            usage: (state == "running").then_some(ProcessUsage {
                resident_bytes: 1023 << 20,
                cpu_seconds: 5.0,
                uptime_seconds,
            }),
            processors: (state == "running").then_some(12.5),
            memory_mib: Some(1023),
            disk_bytes: (state == "running").then_some(1_300_000_000),
        };
        let lines = [line("web", "running", 97 * 3600), line("m", "suspended", 0)];
        let expected = "machine state       cpu      memory   disk uptime\n\
                        web     running   1250% 1023M/1023M   1.2G  4d01h\n\
                        m       suspended     -       1023M      -      -\n";
        assert_eq!(table(&lines), expected);
        let long = table(&[line(&"n".repeat(64), "running", 99 * 86400)]);
        assert!(long.lines().all(|line| line.chars().count() <= 60), "{long}");
    }

    #[test]
    fn a_table_that_is_larger_than_the_terminal_does_not_make_it_scroll() {
        let table = "machine state\na running\nb stopped\nc stopped\n";
        let whole = "\x1b[Hmachine state\x1b[K\na running\x1b[K\nb stopped\x1b[K\nc stopped\x1b[K\n\x1b[J";
        assert_eq!(screen(table, None), whole);
        assert_eq!(screen(table, Some((5, 13))), whole);
        let small = "\x1b[Hmachine\x1b[K\na runni\x1b[K\n2 more;\x1b[K\n\x1b[J";
        assert_eq!(screen(table, Some((4, 7))), small);
    }

    #[test]
    fn sizes_and_times_are_short() {
        let sizes = [0, 1024, 524_288, 1_258_291, 1_072_693_248, 1_073_741_823, 34_359_738_368].map(short_size);
        assert_eq!(sizes, ["0K", "1K", "512K", "1.2M", "1023M", "1.0G", "32G"]);
        let times = [0, 59, 303, 11_100, 183_600, 400_000_000].map(short_time);
        assert_eq!(times, ["0s", "59s", "5m03s", "3h05m", "2d03h", "4629d"]);
    }
}
