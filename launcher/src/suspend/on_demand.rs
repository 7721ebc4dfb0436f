//! Whether a hypervisor can load the memory of a saved machine while the guest already runs.

use crate::control::MemoryLoading;
use crate::launch::Launch;
use crate::state::ProcessIdentity;
use std::fs;
use std::path::Path;

/// The capability that userfaultfd(2) needs, `CAP_SYS_PTRACE` of capabilities(7), as a bit of `CapEff`.
const CAP_SYS_PTRACE: u64 = 1 << 19;
/// The ids of a process that is in no user namespace of its own.
const ALL_IDS: [&str; 3] = ["0", "0", "4294967295"];

/// Returns how the hypervisor loads the memory. cloud-hypervisor fails if it may not use userfaultfd(2), so it is asked to
/// load pages on demand only if it may. Other hypervisors need no permission.
pub(super) fn memory_loading(launch: &Launch, hypervisor: ProcessIdentity) -> MemoryLoading {
    let may = may_use_userfaultfd(&Path::new("/proc").join(hypervisor.pid.to_string()), Path::new("/proc/sys/vm"));
    // Only the hypervisor's own mapping of the memory loads pages.
    if may && launch.needs.huge_pages_mib == 0 && launch.needs.processes.is_empty() {
        MemoryLoading::OnDemand
    } else {
        MemoryLoading::BeforeTheGuestContinues
    }
}

fn may_use_userfaultfd(process: &Path, settings: &Path) -> bool {
    let read = |path: &Path| fs::read_to_string(path).unwrap_or_default();
    match read(&settings.join("unprivileged_userfaultfd")).trim() {
        "1" => true,
        // The kernel has no userfaultfd(2).
        "" => false,
        _ => {
            let has_all_ids = read(&process.join("uid_map")).split_whitespace().eq(ALL_IDS);
            let status = read(&process.join("status"));
            let effective = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
            let effective = effective.and_then(|digits| u64::from_str_radix(digits.trim(), 16).ok());
            has_all_ids && effective.is_some_and(|capabilities| capabilities & CAP_SYS_PTRACE != 0)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_loaded_on_demand_only_by_a_process_that_may_do_so() {
        let (all, of_user) = ("0 0 4294967295\n", "0 1000 1\n");
        let (root, other) = ("Name:\tch\nCapEff:\t000001ffffffffff\n", "Name:\tch\nCapEff:\t0000000000000000\n");
        for (setting, ids, status, expected) in [
            (Some("0\n"), all, root, true),
            (Some("0\n"), all, other, false),
            (Some("0\n"), of_user, root, false),
            (Some("1\n"), of_user, other, true),
            (None, all, root, false),
        ] {
            let directory = tempfile::tempdir().unwrap();
            fs::write(directory.path().join("uid_map"), ids).unwrap();
            fs::write(directory.path().join("status"), status).unwrap();
            if let Some(setting) = setting {
                fs::write(directory.path().join("unprivileged_userfaultfd"), setting).unwrap();
            }
            let found = may_use_userfaultfd(directory.path(), directory.path());
            assert_eq!(found, expected, "{setting:?} {ids} {status}");
        }
    }
}
