//! A real Debian kernel and a real Nix closure on qemu without KVM, from the plan or image to a clean shutdown, as the
//! README describes it.

use crate::machine::{Running, TestMachine, find_on_path, missing, program_of, skipped};
use launcher::spec::{Hypervisor, MachineSpec};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;
use std::time::{Duration, Instant};

/// A bootable closure, built by fixtures/closure/build.sh.
pub(crate) struct Closure {
    directory: PathBuf,
    /// The directory that contains its store paths.
    store: PathBuf,
    /// The store path of its system.
    toplevel: String,
    store_paths: usize,
}

/// Returns the closure, which is built once; `None` where it cannot be built.
fn closure() -> Option<&'static Closure> {
    static BUILT: OnceLock<Option<Closure>> = OnceLock::new();
    BUILT
        .get_or_init(|| {
            let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
            let fixtures =
                std::env::var_os("MICROVM_FIXTURES").map_or_else(|| root.join("target/fixtures"), PathBuf::from);
            let built = Command::new(root.join("fixtures/closure/build.sh"))
                .arg("small")
                .env("MICROVM_FIXTURES", &fixtures)
                .output()
                .unwrap();
            if !built.status.success() {
                missing(&format!("no closure to boot: {}", String::from_utf8_lossy(&built.stderr)));
                return None;
            }
            let directory = fixtures.join("small");
            let read = |name: &str| fs::read_to_string(directory.join(name)).unwrap();
            let store_paths = read("closure-info/store-paths").lines().count();
            let toplevel = read("toplevel").trim().to_owned();
            Some(Closure { store: fixtures.join("store/nix/store"), toplevel, store_paths, directory })
        })
        .as_ref()
}

/// Returns the image builder: the one in `MICROVM_IMAGE`, next to `microvm`, or built now.
pub(crate) fn image_builder() -> PathBuf {
    if let Some(program) = std::env::var_os("MICROVM_IMAGE") {
        return program.into();
    }
    let beside = Path::new(env!("CARGO_BIN_EXE_microvm")).with_file_name("microvm-image");
    if !beside.exists() {
        let built = Command::new(env!("CARGO")).args(["build", "--quiet", "-p", "imagebuilder"]).status().unwrap();
        assert!(built.success(), "`cargo build -p imagebuilder` failed");
    }
    beside
}

/// Creates a machine of the closure, with these fields merged into its spec.
pub(crate) fn linux_machine(
    name: &str,
    parameters: &[&str],
    changes: Value,
) -> Option<(TestMachine, &'static Closure)> {
    if program_of(Hypervisor::Qemu).is_none() {
        missing("qemu is not installed");
        return None;
    }
    let closure = closure()?;
    let machine = TestMachine::new(name)?;
    let init = format!("init={}/init", closure.toplevel);
    let parameters = [&["quiet", init.as_str()], parameters].concat();
    let mut spec = json!({
        "version": 1, "name": name, "hypervisor": "qemu",
        "kernel": closure.directory.join("vmlinux"), "initrd": closure.directory.join("initrd"),
        "kernelParams": parameters,
        "qemu": {"accelerator": "tcg"},
    });
    spec.as_object_mut().unwrap().extend(changes.as_object().unwrap().clone());
    let spec: MachineSpec = serde_json::from_value(spec).unwrap();
    machine.write_spec(&spec);
    Some((machine, closure))
}

/// Builds an image of the closure in the machine's directory.
pub(crate) fn build_image(machine: &TestMachine, closure: &Closure) {
    let built = Command::new(image_builder())
        .args(["build", "--quiet", "--no-cache", "--closure-info"])
        .arg(closure.directory.join("closure-info"))
        .arg("--store-dir")
        .arg(&closure.store)
        .arg("--output")
        .arg(machine.path("store.squashfs"))
        .output()
        .unwrap();
    assert!(built.status.success(), "{}", String::from_utf8_lossy(&built.stderr));
}

/// Asserts that the guest has printed this line.
pub(crate) fn assert_output(console: &str, line: &str) {
    let printed = format!("guest: {line}");
    assert!(console.contains(&printed), "the guest has not printed `{printed}`:\n{console}");
}

