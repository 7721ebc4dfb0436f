//! Whether the kernel's virtualisation can be used: by making a machine with it and throwing that away (0.3 ms).
//!
//! That the device opens says little: another hypervisor may hold the processor's virtualisation (then no machine can be
//! made), and what is mounted at `/dev/kvm` in a container may be something else.

use crate::facts::Kvm;
use std::fs::OpenOptions;
use std::io;
use std::os::fd::AsFd;
use std::path::Path;

/// `KVM_API_VERSION` in linux/kvm.h, which has not changed since 2007 and never will.
const API_VERSION: i32 = 12;

/// What the device is good for.
pub(super) fn probe(device: &Path) -> Kvm {
    let name = device.display();
    let file = match OpenOptions::new().read(true).write(true).open(device) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            return Kvm::Unusable(format!("{name} is not there: enable virtualisation and load kvm_intel or kvm_amd"));
        }
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
            return Kvm::Unusable(format!("{name}: {error}: become a member of the group kvm"));
        }
        Err(error) => return Kvm::Unusable(format!("{name} cannot be opened: {error}")),
    };
    match request::api_version(file.as_fd()) {
        Ok(API_VERSION) => {}
        Ok(version) => {
            return Kvm::Unusable(format!("{name} has version {version} of its interface, not {API_VERSION}"));
        }
        Err(error) => return Kvm::Unusable(format!("{name} is not the kernel's virtualisation: {error}")),
    }
    match request::create_machine(file.as_fd()) {
        Ok(_) if Path::new("/sys/module/kvm_pvm").is_dir() => Kvm::UsableSoftware,
        Ok(_) => Kvm::Usable,
        Err(error) if error.kind() == io::ErrorKind::ResourceBusy => {
            Kvm::Unusable(format!("{name} makes no machine: another hypervisor of this host holds the processor"))
        }
        Err(error) => Kvm::Unusable(format!("{name} makes no machine: {error}")),
    }
}

/// The most virtual CPUs of a machine, where the device says.
pub(super) fn most_vcpus(device: &Path) -> Option<u32> {
    let file = OpenOptions::new().read(true).write(true).open(device).ok()?;
    let most = request::check_extension(file.as_fd(), request::MAX_VCPUS).ok()?;
    u32::try_from(most).ok().filter(|most| *most > 0)
}

/// The requests of linux/kvm.h.
#[expect(unsafe_code, reason = "KVM is driven by ioctl, which nothing wraps")]
mod request {
    use std::io;
    use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

    const KVM_GET_API_VERSION: u64 = 0xae00;
    const KVM_CREATE_VM: u64 = 0xae01;
    const KVM_CHECK_EXTENSION: u64 = 0xae03;
    /// `KVM_CAP_MAX_VCPUS`.
    pub(super) const MAX_VCPUS: i32 = 66;

    nix::ioctl_write_int_bad!(kvm_get_api_version, KVM_GET_API_VERSION);
    nix::ioctl_write_int_bad!(kvm_create_vm, KVM_CREATE_VM);
    nix::ioctl_write_int_bad!(kvm_check_extension, KVM_CHECK_EXTENSION);

    /// The version of the interface.
    pub(super) fn api_version(device: BorrowedFd<'_>) -> io::Result<i32> {
        // SAFETY: the argument is a number, not a pointer.
        Ok(unsafe { kvm_get_api_version(device.as_raw_fd(), 0) }?)
    }

    /// What the kernel says of an ability; 0 is that it has it not.
    pub(super) fn check_extension(device: BorrowedFd<'_>, extension: i32) -> io::Result<i32> {
        // SAFETY: the argument is a number, not a pointer.
        Ok(unsafe { kvm_check_extension(device.as_raw_fd(), extension) }?)
    }

    /// Makes a machine without memory and processors, which goes with its descriptor.
    pub(super) fn create_machine(device: BorrowedFd<'_>) -> io::Result<OwnedFd> {
        // SAFETY: the argument is a number, not a pointer.
        let descriptor = unsafe { kvm_create_vm(device.as_raw_fd(), 0) }?;
        // SAFETY: the number comes straight from the kernel, and nobody else has it.
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
    fn an_unusable_device_says_why() {
        assert!(why("/nonexistent/kvm").contains("load kvm_intel"));
        assert_eq!(why("/dev"), "/dev cannot be opened: Is a directory (os error 21)");
    }

    #[test]
    fn a_device_that_opens_but_is_no_kvm_is_unusable() {
        let why = why("/dev/null");
        assert!(why.starts_with("/dev/null is not the kernel's virtualisation: Inappropriate ioctl"), "{why}");
    }
}
