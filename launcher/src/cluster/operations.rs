//! Changing a running cluster. Each operation first asks the cluster for its status, so that nothing is changed if a
//! name is unknown, or this part of the cluster has no quorum.

use super::checked::CheckedCluster;
use super::cib::{configuration, hash_of};
use super::date::has_passed;
use super::engine::{EngineError, difference, is_offline, own_node, run, run_for_xml, status};
use super::merge::merged;
use super::placement::{obstacle, preference};
use super::runners::read_spec;
use super::status::{MachineStatus, NodeStatus, Status};
use super::xml::{Element, XmlError};
use crate::imperative::in_parallel;
use crate::ocf::parameters::RUNNER;
use crate::path::HostPath;
use crate::shell::quote;
use program::spelling::nearest;
use std::path::{Path, PathBuf};
use std::thread::sleep;
use std::time::{Duration, Instant, SystemTime};

/// The directory of the garbage collection roots of runners on every host.
const ROOTS: &str = "/nix/var/nix/gcroots/microvm-cluster";
/// How long the preference of a move lasts if this program is killed before it removes it itself.
const MOVE_LIFETIME: Duration = Duration::from_secs(3600);
/// How long to try to apply a configuration while something else changes the configuration or the status: each result
/// of an operation on a machine changes the status.
const APPLY_TIME: Duration = Duration::from_secs(30);
/// The pause after the first attempt. It doubles each time.
const FIRST_PAUSE: Duration = Duration::from_millis(50);
const LONGEST_PAUSE: Duration = Duration::from_secs(3);

/// Why an operation was refused or failed.
#[derive(Debug, thiserror::Error)]
pub enum OperationError {
    /// The cluster has no such host or machine.
    #[error("the cluster has no {what} {name}{}", hint(.near.as_deref(), .known))]
    Unknown {
        /// `host` or `machine`.
        what: &'static str,
        /// The name.
        name: String,
        /// The most similar name.
        near: Option<String>,
        /// All names.
        known: Vec<String>,
    },
    /// The path is not a runner in the Nix store.
    #[error("{path}: {reason}")]
    NoRunner {
        /// The path.
        path: PathBuf,
        /// Why not.
        reason: String,
    },
    /// The host cannot receive a machine.
    #[error("{0} cannot run machines now: it is {1}")]
    NotAvailable(String, &'static str),
    /// The machine is not managed by the cluster.
    #[error("the cluster does not manage {0}, so it cannot move it; run first: microvm cluster manage {0}")]
    Unmanaged(String),
    /// A constraint prevents this move.
    #[error("the constraint {constraint} keeps {machine} away from {node}")]
    Constrained {
        /// The machine.
        machine: String,
        /// The host.
        node: String,
        /// The identifier of the constraint.
        constraint: String,
    },
    /// The machine did not move.
    #[error("{machine} did not move to {node}: it is {place}; see microvm cluster status")]
    NotMoved {
        /// The machine.
        machine: String,
        /// The host.
        node: String,
        /// Where it is.
        place: String,
    },
    /// Machines are left on a drained host.
    #[error("{node} is drained, but still runs {}; no other host can run them, or they are unmanaged", .machines.join(", "))]
    NotDrained {
        /// The host.
        node: String,
        /// The machines.
        machines: Vec<String>,
    },
    /// The host has not failed.
    #[error("{0} is {1}; only a failed host that is waiting to be fenced can be acknowledged")]
    NotFailed(String, &'static str),
    /// Another update has set a different runner.
    #[error("somebody else updated {machine} at the same time; the cluster runs it from {runner} now")]
    Overtaken {
        /// The machine.
        machine: String,
        /// Its runner.
        runner: HostPath,
    },
    /// The runner was changed, but it is not known whether the hosts have its root, or run it from another one now.
    #[error("the runner of {machine} was changed, but the hosts may not all keep it; repeat the update: {source}")]
    NotConfirmed {
        /// The machine.
        machine: String,
        /// What failed after the change.
        source: Box<OperationError>,
    },
    /// Hosts that do not have the runner.
    #[error("{}", .0.join("\n"))]
    OnHosts(Vec<String>),
    /// The hosts have not elected a coordinator.
    #[error("the cluster has elected no coordinator; are corosync and pacemaker running on most hosts?")]
    NoCoordinator,
    /// The configuration or the status changed before every attempt to change the configuration.
    #[error("the configuration or status of the cluster keeps changing, so nothing was changed; try again later")]
    Contended,
    /// A tool of the cluster failed.
    #[error(transparent)]
    Engine(#[from] EngineError),
    /// The configuration cannot be written.
    #[error(transparent)]
    Xml(#[from] XmlError),
}

fn hint(near: Option<&str>, known: &[String]) -> String {
    match near {
        Some(near) => format!("; did you mean {near}?"),
        None if known.is_empty() => String::new(),
        None => format!("; it has {}", known.join(", ")),
    }
}

impl OperationError {
    /// Whether the user's input is wrong, as opposed to an operation that failed.
    pub fn is_bad_input(&self) -> bool {
        matches!(self, Self::Unknown { .. } | Self::NoRunner { .. })
    }
}

/// Whether to wait until the cluster has finished.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wait {
    /// Up to this time.
    For(Duration),
    /// Not at all.
    No,
}

/// Returns the status of a cluster that can be changed.
fn changeable() -> Result<Status, OperationError> {
    let status = status()?;
    // A file has no votes.
    if !status.has_quorum && !is_offline() {
        return Err(EngineError::NoQuorum.into());
    }
    Ok(status)
}

fn node<'status>(status: &'status Status, name: &str) -> Result<&'status NodeStatus, OperationError> {
    let known = status.nodes.iter().map(|node| node.name.clone()).collect();
    status.node(name).ok_or_else(|| unknown("host", name, known))
}

fn machine<'status>(status: &'status Status, name: &str) -> Result<&'status MachineStatus, OperationError> {
    let known = status.machines.iter().map(|machine| machine.name.clone()).collect();
    status.machine(name).ok_or_else(|| unknown("machine", name, known))
}

