//! `benches start-up`: what `microvm run` takes before the hypervisor runs.
//!
//! The hypervisor is replaced by `true`, found first in the search path, so all that is left is the launcher: reading and
//! checking the spec, looking at the host, lowering, and the exec.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::Command;

use serde_json::json;

use crate::error::{Error, file};
use crate::measure::{self, Cost};
use crate::statistics::{markdown, spread};
use crate::workspace;

const VOLUMES: usize = 4;
const VOLUME_BYTES: u64 = 1 << 20;

/// A program that was started many times.
#[derive(Debug)]
pub struct StartUp {
    /// What was started.
    pub name: String,
    /// A cost each round.
    pub costs: Vec<Cost>,
}

/// Starts a machine with ten devices `rounds` times, in turn with `true` alone.
///
/// # Errors
/// When `microvm` can't be built or refuses the spec.
pub fn run(rounds: usize) -> Result<Vec<StartUp>, Error> {
    let microvm = workspace::release_program("launcher", "microvm")?;
    let directory = tempfile::tempdir().map_err(file("make a directory in", std::env::temp_dir()))?;
    let spec = write_machine(directory.path())?;
    let path = std::env::var("PATH").unwrap_or_default();
    let search_path = format!("{}:{path}", directory.path().join("bin").display());
    let start = |arguments: [&str; 3]| {
        let mut command = Command::new(&microvm);
        command.args(arguments).arg(&spec).arg("--state-dir").arg(directory.path()).env("PATH", &search_path);
        command
    };
    let mut results = ["true", "microvm check", "microvm run, ten devices"]
        .map(|name| StartUp { name: name.to_owned(), costs: Vec::new() });
    for _ in 0..rounds {
        let mut check = Command::new(&microvm);
        check.arg("check").arg(&spec);
        let commands = [Command::new("true"), check, start(["run", "--accel", "tcg"])];
        for (result, mut command) in results.iter_mut().zip(commands) {
            result.costs.push(measure::run(&mut command)?);
        }
    }
    Ok(results.into())
}

/// A store disk, four volumes, two interfaces, a 9p share, a balloon and the random number generator; returns the spec.
fn write_machine(directory: &Path) -> Result<std::path::PathBuf, Error> {
    let bin = directory.join("bin");
    fs::create_dir(&bin).map_err(file("make", &bin))?;
    let program = bin.join("qemu-system-x86_64");
    symlink("/bin/true", &program).map_err(file("link", &program))?;
    let touch = |name: &str| -> Result<String, Error> {
        let path = directory.join(name);
        fs::File::create(&path).and_then(|made| made.set_len(VOLUME_BYTES)).map_err(file("write", &path))?;
        Ok(path.display().to_string())
    };
    let kernel = directory.join("kernel");
    fs::write(&kernel, bz_image_header()).map_err(file("write", &kernel))?;
    let volumes = (0..VOLUMES)
        .map(|number| Ok(json!({ "image": touch(&format!("volume-{number}"))?, "autoCreate": false, "mountPoint": format!("/volumes/{number}") })))
        .collect::<Result<Vec<_>, Error>>()?;
    let interfaces: Vec<_> =
        (1..=2).map(|number| json!({ "type": "user", "id": format!("net{number}"), "mac": format!("02:00:00:00:00:0{number}") })).collect();
    let machine = json!({
        "version": 1,
        "name": "start-up",
        "hypervisor": "qemu",
        "kernel": kernel,
        "initrd": touch("initrd")?,
        "storeDisk": { "image": touch("store")? },
        "volumes": volumes,
        "interfaces": interfaces,
        "shares": [{ "proto": "9p", "tag": "home", "source": directory, "mountPoint": "/home" }],
        "balloon": true,
    });
    let spec = directory.join("machine.json");
    fs::write(&spec, machine.to_string()).map_err(file("write", &spec))?;
    Ok(spec)
}

/// As much of a Linux kernel as the launcher looks at: `HdrS` in the boot sector (the kernel's
/// Documentation/arch/x86/boot.rst).
fn bz_image_header() -> Vec<u8> {
    let mut image = vec![0; 4096];
    image[0x1fe..0x200].copy_from_slice(&[0x55, 0xaa]);
    image[0x202..0x206].copy_from_slice(b"HdrS");
    image
}

/// Milliseconds from start to end.
#[must_use]
pub fn table(results: &[StartUp]) -> String {
    let header = ["milliseconds", "median", "minimum", "maximum", "peak MiB"].map(String::from);
    let rows: Vec<Vec<String>> = results
        .iter()
        .filter_map(|result| {
            let spread = spread(&result.costs.iter().map(|cost| cost.seconds * 1000.0).collect::<Vec<_>>())?;
            let peak = result.costs.iter().map(|cost| cost.peak_memory_bytes).max().unwrap_or(0) / (1 << 20);
            let number = |value: f64| format!("{value:.2}");
            Some(vec![
                result.name.clone(),
                number(spread.median),
                number(spread.minimum),
                number(spread.maximum),
                peak.to_string(),
            ])
        })
        .collect();
    markdown(&header, &rows)
}
