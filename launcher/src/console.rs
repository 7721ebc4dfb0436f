//! The guest's console on a Unix socket. Everyone who connects sees the earlier output and can type.

pub mod client;
pub mod server;
pub mod terminal;

pub use client::{Detached, attach};
pub use server::ConsoleServer;

use std::io;
use std::path::PathBuf;

/// Why a console cannot be served or reached.
#[derive(Debug, thiserror::Error)]
pub enum ConsoleError {
    /// The socket cannot be created.
    #[error("the console cannot be served on {path}: {source}")]
    Serve {
        /// The socket.
        path: PathBuf,
        /// The error of the system.
        source: io::Error,
    },
    /// No process serves the socket.
    #[error("cannot connect to the console {path}: {source}")]
    Unreachable {
        /// The socket.
        path: PathBuf,
        /// The error of the system.
        source: io::Error,
    },
    /// An existing socket must not be replaced.
    #[error(transparent)]
    Socket(#[from] crate::sockets::SocketError),
    /// The terminal cannot be read, written or set to raw mode.
    #[error("cannot use the terminal: {0}")]
    Terminal(io::Error),
}
