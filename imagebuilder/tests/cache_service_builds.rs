//! Builds with the cache service, without it, and with a broken one give the same image, byte for byte. All problems
//! with the service are warnings.

#![allow(clippy::unwrap_used, clippy::panic, reason = "tests")]

mod program;
mod service;

use imagebuilder::build::{PackRequest, make_pack};
use imagebuilder::cache_service::client::CacheClient;
use imagebuilder::cache_service::protocol::Answer;
use imagebuilder::pack::PackSource;
use imagebuilder::plan::PlannedPath;
use imagebuilder::settings::{Compression, ImageSettings};
use imagebuilder::store_path::StorePath;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use program::{GREETING, Run, TOOLS, Workspace, facts};
use service::nix_daemon::FakeNixDaemon;
use service::{broken, say, wait_until};
use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::sync::atomic::AtomicBool;
use std::thread;
use std::time::Duration;

/// A store with content to compress, a Nix daemon that reports its paths as valid, and the image that every build must
/// create.
struct Host {
    workspace: Workspace,
    nix: FakeNixDaemon,
    image: Vec<u8>,
}

const BUILD: &str = "build --closure-info info --store-dir store --level 3";

impl Host {
    fn new() -> Self {
        let workspace = Workspace::with_store();
        // Other users start programs in this directory.
        fs::set_permissions(workspace.root(), fs::Permissions::from_mode(0o777)).unwrap();
        let nix = FakeNixDaemon::start(&workspace.path("nix.sock"));
        fs::set_permissions(workspace.path("nix.sock"), fs::Permissions::from_mode(0o777)).unwrap();
        facts().into_iter().for_each(|(name, hash, size)| nix.add(name, hash, size));
        workspace.run(&format!("{BUILD} --no-cache -q -o image")).success();
        let image = workspace.read("image");
        Self { workspace, nix, image }
    }

    /// Starts the service and waits until it listens.
    fn serve(&self, options: &str) -> Server {
        let line =
            format!("cache serve --cache served --socket run.sock --store-dir store --nix-daemon nix.sock {options}");
        let mut command = self.workspace.command(line.split_whitespace());
        let child = command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
        wait_until("the service listens", || self.workspace.path("run.sock").exists());
        Server(child)
    }

    /// Builds with only the service at `socket`, and returns stderr and the report.
    fn build(&self, socket: &str, options: &str) -> (String, serde_json::Value) {
        let line = format!("{BUILD} --no-cache --cache-socket {socket} --json -o image {options}");
        self.finished(self.workspace.command(line.split_whitespace()).output().unwrap())
    }

    fn finished(&self, output: Output) -> (String, serde_json::Value) {
        let stderr = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(0), "{stderr}");
        assert!(self.workspace.read("image") == self.image, "another image: {stderr}");
        (stderr, serde_json::from_slice(&output.stdout).unwrap())
    }

    /// Builds with a cache directory and a broken service, and expects the same image and a warning.
    fn expect_warning(&self, socket: &str, expected: &str) {
        let (stderr, report) = self.build(socket, "");
        let warnings: Vec<&str> = stderr.lines().filter(|line| line.starts_with("warning: ")).collect();
        assert!(warnings.len() == 1 && warnings[0].contains(expected), "{stderr}");
        assert_eq!(report["cache"]["hitBytes"], 0, "{report}");
    }

    fn pack(&self, name: &str) -> Vec<u8> {
        self.pack_of(name, &self.workspace.path("store").join(name))
    }

    /// Makes a pack with correct checksums which says that a store path has the content of `location`.
    fn pack_of(&self, name: &str, location: &Path) -> Vec<u8> {
        let (name, nar_hash, _) = facts().into_iter().find(|(known, ..)| *known == name).unwrap();
        // `make_pack` refuses a wrong hash, so it is replaced afterwards.
        let actual_hash = testing::nar_sha256(location);
        let path = PlannedPath {
            path: StorePath::from_base_name(name).unwrap(),
            nar_hash: Some(actual_hash),
            nar_size_bytes: None,
        };
        let settings = ImageSettings::new(ImageSettings::default().compression(), Some(3), None, None).unwrap();
        let request = PackRequest {
            path: &path,
            location,
            settings: &settings,
            directory: self.workspace.root(),
            earlier: None,
            jobs: 1,
        };
        let file = make_pack(&request, &AtomicBool::new(false)).unwrap();
        let file = file.file();
        let mut content = vec![0; usize::try_from(file.metadata().unwrap().len()).unwrap()];
        std::os::unix::fs::FileExt::read_exact_at(file, &mut content, 0).unwrap();
        // The footer is: magic (16 bytes), length of the index (8), BLAKE3 of the index (32).
        let footer = content.len() - 56;
        let length: [u8; 8] = content[footer + 16..footer + 24].try_into().unwrap();
        let index = footer - usize::try_from(u64::from_le_bytes(length)).unwrap();
        let at = content[index..].windows(32).position(|window| window == actual_hash).unwrap();
        content[index + at..index + at + 32].copy_from_slice(&nar_hash);
        let checksum = *blake3::hash(&content[index..footer]).as_bytes();
        content[footer + 24..].copy_from_slice(&checksum);
        content
    }
}

