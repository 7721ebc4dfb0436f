//! The evidence for every yes in the capability tables: one test per row and hypervisor, with the real program, if its
//! environment variable is set. `lowering.rs` tests what the tables refuse.

use crate::linux::image_builder;
use crate::machine::{
    TestMachine, find_on_path, in_test_environment, kvm_opens, missing, program_of, skipped, usable_program_of,
    use_program, write_disk,
};
use crate::probe::{ProbeReport, fnv1a64, probe_guest};
use launcher::capability::Feature;
use launcher::hypervisor::support;
use launcher::launch::Launch;
use launcher::spec::{Hypervisor, MachineSpec};
use serde_json::{Value, json};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Mutex;

const INITRD: &[u8] = b"070701 not an archive";
const MARK: &str = "a row";
/// All of a small store: on hosts with an emulated KVM a guest computes slowly.
const HASHED_BYTES: usize = 32 << 10;
const MAC: &str = "02:00:00:00:00:01";
/// Serialises the tests of huge pages, whose number is a setting of the whole host.
static HUGE_PAGES: Mutex<()> = Mutex::new(());

macro_rules! rows {
    ($($name:ident: $feature:ident,)+) => {
        /// Tests each row on one hypervisor.
        macro_rules! under {
            ($module:ident: $hypervisor:ident) => {
                mod $module {
                    $(
                        #[test]
                        fn $name() {
                            super::show(launcher::spec::Hypervisor::$hypervisor, launcher::capability::Feature::$feature);
                        }
                    )+
                }
            };
        }
        under!(qemu: Qemu);
        under!(cloud_hypervisor: CloudHypervisor);
        under!(firecracker: Firecracker);
        under!(crosvm: Crosvm);
        under!(kvmtool: Kvmtool);

        #[test]
        fn every_row_has_a_test() {
            assert_eq!([$(Feature::$feature),+], Feature::ALL);
        }
    };
}

rows! {
    store_disk: StoreDisk,
    live_store_disk: LiveStoreDisk,
    pmem_store_disk: PmemStoreDisk,
    sealed_store_disk: SealedStoreDisk,
    volume_serial: VolumeSerial,
    volume_direct: VolumeDirect,
    volume_qcow2: VolumeQcow2,
    volume_vhd: VolumeVhd,
    volume_vhdx: VolumeVhdx,
    nine_p: NineP,
    nine_p_read_only: NinePReadOnly,
    nine_p_security_model: NinePSecurityModel,
    virtiofs: Virtiofs,
    interface_user: InterfaceUser,
    interface_tap: InterfaceTap,
    interface_macvtap: InterfaceMacvtap,
    interface_bridge: InterfaceBridge,
    tap_multi_queue: TapMultiQueue,
    tap_vhost: TapVhost,
    forward_from_host: ForwardFromHost,
    forward_from_guest: ForwardFromGuest,
    vsock: Vsock,
    guest_notification: GuestNotification,
    balloon: Balloon,
    initial_balloon: InitialBalloon,
    hotplug_memory: HotplugMemory,
    huge_pages: HugePages,
    device_pci: DevicePci,
    device_usb: DeviceUsb,
    credentials: Credentials,
    cpu_model: CpuModel,
    without_rng: WithoutRng,
    machine_id: MachineId,
    console: Console,
    graceful_stop: GracefulStop,
    suspend: Suspend,
    live_migration: LiveMigration,
    without_kvm: WithoutKvm,
    other_architecture: OtherArchitecture,
    graphics: Graphics,
}

/// Writes the spec of a probe guest with these fields.
pub(crate) fn write_spec(machine: &TestMachine, fields: &Value, (hypervisor, program): (Hypervisor, &Path)) {
    let guest = probe_guest();
    let mut document = json!({
        "version": 1, "name": "row", "hypervisor": hypervisor, "initrd": "initrd",
        "kernel": guest.bzimage, "vmlinux": guest.elf, "mem": 128,
    });
    document.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
    let mut spec: MachineSpec = serde_json::from_value(document).unwrap();
    use_program(&mut spec, hypervisor, program);
    fs::write(machine.path("initrd"), INITRD).unwrap();
    machine.write_spec(&spec);
}

