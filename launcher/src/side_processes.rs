//! The processes beside a hypervisor, such as the virtiofs daemons: one small supervisor for all of a machine's.
//!
//! A virtiofs daemon serves one connection and ends with it. While the supervisor lives it is started again, with more
//! time between the tries the more often it fails.

use crate::child::{OnParentDeath, prepare};
use crate::interruption::{Interrupted, Interruption, end_group};
use crate::launch::{SideProcess, SideProcessKind};
use crate::path::HostPath;
use crate::programs::{NotInstalled, find_program};
use crate::sockets::{SocketError, is_served, remove_stale};
use std::io;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

/// How long a daemon may take to make its socket.
const SOCKET_PATIENCE: Duration = Duration::from_secs(30);
const FIRST_DELAY: Duration = Duration::from_millis(100);
const LONGEST_DELAY: Duration = Duration::from_secs(10);
/// A daemon that has lived this long is not in trouble: its next failure counts as the first.
const HEALTHY_LIFE: Duration = Duration::from_secs(30);

/// Why a process beside the hypervisor does not run.
#[derive(Debug, thiserror::Error)]
pub enum SideProcessError {
    /// Its program is not there.
    #[error("{name}: {source}")]
    NotInstalled {
        /// What it serves.
        name: String,
        /// What is missing.
        source: NotInstalled,
    },
    /// It cannot be started.
    #[error("{name}: {program}: {source}")]
    Start {
        /// What it serves.
        name: String,
        /// Its program.
        program: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// It ended before it had made its socket.
    #[error("{name}: {program} ended with {status} before it served {socket}; what it says is above")]
    Ended {
        /// What it serves.
        name: String,
        /// Its program.
        program: PathBuf,
        /// How it ended.
        status: ExitStatus,
        /// Its socket.
        socket: HostPath,
    },
    /// It does not make its socket.
    #[error("{name}: {program} has not served {socket} within {} s", SOCKET_PATIENCE.as_secs())]
    TooSlow {
        /// What it serves.
        name: String,
        /// Its program.
        program: PathBuf,
        /// Its socket.
        socket: HostPath,
    },
    /// Its socket is in the way.
    #[error(transparent)]
    Socket(#[from] SocketError),
    /// Somebody asked the launcher to stop.
    #[error(transparent)]
    Interrupted(#[from] Interrupted),
}

/// All processes beside one hypervisor; they end when this is dropped.
#[derive(Debug, Default)]
pub struct SideProcesses {
    entries: Vec<Entry>,
}

#[derive(Debug)]
struct Entry {
    process: SideProcess,
    program: PathBuf,
    socket: HostPath,
    working_directory: HostPath,
    child: Option<Child>,
    started: Instant,
    delay: Duration,
    start_again: Option<Instant>,
}

impl SideProcesses {
    /// Starts those whose socket nobody serves yet, and waits until all sockets are served.
    ///
    /// # Errors
    /// [`SideProcessError`]; those that were started are ended again.
    pub fn start(
        processes: &[SideProcess],
        working_directory: &HostPath,
        interruption: &Interruption,
    ) -> Result<Self, SideProcessError> {
        let mut started = Self::default();
        for process in processes {
            let socket = process.socket.below(working_directory);
            if is_served(socket.as_path()) {
                continue;
            }
            remove_stale(socket.as_path())?;
            let program = find_program(&process.program)
                .map_err(|source| SideProcessError::NotInstalled { name: described(process), source })?;
            let mut entry = Entry {
                process: process.clone(),
                program,
                socket,
                working_directory: working_directory.clone(),
                child: None,
                started: Instant::now(),
                delay: FIRST_DELAY,
                start_again: None,
            };
            entry.spawn()?;
            started.entries.push(entry);
        }
        started.wait_for_sockets(interruption)?;
        Ok(started)
    }

    /// Whether there are any.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Reaps those that have ended and starts them again when their time has come. Returns what happened, and when to
    /// look again.
    pub fn tend(&mut self) -> (Vec<String>, Option<Instant>) {
        let mut events = Vec::new();
        for entry in &mut self.entries {
            entry.reap(&mut events);
            if entry.start_again.is_some_and(|time| time <= Instant::now()) {
                entry.start_again = None;
                if let Err(error) =
                    remove_stale(entry.socket.as_path()).map_err(Into::into).and_then(|()| entry.spawn())
                {
                    events.push(error.to_string());
                    entry.start_later();
                }
            }
        }
        (events, self.entries.iter().filter_map(|entry| entry.start_again).min())
    }

    fn wait_for_sockets(&mut self, interruption: &Interruption) -> Result<(), SideProcessError> {
        let end = Instant::now() + SOCKET_PATIENCE;
        for entry in &mut self.entries {
            while !is_served(entry.socket.as_path()) {
                if let Some(status) = entry.child.as_mut().and_then(|child| child.try_wait().ok().flatten()) {
                    return Err(SideProcessError::Ended {
                        name: described(&entry.process),
                        program: entry.program.clone(),
                        status,
                        socket: entry.socket.clone(),
                    });
                }
                if Instant::now() > end {
                    return Err(SideProcessError::TooSlow {
                        name: described(&entry.process),
                        program: entry.program.clone(),
                        socket: entry.socket.clone(),
                    });
                }
                interruption.pause(Duration::from_millis(2))?;
            }
        }
        Ok(())
    }
}

impl Drop for SideProcesses {
    fn drop(&mut self) {
        for entry in &mut self.entries {
            if let Some(child) = &mut entry.child {
                end_group(child);
            }
            // A daemon leaves its socket behind, and nobody listens there any more.
            let _ = remove_stale(entry.socket.as_path());
        }
    }
}

impl Entry {
    fn spawn(&mut self) -> Result<(), SideProcessError> {
        let failed =
            |source| SideProcessError::Start { name: described(&self.process), program: self.program.clone(), source };
        let mut command = Command::new(&self.program);
        command.args(&self.process.arguments).current_dir(self.working_directory.as_path()).stdin(Stdio::null());
        // stdout is the guest's console.
        let stderr = std::os::fd::AsFd::as_fd(&io::stderr()).try_clone_to_owned().map_err(failed)?;
        command.stdout(stderr).process_group(0);
        // They end by themselves when their hypervisor closes the socket.
        prepare(&mut command, OnParentDeath::LiveOn, None);
        self.child = Some(command.spawn().map_err(failed)?);
        self.started = Instant::now();
        Ok(())
    }

    fn reap(&mut self, events: &mut Vec<String>) {
        let Some(child) = &mut self.child else { return };
        let Ok(Some(status)) = child.try_wait() else { return };
        self.child = None;
        if status.success() || self.started.elapsed() >= HEALTHY_LIFE {
            self.delay = FIRST_DELAY;
        }
        events.push(format!(
            "{} ended with {status}; starting it again in {} ms",
            described(&self.process),
            self.delay.as_millis()
        ));
        self.start_later();
    }

    fn start_later(&mut self) {
        self.start_again = Some(Instant::now() + self.delay);
        self.delay = (self.delay * 2).min(LONGEST_DELAY);
    }
}

fn described(process: &SideProcess) -> String {
    match process.kind {
        SideProcessKind::Virtiofsd => format!("the virtiofs daemon of share `{}`", process.name),
        SideProcessKind::Passt => format!("the passt of interface `{}`", process.name),
        SideProcessKind::CrosvmGpu => format!("the graphics card of `{}`", process.name),
    }
}

#[cfg(test)]
mod tests;