/// A running service. It is killed when the test ends.
struct Server(Child);

impl Server {
    /// Ends it as systemd does, and returns its exit code and its output.
    fn stop(mut self) -> (Option<i32>, String) {
        kill(Pid::from_raw(i32::try_from(self.0.id()).unwrap()), Signal::SIGTERM).unwrap();
        let code = self.0.wait().unwrap().code();
        let mut printed = String::new();
        self.0.stderr.take().unwrap().read_to_string(&mut printed).unwrap();
        (code, printed)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn file_of(content: &[u8]) -> OwnedFd {
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(content).unwrap();
    file.into()
}

#[test]
fn a_sealed_image_with_packs_of_the_service_has_the_hashes_of_the_service() {
    const NAME: &str = "0c0wqvhs4gn6a6ps1q4a9qd3h2ra2bnv-noise";
    let host = Host::new();
    let workspace = &host.workspace;
    let mut noise = vec![0; 400_000];
    blake3::Hasher::new().finalize_xof().fill(&mut noise);
    let file = workspace.path("store").join(NAME);
    fs::write(&file, noise).unwrap();
    let (hash, nar_bytes) = (testing::nar_sha256(&file), 400_112);
    host.nix.add(NAME, hash, nar_bytes);
    let hash = imagebuilder::nar_hash::print(&hash);
    workspace.write("info/registration", &format!("/nix/store/{NAME}\n{hash}\n{nar_bytes}\n\n0\n"));
    workspace.write("info/store-paths", &format!("/nix/store/{NAME}\n"));
    workspace.run(&format!("{BUILD} --no-cache --verity -q -o sealed")).success();
    let sealed = workspace.read("sealed");

    let _server = host.serve("");
    let build = |options: &str| {
        let line = format!("{BUILD} --no-cache --cache-socket run.sock --verity --json -o image {options}");
        let output = workspace.command(line.split_whitespace()).output().unwrap();
        assert_eq!(output.status.code(), Some(0), "{}", String::from_utf8_lossy(&output.stderr));
        assert_eq!(String::from_utf8_lossy(&output.stderr).matches("warning: ").count(), 0);
        assert!(workspace.read("image") == sealed, "{options}");
        let report: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
        report["hashedBytes"].as_u64().unwrap()
    };
    let of_tables = build("");
    assert!(of_tables < 100_000, "{of_tables}");
    assert_eq!(build(""), of_tables);
    assert!(build("--cache-verify") > 400_000, "the service is not trusted");
    // Damaged hashes are computed again.
    let only_file = |directory: &str| {
        let settings = fs::read_dir(workspace.path(directory)).unwrap().next().unwrap().unwrap().path();
        fs::read_dir(settings).unwrap().next().unwrap().unwrap().path()
    };
    let flip = |file: &Path, byte: usize| {
        let mut bytes = fs::read(file).unwrap();
        bytes[byte] ^= 1;
        fs::write(file, bytes).unwrap();
    };
    let kept = only_file("served/v2/verity");
    flip(&kept, 40);
    assert_eq!(build(""), of_tables);
    fs::remove_file(&kept).unwrap();
    assert_eq!(build(""), of_tables);

    // An intact pack has the same identity as a damaged one, so there are no hashes of a damaged one.
    flip(&only_file("served/v2/packs"), 5000);
    fs::remove_file(&kept).unwrap();
    let line = format!("{BUILD} --cache own --cache-socket run.sock --verity --json -o image");
    let output = workspace.command(line.split_whitespace()).output().unwrap();
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(stderr.contains("the pack is damaged"), "{stderr}");
    assert!(workspace.read("image") == sealed && !kept.exists());
    workspace.run("cache fsck --cache served").success();
    assert_eq!(build(""), of_tables);

    // The client hashes its own copy of a pack that the service has removed.
    fs::remove_file(&kept).unwrap();
    let pack = only_file("served/v2/packs");
    fs::remove_file(&pack).unwrap();
    let client = CacheClient::connect(&workspace.path("run.sock")).unwrap().unwrap();
    let path = StorePath::from_base_name(NAME).unwrap();
    let planned = PlannedPath { path, nar_hash: Some(testing::nar_sha256(&file)), nar_size_bytes: None };
    let settings = ImageSettings::new(Compression::Zstd, Some(3), None, None).unwrap();
    assert!(client.find_block_hashes(&planned, &settings).unwrap().is_none());
    assert!(!pack.exists() && !kept.exists(), "the pack was made again for its hashes");
    assert!(client.find_pack(&planned, &settings).unwrap().is_some());
    assert!(client.find_block_hashes(&planned, &settings).unwrap().is_some());
}

#[test]
fn the_second_build_gets_everything_from_the_service_and_makes_the_same_image() {
    let host = Host::new();
    let server = host.serve("");
    let (stderr, _) = host.build("run.sock", "");
    assert!(!stderr.contains("warning"), "{stderr}");
    for options in ["", "-j 1", "-j 7", "--cache-verify"] {
        let (stderr, report) = host.build("run.sock", options);
        assert!(!stderr.contains("warning"), "{options}: {stderr}");
        let known = if options == "--cache-verify" { "missedBytes" } else { "hitPaths" };
        assert_eq!(report["cache"][known], if known == "hitPaths" { 3 } else { 0 }, "{options}: {report}");
    }
    assert_eq!(server.stop(), (Some(0), String::new()));
    assert!(!host.workspace.path("run.sock").exists());
}

#[test]
fn another_user_gets_the_packs_made_for_the_first() {
    let host = Host::new();
    let _server = host.serve("");
    host.build("run.sock", "");
    let line = format!("{BUILD} --no-cache --cache-socket run.sock --json -o of-nobody");
    fs::remove_file(host.workspace.path("image")).unwrap();
    let output = host.workspace.command_of_ordinary_user(line.split_whitespace()).output().unwrap();
    fs::rename(host.workspace.path("of-nobody"), host.workspace.path("image")).unwrap();
    let (stderr, report) = host.finished(output);
    assert_eq!(report["cache"]["hitPaths"], 3, "{stderr}");
}

#[test]
fn a_service_at_the_default_socket_is_used_together_with_the_users_cache() {
    let host = Host::new();
    let _server = host.serve("");
    let build = |name: &str| {
        let line = format!("{BUILD} --json -o image");
        let mut command = host.workspace.command(line.split_whitespace());
        command.env("MICROVM_IMAGE_CACHE_SOCKET", name).env("MICROVM_IMAGE_CACHE", host.workspace.path("own"));
        host.finished(command.output().unwrap())
    };
    // A missing service is not reported unless an option requests it.
    assert!(!build("absent.sock").0.contains("warning"));
    fs::remove_dir_all(host.workspace.path("own")).unwrap();
    build("run.sock");
    fs::remove_file(host.workspace.path("image")).unwrap();
    fs::remove_dir_all(host.workspace.path("own")).unwrap();
    assert_eq!(build("run.sock").1["cache"]["hitPaths"], 3);
}

#[test]
fn the_pack_of_a_path_that_is_not_valid_in_nix_comes_from_the_users_cache() {
    let host = Host::new();
    host.nix.remove(TOOLS);
    let _server = host.serve("");
    for hits in [0, 3] {
        let line = format!("{BUILD} --cache-socket run.sock --json -o image");
        let _ = fs::remove_file(host.workspace.path("image"));
        let (stderr, report) = host.finished(host.workspace.command(line.split_whitespace()).output().unwrap());
        assert!(!stderr.contains("warning"), "{stderr}");
        if hits > 0 {
            assert_eq!(report["cache"]["hitPaths"], hits, "{report}");
        }
    }
}

#[test]
fn a_socket_given_by_an_option_without_a_service_is_reported() {
    let host = Host::new();
    host.expect_warning("nowhere.sock", "no cache service at nowhere.sock");
    host.workspace.write("file.sock", "");
    host.expect_warning("file.sock", "cannot reach the cache service at file.sock");
    host.workspace
        .run(&format!("{BUILD} --no-cache --cache-verify -o image"))
        .failure(2, "error: --cache-verify was given, but --no-cache leaves no cache to verify\n");
}

#[test]
fn wrong_truncated_and_random_packs_only_make_a_build_slower() {
    let host = Host::new();
    let greeting = host.pack(GREETING);
    let tools = host.pack(TOOLS);
    let random: Vec<u8> = (0..200_u32).flat_map(|number| *blake3::hash(&number.to_le_bytes()).as_bytes()).collect();
    let mut flipped = tools.clone();
    flipped[0] ^= 1;
    let mut other = greeting.clone();
    other.extend_from_slice(&tools);
    for (what, content) in [
        ("empty", Vec::new()),
        ("cut", tools[..tools.len() - 1].to_vec()),
        ("half", tools[..tools.len() / 2].to_vec()),
        ("random", random),
        ("zeros", vec![0; 100_000]),
        ("one after the other", other),
    ] {
        let (_directory, path) =
            broken(move |client| say(client, &Answer::PACK.message().unwrap(), &[file_of(&content)]));
        let (stderr, report) = host.build(path.to_str().unwrap(), "");
        assert!(stderr.contains("3 damaged paths rebuilt"), "{what}: {stderr}");
        assert_eq!(report["cache"]["hitBytes"], 0, "{what}: {report}");
    }
    // A valid pack of another path, and one with a wrong bit: the build creates the right ones itself.
    for (what, content) in [("of another path", greeting), ("flipped", flipped)] {
        let (_directory, path) =
            broken(move |client| say(client, &Answer::PACK.message().unwrap(), &[file_of(&content)]));
        let (stderr, _) = host.build(path.to_str().unwrap(), "");
        assert!(stderr.contains("damaged paths rebuilt"), "{what}: {stderr}");
    }
}

#[test]
fn a_descriptor_that_cannot_be_read_only_makes_a_build_slower() {
    let host = Host::new();
    let tools = host.pack(TOOLS);
    host.workspace.write("pack", "");
    fs::write(host.workspace.path("pack"), tools).unwrap();
    for flags in [nix::libc::O_PATH, nix::libc::O_WRONLY] {
        let path = host.workspace.path("pack");
        let (_directory, socket) = broken(move |client| {
            let write = flags == nix::libc::O_WRONLY;
            let file =
                File::options().read(!write).write(write).custom_flags(flags & nix::libc::O_PATH).open(&path).unwrap();
            say(client, &Answer::PACK.message().unwrap(), &[file.into()]);
        });
        let (stderr, _) = host.build(socket.to_str().unwrap(), "");
        assert!(stderr.contains("warning: "), "{stderr}");
    }
}

#[test]
fn a_silent_service_only_makes_a_build_slower() {
    let host = Host::new();
    let (_directory, path) = broken(|_| {});
    host.expect_warning(path.to_str().unwrap(), "did not answer in time");
}

#[test]
fn a_build_whose_service_is_killed_at_any_moment_makes_the_same_image() {
    let host = Host::new();
    for step in 0..12 {
        let mut server = host.serve("");
        let line = format!("{BUILD} --no-cache --cache-socket run.sock --json -o image");
        let build = host
            .workspace
            .command(line.split_whitespace())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        thread::sleep(Duration::from_millis(step * 4));
        server.0.kill().unwrap();
        server.0.wait().unwrap();
        host.finished(build.wait_with_output().unwrap());
        // It leaves complete packs and nothing that must be cleaned up. One that was killed before the build asked for
        // a pack has not created its cache.
        if host.workspace.path("served").exists() {
            let checked = host.workspace.run("cache fsck --cache served --json");
            let checked: serde_json::Value = serde_json::from_str(&checked.success()).unwrap();
            assert_eq!(checked["damaged"], serde_json::json!([]), "step {step}");
        }
        // The next service replaces the socket that the killed one left.
        if step % 3 == 0 {
            let _ = fs::remove_dir_all(host.workspace.path("served"));
        }
        fs::remove_file(host.workspace.path("run.sock")).unwrap();
    }
}

#[test]
fn a_client_that_is_killed_at_any_moment_does_not_affect_the_service() {
    let host = Host::new();
    let server = host.serve("");
    for step in 0..12 {
        let line = format!("{BUILD} --no-cache --cache-socket run.sock -q -o killed");
        let mut build = host
            .workspace
            .command(line.split_whitespace())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        thread::sleep(Duration::from_millis(step * 4));
        build.kill().unwrap();
        build.wait().unwrap();
    }
    let (stderr, _) = host.build("run.sock", "");
    assert!(!stderr.contains("warning"), "{stderr}");
    assert_eq!(host.build("run.sock", "").1["cache"]["hitPaths"], 3);
    assert_eq!(server.stop().0, Some(0));
}

/// Returns a command that runs in its own mount namespace, in which `directory` has only a number of kilobytes.
fn on_small_disk(host: &Host, kilobytes: usize, directory: &str, line: &str) -> Command {
    let script = format!(
        "mkdir -p {directory} && mount -t tmpfs -o size={kilobytes}k small {directory} || exit 99; exec \"$0\" {line}"
    );
    let mut command = Command::new("unshare");
    command.args(["--mount", "--propagation", "private", "sh", "-c", &script]);
    command.arg(env!("CARGO_BIN_EXE_microvm-image")).current_dir(host.workspace.root()).stdin(Stdio::null());
    command
}

#[test]
fn a_service_with_a_full_disk_only_makes_a_build_slower() {
    if !nix::unistd::geteuid().is_root() {
        return testing::missing("only root can mount a small disk");
    }
    let host = Host::new();
    for kilobytes in [4, 8, 12, 16, 20, 24, 32, 64] {
        let line = "cache serve --cache served/cache --socket run.sock --store-dir store --nix-daemon nix.sock";
        let mut command = on_small_disk(&host, kilobytes, "served", line);
        let mut child = command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
        let mut ended = false;
        wait_until("the service listens, or cannot", || {
            ended = child.try_wait().unwrap().is_some();
            ended || host.workspace.path("run.sock").exists()
        });
        let server = Server(child);
        if !ended {
            host.build("run.sock", "");
            host.build("run.sock", "");
            assert_eq!(server.stop().0, Some(0), "{kilobytes} KiB");
        }
        let _ = fs::remove_file(host.workspace.path("run.sock"));
    }
}

#[test]
fn a_limit_of_the_size_of_files_ended_the_service() {
    let host = Host::new();
    let line = "cache serve --cache served --socket run.sock --store-dir store --nix-daemon nix.sock";
    let script = format!("ulimit -f 0 && exec \"$0\" {line}");
    let mut command = host.workspace.command_of(Path::new("sh"), ["-c", &script]);
    command.arg(env!("CARGO_BIN_EXE_microvm-image")).stdout(Stdio::null()).stderr(Stdio::piped());
    let server = Server(command.spawn().unwrap());
    wait_until("the service listens", || host.workspace.path("run.sock").exists());
    for _ in 0..2 {
        host.expect_warning("run.sock", "File too large (os error 27)");
    }
    assert_eq!(server.stop().0, Some(0));
}

#[test]
fn a_build_with_the_service_on_a_full_disk_says_so_and_leaves_nothing() {
    if !nix::unistd::geteuid().is_root() {
        return testing::missing("only root can mount a small disk");
    }
    let host = Host::new();
    let server = host.serve("");
    let mut codes = Vec::new();
    for kilobytes in (4..=32).step_by(4) {
        let line =
            format!("{BUILD} --cache small/cache --cache-socket run.sock -q -o small/image; code=$?; ls -A small");
        let line = format!("{line}; cmp small/image image 2>/dev/null && echo same; exit $code");
        let script = format!(
            "mkdir -p small && mount -t tmpfs -o size={kilobytes}k small small || exit 99; head -c 4000 /dev/zero >small/other; \"$0\" {line}"
        );
        let mut command = Command::new("unshare");
        command.args(["--mount", "--propagation", "private", "sh", "-c", &script]);
        command.arg(env!("CARGO_BIN_EXE_microvm-image")).current_dir(host.workspace.root()).stdin(Stdio::null());
        let output = command.output().unwrap();
        let (stdout, stderr) = (String::from_utf8(output.stdout).unwrap(), String::from_utf8(output.stderr).unwrap());
        match output.status.code() {
            Some(0) => assert!(stdout.ends_with("same\n"), "{kilobytes} KiB: {stdout}"),
            Some(1) => {
                assert!(stderr.contains("No space left on device"), "{kilobytes} KiB: {stderr}");
                assert!(!stdout.contains("image"), "{kilobytes} KiB: {stdout}");
            }
            code => panic!("{kilobytes} KiB: {code:?}: {stderr}"),
        }
        codes.extend(output.status.code());
    }
    assert_eq!((codes.first(), codes.last()), (Some(&1), Some(&0)));
    assert_eq!(server.stop().0, Some(0));
}

#[test]
fn a_forged_pack_of_the_service_is_found_when_the_store_is_compared() {
    let host = Host::new();
    // Of the same length, so that only the content tells.
    fs::write(host.workspace.path("forged"), "HELLO\n").unwrap();
    let forged = host.pack_of(GREETING, &host.workspace.path("forged"));
    let (_directory, path) = broken(move |client| say(client, &Answer::PACK.message().unwrap(), &[file_of(&forged)]));
    let (stderr, report) = host.build(path.to_str().unwrap(), "--cache-verify");
    assert!(report["cache"]["rebuiltPaths"].as_u64().unwrap() >= 1, "{stderr}");
    // The service is trusted otherwise, as the store is.
    let line = format!("{BUILD} --no-cache --cache-socket {} -q -o trusting", path.display());
    host.workspace.run(&line).success();
    assert!(host.workspace.read("trusting") != host.image);
}

#[test]
fn the_cache_of_the_service_stays_below_its_size() {
    let host = Host::new();
    let server = host.serve("--max-size 5K");
    for level in 1..12 {
        let line = format!(
            "build --closure-info info --store-dir store --level {level} --no-cache --cache-socket run.sock -q -o other"
        );
        host.workspace.run(&line).success();
    }
    drop(server);
    assert!(bytes_below(&host.workspace.path("served")) <= 5 << 10);
}

fn bytes_below(directory: &Path) -> u64 {
    let entries = fs::read_dir(directory).unwrap().map(Result::unwrap);
    entries
        .map(|entry| {
            let metadata = entry.metadata().unwrap();
            // Links take no blocks.
            if metadata.is_dir() { bytes_below(&entry.path()) } else { u64::from(metadata.is_file()) * metadata.len() }
        })
        .sum()
}

#[test]
fn a_service_that_cannot_start_reports_why() {
    let host = Host::new();
    host.workspace.run("cache serve --cache served").failure(
        2,
        "error: there is no socket to listen on\n\
         hint: start the service by a socket unit of systemd, or specify a socket with --socket PATH\n",
    );
    let _server = host.serve("");
    let run =
        host.workspace.run("cache serve --cache served --socket run.sock --store-dir store --nix-daemon nix.sock");
    run.failure(2, "error: another process already listens on run.sock\n");
}

#[test]
fn the_service_makes_no_pack_of_a_damaged_store_path() {
    let host = Host::new();
    let greeting = host.workspace.path("store").join(GREETING);
    let mut damaged = fs::read(&greeting).unwrap();
    damaged[0] ^= 1;
    fs::remove_file(&greeting).unwrap();
    fs::write(&greeting, damaged).unwrap();
    let server = host.serve("");
    let line = format!("{BUILD} --cache-socket run.sock -q -o damaged");
    let Run { code, stderr, .. } = host.workspace.run(&line);
    assert_eq!(code, 2, "{stderr}");
    let lines: Vec<&str> = stderr.lines().filter(|line| line.contains("has the NAR hash sha256:")).collect();
    assert!(lines[0].starts_with("warning: the cache service at run.sock refused the request: "), "{stderr}");
    assert!(lines[1].starts_with("error: ") && lines.len() == 2, "{stderr}");
    let script = format!("find cache served -name '{}-*'", &GREETING[..32]);
    let found = Command::new("sh").args(["-c", &script]).current_dir(host.workspace.root()).output().unwrap();
    assert_eq!(String::from_utf8_lossy(&found.stdout), "");
    assert_eq!(server.stop().0, Some(0));
}
