//! Whether processes can restrict themselves with landlock as cloud-hypervisor does, which ends if the kernel lacks one of
//! the access rights.

use crate::facts::Landlock;
use landlock::{ABI, Access, AccessFs, CompatLevel, Compatible, Ruleset, RulesetAttr};

/// `ABI` in its vmm/src/landlock.rs: Linux 6.2 is the first kernel that has it.
const REQUIRED: ABI = ABI::V3;

/// Creates a set of rules and drops it, which restricts nothing.
pub(super) fn probe() -> Landlock {
    let rules = Ruleset::default().set_compatibility(CompatLevel::HardRequirement);
    match rules.handle_access(AccessFs::from_all(REQUIRED)).and_then(Ruleset::create) {
        Ok(_) => Landlock::Usable,
        // The crate's error shows the bits of the access rights.
        Err(_) => Landlock::Unusable(
            "needs Linux 6.2 or later with `landlock` in its list of LSMs; some containers forbid its system calls"
                .to_owned(),
        ),
    }
}