fn unknown(what: &'static str, name: &str, known: Vec<String>) -> OperationError {
    let near = nearest(name, known.iter().map(String::as_str)).map(str::to_owned);
    OperationError::Unknown { what, name: name.to_owned(), near, known }
}

/// Waits until the cluster has nothing to do.
fn settle(wait: Wait) -> Result<(), OperationError> {
    if let Wait::For(time) = wait
        && !is_offline()
    {
        run("crm_resource", &["--wait", &format!("--timeout={}s", time.as_secs())], None)?;
    }
    Ok(())
}

/// Moves a machine to a host.
///
/// # Errors
/// Refuses unknown names, hosts that cannot run machines, and constraints of the user against the host; fails if the
/// machine is elsewhere afterwards.
pub fn move_machine(name: &str, target: &str, wait: Duration) -> Result<(), OperationError> {
    let before = changeable()?;
    let found = machine(&before, name)?;
    let target_node = node(&before, target)?;
    if let Some(obstacle) = target_node.obstacle() {
        return Err(OperationError::NotAvailable(target.to_owned(), obstacle));
    }
    if !found.is_managed {
        return Err(OperationError::Unmanaged(name.to_owned()));
    }
    if found.nodes == [target] {
        return Ok(());
    }
    let constraints = run_for_xml("cibadmin", &["--query", "--scope=constraints"], None)?;
    let now = SystemTime::now();
    if let Some(constraint) = obstacle(&constraints, (name, target), |end| has_passed(end, now)) {
        let (machine, node) = (name.to_owned(), target.to_owned());
        return Err(OperationError::Constrained { machine, node, constraint });
    }
    // Not `crm_resource --move` and `--clear`, which remove what the user has set with them.
    let end = humantime::format_rfc3339_seconds(SystemTime::now() + MOVE_LIFETIME);
    let preference = preference(name, target, &end.to_string());
    change_constraints(&["--modify", "--allow-create"], &preference)?;
    let settled = settle(Wait::For(wait));
    // From now on, the machine stays where it is because of its stickiness. A lasting preference for this host would
    // bring it back after a failure.
    change_constraints(&["--delete"], &Element { children: Vec::new(), ..preference })?;
    settled?;
    let after = status()?;
    match after.machine(name) {
        Some(moved) if moved.nodes == [target] || is_offline() => Ok(()),
        moved => {
            let nodes = moved.map(|moved| moved.nodes.join(", ")).filter(|nodes| !nodes.is_empty());
            let place = nodes.map_or_else(|| "stopped".to_owned(), |nodes| format!("on {nodes}"));
            Err(OperationError::NotMoved { machine: name.to_owned(), node: target.to_owned(), place })
        }
    }
}

