//! Validation of a cluster: [`ClusterSpec`] and the specs of its machines to [`CheckedCluster`]. Finds all problems at
//! once.

mod fencing;
mod machines;
mod nodes;

use super::checked::CheckedCluster;
use super::spec::ClusterSpec;
use crate::name::check_name;
use crate::ocf::parameters::names_target;
use crate::path::HostPath;
use crate::spec::MachineSpec;
use program::escape::one_line;
use program::spelling::nearest;
use std::collections::BTreeMap;

/// A problem of a cluster.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{}", one_line(&format!("{place}: {reason}")))]
pub struct ClusterProblem {
    /// The place in `cluster.json`, as in `machines.web.prefer`.
    pub place: String,
    /// What is wrong, and what would be valid.
    pub reason: String,
}

/// Problems and warnings, in the order of the checks.
#[derive(Default)]
struct Findings {
    problems: Vec<ClusterProblem>,
    warnings: Vec<String>,
}

impl Findings {
    fn problem(&mut self, place: impl Into<String>, reason: impl Into<String>) {
        self.problems.push(ClusterProblem { place: place.into(), reason: reason.into() });
    }

    fn unless(&mut self, is_valid: bool, place: impl Into<String>, reason: impl Into<String>) {
        if !is_valid {
            self.problem(place, reason);
        }
    }

    /// Checks the name of an object of the cluster, from which identifiers in Pacemaker's configuration are derived.
    fn name(&mut self, place: &str, name: &str) {
        if let Err(error) = check_name(name) {
            self.problem(place, error.to_string());
        } else if name.starts_with(|first: char| first.is_ascii_digit()) {
            self.problem(place, format!("`{name}` must start with a letter or `_`, as identifiers in XML do"));
        } else if name.contains("__") || name.ends_with('_') {
            // `a_` and `b` would make the same derived name as `a` and `_b`.
            let reason = "must neither contain `__`, which separates the parts of derived names, nor end with `_`";
            self.problem(place, format!("`{name}` {reason}"));
        }
    }

    /// Checks that a name is one of the known ones.
    fn known<'known>(&mut self, place: &str, what: &str, name: &str, known: impl Iterator<Item = &'known String>) {
        let known: Vec<&str> = known.map(String::as_str).collect();
        if !known.contains(&name) {
            let hint = nearest(name, known.iter().copied())
                .map_or_else(String::new, |near| format!("; did you mean `{near}`?"));
            self.problem(place, format!("there is no {what} `{name}`{hint}"));
        }
    }

    /// Checks that no name is in a list twice: identifiers in Pacemaker's configuration are derived from them.
    fn once(&mut self, place: &str, names: &[String]) {
        for (index, name) in names.iter().enumerate() {
            if names.iter().position(|other| other == name) != Some(index) {
                self.problem(place, format!("`{name}` is listed twice"));
            }
        }
    }

    /// Checks a text that goes into Pacemaker's configuration and from there to a program.
    fn text(&mut self, place: &str, text: &str) {
        // XML 1.0 cannot contain them, escaped or not.
        let is_forbidden = |character: char| character.is_control() || matches!(character, '\u{fffe}' | '\u{ffff}');
        match text.chars().find(|character| is_forbidden(*character)) {
            _ if text.is_empty() => self.problem(place, "must not be empty"),
            Some(character) => self.problem(place, format!("contains {character:?}, which is not allowed")),
            None if text.starts_with('-') => self.problem(place, "must not start with `-`, as options do"),
            None => {}
        }
    }

    /// Checks the path of a file or directory of the hosts.
    fn path(&mut self, place: &str, path: &HostPath) {
        self.text(place, path.as_str());
        if !path.is_absolute() {
            self.problem(place, format!("`{path}` must be an absolute path"));
        } else if path.as_str().split('/').any(|part| part == "..") {
            self.problem(place, format!("`{path}` contains `..`"));
        }
    }

    /// Checks the path of a file with a secret.
    fn secret_file(&mut self, place: &str, path: &HostPath) {
        self.path(place, path);
        if is_below(path.as_str(), "/nix/store") {
            let reason =
                "is in the Nix store, which every user can read; use a file outside of it, such as /run/secrets/NAME";
            self.problem(place, format!("`{path}` {reason}"));
        }
    }
}

/// Whether the path is the directory, or is in it.
fn is_below(path: &str, directory: &str) -> bool {
    let rest = path.strip_prefix(directory.trim_end_matches('/'));
    rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}

/// Validates a cluster. `specs` has the spec of each machine, or why it cannot be read.
///
/// # Errors
/// Returns all problems; the list is not empty.
pub fn check(
    cluster: &ClusterSpec,
    specs: &BTreeMap<String, Result<MachineSpec, String>>,
) -> Result<CheckedCluster, Vec<ClusterProblem>> {
    let mut findings = Findings::default();
    findings.name("name", &cluster.name);
    let nodes = nodes::check(cluster, &mut findings);
    let devices = fencing::check(cluster, &mut findings);
    common(cluster, &mut findings);
    let machines = machines::check(cluster, specs, &mut findings);
    let apart = machines::pairs_apart(cluster, &mut findings);
    if !findings.problems.is_empty() {
        return Err(findings.problems);
    }
    Ok(CheckedCluster {
        name: cluster.name.clone(),
        nodes,
        auth_key_file: cluster.auth_key_file.clone(),
        totem: cluster.totem.clone(),
        qdevice: cluster.qdevice.clone(),
        is_fencing: !devices.is_empty(),
        devices,
        fence_action: cluster.fencing.action,
        cache: cluster.cache.clone(),
        state_directory: cluster.state_directory.clone(),
        migration: cluster.migration.clone(),
        machines,
        apart,
        warnings: findings.warnings,
    })
}

/// Checks what all hosts and machines use.
fn common(cluster: &ClusterSpec, findings: &mut Findings) {
    if let Some(file) = &cluster.auth_key_file {
        findings.secret_file("authKeyFile", file);
        let is_plain = !file.as_str().contains(char::is_whitespace);
        findings.unless(is_plain, "authKeyFile", "contains white space, which corosync.conf cannot quote");
    }
    for (index, path) in cluster.shared_paths.iter().enumerate() {
        let place = format!("sharedPaths[{index}]");
        findings.path(&place, path);
        findings.unless(!path.as_str().trim_end_matches('/').is_empty(), place, "the root directory is not shared");
    }
    findings.path("stateDirectory", &cluster.state_directory);
    if let Some(cache) = &cluster.cache {
        findings.text("cache", cache);
        findings.unless(!cache.contains(char::is_whitespace), "cache", "a URL contains no spaces");
    }
    if let Some(directory) = &cluster.migration.directory {
        findings.path("migration.directory", directory);
        let is_shared = cluster.shared_paths.iter().any(|shared| is_below(directory.as_str(), shared.as_str()));
        let reason = "must be in one of `sharedPaths`, because the other host reads it";
        findings.unless(is_shared, "migration.directory", reason);
    }
    if let Some(command) = &cluster.migration.command {
        findings.text("migration.command", command);
        let reason = "has no word NODE or USER@NODE, which is replaced with the host to which a machine moves";
        findings.unless(names_target(command), "migration.command", reason);
    }
}
