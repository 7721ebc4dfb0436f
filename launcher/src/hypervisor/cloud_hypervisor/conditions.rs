//! What Cloud Hypervisor refuses about the merged options, although each is valid without the others: `validate` in
//! vmm/src/config.rs.

use super::super::launch_builder::LaunchBuilder;
use super::arguments::{Item, OPTION, Pairs, bytes, is_on, number, pairs, text, text_of};
use crate::facts::Kvm;
use program::plural::counted;
use std::collections::{BTreeMap, BTreeSet};

/// The options for devices, each of which can have an id and a PCI segment.
const DEVICES: [&str; 13] = [
    "--balloon",
    "--console",
    "--device",
    "--disk",
    "--fs",
    "--generic-vhost-user",
    "--net",
    "--pmem",
    "--rng",
    "--rtc",
    "--user-device",
    "--vdpa",
    "--vsock",
];
/// The options for devices of other processes, which need shared memory.
const NEED_SHARED_MEMORY: [&str; 3] = ["--fs", "--generic-vhost-user", "--user-device"];
const MAX_PCI_SEGMENTS: u32 = 96;
/// Addresses that do not belong to a guest: vsock(7).
const SPECIAL_CIDS: [u32; 4] = [u32::MAX, 0, 1, 2];

/// Makes the memory shared if a device of the user needs that, as for the devices of the spec. Returns whether it has
/// changed something.
pub(super) fn share_memory(builder: &mut LaunchBuilder<'_>, items: &mut [Item]) -> bool {
    let is_vhost_user = |value: &String| is_on(&pairs(value), "vhost_user");
    let needs = items.iter().find(|item| {
        NEED_SHARED_MEMORY.contains(&item.option.as_str())
            || (["--net", "--disk"].contains(&item.option.as_str()) && item.values.iter().any(is_vhost_user))
    });
    let Some(option) = needs.map(|item| item.option.clone()) else { return false };
    let Some(memory) = items.iter_mut().find(|item| item.option == "--memory") else { return false };
    let mut keys = memory.pairs();
    if is_on(&keys, "shared") || is_on(&keys, "hugepages") {
        return false;
    }
    if keys.iter().any(|(key, _)| key == "shared") {
        builder.refuse(OPTION, format!("needs shared memory for {option}; leave `shared=off` of --memory out"));
        return false;
    }
    keys.retain(|(key, _)| key != "mergeable");
    keys.push(("shared".to_owned(), Some("on".to_owned())));
    memory.values = vec![text_of(keys)];
    true
}

/// Refuses combinations with which Cloud Hypervisor does not start.
pub(super) fn check(builder: &mut LaunchBuilder<'_>, items: &[Item]) {
    if builder.spec.sections.cloud_hypervisor.extra_args.is_empty() {
        return;
    }
    let value = |option: &str| items.iter().find(|item| item.option == option).map(Item::pairs).unwrap_or_default();
    check_cpus(builder, &value("--cpus"));
    check_memory(builder, &value("--memory"), &value("--balloon"));
    check_segments(builder, items, &value("--platform"));
    check_devices(builder, items);
    let cid = number(&value("--vsock"), "cid");
    if let Some(cid) = cid.filter(|cid| SPECIAL_CIDS.iter().any(|special| u64::from(*special) == *cid)) {
        builder.refuse(OPTION, format!("does not accept {cid} as the cid of --vsock, because it is not a guest's"));
    }
    for option in ["--serial", "--console"] {
        if value(option).iter().any(|(key, value)| key == "file" && value.as_deref().unwrap_or_default().is_empty()) {
            builder.refuse(OPTION, format!("needs a path in {option}: file=PATH"));
        }
    }
}

fn check_cpus(builder: &mut LaunchBuilder<'_>, cpus: &Pairs) {
    let boot = u64::from(builder.spec.vcpu);
    let most = number(cpus, "max").unwrap_or(boot);
    if most < boot {
        builder.refuse(
            OPTION,
            format!("starts with the {} of vcpu, so max={most} of --cpus is too few", counted(boot, "CPU")),
        );
    }
    if is_on(cpus, "kvm_hyperv") && builder.facts.kvm == Kvm::UsableSoftware {
        let reason = "cannot use kvm_hyperv=on of --cpus, because this host's KVM is emulated (kvm_pvm)";
        builder.refuse(OPTION, reason);
    }
    let Some(topology) = text(cpus, "topology") else { return };
    let parts: Vec<u64> = topology.split(':').filter_map(|part| part.parse().ok()).collect();
    let [threads, cores, dies, packages] = parts.as_slice() else {
        return builder.refuse(OPTION, format!("needs four numbers in topology={topology} of --cpus"));
    };
    let product =
        [threads, cores, dies, packages].into_iter().try_fold(1u64, |product, part| product.checked_mul(*part));
    if product != Some(most) {
        let reason = format!("needs a product of {most}, which is max of --cpus, in topology={topology}");
        builder.refuse(OPTION, reason);
    } else if *threads > 2 {
        builder.refuse(OPTION, format!("supports at most 2 threads per core, but topology={topology} of --cpus"));
    }
}

