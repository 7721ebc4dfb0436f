//! Raw mode of a terminal, restored at the end.

use nix::sys::termios::{SetArg, Termios, cfmakeraw, tcgetattr, tcsetattr};
use std::io;
use std::os::fd::{AsFd, OwnedFd};

/// A terminal in raw mode. Dropping this restores its former settings.
#[derive(Debug)]
pub struct RawTerminal {
    terminal: OwnedFd,
    before: Termios,
}

impl RawTerminal {
    /// Sets the terminal to raw mode.
    ///
    /// # Errors
    /// Fails if the descriptor is not a terminal.
    pub fn enter(terminal: &impl AsFd) -> io::Result<Self> {
        let terminal = terminal.as_fd().try_clone_to_owned()?;
        let before = tcgetattr(&terminal)?;
        set_raw(&terminal, before.clone())?;
        Ok(Self { terminal, before })
    }
}

impl Drop for RawTerminal {
    fn drop(&mut self) {
        // Fails if the terminal is closed; then there is nothing to restore.
        let _ = tcsetattr(&self.terminal, SetArg::TCSADRAIN, &self.before);
    }
}

/// Sets a terminal to raw mode permanently.
///
/// # Errors
/// Fails if the descriptor is not a terminal.
pub fn make_raw(terminal: &impl AsFd) -> io::Result<()> {
    set_raw(terminal, tcgetattr(terminal)?)
}

fn set_raw(terminal: &impl AsFd, mut settings: Termios) -> io::Result<()> {
    cfmakeraw(&mut settings);
    tcsetattr(terminal, SetArg::TCSANOW, &settings)?;
    Ok(())
}
