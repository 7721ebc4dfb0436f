//! Cloud Hypervisor's `VmConfig`: the schemas of its published API that this launcher uses, with the names of the API,
//! and the corresponding command-line options.

use super::super::launch_builder::LaunchBuilder;
use crate::keyval::{Dialect, Options};
use crate::validate::DiskBackend;
use serde::Serialize;
use serde_json::Value;

#[derive(Debug, Serialize)]
pub(super) struct VmConfig {
    pub(super) cpus: Cpus,
    pub(super) memory: Memory,
    pub(super) payload: Payload,
    pub(super) disks: Vec<DiskConfig>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(super) pmem: Vec<Pmem>,
    pub(super) net: Vec<Net>,
    pub(super) rng: Random,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) balloon: Option<Balloon>,
    pub(super) fs: Vec<FileSystem>,
    pub(super) serial: Port,
    pub(super) console: Port,
    pub(super) devices: Vec<Device>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) vsock: Option<Vsock>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) platform: Option<Platform>,
    pub(super) watchdog: bool,
    pub(super) landlock_enable: bool,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(super) landlock_rules: Vec<LandlockRule>,
}

/// `CpusConfig`.
#[derive(Debug, Serialize)]
pub(super) struct Cpus {
    pub(super) boot_vcpus: u32,
    pub(super) max_vcpus: u32,
}

/// `MemoryConfig`; sizes in bytes.
#[derive(Debug, Serialize)]
pub(super) struct Memory {
    pub(super) size: u64,
    pub(super) shared: bool,
    pub(super) mergeable: bool,
    pub(super) hugepages: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) hotplug_method: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) hotplug_size: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) hotplugged_size: Option<u64>,
}

/// `PayloadConfig`.
#[derive(Debug, Serialize)]
pub(super) struct Payload {
    pub(super) kernel: String,
    pub(super) cmdline: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) initramfs: Option<String>,
}

/// `DiskConfig`: with an image, or with the socket of a process that serves the disk.
#[derive(Debug, Serialize)]
pub(super) struct DiskConfig {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) path: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) vhost_user: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) vhost_socket: Option<String>,
    pub(super) readonly: bool,
    pub(super) direct: bool,
    pub(super) num_queues: u32,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) serial: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) image_type: Option<ImageKind>,
}

/// `ImageType`.
#[derive(Clone, Copy, Debug, Serialize)]
pub(super) enum ImageKind {
    FixedVhd,
    Qcow2,
    Raw,
    Vhdx,
}

impl ImageKind {
    fn option(self) -> &'static str {
        match self {
            Self::FixedVhd => "vhd",
            Self::Qcow2 => "qcow2",
            Self::Raw => "raw",
            Self::Vhdx => "vhdx",
        }
    }
}

/// `PmemConfig`.
#[derive(Debug, Serialize)]
pub(super) struct Pmem {
    pub(super) file: String,
    /// The guest's writes change its own copy of a page, never the file.
    pub(super) discard_writes: bool,
}

/// `NetConfig`.
#[derive(Debug, Serialize)]
pub(super) struct Net {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) tap: Option<String>,
    pub(super) mac: String,
    pub(super) num_queues: u32,
    pub(super) vhost_user: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) vhost_socket: Option<String>,
    /// Not part of the API, because descriptors can only be inherited.
    #[serde(skip)]
    pub(super) fds: Vec<i32>,
}

impl Default for Net {
    fn default() -> Self {
        Self { tap: None, mac: String::new(), num_queues: 2, vhost_user: false, vhost_socket: None, fds: Vec::new() }
    }
}

/// `RngConfig`.
#[derive(Debug, Serialize)]
pub(super) struct Random {
    pub(super) src: String,
}

/// `BalloonConfig`; size in bytes.
#[derive(Debug, Serialize)]
pub(super) struct Balloon {
    pub(super) size: u64,
    pub(super) deflate_on_oom: bool,
    pub(super) free_page_reporting: bool,
}

/// `FsConfig`.
#[derive(Debug, Serialize)]
pub(super) struct FileSystem {
    pub(super) tag: String,
    pub(super) socket: String,
    pub(super) num_queues: u32,
    pub(super) queue_size: u32,
}

/// `SerialConfig` and `ConsoleConfig`.
#[derive(Debug, Serialize)]
pub(super) struct Port {
    pub(super) mode: Mode,
}

/// `ConsoleMode`.
#[derive(Clone, Copy, Debug, Serialize)]
pub(super) enum Mode {
    Tty,
    Off,
}

impl Mode {
    fn option(self) -> &'static str {
        match self {
            Self::Tty => "tty",
            Self::Off => "off",
        }
    }
}

/// `DeviceConfig`.
#[derive(Debug, Serialize)]
pub(super) struct Device {
    pub(super) path: String,
}

/// `VsockConfig`.
#[derive(Debug, Serialize)]
pub(super) struct Vsock {
    pub(super) cid: u32,
    pub(super) socket: String,
}

/// `PlatformConfig`.
#[derive(Debug, Serialize)]
pub(super) struct Platform {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) system_uuid: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) uuid: Option<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(super) oem_strings: Vec<String>,
}

/// `LandlockConfig`: `r`, `w` or `rw` to a file, or to a directory with all that is below it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(super) struct LandlockRule {
    pub(super) path: String,
    pub(super) access: &'static str,
}

impl Platform {
    pub(super) fn is_empty(&self) -> bool {
        self.system_uuid.is_none() && self.uuid.is_none() && self.oem_strings.is_empty()
    }
}

