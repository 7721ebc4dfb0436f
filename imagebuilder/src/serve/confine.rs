//! Confines the server before a guest can send requests: it can then access only the files of the closure, and make only
//! the system calls that it needs.

use crate::block_map::StoreFiles;
use landlock::{
    ABI, Access, AccessFs, AccessNet, CompatLevel, Compatible, PathBeneath, Ruleset, RulesetAttr, RulesetCreatedAttr,
    RulesetStatus,
};
use nix::libc;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use rustix::fs::{FileType, Mode, OFlags, fstat, open};
use rustix::io::Errno;
use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter, SeccompRule,
    apply_filter, apply_filter_all_threads,
};
use std::collections::BTreeMap;
use std::env::consts::ARCH;
use std::io;
use std::os::fd::{OwnedFd, RawFd};
use std::path::PathBuf;
use thiserror::Error;

/// Why the server is not confined.
#[derive(Debug, Error)]
pub enum ConfineError {
    /// The kernel refuses the rules.
    #[error("cannot restrict this process to the closure's files (Landlock)")]
    Landlock(#[from] landlock::RulesetError),
    /// A store path cannot be opened.
    #[error("cannot open {}", .path.display())]
    StorePath {
        /// The store path.
        path: PathBuf,
        /// The error of the system.
        #[source]
        source: io::Error,
    },
    /// There are more store paths than the process may open.
    #[error("the closure has {paths} store paths, but this process may open only {limit} files")]
    TooManyPaths {
        /// Store paths of the closure.
        paths: usize,
        /// The limit of open files.
        limit: u64,
    },
    /// The filter cannot be created, because it does not support the architecture of this processor.
    #[error("cannot filter the system calls of this process (seccomp)")]
    Filter(#[from] seccompiler::BackendError),
    /// The kernel refuses the filter.
    #[error("cannot filter the system calls of this process (seccomp)")]
    Seccomp(#[from] seccompiler::Error),
}

/// How far the kernel restricts which files are read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FileAccess {
    /// Only files of the closure can be read, and none can be changed.
    Closure,
    /// The kernel has no Landlock: the server can access everything that its user can.
    Unrestricted,
}

/// Number of descriptors for everything except store paths: the files that are read, events, and the guest's memory.
const OTHER_FILES: usize = 1024;

/// All store paths of the closure, opened without their content.
///
/// While they are open, Nix's garbage collector keeps the closure, because it treats everything that a process has open as
/// a root.
#[derive(Debug)]
pub struct StorePaths(Vec<OwnedFd>);

/// Opens the store paths, after raising the limit of open files as far as possible.
///
/// # Errors
/// [`ConfineError::StorePath`] and [`ConfineError::TooManyPaths`].
pub fn open_store_paths(files: &StoreFiles) -> Result<StorePaths, ConfineError> {
    let (_, most) = getrlimit(Resource::RLIMIT_NOFILE).unwrap_or_default();
    // If this is refused, the limit stays unchanged.
    let _ = setrlimit(Resource::RLIMIT_NOFILE, most, most);
    let too_many = || ConfineError::TooManyPaths { paths: files.store_paths().len(), limit: most };
    if (files.store_paths().len() + OTHER_FILES) as u64 > most {
        return Err(too_many());
    }
    let opened = files.store_paths().iter().map(|store_path| {
        let path = files.store_dir().join(store_path.path.base_name());
        let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        open(&path, flags, Mode::empty()).map_err(|error| match error {
            Errno::MFILE => too_many(),
            error => ConfineError::StorePath { path, source: error.into() },
        })
    });
    Ok(StorePaths(opened.collect::<Result<_, _>>()?))
}

/// Restricts this thread, and the threads that it starts, to reading the files of the closure. They cannot open network
/// connections.
///
/// # Errors
/// [`ConfineError`].
pub fn restrict_files(store_paths: &StorePaths) -> Result<FileAccess, ConfineError> {
    let mut rules = Ruleset::default()
        .set_compatibility(CompatLevel::BestEffort)
        .handle_access(AccessFs::from_all(ABI::V5))?
        .handle_access(AccessNet::from_all(ABI::V5))?
        .create()?;
    for path in &store_paths.0 {
        // A store path that is a symbolic link has no content, and the kernel accepts no rule for it.
        let is_link = fstat(path).is_ok_and(|status| FileType::from_raw_mode(status.st_mode).is_symlink());
        if !is_link {
            rules = rules.add_rule(PathBeneath::new(path, AccessFs::ReadFile))?;
        }
    }
    match rules.restrict_self()?.ruleset {
        RulesetStatus::NotEnforced => Ok(FileAccess::Unrestricted),
        RulesetStatus::PartiallyEnforced | RulesetStatus::FullyEnforced => Ok(FileAccess::Closure),
    }
}

/// The system calls that threads, memory, events, the socket and reading files require. All others fail with EPERM.
const ALLOWED_CALLS: &[libc::c_long] = &[
    libc::SYS_accept4,
    libc::SYS_brk,
    libc::SYS_clock_gettime,
    libc::SYS_clock_nanosleep,
    libc::SYS_clone,
    libc::SYS_clone3,
    libc::SYS_close,
    libc::SYS_dup,
    libc::SYS_epoll_create1,
    libc::SYS_epoll_ctl,
    libc::SYS_epoll_pwait,
    libc::SYS_eventfd2,
    libc::SYS_exit,
    libc::SYS_exit_group,
    libc::SYS_fadvise64,
    libc::SYS_fcntl,
    libc::SYS_fstat,
    libc::SYS_futex,
    libc::SYS_getpid,
    libc::SYS_getrandom,
    libc::SYS_gettid,
    libc::SYS_lseek,
    libc::SYS_madvise,
    libc::SYS_mmap,
    libc::SYS_mprotect,
    libc::SYS_mremap,
    libc::SYS_munmap,
    libc::SYS_nanosleep,
    libc::SYS_newfstatat,
    libc::SYS_openat2,
    libc::SYS_ppoll,
    libc::SYS_prctl,
    libc::SYS_pread64,
    libc::SYS_preadv,
    libc::SYS_read,
    libc::SYS_readv,
    libc::SYS_recvfrom,
    libc::SYS_recvmsg,
    libc::SYS_restart_syscall,
    libc::SYS_rseq,
    libc::SYS_rt_sigaction,
    libc::SYS_rt_sigprocmask,
    libc::SYS_rt_sigreturn,
    libc::SYS_rt_sigtimedwait,
    libc::SYS_sched_getaffinity,
    libc::SYS_sched_yield,
    libc::SYS_seccomp,
    libc::SYS_sendmsg,
    libc::SYS_sendto,
    libc::SYS_set_robust_list,
    libc::SYS_shutdown,
    libc::SYS_sigaltstack,
    libc::SYS_statx,
    libc::SYS_tgkill,
    libc::SYS_write,
    libc::SYS_writev,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_epoll_wait,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_poll,
];

/// Calls that only the threads that already run may make: the thread that removes the socket at the end needs `unlinkat`. The
/// calling thread uses `seccomp` to forbid both for itself and the threads that it starts.
const OTHER_THREADS_CALLS: &[libc::c_long] = &[libc::SYS_unlinkat, libc::SYS_seccomp];

/// Restricts all threads of this process to the system calls that the server needs. This thread, and those that it starts,
/// can remove no files. The others can remove files of the directory with the descriptor `socket_directory`; the launcher
/// starts the server with a directory that contains nothing but the socket.
///
/// # Errors
/// [`ConfineError`].
pub fn restrict_system_calls(socket_directory: RawFd) -> Result<(), ConfineError> {
    let refused = || SeccompAction::Errno(libc::EPERM.unsigned_abs());
    let mut allowed = rules(ALLOWED_CALLS);
    allowed.insert(libc::SYS_unlinkat, vec![removal_from(socket_directory)?]);
    apply_filter_all_threads(&filter(allowed, SeccompAction::Allow, refused())?)?;
    Ok(apply_filter(&filter(rules(OTHER_THREADS_CALLS), refused(), SeccompAction::Allow)?)?)
}

/// Rules for calls with any arguments.
fn rules(calls: &[libc::c_long]) -> BTreeMap<libc::c_long, Vec<SeccompRule>> {
    calls.iter().map(|call| (*call, Vec::new())).collect()
}

/// A rule for unlinkat(2) of a file, relative to a directory.
fn removal_from(directory: RawFd) -> Result<SeccompRule, ConfineError> {
    let argument = |index, value| SeccompCondition::new(index, SeccompCmpArgLen::Dword, SeccompCmpOp::Eq, value);
    let directory = u64::from(directory.unsigned_abs());
    Ok(SeccompRule::new(vec![argument(0, directory)?, argument(2, 0)?])?)
}

fn filter(
    rules: BTreeMap<libc::c_long, Vec<SeccompRule>>,
    listed: SeccompAction,
    others: SeccompAction,
) -> Result<BpfProgram, ConfineError> {
    Ok(SeccompFilter::new(rules, others, listed, ARCH.try_into()?)?.try_into()?)
}