/// Starts the smallest machine that uses the feature, and compares what its guest sees.
fn show(hypervisor: Hypervisor, feature: Feature) {
    if !support(hypervisor, feature).is_supported() {
        return;
    }
    let Some(program) = usable_program_of(hypervisor) else { return };
    let Some(machine) = TestMachine::new("row") else { return };
    let fields = match prepare(hypervisor, feature, &machine) {
        Ok(fields) => fields,
        Err(why) => return skipped(&format!("{feature:?} under {hypervisor}: {why}")),
    };
    write_spec(&machine, &fields, (hypervisor, &program));
    let _pages = (feature == Feature::HugePages).then(HugePages::set_aside);
    let command = command(&machine, hypervisor, feature);
    let console = machine.start_command(command).end_well();
    let report = ProbeReport::parse(&console);
    assert!(report.complete && report.end.is_some(), "the probe guest did not get to its end:\n{console}");
    compare(hypervisor, feature, &report, &machine.launch());
}

/// Returns `microvm run`. For huge pages, hugetlbfs is mounted for this command only.
fn command(machine: &TestMachine, hypervisor: Hypervisor, feature: Feature) -> Command {
    let without_kvm = hypervisor == Hypervisor::Qemu && feature != Feature::CpuModel && feature != Feature::HugePages;
    let accelerator: &[&str] = if without_kvm { &["--accel", "tcg"] } else { &[] };
    if feature != Feature::HugePages {
        return machine.microvm(&[&["run", "machine.json"], accelerator].concat());
    }
    let script =
        "mkdir -p /dev/hugepages && mount -t hugetlbfs none /dev/hugepages && exec \"$0\" run machine.json \"$@\"";
    let mut command = machine.namespace.command("sh");
    command.args(["-c", script, env!("CARGO_BIN_EXE_microvm")]).args(accelerator).current_dir(machine.path(""));
    in_test_environment(&mut command, machine);
    command
}

/// Huge pages for one machine, returned on drop.
struct HugePages {
    before: u64,
    _alone: std::sync::MutexGuard<'static, ()>,
}

impl HugePages {
    const FILE: &str = "/proc/sys/vm/nr_hugepages";

    fn set_aside() -> Self {
        let alone = HUGE_PAGES.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let before = fs::read_to_string(Self::FILE).unwrap().trim().parse().unwrap();
        fs::write(Self::FILE, format!("{}", before + 80)).unwrap();
        Self { before, _alone: alone }
    }
}

impl Drop for HugePages {
    fn drop(&mut self) {
        let _ = fs::write(Self::FILE, self.before.to_string());
    }
}