impl VmConfig {
    pub(super) fn to_value(&self) -> Value {
        // Serialising text and numbers in range cannot fail.
        serde_json::to_value(self).unwrap_or_default()
    }
}

/// Returns the command line that corresponds to the configuration.
pub(super) fn arguments(builder: &mut LaunchBuilder<'_>, config: &VmConfig) -> Vec<String> {
    let mut arguments = Vec::new();
    let mut add = |option: &str, value: String| arguments.extend([option.to_owned(), value]);
    let new = || Options::new(Dialect::CloudHypervisor);
    let socket = new().pair("path", &builder.spec.control_socket).finish();
    add("--api-socket", builder.written("socket", socket));
    let cpus = &config.cpus;
    add("--cpus", format!("boot={},max={}", cpus.boot_vcpus, cpus.max_vcpus));
    add("--memory", builder.written("mem", memory_options(&config.memory).finish()));
    add("--kernel", config.payload.kernel.clone());
    if let Some(initramfs) = &config.payload.initramfs {
        add("--initramfs", initramfs.clone());
    }
    add("--cmdline", config.payload.cmdline.clone());
    add("--serial", config.serial.mode.option().to_owned());
    add("--console", config.console.mode.option().to_owned());
    add("--seccomp", "true".to_owned());
    if let Some(platform) = &config.platform {
        add("--platform", builder.written("cloudHypervisor.platformOEMStrings", platform_options(platform).finish()));
    }
    let block_devices = builder.spec.disks.iter().filter(|disk| disk.backend != DiskBackend::Pmem);
    for (disk, config) in block_devices.zip(&config.disks) {
        add("--disk", builder.written(&format!("{}.image", disk.option), disk_options(config).finish()));
    }
    for pmem in &config.pmem {
        let discard = if pmem.discard_writes { "on" } else { "off" };
        let options = new().pair("file", &pmem.file).pair("discard_writes", discard);
        add("--pmem", builder.written("storeDisk.image", options.finish()));
    }
    for net in &config.net {
        add("--net", builder.written("interfaces", net_options(net).finish()));
    }
    for fs in &config.fs {
        let options = new().pair("tag", &fs.tag).pair("socket", &fs.socket);
        let options = options.pair("num_queues", fs.num_queues).pair("queue_size", fs.queue_size);
        add("--fs", builder.written("shares", options.finish()));
    }
    if let Some(vsock) = &config.vsock {
        let options = new().pair("cid", vsock.cid).pair("socket", &vsock.socket);
        add("--vsock", builder.written("vsock.socket", options.finish()));
    }
    if let Some(balloon) = &config.balloon {
        let options = new()
            .pair("size", mib(balloon.size))
            .pair("deflate_on_oom", if balloon.deflate_on_oom { "on" } else { "off" })
            .pair("free_page_reporting", if balloon.free_page_reporting { "on" } else { "off" });
        add("--balloon", builder.written("balloon", options.finish()));
    }
    add("--rng", format!("src={}", config.rng.src));
    for device in &config.devices {
        add("--device", builder.written("devices", new().pair("path", &device.path).finish()));
    }
    if config.watchdog {
        arguments.push("--watchdog".to_owned());
    }
    arguments
}

fn memory_options(memory: &Memory) -> Options {
    let options = Options::new(Dialect::CloudHypervisor)
        .pair("size", mib(memory.size))
        .pair_if("shared", memory.shared.then_some("on"))
        .pair_if("mergeable", memory.mergeable.then_some("on"))
        .pair_if("hugepages", memory.hugepages.then_some("on"));
    match (memory.hotplug_size, memory.hotplugged_size) {
        (Some(most), Some(initial)) => options
            .pair("hotplug_method", "virtio-mem")
            .pair("hotplug_size", mib(most))
            .pair("hotplugged_size", mib(initial)),
        _ => options,
    }
}

fn platform_options(platform: &Platform) -> Options {
    let options = Options::new(Dialect::CloudHypervisor)
        .pair_if("system_uuid", platform.system_uuid.as_ref())
        .pair_if("uuid", platform.uuid.as_ref());
    if platform.oem_strings.is_empty() { options } else { options.list("oem_strings", &platform.oem_strings) }
}

fn disk_options(disk: &DiskConfig) -> Options {
    Options::new(Dialect::CloudHypervisor)
        .pair_if("path", disk.path.as_ref())
        .pair_if("vhost_user", disk.vhost_user.map(|_| "on"))
        .pair_if("socket", disk.vhost_socket.as_ref())
        .pair_if("readonly", disk.readonly.then_some("on"))
        .pair_if("direct", disk.direct.then_some("on"))
        .pair_if("num_queues", (disk.num_queues > 1).then_some(disk.num_queues))
        .pair_if("serial", disk.serial.as_ref())
        .pair_if("image_type", disk.image_type.map(ImageKind::option))
}

fn net_options(net: &Net) -> Options {
    let descriptors: Vec<_> = net.fds.iter().map(ToString::to_string).collect();
    let options = Options::new(Dialect::CloudHypervisor)
        .pair_if("tap", net.tap.as_ref())
        .pair_if("vhost_user", net.vhost_user.then_some("on"))
        .pair_if("socket", net.vhost_socket.as_ref());
    let options = if descriptors.is_empty() { options } else { options.list("fd", &descriptors) };
    options.pair("mac", &net.mac).pair_if("num_queues", (net.num_queues > 2).then_some(net.num_queues))
}

fn mib(bytes: u64) -> String {
    format!("{}M", bytes >> 20)
}
