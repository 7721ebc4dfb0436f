//! The devices that a machine's unit may open: those of its root directory, one by one.

use super::IsolationError;
use super::tree::{Entry, Tree};
use std::fs;
use std::os::unix::fs::FileTypeExt;
use std::path::Path;
use std::process::Command;

/// What the template of the units allows every machine: none of it is a door to what belongs to others.
const OF_TEMPLATE: [&str; 4] = ["/dev/kvm", "/dev/net/tun", "/dev/vhost-net", "/dev/vhost-vsock"];
/// Where systemd keeps settings until the next boot.
const TOLD: &str = "/run/systemd/system.control";

/// Has systemd allow the unit these devices until the next boot, and none that it was allowed before. For a machine that
/// needs no more than the template gives there is nothing to tell.
///
/// # Errors
/// [`IsolationError::DeviceRules`].
pub fn allow_devices(tree: &Tree, unit: &str) -> Result<(), IsolationError> {
    let failed = |reason: String| IsolationError::DeviceRules(reason);
    let further = further(tree);
    let told_before = Path::new(TOLD).join(format!("{unit}.d/50-DeviceAllow.conf"));
    if further.is_empty() && !told_before.exists() {
        return Ok(());
    }
    let of_template = OF_TEMPLATE.into_iter().filter(|path| Path::new(path).exists()).map(str::to_owned);
    let allowed = of_template.chain(["char-pts".to_owned()]).chain(further);
    let mut command = Command::new("systemctl");
    // The empty one forgets all that were there.
    command.args(["set-property", "--runtime", unit, "DeviceAllow="]);
    command.args(allowed.map(|device| format!("DeviceAllow={device} rw")));
    let output = command.output().map_err(|error| failed(error.to_string()))?;
    if output.status.success() {
        return Ok(());
    }
    Err(failed(String::from_utf8_lossy(&output.stderr).trim().to_owned()))
}

/// The devices of the spec that the template does not know.
fn further(tree: &Tree) -> Vec<String> {
    let is_device = |path: &Path| {
        fs::metadata(path)
            .is_ok_and(|metadata| metadata.file_type().is_char_device() || metadata.file_type().is_block_device())
    };
    let of_entry = |entry: &Entry| match entry {
        Entry::Device(path) if is_device(path) => Some(path.display().to_string()),
        Entry::Host(bound) if bound.path.starts_with("/dev/bus/usb") => Some("char-usb_device".to_owned()),
        _ => None,
    };
    tree.entries.iter().filter_map(of_entry).filter(|device| !OF_TEMPLATE.contains(&device.as_str())).collect()
}