fn change_constraints(how: &[&str], constraint: &Element) -> Result<(), OperationError> {
    run("cibadmin", &[how, &["--scope=constraints", "--xml-pipe"]].concat(), Some(&constraint.to_text()?))?;
    Ok(())
}

/// Moves all machines away from a host, and keeps machines from starting on it.
///
/// # Errors
/// Refuses unknown hosts; fails if machines are left on the host.
pub fn drain(name: &str, wait: Wait) -> Result<(), OperationError> {
    node(&changeable()?, name)?;
    set_standby(name, "--update=on")?;
    settle(wait)?;
    if wait == Wait::No || is_offline() {
        return Ok(());
    }
    let after = status()?;
    let left = after.machines.iter().filter(|machine| machine.nodes.iter().any(|node| node == name));
    let machines: Vec<String> = left.map(|machine| machine.name.clone()).collect();
    match machines.is_empty() {
        true => Ok(()),
        false => Err(OperationError::NotDrained { node: name.to_owned(), machines }),
    }
}

/// Lets machines start on a drained host again.
///
/// # Errors
/// Refuses unknown hosts.
pub fn undrain(name: &str) -> Result<(), OperationError> {
    node(&changeable()?, name)?;
    set_standby(name, "--delete")
}

/// Does the same as crm_standby, which is a script and needs a shell.
fn set_standby(node: &str, change: &str) -> Result<(), OperationError> {
    let node = format!("--node={node}");
    run("crm_attribute", &["--type=nodes", &node, "--name=standby", change], None)?;
    Ok(())
}

/// Lets the cluster start, stop and move the machine again.
///
/// # Errors
/// Refuses unknown machines.
pub fn manage(name: &str) -> Result<(), OperationError> {
    let is_managed = machine(&changeable()?, name)?.is_managed;
    let resource = format!("--resource={name}");
    // Pacemaker reports a monitor only when its result changes. So it does not notice that a machine has ended while it
    // was not managed, until it asks all hosts. It must not start the machine at the same time: the controller of that host,
    // which has just forgotten the machine, would fail.
    if !is_managed && !is_offline() {
        run("crm_resource", &["--refresh", &resource], None)?;
    }
    run("crm_resource", &[&resource, "--meta", "--delete-parameter=is-managed"], None)?;
    Ok(())
}

/// Keeps the cluster from starting, stopping and moving the machine.
///
/// # Errors
/// Refuses unknown machines.
pub fn unmanage(name: &str) -> Result<(), OperationError> {
    machine(&changeable()?, name)?;
    let resource = format!("--resource={name}");
    let arguments = [&resource, "--meta", "--set-parameter=is-managed", "--parameter-value=false"];
    run("crm_resource", &arguments, None)?;
    Ok(())
}

/// Confirms to the cluster that a failed host is off, so that its machines start elsewhere.
///
/// # Errors
/// Refuses unknown hosts, and hosts that have not failed.
pub fn acknowledge_fencing(name: &str) -> Result<(), OperationError> {
    let status = status()?;
    let node = node(&status, name)?;
    if node.is_online {
        return Err(OperationError::NotFailed(name.to_owned(), "online"));
    }
    if !node.is_unclean {
        return Err(OperationError::NotFailed(name.to_owned(), "offline and has been fenced, or left in order"));
    }
    run("stonith_admin", &[&format!("--confirm={name}")], None)?;
    Ok(())
}

/// Copies the closure of a runner to all hosts, and protects it there from garbage collection. Returns the hosts.
///
/// # Errors
/// Refuses unknown machines and paths that are not runners; fails with the problems of all hosts.
pub fn push(name: &str, runner: &Path) -> Result<Vec<String>, OperationError> {
    let status = status()?;
    machine(&status, name)?;
    let runner = store_path_of(runner)?;
    let nodes: Vec<String> = status.nodes.iter().map(|node| node.name.clone()).collect();
    let this_host = own_node()?;
    on_hosts(&nodes, |node| {
        if node != this_host {
            let store = format!("ssh-ng://root@{node}");
            // The other host trusts this one, because it accepts root's key. A runner that was built here has no
            // signature.
            let how = ["--extra-experimental-features", "nix-command", "copy", "--no-check-sigs"];
            run("nix", &[&how[..], &["--to", &store, runner.as_str()]].concat(), None)?;
        }
        keep((node, &this_host), &pushed_root(name), &runner)
    })?;
    Ok(nodes)
}