fn run_to_the_end(machine: &TestMachine) -> String {
    let console = machine.start(&[]).end_well();
    assert_output(&console, "end=poweroff");
    console
}

#[test]
fn the_store_disk_is_built_from_its_plan_and_booted() {
    let spec =
        json!({"storeDisk": {"plan": "plan.json", "image": "store.squashfs", "cache": "cache", "serial": "store"}});
    let Some((machine, closure)) = linux_machine("plan", &[], spec) else { return };
    of_closure(&machine, closure, &["plan", "--output", "plan.json"]);
    let boot = || {
        let mut command = machine.microvm(&["run", "machine.json"]);
        command.env("MICROVM_IMAGE", image_builder());
        machine.start_command(command).end_well()
    };
    let console = boot();
    assert_output(&console, "disk=/dev/vda ");
    assert_output(&console, "mount=/nix/store type=squashfs device=/dev/vda ");
    assert_output(&console, &format!("store_paths={}\r", closure.store_paths));
    assert_output(&console, "store_writable=no");
    assert_output(&console, "end=poweroff");
    let image = fs::read(machine.path("store.squashfs")).unwrap();
    fs::remove_file(machine.path("store.squashfs")).unwrap();
    assert_output(&boot(), "store_writable=no");
    assert!(
        image == fs::read(machine.path("store.squashfs")).unwrap(),
        "the image that is rebuilt from the cache differs"
    );
}

/// The image builder's work on the closure.
fn of_closure(machine: &TestMachine, closure: &Closure, arguments: &[&str]) {
    let done = Command::new(image_builder())
        .args(arguments)
        .arg("--closure-info")
        .arg(closure.directory.join("closure-info"))
        .arg("--store-dir")
        .arg(&closure.store)
        .current_dir(machine.path(""))
        .output()
        .unwrap();
    assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
}

/// The process of the machine with these words in its command line.
pub(crate) fn process_of(machine: &TestMachine, words: &str) -> Option<i32> {
    let directory = fs::canonicalize(machine.path("")).unwrap();
    fs::read_dir("/proc").unwrap().find_map(|entry| {
        let path = entry.ok()?.path();
        let command_line = fs::read(path.join("cmdline")).ok()?;
        let is_it = String::from_utf8_lossy(&command_line).replace('\0', " ").contains(words);
        let is_here = fs::read_link(path.join("cwd")).is_ok_and(|place| place == directory);
        path.file_name()?.to_str()?.parse().ok().filter(|_| is_it && is_here)
    })
}

#[test]
fn a_guest_boots_from_the_hosts_store_without_an_image_and_survives_a_new_server() {
    let spec = json!({"storeDisk": {"plan": "plan.json", "live": true, "builder": image_builder()}});
    let parameters =
        ["systemd.mount-extra=/dev/disk/by-id/virtio-nix-store:/nix/store:erofs:ro", "guest.actions=report,wait"];
    let Some((machine, closure)) = linux_machine("live", &parameters, spec) else { return };
    of_closure(&machine, closure, &["plan", "--format", "erofs", "--output", "plan.json"]);
    let mut running = machine.start(&["--supervise"]);
    running.wait_for("guest: waiting");
    let console = running.console();
    assert_output(&console, "mount=/nix/store type=erofs device=/dev/disk/by-id/virtio-nix-store ");
    assert_output(&console, &format!("store_paths={}\r", closure.store_paths));
    assert_output(&console, "store_writable=no");

    let server = process_of(&machine, "serve --plan plan.json").expect("the server of the store disk runs");
    // Nix counts as a root what a process has open.
    let opened = fs::read_dir(format!("/proc/{server}/fd")).unwrap();
    let opened: Vec<_> = opened.filter_map(|entry| fs::read_link(entry.unwrap().path()).ok()).collect();
    let store = fs::canonicalize(&closure.store).unwrap();
    let held = opened.iter().filter(|path| path.parent() == Some(&store)).count();
    assert!(held >= closure.store_paths, "{held} of {} store paths are open", closure.store_paths);

    kill(Pid::from_raw(server), Signal::SIGKILL).unwrap();
    let replaced = || process_of(&machine, "serve --plan plan.json").is_some_and(|process| process != server);
    wait_until("another server of the store disk", replaced);
    stop_gracefully(&machine, &mut running);
    assert!(!machine.path("live-store.sock").exists(), "the server's socket is left");
    let large = fs::read_dir(machine.path("")).unwrap().filter(|entry| {
        let metadata = entry.as_ref().unwrap().metadata().unwrap();
        metadata.is_file() && metadata.len() > 1 << 20
    });
    assert_eq!(large.count(), 0, "something of the size of an image was written");
}

