//! Two builds to one output do not mix the image of one with the seal of the other.

use std::fs;
use std::io;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::{SocketAddr, UnixListener};
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

/// How long a build waits for another one. Two files are renamed in milliseconds, so a longer wait means that another
/// program uses the name, or that the disk is very slow.
const TIMEOUT: Duration = Duration::from_secs(10);
const INTERVAL: Duration = Duration::from_millis(2);

/// A lock for the outputs in a directory, held while an image and its seal get their names. Where it cannot be taken, only
/// the last of several builds to one output can be relied on.
///
/// It is an abstract socket, unix(7): the kernel removes it with the process, and it needs no file beside the image. A lock
/// of the directory itself would look like a running machine, which locks its state directory.
pub(super) struct PublishLock {
    _socket: Option<UnixListener>,
}

impl PublishLock {
    /// Waits until no other build publishes in the directory of `image`.
    pub(super) fn take(image: &Path) -> Self {
        let directory = image.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
        Self { _socket: Self::bind(directory, Instant::now() + TIMEOUT).ok() }
    }

    fn bind(directory: &Path, deadline: Instant) -> io::Result<UnixListener> {
        let directory = fs::metadata(directory)?;
        let name = format!("microvm-image publishes in {}:{}", directory.dev(), directory.ino());
        let address = SocketAddr::from_abstract_name(name)?;
        loop {
            match UnixListener::bind_addr(&address) {
                Err(error) if error.kind() == io::ErrorKind::AddrInUse && Instant::now() < deadline => {
                    thread::sleep(INTERVAL);
                }
                bound => return bound,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_builds_publish_in_one_directory_one_after_the_other() {
        let directory = tempfile::tempdir().unwrap();
        let other = tempfile::tempdir().unwrap();
        let held = PublishLock::take(&directory.path().join("image"));
        assert!(held._socket.is_some() && PublishLock::take(&other.path().join("image"))._socket.is_some());
        let now = Instant::now();
        assert!(PublishLock::bind(directory.path(), now).is_err_and(|error| error.kind() == io::ErrorKind::AddrInUse));
        drop(held);
        assert!(PublishLock::bind(directory.path(), now).is_ok());
    }
}