/// Returns the fields of the spec and prepares what they need, or returns why this host cannot test the feature.
pub(crate) fn prepare(hypervisor: Hypervisor, feature: Feature, machine: &TestMachine) -> Result<Value, String> {
    let by_kernel = !matches!(hypervisor, Hypervisor::CloudHypervisor | Hypervisor::Firecracker);
    let interface = |kind: &str, extra: Value| {
        let mut interface = json!({"type": kind, "id": "row0", "mac": MAC});
        interface.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
        json!({"interfaces": [interface]})
    };
    let share = |extra: Value| {
        fs::create_dir_all(machine.path("shared")).unwrap();
        let mut share = json!({"tag": "row", "source": "shared", "mountPoint": "/row"});
        share.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
        json!({"shares": [share]})
    };
    let needs_node = |node: &str| if Path::new(node).exists() { Ok(()) } else { Err(format!("no {node}")) };
    Ok(match feature {
        Feature::LiveStoreDisk => {
            build_store(machine);
            let disk = json!({"plan": "plan.json", "live": true, "builder": image_builder()});
            json!({"storeDisk": disk, "vcpu": 2, "kernelParams": [format!("hash={HASHED_BYTES}")]})
        }
        Feature::PmemStoreDisk => {
            build_store(machine);
            let disk = json!({"image": "store.erofs", "transport": "pmem"});
            json!({"storeDisk": disk, "kernelParams": [format!("hash={HASHED_BYTES}")]})
        }
        Feature::SealedStoreDisk => {
            build_store(machine);
            let build = ["build", "--quiet", "--no-cache", "--verity", "--paths-from", "paths", "--store-dir", "store"];
            run_image_builder(machine, &[&build[..], &["-o", "store.img"]].concat());
            let hashed = format!("hash={}", fs::metadata(machine.path("store.img")).unwrap().len());
            json!({"storeDisk": {"image": "store.img", "verity": true}, "kernelParams": [hashed]})
        }
        Feature::StoreDisk => {
            write_disk(&machine.path("store.img"), MARK, 4096);
            json!({"storeDisk": {"image": "store.img"}})
        }
        Feature::VolumeSerial => volume(machine, json!({"serial": "row-serial"})),
        Feature::VolumeDirect => volume(machine, json!({"direct": true})),
        Feature::VolumeQcow2 => image(machine, "qcow2", &["qcow2"])?,
        Feature::VolumeVhd => image(machine, "vhd", &["vpc", "-o", "subformat=fixed,force_size"])?,
        Feature::VolumeVhdx => image(machine, "vhdx", &["vhdx"])?,
        Feature::NineP => share(json!({})),
        Feature::NinePReadOnly => share(json!({"readOnly": true})),
        Feature::NinePSecurityModel => share(json!({"securityModel": "mapped"})),
        Feature::Virtiofs => {
            let daemon = std::env::var("MICROVM_TEST_VIRTIOFSD").map_err(|_| "no MICROVM_TEST_VIRTIOFSD")?;
            let mut fields = share(json!({"proto": "virtiofs"}));
            fields["virtiofsd"] = json!({"program": daemon});
            fields
        }
        Feature::InterfaceUser => {
            passt_for(hypervisor)?;
            interface("user", json!({}))
        }
        Feature::InterfaceTap => interface("tap", json!({})),
        Feature::TapMultiQueue => {
            let mut fields = interface("tap", json!({}));
            fields["vcpu"] = json!(2);
            fields
        }
        Feature::TapVhost => {
            needs_node("/dev/vhost-net")?;
            interface("tap", json!({"tap": {"vhost": true}}))
        }
        Feature::InterfaceMacvtap => {
            machine.namespace.run("ip", &["link", "add", "row-link", "type", "bridge"]);
            interface("macvtap", json!({"macvtap": {"link": "row-link", "mode": "bridge"}}))
        }
        Feature::InterfaceBridge => {
            let helper = "/usr/lib/qemu/qemu-bridge-helper";
            needs_node(helper)?;
            machine.namespace.run("ip", &["link", "add", "row-bridge", "type", "bridge"]);
            machine.namespace.allow_bridge("row-bridge");
            let mut fields = interface("bridge", json!({"bridge": "row-bridge"}));
            fields["qemu"] = json!({"bridgeHelper": helper});
            fields
        }
        Feature::ForwardFromHost => {
            passt_for(hypervisor)?;
            let mut fields = interface("user", json!({}));
            fields["forwardPorts"] = json!([{"host": {"port": 18080}, "guest": {"port": 80}}]);
            fields
        }
        Feature::ForwardFromGuest => {
            machine.serve_http("127.0.0.1:18081");
            let mut fields = interface("user", json!({}));
            let (host, guest) =
                (json!({"address": "127.0.0.1", "port": 18081}), json!({"address": "10.0.2.10", "port": 80}));
            fields["forwardPorts"] = json!([{"from": "guest", "host": host, "guest": guest}]);
            fields
        }
        Feature::Vsock | Feature::GuestNotification if by_kernel => {
            needs_node("/dev/vhost-vsock")?;
            json!({"vsock": {"cid": 4242, "notify": feature == Feature::GuestNotification}})
        }
        Feature::Vsock => json!({"vsock": {"cid": 42}}),
        Feature::GuestNotification => json!({"vsock": {"cid": 42, "notify": true}}),
        Feature::Balloon => json!({"balloon": true}),
        Feature::InitialBalloon => json!({"balloon": true, "initialBalloonMem": 32}),
        Feature::HotplugMemory => json!({"hotplugMem": 256, "hotpluggedMem": 0}),
        Feature::HugePages => json!({"hugepageMem": true}),
        Feature::DevicePci | Feature::DeviceUsb => return Err("no device to pass through".to_owned()),
        Feature::Credentials => {
            fs::write(machine.path("secret"), "secret").unwrap();
            json!({"credentialFiles": {"row": "secret"}})
        }
        Feature::CpuModel if !kvm_opens() => return Err("/dev/kvm does not open".to_owned()),
        Feature::CpuModel => json!({"cpu": "qemu64"}),
        Feature::WithoutRng => json!({"rng": false}),
        Feature::MachineId => json!({"machineId": "a67472e5570e5c8ab18cae3c77701050"}),
        Feature::Console | Feature::GracefulStop => return Err("lifecycle.rs tests it".to_owned()),
        Feature::Suspend => return Err("suspend.rs tests it".to_owned()),
        Feature::LiveMigration => return Err("cluster_agent.rs tests it".to_owned()),
        Feature::WithoutKvm => json!({}),
        Feature::OtherArchitecture => return Err("the probe guest supports x86_64 only".to_owned()),
        Feature::Graphics if hypervisor == Hypervisor::Qemu => {
            json!({"graphics": {"enable": true, "backend": "headless", "gl": false}})
        }
        Feature::Graphics => return Err("no Wayland desktop to show a window on".to_owned()),
    })
}