#[test]
fn a_guest_maps_the_store_as_persistent_memory() {
    let spec = json!({"storeDisk": {"image": "store.erofs", "transport": "pmem"}});
    let parameters = ["systemd.mount-extra=/dev/pmem0:/nix/store:erofs:ro,dax=always"];
    let Some((machine, closure)) = linux_machine("pmem", &parameters, spec) else { return };
    of_closure(
        &machine,
        closure,
        &["build", "--quiet", "--no-cache", "--format", "erofs", "--dax", "--output", "store.erofs"],
    );
    let before = fs::read(machine.path("store.erofs")).unwrap();
    let console = run_to_the_end(&machine);
    assert_output(&console, "mount=/nix/store type=erofs device=/dev/pmem0 ");
    assert_output(&console, &format!("store_paths={}\r", closure.store_paths));
    assert_output(&console, "store_writable=no");
    assert!(before == fs::read(machine.path("store.erofs")).unwrap(), "the guest has changed the image");
}

/// Changes one bit of a file.
fn flip_bit(path: &Path, position: usize) {
    let mut content = fs::read(path).unwrap();
    content[position] ^= 1;
    fs::write(path, content).unwrap();
}

/// Adds to the machine's initrd what opens a sealed store disk: the script of the guest's module, and Debian's veritysetup
/// with its libraries. systemd-veritysetup has the option `hash-offset` from version 254 on, and Debian 12 has 252, so its
/// arguments are translated. `further` are the shell commands that follow.
fn add_veritysetup(machine: &TestMachine, closure: &Closure, further: &str) -> Option<()> {
    let Some(program) = find_on_path("veritysetup") else {
        missing("veritysetup is not installed");
        return None;
    };
    let root = machine.path("added");
    fs::create_dir_all(root.join("sealed")).unwrap();
    fs::create_dir_all(root.join("lib64")).unwrap();
    let used = Command::new("ldd").arg(&program).output().unwrap();
    let used = String::from_utf8(used.stdout).unwrap();
    let libraries = used.split_whitespace().filter(|word| word.starts_with('/')).map(Path::new);
    for file in libraries.chain([program.as_path()]) {
        fs::copy(file, root.join("sealed").join(file.file_name().unwrap())).unwrap();
    }
    let interpreter = "/lib64/ld-linux-x86-64.so.2";
    fs::copy(interpreter, root.join(&interpreter[1..])).unwrap();
    let modules = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().join("nixos-modules/microvm");
    fs::copy(modules.join("open-sealed-store.sh"), root.join("sealed/open.sh")).unwrap();
    let systemd = "#!/bin/sh\n[ \"$1\" = attach ] || exit 1\n\
                   LD_LIBRARY_PATH=/sealed exec /sealed/veritysetup open \"$3\" \"$2\" \"$4\" \"$5\" \"--$6\"\n";
    testing::write_program(&root.join("sealed/systemd-veritysetup"), systemd);
    let script = "#!/bin/sh\nmodprobe dm-verity\ndisk=/dev/vda veritysetup=/sealed/systemd-veritysetup\n\
                  . /sealed/open.sh\n";
    testing::write_program(&root.join("before-mounts"), &format!("{script}{further}"));
    let archive = Command::new("sh")
        .args(["-c", "cat \"$0\"; find . | cpio --quiet --create --format=newc"])
        .arg(closure.directory.join("initrd"))
        .current_dir(&root)
        .output()
        .unwrap();
    assert!(archive.status.success(), "{}", String::from_utf8_lossy(&archive.stderr));
    fs::write(machine.path("initrd"), archive.stdout).unwrap();
    Some(())
}

