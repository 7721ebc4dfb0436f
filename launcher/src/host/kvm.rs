//! Checking whether KVM works, by creating a machine and closing it again (0.3 ms).
//!
//! Opening the device is not enough: another hypervisor may use the processor's virtualisation, so that no machine can
//! be created, and `/dev/kvm` in a container may be another file.

use crate::facts::Kvm;
use std::fs::OpenOptions;
use std::io;
use std::os::fd::AsFd;
use std::path::Path;

/// `KVM_API_VERSION` in linux/kvm.h, which has not changed since 2007 and will not change.
const API_VERSION: i32 = 12;

/// Checks the device.
pub(super) fn probe(device: &Path) -> Kvm {
    let name = device.display();
    let file = match OpenOptions::new().read(true).write(true).open(device) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            return Kvm::Unusable(format!(
                "{name} does not exist: enable virtualisation and load kvm_intel or kvm_amd"
            ));
        }
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
            return Kvm::Unusable(format!("{name}: {error}: become a member of the group kvm"));
        }
        Err(error) => return Kvm::Unusable(format!("{name} cannot be opened: {error}")),
    };
    match request::api_version(file.as_fd()) {
        Ok(API_VERSION) => {}
        Ok(version) => {
            return Kvm::Unusable(format!("{name} has version {version} of the interface, not {API_VERSION}"));
        }
        Err(error) => return Kvm::Unusable(format!("{name} is not the KVM device: {error}")),
    }
    match request::create_machine(file.as_fd()) {
        Ok(_) if Path::new("/sys/module/kvm_pvm").is_dir() => Kvm::UsableSoftware,
        Ok(_) => Kvm::Usable,
        Err(error) if error.kind() == io::ErrorKind::ResourceBusy => Kvm::Unusable(format!(
            "{name} cannot create a machine: another hypervisor of this host uses the processor's virtualisation"
        )),
        Err(error) => Kvm::Unusable(format!("{name} cannot create a machine: {error}")),
    }
}

/// Returns the most virtual CPUs of a machine, if the kernel reports it.
pub(super) fn max_vcpus(device: &Path) -> Option<u32> {
    let file = OpenOptions::new().read(true).write(true).open(device).ok()?;
    let most = request::check_extension(file.as_fd(), request::KVM_CAP_MAX_VCPUS).ok()?;
    u32::try_from(most).ok().filter(|most| *most > 0)
}

/// The ioctl requests of linux/kvm.h.
#[expect(unsafe_code, reason = "no crate wraps the ioctls of KVM")]
mod request {
    use std::io;
    use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

    const KVM_GET_API_VERSION: u64 = 0xae00;
    const KVM_CREATE_VM: u64 = 0xae01;
    const KVM_CHECK_EXTENSION: u64 = 0xae03;
    /// `KVM_CAP_MAX_VCPUS`.
    pub(super) const KVM_CAP_MAX_VCPUS: i32 = 66;

    nix::ioctl_write_int_bad!(kvm_get_api_version, KVM_GET_API_VERSION);
    nix::ioctl_write_int_bad!(kvm_create_vm, KVM_CREATE_VM);
    nix::ioctl_write_int_bad!(kvm_check_extension, KVM_CHECK_EXTENSION);

    /// Returns the version of the interface.
    pub(super) fn api_version(device: BorrowedFd<'_>) -> io::Result<i32> {
        // SAFETY: the argument is a number, not a pointer.
        Ok(unsafe { kvm_get_api_version(device.as_raw_fd(), 0) }?)
    }

    /// Returns the value of a capability; 0 if it is unsupported.
    pub(super) fn check_extension(device: BorrowedFd<'_>, extension: i32) -> io::Result<i32> {
        // SAFETY: the argument is a number, not a pointer.
        Ok(unsafe { kvm_check_extension(device.as_raw_fd(), extension) }?)
    }

    /// Creates a machine without memory and processors. It is destroyed when its descriptor is closed.
    pub(super) fn create_machine(device: BorrowedFd<'_>) -> io::Result<OwnedFd> {
        // SAFETY: the argument is a number, not a pointer.
        let descriptor = unsafe { kvm_create_vm(device.as_raw_fd(), 0) }?;
        // SAFETY: the kernel has just returned the descriptor, and nothing else owns it.
        Ok(unsafe { OwnedFd::from_raw_fd(descriptor) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn why(device: &str) -> String {
        match probe(Path::new(device)) {
            Kvm::Unusable(why) => why,
            usable => panic!("{device}: {usable:?}"),
        }
    }

    #[test]
    fn the_reason_for_an_unusable_device_is_reported() {
        assert!(why("/nonexistent/kvm").contains("load kvm_intel"));
        assert_eq!(why("/dev"), "/dev cannot be opened: Is a directory (os error 21)");
    }

    #[test]
    fn a_device_that_opens_but_is_not_kvm_is_unusable() {
        let why = why("/dev/null");
        assert!(why.starts_with("/dev/null is not the KVM device: Inappropriate ioctl"), "{why}");
    }
}
