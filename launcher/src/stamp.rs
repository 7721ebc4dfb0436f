//! What a saved machine depends on: the machine spec, the hypervisor, the CPU, and the files that the guest uses. A
//! machine is only resumed if nothing of this has changed.

use crate::facts::HostFacts;
use crate::launch::{Access, KvmUse, Launch, StoreDiskNeed};
use crate::path::HostPath;
use crate::spec::MachineSpec;
use nix::fcntl::OFlag;
use nix::libc::{S_IFBLK, S_IFMT};
use nix::sys::stat::fstat;
use program::escape::one_line;
use program::place::Place;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io::{self, BufRead, BufReader};
use std::path::Path;

/// The version of the format.
const VERSION: u32 = 1;
const CPU_FILE: &str = "/proc/cpuinfo";
/// The longest text of a value in a message.
const MAX_SHOWN_CHARACTERS: usize = 80;
/// The kernel parameter with the rate of the host's time stamp counter, which is measured again after each boot.
const MEASURED_PARAMETER: &str = "tsc_early_khz=";

/// What a saved machine depends on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Stamp {
    version: u32,
    /// When the machine was suspended, in seconds since 1970; null while it runs.
    pub suspended_unix_seconds: Option<u64>,
    /// The machine spec with its overrides.
    pub machine_spec: Value,
    hypervisor: HypervisorStamp,
    /// The host's CPU; null if the machine is emulated.
    cpu: Option<Cpu>,
    /// Whether the machine was suspended because the host shut down, and not by a user.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub at_shutdown: bool,
    /// What a clone's guest has of another machine; null if the guest has booted as this machine.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub borrowed: Option<BorrowedIdentity>,
    /// The files that the guest only reads, by their paths.
    files: BTreeMap<String, FileStamp>,
    /// The volumes that the guest writes to, by their paths; empty until the machine is suspended.
    pub(super) volumes: BTreeMap<String, VolumeStamp>,
}

/// The identity that a clone's guest has until it boots: that of the machine whose memory it continues.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct BorrowedIdentity {
    /// The machine that booted.
    pub machine: String,
    /// Whether the user keeps guests with the same MAC addresses apart.
    pub same_mac_is_allowed: bool,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct HypervisorStamp {
    version: Option<String>,
    program: String,
    file: FileStamp,
    /// They determine the devices, and change with the version of this program.
    arguments: Vec<String>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Cpu {
    model: String,
    flags: BTreeSet<String>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct FileStamp {
    size_bytes: i64,
    /// Seconds since 1970 with nine decimal places.
    modified: String,
}

/// A volume at the moment when its machine was suspended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct VolumeStamp {
    size_bytes: i64,
    modified: String,
    /// Another file can have the same size and time, such as a copy.
    inode: u64,
}

/// A file that the stamp cannot describe.
#[derive(Debug, thiserror::Error)]
pub enum StampError {
    /// A file cannot be inspected.
    #[error("{path}: {source}")]
    File {
        /// The file.
        path: HostPath,
        /// The error of the system.
        source: io::Error,
    },
    /// A volume whose content can change without a trace.
    #[error("the volume {0} is a block device: changes to it while the machine is suspended could not be detected")]
    BlockDevice(HostPath),
}

/// The machine that starts.
#[derive(Clone, Copy, Debug)]
pub struct StampInputs<'start> {
    /// The machine spec with its overrides.
    pub spec: &'start MachineSpec,
    /// The facts about this host.
    pub facts: &'start HostFacts,
    /// The launch with which it boots, even if it is resumed.
    pub launch: &'start Launch,
    /// The hypervisor's program.
    pub program: &'start Path,
}

