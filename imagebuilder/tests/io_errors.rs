//! System calls that fail: a build ends with a message or makes the right image, and errors in the cache or in its service
//! only make it slower.
//!
//! The tests take samples of the system calls. `cargo test -p imagebuilder --test io_errors -- --ignored` makes every single
//! one fail, which takes about 20 minutes.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test that cannot go on fails")]

mod program;
mod service;

use imagebuilder::{nar_hash, scan};
use nix::errno::Errno;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use program::Workspace;
use service::nix_daemon::FakeNixDaemon;
use service::wait_until;
use std::cell::Cell;
use std::fs;
use std::io::Read;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use testing::{Disk, Fault, Faults};

const LIBRARY: &str = "3aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa-library";
const TOOL: &str = "4aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa-tool-1.1";
const EARLIER_TOOL: &str = "5aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa-tool-1.0";

/// The groups of system calls, and how each can fail. Two errors are normal results and left out: with `ENXIO`, `lseek` says that
/// the rest of a file is a hole; `ENOENT` of `getdents64` is the end of a directory that was removed, which is empty.
const CALLS: [(&str, &[Errno]); 16] = [
    ("open", &[Errno::EIO, Errno::EMFILE, Errno::EACCES, Errno::EINTR, Errno::ESTALE, Errno::ENOSPC, Errno::EAGAIN]),
    ("read", &[Errno::EIO, Errno::EINTR, Errno::EAGAIN, Errno::ESTALE]),
    ("write", &[Errno::EIO, Errno::ENOSPC, Errno::EINTR, Errno::EFBIG, Errno::EDQUOT, Errno::EAGAIN]),
    ("copy", &[Errno::EIO, Errno::EXDEV, Errno::ENOSPC, Errno::EINVAL, Errno::EINTR]),
    ("stat", &[Errno::EIO, Errno::ESTALE, Errno::EACCES, Errno::ENOMEM]),
    ("list", &[Errno::EIO, Errno::ESTALE, Errno::EACCES]),
    ("readlink", &[Errno::EIO, Errno::EACCES, Errno::ENOMEM]),
    ("seek", &[Errno::EIO, Errno::EINVAL]),
    ("map", &[Errno::ENOMEM, Errno::ENODEV]),
    ("length", &[Errno::EIO, Errno::ENOSPC, Errno::EOPNOTSUPP, Errno::EINTR]),
    ("link", &[Errno::EIO, Errno::ENOSPC, Errno::EMLINK, Errno::EPERM, Errno::EXDEV]),
    ("rename", &[Errno::EIO, Errno::ENOSPC, Errno::EXDEV, Errno::EACCES]),
    ("mkdir", &[Errno::EIO, Errno::ENOSPC, Errno::EACCES, Errno::EROFS]),
    ("unlink", &[Errno::EIO, Errno::EACCES, Errno::EBUSY]),
    ("attributes", &[Errno::EIO, Errno::EPERM, Errno::EROFS]),
    ("sync", &[Errno::EIO, Errno::ENOSPC, Errno::EDQUOT]),
];

/// The same for sockets.
const SOCKET_CALLS: [(&str, &[Errno]); 2] = [
    ("send", &[Errno::EPIPE, Errno::ECONNRESET, Errno::EINTR, Errno::ENOBUFS, Errno::EAGAIN]),
    ("receive", &[Errno::ECONNRESET, Errno::EINTR, Errno::ENOMEM, Errno::EMFILE, Errno::EAGAIN]),
];

/// The kinds of images that are built, and the options of their plans.
const KINDS: [(&str, &str); 4] = [
    ("plain", "--level 1 --block-size 16K"),
    ("sealed", "--level 1 --block-size 16K --verity"),
    ("erofs", "--format erofs"),
    ("sealed-erofs", "--format erofs --verity"),
];

/// How many of the calls of a group fail, one in each run.
#[derive(Clone, Copy)]
enum Effort {
    /// About this many, evenly spread.
    Sample(u64),
    All,
}

