//! How a machine can move to another host.

use super::spec::Migration;
use crate::hypervisor::{live_migration_refusals, suspend_refusals};
use crate::ocf::parameters::MigrationMode;
use crate::spec::ShareProtocol;
use crate::validate::{CheckedSpec, InterfaceKind};

/// Returns how the machine moves: as requested, or else the best way that it and the settings support.
///
/// # Errors
/// Returns why the machine cannot move as requested.
pub(super) fn decide(
    spec: &CheckedSpec,
    requested: Option<MigrationMode>,
    settings: &Migration,
) -> Result<MigrationMode, String> {
    let obstacle = |way: MigrationMode| match way {
        MigrationMode::Live => live_obstacle(spec),
        MigrationMode::Suspend => suspend_obstacle(spec, settings),
        MigrationMode::Cold => None,
    };
    match requested {
        Some(way) => obstacle(way).map_or(Ok(way), Err),
        // Without a command or directory, nobody has prepared the hosts for it.
        None if settings.command.is_some() && obstacle(MigrationMode::Live).is_none() => Ok(MigrationMode::Live),
        None if obstacle(MigrationMode::Suspend).is_none() => Ok(MigrationMode::Suspend),
        None => Ok(MigrationMode::Cold),
    }
}

/// Returns why the machine cannot migrate live.
fn live_obstacle(spec: &CheckedSpec) -> Option<String> {
    if let Some(refusal) = live_migration_refusals(spec).first() {
        return Some(format!("{}: {} {}", refusal.option, spec.hypervisor, refusal.reason));
    }
    common_obstacle(spec).map(|reason| format!("a machine with {reason} cannot migrate live"))
}

/// Returns why the machine cannot be suspended on one host and resumed on another.
fn suspend_obstacle(spec: &CheckedSpec, settings: &Migration) -> Option<String> {
    if let Some(refusal) = suspend_refusals(spec).first() {
        return Some(format!("{}: {} {}", refusal.option, spec.hypervisor, refusal.reason));
    }
    if settings.directory.is_none() {
        return Some("`suspend` requires `migration.directory`, a shared directory".to_owned());
    }
    common_obstacle(spec).map(|reason| format!("a machine with {reason} cannot be resumed on another host"))
}

/// Returns what the machine has that exists only on its host.
fn common_obstacle(spec: &CheckedSpec) -> Option<&'static str> {
    if spec.shares.iter().any(|share| share.share.proto == ShareProtocol::NineP) {
        return Some("a 9p share");
    }
    if !spec.shares.is_empty() {
        return Some("a virtiofs share");
    }
    if !spec.devices.is_empty() {
        return Some("a device of its host");
    }
    if spec.interfaces.iter().any(|interface| interface.kind == InterfaceKind::User) {
        return Some("user networking");
    }
    spec.graphics.is_some().then_some("a screen")
}