impl Stamp {
    /// Describes a machine that starts.
    ///
    /// # Errors
    /// Returns [`StampError::File`].
    pub fn of(inputs: &StampInputs<'_>) -> Result<Self, StampError> {
        let StampInputs { spec, facts, launch, program } = *inputs;
        let failed = |path: &Path| {
            let path = HostPath::new(path.to_string_lossy());
            move |source: io::Error| StampError::File { path, source }
        };
        let machine_spec = serde_json::to_value(spec).map_err(|error| failed(program)(error.into()))?;
        let mut files = BTreeMap::new();
        let read = launch.needs.present.iter().filter(|need| need.access == Access::Read).map(|need| &need.path);
        let disks = launch.disks.iter().filter(|disk| disk.read_only).map(|disk| &disk.image);
        for path in read.chain(disks) {
            // Not all of them need to exist: the server of a store disk without an image needs no file.
            let metadata = fs::metadata(path.below(&launch.working_directory).as_path());
            if let Some(metadata) = metadata.ok().filter(fs::Metadata::is_file) {
                files.insert(path.to_string(), FileStamp::of(&metadata));
            }
        }
        let metadata = fs::metadata(program).map_err(failed(program))?;
        let version = facts.versions.get(&launch.hypervisor).map(ToString::to_string);
        let hypervisor = HypervisorStamp {
            version,
            program: program.to_string_lossy().into_owned(),
            file: FileStamp::of(&metadata),
            arguments: launch.arguments.iter().map(|argument| without_measurement(argument)).collect(),
        };
        let cpu = (launch.needs.kvm == KvmUse::Required)
            .then(|| first_processor(Path::new(CPU_FILE)).map(|text| Cpu::parse(&text)))
            .transpose()
            .map_err(failed(Path::new(CPU_FILE)))?;
        Ok(Self {
            version: VERSION,
            suspended_unix_seconds: None,
            machine_spec,
            hypervisor,
            cpu,
            at_shutdown: false,
            borrowed: None,
            files,
            volumes: BTreeMap::new(),
        })
    }

    /// Returns the stamp of a clone whose guest has the identity that this stamp describes.
    #[must_use]
    pub fn with_identity_of(self, borrowed: &BorrowedIdentity) -> Self {
        Self { borrowed: Some(borrowed.clone()), ..self }
    }

    /// Returns the stamp of the machine after it was resumed.
    pub(super) fn while_running(&self) -> Self {
        Self { suspended_unix_seconds: None, at_shutdown: false, volumes: BTreeMap::new(), ..self.clone() }
    }

    /// Whether an image is the one that the guest used, and was built from this plan. Both are absolute paths.
    pub(super) fn has_store_disk(&self, need: &StoreDiskNeed, plan: &Path, image: &Path) -> bool {
        let (Ok(plan), Ok(image)) = (fs::metadata(plan), fs::metadata(image)) else { return false };
        // A plan outside the store can change without another name.
        let is_older = matches!((plan.modified(), image.modified()), (Ok(plan), Ok(image)) if plan <= image);
        let same_plan =
            self.machine_spec.pointer("/storeDisk/plan").and_then(Value::as_str) == Some(need.plan.as_str());
        same_plan && is_older && self.files.get(need.image.as_str()) == Some(&FileStamp::of(&image))
    }

    /// Returns the MAC addresses that the guest has.
    pub fn guest_macs(&self) -> Vec<String> {
        let interfaces = self.machine_spec.get("interfaces").and_then(Value::as_array);
        let macs = interfaces.into_iter().flatten().filter_map(|interface| interface.get("mac")?.as_str());
        macs.map(str::to_ascii_lowercase).collect()
    }

    /// Returns the stamp of a clone whose volumes were copied from this machine's.
    ///
    /// # Errors
    /// Returns [`StampError`] if a volume cannot be inspected.
    pub(super) fn of_clone(&self, launch: &Launch, borrowed: BorrowedIdentity) -> Result<Self, StampError> {
        // The clone of a clone that has not booted has the identity of the first one.
        let machine = self.borrowed.as_ref().map_or(borrowed.machine, |first| first.machine.clone());
        let borrowed = Some(BorrowedIdentity { machine, ..borrowed });
        Ok(Self { borrowed, volumes: volume_stamps(launch)?, ..self.clone() })
    }

