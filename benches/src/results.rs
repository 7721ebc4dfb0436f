//! The values that a run of the benchmarks measured, and their file `raw.json`.

use std::fs;
use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::comparison::ComparisonOutcome;
use crate::error::{Error, file};
use crate::method::Method;
use crate::read::ImageReadings;
use crate::timings::Timings;

/// The file with all values of a run; tables and plots are made from it.
const RAW: &str = "raw.json";

/// All values measured in one run.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Results {
    /// Command, machine and versions of the programs.
    pub method: Method,
    /// The results of each store.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub stores: Vec<StoreResults>,
    /// Timings of programs that use no store.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub timings: Vec<Timings>,
}

impl Results {
    /// Results of stores, without other timings.
    #[must_use]
    pub fn of_stores(method: Method, stores: Vec<StoreResults>) -> Self {
        Self { method, stores, timings: Vec::new() }
    }
}

/// The quantity that grows from one synthetic store to the next.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Growth {
    /// The number of small files.
    Files,
    /// The bytes of large files.
    Bytes,
}

/// The values measured on one store.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct StoreResults {
    /// The name of its package list.
    pub name: String,
    /// The growing quantity, if it belongs to a series of synthetic stores.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub growth: Option<Growth>,
    /// The size of its NARs in bytes.
    pub nar_bytes: u64,
    /// The number of its files.
    pub files: usize,
    /// Seconds to read it once with two readers, one value per round: a lower bound for hashing its content.
    pub read_seconds: Vec<f64>,
    /// The results of each comparison, in the order in which they ran.
    #[serde(rename = "contests")]
    pub comparisons: Vec<ComparisonOutcome>,
    /// Other measured facts, one sentence each.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub notes: Vec<String>,
    /// Times to read the images of the default comparison through loop mounts, if requested.
    pub readings: Vec<ImageReadings>,
    /// Times to read the same images in a guest, if requested.
    pub guest_readings: Vec<ImageReadings>,
}

impl Results {
    /// Reads the `raw.json` of a directory.
    ///
    /// # Errors
    /// It cannot be read, or is not valid.
    pub fn read(directory: &Path) -> Result<Self, Error> {
        let path = directory.join(RAW);
        let text = fs::read_to_string(&path).map_err(file("read", &path))?;
        serde_json::from_str(&text).map_err(|error| Error::Unexpected(format!("{}: {error}", path.display())))
    }

    /// Writes `raw.json` into `directory`, which is created if it does not exist.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn write(&self, directory: &Path) -> Result<(), Error> {
        fs::create_dir_all(directory).map_err(file("create", directory))?;
        let raw = serde_json::to_string_pretty(self).map_err(|error| Error::Unexpected(error.to_string()))?;
        let path = directory.join(RAW);
        fs::write(&path, raw + "\n").map_err(file("write", path))
    }
}