/// Makes the machine run from another runner. The cluster restarts it. Returns warnings.
///
/// # Errors
/// Refuses unknown machines, paths that are not runners, and runners that a host does not have.
pub fn update(name: &str, runner: &Path) -> Result<Vec<String>, OperationError> {
    let status = changeable()?;
    machine(&status, name)?;
    let runner = store_path_of(runner)?;
    let (online, offline): (Vec<&NodeStatus>, Vec<_>) = status.nodes.iter().partition(|node| node.is_online);
    let nodes: Vec<String> = online.iter().map(|node| node.name.clone()).collect();
    let resource = format!("--resource={name}");
    let parameter = format!("--set-parameter={RUNNER}");
    let value = format!("--parameter-value={runner}");
    let this_host = own_node()?;
    let keep_on_hosts = |root: &str, runner: &HostPath| match is_offline() {
        true => Ok(()),
        false => on_hosts(&nodes, |node| keep((node, &this_host), root, runner)),
    };
    let change = || {
        run("crm_resource", &[&resource, &parameter, &value], None)?;
        Ok(())
    };
    let current = || {
        let printed = run("crm_resource", &[&resource, &format!("--get-parameter={RUNNER}")], None)?;
        Ok(HostPath::new(printed.trim_end()))
    };
    let forget_on_hosts = |root: &str| {
        if !is_offline() {
            // A host that cannot be reached now keeps the runner for longer. That does not harm the machine.
            let _ = on_hosts(&nodes, |node| forget((node, &this_host), root));
        }
    };
    change_runner((name, &runner), (&keep_on_hosts, &forget_on_hosts), change, current)?;
    if !is_offline() {
        // The machine's own root keeps the runner now.
        let _ = on_hosts(&nodes, |node| forget_pushed((node, &this_host), name, &runner));
    }
    let warning = |node: &&NodeStatus| {
        format!("{} is offline: it does not have the runner, unless you pushed it before", node.name)
    };
    Ok(offline.iter().map(warning).collect())
}

/// Creates a garbage collection root of that name on all hosts.
type Keep<'run> = &'run dyn Fn(&str, &HostPath) -> Result<(), OperationError>;

