//! Extra arguments of a hypervisor that keep a machine from being cloned. Both machines would have the same ones, so they
//! must not name a file, a socket or a device of the host. No list of the options that do is ever complete, so the options
//! that do not are listed.

use crate::spec::{Hypervisor, HypervisorSections};

/// An option, and whether a word follows it.
type Harmless = (&'static str, bool);

const QEMU: &[Harmless] = &[
    ("-accel", true),
    ("-cpu", true),
    ("-d", true),
    ("-msg", true),
    ("-no-reboot", false),
    ("-no-user-config", false),
    ("-overcommit", true),
    ("-rtc", true),
];
const CLOUD_HYPERVISOR: &[Harmless] =
    &[("--balloon", true), ("--platform", true), ("--seccomp", true), ("-v", false), ("-vv", false), ("-vvv", false)];
const CROSVM: &[Harmless] = &[
    ("--disable-sandbox", false),
    ("--log-level", true),
    ("--no-balloon", false),
    ("--no-rng", false),
    ("--no-smt", false),
    ("--no-usb", false),
];
const FIRECRACKER: &[Harmless] = &[
    ("--boot-timer", false),
    ("--http-api-max-payload-size", true),
    ("--level", true),
    ("--mmds-size-limit", true),
    ("--no-seccomp", false),
    ("--show-level", false),
    ("--show-log-origin", false),
];
/// Parts of firecracker's configuration.
const FIRECRACKER_PARTS: [&str; 5] = ["balloon", "entropy", "machine-config", "memory-hotplug", "mmds-config"];

/// Returns the extra arguments that a clone must not have, each with its option of the spec.
pub(super) fn shared(sections: &HypervisorSections, hypervisor: Hypervisor) -> Vec<(&'static str, String)> {
    let harmless = match hypervisor {
        Hypervisor::Qemu => QEMU,
        Hypervisor::CloudHypervisor => CLOUD_HYPERVISOR,
        Hypervisor::Crosvm => CROSVM,
        Hypervisor::Firecracker => FIRECRACKER,
        // Every extra argument is refused.
        _ => &[],
    };
    let (option, words) = sections.extra_args(hypervisor);
    let words = other_than(harmless, words).into_iter().map(|word| (option, word.to_owned()));
    let parts = sections.firecracker.extra_config.keys().filter(|_| hypervisor == Hypervisor::Firecracker);
    let parts = parts.filter(|part| !FIRECRACKER_PARTS.contains(&part.as_str()));
    words.chain(parts.map(|part| ("firecracker.extraConfig", part.clone()))).collect()
}

/// Returns the options other than these, without their values.
fn other_than<'words>(harmless: &[Harmless], words: &'words [String]) -> Vec<&'words str> {
    let mut others = Vec::new();
    let (mut is_value, mut is_value_of_other) = (false, false);
    for word in words {
        let option = word.split_once('=').map_or(word.as_str(), |(option, _)| option);
        let found = harmless.iter().find(|(harmless, _)| *harmless == option);
        match found {
            // A word with a slash may be a path.
            _ if is_value && !word.starts_with('-') && !word.contains('/') => is_value = false,
            Some((_, takes_value)) if !word.contains('/') => {
                (is_value, is_value_of_other) = (*takes_value && option == word, false);
            }
            _ if word.starts_with('-') || !is_value_of_other => {
                others.push(if word.starts_with('-') { option } else { word });
                (is_value, is_value_of_other) = (false, word.starts_with('-'));
            }
            _ => is_value_of_other = false,
        }
    }
    others
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spec::MachineSpec;
    use serde_json::{Value, json};

    fn shared_of(hypervisor: Hypervisor, section: Value) -> Vec<(&'static str, String)> {
        let mut document = json!({"version": 1, "name": "web", "kernel": "vmlinux"});
        let name = serde_json::to_value(hypervisor).unwrap();
        let name = if name == "cloud-hypervisor" { "cloudHypervisor" } else { name.as_str().unwrap() };
        document[name] = section;
        let spec: MachineSpec = serde_json::from_value(document).unwrap();
        shared(&HypervisorSections::of(&spec), hypervisor)
    }

    fn arguments(hypervisor: Hypervisor, line: &str) -> Vec<String> {
        let words: Vec<_> = line.split_whitespace().collect();
        shared_of(hypervisor, json!({"extraArgs": words})).into_iter().map(|(_, word)| word).collect()
    }

    #[test]
    fn a_qemu_that_opens_a_file_or_a_socket_is_not_cloned() {
        let of = |line| arguments(Hypervisor::Qemu, line);
        assert_eq!(of("-drive file=web.img -cpu max -chardev socket,path=a"), ["-drive", "-chardev"]);
        assert_eq!(of("-blockdev driver=file,filename=a -device virtio-blk-pci,drive=a"), ["-blockdev", "-device"]);
        // A word without an option is a disk, and the last one has the value of an option.
        assert_eq!(of("-no-reboot web.img"), ["web.img"]);
        assert_eq!(of("-cpu max web.img"), ["web.img"]);
        assert_eq!(of("-cpu /srv/web.img"), ["/srv/web.img"]);
        assert!(of("-cpu max -rtc base=utc -no-reboot -overcommit mem-lock=off").is_empty());
    }

    #[test]
    fn a_cloud_hypervisor_with_a_disk_of_its_own_is_not_cloned() {
        let of = |line| arguments(Hypervisor::CloudHypervisor, line);
        assert_eq!(of("--pmem file=/srv/web.img"), ["--pmem"]);
        assert_eq!(of("-v --disk path=a path=b --fs tag=a,socket=b"), ["--disk", "path=b", "--fs"]);
        assert_eq!(of("--serial=file=/srv/web.log"), ["--serial"]);
        assert!(of("-v --balloon size=64M --seccomp=true").is_empty());
    }

    #[test]
    fn a_crosvm_with_a_disk_of_its_own_is_not_cloned() {
        let of = |line| arguments(Hypervisor::Crosvm, line);
        assert_eq!(of("--block path=/srv/web.img --no-rng"), ["--block"]);
        assert_eq!(of("--pmem-device=/srv/web.img --serial type=file,path=a"), ["--pmem-device", "--serial"]);
        assert!(of("--disable-sandbox --log-level debug").is_empty());
    }

    #[test]
    fn a_firecracker_with_a_drive_of_its_own_is_not_cloned() {
        let drives = json!({"extraConfig": {"drives": [{"drive_id": "a"}], "machine-config": {"smt": true}}});
        assert_eq!(shared_of(Hypervisor::Firecracker, drives), [("firecracker.extraConfig", "drives".to_owned())]);
        assert_eq!(arguments(Hypervisor::Firecracker, "--log-path /srv/web.log"), ["--log-path"]);
        assert!(arguments(Hypervisor::Firecracker, "--no-seccomp --level Debug").is_empty());
    }
}
