//! Building the probe guest and parsing its output: see fixtures/probe-guest/README.md for the format.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

/// The built probe guest.
pub(crate) struct ProbeGuest {
    /// For qemu, cloud-hypervisor, firecracker and crosvm.
    pub(crate) elf: PathBuf,
    /// For kvmtool, and other hypervisors that boot a bzImage.
    pub(crate) bzimage: PathBuf,
}

/// Builds the probe guest, once per test program.
pub(crate) fn probe_guest() -> &'static ProbeGuest {
    static BUILT: OnceLock<ProbeGuest> = OnceLock::new();
    BUILT.get_or_init(|| {
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../fixtures/probe-guest/build.sh");
        let directory = Path::new(env!("CARGO_TARGET_TMPDIR")).join("probe-guest");
        let status = Command::new(&script).arg(&directory).status().expect("the build script of the probe guest runs");
        assert!(status.success(), "{} failed: gcc and binutils are needed", script.display());
        ProbeGuest { elf: directory.join("probe.elf"), bzimage: directory.join("probe.bzImage") }
    })
}

/// The report of the probe guest.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct ProbeReport {
    /// The boot protocol: `pvh`, `linux32`, `linux64`.
    pub(crate) boot: String,
    /// The kernel command line.
    pub(crate) command_line: String,
    /// The size and the FNV-1a hash of the initrd.
    pub(crate) initrd: Option<(u64, u64)>,
    /// The usable memory.
    pub(crate) memory_bytes: u64,
    /// The number of running processors.
    pub(crate) cpus: u32,
    /// The virtio devices, in the order in which Linux numbers them.
    pub(crate) devices: Vec<ProbeDevice>,
    /// Other PCI functions, `VVVV:DDDD`.
    pub(crate) functions: Vec<String>,
    /// Whether the report of the devices is complete.
    pub(crate) complete: bool,
    /// The shutdown request that it received while waiting.
    pub(crate) request: Option<String>,
    /// The balloon targets that it received, in pages of 4 KiB.
    pub(crate) balloon_targets: Vec<u64>,
    /// The lines that it received on the console.
    pub(crate) typed: Vec<String>,
    /// How it ended.
    pub(crate) end: Option<String>,
}

/// One virtio device.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct ProbeDevice {
    /// Its address: `mmio:...` or `pci:...`.
    pub(crate) place: String,
    /// Its kind: `blk`, `net`...
    pub(crate) name: String,
    /// The properties that it reports.
    pub(crate) fields: BTreeMap<String, String>,
}

impl ProbeDevice {
    /// Returns a field, which must exist.
    pub(crate) fn field(&self, name: &str) -> &str {
        self.fields.get(name).unwrap_or_else(|| panic!("{} has no `{name}`: {:?}", self.place, self.fields))
    }
}

impl ProbeReport {
    /// Returns the devices of one kind.
    pub(crate) fn named<'report>(&'report self, name: &str) -> Vec<&'report ProbeDevice> {
        self.devices.iter().filter(|device| device.name == name).collect()
    }

    /// Parses the console output. Ignores lines that are not the probe's, such as the hypervisor's.
    pub(crate) fn parse(console: &str) -> ProbeReport {
        let mut report = ProbeReport::default();
        for line in console.lines().map(|line| line.trim_end_matches('\r')) {
            let (word, rest) = line.split_once(' ').unwrap_or((line, ""));
            match word {
                "probe" => report.boot = fields(rest).remove("boot").unwrap_or_default(),
                "cmdline" => report.command_line = bracketed(rest).map(|(text, _)| text).unwrap_or_default(),
                "initrd" => {
                    let fields = fields(rest);
                    let hash = u64::from_str_radix(&fields["fnv1a64"], 16).expect("a hexadecimal hash");
                    report.initrd = Some((number(&fields, "size_bytes"), hash));
                }
                "memory" => report.memory_bytes = number(&fields(rest), "usable_bytes"),
                "cpus" => report.cpus = number(&fields(rest), "enabled") as u32,
                "device" => {
                    let mut fields = fields(rest);
                    let place = fields.remove("at").expect("a device has an address");
                    let name = fields.remove("name").expect("a device has a name");
                    report.devices.push(ProbeDevice { place, name, fields });
                }
                "function" => report.functions.extend(fields(rest).remove("id")),
                "devices" => report.complete = true,
                "request" => report.request = Some(rest.to_owned()),
                "balloon" => report.balloon_targets.push(number(&fields(rest), "target_pages")),
                "typed" => report.typed.extend(bracketed(rest).map(|(text, _)| text)),
                "end" => report.end = fields(rest).remove("action"),
                "failed" | "note" => panic!("the probe guest says: {line}\n{console}"),
                _ => {}
            }
        }
        report
    }
}

/// Returns the FNV-1a hash, 64 bits, as the probe computes it for the initrd.
pub(crate) fn fnv1a64(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3))
}

fn number(fields: &BTreeMap<String, String>, name: &str) -> u64 {
    fields[name].parse().unwrap_or_else(|_| panic!("`{name}` is not a number in {fields:?}"))
}

/// Parses `name=value` pairs, in which a value may be bracketed text.
fn fields(line: &str) -> BTreeMap<String, String> {
    let mut fields = BTreeMap::new();
    let mut rest = line.trim_start();
    while let Some((name, value)) = rest.split_once('=') {
        let (value, remaining) = bracketed(value).unwrap_or_else(|| {
            let (value, remaining) = value.split_once(' ').unwrap_or((value, ""));
            (value.to_owned(), remaining)
        });
        fields.insert(name.to_owned(), value);
        rest = remaining.trim_start();
    }
    fields
}

/// Parses `[text]` and its escapes, and returns the text and the rest.
fn bracketed(text: &str) -> Option<(String, &str)> {
    let (inside, rest) = text.strip_prefix('[')?.split_once(']')?;
    let mut bytes = Vec::new();
    let mut left = inside;
    while let Some((before, escape)) = left.split_once("\\x") {
        bytes.extend_from_slice(before.as_bytes());
        bytes.push(u8::from_str_radix(escape.get(..2)?, 16).ok()?);
        left = &escape[2..];
    }
    bytes.extend_from_slice(left.as_bytes());
    Some((String::from_utf8_lossy(&bytes).into_owned(), rest))
}

#[test]
fn a_report_is_parsed_between_lines_of_the_hypervisor() {
    let report = ProbeReport::parse(concat!(
        "SeaBIOS\nprobe format=1 boot=pvh base=00200000\r\ncmdline [a b\\x5d=c]\n",
        "initrd size_bytes=12 fnv1a64=664247110156a92e\nmemory usable_bytes=268041216\n",
        "cpus enabled=2 hotpluggable=2 source=acpi\n",
        "device at=mmio:0000feb02e00 type=2 name=blk sectors=2048 access=ro serial=[a b] first=[LL\\x00]\n",
        "devices reported\nrequest power-button\nend action=power-off\nend action=reset\n",
    ));
    assert_eq!(report.command_line, "a b]=c");
    assert_eq!(report.initrd, Some((12, 0x6642_4711_0156_a92e)));
    assert_eq!((report.memory_bytes, report.cpus, report.complete), (268_041_216, 2, true));
    assert_eq!(report.devices[0].field("serial"), "a b");
    assert_eq!(report.devices[0].field("first"), "LL\0");
    assert_eq!((report.request.as_deref(), report.end.as_deref()), (Some("power-button"), Some("reset")));
}
