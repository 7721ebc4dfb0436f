use super::*;
use crate::launch::{MacvtapNeed, TapNeed};
use crate::spec::MacvtapMode;
use nix::sched::{CloneFlags, unshare};
use std::process::Command;

/// Moves this test into a new network namespace; returns false without the permission for that. Under nextest the test
/// has its own process, otherwise its own thread.
fn in_new_namespace() -> bool {
    match unshare(CloneFlags::CLONE_NEWNET) {
        Ok(()) => true,
        Err(errno) => {
            testing::missing(&format!("no network namespace: {errno}"));
            false
        }
    }
}

fn tap() -> TapNeed {
    TapNeed { name: "web0".to_owned(), owner: None, multi_queue: false, vnet_hdr: true, queue_pairs: 1 }
}

fn needs(taps: Vec<TapNeed>) -> Needs {
    Needs { taps, ..Needs::default() }
}

#[test]
fn a_tap_is_created_with_its_flags_and_removed() {
    if !in_new_namespace() {
        return;
    }
    for multi_queue in [false, true] {
        let tap = TapNeed { multi_queue, owner: Some("nobody".to_owned()), ..tap() };
        let nobody = owner_id(Some("nobody")).unwrap();
        let created = make_ready(&needs(vec![tap.clone()])).unwrap();
        assert_eq!(created.interfaces()[0].name, "web0");
        std::mem::forget(created);
        let link = netlink::find("web0").unwrap().unwrap();
        assert!(link.is_up);
        let wanted =
            netlink::Tun { is_tap: true, owner: Some(nobody.as_raw()), multi_queue, vnet_hdr: true, persistent: true };
        assert_eq!(link.tun, Some(wanted));
        assert_eq!(make_ready(&needs(vec![tap.clone()])).unwrap().interfaces(), []);
        assert!(inspect(&needs(vec![tap.clone()])).is_empty());
        tap::remove(&tap).unwrap();
        assert_eq!(netlink::find("web0").unwrap(), None);
        tap::remove(&tap).unwrap();
    }
}

#[test]
fn a_tap_with_the_wrong_number_of_queues_is_refused() {
    if !in_new_namespace() {
        return;
    }
    std::mem::forget(make_ready(&needs(vec![TapNeed { multi_queue: true, ..tap() }])).unwrap());
    let error = make_ready(&needs(vec![tap()])).unwrap_err().to_string();
    assert!(error.contains("was created with multi_queue"), "{error}");
    assert!(error.contains("ip link delete web0 && sudo ip tuntap add web0 mode tap user root vnet_hdr"), "{error}");
}

#[test]
fn a_tap_of_another_user_is_refused() {
    if !in_new_namespace() {
        return;
    }
    std::mem::forget(make_ready(&needs(vec![TapNeed { owner: Some("nobody".to_owned()), ..tap() }])).unwrap());
    let other = tap::inspect(&tap(), Uid::from_raw(12345), Rights::Configure).unwrap_err().to_string();
    assert!(other.contains("belongs to nobody, but 12345 must open it"), "{other}");
    tap::inspect(&tap(), Uid::from_raw(0), Rights::Use).unwrap();
}

#[test]
fn interfaces_created_for_a_failed_start_are_removed() {
    if !in_new_namespace() {
        return;
    }
    let mut needs = needs(vec![tap()]);
    needs.bridges.push(BridgeNeed { bridge: "br9".to_owned(), helper: None, tap: "vm9".to_owned() });
    let error = make_ready(&needs).unwrap_err().to_string();
    assert!(error.contains("ip link add br9 type bridge"), "{error}");
    assert_eq!(netlink::find("web0").unwrap(), None);
}

#[test]
fn an_interface_of_another_kind_is_refused_and_not_removed() {
    if !in_new_namespace() {
        return;
    }
    let error = tap::make_ready(&TapNeed { name: "lo".to_owned(), ..tap() }, geteuid()).unwrap_err().to_string();
    assert!(error.contains("lo is a device, but the machine needs a tap"), "{error}");
    assert!(tap::remove(&TapNeed { name: "lo".to_owned(), ..tap() }).is_err());
    assert!(netlink::find("lo").unwrap().is_some());
}