#[test]
fn a_guest_boots_from_a_sealed_erofs_and_does_not_read_changed_bits() {
    // The superblock begins at 1024.
    boot_sealed("erofs", 1024 + 20);
}

#[test]
fn a_guest_boots_from_a_sealed_squashfs_and_does_not_read_changed_bits() {
    boot_sealed("squashfs", 20);
}

/// Boots from a sealed image, in a guest that also opens three copies of it: in each, one bit is changed, in the content of
/// a file, in the superblock at this position, and in the hash tree. Then changes what the launcher checks itself.
fn boot_sealed(format: &str, superblock: usize) {
    let volume = |name: &str| json!({"image": name, "autoCreate": false, "readOnly": true});
    let image = format!("store.{format}");
    let spec = json!({
        "storeDisk": {"image": image, "verity": true},
        "volumes": [volume("data.img"), volume("superblock.img"), volume("tree.img")],
        "initrd": "initrd",
    });
    let parameter = format!("systemd.mount-extra=/dev/mapper/nix-store:/nix/store:{format}:ro");
    let Some((machine, closure)) = linux_machine(&format!("sealed-{format}"), &[&parameter], spec) else { return };
    let build = ["build", "--quiet", "--no-cache", "--format", format, "--verity", "--output", &image];
    of_closure(&machine, closure, &build);
    let image = machine.path(&image);
    let good = fs::read(&image).unwrap();
    let seal_path = machine.path(&format!("store.{format}.verity.json"));
    let seal: Value = serde_json::from_slice(&fs::read(&seal_path).unwrap()).unwrap();
    let (root_hash, tree) = (seal["rootHash"].as_str().unwrap(), seal["hashOffsetBytes"].as_u64().unwrap() as usize);

    let data = if format == "erofs" {
        // The data of a large file begin at a block.
        let content = fs::read(closure.store.join(shell_of(closure))).unwrap();
        good.chunks(4096).position(|block| block == &content[..4096]).unwrap() * 4096 + 100
    } else {
        // The tables are at the end, and the content of files, which is compressed, takes up most of the rest.
        tree / 2
    };
    // The lowest level of the tree is the last; it begins with the hash of the block of the superblock.
    let lowest = good.len() - (tree / 4096).div_ceil(128) * 4096;
    for (name, position) in [("data.img", data), ("superblock.img", superblock), ("tree.img", lowest + 1)] {
        fs::copy(&image, machine.path(name)).unwrap();
        flip_bit(&machine.path(name), position);
    }
    let check = format!(
        "for disk in vdb vdc vdd; do\n\
           /sealed/systemd-veritysetup attach $disk /dev/$disk /dev/$disk {root_hash} hash-offset={tree} || exit 1\n\
         done\n\
         for disk in nix-store vdb vdc vdd; do\n\
           mkdir -p /mnt; result=refused\n\
           if mount -t {format} -o ro /dev/mapper/$disk /mnt; then\n\
             result=readable; find /mnt -type f -exec cat {{}} + >/dev/null || result=unreadable; umount /mnt\n\
           fi\n\
           echo guest: $disk=$result\n\
         done\n"
    );
    let Some(()) = add_veritysetup(&machine, closure, &check) else { return };
    let console = run_to_the_end(&machine);
    assert_output(&console, &format!("mount=/nix/store type={format} device=/dev/mapper/nix-store "));
    assert_output(&console, &format!("store_paths={}\r", closure.store_paths));
    for result in ["nix-store=readable", "vdb=unreadable", "vdc=refused", "vdd=refused"] {
        assert_output(&console, result);
    }

    // The launcher itself checks the superblock of the tree, and the block with the root.
    for position in [tree + 9, tree + 4096 + 9] {
        flip_bit(&image, position);
        let refused = machine.output(&["run", "machine.json"]);
        let printed = String::from_utf8_lossy(&refused.stderr);
        assert!(
            printed.contains("storeDisk.verity: ") && printed.contains(" does not belong to "),
            "{position}: {printed}"
        );
        flip_bit(&image, position);
    }
    fs::remove_file(&seal_path).unwrap();
    let printed = machine.output(&["run", "machine.json"]).stderr;
    assert!(String::from_utf8_lossy(&printed).contains(&format!("store.{format}.verity.json")));
}