fn check_memory(builder: &mut LaunchBuilder<'_>, memory: &Pairs, balloon: &Pairs) {
    if let Some(size) = text(memory, "hugepage_size") {
        if !is_on(memory, "hugepages") {
            builder.refuse(OPTION, "accepts hugepage_size of --memory only with huge pages; set hugepageMem");
        } else if bytes(size).is_some_and(|bytes| !bytes.is_power_of_two()) {
            builder.refuse(OPTION, format!("needs a power of two as hugepage_size of --memory, but it is {size}"));
        }
    }
    let ram = builder.spec.memory.mem_mib << 20;
    if let Some(size) = text(balloon, "size").filter(|size| bytes(size).is_some_and(|bytes| bytes >= ram)) {
        builder.refuse(OPTION, format!("needs a balloon smaller than the memory, but --balloon has size={size}"));
    }
}

fn check_segments(builder: &mut LaunchBuilder<'_>, items: &[Item], platform: &Pairs) {
    let count = number(platform, "num_pci_segments").unwrap_or(1);
    if !(1..=u64::from(MAX_PCI_SEGMENTS)).contains(&count) {
        let reason =
            format!("supports 1 to {MAX_PCI_SEGMENTS} PCI segments, but num_pci_segments of --platform is {count}");
        return builder.refuse(OPTION, reason);
    }
    let with_iommu = text(platform, "iommu_segments").map(integers).unwrap_or_default();
    if let Some(segment) = with_iommu.iter().find(|segment| **segment >= count) {
        let reason = format!("has no PCI segment {segment}, which iommu_segments names; increase num_pci_segments");
        builder.refuse(OPTION, reason);
    }
    if with_iommu.contains(&0) {
        let reason = "has the launcher's devices on PCI segment 0, which are not behind an IOMMU; leave 0 out of \
                      iommu_segments of --platform";
        builder.refuse(OPTION, reason);
    }
    for (option, device) in devices(items) {
        let segment = number(&device, "pci_segment").unwrap_or(0);
        if segment >= count {
            let reason =
                format!("has no PCI segment {segment}, which {option} names; set num_pci_segments of --platform");
            builder.refuse(OPTION, reason);
        } else if segment > 0 && with_iommu.contains(&segment) && !is_on(&device, "iommu") {
            let reason = format!("needs iommu=on for the {option} on PCI segment {segment}, which is behind an IOMMU");
            builder.refuse(OPTION, reason);
        }
    }
}

/// Checks ids, the devices of the host, and the groups of rate limiters.
fn check_devices(builder: &mut LaunchBuilder<'_>, items: &[Item]) {
    let mut ids = BTreeSet::new();
    let mut paths: BTreeMap<String, u32> = BTreeMap::new();
    let groups = items.iter().filter(|item| item.option == "--rate-limit-group").flat_map(|item| &item.values);
    let groups: Vec<Pairs> = groups.map(|value| pairs(value)).collect();
    let group_ids = groups.iter().filter_map(|group| text(group, "id"));
    let device_ids = devices(items).into_iter().map(|(_, device)| device);
    for id in group_ids.map(str::to_owned).chain(device_ids.filter_map(|device| text(&device, "id").map(str::to_owned)))
    {
        if id.starts_with("__") {
            builder.refuse(OPTION, format!("does not accept ids that start with `__`, such as `{id}`"));
        } else if !ids.insert(id.clone()) {
            builder.refuse(OPTION, format!("already has the id `{id}`; choose another one"));
        }
    }
    for (option, device) in devices(items) {
        let group = text(&device, "rate_limit_group");
        if let Some(group) = group.filter(|group| groups.iter().all(|known| text(known, "id") != Some(group))) {
            builder.refuse(OPTION, format!("has no --rate-limit-group with the id `{group}`, which {option} names"));
        }
        if option == "--device"
            && let Some(path) = text(&device, "path")
        {
            let count = paths.entry(path.trim_end_matches('/').to_owned()).or_default();
            *count += 1;
            if *count == 2 {
                builder.refuse(OPTION, format!("accepts each device of the host once, but {path} is given twice"));
            }
        }
    }
}

/// Returns all devices with their options.
fn devices(items: &[Item]) -> Vec<(&str, Pairs)> {
    let items = items.iter().filter(|item| DEVICES.contains(&item.option.as_str()));
    items.flat_map(|item| item.values.iter().map(|value| (item.option.as_str(), pairs(value)))).collect()
}

/// Returns the numbers of a list such as `[0,2-4]`.
fn integers(list: &str) -> BTreeSet<u64> {
    // More than any valid list has, so that a long range does not take long.
    const MOST: u64 = 1024;
    let mut numbers = BTreeSet::new();
    for part in list.trim_matches(['[', ']']).split(',') {
        match part.split_once('-') {
            Some((first, last)) => {
                if let (Ok(first), Ok(last)) = (first.parse::<u64>(), last.parse::<u64>()) {
                    numbers.extend(first..=last.min(first.saturating_add(MOST)));
                }
            }
            None => numbers.extend(part.parse::<u64>().ok()),
        }
    }
    numbers
}
