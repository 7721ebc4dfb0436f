//! How the values were measured: the command, the machine, the versions. Numbers are meaningless without them.

use std::fs;
use std::process::Command;

use serde::{Deserialize, Serialize};

use crate::error::Error;
use crate::tool::Programs;
use crate::workspace::run;

/// The circumstances of a run.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Method {
    /// Day of the run, `YYYY-MM-DD`.
    pub date: String,
    /// The benchmark's own command line.
    pub command: String,
    /// Revision of this work tree.
    pub revision: String,
    /// Processor, cores, memory.
    pub machine: String,
    /// Kernel version.
    pub kernel: String,
    /// One line per program.
    pub versions: Vec<String>,
    /// The order of the candidates.
    #[serde(default = "same_order")]
    pub order: String,
}

/// The order of results from before candidates rotated.
fn same_order() -> String {
    "every comparison in turn, A B A B".to_owned()
}

impl Method {
    /// Reads the circumstances from the system.
    ///
    /// # Errors
    /// When `date` or `uname` fail.
    pub fn now(programs: &Programs) -> Result<Self, Error> {
        let line = |command: &mut Command| run(command).map(|text| text.lines().next().unwrap_or_default().to_owned());
        let peer = |name: &str, option: &str| version(Command::new(programs.peers.join(name)).arg(option));
        Ok(Self {
            date: line(Command::new("date").args(["--utc", "+%Y-%m-%d"]))?,
            command: std::env::args()
                .skip(1)
                .fold("cargo run --release -p benches --".to_owned(), |all, word| all + " " + &word),
            revision: line(Command::new("git").args(["describe", "--always", "--dirty"]))
                .unwrap_or_else(|_| "unknown".into()),
            machine: machine(),
            kernel: line(Command::new("uname").arg("-sr"))?,
            versions: vec![
                version(Command::new(&programs.microvm_image).arg("--version")),
                peer("mksquashfs", "-version"),
                peer("gensquashfs", "--version"),
                peer("mkfs.erofs", "--version"),
            ],
            order: "candidates rotate from round to round, the first round is dropped".to_owned(),
        })
    }

    /// Formats the circumstances as a Markdown list.
    #[must_use]
    pub fn markdown(&self) -> String {
        format!(
            "- command: `{}` at {}\n- machine: {}; {}\n- programs: {}\n- {}; warm page cache; \
             seconds are medians, time ratios medians of the ratios within each round\n",
            self.command,
            self.revision,
            self.machine,
            self.kernel,
            self.versions.join("; "),
            self.order
        )
    }
}

/// Returns the first line with a number in it. Some programs exit with an error after printing their version.
fn version(command: &mut Command) -> String {
    let Ok(output) = command.output() else { return format!("{command:?}: cannot be started") };
    let text = [output.stdout, output.stderr].concat();
    String::from_utf8_lossy(&text)
        .lines()
        .find(|line| line.contains(|letter: char| letter.is_ascii_digit()))
        .unwrap_or("version unknown")
        .to_owned()
}

fn machine() -> String {
    let field = |path: &str, name: &str| {
        fs::read_to_string(path)
            .ok()
            .and_then(|text| {
                text.lines().find_map(|line| Some(line.strip_prefix(name)?.split_once(':')?.1.trim().to_owned()))
            })
            .unwrap_or_else(|| "unknown".into())
    };
    let cores = std::thread::available_parallelism().map_or(0, usize::from);
    format!("{}, {cores} cores, memory {}", field("/proc/cpuinfo", "model name"), field("/proc/meminfo", "MemTotal"))
}
