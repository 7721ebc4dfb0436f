use super::*;
use crate::facts::HostFacts;
use crate::hypervisor::lower;
use crate::launch::Launch;
use crate::spec::{Hypervisor, MachineSpec};
use crate::validate::check;
use serde_json::{Value, json};
use std::fs;
use std::os::unix::fs::{PermissionsExt, chown, symlink};

const STATE: &str = "/var/lib/microvms/web";

/// Returns what the hypervisor starts; none if it does not support the machine.
fn launch_of(hypervisor: Hypervisor, fields: &Value) -> Option<Launch> {
    let mut document = json!({"version": 1, "name": "web", "hypervisor": hypervisor, "kernel": "/nix/store/x/bzImage"});
    document.as_object_mut()?.extend(fields.as_object()?.clone());
    let spec: MachineSpec = serde_json::from_value(document).unwrap();
    lower(&check(&spec).unwrap(), &HostFacts::assumed(STATE.into()), hypervisor).ok()
}

fn plan(launch: &Launch, sysfs: &Path, other_paths: Vec<PathOnHost>) -> Tree {
    Tree::plan(&TreeInputs {
        name: "web",
        state: Path::new(STATE),
        launch: Some(launch),
        user_id: 1_879_048_192,
        kvm_group: 104,
        runtime: Path::new("/run/microvm"),
        other_paths,
        resolves_names: false,
        store_disk: None,
        sysfs,
    })
    .unwrap()
}

/// Returns the devices in the root directory, other than those of every program.
fn devices_of(tree: &Tree) -> Vec<String> {
    let of_entry = |entry: &Entry| match entry {
        Entry::Device(path) => Some(path.display().to_string()),
        Entry::HugePages(path) => Some(format!("{} (hugetlbfs)", path.display())),
        Entry::Host(bound) if bound.path.starts_with("/dev") => Some(format!("{} (host's)", bound.path.display())),
        _ => None,
    };
    tree.entries.iter().filter_map(of_entry).collect()
}

/// A sysfs with an interface, and with a PCI device that has a group.
fn sysfs() -> tempfile::TempDir {
    let directory = tempfile::tempdir().unwrap();
    let at = |path: &str| directory.path().join(path);
    fs::create_dir_all(at("class/net/vm0")).unwrap();
    fs::write(at("class/net/vm0/ifindex"), "7\n").unwrap();
    fs::create_dir_all(at("bus/pci/devices/0000:01:00.0/vfio-dev/vfio3")).unwrap();
    symlink("../../../../kernel/iommu_groups/12", at("bus/pci/devices/0000:01:00.0/iommu_group")).unwrap();
    directory
}

#[test]
fn the_root_directory_has_every_device_that_a_hypervisor_opens_and_no_other() {
    use Hypervisor::{CloudHypervisor, Crosvm, Firecracker, Kvmtool, Qemu};
    let sysfs = sysfs();
    let interface = |extra: Value| {
        let mut interface = json!({"id": "vm0", "mac": "02:00:00:00:00:01"});
        interface.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
        json!({"interfaces": [interface]})
    };
    let macvtap = interface(json!({"type": "macvtap", "macvtap": {"link": "eth0", "mode": "bridge"}}));
    let pci = json!({"devices": [{"bus": "pci", "path": "0000:01:00.0"}]});
    let all: &[Hypervisor] = &Hypervisor::ALL;
    let with_vhost: &[Hypervisor] = &[Qemu, Crosvm, Kvmtool];
    let cases: [(Value, &[Hypervisor], &[&str]); 12] = [
        (json!({}), all, &[]),
        (interface(json!({"type": "tap"})), all, &["/dev/net/tun"]),
        (interface(json!({"type": "tap", "tap": {"vhost": true}})), with_vhost, &["/dev/net/tun", "/dev/vhost-net"]),
        (interface(json!({"type": "bridge", "bridge": "br0"})), &[Qemu], &["/dev/net/tun"]),
        (macvtap, &[Qemu, CloudHypervisor, Crosvm, Kvmtool], &["/dev/tap7"]),
        (json!({"vsock": {"cid": 5}}), with_vhost, &["/dev/vhost-vsock"]),
        // With a Unix socket in the state directory.
        (json!({"vsock": {"cid": 5}}), &[CloudHypervisor, Firecracker], &[]),
        (pci.clone(), &[Qemu, CloudHypervisor, Crosvm, Kvmtool], &["/dev/vfio/12", "/dev/vfio/vfio"]),
        (json!({"devices": [{"bus": "usb", "path": "hostbus=1,hostaddr=2"}]}), &[Qemu], &["/dev/bus/usb (host's)"]),
        (json!({"volumes": [{"image": "/dev/mapper/web", "autoCreate": false}]}), all, &["/dev/mapper/web"]),
        (json!({"hugepageMem": true}), &[CloudHypervisor, Kvmtool], &["/dev/hugepages (hugetlbfs)"]),
        // Of memory without a file, or transparent.
        (json!({"hugepageMem": true}), &[Qemu, Firecracker, Crosvm], &[]),
    ];
    for (fields, hypervisors, expected) in cases {
        for hypervisor in hypervisors {
            let launch = launch_of(*hypervisor, &fields).unwrap_or_else(|| panic!("{hypervisor} refuses {fields}"));
            let mut found = devices_of(&plan(&launch, sysfs.path(), Vec::new()));
            found.sort();
            let mut expected: Vec<String> =
                expected.iter().chain(&["/dev/kvm"]).map(|&device| device.to_owned()).collect();
            expected.sort();
            assert_eq!(found, expected, "{hypervisor}: {fields}");
        }
    }
    let with_iommufd = json!({"extraArgs": ["--platform", "iommufd=on"]});
    let fields = json!({"devices": pci["devices"], "cloudHypervisor": with_iommufd});
    let found = devices_of(&plan(&launch_of(CloudHypervisor, &fields).unwrap(), sysfs.path(), Vec::new()));
    let own = ["/dev/iommu", "/dev/kvm", "/dev/vfio/12", "/dev/vfio/devices/vfio3", "/dev/vfio/vfio"];
    assert_eq!(found, own);
}