/// An image, and its seal if it has one.
#[derive(Clone, PartialEq)]
struct Made(Vec<u8>, Option<Vec<u8>>);

/// Two store paths, the pack of one of them and that of an earlier version of the other in `kept`, and a program that makes
/// system calls fail.
struct Site {
    workspace: Workspace,
    faults: Faults,
    /// Numbers the runs, so that the errors take turns.
    turn: Cell<usize>,
    _tools: tempfile::TempDir,
}

impl Site {
    /// `None` if system calls cannot be made to fail here.
    fn new() -> Option<Self> {
        // In memory, where no build waits for a disk.
        let memory = Path::new("/dev/shm");
        Self::below(if memory.is_dir() { memory } else { Path::new("/tmp") })
    }

    fn below(directory: &Path) -> Option<Self> {
        let tools = tempfile::tempdir().unwrap();
        let faults = Faults::new(tools.path())?;
        let workspace = Workspace::new_in(directory);
        fs::create_dir(workspace.path("store")).unwrap();
        for (name, seed) in [(LIBRARY, "library"), (TOOL, "tool"), (EARLIER_TOOL, "tool")] {
            write_store_path(&workspace.path("store").join(name), seed, name);
        }
        let site = Self { workspace, faults, turn: Cell::new(0), _tools: tools };
        site.plan("both", &[LIBRARY, TOOL]);
        site.plan("old", &[EARLIER_TOOL]);
        site.plan("kept", &[LIBRARY, EARLIER_TOOL]);
        Some(site)
    }

    /// Writes a plan with NAR hashes for each kind of image.
    fn plan(&self, name: &str, store_paths: &[&str]) {
        self.workspace.write("list", &store_paths.join("\n"));
        for (kind, options) in KINDS {
            let line = format!("plan --paths-from list --store-dir store {options}");
            let plan = self.workspace.run(line.trim_end()).success();
            let mut plan: serde_json::Value = serde_json::from_str(&plan).unwrap();
            for planned in plan["paths"].as_array_mut().unwrap() {
                let base_name = planned["path"].as_str().unwrap().to_owned();
                let hash = testing::nar_sha256(&self.workspace.path("store").join(base_name));
                planned["narHash"] = nar_hash::print(&hash).into();
            }
            self.workspace.write(&format!("{name}-{kind}.json"), &plan.to_string());
        }
    }

    /// Makes an image without faults.
    fn build(&self, rest: &str) {
        self.workspace.run(&format!("build -q -j2 {rest}")).success();
    }

    /// Checks that nothing in a cache is damaged.
    #[track_caller]
    fn expect_sound_cache(&self, cache: &str) {
        let checked = self.workspace.run(&format!("cache fsck --cache {cache} --json")).success();
        let checked: serde_json::Value = serde_json::from_str(&checked).unwrap();
        assert_eq!(checked["damaged"], serde_json::json!([]));
    }

    fn read(&self, image: &str) -> Made {
        let seal = fs::read(self.workspace.path(&format!("{image}.verity.json"))).ok();
        Made(self.workspace.read(image), seal)
    }

    /// Replaces a directory by a copy of another one.
    fn copy(&self, from: &str, to: &str) {
        let _ = fs::remove_dir_all(self.workspace.path(to));
        let mut copy = Command::new("cp");
        copy.arg("-a").arg(self.workspace.path(from)).arg(self.workspace.path(to));
        assert!(copy.status().unwrap().success());
    }

