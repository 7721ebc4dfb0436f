//! The record next to a socket that proves which command serves it.

use super::SOCKET_POLL_INTERVAL;
use crate::interruption::{Interrupted, Interruption};
use crate::launch::{RECORD_ENDING, SideProcess};
use crate::path::HostPath;
use crate::sockets::is_served;
use program::place::Place;
use serde::{Deserialize, Serialize};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::{Duration, Instant};

/// How long another launcher may take to record the command of a daemon that it has just restarted.
const PROOF_TIMEOUT: Duration = Duration::from_secs(2);

/// The recorded command of a process that serves a socket.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct ServedCommand {
    program: HostPath,
    arguments: Vec<String>,
    working_directory: HostPath,
    /// Device and inode of the socket: another process that takes over the path creates another socket.
    socket: (u64, u64),
}

impl ServedCommand {
    pub(super) fn of(process: &SideProcess, working_directory: &HostPath) -> io::Result<Self> {
        let socket = std::fs::symlink_metadata(process.socket.below(working_directory).as_path())?;
        Ok(Self {
            program: process.program.clone(),
            arguments: process.all_arguments(),
            working_directory: working_directory.clone(),
            socket: (socket.dev(), socket.ino()),
        })
    }
}

/// Whether the socket is served by a process that provably runs the same command. Only records of root and of this user
/// are trusted.
pub fn serves_the_same(process: &SideProcess, working_directory: &HostPath) -> bool {
    let socket = process.socket.below(working_directory);
    let written = || {
        let (text, writer) = command_place(socket.as_path()).and_then(|place| place.read()).ok()??;
        let is_trusted = writer.is_root() || writer == nix::unistd::geteuid();
        serde_json::from_slice::<ServedCommand>(&text).ok().filter(|_| is_trusted)
    };
    is_served(socket.as_path())
        && ServedCommand::of(process, working_directory).is_ok_and(|command| written() == Some(command))
}

pub(super) fn is_proven(
    process: &SideProcess,
    working_directory: &HostPath,
    interruption: &Interruption,
) -> Result<bool, Interrupted> {
    let end = Instant::now() + PROOF_TIMEOUT;
    while !serves_the_same(process, working_directory) {
        if Instant::now() > end {
            return Ok(false);
        }
        interruption.pause(SOCKET_POLL_INTERVAL)?;
    }
    Ok(true)
}

pub(super) fn command_place(socket: &Path) -> io::Result<Place> {
    Place::nofollow(socket)?.sibling(RECORD_ENDING)
}
