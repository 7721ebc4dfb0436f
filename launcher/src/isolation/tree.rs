//! The content of a machine's root directory: the store, its state directory, its devices, and the files that its spec
//! names.

use super::{IsolationError, devices};
use crate::launch::{Access, Launch, Needs, VolumeNeed, seal_of};
use crate::path::HostPath;
use crate::spec::DeviceBus;
use std::path::{Path, PathBuf};

/// Device nodes that every program may expect: name, major and minor number (Linux,
/// Documentation/admin-guide/devices.txt).
const COMMON_DEVICES: [(&str, u64, u64); 6] =
    [("null", 1, 3), ("zero", 1, 5), ("full", 1, 7), ("random", 1, 8), ("urandom", 1, 9), ("tty", 5, 0)];

/// The devices that the unit template allows for every machine. None of them gives access to what belongs to other
/// machines or users. A runner that does not declare what it needs gets them all.
pub(super) const TEMPLATE_DEVICES: [&str; 4] = ["/dev/kvm", "/dev/net/tun", "/dev/vhost-net", "/dev/vhost-vsock"];

/// Where libglvnd and Mesa of Nixpkgs look for drivers.
const GRAPHICS_DRIVERS: &str = "/run/opengl-driver";

/// An entry of the root directory. `to` is an absolute path in it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Entry {
    /// An empty directory, owned by root.
    Directory {
        /// The path in the machine's root directory.
        to: PathBuf,
        /// The permission bits of the directory.
        mode: u32,
    },
    /// A file system in memory (tmpfs).
    Memory {
        /// The mount point.
        to: PathBuf,
        /// The mount options: mount(8).
        options: &'static str,
        /// Whether device nodes on it can be opened.
        devices: bool,
    },
    /// A new instance of devpts.
    Terminals,
    /// A new instance of hugetlbfs, in which only the machine's user can create files.
    HugePages(PathBuf),
    /// A file or directory of the host, at the same path.
    Host(PathOnHost),
    /// A file of the host, at another path.
    Renamed {
        /// The file on the host.
        from: PathBuf,
        /// The path in the machine's root directory.
        to: PathBuf,
        /// Whether the machine can write to it.
        writable: bool,
    },
    /// A device node owned by the machine's user, with the number of the host's node at that path.
    Device(PathBuf),
    /// A device node that all users can open.
    CommonDevice {
        /// The path in the machine's root directory.
        to: PathBuf,
        /// Its major and minor number.
        number: (u64, u64),
    },
    /// A text file.
    Text {
        /// The path in the machine's root directory.
        to: PathBuf,
        /// The whole text of the file.
        text: String,
    },
    /// A copy that only the machine's user can read, because the host's file may be readable only by root.
    Secret(PathBuf),
    /// A symbolic link.
    Link {
        /// The path in the machine's root directory.
        to: PathBuf,
        /// What the symbolic link contains.
        target: PathBuf,
    },
}

/// A file or directory of the host, at the same path.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PathOnHost {
    /// The path on the host, which is also the path in the machine's root directory.
    pub path: PathBuf,
    /// Whether the machine can write to it.
    pub writable: bool,
    /// Whether it may be missing.
    pub optional: bool,
    /// The option of the spec that requires it.
    pub option: String,
}

/// The root directory of a machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tree {
    /// The user id of the machine.
    pub user_id: u32,
    /// The entries; a parent comes before its children.
    pub entries: Vec<Entry>,
    /// Volumes outside the state directory, which must exist before the root directory is built.
    pub volumes: Vec<VolumeNeed>,
}

/// The inputs of a tree.
#[derive(Debug)]
pub struct TreeInputs<'host> {
    /// The machine's name.
    pub name: &'host str,
    /// Its state directory.
    pub state: &'host Path,
    /// What the machine starts; `None` for a runner of microvm.nix, which does not declare it.
    pub launch: Option<&'host Launch>,
    /// The user id of the machine.
    pub user_id: u32,
    /// The id of the host's group `kvm`.
    pub kvm_group: u32,
    /// The runtime directory that records the machine.
    pub runtime: &'host Path,
    /// Further files and directories of the host.
    pub other_paths: Vec<PathOnHost>,
    /// Whether it has an interface of type `user`, for which the host resolves names.
    pub resolves_names: bool,
    /// The image of the store disk, if this host builds it.
    pub store_disk: Option<PathBuf>,
    /// Where sysfs is mounted.
    pub sysfs: &'host Path,
}