/// The shell that the system's init names, relative to the store.
fn shell_of(closure: &Closure) -> String {
    let init = closure.store.join(closure.toplevel.trim_start_matches("/nix/store/")).join("init");
    let init = fs::read_to_string(init).unwrap();
    let program = init.lines().next().unwrap().trim_start_matches("#!").split_whitespace().next().unwrap();
    program.trim_start_matches("/nix/store/").to_owned()
}

/// Polls for at most two minutes.
pub(crate) fn wait_until(what: &str, is_so: impl Fn() -> bool) {
    let end = Instant::now() + Duration::from_secs(120);
    while !is_so() {
        assert!(Instant::now() < end, "there is no {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

#[test]
fn the_overlay_keeps_a_file_across_a_reboot() {
    let parameters = [
        "guest.actions=report,persist",
        "systemd.mount-extra=/dev/vda:/nix/.ro-store:squashfs:ro",
        "systemd.mount-extra=/dev/vdb:/nix/.rw-store:ext4:rw",
        "systemd.mount-extra=overlay:/nix/store:overlay:\
         lowerdir=/nix/.ro-store,upperdir=/nix/.rw-store/store,workdir=/nix/.rw-store/work",
    ];
    let spec = json!({
        "storeDisk": {"image": "store.squashfs"},
        "volumes": [{"image": "overlay.img", "size": 64, "label": "rw-store", "serial": "rw", "mountPoint": "/nix/.rw-store"}],
        "writableStoreOverlay": "/nix/.rw-store",
    });
    let Some((machine, closure)) = linux_machine("overlay", &parameters, spec) else { return };
    build_image(&machine, closure);
    let first = run_to_the_end(&machine);
    assert_output(&first, "disk=/dev/vdb bytes=67108864 read_only=0 serial=rw");
    assert_output(&first, "mount=/nix/store type=overlay ");
    assert_output(&first, "store_writable=yes");
    assert_output(&first, "persisted=new");
    assert_output(&run_to_the_end(&machine), "persisted=found");
}

#[test]
fn a_9p_share_shows_the_closure_only_and_paths_that_are_added() {
    closure_only("9p", "trans=virtio,version=9p2000.L,msize=65536,ro", &json!({}));
}

#[test]
fn a_virtiofs_share_shows_the_closure_only_and_paths_that_are_added() {
    let Ok(daemon) = std::env::var("MICROVM_TEST_VIRTIOFSD") else {
        return skipped("MICROVM_TEST_VIRTIOFSD is not set, and Debian 12 has no virtiofsd with these options");
    };
    closure_only("virtiofs", "ro", &json!({"program": daemon}));
}

/// Boots from a share that lacks one store path, to which a symbolic link of the closure leads, and adds the path. The guest
/// looks for the path first, and caches files as the NixOS module sets it.
fn closure_only(protocol: &str, options: &str, virtiofsd: &Value) {
    let Some(closure) = closure() else { return };
    let list = fs::read_to_string(closure.directory.join("closure-info/store-paths")).unwrap();
    let (hidden, shown): (Vec<&str>, Vec<&str>) = list.lines().partition(|path| path.ends_with("-initrd"));
    let [hidden] = hidden[..] else { panic!("{list}") };
    let spec = json!({
        "shares": [{
            "proto": protocol, "tag": "ro-store", "source": closure.store, "closure": "closure",
            "mountPoint": "/nix/store", "readOnly": true, "cache": "always",
        }, {
            "proto": protocol, "tag": "tools", "source": "tools", "mountPoint": "/tools", "readOnly": true,
        }],
        "virtiofsd": virtiofsd,
    });
    let inode = |path: &Path| fs::metadata(path).unwrap().ino();
    let outside =
        [closure.store.join(&hidden[11..]), closure.store.clone(), "/etc/passwd".into()].map(|path| inode(&path));
    let guess = format!("guest.run=/tools/handles,guess,/nix/store,500,{},{},{}", outside[0], outside[1], outside[2]);
    let tools = format!("systemd.mount-extra=tools:/tools:{protocol}:{options}");
    let mount = format!("systemd.mount-extra=ro-store:/nix/store:{protocol}:{options}");
    let (above, link) = (format!("{}/../{}", closure.toplevel, &hidden[11..]), format!("{}/initrd", closure.toplevel));
    // A hard link to a file of any path of the host's store.
    let optimised = closure.store.join(".links/0000000000000000000000000000000000000000000000000000");
    fs::create_dir_all(optimised.parent().unwrap()).unwrap();
    fs::write(&optimised, "").unwrap();
    let optimised = Path::new("/nix/store/.links").join(optimised.file_name().unwrap()).display().to_string();
    let paths = format!("guest.paths=/nix/store/.links,{optimised},{hidden},{above},{link}");
    let parameters = [mount.as_str(), &tools, &paths, &guess, "guest.actions=report,reach,run,appear"];
    let Some((machine, _)) = linux_machine("part", &parameters, spec) else { return };
    fs::write(machine.path("closure"), shown.join("\n")).unwrap();
    fs::create_dir(machine.path("tools")).unwrap();
    testing::file_handles(&machine.path("tools"));
    let mut running = machine.start(&["--supervise"]);
    running.wait_for("guest: waiting for");
    let console = running.console();
    assert_output(&console, &format!("mount=/nix/store type={protocol} device=ro-store "));
    assert_output(&console, &format!("store_paths={}\r", closure.store_paths - 1));
    assert_output(&console, "store_writable=no");
    assert!(!console.contains("disk=/dev/vda"), "there is a disk:\n{console}");
    assert!(!console.contains("mount=/nix/store/"), "a store path is a mount:\n{console}");
    assert!(!console.contains("Multiple devices detected"), "qemu warns of equal inode numbers:\n{console}");
    // Nix requires it when it opens a store as root.
    assert_output(&console, "exists=/nix/store/.links\r");
    for path in [&optimised, hidden, &above, &link] {
        assert_output(&console, &format!("missing={path}\r"));
    }
    let handles = console
        .lines()
        .find_map(|line| line.split_once("guest: handles="))
        .expect("the handles are guessed")
        .1
        .trim_end();
    assert!(handles.ends_with(" outside=0"), "{handles}");
    if protocol == "virtiofs" {
        assert!(!handles.starts_with("0 "), "the handle of the share's root works");
        let daemons = descendants(process_of(&machine, "serve-view --source").expect("the view is served"));
        assert!(!daemons.is_empty(), "virtiofsd runs");
        for process in daemons {
            let status = fs::read_to_string(format!("/proc/{process}/status")).unwrap();
            let permitted = status.lines().find_map(|line| line.strip_prefix("CapPrm:\t")).unwrap();
            let permitted = u64::from_str_radix(permitted, 16).unwrap();
            // CAP_DAC_READ_SEARCH, see open_by_handle_at(2)
            assert_eq!(permitted & 1 << 2, 0, "{process} can open all files by their handles");
        }
    }
    let other = machine.output(&["share-path", "part", "/etc/passwd"]);
    assert!(String::from_utf8_lossy(&other.stderr).contains("`/etc/passwd` is not a store path"));
    assert_eq!(other.status.code(), Some(2));
    let added = machine.output(&["share-path", "part", hidden]);
    assert!(added.status.success(), "{}", String::from_utf8_lossy(&added.stderr));
    assert_output(&running.end_well(), "end=poweroff");
    let sockets = ["part-ro-store.paths", "part-virtiofs-ro-store.sock"].map(|name| machine.path(name).exists());
    assert_eq!(sockets, [false; 2], "a socket is left");
}

/// Returns the processes that a process has started, and those that they have started.
fn descendants(process: i32) -> Vec<i32> {
    let children = fs::read_to_string(format!("/proc/{process}/task/{process}/children")).unwrap();
    let children: Vec<i32> = children.split_whitespace().map(|child| child.parse().unwrap()).collect();
    children.iter().flat_map(|child| [vec![*child], descendants(*child)].concat()).collect()
}

#[test]
fn the_store_is_mounted_over_virtiofs_without_a_disk() {
    let Some(closure) = closure() else { return };
    let Ok(daemon) = std::env::var("MICROVM_TEST_VIRTIOFSD") else {
        return skipped("MICROVM_TEST_VIRTIOFSD is not set, and Debian 12 has no virtiofsd with these options");
    };
    let spec = json!({
        "shares": [{
            "proto": "virtiofs", "tag": "ro-store", "source": closure.store, "mountPoint": "/nix/store", "readOnly": true,
        }],
        "virtiofsd": {"program": daemon},
    });
    let parameters = ["systemd.mount-extra=ro-store:/nix/store:virtiofs:ro"];
    let Some((machine, _)) = linux_machine("virtiofs", &parameters, spec) else { return };
    // Once unsupervised, where the daemon must end with the hypervisor, and once supervised.
    for options in [[].as_slice(), &["--supervise"]] {
        let console = machine.start(options).end_well();
        assert_output(&console, "mount=/nix/store type=virtiofs device=ro-store ");
        assert_output(&console, "store_writable=no");
    }
    let daemons = machine.launch().needs.processes;
    assert!(!daemons[0].socket.below(&machine.launch().working_directory).as_path().exists());
}

#[test]
fn a_forwarded_port_responds_and_stop_is_graceful() {
    let spec = json!({
        "storeDisk": {"image": "store.squashfs"},
        "interfaces": [{"type": "user", "id": "net0", "mac": "02:00:00:00:00:11"}],
        "forwardPorts": [{"host": {"address": "127.0.0.1", "port": 18080}, "guest": {"port": 80}}],
    });
    let Some((machine, closure)) = linux_machine("forward", &["guest.actions=network,serve,wait"], spec) else {
        return;
    };
    build_image(&machine, closure);
    let mut running = machine.start(&["--supervise"]);
    running.wait_for("guest: waiting");
    assert_output(&running.console(), "interface=");
    let page =
        machine.namespace.run("curl", &["--silent", "--show-error", "--max-time", "60", "http://127.0.0.1:18080/"]);
    assert!(page.starts_with("hello from the guest, "), "{page}");
    stop_gracefully(&machine, &mut running);
}

#[test]
fn a_guest_behind_a_tap_responds_to_ping() {
    let spec = json!({
        "storeDisk": {"image": "store.squashfs"},
        "interfaces": [{"type": "tap", "id": "vm-tap", "mac": "02:00:00:00:00:12"}],
    });
    let parameters = ["guest.actions=network,wait", "guest.address=10.78.0.2/24"];
    let Some((machine, closure)) = linux_machine("tap", &parameters, spec) else { return };
    build_image(&machine, closure);
    let mut running = machine.start(&[]);
    running.wait_for("guest: waiting");
    assert_output(&running.console(), "interface=");
    assert!(running.console().contains("mac=02:00:00:00:00:12 address=10.78.0.2/24"), "{}", running.console());
    machine.namespace.run("ip", &["addr", "add", "10.78.0.1/24", "dev", "vm-tap"]);
    machine.namespace.run("ping", &["-c", "2", "-W", "30", "10.78.0.2"]);
    stop_gracefully(&machine, &mut running);
}

pub(crate) fn stop_gracefully(machine: &TestMachine, running: &mut Running<'_>) {
    let stop = machine.output(&["stop", &machine.name, "--timeout", "120"]);
    let printed = String::from_utf8_lossy(&stop.stderr).into_owned();
    assert_eq!(printed, format!("{} has shut down\n", machine.name));
    let console = running.end_well();
    assert_output(&console, "stopping=power-button");
    assert_output(&console, "end=poweroff");
}
