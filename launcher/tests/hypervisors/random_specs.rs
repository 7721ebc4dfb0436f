//! Random machines: every one that `microvm check --host` accepts must start on the real program, and its guest must see
//! what the spec describes.
//!
//! Few machines are tried unless `MICROVM_TEST_RANDOM_SPECS` sets their number. `MICROVM_TEST_RANDOM_SEED` sets the seed of the
//! first machine; the following ones count upwards. A failure prints the seed and the spec.

use crate::machine::{TestMachine, kvm_opens, missing, program_of, skipped, use_program};
use crate::probe::probe_guest;
use crate::specs::{boot_and_compare, message, write_initrd};
use launcher::spec::{Hypervisor, MachineSpec};
use nix::unistd::{User, chown};
use serde_json::{Map, Value, json};
use std::fs;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};
use testing::write_program;

/// The seed of the first machine by default.
const SEED: u64 = 1;
/// The number of machines to start by default. CI has only qemu, without KVM.
const COUNT: u64 = 4;
/// The number of machines to generate for each that is started, at most: the others are refused.
const TRIES: u64 = 40;
/// Characters that mean something in the option strings of some hypervisor, in a shell or in a path.
const NAMES: [&str; 14] = [
    "plain",
    "with space",
    "a,b",
    "a,,b",
    "a=b",
    "c:d",
    "quo\"te",
    "apo'strophe",
    "back\\slash",
    "[list]",
    "{json}",
    "$HOME",
    "ünïcode",
    "%s#;&",
];

#[test]
fn random_machines_that_check_accepts_start_under_qemu() {
    start_random_machines(Hypervisor::Qemu);
}

#[test]
fn random_machines_that_check_accepts_start_under_cloud_hypervisor() {
    start_random_machines(Hypervisor::CloudHypervisor);
}

#[test]
fn random_machines_that_check_accepts_start_under_firecracker() {
    start_random_machines(Hypervisor::Firecracker);
}

#[test]
fn random_machines_that_check_accepts_start_under_crosvm() {
    start_random_machines(Hypervisor::Crosvm);
}

#[test]
fn random_machines_that_check_accepts_start_under_kvmtool() {
    start_random_machines(Hypervisor::Kvmtool);
}

fn number_of_environment(variable: &str, default: u64) -> u64 {
    std::env::var(variable).map_or(default, |text| text.parse().unwrap_or_else(|_| panic!("{variable}: not a number")))
}

#[expect(clippy::print_stdout, reason = "the number of machines is part of the result")]
fn start_random_machines(hypervisor: Hypervisor) {
    let Some(program) = program_of(hypervisor) else {
        let why = format!("no {hypervisor}: it is not installed, or MICROVM_TEST_... does not name it");
        return if hypervisor == Hypervisor::Qemu { missing(&why) } else { skipped(&why) };
    };
    if !kvm_opens() && hypervisor != Hypervisor::Qemu {
        return skipped("/dev/kvm does not open");
    }
    let count = number_of_environment("MICROVM_TEST_RANDOM_SPECS", COUNT);
    let first = number_of_environment("MICROVM_TEST_RANDOM_SEED", SEED);
    let (mut started, mut problems) = (0, Vec::new());
    let mut seed = first;
    while started < count {
        assert!(seed < first + count * TRIES, "check accepts only {started} of {} machines", count * TRIES);
        let mut random = Random(fastrand::Rng::with_seed(seed));
        let document = random.machine(hypervisor);
        let mut spec: MachineSpec = serde_json::from_value(document.clone()).unwrap();
        let Some(machine) = TestMachine::new(&spec.name) else { return };
        use_program(&mut spec, hypervisor, &program);
        prepare(&mut spec, &machine, &mut random);
        let accelerator: &[&str] =
            if hypervisor == Hypervisor::Qemu && random.one_in(2) { &["--accel", "tcg"] } else { &[] };
        let checked = machine.output(&[&["check", "machine.json", "--host"], accelerator].concat());
        if checked.status.success() {
            started += 1;
            let outcome = catch_unwind(AssertUnwindSafe(|| boot_and_compare(&spec, &machine, accelerator)));
            let problem = outcome.err().map(|panic| message(&panic));
            let problem = problem.or_else(|| left_behind(&machine, &spec));
            problems.extend(problem.map(|text| format!("seed {seed} {accelerator:?}: {text}\n{document}\n")));
        } else if std::env::var_os("MICROVM_TEST_RANDOM_VERBOSE").is_some() {
            println!("seed {seed}: {}", String::from_utf8_lossy(&checked.stderr));
        }
        seed += 1;
    }
    println!("{hypervisor}: {started} of {} machines were accepted, {} failed", seed - first, problems.len());
    assert!(problems.is_empty(), "{} of {started} machines under {hypervisor}:\n{}", problems.len(), problems.concat());
}

