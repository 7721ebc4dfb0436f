//! A store disk without an image: a virtio disk that reads the store when the guest reads the disk.
//!
//! The hypervisor connects to a socket and shares the guest's memory (vhost-user); from then on the guest's requests come
//! straight from there. [`content`] gives the bytes of the disk, [`request`] says what a guest asks for, [`device`] does it.
//! Before the hypervisor connects, the server gives up what it does not need ([`confine`]).
//!
//! A guest is hostile: it can write anything to its memory at any time. It gets an I/O error, for its own requests.

pub mod confine;
pub mod content;
pub mod device;
pub mod request;
pub mod socket;
#[cfg(test)]
mod tests;

use crate::block_map::{BlockMap, FileId};
use crate::build::BuildError;
use crate::erofs::{self, Profile, SameContent};
use crate::plan::ImagePlan;
use crate::store_listing::StoreListing;
use content::DiskContent;
use device::{Device, Memory};
use std::collections::BTreeMap;
use std::os::unix::net::UnixListener;
use std::sync::{Arc, Mutex, PoisonError};
use thiserror::Error;
use vhost::vhost_user::{Error as ProtocolError, Listener};
use vhost_user_backend::{Error as DaemonError, VhostUserDaemon};
use vm_memory::GuestMemoryMmap;

/// Why the server ended before its peer did.
#[derive(Debug, Error)]
pub enum ServeError {
    /// The threads or their events cannot be made.
    #[error("cannot start the device: {0}")]
    Start(DaemonError),
    /// Nobody can be accepted.
    #[error("cannot accept the hypervisor's connection: {0}")]
    Accept(DaemonError),
    /// The hypervisor has sent something that makes no sense.
    #[error("the hypervisor's connection failed: {0}")]
    Protocol(DaemonError),
}

/// Lists the closure with so many threads and lays its disk out; no content is read.
///
/// Files with equal content are stored once only if they are links of one inode, as `nix-store --optimise` makes them.
///
/// # Errors
/// What is wrong with the store paths, or too large for the format.
pub fn layout(plan: &ImagePlan, threads: usize) -> Result<BlockMap, BuildError> {
    let listing = StoreListing::of(plan, threads).map_err(BuildError::Scan)?;
    let mut inodes: BTreeMap<(u64, u64), Vec<FileId>> = BTreeMap::new();
    for (file, _) in listing.regular_files() {
        if let Some(inode) = listing.linked(file) {
            inodes.entry(inode).or_default().push(file);
        }
    }
    let mut same = SameContent::default();
    inodes.into_values().filter(|files| files.len() > 1).for_each(|files| same.add(&files));
    // Without tails of files among the inodes: a guest that lists a directory would make the server open each file in it.
    Ok(erofs::block_map(listing.files, Profile::Dax, &same)?)
}

/// Serves one hypervisor until it disconnects. Connections that say nothing are not counted: they only tested whether somebody
/// listens.
///
/// # Errors
/// [`ServeError`]. A guest cannot cause one.
pub fn serve(
    content: &Arc<dyn DiskContent>,
    listener: UnixListener,
    queues: usize,
    report: impl FnMut(&str) + Send + 'static,
) -> Result<(), ServeError> {
    let mut listener = Listener::from(listener);
    let report = Arc::new(Mutex::new(report));
    loop {
        let memory = Memory::new(GuestMemoryMmap::new());
        let report = Arc::clone(&report);
        let report_line = move |line: &str| report.lock().unwrap_or_else(PoisonError::into_inner)(line);
        let device = Arc::new(Device::new(Arc::clone(content), memory.clone(), queues, report_line));
        let mut daemon =
            VhostUserDaemon::new("vhost-user".to_owned(), Arc::clone(&device), memory).map_err(ServeError::Start)?;
        daemon.start(&mut listener).map_err(ServeError::Accept)?;
        match daemon.wait() {
            _ if !device.is_used() => (),
            Ok(()) | Err(DaemonError::HandleRequest(ProtocolError::Disconnected | ProtocolError::PartialMessage)) => {
                return Ok(());
            }
            Err(error) => return Err(ServeError::Protocol(error)),
        }
    }
}
