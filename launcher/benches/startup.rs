//! What `microvm run` costs before the hypervisor starts: the time of the whole process with a hypervisor that does
//! nothing, less the time of that program alone. A machine with ten devices, nothing to build.
//!
//!     cargo bench -p launcher --bench startup

#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "a benchmark reports on stdout and stops when it cannot go on"
)]

use serde_json::json;
use std::fs;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

const RUNS: usize = 100;
/// The promise: less than this before exec.
const BUDGET: Duration = Duration::from_millis(10);

fn main() {
    let directory = tempfile::tempdir().unwrap();
    let path = |name: &str| directory.path().join(name);
    let mut kernel = vec![0; 0x1000];
    kernel[0x202..0x206].copy_from_slice(b"HdrS");
    fs::write(path("kernel"), kernel).unwrap();
    fs::write(path("initrd"), "").unwrap();
    fs::write(path("store.img"), vec![0; 4096]).unwrap();
    fs::create_dir(path("shared")).unwrap();
    let volume = |name: &str| json!({"image": name, "size": 8});
    let share = |tag: &str| json!({"proto": "9p", "tag": tag, "source": "shared", "mountPoint": format!("/{tag}")});
    let spec = json!({
        "version": 1, "name": "bench", "hypervisor": "qemu", "kernel": "kernel", "initrd": "initrd", "balloon": true,
        "storeDisk": {"image": "store.img"},
        "volumes": [volume("a.img"), volume("b.img"), volume("c.img")],
        "shares": [share("one"), share("two")],
        "interfaces": [
            {"type": "user", "id": "net0", "mac": "02:00:00:00:00:01"},
            {"type": "user", "id": "net1", "mac": "02:00:00:00:00:02"},
        ],
        "qemu": {"program": "/bin/true", "accelerator": "tcg"},
    });
    fs::write(path("machine.json"), spec.to_string()).unwrap();
    let run = || {
        let mut command = Command::new(env!("CARGO_BIN_EXE_microvm"));
        command.args(["run", "machine.json"]).env("MICROVM_RUNTIME_DIR", path("run"));
        command
    };
    let nothing = || Command::new("/bin/true");
    // The first start makes the volumes and asks the hypervisor for its version; both are kept.
    let first = time(run(), &directory);
    let (mut starts, mut baselines) = (Vec::new(), Vec::new());
    for _ in 0..RUNS {
        baselines.push(time(nothing(), &directory));
        starts.push(time(run(), &directory));
    }
    let (start, baseline) = (median(&mut starts), median(&mut baselines));
    let cost = start.saturating_sub(baseline);
    println!("first start, volumes made: {first:?}");
    println!("start: min {:?}, median {start:?}, max {:?} of {RUNS}", starts[0], starts[RUNS - 1]);
    println!("/bin/true alone: median {baseline:?}");
    let verdict = if cost < BUDGET { "within" } else { "OVER" };
    println!("microvm run before exec, ten devices: {cost:?}, {verdict} the {BUDGET:?} promised");
}

fn time(mut command: Command, directory: &tempfile::TempDir) -> Duration {
    command.current_dir(directory.path()).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::inherit());
    let begin = Instant::now();
    let status = command.status().unwrap();
    let elapsed = begin.elapsed();
    assert!(status.success(), "{command:?}: {status}");
    elapsed
}

fn median(times: &mut [Duration]) -> Duration {
    times.sort();
    times[times.len() / 2]
}
