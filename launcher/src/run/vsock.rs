//! Whether a guest's vsock address is free. Where the kernel carries vsock, an address belongs to the whole host, and the
//! hypervisor's own message for one in use names neither the machine nor the option.

use super::RunError;
use crate::launch::{Launch, VsockHostEnd};
use crate::state::RuntimeDirectory;
use nix::errno::Errno;
use std::fs::File;

/// Refuses to start a machine whose address another machine uses.
///
/// # Errors
/// Returns [`RunError::CidInUse`].
pub(super) fn require_free(launch: &Launch, runtime: &RuntimeDirectory) -> Result<(), RunError> {
    match user_of_address(launch, runtime) {
        Some((cid, holder)) => Err(RunError::CidInUse { machine: launch.name.clone(), cid, holder }),
        None => Ok(()),
    }
}

/// Returns the machine's address and what uses it, if it is in use.
pub(super) fn user_of_address(launch: &Launch, runtime: &RuntimeDirectory) -> Option<(u32, String)> {
    let cid = kernel_cid(launch)?;
    let holder = holder(cid, &launch.name, runtime);
    if holder.is_none() && !is_taken(cid) {
        return None;
    }
    Some((cid, holder.unwrap_or_else(|| "another process of this host".to_owned())))
}

fn kernel_cid(launch: &Launch) -> Option<u32> {
    launch.vsock.as_ref().filter(|vsock| vsock.host_end == VsockHostEnd::Kernel).map(|vsock| vsock.cid)
}

/// Returns the running machine of this runtime directory that has the address.
fn holder(cid: u32, own: &str, runtime: &RuntimeDirectory) -> Option<String> {
    let names = runtime.machine_names().ok()?;
    names.into_iter().find(|name| {
        let uses = || {
            let machine = runtime.machine(name).ok()?;
            machine.running().ok()??;
            kernel_cid(&machine.last_launch().ok()??)
        };
        name != own && uses() == Some(cid)
    })
}

/// Asks the kernel. The address is free again when the device is closed.
fn is_taken(cid: u32) -> bool {
    let Ok(device) = File::options().read(true).write(true).open("/dev/vhost-vsock") else {
        // The hypervisor cannot open it either, which is reported as a missing device.
        return false;
    };
    request::set_guest_cid(&device, cid) == Err(Errno::EADDRINUSE)
}

/// The ioctl request of linux/vhost.h.
#[expect(unsafe_code, reason = "no crate wraps the ioctls of vhost")]
mod request {
    use nix::errno::Errno;
    use std::fs::File;
    use std::os::fd::AsRawFd;

    // VHOST_VSOCK_SET_GUEST_CID
    nix::ioctl_write_ptr!(vhost_vsock_set_guest_cid, 0xaf, 0x60, u64);

    /// Reserves an address until the device is closed.
    pub(super) fn set_guest_cid(device: &File, cid: u32) -> Result<(), Errno> {
        let cid = u64::from(cid);
        // SAFETY: the kernel reads eight bytes at the pointer, which live until the call returns.
        unsafe { vhost_vsock_set_guest_cid(device.as_raw_fd(), &cid) }.map(drop)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::launch::VsockEnd;
    use crate::state::ProcessIdentity;
    use crate::state::tests::running;
    use std::path::Path;

    #[test]
    fn an_address_that_a_running_machine_uses_is_refused_with_its_name() {
        let directory = tempfile::tempdir().unwrap();
        let runtime = RuntimeDirectory::at(directory.path());
        let launch = |name: &str, host_end: VsockHostEnd| {
            let vsock = Some(VsockEnd { cid: 4_000_000_010, host_end });
            Launch { name: name.to_owned(), vsock, ..crate::shutdown::tests::launch(directory.path()) }
        };
        let state = runtime.machine("db").unwrap();
        let _lock = state.lock_for_start(Path::new("/var/lib/db")).unwrap();
        state.write_launch(&launch("db", VsockHostEnd::Kernel)).unwrap();
        require_free(&launch("web", VsockHostEnd::Kernel), &runtime).unwrap();
        state.write_running(&running(ProcessIdentity::current().unwrap())).unwrap();
        let error = require_free(&launch("web", VsockHostEnd::Kernel), &runtime).unwrap_err().to_string();
        assert_eq!(
            error,
            "web: the vsock address 4000000010 is in use by db; stop it, or give one of them another vsock.cid"
        );
        // Where the hypervisor has a socket of its own, addresses do not clash.
        require_free(&launch("web", VsockHostEnd::UnixSocket("vsock.sock".into())), &runtime).unwrap();
    }
}