    /// Returns the volumes that have changed since the machine was suspended, each as one line.
    ///
    /// # Errors
    /// Returns [`StampError`] if a volume cannot be inspected.
    pub(super) fn changed_volumes(&self, launch: &Launch) -> Result<Vec<String>, StampError> {
        let value = |volumes: &BTreeMap<String, VolumeStamp>| serde_json::to_value(volumes).unwrap_or_default();
        let mut differences = Vec::new();
        compare("volumes", Some(&value(&self.volumes)), Some(&value(&volume_stamps(launch)?)), &mut differences);
        Ok(differences)
    }

    /// Returns the differences between the machine that was suspended and the one that starts, each as one line; empty
    /// if the machine can be resumed.
    ///
    /// # Errors
    /// Returns [`StampError`] if a volume cannot be inspected.
    pub(super) fn differences_to(&self, now: &Self, launch: &Launch) -> Result<Vec<String>, StampError> {
        let now = Self {
            suspended_unix_seconds: self.suspended_unix_seconds,
            at_shutdown: self.at_shutdown,
            borrowed: self.borrowed.clone(),
            volumes: volume_stamps(launch)?,
            ..now.clone()
        };
        let value = |stamp: &Self| serde_json::to_value(stamp).unwrap_or_default();
        let mut differences = Vec::new();
        compare("", Some(&value(self)), Some(&value(&now)), &mut differences);
        Ok(differences)
    }
}

/// Describes the volumes that the guest writes to.
pub(super) fn volume_stamps(launch: &Launch) -> Result<BTreeMap<String, VolumeStamp>, StampError> {
    let mut volumes = BTreeMap::new();
    for volume in launch.needs.volumes.iter().filter(|volume| volume.access == Access::ReadWrite) {
        let path = volume.image.below(&launch.working_directory);
        let failed = |source| StampError::File { path: path.clone(), source };
        let opened = Place::of(path.as_path()).and_then(|place| place.open(OFlag::O_RDONLY)).map_err(failed)?;
        let stat = fstat(&opened).map_err(|errno| failed(errno.into()))?;
        if stat.st_mode & S_IFMT == S_IFBLK {
            return Err(StampError::BlockDevice(path));
        }
        let modified = format!("{}.{:09}", stat.st_mtime, stat.st_mtime_nsec);
        let stamp = VolumeStamp { size_bytes: stat.st_size, modified, inode: stat.st_ino };
        volumes.insert(volume.image.to_string(), stamp);
    }
    Ok(volumes)
}

impl FileStamp {
    fn of(metadata: &fs::Metadata) -> Self {
        use std::os::unix::fs::MetadataExt;
        Self {
            size_bytes: i64::try_from(metadata.size()).unwrap_or(i64::MAX),
            modified: format!("{}.{:09}", metadata.mtime(), metadata.mtime_nsec()),
        }
    }
}

impl Cpu {
    /// Reads the first processor of /proc/cpuinfo: the fields of x86, or those of ARM.
    fn parse(text: &str) -> Self {
        let field = |names: &[&str]| {
            let mut lines = text.lines().filter_map(|line| line.split_once(':'));
            lines.find(|(name, _)| names.contains(&name.trim())).map(|(_, value)| value.trim()).unwrap_or_default()
        };
        let flags = field(&["flags", "Features"]).split_whitespace().map(str::to_owned).collect();
        Self { model: field(&["model name", "CPU part"]).to_owned(), flags }
    }
}

/// Returns the first paragraph. Reading about all processors takes the kernel milliseconds on a large host.
fn first_processor(path: &Path) -> io::Result<String> {
    let mut text = String::new();
    for line in BufReader::with_capacity(1 << 10, File::open(path)?).lines() {
        let line = line?;
        if line.is_empty() {
            break;
        }
        text.push_str(&line);
        text.push('\n');
    }
    Ok(text)
}

fn without_measurement(argument: &str) -> String {
    if !argument.contains(MEASURED_PARAMETER) {
        return argument.to_owned();
    }
    let words = argument.split(' ').filter(|word| !word.starts_with(MEASURED_PARAMETER));
    words.collect::<Vec<_>>().join(" ")
}