    /// Calls `run` with faults of these groups, in each run another one.
    fn sweep(
        &self,
        effort: Effort,
        calls: &[(&'static str, &'static [Errno])],
        below: &Path,
        mut run: impl FnMut(&Fault<'_>),
    ) {
        for (calls, errors) in calls {
            let none = Fault { calls, below, at: 0, count: 0, error: errors[0] };
            run(&none);
            let all = self.faults.log().0;
            let step = match effort {
                Effort::Sample(wanted) => (all / wanted).max(1),
                Effort::All => 1,
            };
            // Where the samples begin depends on the group, so that they are not always the first calls.
            let first = 1 + (self.turn.get() as u64 * 7) % step;
            for at in (first..=all).step_by(usize::try_from(step).unwrap()) {
                let turn = self.turn.replace(self.turn.get() + 1);
                let error = errors[turn % errors.len()];
                // These two ask to try again, so they do not last.
                let passes = [Errno::EINTR, Errno::EAGAIN].contains(&error);
                let count = if passes || (turn / errors.len()).is_multiple_of(2) { 1 } else { 0 };
                run(&Fault { calls, below, at, count, error });
            }
        }
    }
}

/// Writes a store path with large and small files, equal ones, a sparse one, links and a directory.
fn write_store_path(path: &Path, seed: &str, name: &str) {
    let noise = |what: &str, bytes: usize| {
        let mut noise = vec![0; bytes];
        blake3::Hasher::new().update(format!("{seed} {what}").as_bytes()).finalize_xof().fill(&mut noise);
        noise
    };
    fs::create_dir_all(path.join("share/doc")).unwrap();
    fs::write(path.join("large"), noise("large", 200_000)).unwrap();
    fs::write(path.join("as-large"), noise("large", 200_000)).unwrap();
    fs::write(path.join("of-that-size"), noise("other", 200_000)).unwrap();
    fs::write(path.join("name"), name).unwrap();
    for number in 0..6 {
        fs::write(path.join("share").join(number.to_string()), noise(&number.to_string(), 2000)).unwrap();
        fs::write(path.join("share/doc").join(number.to_string()), noise("equal", 3000)).unwrap();
    }
    fs::hard_link(path.join("share/0"), path.join("share/linked")).unwrap();
    symlink("share/0", path.join("link")).unwrap();
    fs::File::create(path.join("sparse")).unwrap().set_len(600_000).unwrap();
}

/// Collects what went wrong, because one run of a sweep finds more than one kind of error.
#[derive(Default)]
struct Problems(Vec<String>);

impl Problems {
    fn expect(&mut self, is_right: bool, rule: &str, what: &str) {
        if !is_right {
            self.0.push(format!("{rule}: {what}"));
        }
    }

