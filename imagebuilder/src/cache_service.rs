//! The cache that all builds of a host share, including those in Nix's sandbox. A service makes packs from the host's
//! store and sends read-only descriptors of them over a Unix socket.
//!
//! A client sends a store path, its NAR hash and the settings. The service asks Nix whether the path is valid and has
//! that hash, makes the pack from the store itself, and sends a descriptor. Nothing that a client sends is ever written
//! anywhere, so a malicious client can only request work, and the amount of work is limited. See
//! `docs/cache-service.md`.

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

use self::protocol::WantedFile;
use crate::settings::ImageSettings;
use crate::store_path::StorePath;
use program::place::descriptor_path;
use std::error::Error;
use std::fs::File;
use std::io;
use std::sync::atomic::AtomicBool;

/// The default socket of the service and its clients.
pub const DEFAULT_SOCKET: &str = "/run/microvm-image/cache.sock";

/// A pack, or another file of a store path, that a client requests.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct WantedPack {
    /// The store path.
    pub path: StorePath,
    /// SHA-256 of its NAR serialisation.
    pub nar_hash: [u8; 32],
    /// Length of its NAR serialisation in bytes, as recorded by Nix; `None` until Nix has been queried.
    pub nar_size_bytes: Option<u64>,
    /// Codec and block sizes.
    pub settings: ImageSettings,
    /// The file.
    pub file: WantedFile,
}

/// Finds and makes packs. Several threads call it at once.
pub trait PackStore: Sync {
    /// Returns everything that determines a pack's bytes besides the store path and the settings: the versions of the
    /// pack format, of the encoder and of the codec. A client with other versions cannot use the packs.
    fn encoder(&self, settings: &ImageSettings) -> String;

    /// Opens the file read-only, if it exists. Each call opens it again, because a client shares the offset of its
    /// descriptor.
    ///
    /// # Errors
    /// The file cannot be looked up.
    fn find(&self, wanted: &WantedPack) -> io::Result<Option<File>>;

    /// Makes the file, keeps it, and returns it open for reading; `None` if a pack is missing that the file is made from.
    /// Stops soon after `cancel` is set.
    ///
    /// # Errors
    /// The file cannot be made. The error is the message for the client.
    fn make(&self, wanted: &WantedPack, cancel: &AtomicBool) -> Result<Option<File>, String>;
}

/// Formats an error and its causes in one line.
fn in_one_line(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text.push_str(&format!(": {error}"));
        cause = error.source();
    }
    text
}

/// Opens a file again for reading only. The receiver of a descriptor shares its offset and access mode with the sender.
fn reopen(file: &File) -> io::Result<File> {
    File::open(descriptor_path(file))
}
