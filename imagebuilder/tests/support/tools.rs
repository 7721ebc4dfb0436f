//! Programs and permissions that are not available on every machine.

use std::ffi::OsStr;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::Command;

/// Runs a program and returns its stdout. If it fails, fails the test and prints its output.
pub fn run<S: AsRef<OsStr>>(program: impl AsRef<OsStr>, arguments: impl IntoIterator<Item = S>) -> String {
    let mut command = Command::new(program);
    command.args(arguments);
    let output = command.output().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    let messages = String::from_utf8_lossy(&output.stderr);
    let printed = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{command:?} ended with {}:\n{messages}{printed}", output.status);
    printed.into_owned()
}

/// Returns whether this process is root in a namespace in which file systems can be mounted.
fn may_mount() -> bool {
    nix::unistd::geteuid().is_root() && Path::new("/dev/loop-control").exists()
}

/// Whether a file has the magic number of EROFS.
fn is_erofs(image: &Path) -> bool {
    let mut magic = [0; 4];
    std::fs::File::open(image)
        .unwrap()
        .read_exact_at(&mut magic, 1024)
        .is_ok_and(|()| magic == [0xe2, 0xe1, 0xf5, 0xe0])
}

/// An image mounted by the kernel until it is dropped.
pub struct KernelMount {
    point: tempfile::TempDir,
}

impl KernelMount {
    /// Mounts an image. If it cannot be mounted, prints the reason and returns `None`.
    pub fn new(image: &Path) -> Option<Self> {
        if !may_mount() {
            testing::missing("mounting needs root and loop devices");
            return None;
        }
        let filesystems = std::fs::read_to_string("/proc/filesystems").unwrap();
        let kind = if is_erofs(image) { "erofs" } else { "squashfs" };
        if !filesystems.contains(kind) {
            testing::missing(&format!("this kernel has no {kind}"));
            return None;
        }
        let point = tempfile::tempdir().unwrap();
        let options = ["-t", kind, "-o", "loop,ro"].map(AsRef::<OsStr>::as_ref);
        run("mount", options.into_iter().chain([image.as_os_str(), point.path().as_os_str()]));
        Some(Self { point })
    }

    /// Mounts a file system to write to; `None`, with the reason printed, if that is not possible.
    pub fn writable(image: &Path, kind: &str) -> Option<Self> {
        if !may_mount() {
            testing::missing("mounting needs root and loop devices");
            return None;
        }
        if !std::fs::read_to_string("/proc/filesystems").unwrap().contains(kind) {
            testing::missing(&format!("this kernel has no {kind}"));
            return None;
        }
        let point = tempfile::tempdir().unwrap();
        let options = ["-t", kind, "-o", "loop"].map(AsRef::<OsStr>::as_ref);
        run("mount", options.into_iter().chain([image.as_os_str(), point.path().as_os_str()]));
        Some(Self { point })
    }

    /// Returns the mount point.
    pub fn path(&self) -> &Path {
        self.point.path()
    }
}

impl Drop for KernelMount {
    fn drop(&mut self) {
        // A failing test may still have open files. The kernel then ends the mount when they are closed.
        let done = Command::new("umount").arg("-l").arg(self.point.path()).status();
        if !done.is_ok_and(|status| status.success()) {
            eprintln!("could not unmount {}", self.point.path().display());
        }
    }
}