impl Tree {
    /// Plans the root directory of a machine.
    ///
    /// # Errors
    /// Returns [`IsolationError::Path`] if a socket is outside the state directory, where the machine could not create
    /// it.
    pub fn plan(inputs: &TreeInputs<'_>) -> Result<Self, IsolationError> {
        let state = inputs.state;
        let mut tree = Self { user_id: inputs.user_id, entries: skeleton(inputs), volumes: Vec::new() };
        // These come first, because paths of the spec may be below them.
        tree.entries.extend(inputs.other_paths.iter().cloned().map(Entry::Host));
        tree.bind(Path::new("/nix/store"), "the store", Write::No, Missing::Refused);
        for program in ["/bin/sh", "/usr/bin/env"].map(Path::new) {
            if !inputs.other_paths.iter().any(|other_paths| program.starts_with(&other_paths.path)) {
                tree.bind(program, "scripts", Write::No, Missing::Allowed);
            }
        }
        if inputs.resolves_names {
            tree.bind(Path::new("/etc/resolv.conf"), "interfaces", Write::No, Missing::Allowed);
        }
        tree.bind(state, "the state directory", Write::Yes, Missing::Refused);
        tree.bind(&inputs.runtime.join(inputs.name), "the runtime directory", Write::Yes, Missing::Refused);
        tree.bind(&inputs.runtime.join("host-facts.json"), "host facts", Write::No, Missing::Allowed);
        let Some(launch) = inputs.launch else {
            tree.entries.extend(TEMPLATE_DEVICES.map(PathBuf::from).map(Entry::Device));
            return Ok(tree);
        };
        tree.add_devices(launch, inputs.sysfs);
        tree.add_files(&launch.needs, state);
        tree.add_volumes(&launch.needs, state);
        if let (Some(image), Some(from)) =
            (launch.needs.store_disk.as_ref().map(|need| &need.image), &inputs.store_disk)
        {
            tree.entries.push(Entry::Renamed { from: from.clone(), to: absolute(image, state), writable: false });
            if launch.needs.sealed_image.is_some() {
                let from = seal_of(&HostPath::new(from.to_string_lossy())).as_path().to_owned();
                let to = absolute(&seal_of(image), state);
                tree.entries.push(Entry::Renamed { from, to, writable: false });
            }
        }
        tree.check_sockets(&launch.needs, state)?;
        Ok(tree)
    }

    /// Adds a file or directory of the host, unless it is in a directory that already contains it with the same access.
    /// In such a directory, it may be a symbolic link of the machine's user, which root must not mount over.
    fn bind(&mut self, path: &Path, option: &str, write: Write, missing: Missing) {
        let contains = |entry: &Entry| match entry {
            Entry::Host(bound) => path.starts_with(&bound.path) && (bound.writable || write == Write::No),
            _ => false,
        };
        if self.entries.iter().any(contains) {
            return;
        }
        self.entries.push(Entry::Host(PathOnHost {
            path: path.to_owned(),
            writable: write == Write::Yes,
            optional: missing == Missing::Allowed,
            option: option.to_owned(),
        }));
    }

    fn add_devices(&mut self, launch: &Launch, sysfs: &Path) {
        let needs = &launch.needs;
        let mut nodes: Vec<PathBuf> = needs.device_nodes.iter().map(|node| node.path.as_path().to_owned()).collect();
        nodes.push("/dev/kvm".into());
        if !needs.taps.is_empty() || !needs.bridges.is_empty() {
            nodes.push("/dev/net/tun".into());
        }
        if needs.devices.iter().any(|device| device.bus == DeviceBus::Usb) {
            self.bind(Path::new("/dev/bus/usb"), "devices", Write::Yes, Missing::Refused);
        }
        if let Some(directory) = &needs.hugetlbfs {
            self.entries.push(Entry::HugePages(directory.as_path().to_owned()));
        }
        nodes.extend(devices::of_macvtaps(needs, sysfs).chain(devices::vfio_group_nodes(needs, sysfs)));
        nodes.extend(devices::iommufd_nodes(launch, sysfs));
        if nodes.iter().any(|node| node.starts_with("/dev/dri")) {
            self.add_graphics_drivers();
        }
        nodes.sort();
        nodes.dedup();
        self.entries.extend(nodes.into_iter().map(Entry::Device));
    }

    /// Adds the link with which NixOS names the drivers of its graphics cards. They are in the store.
    fn add_graphics_drivers(&mut self) {
        let link = Path::new(GRAPHICS_DRIVERS);
        if let Ok(target) = std::fs::read_link(link)
            && target.starts_with("/nix/store")
        {
            self.entries.push(Entry::Link { to: link.to_owned(), target });
        }
    }

    /// Adds the files and directories of the spec, except shares that a virtiofs daemon serves: only the daemon reads
    /// those.
    fn add_files(&mut self, needs: &Needs, state: &Path) {
        let served: Vec<String> = needs.processes.iter().flat_map(|process| process.arguments.clone()).collect();
        for presence in &needs.present {
            let path = presence.path.as_path();
            let is_there = !presence.path.is_absolute() || path.starts_with("/nix/store") || path.starts_with(state);
            let is_there = is_there || needs.hugetlbfs.as_ref() == Some(&presence.path);
            if is_there || served.contains(&format!("--shared-dir={}", presence.path)) {
                continue;
            }
            if presence.option.starts_with("credentialFiles") {
                self.entries.push(Entry::Secret(path.to_owned()));
                continue;
            }
            let write = match presence.access {
                Access::ReadWrite | Access::WriteDirectory => Write::Yes,
                Access::Read | Access::Execute | Access::ReadDirectory => Write::No,
            };
            self.bind(path, &presence.option, write, Missing::Allowed);
        }
        for credential in needs.initrd.iter().flat_map(|initrd| initrd.credentials.values()) {
            let known = Entry::Secret(credential.as_path().to_owned());
            if credential.is_absolute() && !credential.as_path().starts_with(state) && !self.entries.contains(&known) {
                self.entries.push(known);
            }
        }
    }