/// Changes the runner of a machine. The root of its old runner stays until the change is known to be made: if it is
/// refused, hosts still start that one. In the end, the root is that of the runner in the configuration, even if
/// somebody else changes it at the same time. Until then, the new runner has a root that only updates to the same
/// runner use.
fn change_runner(
    (name, runner): (&str, &HostPath),
    (keep, forget): (Keep<'_>, &dyn Fn(&str)),
    change: impl FnOnce() -> Result<(), OperationError>,
    current: impl Fn() -> Result<HostPath, OperationError>,
) -> Result<(), OperationError> {
    let temporary = temporary_root(name, runner);
    if let Err(error) = keep(&temporary, runner) {
        // Some hosts may have created it.
        forget(&temporary);
        return Err(error);
    }
    if let Err(error) = change() {
        // An error may also come after the change, for example when the answer was lost.
        if current().is_ok_and(|current| current != *runner) {
            forget(&temporary);
        }
        return Err(error);
    }
    let kept = match keep_current(name, keep, &current) {
        Ok(kept) => kept,
        Err(error) => {
            // The change was made, so the cluster starts this runner.
            if keep(name, runner).is_ok() {
                forget(&temporary);
            }
            return Err(OperationError::NotConfirmed { machine: name.to_owned(), source: Box::new(error) });
        }
    };
    forget(&temporary);
    if kept == *runner {
        return Ok(());
    }
    Err(OperationError::Overtaken { machine: name.to_owned(), runner: kept })
}

/// Creates the garbage collection root of the runner in the configuration, and returns the runner.
fn keep_current(
    name: &str,
    keep: Keep<'_>,
    current: impl Fn() -> Result<HostPath, OperationError>,
) -> Result<HostPath, OperationError> {
    let mut kept = current()?;
    loop {
        keep(name, &kept)?;
        let now = current()?;
        if now == kept {
            return Ok(kept);
        }
        kept = now;
    }
}

/// Returns the name of the root that the new runner of a machine has during an update. It contains the hash of the
/// store path.
fn temporary_root(name: &str, runner: &HostPath) -> String {
    let file_name = runner.as_path().file_name().unwrap_or_default().to_string_lossy();
    let hash = file_name.split_once('-').map_or(&*file_name, |(hash, _)| hash);
    format!("{}-{hash}", pushed_root(name))
}

/// Returns the name of the root that a runner has from its push until the machine is updated to it, or another runner is
/// pushed. No machine can have this name, because the names of machines contain no `@`.
fn pushed_root(name: &str) -> String {
    format!("{name}@next")
}

/// Returns the store path of a runner; a link to it, such as `result`, is followed.
fn store_path_of(path: &Path) -> Result<HostPath, OperationError> {
    let refuse = |reason: String| OperationError::NoRunner { path: path.to_owned(), reason };
    let real = path.canonicalize().map_err(|error| refuse(error.to_string()))?;
    let is_in_store = is_offline() || real.parent() == Some(Path::new("/nix/store"));
    match real.to_str().filter(|_| is_in_store) {
        Some(text) => {
            let runner = HostPath::new(text);
            read_spec(&runner).map_err(refuse)?;
            Ok(runner)
        }
        None => Err(refuse("is not a path in the Nix store".to_owned())),
    }
}

/// Calls `work` for all hosts, and returns all their problems.
fn on_hosts(nodes: &[String], work: impl Fn(&str) -> Result<(), EngineError> + Sync) -> Result<(), OperationError> {
    let results = in_parallel(nodes, |node| work(node).map_err(|error| format!("{node}: {error}")));
    let problems: Vec<String> = results.into_iter().filter_map(Result::err).collect();
    if problems.is_empty() { Ok(()) } else { Err(OperationError::OnHosts(problems)) }
}

/// A host, and the one on which this program runs.
type Host<'name> = (&'name str, &'name str);

/// Makes a garbage collection root on a host. Fails if the host does not have the path and cannot get it.
fn keep(host: Host<'_>, root: &str, path: &HostPath) -> Result<(), EngineError> {
    on_host(host, &["nix-store", "--realise", path.as_str(), "--add-root", &format!("{ROOTS}/{root}")])
}

/// Removes a garbage collection root on a host.
fn forget(host: Host<'_>, root: &str) -> Result<(), EngineError> {
    on_host(host, &["rm", "-f", "--", &format!("{ROOTS}/{root}")])
}

/// Removes the root of a pushed runner on a host, unless another runner was pushed since. In the patterns of find(1),
/// the only special character that the name of a store path can contain is `?`, which also matches itself.
fn forget_pushed(host: Host<'_>, name: &str, runner: &HostPath) -> Result<(), EngineError> {
    let root = format!("{ROOTS}/{}", pushed_root(name));
    on_host(host, &["find", &root, "-maxdepth", "0", "-lname", runner.as_str(), "-delete"])
}

/// Runs a command on a host.
fn on_host((node, this_host): Host<'_>, words: &[&str]) -> Result<(), EngineError> {
    if node == this_host {
        return run(words[0], &words[1..], None).map(drop);
    }
    let command: Vec<String> = words.iter().map(|word| quote(word)).collect();
    let target = format!("root@{node}");
    run("ssh", &["-o", "BatchMode=yes", &target, "--", &command.join(" ")], None).map(drop)
}

/// What applying a configuration did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Applied {
    /// The cluster has another configuration now.
    Changed,
    /// The cluster had it already.
    Unchanged,
    /// Another host applies it.
    OnCoordinator,
}

/// Which host applies a configuration.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ApplyOn {
    /// The one on which the command is run.
    AnyHost,
    /// Only the coordinator, because all hosts run the command when they start.
    Coordinator,
}

/// Replaces our part of the cluster's configuration if it differs from the one that was applied last.
///
/// # Errors
/// Fails if the cluster does not run, if this part of it has no quorum, or if its configuration or status changes all
/// the time.
pub fn apply(cluster: &CheckedCluster, on: ApplyOn) -> Result<Applied, OperationError> {
    let status = changeable()?;
    let coordinator = status.coordinator.as_deref();
    if coordinator.is_none() && !is_offline() {
        return Err(OperationError::NoCoordinator);
    }
    if on == ApplyOn::Coordinator && coordinator != Some(&*own_node()?) {
        return Ok(Applied::OnCoordinator);
    }
    let generated = configuration(cluster)?;
    until_current(APPLY_TIME, || {
        let running = run_for_xml("cibadmin", &["--query"], None)?;
        if running.find(&["configuration"]).and_then(hash_of) == hash_of(&generated) {
            return Ok(Applied::Unchanged);
        }
        replace(&running, &generated).map(|()| Applied::Changed)
    })
}

