//! Decides whether a machine needs a store disk: it needs none if it mounts the host's store.

use program::input::read_text;
use serde::{Deserialize, Serialize};
use std::io;
use std::path::{Component, Path, PathBuf};
use thiserror::Error;

/// A machine that shares this host directory needs no store disk.
const HOST_STORE: &str = "/nix/store";

/// The shares of a machine cannot be read.
#[derive(Debug, Error)]
pub enum MachineError {
    /// The file cannot be read.
    #[error("cannot read the machine {}", .path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// The error of the system.
        source: io::Error,
    },
    /// The file does not describe a machine.
    #[error("cannot read the shares of the machine {}", .path.display())]
    Form {
        /// The file.
        path: PathBuf,
        /// The error of the parser, which ends with line and column.
        source: serde_json::Error,
    },
}

/// The result of a build that needs no disk. Its serialised form is version 1 of the `--json` report.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct SkipReport {
    /// Version of this report's format.
    pub version: u32,
    /// Always `skipped`.
    pub outcome: &'static str,
    /// The reason, as a sentence.
    pub reason: String,
}

/// The only field of `machine.json` that is used here. The launcher checks the others.
#[derive(Deserialize)]
struct Machine {
    #[serde(default)]
    shares: Vec<Share>,
}

#[derive(Deserialize)]
struct Share {
    source: PathBuf,
    #[serde(default)]
    tag: Option<String>,
}

/// Returns why the machine that the file `path` describes needs no store disk; `None` if it needs one.
///
/// # Errors
/// The file cannot be read, is not JSON, or its `shares` are not an array of objects with a `source`.
pub fn skip(path: &Path) -> Result<Option<SkipReport>, MachineError> {
    let text = read_text(path).map_err(|source| MachineError::Read { path: path.to_path_buf(), source })?;
    skip_by_text(&text).map_err(|source| MachineError::Form { path: path.to_path_buf(), source })
}

fn skip_by_text(text: &str) -> Result<Option<SkipReport>, serde_json::Error> {
    let machine: Machine = serde_json::from_str(text)?;
    let share = machine.shares.into_iter().find(|share| is_host_store(&share.source));
    Ok(share.map(|share| {
        let named = share.tag.map_or_else(String::new, |tag| format!(" {tag:?}"));
        SkipReport {
            version: 1,
            outcome: "skipped",
            reason: format!("the machine's share{named} has the source {HOST_STORE}: it needs no store disk"),
        }
    }))
}

/// Returns whether a path is `/nix/store`, with any number of slashes and dots.
fn is_host_store(source: &Path) -> bool {
    source.components().filter(|component| *component != Component::CurDir).collect::<PathBuf>()
        == Path::new(HOST_STORE)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_machine_that_shares_the_host_store_needs_no_disk() {
        for source in ["/nix/store", "/nix/store/", "//nix//store", "/nix/./store"] {
            let text =
                format!(r#"{{"version":9,"shares":[{{"source":"/srv"}},{{"source":"{source}","tag":"ro-store"}}]}}"#);
            let report = skip_by_text(&text).unwrap().unwrap();
            assert_eq!(
                serde_json::to_string(&report).unwrap(),
                concat!(
                    r#"{"version":1,"outcome":"skipped","reason":"#,
                    r#""the machine's share \"ro-store\" has the source /nix/store: it needs no store disk"}"#
                )
            );
        }
    }

    #[test]
    fn a_machine_with_other_shares_needs_a_disk() {
        for text in [
            "{}",
            r#"{"shares":[]}"#,
            r#"{"shares":[{"source":"/nix/store2"},{"source":"/nix"},{"source":"nix/store"},{"source":"/nix/store/x"}]}"#,
        ] {
            assert_eq!(skip_by_text(text).unwrap(), None, "{text}");
        }
    }

    #[test]
    fn a_file_that_is_not_a_machine_is_refused_with_line_and_column() {
        let message = |text: &str| skip_by_text(text).unwrap_err().to_string();
        assert_eq!(message("{\n\"shares\": 7}"), "invalid type: integer `7`, expected a sequence at line 2 column 11");
        assert_eq!(message(r#"{"shares":[{}]}"#), "missing field `source` at line 1 column 13");
        assert_eq!(message("[1]"), "invalid type: integer `1`, expected a sequence at line 1 column 2");
    }
}