#[test]
fn a_machine_whose_screen_the_host_renders_gets_the_render_node() {
    let mut facts = HostFacts::assumed(STATE.into());
    facts.desktop.render_node = crate::facts::RenderNode::Usable("/dev/dri/renderD128".into());
    for (graphics, expected) in [
        (json!({"enable": true, "backend": "headless"}), ["/dev/dri/renderD128", "/dev/kvm"].as_slice()),
        (json!({"enable": true, "backend": "headless", "gl": false}), &["/dev/kvm"]),
    ] {
        let spec = json!({"version": 1, "name": "web", "kernel": "/nix/store/x/bzImage", "graphics": graphics});
        let spec: MachineSpec = serde_json::from_value(spec).unwrap();
        let launch = lower(&check(&spec).unwrap(), &facts, Hypervisor::Qemu).unwrap();
        assert_eq!(devices_of(&plan(&launch, Path::new("/nonexistent"), Vec::new())), expected, "{graphics}");
    }
}

#[test]
fn a_unit_may_open_the_devices_in_its_root_directory_and_no_others() {
    let device = |path: &str| Entry::Device(path.into());
    let host = |path: &str| {
        Entry::Host(PathOnHost { path: path.into(), writable: true, optional: false, option: String::new() })
    };
    let plain = vec![device("/dev/kvm"), device("/dev/net/tun"), device("/dev/vhost-net"), host("/nix/store")];
    let tree = |entries| Tree { user_id: 65534, entries, volumes: Vec::new() };
    assert_eq!(device_rules::devices_outside_template(&tree(plain.clone())), [""; 0], "the template allows these");
    let further = vec![
        // These stand for a render node, a VFIO group or a block device; the last one does not exist.
        device("/dev/zero"),
        device("/dev/full"),
        device("/dev/vfio/no-such-group"),
        host("/dev/bus/usb"),
        // A device and a file that the host's configuration names.
        host("/dev/null"),
        host("/etc/passwd"),
        Entry::Secret("/dev/random".into()),
    ];
    let rules = device_rules::devices_outside_template(&tree([plain, further].concat()));
    assert_eq!(rules, ["/dev/zero", "/dev/full", "char-usb_device", "/dev/null"]);
    let unit = include_str!("../../../nixos-modules/host/services.nix");
    for path in tree::TEMPLATE_DEVICES {
        assert!(unit.contains(&format!("\"{path} rw\"")), "the template does not allow {path}");
    }
}

/// Root must neither create, give away nor mount a path in the state directory, where the machine's user can put links.
#[test]
fn a_volume_below_the_state_directory_is_left_to_the_machine() {
    let image = format!("{STATE}/images/var.img");
    let fields = json!({"volumes": [{"image": image, "size": 8}, {"image": "/srv/web.img", "size": 8}]});
    let launch = launch_of(Hypervisor::Qemu, &fields).unwrap();
    let tree = plan(&launch, Path::new("/sys"), Vec::new());
    let is_bound = |path: &str| {
        tree.entries.iter().any(|entry| matches!(entry, Entry::Host(bound) if bound.path == Path::new(path)))
    };
    assert!(!is_bound(&image) && is_bound("/srv/web.img"));
    let created: Vec<&str> = tree.volumes.iter().map(|volume| volume.image.as_str()).collect();
    assert_eq!(created, ["/srv/web.img"]);
}

