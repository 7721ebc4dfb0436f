//! Reading `cluster.json` and the machine specs of its runners.

use super::check::{ClusterProblem, check};
use super::checked::CheckedCluster;
use super::spec::ClusterSpec;
use crate::path::HostPath;
use crate::spec::MachineSpec;
use crate::spec::parse::parse;
use std::collections::BTreeMap;
use std::fs::File;
use std::io::{ErrorKind, Read};
use std::path::Path;

/// The largest machine spec that is read. Specs have some kilobytes.
const MAX_SPEC_BYTES: u64 = 16 << 20;

/// Checks a cluster with the specs of its runners, which must be on this host.
///
/// # Errors
/// Returns all problems; the list is not empty.
pub fn check_with_runners(cluster: &ClusterSpec) -> Result<CheckedCluster, Vec<ClusterProblem>> {
    let specs: BTreeMap<_, _> =
        cluster.machines.iter().map(|(name, machine)| (name.clone(), read_spec(&machine.runner))).collect();
    check(cluster, &specs)
}

/// Returns the spec of a runner, or why it cannot be read.
///
/// # Errors
/// Returns the reason, as a sentence about the runner.
pub fn read_spec(runner: &HostPath) -> Result<MachineSpec, String> {
    let path = runner.as_path().join("share/microvm/machine.json");
    let text = read_text(&path).map_err(|error| match error.kind() {
        ErrorKind::NotFound => format!("`{runner}` is not a runner on this host; build it, or copy it with `nix copy`"),
        _ => format!("{}: {error}", path.display()),
    })?;
    parse(&text).map_err(|errors| {
        let first = errors.first().map(ToString::to_string).unwrap_or_default();
        format!("{}: {first}", path.display())
    })
}

fn read_text(path: &Path) -> std::io::Result<String> {
    let mut text = String::new();
    File::open(path)?.take(MAX_SPEC_BYTES).read_to_string(&mut text)?;
    Ok(text)
}
