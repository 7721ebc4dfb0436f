//! A terminal that hands every key on, put back as it was in the end.

use nix::sys::termios::{SetArg, Termios, cfmakeraw, tcgetattr, tcsetattr};
use std::io;
use std::os::fd::{AsFd, OwnedFd};

/// A terminal in raw mode, as long as this lives.
#[derive(Debug)]
pub struct RawTerminal {
    terminal: OwnedFd,
    before: Termios,
}

impl RawTerminal {
    /// Puts the terminal into raw mode.
    ///
    /// # Errors
    /// When it is no terminal.
    pub fn enter(terminal: &impl AsFd) -> io::Result<Self> {
        let terminal = terminal.as_fd().try_clone_to_owned()?;
        let before = tcgetattr(&terminal)?;
        set_raw(&terminal, before.clone())?;
        Ok(Self { terminal, before })
    }
}

impl Drop for RawTerminal {
    fn drop(&mut self) {
        // The terminal may be gone, and then needs nothing.
        let _ = tcsetattr(&self.terminal, SetArg::TCSADRAIN, &self.before);
    }
}

/// Makes a terminal pass everything on unchanged, for good.
///
/// # Errors
/// When it is no terminal.
pub fn make_raw(terminal: &impl AsFd) -> io::Result<()> {
    set_raw(terminal, tcgetattr(terminal)?)
}

fn set_raw(terminal: &impl AsFd, mut settings: Termios) -> io::Result<()> {
    cfmakeraw(&mut settings);
    tcsetattr(terminal, SetArg::TCSANOW, &settings)?;
    Ok(())
}