/// Returns a raw volume with the mark.
fn volume(machine: &TestMachine, extra: Value) -> Value {
    write_disk(&machine.path("row.img"), MARK, 8192);
    let mut volume = json!({"image": "row.img", "autoCreate": false});
    volume.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
    json!({"volumes": [volume]})
}

/// Returns the same volume as an image of another format, named as in the spec and as in qemu-img.
fn image(machine: &TestMachine, image_type: &str, format: &[&str]) -> Result<Value, String> {
    find_on_path("qemu-img").ok_or("no qemu-img")?;
    let fields = volume(machine, json!({"imageType": image_type}));
    let (raw, image) = (machine.path("raw.img"), machine.path("row.img"));
    fs::rename(&image, &raw).unwrap();
    let converted =
        Command::new("qemu-img").args(["convert", "-f", "raw", "-O"]).args(format).args([&raw, &image]).status();
    assert!(converted.unwrap().success());
    Ok(fields)
}

/// Checks that passt is new enough for cloud-hypervisor's user networking.
pub(crate) fn passt_for(hypervisor: Hypervisor) -> Result<(), String> {
    if hypervisor != Hypervisor::CloudHypervisor {
        return Ok(());
    }
    let named = std::env::var_os("MICROVM_TEST_PASST").map(PathBuf::from);
    let program = named.or_else(|| find_on_path("passt")).ok_or("no passt")?;
    let asked =
        Command::new(&program).arg("--help").output().map_err(|error| format!("{}: {error}", program.display()))?;
    let printed = [asked.stdout, asked.stderr].concat();
    let is_new = String::from_utf8_lossy(&printed).contains("--vhost-user");
    is_new.then_some(()).ok_or_else(|| format!("{} is too old: it has no --vhost-user", program.display()))
}

/// A store with two store paths, its plan, and the image that a live disk must be equal to.
fn build_store(machine: &TestMachine) {
    let name = |hash: char, name: &str| format!("store/{}-{name}", String::from(hash).repeat(32));
    fs::create_dir_all(machine.path(&name('0', "row")).join("bin")).unwrap();
    let text: Vec<u8> = (0..3000_u32).flat_map(u32::to_le_bytes).collect();
    fs::write(machine.path(&name('0', "row")).join("bin/program"), text).unwrap();
    fs::write(machine.path(&name('0', "row")).join("small"), "small").unwrap();
    fs::write(machine.path(&name('1', "file")), "a store path that is a file").unwrap();
    let paths =
        ["0", "1"].map(|hash| format!("/nix/store/{}-{}\n", hash.repeat(32), if hash == "0" { "row" } else { "file" }));
    fs::write(machine.path("paths"), paths.concat()).unwrap();
    for words in [
        &["plan", "--paths-from", "paths", "--store-dir", "store", "--format", "erofs", "--dax", "-o", "plan.json"][..],
        &["build", "--quiet", "--no-cache", "--plan", "plan.json", "-o", "store.erofs"],
    ] {
        run_image_builder(machine, words);
    }
}

fn run_image_builder(machine: &TestMachine, words: &[&str]) {
    let built = Command::new(image_builder()).args(words).current_dir(machine.path("")).output().unwrap();
    assert!(built.status.success(), "{}", String::from_utf8_lossy(&built.stderr));
}