#[test]
fn a_path_that_a_directory_already_contains_is_not_mounted_over_it() {
    let path =
        |path: &str, writable| PathOnHost { path: path.into(), writable, optional: false, option: String::new() };
    let fields = json!({
        "volumes": [
            {"image": "/srv/images/a.img", "autoCreate": false},
            {"image": "/data/b.img", "autoCreate": false},
            {"image": "/data/c.img", "autoCreate": false, "readOnly": true},
        ],
    });
    let launch = launch_of(Hypervisor::Qemu, &fields).unwrap();
    let tree = plan(&launch, Path::new("/sys"), vec![path("/srv/images", true), path("/data", false)]);
    let bound = |entry: &Entry| match entry {
        Entry::Host(bound) if bound.path.extension().is_some_and(|extension| extension == "img") => {
            Some(bound.path.display().to_string())
        }
        _ => None,
    };
    let bound: Vec<String> = tree.entries.iter().filter_map(bound).collect();
    assert_eq!(bound, ["/data/b.img"], "it must be writable");
}

/// The directories of a host with a machine, whose user has put a link in the place of a directory.
struct Host(tempfile::TempDir);

impl Host {
    fn new() -> Option<Self> {
        if !nix::unistd::geteuid().is_root() {
            testing::missing("only root builds root directories");
            return None;
        }
        let directory = tempfile::tempdir().unwrap();
        let host = Self(directory);
        for name in ["state", "etc", "roots"] {
            fs::create_dir(host.path(name)).unwrap();
        }
        fs::write(host.path("etc/secret"), "secret").unwrap();
        fs::write(host.path("store.img"), "store").unwrap();
        chown(host.path("state"), Some(65534), Some(65534)).unwrap();
        Some(host)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn link(&self, target: &str, name: &str) {
        symlink(self.path(target), self.path(name)).unwrap();
        std::os::unix::fs::lchown(self.path(name), Some(65534), Some(65534)).unwrap();
    }

    /// Builds a root directory with the state directory and one more entry, and removes it again.
    fn build(&self, entry: Entry) -> Result<(), String> {
        let state =
            PathOnHost { path: self.path("state"), writable: true, optional: false, option: "state".to_owned() };
        let tree = Tree { user_id: 65534, entries: vec![Entry::Host(state), entry], volumes: Vec::new() };
        let root = self.path("roots/web");
        let made = make(&tree, &root).map_err(|error| error.to_string());
        remove(&root).unwrap();
        made
    }
}

#[test]
fn a_root_directory_is_not_built_through_a_link_of_the_machines_user() {
    let Some(host) = Host::new() else { return };
    host.link("etc", "state/images");
    let disk = |to: &str| Entry::Renamed { from: host.path("store.img"), to: host.path(to), writable: false };
    let error = match host.build(disk("state/images/store.img")) {
        Err(error) if error.contains("Operation not permitted") => return testing::skipped("root cannot mount here"),
        built => built.unwrap_err(),
    };
    assert!(error.contains("images"), "{error}");
    let secret = Entry::Secret(host.path("state/images/copy"));
    fs::write(host.path("etc/copy"), "secret").unwrap();
    host.build(secret).unwrap_err();
    let directory = |path| PathOnHost { path, writable: false, optional: false, option: "shares[0].source".to_owned() };
    host.build(Entry::Host(directory(host.path("state/images/new")))).unwrap_err();
    // A link to a file of root, in a directory that the machine's user can change, is not mounted.
    host.link("etc/secret", "state/link");
    let error = host.build(Entry::Host(directory(host.path("state/link")))).unwrap_err();
    assert!(error.contains("root does not follow a symbolic link of"), "{error}");
    let error = host.build(Entry::Secret(host.path("state/link"))).unwrap_err();
    assert!(error.contains("root does not follow a symbolic link of"), "{error}");
    let mut names: Vec<_> = fs::read_dir(host.path("etc")).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    names.sort();
    assert_eq!(names, ["copy", "secret"]);
    // A file, a pipe or a link in the place of the file itself is replaced.
    host.link("etc/secret", "state/store.img");
    host.build(disk("state/store.img")).unwrap();
    nix::unistd::mkfifo(&host.path("state/pipe.img"), nix::sys::stat::Mode::S_IRWXU).unwrap();
    host.build(disk("state/pipe.img")).unwrap();
    assert_eq!(fs::read_to_string(host.path("etc/secret")).unwrap(), "secret");
    assert_eq!(fs::metadata(host.path("etc/secret")).unwrap().permissions().mode() & 0o777, 0o644);
}