    #[track_caller]
    fn expect_none(self) {
        assert!(self.0.is_empty(), "{} problems:\n{}", self.0.len(), self.0.join("\n"));
    }
}

fn errors_anywhere(effort: Effort) {
    let Some(site) = Site::new() else { return };
    let workspace = &site.workspace;
    let mut problems = Problems::default();
    for (kind, _) in KINDS {
        let sealed = kind.starts_with("sealed");
        site.build(&format!("--plan kept-{kind}.json --cache kept -o warm"));
        for (source, image) in [("old", "old"), ("both", "new")] {
            site.build(&format!("--plan {source}-{kind}.json --no-cache -o {image}"));
        }
        let (old, new) = (site.read("old"), site.read("new"));
        let names = if sealed { &["image", "image.verity.json"][..] } else { &["image"] };
        site.sweep(effort, &CALLS, workspace.root(), |fault| {
            // One store path comes from the cache and one does not; an older image is in place.
            site.copy("kept", "cache");
            let _ = fs::remove_dir_all(workspace.path("out"));
            fs::create_dir(workspace.path("out")).unwrap();
            fs::copy(workspace.path("old"), workspace.path("out/image")).unwrap();
            if sealed {
                fs::copy(workspace.path("old.verity.json"), workspace.path("out/image.verity.json")).unwrap();
            }
            let line = format!("build --plan both-{kind}.json --cache cache -q -j2 -o out/image");
            let output = site.faults.apply(&workspace.command(line.split(' ')), fault).output().unwrap();
            let stderr = String::from_utf8_lossy(&output.stderr);
            let what = format!("{kind} {fault:?} {:?} {:?}: {stderr}", site.faults.log(), output.status);
            let found = site.read("out/image");
            match output.status.code() {
                Some(0) => problems.expect(found == new, "the new image", &what),
                Some(1 | 2) => {
                    let number = format!("(os error {})", fault.error as i32);
                    let is_clear = stderr.contains(&number) || stderr.contains("changed or vanished");
                    problems.expect(stderr.contains("error: ") && is_clear, "a clear message", &what);
                    problems.expect(fault.at > 0, "no error without a fault", &what);
                    // The new seal is in place first, and the kernel refuses the old image with it. If only syncing the
                    // directory failed, the image was already in place.
                    let is_old = found.0 == old.0 && (found.1 == old.1 || found.1 == new.1);
                    problems.expect(is_old || found == new, "the old image or the new one", &what);
                }
                _ => problems.expect(false, "an exit code", &what),
            }
            problems.expect(!stderr.contains("panicked"), "no panic", &what);
            let entries = fs::read_dir(workspace.path("out")).unwrap();
            let mut left: Vec<String> =
                entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
            left.sort();
            // What cannot be removed remains.
            problems.expect(left == names || fault.calls == "unlink", &format!("nothing else than {left:?}"), &what);
            // Whatever remains in the cache, the next build makes the right image.
            let _ = fs::remove_file(workspace.path("next"));
            site.build(&format!("--plan both-{kind}.json --cache cache -o next"));
            problems.expect(site.read("next") == new, "the right image afterwards", &what);
        });
    }
    problems.expect_none();
}

#[test]
fn an_error_of_any_system_call_ends_the_build_with_a_message_or_has_no_effect() {
    errors_anywhere(Effort::Sample(2));
}

#[test]
#[ignore = "it takes a long time"]
fn every_error_of_a_system_call_ends_the_build_with_a_message_or_has_no_effect() {
    errors_anywhere(Effort::All);
}

fn errors_in_the_cache(effort: Effort) {
    let Some(site) = Site::new() else { return };
    let workspace = &site.workspace;
    let mut problems = Problems::default();
    for (kind, _) in KINDS {
        site.build(&format!("--plan kept-{kind}.json --cache kept -o warm"));
        site.build(&format!("--plan both-{kind}.json --no-cache -o new"));
        let new = site.read("new");
        site.sweep(effort, &CALLS, &workspace.path("cache"), |fault| {
            site.copy("kept", "cache");
            for round in ["first", "second"] {
                let _ = fs::remove_file(workspace.path("image"));
                let line = format!("build --plan both-{kind}.json --cache cache -q -j2 -o image");
                let output = site.faults.apply(&workspace.command(line.split(' ')), fault).output().unwrap();
                let stderr = String::from_utf8_lossy(&output.stderr);
                let log = site.faults.log();
                let what = format!("{kind} {round} {fault:?} {log:?} {:?}: {stderr}", output.status);
                problems.expect(output.status.success(), "no error", &what);
                let is_right = workspace.path("image").exists() && site.read("image") == new;
                problems.expect(is_right, "the right image", &what);
                let only_warnings = stderr.lines().all(|line| line.starts_with("warning: "));
                problems.expect(only_warnings, "only warnings", &what);
            }
            site.expect_sound_cache("cache");
            let _ = fs::remove_file(workspace.path("image"));
            site.build(&format!("--plan both-{kind}.json --cache cache -o image"));
            problems.expect(site.read("image") == new, "the right image afterwards", &format!("{kind} {fault:?}"));
        });
    }
    problems.expect_none();
}

#[test]
fn an_error_of_any_system_call_in_the_cache_only_makes_the_build_slower() {
    errors_in_the_cache(Effort::Sample(2));
}

#[test]
#[ignore = "it takes a long time"]
fn every_error_of_a_system_call_in_the_cache_only_makes_the_build_slower() {
    errors_in_the_cache(Effort::All);
}

/// A service, whose system calls may fail.
struct Server {
    child: Child,
    /// Whether it ended before it listened.
    has_ended: bool,
}

impl Server {
    fn start(site: &Site, fault: Option<&Fault<'_>>) -> Self {
        let workspace = &site.workspace;
        let _ = fs::remove_file(workspace.path("run.sock"));
        let line = "cache serve --cache served --socket run.sock --store-dir store --nix-daemon nix.sock -j 2";
        let command = workspace.command(line.split(' '));
        let mut command = fault.map_or(command, |fault| site.faults.apply(&workspace.command(line.split(' ')), fault));
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
        let mut server = Self { child: command.spawn().unwrap(), has_ended: false };
        wait_until("the service listens or ends", || {
            server.has_ended = server.child.try_wait().unwrap().is_some();
            server.has_ended || workspace.path("run.sock").exists()
        });
        server
    }