/// Returns what a machine has left that only exists while it runs. Another process removes it when the hypervisor has
/// ended.
fn left_behind(machine: &TestMachine, spec: &MachineSpec) -> Option<String> {
    let end = Instant::now() + Duration::from_secs(60);
    loop {
        let interfaces = machine.namespace.run("ip", &["-brief", "link"]);
        let left = spec.interfaces.iter().find(|interface| interfaces.contains(interface.id.as_str()))?;
        if Instant::now() > end {
            return Some(format!("the interface {} is still there", left.id));
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// Creates the files that a spec names.
fn prepare(spec: &mut MachineSpec, machine: &TestMachine, random: &mut Random) {
    let guest = probe_guest();
    for (name, path) in [("bzImage", &guest.bzimage), ("vmlinux", &guest.elf)] {
        fs::copy(path, machine.path(name)).unwrap();
    }
    write_initrd(machine);
    fs::write(machine.path("secret"), "secret").unwrap();
    if spec.store_disk.is_some() {
        write_disk(&machine.path("store.img"), "the store", 4);
    }
    for (index, volume) in spec.volumes.iter().enumerate() {
        let path = machine.path(volume.image.as_str());
        if volume.auto_create && random.one_in(2) {
            continue;
        }
        if volume.auto_create {
            let size = volume.size_mib.unwrap();
            write_disk(&path, "", size);
            let made = Command::new(format!("mkfs.{}", volume.fs_type)).arg(&path).output().unwrap();
            assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
            continue;
        }
        let raw = machine.path("raw.img");
        write_disk(&raw, &format!("volume {index}"), 4);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        let format = match volume.image_type.as_str() {
            "raw" => {
                fs::rename(&raw, &path).unwrap();
                continue;
            }
            "vhd" => ["vpc", "-o", "subformat=fixed,force_size"].as_slice(),
            "vhdx" => &["vhdx"],
            _ if random.one_in(3) => &["qcow2", "-o", "compat=0.10"],
            _ => &["qcow2"],
        };
        let converted =
            Command::new("qemu-img").args(["convert", "-f", "raw", "-O"]).args(format).args([&raw, &path]).status();
        assert!(converted.unwrap().success());
    }
    for share in &spec.shares {
        fs::create_dir_all(machine.path(share.source.as_str())).unwrap();
    }
    let has_link = spec.interfaces.iter().any(|interface| interface.macvtap.is_some());
    if has_link {
        machine.namespace.run("ip", &["link", "add", "lower0", "type", "bridge"]);
    }
    if spec.extra_args_script.is_some() {
        write_program(&machine.path("script"), "#!/bin/sh\necho\n");
    }
    if let Some(user) = &spec.user {
        let user = User::from_name(user).unwrap().unwrap();
        give(machine.directory.path(), &user);
    }
    machine.write_spec(spec);
}

/// Gives a directory and all files in it to a user.
fn give(path: &Path, user: &User) {
    chown(path, Some(user.uid), Some(user.gid)).unwrap();
    if path.is_dir() {
        fs::read_dir(path).unwrap().for_each(|entry| give(&entry.unwrap().path(), user));
    }
}

fn write_disk(path: &Path, mark: &str, mib: u64) {
    crate::machine::write_disk(path, mark, mib << 11);
}

/// A generator of machine specs.
struct Random(fastrand::Rng);

impl Random {
    fn one_in(&mut self, count: u32) -> bool {
        self.0.u32(..count) == 0
    }

    /// A name, in most cases without special characters, because each hypervisor refuses some of them.
    fn name(&mut self) -> &'static str {
        if self.one_in(3) { self.pick(&NAMES) } else { NAMES[0] }
    }

    fn pick<T: Clone>(&mut self, values: &[T]) -> T {
        values[self.0.usize(..values.len())].clone()
    }

    /// Sets a field to one of the values, in one of `count` machines.
    fn sometimes(&mut self, fields: &mut Map<String, Value>, count: u32, field: &str, values: &[Value]) {
        if self.one_in(count) {
            fields.insert(field.to_owned(), self.pick(values));
        }
    }

    /// A list with none to `most` elements; short lists are more frequent.
    fn some(&mut self, most: usize) -> usize {
        let most = self.0.usize(..=most);
        self.0.usize(..=most)
    }

    fn text(&mut self, characters: &str, most: usize) -> String {
        let (length, characters) = (self.0.usize(1..=most), characters.as_bytes());
        (0..length).map(|_| char::from(self.pick(characters))).collect()
    }

    fn machine(&mut self, hypervisor: Hypervisor) -> Value {
        let name = format!("{}{}", self.pick(&["m", "_", "9", "M"]), self.text("abcXYZ019._-", 40));
        let document = json!({
            "version": 1, "name": name, "hypervisor": hypervisor, "kernel": "bzImage", "vmlinux": "vmlinux", "initrd": "initrd",
            "mem": self.pick(&[64, 65, 100, 127, 128, 256, 500, 512, 1023, 2047, 2048, 2049, 3072, 3073, 4096, 5001]),
        });
        let Value::Object(mut fields) = document else { unreachable!() };
        self.guest(&mut fields);
        self.memory(&mut fields);
        self.sometimes(
            &mut fields,
            3,
            "storeDisk",
            &[
                json!({"image": "store.img"}),
                json!({"image": "store.img", "serial": "the-store"}),
                json!({"image": "store.img", "direct": true}),
            ],
        );
        let volumes: Vec<Value> = (0..self.some(5)).map(|index| self.volume(hypervisor, index)).collect();
        let shares: Vec<Value> = (0..self.some(3)).map(|index| self.share(hypervisor, index)).collect();
        let interfaces: Vec<Value> = (0..self.some(3)).map(|index| self.interface(hypervisor, index)).collect();
        if interfaces.iter().any(|interface| interface["type"] == "user") && self.one_in(2) {
            fields.insert("forwardPorts".to_owned(), self.forwarded_ports());
        }
        fields.insert("volumes".to_owned(), volumes.into());
        fields.insert("shares".to_owned(), shares.into());
        fields.insert("interfaces".to_owned(), interfaces.into());
        if let Ok(daemon) = std::env::var("MICROVM_TEST_VIRTIOFSD") {
            let mut virtiofsd = json!({"program": daemon});
            if self.one_in(3) {
                virtiofsd["group"] = self.pick(&[json!("kvm"), json!("nogroup"), json!("root")]);
                virtiofsd["threadPoolSize"] = self.pick(&[json!(0), json!(1), json!(4)]);
                virtiofsd["inodeFileHandles"] = self.pick(&[json!("never"), json!("prefer"), json!("mandatory")]);
            }
            fields.insert("virtiofsd".to_owned(), virtiofsd);
        }
        self.files(&mut fields);
        let (section, settings) = self.section(hypervisor);
        fields.insert(section.to_owned(), settings);
        fields.into()
    }

    fn guest(&mut self, fields: &mut Map<String, Value>) {
        self.sometimes(fields, 2, "vcpu", &[2, 3, 4, 7, 8, 9].map(Value::from));
        self.sometimes(
            fields,
            4,
            "machineId",
            &[
                json!("a67472e5-570e-5c8a-b18c-ae3c77701050"),
                json!("A67472E5570E5C8AB18CAE3C77701050"),
                json!("ffffffffffffffffffffffffffffffff"),
            ],
        );
        self.sometimes(fields, 6, "rng", &[json!(false)]);
        self.sometimes(fields, 4, "prettyProcnames", &[json!(false)]);
        self.sometimes(
            fields,
            5,
            "vsock",
            &[
                json!({"cid": 3}),
                json!({"cid": 4_294_967_294_u32}),
                json!({"cid": 77, "socket": "sub-v.sock"}),
                json!({"cid": 1234, "notify": true}),
            ],
        );
        let words = [
            "quiet",
            "a=b,c",
            "quoted=\"x,y\"",
            "single='z'",
            "back\\slash",
            "percent=%d",
            "dollar=$HOME",
            "semi;colon",
            "brace={a}",
            "list=[1,2]",
            "hash=4096",
            "ünïcode",
            "--",
            "-dash",
            "equals==",
            "path=/a:b",
        ];
        let parameters: Vec<Value> = (0..self.some(4)).map(|_| json!(self.pick(&words))).collect();
        fields.insert("kernelParams".to_owned(), parameters.into());
    }

    fn memory(&mut self, fields: &mut Map<String, Value>) {
        if self.one_in(3) {
            fields.insert("balloon".to_owned(), json!(true));
            self.sometimes(fields, 3, "initialBalloonMem", &[1, 16, 31].map(Value::from));
            self.sometimes(fields, 3, "deflateOnOOM", &[json!(false)]);
        }
        if self.one_in(4) {
            fields.insert("hotplugMem".to_owned(), self.pick(&[128, 256, 300, 512, 1024, 4096].map(Value::from)));
            self.sometimes(fields, 2, "hotpluggedMem", &[0, 2, 128, 256].map(Value::from));
        }
    }

    fn files(&mut self, fields: &mut Map<String, Value>) {
        self.sometimes(
            fields,
            4,
            "socket",
            &[json!("control"), json!("a,b.sock"), json!("with space.sock"), json!("ünïcode")],
        );
        self.sometimes(
            fields,
            4,
            "credentialFiles",
            &[json!({"a": "secret"}), json!({"a.b-c_d": "secret", "second": "./secret"}), json!({"a,b=c": "secret"})],
        );
        self.sometimes(
            fields,
            5,
            "preStart",
            &[json!([["true"]]), json!([["touch", "started"], ["sh", "-c", "echo \"$0\""]])],
        );
        self.sometimes(fields, 6, "extraArgsScript", &[json!("script")]);
        self.sometimes(fields, 6, "user", &[json!("nobody")]);
    }

    fn volume(&mut self, hypervisor: Hypervisor, index: usize) -> Value {
        let directory = self.pick(&["", "", "./", "images/", "deep,er/images/"]);
        let mut volume = json!({"image": format!("{directory}{}{index}.img", self.name())});
        let Value::Object(fields) = &mut volume else { unreachable!() };
        let types = ["raw", "raw", "qcow2", "vhd", "vhdx"];
        let is_raw_only = matches!(hypervisor, Hypervisor::Firecracker | Hypervisor::Kvmtool);
        let image_type = if is_raw_only { "raw" } else { self.pick(&types) };
        fields.insert("imageType".to_owned(), json!(image_type));
        if image_type == "raw" && self.one_in(2) {
            let (file_system, size) = self.pick(&[("ext4", 4), ("ext4", 33), ("vfat", 8), ("xfs", 320)]);
            fields.insert("fsType".to_owned(), json!(file_system));
            fields.insert("size".to_owned(), json!(size));
        } else {
            fields.insert("autoCreate".to_owned(), json!(false));
        }
        self.sometimes(fields, 4, "readOnly", &[json!(true)]);
        self.sometimes(fields, 5, "direct", &[json!(true)]);
        if !is_raw_only {
            self.sometimes(
                fields,
                4,
                "serial",
                &[json!(format!("s{index}")), json!(format!("a,b=c{index}-0123456789"))],
            );
        }
        self.sometimes(fields, 3, "mountPoint", &[json!(format!("/mnt/{index}"))]);
        volume
    }

    fn share(&mut self, hypervisor: Hypervisor, index: usize) -> Value {
        let proto = match hypervisor {
            Hypervisor::CloudHypervisor => "virtiofs",
            Hypervisor::Firecracker | Hypervisor::Kvmtool => "9p",
            _ => self.pick(&["9p", "virtiofs"]),
        };
        let tag = format!("{}{index}", self.pick(&["tag", "t.a-g_", "a,b", "a=b", "UPPER"]));
        let mut share = json!({
            "proto": proto, "tag": tag, "source": format!("{}{index}", self.name()), "mountPoint": format!("/share/{index}"),
        });
        let Value::Object(fields) = &mut share else { unreachable!() };
        self.sometimes(fields, 3, "readOnly", &[json!(true)]);
        self.sometimes(fields, 3, "securityModel", &["none", "mapped", "mapped-file", "passthrough"].map(Value::from));
        self.sometimes(fields, 3, "cache", &["auto", "always", "metadata", "never"].map(Value::from));
        self.sometimes(fields, 3, "posixAcl", &[json!(false)]);
        share
    }

    fn interface(&mut self, hypervisor: Hypervisor, index: usize) -> Value {
        let kind = match hypervisor {
            Hypervisor::Firecracker => "tap",
            Hypervisor::Crosvm => self.pick(&["tap", "macvtap"]),
            _ => self.pick(&["tap", "macvtap", "user"]),
        };
        let id = format!("{}{index}", self.pick(&["t", "vm-eth", "a.b_c", "longest-name-1", "x@y", "br#"]));
        let mac = format!("02:{:02x}:00:00:0A:{index:02X}", self.0.u8(..));
        let mut interface = json!({"type": kind, "id": id, "mac": mac});
        if kind == "macvtap" {
            interface["macvtap"] = json!({"link": "lower0", "mode": self.pick(&["bridge", "private", "vepa"])});
        }
        interface
    }

    fn forwarded_ports(&mut self) -> Value {
        let port = self.0.u16(20_000..30_000);
        self.pick(&[
            json!([{"host": {"port": port}, "guest": {"port": 22}}]),
            json!([{"host": {"address": "127.0.0.1", "port": port}, "guest": {"port": 80}, "proto": "udp"}]),
            json!([
                {"host": {"port": port}, "guest": {"port": 22}},
                {"host": {"port": port}, "guest": {"port": 22}, "proto": "udp"},
                {"host": {"address": "127.0.0.1", "port": port + 1}, "guest": {"port": 23}},
            ]),
        ])
    }

    fn section(&mut self, hypervisor: Hypervisor) -> (&'static str, Value) {
        let mut fields = Map::new();
        let name = match hypervisor {
            Hypervisor::Qemu => {
                self.sometimes(&mut fields, 3, "machine", &["q35", "microvm", "pc"].map(Value::from));
                self.sometimes(
                    &mut fields,
                    6,
                    "machineOpts",
                    &[json!({}), json!({"usb": "on"}), json!({"mem-merge": "off", "dump-guest-core": "off"})],
                );
                self.sometimes(&mut fields, 6, "pcieRootPorts", &[
                    json!([{"id": "port1"}]),
                    json!([{"id": "port1", "chassis": 1, "slot": "1"}, {"id": "port2", "chassis": 2, "addr": "0x5"}]),
                ]);
                "qemu"
            }
            Hypervisor::CloudHypervisor => {
                self.sometimes(
                    &mut fields,
                    4,
                    "platformOEMStrings",
                    &[json!(["a=b", "c d"]), json!(["io.systemd:x=[1,2]"])],
                );
                "cloudHypervisor"
            }
            Hypervisor::Firecracker => {
                self.sometimes(&mut fields, 3, "driveIoEngine", &["Sync", "Async"].map(Value::from));
                self.sometimes(
                    &mut fields,
                    5,
                    "extraConfig",
                    &[
                        json!({"machine-config": {"track_dirty_pages": true}}),
                        json!({"logger": {"level": "Error"}}),
                        json!({"machine-config": {"smt": true}}),
                        json!({"metrics": {"metrics_path": "metrics"}}),
                        json!({"entropy": {}}),
                    ],
                );
                "firecracker"
            }
            _ => hypervisor.as_str(),
        };
        // The probe guest has no driver for virtio devices of that kind.
        let known: Vec<_> =
            extra_arguments(hypervisor).into_iter().filter(|known| !known.ends_with("|pci-legacy")).collect();
        let count = if known.is_empty() || self.one_in(2) { 0 } else { 1 + self.some(2) };
        let extra: Vec<String> =
            (0..count).flat_map(|_| self.pick(&known).split('|').map(str::to_owned).collect::<Vec<_>>()).collect();
        fields.insert("extraArgs".to_owned(), json!(extra));
        (name, fields.into())
    }
}

/// The hypervisors with a file of extra arguments. A new one can be added without a file.
const WITH_EXTRA_ARGUMENTS: [&str; 5] = ["qemu", "cloud-hypervisor", "firecracker", "crosvm", "kvmtool"];

/// Returns arguments that the hypervisor itself supports. Each one either works beside the
/// launcher's own or must be refused.
fn extra_arguments(hypervisor: Hypervisor) -> Vec<String> {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("../fixtures/extra-arguments");
    match fs::read_to_string(directory.join(format!("{hypervisor}.txt"))) {
        Ok(text) => text.lines().map(str::to_owned).collect(),
        Err(error)
            if error.kind() == io::ErrorKind::NotFound && !WITH_EXTRA_ARGUMENTS.contains(&hypervisor.as_str()) =>
        {
            Vec::new()
        }
        Err(error) => panic!("fixtures/extra-arguments/{hypervisor}.txt: {error}"),
    }
}
