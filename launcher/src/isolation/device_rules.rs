//! The device rules of a machine's unit, which may open exactly the devices in the machine's root directory.

use super::IsolationError;
use super::tree::{Entry, TEMPLATE_DEVICES, Tree};
use std::fs;
use std::os::unix::fs::FileTypeExt;
use std::path::Path;
use std::process::Command;

/// The directory in which systemd keeps settings that apply until the next boot.
const UNIT_CONTROL_DIRECTORY: &str = "/run/systemd/system.control";

/// Makes systemd allow the unit these devices until the next boot, and no others. Does nothing for a machine that needs
/// only the devices of the template.
///
/// # Errors
/// Returns [`IsolationError::DeviceRules`].
pub fn allow_devices(tree: &Tree, unit: &str) -> Result<(), IsolationError> {
    let failed = |reason: String| IsolationError::DeviceRules(reason);
    let other_paths = devices_outside_template(tree);
    let earlier_rules = Path::new(UNIT_CONTROL_DIRECTORY).join(format!("{unit}.d/50-DeviceAllow.conf"));
    if other_paths.is_empty() && !earlier_rules.exists() {
        return Ok(());
    }
    let of_template = TEMPLATE_DEVICES.into_iter().filter(|path| Path::new(path).exists()).map(str::to_owned);
    let allowed = of_template.chain(["char-pts".to_owned()]).chain(other_paths);
    let mut command = Command::new("systemctl");
    // An empty assignment clears the list.
    command.args(["set-property", "--runtime", unit, "DeviceAllow="]);
    command.args(allowed.map(|device| format!("DeviceAllow={device} rw")));
    let output = command.output().map_err(|error| failed(error.to_string()))?;
    if output.status.success() {
        return Ok(());
    }
    Err(failed(String::from_utf8_lossy(&output.stderr).trim().to_owned()))
}

/// Returns the devices that the template does not allow.
pub(super) fn devices_outside_template(tree: &Tree) -> Vec<String> {
    let is_device = |path: &Path| {
        fs::metadata(path)
            .is_ok_and(|metadata| metadata.file_type().is_char_device() || metadata.file_type().is_block_device())
    };
    let of_entry = |entry: &Entry| match entry {
        Entry::Device(path) if is_device(path) => Some(path.display().to_string()),
        Entry::Host(bound) if bound.path.starts_with("/dev/bus/usb") => Some("char-usb_device".to_owned()),
        // A device among the paths that the spec does not name.
        Entry::Host(bound) if is_device(&bound.path) => Some(bound.path.display().to_string()),
        _ => None,
    };
    tree.entries.iter().filter_map(of_entry).filter(|device| !TEMPLATE_DEVICES.contains(&device.as_str())).collect()
}
