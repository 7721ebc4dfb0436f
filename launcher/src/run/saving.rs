//! Waiting for the end of a suspend.

use super::RunError;
use crate::interruption::Interruption;
use crate::path::HostPath;
use crate::state::MachineState;
use crate::suspend::{LOCK, SuspendError};
use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg, OFlag};
use program::place::Place;
use std::io;
use std::time::{Duration, Instant};

/// How long a start waits for a process that is still saving the machine.
const SAVING_TIMEOUT: Duration = Duration::from_secs(30);
const SAVING_POLL_INTERVAL: Duration = Duration::from_millis(10);

/// Waits for a process that is saving a machine whose hypervisor has ended: what it saves must be complete before a start
/// looks for it, and the volumes must not change until then.
///
/// # Errors
/// Returns [`SuspendError::InProgress`] if it takes longer than [`SAVING_TIMEOUT`], or [`RunError::Interrupted`].
pub(super) fn wait_until_saved(state: &MachineState, interruption: &Interruption) -> Result<(), RunError> {
    let path = state.file(LOCK);
    let failed = |source| RunError::File { path: HostPath::new(path.to_string_lossy()), source };
    let place = Place::nofollow(&path).map_err(failed)?;
    let mut file = match place.open(OFlag::O_RDONLY) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(failed(error)),
    };
    let end = Instant::now() + SAVING_TIMEOUT;
    loop {
        match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
            Ok(_) => return Ok(()),
            Err((again, Errno::EWOULDBLOCK)) if Instant::now() < end => file = again,
            Err((_, Errno::EWOULDBLOCK)) => {
                return Err(SuspendError::InProgress(state.name().to_owned()).into());
            }
            Err((_, errno)) => return Err(failed(errno.into())),
        }
        interruption.pause(SAVING_POLL_INTERVAL)?;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::state::RuntimeDirectory;
    use crate::suspend::lock;
    use nix::sys::pthread::{pthread_kill, pthread_self};
    use nix::sys::signal::Signal;

    #[test]
    fn a_signal_ends_a_start_that_waits_for_a_suspend() {
        let directory = tempfile::tempdir().unwrap();
        let state = RuntimeDirectory::at(directory.path()).machine("web").unwrap();
        let starting = state.lock_for_start(directory.path()).unwrap();
        let interruption = Interruption::watch().unwrap();
        wait_until_saved(&state, &interruption).unwrap();
        let saving = lock(&state).unwrap();
        pthread_kill(pthread_self(), Signal::SIGTERM).unwrap();
        let waited = wait_until_saved(&state, &interruption);
        assert!(matches!(waited, Err(RunError::Interrupted(_))), "{waited:?}");
        drop((saving, starting));
    }
}