    /// Asks it to end, and returns its exit code and its messages.
    fn stop(mut self) -> (Option<i32>, String) {
        // It may have ended by itself, and this is a child that was not waited for.
        let _ = kill(Pid::from_raw(self.child.id().cast_signed()), Signal::SIGTERM);
        let mut code = None;
        wait_until("the service ends", || {
            code = self.child.try_wait().unwrap();
            code.is_some()
        });
        let mut messages = String::new();
        self.child.stderr.take().unwrap().read_to_string(&mut messages).unwrap();
        (code.and_then(|status| status.code()), messages)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Starts a Nix daemon that calls the store paths valid.
fn nix_daemon(site: &Site) -> FakeNixDaemon {
    let daemon = FakeNixDaemon::start(&site.workspace.path("nix.sock"));
    for name in [LIBRARY, TOOL, EARLIER_TOOL] {
        let path = site.workspace.path("store").join(name);
        daemon.add(name, testing::nar_sha256(&path), scan::list(&path).unwrap().tree.nar_size_bytes());
    }
    daemon
}

const OF_SERVICE: [&str; 2] = ["plain", "sealed"];

/// Builds with the service, and expects the right image and at most warnings.
fn expect_images(site: &Site, problems: &mut Problems, images: &[Made; 2], what: &str) -> String {
    let clients = OF_SERVICE.map(|kind| {
        let _ = fs::remove_file(site.workspace.path(kind));
        let line = format!("build --plan both-{kind}.json --no-cache --cache-socket run.sock -q -j2 -o {kind}");
        let mut command = site.workspace.command(line.split(' '));
        command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap()
    });
    let mut warnings = String::new();
    for (client, (kind, image)) in clients.into_iter().zip(OF_SERVICE.into_iter().zip(images)) {
        let output = client.wait_with_output().unwrap();
        let stderr = String::from_utf8_lossy(&output.stderr);
        let what = format!("{what}: {:?}: {stderr}", output.status);
        problems.expect(output.status.success(), "no error", &what);
        let is_right = site.workspace.path(kind).exists() && site.read(kind) == *image;
        problems.expect(is_right, "the right image", &what);
        problems.expect(stderr.lines().all(|line| line.starts_with("warning: ")), "only warnings", &what);
        warnings.push_str(&stderr);
    }
    warnings
}

fn errors_in_the_service(effort: Effort) {
    let Some(site) = Site::new() else { return };
    let workspace = &site.workspace;
    let _daemon = nix_daemon(&site);
    let mut problems = Problems::default();
    let images = OF_SERVICE.map(|kind| {
        site.build(&format!("--plan kept-{kind}.json --cache kept -o warm"));
        site.build(&format!("--plan both-{kind}.json --no-cache -o new"));
        site.read("new")
    });
    let calls: Vec<_> = CALLS.into_iter().chain(SOCKET_CALLS).collect();
    site.sweep(effort, &calls, workspace.root(), |fault| {
        site.copy("kept", "served");
        let server = Server::start(&site, Some(fault));
        let had_ended = server.has_ended;
        let warnings = expect_images(&site, &mut problems, &images, &format!("{fault:?}"));
        let (code, messages) = server.stop();
        let what = format!("{fault:?} {:?} {code:?}: {messages}, {warnings}", site.faults.log());
        let is_error = matches!(code, Some(1 | 2)) && messages.contains("error: ");
        problems.expect(code == Some(0) || is_error, "an end without an error, or a message", &what);
        problems.expect(!had_ended || is_error, "an error of a service that cannot start", &what);
        problems.expect(!messages.contains("panicked"), "no panic", &what);
        site.expect_sound_cache("served");
        // What the service has kept gives the right images.
        for (kind, image) in OF_SERVICE.into_iter().zip(&images) {
            let _ = fs::remove_file(workspace.path(kind));
            site.build(&format!("--plan both-{kind}.json --cache served -o {kind}"));
            problems.expect(site.read(kind) == *image, "the right image afterwards", &what);
        }
    });
    problems.expect_none();
}

#[test]
fn an_error_of_any_system_call_of_the_service_only_makes_builds_slower() {
    errors_in_the_service(Effort::Sample(1));
}

#[test]
#[ignore = "it takes a long time"]
fn every_error_of_a_system_call_of_the_service_only_makes_builds_slower() {
    errors_in_the_service(Effort::All);
}

#[test]
fn an_error_of_the_connection_to_the_service_only_makes_the_build_slower() {
    let Some(site) = Site::new() else { return };
    let workspace = &site.workspace;
    let _daemon = nix_daemon(&site);
    let mut problems = Problems::default();
    site.build("--plan both-sealed.json --no-cache -o new");
    let new = site.read("new");
    let server = Server::start(&site, None);
    site.sweep(Effort::Sample(12), &SOCKET_CALLS, &workspace.path("none"), |fault| {
        let _ = fs::remove_file(workspace.path("image"));
        let line = "build --plan both-sealed.json --no-cache --cache-socket run.sock -q -j2 -o image";
        let output = site.faults.apply(&workspace.command(line.split(' ')), fault).output().unwrap();
        let stderr = String::from_utf8_lossy(&output.stderr);
        let what = format!("{fault:?} {:?} {:?}: {stderr}", site.faults.log(), output.status);
        problems.expect(output.status.success() && site.read("image") == new, "the right image", &what);
        problems.expect(stderr.lines().all(|line| line.starts_with("warning: ")), "only warnings", &what);
    });
    assert_eq!(server.stop(), (Some(0), String::new()));
    problems.expect_none();
}

#[test]
fn an_error_of_a_call_that_shares_blocks_ends_the_build_with_a_message_or_has_no_effect() {
    let directory = tempfile::tempdir().unwrap();
    for file_system in ["btrfs", "xfs"] {
        let Some(disk) = Disk::new(directory.path(), file_system) else { continue };
        let Some(site) = Site::below(disk.path()) else { return };
        let workspace = &site.workspace;
        let mut problems = Problems::default();
        let mut shared = 0;
        for (kind, _) in KINDS {
            // All store paths come from the cache.
            site.build(&format!("--plan both-{kind}.json --cache cache --no-sync -o new"));
            let new = site.read("new");
            let calls = CALLS.into_iter().filter(|(calls, _)| ["copy", "length"].contains(calls)).collect::<Vec<_>>();
            site.sweep(Effort::Sample(8), &calls, workspace.root(), |fault| {
                let _ = fs::remove_file(workspace.path("image"));
                let line = format!("build --plan both-{kind}.json --cache cache --no-sync -q -j2 -o image");
                let output = site.faults.apply(&workspace.command(line.split(' ')), fault).output().unwrap();
                let stderr = String::from_utf8_lossy(&output.stderr);
                let what = format!("{kind} {fault:?} {:?} {:?}: {stderr}", site.faults.log(), output.status);
                shared += if fault.calls == "copy" { site.faults.log().0 } else { 0 };
                let is_right = match output.status.code() {
                    Some(0) => site.read("image") == new,
                    Some(1) => stderr.contains("error: ") && !workspace.path("image").exists(),
                    _ => false,
                };
                problems.expect(is_right, "the right image, or none and a message", &what);
            });
        }
        problems.expect_none();
        assert!(shared > 0, "nothing was shared on {file_system}");
    }
}
