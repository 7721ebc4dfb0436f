//! The initrd of a guest that a benchmark boots: that of the fixture, with files added.

use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, Stdio};

use crate::error::{Error, file};

/// Writes the initrd `base`, followed by an archive of these executable files; the kernel unpacks one after another.
///
/// # Errors
/// When a file cannot be read or written, or cpio fails.
pub fn with_files(base: &Path, files: &[(&str, &[u8])], initrd: &Path) -> Result<(), Error> {
    let tree = tempfile::tempdir().map_err(file("create a directory in", std::env::temp_dir()))?;
    let mut names = String::new();
    for (name, content) in files {
        let path = tree.path().join(name);
        fs::write(&path, content).map_err(file("write", &path))?;
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).map_err(file("make executable", &path))?;
        names.push_str(name);
        names.push('\n');
    }
    fs::copy(base, initrd).map_err(file("copy", base))?;
    let mut archive = Command::new("cpio")
        .args(["--quiet", "--create", "--format=newc"])
        .current_dir(tree.path())
        .stdin(Stdio::piped())
        .stdout(File::options().append(true).open(initrd).map_err(file("open", initrd))?)
        .spawn()
        .map_err(|source| Error::Start { program: "cpio".into(), source })?;
    if let Some(mut input) = archive.stdin.take() {
        input.write_all(names.as_bytes()).map_err(file("list files for", initrd))?;
    }
    let status = archive.wait().map_err(file("archive", initrd))?;
    if status.success() {
        return Ok(());
    }
    Err(Error::Program { program: "cpio".into(), status, stderr: String::new() })
}
