//! `benches start-up`: the time of `microvm run` until it executes the hypervisor.
//!
//! `true` replaces the hypervisor, first in the search path, so that only the launcher is measured: reading and
//! checking the spec, inspecting the host, lowering, and the exec.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::Command;

use serde_json::json;

use crate::error::{Error, file};
use crate::timings::Timings;
use crate::workspace;

const VOLUMES: usize = 4;
const VOLUME_BYTES: u64 = 1 << 20;

/// Starts a machine with ten devices `rounds` times, in turn with `true` alone.
///
/// # Errors
/// When `microvm` can't be built or refuses the spec.
pub fn run(rounds: usize) -> Result<Timings, Error> {
    let microvm = workspace::release_program("launcher", "microvm")?;
    let directory = tempfile::tempdir().map_err(file("create a directory in", std::env::temp_dir()))?;
    let spec = write_machine(directory.path())?;
    let path = std::env::var("PATH").unwrap_or_default();
    let search_path = format!("{}:{path}", directory.path().join("bin").display());
    let mut check = Command::new(&microvm);
    check.arg("check").arg(&spec);
    let mut run = Command::new(&microvm);
    run.args(["run", "--accel", "tcg"]).arg(&spec).arg("--state-dir").arg(directory.path()).env("PATH", &search_path);
    let named = [("true", Command::new("true")), ("microvm check", check), ("microvm run, ten devices", run)];
    let mut commands = named.map(|(name, command)| (name.to_owned(), command));
    Timings::measure("Start-up: until `microvm` has become the hypervisor", &mut commands, rounds)
}

/// Writes the spec of a machine with a store disk, four volumes, two interfaces, a 9p share, a balloon and the random
/// number generator, and returns its path.
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

/// Returns the part of a Linux kernel that the launcher reads: `HdrS` in the boot sector (the kernel's
/// Documentation/arch/x86/boot.rst).
fn bz_image_header() -> Vec<u8> {
    let mut image = vec![0; 4096];
    image[0x1fe..0x200].copy_from_slice(&[0x55, 0xaa]);
    image[0x202..0x206].copy_from_slice(b"HdrS");
    image
}
