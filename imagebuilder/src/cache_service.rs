//! The cache that all builds of a host share, also those in Nix's sandbox: a service makes packs from the host's store and
//! hands out read-only descriptors of them over a Unix socket.
//!
//! A client names a store path, its NAR hash and the settings. The service asks Nix whether the path is valid and has that
//! hash, makes the pack from the store itself, and sends a descriptor. Nothing that a client sends is ever written
//! anywhere, so a hostile client can at most ask for work, and the amount of that is limited. See `docs/cache.md`.

pub mod client;
mod connections;
pub mod kept_packs;
pub mod listener;
mod messages;
pub mod nix_daemon;
pub mod owners;
pub mod protocol;
mod scheduler;
pub mod server;
mod workers;

use crate::settings::ImageSettings;
use crate::store_path::StorePath;
use std::error::Error;
use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::sync::atomic::AtomicBool;

/// Where the service listens and clients connect, unless an option names another socket.
pub const DEFAULT_SOCKET: &str = "/run/microvm-image/cache.sock";

/// A pack that a client wants.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct WantedPack {
    /// The member of the store.
    pub path: StorePath,
    /// sha256 of its NAR serialisation.
    pub nar_hash: [u8; 32],
    /// Length of its NAR serialisation in bytes, as Nix has recorded it; `None` until Nix was asked.
    pub nar_size_bytes: Option<u64>,
    /// Codec and block sizes.
    pub settings: ImageSettings,
}

/// Where packs are kept and made. Called from several threads at once.
pub trait PackStore: Sync {
    /// Everything that settles a pack's bytes besides the store path and the settings: versions of the pack's form, of the
    /// encoder and of the codec. A client with another one cannot use the packs.
    fn encoder(&self, settings: &ImageSettings) -> String;

    /// Opens the pack again, read-only, if it is kept: the file is sent to a client, which then shares its offset.
    ///
    /// # Errors
    /// It cannot be looked for.
    fn find(&self, wanted: &WantedPack) -> io::Result<Option<File>>;

    /// Makes the pack from the store, keeps it, and returns it, open for reading. Gives up soon once `cancel` is set.
    ///
    /// # Errors
    /// The message that the client is sent.
    fn make(&self, wanted: &WantedPack, cancel: &AtomicBool) -> Result<File, String>;
}

/// An error and what it comes from, in one line.
fn in_one_line(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text.push_str(&format!(": {error}"));
        cause = error.source();
    }
    text
}

/// Opens a file again, for reading only: a descriptor that is sent shares its offset and its rights with the receiver.
fn reopen(file: &File) -> io::Result<File> {
    File::open(format!("/proc/self/fd/{}", file.as_raw_fd()))
}
