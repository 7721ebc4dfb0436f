//! `benches boot`: boots an emulated guest from each tool's image of one closure, until the guest has listed its store
//! and powered off.
//!
//! The closure is the fixture `system` with about 180 store paths; `microvm run` starts the machine.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::json;

use crate::error::{Error, file};
use crate::store_tree::StoreTree;
use crate::timings::Timings;
use crate::tool::{Cache, Programs, Source, Tool};
use crate::workspace;

/// Boots from the images of our tool and of microvm.nix's two tools, each with its defaults.
///
/// # Errors
/// When an image can't be made, or a guest does not report the whole closure.
pub fn run(rounds: usize) -> Result<Timings, Error> {
    let programs = Programs::prepare()?;
    let microvm = workspace::release_program("launcher", "microvm")?;
    let fixture = workspace::fixture("system")?;
    let directory =
        tempfile::tempdir_in(workspace::fixtures()).map_err(file("create a directory in", workspace::fixtures()))?;
    let store_paths = link_closure(&fixture, directory.path())?;
    let tree = StoreTree::unchanging(directory.path());
    let ours = Tool::Ours { packing: None, source: Source::ClosureInfo, cache: Cache::None };
    let tools = [
        ("microvm-image", ours, "squashfs"),
        ("gensquashfs -c zstd (microvm.nix)", Tool::Gensquashfs(None), "squashfs"),
        ("mkfs.erofs lz4hc (microvm.nix)", Tool::MkfsErofs, "erofs"),
    ];
    let mut commands = Vec::new();
    for (number, (name, tool, filesystem)) in tools.into_iter().enumerate() {
        let image = directory.path().join(format!("{number}.image"));
        workspace::run(&mut tool.command(&programs, &tree, &image))?;
        let spec = write_machine(directory.path(), number, &fixture, (&image, filesystem))?;
        let mut command = Command::new(&microvm);
        command.args(["run", "--accel", "tcg", "--state-dir"]).arg(directory.path()).arg(&spec);
        let console = workspace::run(command.stdin(std::process::Stdio::null()))?;
        let expected = format!("guest: store_paths={store_paths}");
        if !console.lines().any(|line| line.trim_end() == expected) {
            return Err(Error::Unexpected(format!("{name}: no line `{expected}` on the guest's console:\n{console}")));
        }
        crate::message(&format!("boot: {name} boots"));
        commands.push((name.to_owned(), command));
    }
    let title =
        format!("Booting an emulated guest from the image of {store_paths} store paths, until it has powered off");
    Timings::measure(&title, &mut commands, rounds)
}

/// Links exactly the closure into `store/` and copies its `closure-info`; returns how many store paths it has.
fn link_closure(fixture: &Path, directory: &Path) -> Result<usize, Error> {
    let list = fixture.join("closure-info/store-paths");
    let text = fs::read_to_string(&list).map_err(file("read", &list))?;
    let all = workspace::fixtures().join("store/nix/store");
    let paths: Vec<PathBuf> =
        text.lines().filter_map(|path| Path::new(path).file_name()).map(|name| all.join(name)).collect();
    let store = directory.join("store");
    fs::create_dir(&store).map_err(file("make", &store))?;
    workspace::run(Command::new("cp").arg("-al").args(&paths).arg(&store))?;
    workspace::run(Command::new("cp").arg("-a").arg(fixture.join("closure-info")).arg(directory))?;
    Ok(paths.len())
}

fn write_machine(
    directory: &Path,
    number: usize,
    fixture: &Path,
    (image, filesystem): (&Path, &str),
) -> Result<PathBuf, Error> {
    let toplevel = fixture.join("toplevel");
    let toplevel = fs::read_to_string(&toplevel).map_err(file("read", &toplevel))?;
    let machine = json!({
        "version": 1,
        "name": "boot",
        "hypervisor": "qemu",
        "kernel": fixture.join("vmlinux"),
        "initrd": fixture.join("initrd"),
        "storeDisk": { "image": image },
        "kernelParams": [
            "quiet",
            format!("tsc_early_khz={}", workspace::tsc_khz()?),
            format!("init={}/init", toplevel.trim()),
            "guest.actions=report",
            format!("systemd.mount-extra=/dev/vda:/nix/store:{filesystem}:ro"),
        ],
    });
    let spec = directory.join(format!("{number}.json"));
    fs::write(&spec, machine.to_string()).map_err(file("write", &spec))?;
    Ok(spec)
}
