//! Firecracker's configuration document: the definitions of its published API that this launcher uses, by their names
//! there. A field that firecracker does not know stops it, so what is not used is not written.

use crate::spec::DriveIoEngine;
use serde::Serialize;
use serde_json::{Map, Value};

/// `FullVmConfiguration`.
#[derive(Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(super) struct FullConfiguration {
    pub(super) boot_source: BootSource,
    pub(super) machine_config: MachineConfiguration,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) cpu_config: Option<Map<String, Value>>,
    /// Mandatory, even if empty.
    pub(super) drives: Vec<Drive>,
    pub(super) network_interfaces: Vec<NetworkInterface>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) vsock: Option<Vsock>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) balloon: Option<Balloon>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) memory_hotplug: Option<MemoryHotplug>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) entropy: Option<Entropy>,
}

/// `BootSource`.
#[derive(Debug, Serialize)]
pub(super) struct BootSource {
    pub(super) kernel_image_path: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) initrd_path: Option<String>,
    pub(super) boot_args: String,
}

/// `MachineConfiguration`.
#[derive(Debug, Serialize)]
pub(super) struct MachineConfiguration {
    pub(super) vcpu_count: u32,
    pub(super) mem_size_mib: u64,
    pub(super) smt: bool,
    pub(super) track_dirty_pages: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) huge_pages: Option<HugePages>,
}

#[derive(Debug, Serialize)]
pub(super) enum HugePages {
    #[serde(rename = "2M")]
    TwoMib,
}

/// `Drive`.
#[derive(Debug, Serialize)]
pub(super) struct Drive {
    pub(super) drive_id: String,
    pub(super) path_on_host: String,
    pub(super) is_root_device: bool,
    pub(super) is_read_only: bool,
    pub(super) cache_type: CacheType,
    pub(super) io_engine: DriveIoEngine,
}

/// Whether the guest's flushes reach the disk: with `Unsafe` they do not.
#[derive(Debug, Serialize)]
pub(super) enum CacheType {
    Unsafe,
    Writeback,
}

/// `NetworkInterface`.
#[derive(Debug, Serialize)]
pub(super) struct NetworkInterface {
    pub(super) iface_id: String,
    pub(super) host_dev_name: String,
    pub(super) guest_mac: String,
}

/// `Vsock`.
#[derive(Debug, Serialize)]
pub(super) struct Vsock {
    pub(super) guest_cid: u32,
    pub(super) uds_path: String,
}

/// `Balloon`.
#[derive(Debug, Serialize)]
pub(super) struct Balloon {
    pub(super) amount_mib: u64,
    pub(super) deflate_on_oom: bool,
    pub(super) stats_polling_interval_s: u32,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) free_page_reporting: Option<bool>,
}

/// `MemoryHotplugConfig`.
#[derive(Debug, Serialize)]
pub(super) struct MemoryHotplug {
    pub(super) total_size_mib: u64,
}

/// `EntropyDevice`.
#[derive(Debug, Serialize)]
pub(super) struct Entropy {}

impl FullConfiguration {
    pub(super) fn to_value(&self) -> Value {
        // Maps with text for keys and numbers in range: there is nothing that could not be written as JSON.
        serde_json::to_value(self).unwrap_or_default()
    }
}

/// Merges objects field by field, however deep; anything else replaces what is there.
pub(super) fn merge(document: &mut Value, extra: &Map<String, Value>) {
    let Value::Object(fields) = document else { return };
    for (name, value) in extra {
        match (fields.get_mut(name), value) {
            (Some(there @ Value::Object(_)), Value::Object(value)) => merge(there, value),
            _ => {
                fields.insert(name.clone(), value.clone());
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn objects_are_merged_and_everything_else_is_replaced() {
        let mut document = json!({"a": {"b": 1, "c": [1, 2]}, "d": 1});
        let extra = json!({"a": {"c": [3], "e": 2}, "d": {"f": 1}, "g": null});
        merge(&mut document, extra.as_object().expect("an object"));
        assert_eq!(document, json!({"a": {"b": 1, "c": [3], "e": 2}, "d": {"f": 1}, "g": null}));
    }
}