#[test]
fn a_missing_interface_is_a_problem_only_for_a_user_who_may_not_create_it() {
    if !in_new_namespace() {
        return;
    }
    let multi = TapNeed { multi_queue: true, vnet_hdr: false, queue_pairs: 2, ..tap() };
    let problem = tap::inspect(&multi, geteuid(), Rights::Use).unwrap_err().to_string();
    assert_eq!(
        problem,
        "network interface web0 does not exist, and only root can create it; \
         run: sudo ip tuntap add web0 mode tap user root multi_queue && sudo ip link set web0 up"
    );
    let macvtap = MacvtapNeed {
        name: "web1".to_owned(),
        link: "lower0".to_owned(),
        mode: MacvtapMode::Bridge,
        mac: "02:00:00:00:00:07".to_owned(),
        owner: None,
        descriptors: vec![100],
    };
    // Root may, but the macvtap needs a lower interface.
    let needs = Needs { taps: vec![multi.clone()], macvtaps: vec![macvtap], ..Needs::default() };
    let problems: Vec<String> = inspect(&needs).iter().map(ToString::to_string).collect();
    assert_eq!(problems, ["macvtap web1 needs the interface lower0, which does not exist on this host"]);
    std::mem::forget(make_ready(&Needs { taps: vec![multi.clone()], ..Needs::default() }).unwrap());
    assert!(Command::new("ip").args(["link", "set", "web0", "down"]).status().unwrap().success());
    let problem = tap::inspect(&multi, geteuid(), Rights::Use).unwrap_err().to_string();
    assert_eq!(problem, "network interface web0 is down; run: sudo ip link set web0 up");
    tap::inspect(&multi, geteuid(), Rights::Configure).unwrap();
}

#[test]
fn a_macvtap_is_created_opened_and_removed() {
    if !in_new_namespace() {
        return;
    }
    let parent = Command::new("ip").args(["link", "add", "lower0", "type", "bridge"]).status();
    if !parent.is_ok_and(|status| status.success()) {
        testing::missing("no bridge can be made");
        return;
    }
    let macvtap = MacvtapNeed {
        name: "web1".to_owned(),
        link: "lower0".to_owned(),
        mode: MacvtapMode::Bridge,
        mac: "02:00:00:00:00:07".to_owned(),
        owner: None,
        descriptors: vec![100, 101],
    };
    let state = macvtap::make_ready(&macvtap, geteuid()).unwrap();
    assert_eq!(state, InterfaceState::Created);
    let link = netlink::find("web1").unwrap().unwrap();
    assert_eq!((link.mac, link.macvlan_mode, link.is_up), ([2, 0, 0, 0, 0, 7], Some(4), true));
    assert_eq!(macvtap::open(&macvtap).unwrap().len(), 2);
    macvtap::remove(&macvtap).unwrap();
    assert_eq!(netlink::find("web1").unwrap(), None);
    let error = macvtap::make_ready(&MacvtapNeed { link: "none0".to_owned(), ..macvtap }, geteuid()).unwrap_err();
    assert!(error.to_string().contains("needs the interface none0, which does not exist"), "{error}");
}

#[test]
fn a_later_interface_of_the_same_name_is_not_removed() {
    if !in_new_namespace() {
        return;
    }
    let created = make_ready(&needs(vec![tap()])).unwrap();
    let former = created.interfaces().to_vec();
    drop(created);
    assert_eq!(netlink::find("web0").unwrap(), None);
    let again = make_ready(&needs(vec![tap()])).unwrap();
    assert_ne!(again.interfaces(), former);
    remove_made(&former);
    assert!(netlink::find("web0").unwrap().is_some());
    remove_made(again.interfaces());
    assert_eq!(netlink::find("web0").unwrap(), None);
}