fn compare(hypervisor: Hypervisor, feature: Feature, report: &ProbeReport, launch: &Launch) {
    let disks = report.named("blk");
    let has_mark = || disks.first().is_some_and(|disk| disk.field("first").starts_with(MARK));
    let seen = |name: &str| report.named(name).len();
    match feature {
        Feature::StoreDisk => assert!(has_mark() && disks[0].field("access") == "ro", "{disks:?}"),
        Feature::LiveStoreDisk => {
            let built = fs::read(launch.working_directory.as_path().join("store.erofs")).unwrap();
            let sectors = (built.len() / 512).to_string();
            let seen = ["access", "serial", "sectors", "fnv1a64"].map(|field| disks[0].field(field));
            assert_eq!(seen, ["ro", "nix-store", &sectors, &format!("{:016x}", fnv1a64(&built[..HASHED_BYTES]))]);
        }
        Feature::PmemStoreDisk => {
            let built = fs::read(launch.working_directory.as_path().join("store.erofs")).unwrap();
            let seen = ["size_bytes", "fnv1a64"].map(|field| report.named("pmem")[0].field(field));
            assert_eq!(seen, [&built.len().to_string(), &format!("{:016x}", fnv1a64(&built[..HASHED_BYTES]))]);
        }
        Feature::SealedStoreDisk => {
            let seal = fs::read(launch.working_directory.as_path().join("store.img.verity.json")).unwrap();
            let seal: Value = serde_json::from_slice(&seal).unwrap();
            let parameter =
                format!("microvm.store_verity={}:{}", seal["rootHash"].as_str().unwrap(), seal["hashOffsetBytes"]);
            assert!(report.command_line.split(' ').any(|word| word == parameter), "{}", report.command_line);
            let built = fs::read(launch.working_directory.as_path().join("store.img")).unwrap();
            let hash = format!("{:016x}", fnv1a64(&built));
            assert_eq!(["access", "fnv1a64"].map(|field| disks[0].field(field)), ["ro", &hash]);
        }
        Feature::VolumeSerial => assert_eq!(disks[0].field("serial"), "row-serial"),
        Feature::VolumeDirect | Feature::VolumeQcow2 | Feature::VolumeVhd | Feature::VolumeVhdx => {
            assert!(has_mark() && disks[0].field("sectors") == "8192", "{disks:?}");
        }
        Feature::NineP | Feature::NinePReadOnly | Feature::NinePSecurityModel => {
            assert_eq!(report.named("9p")[0].field("tag"), "row");
        }
        Feature::Virtiofs => assert_eq!(report.named("fs")[0].field("tag"), "row"),
        Feature::InterfaceUser
        | Feature::InterfaceTap
        | Feature::InterfaceMacvtap
        | Feature::InterfaceBridge
        | Feature::TapVhost
        | Feature::ForwardFromHost
        | Feature::ForwardFromGuest => assert_eq!(report.named("net")[0].field("mac"), MAC),
        Feature::TapMultiQueue => {
            assert_eq!((report.named("net")[0].field("mac"), launch.needs.taps[0].queue_pairs), (MAC, 2));
        }
        Feature::Vsock | Feature::GuestNotification => {
            let cid = launch.vsock.as_ref().unwrap().cid.to_string();
            assert_eq!(report.named("vsock")[0].field("cid"), cid);
            let notifies = report.command_line.contains("vmm.notify_socket:vsock-stream:2:");
            assert_eq!(notifies, feature == Feature::GuestNotification);
        }
        Feature::Balloon | Feature::InitialBalloon => assert_eq!(seen("balloon"), 1),
        Feature::HotplugMemory => assert_eq!(seen("mem"), 1, "{:?}", report.devices),
        Feature::Credentials if hypervisor == Hypervisor::Qemu => {
            assert!(launch.arguments.iter().any(|argument| argument == "-fw_cfg"));
        }
        Feature::Credentials => assert!(report.initrd.unwrap().0 > INITRD.len() as u64, "{:?}", report.initrd),
        Feature::WithoutRng => assert_eq!(seen("rng"), 0),
        Feature::MachineId => {
            let by_parameter = report.command_line.contains("systemd.machine_id=a67472e5570e5c8ab18cae3c77701050");
            let expected = matches!(hypervisor, Hypervisor::Firecracker | Hypervisor::Kvmtool);
            assert_eq!(by_parameter, expected, "{}", report.command_line);
        }
        Feature::Graphics => assert_eq!((seen("gpu"), seen("input")), (1, 2)),
        _ => {}
    }
}

#[test]
fn a_machine_that_runs_as_another_user_can_use_its_virtiofs_share() {
    let Ok(daemon) = std::env::var("MICROVM_TEST_VIRTIOFSD") else { return skipped("no MICROVM_TEST_VIRTIOFSD") };
    let (Some(program), Some(machine)) = (program_of(Hypervisor::Qemu), TestMachine::new("row")) else {
        return missing("no qemu, or no network namespaces");
    };
    let nobody = nix::unistd::User::from_name("nobody").unwrap().unwrap();
    let guest = probe_guest();
    for (name, path) in [("bzImage", &guest.bzimage), ("vmlinux", &guest.elf)] {
        fs::copy(path, machine.path(name)).unwrap();
    }
    fs::create_dir(machine.path("shared")).unwrap();
    let document = json!({
        "version": 1, "name": "row", "kernel": "bzImage", "mem": 128, "user": "nobody",
        "shares": [{"proto": "virtiofs", "tag": "row", "source": "shared", "mountPoint": "/row"}],
        "virtiofsd": {"program": daemon},
    });
    let mut spec: MachineSpec = serde_json::from_value(document).unwrap();
    use_program(&mut spec, Hypervisor::Qemu, &program);
    machine.write_spec(&spec);
    std::os::unix::fs::chown(machine.path(""), Some(nobody.uid.as_raw()), Some(nobody.gid.as_raw())).unwrap();
    let report = ProbeReport::parse(&machine.start(&["--accel", "tcg"]).end_well());
    assert_eq!(report.named("fs")[0].field("tag"), "row");
}