/// Adds a line for each difference between two JSON values.
fn compare(path: &str, before: Option<&Value>, now: Option<&Value>, differences: &mut Vec<String>) {
    match (before, now) {
        (before, now) if before == now => {}
        (Some(Value::Object(before)), Some(Value::Object(now))) => {
            let names: BTreeSet<_> = before.keys().chain(now.keys()).collect();
            for name in names {
                let path = if path.is_empty() { name.clone() } else { format!("{path}: {name}") };
                compare(&path, before.get(name), now.get(name), differences);
            }
        }
        (Some(Value::Array(before)), Some(Value::Array(now))) => {
            let missing = |all: &[Value], from: &[Value]| {
                all.iter().filter(|value| !from.contains(value)).map(shown).collect::<Vec<_>>().join(", ")
            };
            let (gone, new) = (missing(before, now), missing(now, before));
            let parts = [("no longer has", gone), ("now also has", new)];
            let parts: Vec<_> = parts.iter().filter(|(_, values)| !values.is_empty()).collect();
            if parts.is_empty() {
                differences.push(format!("{path}: the order differs"));
            }
            differences.extend(parts.into_iter().map(|(verb, values)| format!("{path}: {verb} {values}")));
        }
        (before, now) => {
            let text = |value: Option<&Value>| value.map_or_else(|| "missing".to_owned(), shown);
            differences.push(format!("{path}: was {}, is {}", text(before), text(now)));
        }
    }
}

fn shown(value: &Value) -> String {
    let text = match value {
        Value::String(text) => one_line(text).into_owned(),
        other => other.to_string(),
    };
    match text.char_indices().nth(MAX_SHOWN_CHARACTERS) {
        Some((at, _)) => format!("{}...", &text[..at]),
        None => text,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn differences(before: &Value, now: &Value) -> Vec<String> {
        let mut differences = Vec::new();
        compare("", Some(before), Some(now), &mut differences);
        differences
    }

    #[test]
    fn every_difference_is_named_with_its_place_and_both_values() {
        let before = json!({
            "machineSpec": {"mem": 256, "vcpu": 1, "kernelParams": ["quiet", "init=/old"]},
            "volumes": {"var.img": {"sizeBytes": 1, "modified": "5.000000001"}}, "cpu": null,
        });
        assert!(differences(&before, &before).is_empty());
        let now = json!({
            "machineSpec": {"mem": 512, "vcpu": 1, "kernelParams": ["quiet", "init=/new"]},
            "volumes": {"var.img": {"sizeBytes": 1, "modified": "6.000000001"}}, "cpu": {"model": "x"},
        });
        let expected = [
            "cpu: was null, is {\"model\":\"x\"}",
            "machineSpec: kernelParams: no longer has init=/old",
            "machineSpec: kernelParams: now also has init=/new",
            "machineSpec: mem: was 256, is 512",
            "volumes: var.img: modified: was 5.000000001, is 6.000000001",
        ];
        assert_eq!(differences(&before, &now), expected);
        assert_eq!(differences(&json!({"a": [1, 2]}), &json!({"a": [2, 1]})), ["a: the order differs"]);
        assert_eq!(differences(&json!({"a": 1}), &json!({})), ["a: was 1, is missing"]);
    }

    #[test]
    fn the_measured_rate_of_the_clock_is_no_difference() {
        assert_eq!(without_measurement("panic=-1 tsc_early_khz=2000001 quiet"), "panic=-1 quiet");
        assert_eq!(without_measurement("-nodefaults"), "-nodefaults");
    }

    #[test]
    fn the_model_and_the_flags_of_both_architectures_are_read() {
        let intel = Cpu::parse("processor : 0\nmodel name\t: Xeon\nflags\t\t: fpu sse\n\nmodel name: Other\n");
        assert_eq!((intel.model.as_str(), intel.flags.len()), ("Xeon", 2));
        let arm = Cpu::parse("processor\t: 0\nFeatures\t: fp asimd\nCPU part\t: 0xd0c\n");
        assert_eq!((arm.model.as_str(), arm.flags.len()), ("0xd0c", 2));
    }
}
