//! The pages: the Markdown files of the work tree.

use crate::error::{Error, file};
use std::fs;
use std::path::{Path, PathBuf};

/// A page of the manual.
#[derive(Debug, Clone)]
pub struct Page {
    /// Path, relative to the root of the work tree.
    pub path: PathBuf,
    /// Its Markdown.
    pub text: String,
}

impl Page {
    /// Returns whether it is part of the book.
    #[must_use]
    pub fn is_in_book(&self) -> bool {
        self.path.starts_with("docs")
    }
}

/// Returns the work tree that this program was compiled from.
#[must_use]
pub fn root() -> PathBuf {
    let own = Path::new(env!("CARGO_MANIFEST_DIR"));
    own.parent().unwrap_or(own).to_owned()
}

/// Returns all pages, in the order of their paths: those at the root, of docs/, fixtures/, fuzz/ and benches/.
///
/// # Errors
/// When one can't be read.
pub fn all(root: &Path) -> Result<Vec<Page>, Error> {
    let mut paths = Vec::new();
    list(root, Path::new(""), 1, &mut paths)?;
    for (directory, depth) in [("docs", 4), ("fixtures", 3), ("fuzz", 1), ("benches", 4)] {
        list(root, Path::new(directory), depth, &mut paths)?;
    }
    paths.sort();
    let read = |path: PathBuf| {
        let text = fs::read_to_string(root.join(&path)).map_err(file("read", &path))?;
        Ok(Page { path, text })
    };
    paths.into_iter().map(read).collect()
}

fn list(root: &Path, directory: &Path, depth: usize, paths: &mut Vec<PathBuf>) -> Result<(), Error> {
    let full = root.join(directory);
    let unreadable = || file("list", directory);
    for entry in fs::read_dir(&full).map_err(unreadable())? {
        let entry = entry.map_err(unreadable())?;
        let path = directory.join(entry.file_name());
        let kind = entry.file_type().map_err(unreadable())?;
        if kind.is_dir() && depth > 1 {
            list(root, &path, depth - 1, paths)?;
        } else if kind.is_file() && path.extension().is_some_and(|extension| extension == "md") {
            paths.push(path);
        }
    }
    Ok(())
}
