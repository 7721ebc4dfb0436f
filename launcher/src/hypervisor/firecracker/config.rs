//! Firecracker's configuration document: the definitions of its published API that this launcher uses, with the names
//! of the API. Firecracker fails on a field that it does not support, so unused fields are omitted.

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
    /// Required, even if it is empty.
    pub(super) drives: Vec<Drive>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(super) pmem: Vec<Pmem>,
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

/// `Drive`: with an image, or with the socket of a process that serves it.
#[derive(Debug, Serialize)]
pub(super) struct Drive {
    pub(super) drive_id: String,
    pub(super) is_root_device: bool,
    #[serde(flatten)]
    pub(super) backend: DriveBackend,
}

#[derive(Debug, Serialize)]
#[serde(untagged)]
pub(super) enum DriveBackend {
    Image { path_on_host: String, is_read_only: bool, cache_type: CacheType, io_engine: DriveIoEngine },
    Socket { socket: String },
}

/// `Pmem`.
#[derive(Debug, Serialize)]
pub(super) struct Pmem {
    pub(super) id: String,
    pub(super) path_on_host: String,
    pub(super) root_device: bool,
    pub(super) read_only: bool,
}

/// Whether the guest's flushes reach the disk. With `Unsafe`, they do not.
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
        // Serialising maps with text keys and numbers in range cannot fail.
        serde_json::to_value(self).unwrap_or_default()
    }
}

/// The fields that identify an element of a list.
const ID_FIELDS: [&str; 3] = ["drive_id", "iface_id", "id"];

/// A field that cannot be merged, and the reason.
pub(super) type Conflict = (String, String);

/// Merges objects recursively, field by field. An element of a list is merged with the one that has the same id, or
/// else appended. Any other value replaces the existing one.
pub(super) fn merge(document: &mut Value, extra: &Map<String, Value>) -> Vec<Conflict> {
    let Value::Object(fields) = document else { return Vec::new() };
    let mut conflicts = Vec::new();
    for (name, value) in extra {
        match (fields.get_mut(name), value) {
            (Some(there @ Value::Object(_)), Value::Object(value)) => {
                let inner = merge(there, value).into_iter();
                conflicts.extend(inner.map(|(field, reason)| (format!("{name}.{field}"), reason)));
            }
            (Some(Value::Array(there)), Value::Array(elements)) => {
                conflicts.extend(merge_lists(there, elements).into_iter().map(|reason| (name.clone(), reason)));
            }
            (Some(Value::Array(_)), _) => conflicts.push((name.clone(), "requires a list here".to_owned())),
            _ => {
                fields.insert(name.clone(), value.clone());
            }
        }
    }
    conflicts
}

fn merge_lists(there: &mut Vec<Value>, elements: &[Value]) -> Vec<String> {
    let mut conflicts = Vec::new();
    for (index, element) in elements.iter().enumerate() {
        let id = id_of(element);
        if id.is_some() && elements[..index].iter().any(|earlier| id_of(earlier) == id) {
            let id = id.unwrap_or_default();
            conflicts.push(format!("accepts each id only once, but `{id}` is given twice here; choose another id"));
            continue;
        }
        let same = there.iter_mut().find(|other| id.is_some() && id_of(other) == id);
        match (same, element) {
            (Some(same), Value::Object(fields)) => {
                conflicts.extend(merge(same, fields).into_iter().map(|(field, reason)| format!("{reason} ({field})")));
            }
            _ => there.push(element.clone()),
        }
    }
    conflicts
}

fn id_of(element: &Value) -> Option<&str> {
    ID_FIELDS.iter().find_map(|field| element.get(field)?.as_str())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn objects_and_lists_are_merged_and_everything_else_is_replaced() {
        let mut document = json!({"a": {"b": 1, "c": [1, 2]}, "d": 1});
        let extra = json!({"a": {"c": [3], "e": 2}, "d": {"f": 1}, "g": null});
        assert_eq!(merge(&mut document, extra.as_object().expect("an object")), []);
        assert_eq!(document, json!({"a": {"b": 1, "c": [1, 2, 3], "e": 2}, "d": {"f": 1}, "g": null}));
    }
}
