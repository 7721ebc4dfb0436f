//! When a machine needs no store disk: it mounts the host's store instead.

use serde::{Deserialize, Serialize};
use std::fs;
use std::io;
use std::path::{Component, Path, PathBuf};
use thiserror::Error;

/// The host directory that, shared, makes a store disk superfluous.
const HOST_STORE: &str = "/nix/store";

/// Why a machine's shares are not known.
#[derive(Debug, Error)]
pub enum MachineError {
    /// The file cannot be read.
    #[error("cannot read the machine {}", .path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// What it holds is not a machine.
    #[error("cannot read the shares of the machine {}", .path.display())]
    Form {
        /// The file.
        path: PathBuf,
        /// Why; the message ends with line and column.
        source: serde_json::Error,
    },
}

/// What a build says when no disk is needed. Serialised it is the version 1 of the `--json` report.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct SkipReport {
    /// Version of this report's form.
    pub version: u32,
    /// Always `skipped`.
    pub outcome: &'static str,
    /// Why, for a reader.
    pub reason: String,
}

/// The one field of `machine.json` that is looked at. The launcher owns the form and checks the rest.
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

/// Whether the machine described by the file `path` needs no store disk, and if so why.
///
/// # Errors
/// The file cannot be read, is not JSON, or its `shares` are not an array of objects with a `source`.
pub fn skip(path: &Path) -> Result<Option<SkipReport>, MachineError> {
    let text = fs::read_to_string(path).map_err(|source| MachineError::Read { path: path.to_path_buf(), source })?;
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

/// `/nix/store`, however many slashes and dots it is written with.
fn is_host_store(source: &Path) -> bool {
    source.components().filter(|component| *component != Component::CurDir).collect::<PathBuf>()
        == Path::new(HOST_STORE)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_host_store_as_a_share_skips_the_disk() {
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
    fn other_shares_do_not() {
        for text in [
            "{}",
            r#"{"shares":[]}"#,
            r#"{"shares":[{"source":"/nix/store2"},{"source":"/nix"},{"source":"nix/store"},{"source":"/nix/store/x"}]}"#,
        ] {
            assert_eq!(skip_by_text(text).unwrap(), None, "{text}");
        }
    }

    #[test]
    fn what_is_no_machine_is_refused_with_its_place() {
        let message = |text: &str| skip_by_text(text).unwrap_err().to_string();
        assert_eq!(message("{\n\"shares\": 7}"), "invalid type: integer `7`, expected a sequence at line 2 column 11");
        assert_eq!(message(r#"{"shares":[{}]}"#), "missing field `source` at line 1 column 13");
        assert_eq!(message("[1]"), "invalid type: integer `1`, expected a sequence at line 1 column 2");
    }
}
