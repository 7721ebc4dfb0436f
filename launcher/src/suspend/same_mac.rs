//! Guests with the same MAC addresses on one network. The guest of a clone keeps the addresses of the original until it
//! boots: they are in its memory, and no hypervisor can change them there.

use super::SuspendedState;
use crate::launch::Launch;
use crate::stamp::Stamp;
use crate::state::{MachineState, RuntimeDirectory};
use std::fs;
use std::path::Path;

/// The directory of the host's interfaces.
const INTERFACES: &str = "/sys/class/net";

/// A machine that starts.
#[derive(Clone, Copy, Debug)]
pub struct StartingGuest<'start> {
    /// Its launch. Its interfaces exist.
    pub launch: &'start Launch,
    /// The MAC addresses in its spec.
    pub macs: &'start [String],
}

/// A machine that was refused because another guest has its MAC address on the same network.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "{machine}: the guest of {other} has the same MAC address, {mac}, and may be on the same network, because one of \
     them is a clone that has not booted yet"
)]
pub struct SameMac {
    /// The machine that starts.
    pub machine: String,
    /// The machine that runs.
    pub other: String,
    /// The address.
    pub mac: String,
}

/// Refuses a machine if a running guest has one of its MAC addresses and one of the two is a clone.
///
/// # Errors
/// Returns [`SameMac`].
pub fn require_own_macs(starting: StartingGuest<'_>, runtime: &RuntimeDirectory) -> Result<(), SameMac> {
    let launch = starting.launch;
    let stamp = SuspendedState::of_launch(launch).stamp().ok().flatten();
    let borrowed = stamp.as_ref().and_then(|stamp| stamp.borrowed.as_ref());
    let macs = match &stamp {
        Some(stamp) if borrowed.is_some() => stamp.guest_macs(),
        _ => starting.macs.iter().map(|mac| mac.to_ascii_lowercase()).collect(),
    };
    if macs.is_empty() || borrowed.is_some_and(|borrowed| borrowed.same_mac_is_allowed) {
        return Ok(());
    }
    for name in runtime.machine_names().unwrap_or_default() {
        let Some((other, stamp)) = runtime.machine(&name).ok().as_ref().and_then(running) else { continue };
        let is_clone = match &stamp.borrowed {
            Some(borrowed) if borrowed.same_mac_is_allowed => continue,
            other => other.is_some() || borrowed.is_some(),
        };
        let same = stamp.guest_macs().into_iter().find(|mac| macs.contains(mac));
        if let Some(mac) = same
            && is_clone
            && name != launch.name
            && networks_meet(&networks(launch, Path::new(INTERFACES)), &networks(&other, Path::new(INTERFACES)))
        {
            return Err(SameMac { machine: launch.name.clone(), other: name, mac });
        }
    }
    Ok(())
}

/// Returns the launch and the stamp of a machine if it runs.
fn running(state: &MachineState) -> Option<(Launch, Stamp)> {
    state.running().ok()??;
    Some((state.last_launch().ok()??, state.recorded_stamp().ok()??))
}

/// A network to which a guest is connected.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Network {
    /// The one of a bridge or of a link of the host.
    Of(String),
    /// A tap that is in no bridge, or not yet: networkd adds it when it notices it.
    Unknown,
}

fn networks(launch: &Launch, interfaces: &Path) -> Vec<Network> {
    let of_tap = |name: &str| {
        let master = fs::read_link(interfaces.join(name).join("master")).ok();
        let master = master.and_then(|link| link.file_name()?.to_str().map(str::to_owned));
        master.map_or(Network::Unknown, Network::Of)
    };
    let needs = &launch.needs;
    let taps = needs.taps.iter().map(|tap| of_tap(&tap.name));
    let links = needs.macvtaps.iter().map(|macvtap| Network::Of(macvtap.link.clone()));
    let bridges = needs.bridges.iter().map(|bridge| Network::Of(bridge.bridge.clone()));
    taps.chain(links).chain(bridges).collect()
}

/// Whether two guests may reach each other.
fn networks_meet(one: &[Network], other: &[Network]) -> bool {
    let is_unknown = |networks: &[Network]| networks.contains(&Network::Unknown);
    let both_have_some = !one.is_empty() && !other.is_empty();
    both_have_some && (is_unknown(one) || is_unknown(other) || one.iter().any(|network| other.contains(network)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_guests_in_different_bridges_are_certainly_separate() {
        let of = |name: &str| Network::Of(name.to_owned());
        assert!(networks_meet(&[of("lan")], &[of("dmz"), of("lan")]));
        assert!(!networks_meet(&[of("lan")], &[of("dmz")]));
        assert!(networks_meet(&[Network::Unknown], &[of("dmz")]), "networkd may add the tap to this bridge");
        assert!(!networks_meet(&[], &[Network::Unknown]), "user networking has a network of its own");
    }

    #[test]
    fn the_bridge_of_a_tap_is_found_in_sysfs() {
        let interfaces = tempfile::tempdir().unwrap();
        for name in ["vm-a", "vm-b"] {
            fs::create_dir(interfaces.path().join(name)).unwrap();
        }
        std::os::unix::fs::symlink("../lan", interfaces.path().join("vm-a/master")).unwrap();
        let tap = |name: &str| crate::launch::TapNeed {
            name: name.to_owned(),
            owner: None,
            multi_queue: false,
            vnet_hdr: false,
            queue_pairs: 1,
        };
        let mut launch = crate::shutdown::tests::launch(interfaces.path());
        launch.needs.taps = vec![tap("vm-a"), tap("vm-b")];
        assert_eq!(networks(&launch, interfaces.path()), [Network::Of("lan".to_owned()), Network::Unknown]);
    }
}
