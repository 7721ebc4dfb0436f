//! Tests of the launcher with real hypervisors: the guest sees what the spec describes.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test that cannot go on fails; the lints know only #[test] functions, not what they call"
)]

mod clones;
mod cluster_agent;
mod failures;
mod left_over;
mod lifecycle;
mod linux;
mod live_store;
mod machine;
mod probe;
mod random_specs;
mod rows;
mod screen;
mod specs;
mod starting_and_stopping;
mod suspend;
mod trust;

#[test]
fn the_probe_guest_builds() {
    let guest = probe::probe_guest();
    assert!(guest.elf.is_file() && guest.bzimage.is_file());
}
