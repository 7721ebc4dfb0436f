//! cloud-hypervisor's own sandbox. With `--landlock`, its threads can open only what its options and
//! `--landlock-rules` name. This module adds rules for what it opens without a rule of its own, as of v54.

use super::super::launch_builder::LaunchBuilder;
use super::arguments::{Item, pairs};
use super::config::LandlockRule;
use crate::facts::{Landlock, Version};
use crate::keyval::{Dialect, Options};
use crate::launch::suspended_directory;
use crate::path::HostPath;
use crate::spec::Hypervisor;

/// The first version that has the option.
const SINCE: Version = Version(41, 0, 0);

/// Returns whether it restricts itself, and adds a warning if not.
pub(super) fn is_used(builder: &mut LaunchBuilder<'_>) -> bool {
    let why_not = match &builder.facts.landlock {
        Landlock::Unusable(why) => why.clone(),
        Landlock::Usable if !builder.facts.at_least(Hypervisor::CloudHypervisor, SINCE) => {
            format!("only version {SINCE} or later has it")
        }
        Landlock::Usable if !builder.spec.credential_files.is_empty() && builder.facts.memory_directory.is_none() => {
            "needs a tmpfs at /dev/shm for the initrd with the credentials".to_owned()
        }
        Landlock::Usable => return true,
    };
    builder.warn("hypervisor", &format!("cloud-hypervisor runs without landlock: {why_not}"));
    false
}

/// Returns the rules, and the arguments that add them. `items` are all other arguments.
pub(super) fn add(builder: &mut LaunchBuilder<'_>, items: &[Item]) -> (Vec<LandlockRule>, Vec<String>) {
    let mut rules: Vec<LandlockRule> = Vec::new();
    for rule in items.iter().flat_map(opened_without_rule) {
        if !rules.contains(&rule) {
            rules.push(rule);
        }
    }
    // The machine's memory is saved there when it is suspended. A rule for a missing directory is refused.
    let suspended = suspended_directory(&builder.spec.name);
    rules.push(LandlockRule { path: suspended.as_str().to_owned(), access: "rw" });
    builder.needs.directories.push(suspended);
    let mut arguments = Vec::new();
    if items.iter().all(|item| item.option != "--landlock") {
        arguments.push("--landlock".to_owned());
    }
    for rule in &rules {
        let options = Options::new(Dialect::CloudHypervisor).pair("path", &rule.path).pair("access", rule.access);
        arguments.extend(["--landlock-rules".to_owned(), builder.written("hypervisor", options.finish())]);
    }
    (rules, arguments)
}

fn opened_without_rule(item: &Item) -> Vec<LandlockRule> {
    let value = |key: &str| {
        let pairs = item.values.iter().flat_map(|value| pairs(value));
        let value = pairs.filter(|(name, _)| name == key).find_map(|(_, value)| value);
        value.map(|value| value.trim_matches('"').to_owned()).filter(|value| !value.is_empty())
    };
    let rule = |path: String, access| LandlockRule { path, access };
    match item.option.as_str() {
        // It has a rule for the directory that the path names, and a name alone names none.
        "--vsock" if value("socket").is_some_and(|socket| !socket.contains('/')) => vec![rule(".".to_owned(), "w")],
        // It reads tun_flags of the tap. It refuses rules for missing paths, and a tap in another network namespace
        // than that of /sys is not found there.
        "--net" if value("tap").is_some() => vec![rule("/sys/devices/virtual/net".to_owned(), "r")],
        // Its rule for /dev/vfio/GROUP has the device's address in the place of the group.
        "--device" => {
            let device = value("path").map(|path| rule(path, "r"));
            device.into_iter().chain([rule("/dev/vfio".to_owned(), "rw")]).collect()
        }
        "--platform" if value("iommufd").as_deref() == Some("on") => vec![rule("/dev/iommu".to_owned(), "rw")],
        _ => Vec::new(),
    }
}

/// The directory of the initrd with the credentials: a rule for a memfd is refused with EBADFD.
pub(super) fn keep_initrd_within_rules(builder: &mut LaunchBuilder<'_>) {
    let directory: Option<HostPath> = builder.facts.memory_directory.clone();
    if let Some(initrd) = &mut builder.needs.initrd {
        initrd.memory_directory = directory;
    }
}
