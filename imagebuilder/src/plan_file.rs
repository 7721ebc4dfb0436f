//! Reads plans from files.

use crate::plan::{ImagePlan, PlanError};
use program::input::read_text;
use std::io;
use std::path::{Path, PathBuf};
use thiserror::Error;

/// The plan cannot be read.
#[derive(Debug, Error)]
pub enum PlanFileError {
    /// The file cannot be read.
    #[error("cannot read the plan {}", .path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// The error of the system.
        source: io::Error,
    },
    /// The file does not contain a valid plan.
    #[error("{} is not a plan", .path.display())]
    NotAPlan {
        /// The file.
        path: PathBuf,
        /// The problem with its text.
        source: PlanError,
    },
}

/// Reads and checks a plan.
///
/// # Errors
/// The file cannot be read, or is not a plan.
pub fn read(path: &Path) -> Result<ImagePlan, PlanFileError> {
    let text = read_text(path).map_err(|source| PlanFileError::Read { path: path.to_path_buf(), source })?;
    ImagePlan::from_json(&text).map_err(|source| PlanFileError::NotAPlan { path: path.to_path_buf(), source })
}
