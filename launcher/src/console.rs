//! The guest's console on a unix socket: anyone who connects sees what was printed before, and may type.

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
    /// The socket cannot be made.
    #[error("the console cannot be served on {path}: {source}")]
    Serve {
        /// The socket.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Nobody serves it.
    #[error("no console on {path}: {source}")]
    Unreachable {
        /// The socket.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The socket that is there is not ours to replace.
    #[error(transparent)]
    Socket(#[from] crate::sockets::SocketError),
    /// The terminal cannot be used.
    #[error("the terminal: {0}")]
    Terminal(io::Error),
}
