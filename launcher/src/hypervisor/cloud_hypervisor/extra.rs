//! Merging the user's extra arguments with ours. Cloud Hypervisor refuses an option that is given twice, so such
//! options are merged key by key, replaced, or refused.

use super::super::launch_builder::LaunchBuilder;
use super::arguments::{self, Item, OPTION, Pairs, is_on, text_of};
use super::conditions;
use crate::path::HostPath;

/// Options whose value consists of keys, which are merged with ours.
const MERGED: [&str; 6] = ["--balloon", "--cpus", "--memory", "--platform", "--rng", "--vsock"];
/// Options for which the user's value replaces ours.
const REPLACED: [&str; 3] = ["--console", "--seccomp", "--serial"];
/// Other options with a value that are accepted once (`create_app` in cloud-hypervisor/src/main.rs). A switch may be repeated
/// here, because ours or the user's last one replaces it.
const ONCE: [&str; 6] = ["--debug-console", "--event-monitor", "--log-file", "--log-format", "--rtc", "--tpm"];
/// Options that only the spec may set, and a hint.
const REFUSED: [(&str, &str); 9] = [
    ("--api-socket", "use socket"),
    ("--cmdline", "use kernelParams"),
    ("--firmware", "the kernel is booted without one"),
    ("--igvm", "use kernel"),
    ("--initramfs", "use initrd"),
    ("--kernel", "use kernel"),
    ("--no-shutdown", "it would keep running after the guest has shut down, and the machine would never end"),
    ("--restore", "it would restore another machine"),
    ("--memory-zone", "the memory is one region; use --memory"),
];
/// Keys that only the spec may set if our value contains them, and the option of the spec.
const OWN_KEYS: [(&str, &str, &str); 12] = [
    ("--cpus", "boot", "vcpu"),
    ("--memory", "size", "mem"),
    ("--memory", "hugepages", "hugepageMem"),
    ("--memory", "hotplug_method", "hotplugMem"),
    ("--memory", "hotplug_size", "hotplugMem"),
    ("--memory", "hotplugged_size", "hotpluggedMem"),
    ("--platform", "system_uuid", "machineId"),
    ("--platform", "uuid", "machineId"),
    ("--vsock", "cid", "vsock.cid"),
    ("--vsock", "socket", "vsock.socket"),
    ("--balloon", "size", "initialBalloonMem"),
    ("--balloon", "deflate_on_oom", "deflateOnOOM"),
];

/// The merged command line.
pub(super) struct Merged {
    pub(super) items: Vec<Item>,
    /// Whether the serial console is still on the terminal.
    pub(super) serial_is_ours: bool,
    /// Whether none of our options has changed.
    pub(super) config_is_ours: bool,
}

impl Merged {
    /// The words of the command line.
    pub(super) fn arguments(&self) -> Vec<String> {
        self.items.iter().flat_map(|item| std::iter::once(&item.option).chain(&item.values)).cloned().collect()
    }
}

/// Merges our arguments with the user's.
pub(super) fn merge(builder: &mut LaunchBuilder<'_>, own: Vec<String>) -> Merged {
    let mut items = arguments::items(&own);
    let mut merged = Merged { items: Vec::new(), serial_is_ours: true, config_is_ours: true };
    let mut seen: Vec<String> = Vec::new();
    for item in arguments::items(&builder.spec.sections.cloud_hypervisor.extra_args) {
        let is_once = [&MERGED[..], &REPLACED, &ONCE].iter().any(|options| options.contains(&item.option.as_str()));
        if is_once && seen.contains(&item.option) {
            builder.refuse(OPTION, format!("accepts {} only once, but it is given twice", item.option));
            continue;
        }
        seen.push(item.option.clone());
        if let Some((option, instead)) = REFUSED.iter().find(|(option, _)| *option == item.option) {
            builder.refuse(OPTION, format!("does not accept {option} here; {instead}"));
            continue;
        }
        let place = items.iter().position(|own| own.option == item.option);
        merged.config_is_ours &= (place.is_none() || item.values.is_empty()) && item.option != "--landlock-rules";
        merged.serial_is_ours &= item.option != "--serial" || item.values == ["tty"];
        match place {
            Some(at) if MERGED.contains(&item.option.as_str()) => {
                let value = merge_value(builder, &item, items[at].pairs());
                items[at].values = vec![value];
            }
            Some(at) if REPLACED.contains(&item.option.as_str()) || item.values.is_empty() => items[at] = item,
            _ => {
                if item.option == "--vsock" {
                    // A socket left over from an earlier start would make the start fail.
                    let socket = item.pairs().into_iter().find(|(key, _)| key == "socket");
                    builder.needs.sockets_to_remove.extend(socket.and_then(|(_, path)| path).map(HostPath::new));
                }
                items.push(item);
            }
        }
    }
    merged.config_is_ours &= !conditions::share_memory(builder, &mut items);
    conditions::check(builder, &items);
    merged.items = items;
    merged
}

/// Merges the user's keys into those of our value.
fn merge_value(builder: &mut LaunchBuilder<'_>, item: &Item, mut merged: Pairs) -> String {
    for (key, value) in item.pairs() {
        let ours = merged.iter().position(|(own, _)| *own == key);
        let spec_option = OWN_KEYS.iter().find(|(option, own, _)| *option == item.option && *own == key);
        match (ours, spec_option) {
            (Some(at), _) if merged[at].1 == value => {}
            (Some(_), Some((option, key, instead))) => {
                builder.refuse(OPTION, format!("takes {key} of {option} from {instead}; set that"));
            }
            (Some(_), None) if item.option == "--memory" && key == "shared" && value.as_deref() == Some("off") => {
                builder.refuse(OPTION, "needs shared memory for the daemons beside it; leave `shared=off` out");
            }
            // The host's huge pages are checked only with the option: without them, the hypervisor is killed.
            (None, Some((option, key, instead))) if *key == "hugepages" && value.as_deref() == Some("on") => {
                builder.refuse(OPTION, format!("takes {key} of {option} from {instead}; set that"));
            }
            (Some(at), None) if key == "oem_strings" => {
                let lists = [merged[at].1.clone().unwrap_or_default(), value.unwrap_or_default()];
                let inside = lists.map(|list| list.trim_matches(['[', ']']).to_owned());
                merged[at].1 = Some(format!("[{}]", inside.join(",")));
            }
            (Some(at), None) => merged[at].1 = value,
            (None, _) => merged.push((key, value)),
        }
    }
    if item.option == "--memory" {
        keep_pages_apart(builder, &mut merged, item);
    }
    text_of(merged)
}

/// Removes `mergeable` if memory is shared or consists of huge pages, because Cloud Hypervisor refuses the combination.
fn keep_pages_apart(builder: &mut LaunchBuilder<'_>, memory: &mut Pairs, item: &Item) {
    if is_on(memory, "mergeable") && (is_on(memory, "shared") || is_on(memory, "hugepages")) {
        if is_on(&item.pairs(), "mergeable") {
            builder.refuse(OPTION, "cannot merge the pages of shared memory or huge pages; leave `mergeable=on` out");
        }
        memory.retain(|(key, _)| key != "mergeable");
    }
}