/// Repeats a change, with growing pauses, as long as the configuration or the status has changed since it was read.
fn until_current<T>(limit: Duration, change: impl Fn() -> Result<T, OperationError>) -> Result<T, OperationError> {
    let end = Instant::now() + limit;
    let mut pause = FIRST_PAUSE;
    loop {
        match change() {
            Err(OperationError::Engine(EngineError::Outdated)) => {}
            result => return result,
        }
        if Instant::now() + pause >= end {
            return Err(OperationError::Contended);
        }
        sleep(pause);
        pause = (pause * 2).min(LONGEST_PAUSE);
    }
}

/// Replaces our part of the configuration, unless the cluster has a newer one. The change is a single one, so that the
/// cluster never starts a machine without its constraints.
fn replace(running: &Element, generated: &Element) -> Result<(), OperationError> {
    let mut wanted = running.clone();
    let configuration = wanted.child_mut("configuration");
    *configuration = merged(std::mem::take(configuration), generated);
    let epoch = running.attribute("epoch").and_then(|epoch| epoch.parse::<u64>().ok()).unwrap_or_default();
    wanted.set("epoch", &(epoch + 1).to_string());
    wanted.set("num_updates", "0");
    // The difference names the versions of both, and is refused if the running one is not the first.
    if let Some(difference) = difference(&running.to_text()?, &wanted.to_text()?)? {
        run("cibadmin", &["--patch", "--xml-pipe"], Some(&difference))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::cell::{Cell, RefCell};

    #[test]
    fn a_change_is_repeated_while_the_cluster_changes_until_its_time_is_over() {
        let attempts = Cell::new(0);
        let change = |outdated: u32| {
            attempts.set(attempts.get() + 1);
            if attempts.get() <= outdated { Err(EngineError::Outdated.into()) } else { Ok(attempts.get()) }
        };
        assert_eq!(until_current(Duration::from_secs(3600), || change(2)).unwrap(), 3);
        assert!(matches!(until_current(FIRST_PAUSE / 2, || change(u32::MAX)), Err(OperationError::Contended)));
        let refused = until_current(Duration::from_secs(3600), || Err::<(), _>(OperationError::NoCoordinator));
        assert!(matches!(refused, Err(OperationError::NoCoordinator)));
    }

    #[test]
    fn an_update_keeps_a_root_of_the_runner_that_the_cluster_starts() {
        let roots = RefCell::new(Vec::new());
        let keep = |root: &str, runner: &HostPath| {
            roots.borrow_mut().push(format!("{root} {runner}"));
            Ok(())
        };
        let forget = |root: &str| roots.borrow_mut().push(format!("{root} removed"));
        let kept = (&keep as Keep<'_>, &forget as &dyn Fn(&str));
        let (old, new) = (HostPath::new("/store/0ld-web"), HostPath::new("/store/n3w-web"));
        let refused = change_runner(("web", &new), kept, || Err(OperationError::NoCoordinator), || Ok(old.clone()));
        assert!(matches!(refused, Err(OperationError::NoCoordinator)));
        let made = "web@next-n3w /store/n3w-web";
        let removed = "web@next-n3w removed";
        assert_eq!(roots.take(), [made, removed], "hosts still start the old one");
        change_runner(("web", &new), kept, || Ok(()), || Ok(new.clone())).unwrap();
        assert_eq!(roots.take(), [made, "web /store/n3w-web", removed]);
        let asked = Cell::new(0);
        let current = || {
            asked.set(asked.get() + 1);
            Ok(HostPath::new(if asked.get() == 1 { "/store/n3w-web" } else { "/store/0ther-web" }))
        };
        let overtaken = change_runner(("web", &new), kept, || Ok(()), current);
        assert!(
            matches!(overtaken, Err(OperationError::Overtaken { runner, .. }) if runner.as_str() == "/store/0ther-web")
        );
        assert_eq!(roots.take(), [made, "web /store/n3w-web", "web /store/0ther-web", removed]);
        // The configuration cannot be read after the change.
        let unknown = change_runner(("web", &new), kept, || Ok(()), || Err(OperationError::NoCoordinator));
        assert!(matches!(unknown, Err(OperationError::NotConfirmed { .. })));
        assert_eq!(roots.take(), [made, "web /store/n3w-web", removed]);
    }
}
