//! A store disk without an image: a virtio disk that reads the store when the guest reads the disk.
//!
//! The hypervisor connects to a socket and shares the guest's memory (vhost-user); the server then reads the guest's requests
//! from that memory. [`content`] provides the bytes of the disk, [`request`] parses requests, and [`device`] carries them out.
//! Before it accepts a connection, the server gives up all access that it does not need ([`confine`]).
//!
//! Guests are not trusted: they can write anything to their memory at any time. An invalid request fails with an I/O error
//! and affects nothing else.

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

/// Why the server ended before the hypervisor disconnected.
#[derive(Debug, Error)]
pub enum ServeError {
    /// The threads or their event descriptors cannot be created.
    #[error("cannot start the device: {0}")]
    Start(DaemonError),
    /// A connection cannot be accepted.
    #[error("cannot accept the hypervisor's connection: {0}")]
    Accept(DaemonError),
    /// The hypervisor has sent an invalid message.
    #[error("the hypervisor's connection failed: {0}")]
    Protocol(DaemonError),
}

/// Lists the closure with `threads` threads and computes the layout of its disk; no content is read.
///
/// Files with equal content are stored once only if they are links of one inode, as `nix-store --optimise` makes them.
///
/// # Errors
/// The store paths cannot be listed, or exceed a limit of the format.
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
    // Files have no tails after their inodes: otherwise the server would have to open each file of a directory that a
    // guest lists.
    Ok(erofs::block_map(listing.files, Profile::Dax, &same)?)
}

/// Serves one hypervisor until it disconnects. A connection that sends nothing is ignored: it only tested whether a
/// process listens.
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