    /// Adds the volumes outside the state directory. The machine itself creates the others.
    fn add_volumes(&mut self, needs: &Needs, state: &Path) {
        let is_outside =
            |volume: &&VolumeNeed| volume.image.is_absolute() && !volume.image.as_path().starts_with(state);
        for volume in needs.volumes.iter().filter(is_outside) {
            let path = volume.image.as_path();
            self.volumes.push(volume.clone());
            if path.starts_with("/dev") {
                self.entries.push(Entry::Device(path.to_owned()));
                continue;
            }
            let write = if volume.access == Access::ReadWrite { Write::Yes } else { Write::No };
            self.bind(path, "volumes", write, Missing::Refused);
        }
    }

    /// Adds sockets that units of root create. Refuses sockets that the machine would have to create outside its state
    /// directory.
    fn check_sockets(&mut self, needs: &Needs, state: &Path) -> Result<(), IsolationError> {
        let outside = |socket: &&HostPath| socket.is_absolute() && !socket.as_path().starts_with(state);
        for process in needs.processes.iter().filter(|process| outside(&&process.socket)) {
            self.bind(process.socket.as_path(), &process.name, Write::Yes, Missing::Allowed);
        }
        match needs.sockets_to_clear().find(outside) {
            None => Ok(()),
            Some(socket) => Err(IsolationError::Path {
                option: "socket".to_owned(),
                path: socket.as_path().to_owned(),
                reason: "is outside the machine's state directory, where its user cannot create it; use a relative \
                         path"
                    .to_owned(),
            }),
        }
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Write {
    Yes,
    No,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Missing {
    Allowed,
    Refused,
}

fn absolute(path: &HostPath, state: &Path) -> PathBuf {
    state.join(path.as_path())
}

/// Returns the entries that every root directory has.
fn skeleton(inputs: &TreeInputs<'_>) -> Vec<Entry> {
    let directory = |to: &str, mode| Entry::Directory { to: to.into(), mode };
    let (user, kvm, home) = (inputs.user_id, inputs.kvm_group, inputs.state.display());
    let mut entries: Vec<Entry> = ["/proc", "/sys", "/dev", "/run", "/etc", "/nix/store", "/usr/bin", "/bin"]
        .map(|to| directory(to, 0o755))
        .into_iter()
        .chain(["/tmp", "/var/tmp"].map(|to| directory(to, 0o1777)))
        .chain([directory("/var/empty", 0o555)])
        .collect();
    entries.push(Entry::Memory { to: "/run".into(), options: "mode=0755,size=1m", devices: false });
    entries.push(Entry::Memory { to: "/dev".into(), options: "mode=0755,size=1m", devices: true });
    entries.push(Entry::Memory { to: "/dev/shm".into(), options: "mode=1777,size=50%", devices: false });
    entries.push(Entry::Terminals);
    entries.extend(
        COMMON_DEVICES.map(|(name, major, minor)| Entry::CommonDevice {
            to: Path::new("/dev").join(name),
            number: (major, minor),
        }),
    );
    for (name, target) in [
        ("ptmx", "pts/ptmx"),
        ("fd", "/proc/self/fd"),
        ("stdin", "/proc/self/fd/0"),
        ("stdout", "/proc/self/fd/1"),
        ("stderr", "/proc/self/fd/2"),
    ] {
        entries.push(Entry::Link { to: Path::new("/dev").join(name), target: target.into() });
    }
    entries.push(Entry::Host(PathOnHost {
        path: "/sys".into(),
        writable: false,
        optional: false,
        option: "sysfs".to_owned(),
    }));
    // systemd mounts its notification socket over this file.
    entries.push(Entry::Text { to: "/run/systemd/notify".into(), text: String::new() });
    let passwd = format!("root:x:0:0:::\nmicrovm:x:{user}:{user}::{home}:\n");
    entries.push(Entry::Text { to: "/etc/passwd".into(), text: passwd });
    let group = format!("root:x:0:\nmicrovm:x:{user}:\nkvm:x:{kvm}:microvm\n");
    entries.push(Entry::Text { to: "/etc/group".into(), text: group });
    entries.push(Entry::Text { to: "/etc/nsswitch.conf".into(), text: "hosts: files dns\n".to_owned() });
    entries
}
