//! `microvm check --host` reports before the start what would make it fail: the content of volumes, places where they
//! cannot be created, and missing permissions of the machine's user.

#![allow(clippy::unwrap_used, reason = "a test reports by failing")]

use serde_json::{Value, json};
use std::fs;
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::process::Command;

#[path = "host_check/namespaces.rs"]
mod namespaces;
#[path = "host_check/own_files.rs"]
mod own_files;
#[path = "host_check/volume_content.rs"]
mod volume_content;

/// A machine whose hypervisor is a program that does nothing.
struct Host {
    directory: tempfile::TempDir,
}

impl Host {
    fn new() -> Self {
        let host = Self { directory: tempfile::tempdir().unwrap() };
        fs::set_permissions(host.path(""), fs::Permissions::from_mode(0o755)).unwrap();
        fs::create_dir(host.path("bin")).unwrap();
        let mut kernel = vec![0; 0x400];
        kernel[0x202..0x206].copy_from_slice(b"HdrS");
        fs::write(host.path("bzImage"), kernel).unwrap();
        host
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// Returns the output of `microvm` for the machine with these fields, and whether the command succeeded.
    fn say(&self, command: &[&str], fields: Value) -> (bool, String) {
        let mut spec = json!({"version": 1, "name": "web", "kernel": "bzImage", "qemu": {"accelerator": "tcg", "program": "/bin/true"}});
        spec.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
        fs::write(self.path("web.json"), spec.to_string()).unwrap();
        let path = format!("{}:{}", self.path("bin").display(), std::env::var("PATH").unwrap());
        let mut microvm = Command::new(env!("CARGO_BIN_EXE_microvm"));
        microvm.args(command).arg("web.json").current_dir(self.path("")).env("PATH", path);
        microvm.env("MICROVM_RUNTIME_DIR", self.path("run")).env_remove("NOTIFY_SOCKET").env_remove("MICROVM_NAME");
        let output = microvm.output().unwrap();
        (output.status.success(), String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned())
    }

    fn check(&self, fields: Value) -> String {
        self.say(&["check", "--host"], fields).1
    }
}

#[test]
fn a_cpu_that_qemu_does_not_have_and_memory_that_it_cannot_reserve_failed_after_everything_was_made() {
    let host = Host::new();
    for model in ["help", "?"] {
        let printed = host.check(json!({"cpu": model}));
        assert!(printed.contains("web: cpu: would print the models"), "{printed}");
    }
    let Ok(program) = launcher::programs::find_program(&"qemu-system-x86_64".into()) else {
        return testing::missing("qemu-system-x86_64 is not installed");
    };
    let qemu = json!({"accelerator": "tcg", "program": program});
    let volumes = json!([{"image": "var.img", "size": 1}]);
    let mut cases = vec![
        (json!({"cpu": "no-such-cpu"}), "cpu: unable to find CPU model 'no-such-cpu'; `"),
        (json!({"cpu": "qemu64,+no-such"}), "cpu: Property 'qemu64-x86_64-cpu.no-such' not found; `"),
        (json!({"cpu": "max,level=x"}), "Parameter 'level' expects uint64; `"),
    ];
    if fs::read_to_string("/proc/sys/vm/overcommit_memory").is_ok_and(|mode| mode.trim() == "0") {
        cases.push((json!({"mem": 1 << 26}), "mem: qemu reserves all 67108864 MiB at the start"));
        cases.push((json!({"hotplugMem": 1 << 26}), "hotplugMem: qemu reserves all 67108864 MiB at the start"));
    }
    for (mut fields, reason) in cases {
        fields["qemu"] = qemu.clone();
        fields["volumes"] = volumes.clone();
        assert_refused_by_both(&host, &[], &fields, reason);
        assert!(!host.path("var.img").exists() && !host.path("web.suspended").exists(), "{fields}");
    }
    for model in ["qemu64,-svm", "max"] {
        let (succeeded, printed) = host.say(&["check", "--host"], json!({"cpu": model, "qemu": qemu}));
        assert!(succeeded, "{printed}");
    }
}

#[test]
fn a_fifo_in_the_place_of_a_file_kept_the_hypervisor_waiting_and_a_directory_was_locked_and_reported_twice() {
    let host = Host::new();
    nix::unistd::mkfifo(&host.path("fifo"), nix::sys::stat::Mode::S_IRWXU).unwrap();
    fs::create_dir(host.path("directory")).unwrap();
    for (fields, option) in [
        (json!({"kernel": "fifo"}), "kernel"),
        (json!({"initrd": "fifo"}), "initrd"),
        (json!({"storeDisk": {"image": "fifo"}}), "storeDisk.image"),
        (json!({"credentialFiles": {"a": "fifo"}}), "credentialFiles.a"),
    ] {
        assert_refused_by_both(&host, &[], &fields, &format!("{option}: {}", host.path("fifo").display()));
    }
    fs::write(host.path("empty"), "").unwrap();
    let empty = format!("{} is empty, which ", host.path("empty").display());
    for (hypervisor, fields) in [
        ("firecracker", json!({"initrd": "empty"})),
        ("crosvm", json!({"initrd": "empty"})),
        ("kvmtool", json!({"storeDisk": {"image": "empty"}})),
        ("kvmtool", json!({"volumes": [{"image": "empty", "autoCreate": false}]})),
    ] {
        let mut fields = fields;
        fields["hypervisor"] = json!(hypervisor);
        fields[hypervisor] = json!({"program": "/bin/true"});
        assert_refused_by_both(&host, &[], &fields, &empty);
    }
    for (image, reason) in [("fifo", "neither a file nor a block device"), ("directory", "Is a directory")] {
        let fields = json!({
            "hypervisor": "kvmtool", "kvmtool": {"program": "/bin/true"}, "volumes": [{"image": image, "autoCreate": false}],
        });
        assert_refused_by_both(&host, &[], &fields, reason);
        let printed = host.check(fields);
        assert_eq!(printed.matches(reason).count(), 1, "{printed}");
        assert!(!host.path(&format!("{image}.lock")).exists());
    }
}

#[test]
fn a_directory_without_huge_pages_in_extra_arguments_was_found_by_kvmtool_only() {
    let host = Host::new();
    let directory = host.path("pages");
    fs::create_dir(&directory).unwrap();
    let directory = directory.to_str().unwrap();
    for arguments in [json!(["--hugetlbfs", directory]), json!([format!("--hugetlbfs={directory}")])] {
        let kvmtool = json!({"program": "/bin/true", "extraArgs": arguments});
        let printed = host.check(json!({"hypervisor": "kvmtool", "kvmtool": kvmtool}));
        assert!(printed.contains(&format!("no hugetlbfs is mounted at {directory}")), "{printed}");
    }
}

fn run(program: &str, arguments: &[&str], last: &Path) -> bool {
    let done = Command::new(program).args(arguments).arg(last).output();
    let Ok(output) = done else {
        testing::missing(&format!("{program} is not installed"));
        return false;
    };
    assert!(output.status.success(), "{program}: {}", String::from_utf8_lossy(&output.stderr));
    true
}

fn is_root() -> bool {
    let is_root = nix::unistd::geteuid().is_root();
    if !is_root {
        testing::missing("only root can become another user");
    }
    is_root
}

#[test]
fn a_volume_that_is_a_directory_or_cannot_be_created_is_reported() {
    let host = Host::new();
    fs::create_dir(host.path("directory.img")).unwrap();
    fs::write(host.path("file"), "").unwrap();
    let volume = |image: &str, auto_create: bool| json!({"volumes": [{"image": image, "size": 16, "autoCreate": auto_create, "readOnly": !auto_create}]});
    for auto_create in [true, false] {
        for command in [["check", "--host"].as_slice(), &["volumes"], &["run"]] {
            let (succeeded, printed) = host.say(command, volume("directory.img", auto_create));
            assert!(!succeeded && printed.contains("directory.img"), "{command:?}: {printed}");
        }
    }
    let printed = host.check(volume("file/below/var.img", true));
    assert!(
        printed.contains("file/below/var.img cannot be created: ") && printed.contains("file is not a directory"),
        "{printed}"
    );
    let mut unknown = volume("var.img", true);
    unknown["volumes"][0]["fsType"] = json!("f2fs");
    let has_f2fs = Command::new("mkfs.f2fs").arg("-V").output().is_ok();
    let printed = host.check(unknown);
    assert!(has_f2fs || printed.contains("var.img cannot be created: mkfs.f2fs is not installed"), "{printed}");
}

#[test]
fn mkfs_is_found_where_it_is_not_in_the_path_of_ordinary_users() {
    if !Path::new("/usr/sbin/mkfs.ext4").exists() {
        testing::missing("mkfs.ext4 is not in /usr/sbin");
        return;
    }
    let host = Host::new();
    // Writes the spec.
    host.check(json!({"volumes": [{"image": "var.img", "size": 16}]}));
    let mut microvm = Command::new(env!("CARGO_BIN_EXE_microvm"));
    microvm.args(["check", "--host", "web.json"]).current_dir(host.path("")).env("PATH", "/usr/bin:/bin");
    let output = microvm.env("MICROVM_RUNTIME_DIR", host.path("run")).output().unwrap();
    let printed = String::from_utf8_lossy(&output.stderr);
    assert!(!printed.contains("mkfs"), "{printed}");
}

#[test]
fn the_host_is_checked_with_the_permissions_of_the_machines_user() {
    if !is_root() {
        return;
    }
    let host = Host::new();
    let fields = || json!({"user": "nobody", "volumes": [{"image": "var.img", "autoCreate": false}]});
    fs::write(host.path("var.img"), vec![0; 4096]).unwrap();
    for name in ["bzImage", "var.img"] {
        fs::set_permissions(host.path(name), fs::Permissions::from_mode(0o600)).unwrap();
    }
    let printed = host.check(fields());
    for expected in ["kernel: ", "volumes[0].image: ", "socket: "] {
        let line =
            printed.lines().find(|line| line.contains(expected)).unwrap_or_else(|| panic!("{expected} in {printed}"));
        assert!(line.contains("Permission denied") && line.ends_with("(user nobody)"), "{line}");
    }
    let nobody = nix::unistd::User::from_name("nobody").unwrap().unwrap();
    for name in ["bzImage", "var.img", ""] {
        chown(host.path(name), Some(nobody.uid.as_raw()), Some(nobody.gid.as_raw())).unwrap();
    }
    let (succeeded, printed) = host.say(&["check", "--host"], fields());
    assert!(succeeded, "{printed}");
}

#[test]
fn a_passt_without_vhost_user_is_reported() {
    let host = Host::new();
    let fields = || {
        json!({
            "hypervisor": "cloud-hypervisor",
            "cloudHypervisor": {"program": host.path("bin/silent")},
            "interfaces": [{"type": "user", "id": "lan", "mac": "02:00:00:00:00:01"}],
        })
    };
    let program = |name: &str, text: &str| {
        let path = host.path("bin").join(name);
        fs::write(&path, text).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
    };
    // A hypervisor with an unknown version counts as new.
    program("silent", "#!/bin/sh\n");
    let write = |help: &str| program("passt", &format!("#!/bin/sh\necho 'Usage: passt [OPTION]...'\necho '{help}'\n"));
    write("  -f, --foreground");
    let printed = host.check(fields());
    assert!(printed.contains("passt has no --vhost-user; install passt 2024_11_27 or newer"), "{printed}");
    write("  --vhost-user  Enable vhost-user mode");
    assert!(!host.check(fields()).contains("--vhost-user"));
}

#[test]
fn an_initrd_larger_than_the_memory_is_reported() {
    let host = Host::new();
    fs::File::create(host.path("initrd")).unwrap().set_len(64 << 20).unwrap();
    let printed = host.check(json!({"initrd": "initrd", "mem": 64}));
    assert!(
        printed.contains("mem: qemu cannot load the kernel and the initrd, 65 MiB in total, into 64 MiB of memory"),
        "{printed}"
    );
}

#[test]
fn a_group_of_virtiofs_sockets_that_the_host_does_not_have_is_reported_before_the_start() {
    let host = Host::new();
    testing::write_program(&host.path("bin/virtiofsd"), "#!/bin/sh\nexit 0\n");
    let share = json!([{"proto": "virtiofs", "tag": "t", "source": "bin", "mountPoint": "/t"}]);
    let printed = host.check(json!({"shares": share, "virtiofsd": {"group": "no-such-group"}}));
    assert!(printed.contains("this host has no group `no-such-group`"), "{printed}");
    let printed = host.check(json!({"shares": share, "virtiofsd": {"group": null}}));
    assert!(!printed.contains("group"), "{printed}");
}

/// Asserts that both `check --host` and `run` refuse the machine for that reason.
fn assert_refused_by_both(host: &Host, options: &[&str], fields: &Value, reason: &str) {
    for command in [["check", "--host"].as_slice(), &["run"]] {
        let (succeeded, printed) = host.say(&[command, options].concat(), fields.clone());
        assert!(!succeeded && printed.contains(reason), "{command:?} with {fields} did not say `{reason}`: {printed}");
    }
}

#[test]
fn check_reports_what_run_would_refuse_because_of_files_in_the_state_directory() {
    let host = Host::new();
    let volume = json!({"volumes": [{"image": "var.img", "size": 8}]});
    let verity = json!({"storeDisk": {"image": "store.img", "verity": true}, "initrd": "bzImage", "mem": 128});
    let share = json!({
        "shares": [{"proto": "virtiofs", "tag": "t", "source": "bin", "mountPoint": "/t", "socket": "t.sock"}],
        "virtiofsd": {"program": "/bin/true", "group": null},
    });
    let in_the_way = "exists and is not a socket; move it away";
    for (file, content, fields, reason) in [
        ("web.sock", "", json!({}), in_the_way),
        ("console", "", json!({"consoleSocket": "console"}), in_the_way),
        ("t.sock", "", share.clone(), in_the_way),
        ("none", "", json!({"socket": "deep/web.sock"}), "web.sock cannot be created: there is no directory "),
        ("none", "", json!({"preStart": [["no-such-program", "now"]]}), "no-such-program is not installed"),
        ("none", "", json!({"preStart": [["./no-such-program"]]}), "./no-such-program: No such file or directory"),
        ("script", "exit", json!({"preStart": [["./script"]]}), "./script: Permission denied"),
        ("store.img.verity.json", "{}", verity, "storeDisk.verity: "),
    ] {
        fs::write(host.path("store.img"), vec![0; 8192]).unwrap();
        fs::write(host.path(file), content).unwrap();
        assert_refused_by_both(&host, &[], &fields, reason);
        fs::remove_file(host.path(file)).unwrap();
    }
    std::os::unix::fs::symlink("elsewhere", host.path("var.img.lock")).unwrap();
    assert_refused_by_both(&host, &[], &volume, "var.img.lock: this is a symbolic link, which is not followed here");
    fs::remove_file(host.path("var.img.lock")).unwrap();
    assert_refused_by_both(&host, &["--state-dir", "bzImage"], &json!({}), "bzImage: Not a directory");
    let _listener = std::os::unix::net::UnixListener::bind(host.path("t.sock")).unwrap();
    assert_refused_by_both(&host, &[], &share, "nothing proves that it was started with this command");
    assert_refused_by_both(&host, &[], &json!({"socket": "t.sock"}), "another process listens on this socket");
    // The program is looked for where it is started: in the state directory.
    fs::create_dir(host.path("state")).unwrap();
    fs::copy("/bin/true", host.path("state/hypervisor")).unwrap();
    let kernel = host.path("bzImage");
    let fields = json!({"kernel": kernel, "qemu": {"accelerator": "tcg", "program": "./hypervisor"}});
    for command in [["check", "--host"].as_slice(), &["run"]] {
        let (succeeded, printed) = host.say(&[command, &["--state-dir", "state"]].concat(), fields.clone());
        assert!(succeeded, "{command:?}: {printed}");
    }
}

#[test]
fn check_reports_a_machine_that_runs_and_a_volume_that_another_machine_uses() {
    let host = Host::new();
    testing::write_program(
        &host.path("hypervisor"),
        "#!/bin/sh\ncase $1 in -*version) exit ;; esac\necho $$ >pid\nexec sleep 600\n",
    );
    let fields = json!({
        "qemu": {"accelerator": "tcg", "program": "./hypervisor"}, "volumes": [{"image": "var.img", "size": 8}],
    });
    host.check(fields.clone());
    let mut run = Command::new(env!("CARGO_BIN_EXE_microvm"));
    run.args(["run", "web.json"]).current_dir(host.path("")).env("MICROVM_RUNTIME_DIR", host.path("run"));
    let mut running = run.env_remove("NOTIFY_SOCKET").env_remove("MICROVM_NAME").spawn().unwrap();
    while !fs::read_to_string(host.path("pid")).is_ok_and(|text| text.ends_with('\n')) {
        assert!(running.try_wait().unwrap().is_none(), "the machine has ended");
        std::thread::sleep(std::time::Duration::from_millis(10));
    }
    assert_refused_by_both(&host, &[], &fields, "web is already running, as process ");
    fs::hard_link(host.path("var.img"), host.path("hard.img")).unwrap();
    let second = |image: &str| json!({"name": "db", "volumes": [{"image": image, "autoCreate": false}]});
    assert_refused_by_both(&host, &[], &second("var.img"), "var.img is in use by machine web, process ");
    assert_refused_by_both(&host, &[], &second("hard.img"), "hard.img is in use by another process");
    running.kill().unwrap();
    running.wait().unwrap();
    let (succeeded, printed) = host.say(&["check", "--host"], second("hard.img"));
    assert!(succeeded, "{printed}");
}

#[test]
fn check_reports_what_root_would_refuse_because_the_machines_user_can_change_it() {
    if !is_root() {
        return;
    }
    let host = Host::new();
    let nobody = nix::unistd::User::from_name("nobody").unwrap().unwrap();
    let give = |name: &str| std::os::unix::fs::lchown(host.path(name), Some(nobody.uid.as_raw()), None).unwrap();
    fs::create_dir(host.path("state")).unwrap();
    for name in ["script", "hypervisor"] {
        testing::write_program(&host.path("state").join(name), "#!/bin/sh\nid -u >>ran\n");
    }
    fs::write(host.path("secret"), vec![0; 8192]).unwrap();
    std::os::unix::fs::symlink("/bin/true", host.path("state/link")).unwrap();
    std::os::unix::fs::symlink(host.path("secret"), host.path("state/var.img")).unwrap();
    for name in ["state", "state/script", "state/hypervisor", "state/link", "state/var.img"] {
        give(name);
    }
    let machine = |fields: Value| {
        let mut machine = json!({"user": "nobody", "kernel": host.path("bzImage")});
        machine.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
        machine
    };
    let share = json!([{"proto": "virtiofs", "tag": "t", "source": "..", "mountPoint": "/t"}]);
    let changeable = "root does not run it, because nobody can change";
    for (fields, reason) in [
        (json!({"preStart": [["./script"]]}), changeable),
        (json!({"preStart": [["./link"]]}), changeable),
        (json!({"extraArgsScript": "script"}), changeable),
        (json!({"shares": share, "virtiofsd": {"program": "./script", "group": null}}), changeable),
        (json!({"volumes": [{"image": "var.img", "autoCreate": false}]}), "does not follow a symbolic link of nobody"),
        (json!({"volumes": [{"image": "var.img", "size": 8}]}), "does not follow a symbolic link of nobody"),
    ] {
        assert_refused_by_both(&host, &["--state-dir", "state"], &machine(fields), reason);
    }
    assert!(!host.path("state/ran").exists() && !host.path("ran").exists());
    // The hypervisor may be replaceable, because it runs as that user, also when it is asked for its version.
    let own = json!({"hypervisor": "cloud-hypervisor", "cloudHypervisor": {"program": "./hypervisor"}});
    chown(host.path(""), Some(nobody.uid.as_raw()), None).unwrap();
    host.say(&["check", "--host", "--state-dir", "state"], machine(own));
    assert_eq!(fs::read_to_string(host.path("ran")).unwrap(), format!("{}\n", nobody.uid));
}

#[test]
fn check_accepts_a_missing_tap_that_run_creates() {
    if !is_root() {
        return;
    }
    let host = Host::new();
    let tap = json!({"interfaces": [{"type": "tap", "id": "vm-web", "mac": "02:00:00:00:00:01"}]});
    host.check(tap);
    let in_namespace = |options: &[&str]| {
        let mut command = Command::new("unshare");
        command.args(["--net"]).args(options).arg(env!("CARGO_BIN_EXE_microvm")).args(["check", "--host", "web.json"]);
        let output = command.current_dir(host.path("")).env("MICROVM_RUNTIME_DIR", host.path("run")).output().unwrap();
        (output.status.success(), String::from_utf8_lossy(&output.stderr).into_owned())
    };
    let (succeeded, printed) = in_namespace(&[]);
    assert!(succeeded, "{printed}");
    let without_right = ["setpriv", "--bounding-set=-net_admin", "--inh-caps=-net_admin"];
    let (succeeded, printed) = in_namespace(&without_right);
    assert!(!succeeded && printed.contains("vm-web does not exist, and only root can create it"), "{printed}");
}

#[test]
fn what_a_hypervisor_creates_is_not_accessible_to_others_whatever_the_umask_is() {
    for (umask, expected) in [("0", "0007"), ("022", "0027"), ("077", "0077")] {
        for option in ["--stop-timeout=1", "--supervise"] {
            let host = Host::new();
            testing::write_program(&host.path("hypervisor"), "#!/bin/sh\numask >mask\n");
            host.check(json!({"qemu": {"accelerator": "tcg", "program": "./hypervisor"}}));
            let script = format!("umask {umask}; exec \"$0\" run web.json {option}");
            let mut shell = Command::new("sh");
            shell.args(["-c", &script, env!("CARGO_BIN_EXE_microvm")]).current_dir(host.path(""));
            shell.env("MICROVM_RUNTIME_DIR", host.path("run")).env_remove("NOTIFY_SOCKET").env_remove("MICROVM_NAME");
            let output = shell.output().unwrap();
            assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
            let mask = fs::read_to_string(host.path("mask")).unwrap();
            assert_eq!(mask.lines().last().unwrap(), expected, "umask {umask}, {option}");
        }
    }
}

/// Runs a command in the shell in which `$0` is microvm, with the arguments of each of `check --host` and `run`. Both must
/// refuse the machine for this reason.
fn assert_refused_inside(host: &Host, place: &[&str], script: &str, reason: &str) {
    for arguments in ["check --host web.json", "run web.json"] {
        let mut command = Command::new(place[0]);
        command.args(&place[1..]).args([
            "sh",
            "-ec",
            &format!("{script} \"$0\" {arguments}"),
            env!("CARGO_BIN_EXE_microvm"),
        ]);
        let path = format!("{}:{}", host.path("bin").display(), std::env::var("PATH").unwrap());
        command.current_dir(host.path("")).env("PATH", path).env("MICROVM_RUNTIME_DIR", host.path("run"));
        let output = command.env_remove("NOTIFY_SOCKET").env_remove("MICROVM_NAME").output().unwrap();
        let printed = String::from_utf8_lossy(&output.stderr);
        assert!(!output.status.success() && printed.contains(reason), "{arguments} did not say `{reason}`: {printed}");
    }
}

#[test]
fn a_volume_that_is_too_small_for_its_file_system_is_reported_before_the_start() {
    let host = Host::new();
    let volume = |extra: Value| {
        let mut volume = json!({"image": "var.img", "fsType": "xfs", "size": 64, "label": "state"});
        volume.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
        json!({"volumes": [volume]})
    };
    for command in [["check", "--host"].as_slice(), &["volumes"], &["run"]] {
        let (succeeded, printed) = host.say(command, volume(json!({})));
        let expected = "var.img: xfs needs at least 300 MiB, but the size is 64 MiB; set `size`";
        assert!(!succeeded && printed.contains(expected), "{command:?}: {printed}");
        assert!(!host.path("var.img").exists());
    }
    let (succeeded, printed) = host.say(&["check", "--host"], volume(json!({"fsType": "ext4"})));
    assert!(succeeded, "{printed}");
    // One that exists is not created.
    let image = host.path("var.img");
    fs::File::create(&image).unwrap().set_len(64 << 20).unwrap();
    if run("mkfs.ext4", &["-q", "-L", "state"], &image) {
        let (succeeded, printed) = host.say(&["check", "--host"], volume(json!({"fsType": "ext4", "size": 1})));
        assert!(succeeded, "{printed}");
    }
}

#[test]
fn check_reports_a_full_disk_as_run_does() {
    if !is_root() {
        return;
    }
    let host = Host::new();
    fs::create_dir(host.path("run")).unwrap();
    host.check(json!({"volumes": [{"image": "full/var.img", "size": 8}]}));
    let full = "mount -t tmpfs -o size=64k full PLACE; cat /dev/zero >PLACE/file 2>&- || true; exec";
    for place in ["run", "full"] {
        fs::create_dir_all(host.path(place)).unwrap();
        assert_refused_inside(
            &host,
            &["unshare", "--mount"],
            &full.replace("PLACE", place),
            ": No space left on device",
        );
    }
}

#[test]
fn check_reports_a_forwarded_port_that_is_in_use_as_run_does() {
    let host = Host::new();
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let forwarded = |proto: &str| {
        json!({
            "interfaces": [{"type": "user", "id": "lan", "mac": "02:00:00:00:00:01"}],
            "forwardPorts": [{"host": {"address": "127.0.0.1", "port": port}, "guest": {"port": 22}, "proto": proto}],
        })
    };
    let reason = format!(
        "forwardPorts[0].host: tcp port 127.0.0.1:{port}: Address already in use (os error 98); end the program"
    );
    assert_refused_by_both(&host, &[], &forwarded("tcp"), &reason);
    let (succeeded, printed) = host.say(&["check", "--host"], forwarded("udp"));
    assert!(succeeded, "{printed}");
}

#[test]
fn check_reports_what_run_would_refuse_about_a_suspended_machine_and_nothing_about_one_that_boots() {
    let host = Host::new();
    testing::write_program(
        &host.path("hypervisor"),
        "#!/bin/sh\ncase $1 in -*version) exit ;; esac\ncp run/web/stamp.json .\n",
    );
    let machine = |mem: u64| json!({"mem": mem, "qemu": {"accelerator": "tcg", "program": "./hypervisor"}});
    assert!(host.say(&["run"], machine(256)).0);
    let mut stamp: Value = serde_json::from_slice(&fs::read(host.path("stamp.json")).unwrap()).unwrap();
    let suspended = host.path("web.suspended/complete");
    let mut suspend = |at_shutdown: bool| {
        stamp["suspendedUnixSeconds"] = json!(1);
        stamp["atShutdown"] = json!(at_shutdown);
        fs::create_dir_all(&suspended).unwrap();
        fs::write(suspended.join("stamp.json"), stamp.to_string()).unwrap();
    };
    suspend(false);
    let printed = host.check(machine(256));
    assert!(!printed.contains("suspended: "), "{printed}");
    assert_refused_by_both(&host, &[], &machine(512), "mem: was 256, is 512");
    // Of a machine that was suspended by a shutdown of the host, nobody has decided that it must go on.
    suspend(true);
    for command in [["check", "--host"].as_slice(), &["run"]] {
        let (succeeded, printed) = host.say(command, machine(512));
        assert!(succeeded, "{command:?}: {printed}");
    }
}
