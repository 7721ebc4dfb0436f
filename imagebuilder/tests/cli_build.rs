//! `microvm-image build`: all sources of a closure give the same image; its output and reports.

mod program;

use nix::sys::stat::Mode;
use nix::unistd::mkfifo;
use program::{GREETING, LINK, TOOLS, Workspace, has_tool, store_paths};
use std::fs;
use std::os::unix::fs::symlink;
use std::process::{Command, Stdio};

/// The arguments except the source and the output.
const BUILD: &str = "build --store-dir store --quiet -o";

#[test]
fn every_source_gives_the_same_bytes() {
    let workspace = Workspace::with_store();
    workspace.write("list", &store_paths());
    workspace.run("plan --closure-info info --store-dir store -o plan.json").success();
    workspace.run(&format!("{BUILD} first --closure-info info")).success();
    let first = workspace.read("first");
    for source in ["--graph attrs.json", "--paths-from list", "--plan plan.json"] {
        for cache in ["", "--no-cache", "--cache-verify"] {
            workspace.run(&format!("{BUILD} image {source} {cache}")).success();
            assert!(workspace.read("image") == first, "{source} {cache}");
            fs::remove_file(workspace.path("image")).unwrap();
        }
    }
}

#[test]
fn a_seal_described_an_image_that_was_no_longer_there() {
    let workspace = Workspace::with_store();
    let build = |options: &str| {
        workspace.run(&format!("build --quiet --closure-info info --store-dir store -o image {options}")).success();
    };
    for format in ["erofs", "squashfs"] {
        build(&format!("--format {format} --verity"));
        assert!(workspace.path("image.verity.json").exists());
        build(&format!("--format {format}"));
        assert!(!workspace.path("image.verity.json").exists(), "{format}");
    }
    fs::write(workspace.path("image.verity.json"), "my notes").unwrap();
    build("--format erofs");
    assert!(workspace.path("image.verity.json").exists(), "it is not a seal");

    // A build waited for ever for a writer of a named pipe of this name, or read a device without an end.
    fs::remove_file(workspace.path("image.verity.json")).unwrap();
    mkfifo(&workspace.path("image.verity.json"), Mode::S_IRWXU).unwrap();
    build("--format erofs");
    build("--format squashfs");
    fs::remove_file(workspace.path("image.verity.json")).unwrap();
    symlink("/dev/zero", workspace.path("image.verity.json")).unwrap();
    build("--format erofs");
    assert!(workspace.path("image.verity.json").is_symlink(), "it is not a seal");
}

#[test]
fn a_stale_seal_stayed_beside_an_image_that_was_up_to_date() {
    let workspace = Workspace::with_store();
    let build = "build --quiet --closure-info info --store-dir store -o image";
    workspace.run(&format!("{build} --verity")).success();
    let seal = fs::read(workspace.path("image.verity.json")).unwrap();
    workspace.run(build).success();
    fs::write(workspace.path("image.verity.json"), seal).unwrap();
    workspace.run(build).success();
    assert!(!workspace.path("image.verity.json").exists());
}

#[test]
fn the_image_contains_the_store_paths() {
    let workspace = Workspace::with_store();
    workspace.run(&format!("{BUILD} image --closure-info info")).success();
    if !has_tool("unsquashfs") {
        return;
    }
    let target = workspace.path("unpacked");
    let output = Command::new("unsquashfs").arg("-d").arg(&target).arg(workspace.path("image")).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert_eq!(fs::read(target.join(GREETING)).unwrap(), b"hello\n");
    assert_eq!(fs::read(target.join(TOOLS).join("share/notes")).unwrap(), b"notes\n");
    let greeting = format!("/nix/store/{GREETING}");
    assert_eq!(fs::read_link(target.join(LINK)).unwrap().to_str(), Some(greeting.as_str()));
}

#[test]
fn stdout_is_the_path_and_the_summary_is_on_stderr() {
    let workspace = Workspace::with_store();
    let run = workspace.run("build --closure-info info --store-dir store -o image");
    assert_eq!(run.stdout, "image\n");
    let lines: Vec<&str> = run.stderr.lines().collect();
    assert!(lines[0].starts_with("built image in "), "{lines:?}");
    assert_eq!(lines[1], "  closure  30 B in 3 files of 3 paths");
    assert!(lines[2].starts_with("  image    "), "{lines:?}");
    assert_eq!(lines[3], "  cache    0 B (0 %) reused");
    assert!(
        lines[5].starts_with("  time     scan 0.") && lines[5].contains(", publish ") && lines.len() == 6,
        "{lines:?}"
    );
    let quiet = workspace.run("build --closure-info info --store-dir store -o image --quiet");
    assert_eq!((quiet.code, quiet.stdout.as_str(), quiet.stderr.as_str()), (0, "image\n", ""));
}

#[test]
fn the_report_is_json() {
    let workspace = Workspace::with_store();
    let run = workspace.run("build --closure-info info --store-dir store -o image --json -q");
    let report: serde_json::Value = serde_json::from_str(&run.success()).unwrap();
    assert_eq!(report["version"], 1);
    assert_eq!(report["outcome"], "built");
    assert_eq!((&report["paths"], &report["files"], &report["inputBytes"]), (&3.into(), &3.into(), &30.into()));
    let image = workspace.read("image");
    assert_eq!(report["imageBytes"], image.len());
    assert_eq!(report["imageBlake3"], blake3::hash(&image).to_hex().as_str());
    assert_eq!(report["cache"]["missedBytes"], 30);
}

#[test]
fn timings_name_the_work_and_the_store_paths_that_took_most_time() {
    let workspace = Workspace::with_store();
    let run = workspace.run("build --closure-info info --store-dir store -o image --timings");
    let lines: Vec<&str> = run.stderr.lines().collect();
    assert!(lines[6].starts_with("  threads  read 0.") && lines[6].contains("s, compress "), "{lines:?}");
    let mut paths: Vec<&str> = lines[7..].iter().filter_map(|line| line.split_whitespace().last()).collect();
    paths.sort();
    let mut expected = [GREETING, LINK, TOOLS];
    expected.sort();
    // The link has no content, but its NAR hash is checked.
    assert_eq!(paths, expected);
    let run = workspace.run("build --closure-info info --store-dir store -o again --json -q");
    let report: serde_json::Value = serde_json::from_str(&run.success()).unwrap();
    assert!(report["workSeconds"]["copy"].as_f64().unwrap() > 0.0, "{report}");
    assert_eq!((&report["workSeconds"]["read"], &report["slowestPaths"]), (&0.0.into(), &serde_json::json!([])));
    workspace
        .run("build --closure-info info --store-dir store -o image --timings -q")
        .failure(2, "error: the argument '--timings' cannot be used with '--quiet'\n\nUsage: microvm-image build [OPTIONS] --output <IMAGE>\n           [STORE_PATH]...\n\nFor more information, try '--help'.\n");
}

#[test]
fn digests_are_printed_if_requested() {
    let workspace = Workspace::with_store();
    let run = workspace.run("build --closure-info info --store-dir store -o image --digest");
    let image = workspace.read("image");
    assert!(run.stderr.contains(&format!("  blake3   {}\n", blake3::hash(&image).to_hex())), "{}", run.stderr);
    let run = workspace.run("build --closure-info info --store-dir store -o other");
    assert!(!run.stderr.contains("blake3"), "{}", run.stderr);
}

#[test]
fn settings_determine_codec_and_block_size_of_the_image() {
    let workspace = Workspace::with_store();
    let mut images = Vec::new();
    for settings in
        ["", "--compression none", "--compression lz4", "--compression xz", "--compression gzip", "--block-size 4K"]
    {
        workspace.run(&format!("{BUILD} image --closure-info info {settings}")).success();
        images.push(workspace.read("image"));
    }
    // The codec's number and the block size are at the offsets 20 and 12 of the superblock.
    let facts: Vec<(u8, u32)> =
        images.iter().map(|image| (image[20], u32::from_le_bytes(image[12..16].try_into().unwrap()))).collect();
    assert_eq!(facts[2..], [(5, 131_072), (4, 131_072), (1, 131_072), (6, 4096)]);
    assert_eq!(facts[0], (6, 131_072));
}

#[test]
fn the_cache_is_in_the_directory_of_the_option_or_variable() {
    let workspace = Workspace::with_store();
    let build = "build --closure-info info --store-dir store -q -o image";
    workspace.run(&format!("{build} --no-cache")).success();
    assert_eq!(workspace.names(), ["attrs.json", "image", "info", "store"]);
    workspace.run(build).success();
    assert!(workspace.path("cache").is_dir(), "MICROVM_IMAGE_CACHE");
    workspace.run(&format!("{build} --cache named")).success();
    assert!(workspace.path("named").is_dir(), "--cache");
    let run = |name: &str, value: &str| {
        let mut command = workspace.command(build.split(' '));
        assert!(command.env_remove("MICROVM_IMAGE_CACHE").env(name, value).status().unwrap().success());
    };
    run("XDG_CACHE_HOME", workspace.path("xdg").to_str().unwrap());
    assert!(workspace.path("xdg/microvm-image").is_dir(), "XDG_CACHE_HOME");
    run("XDG_CACHE_HOME", "relative");
    assert!(workspace.path(".cache/microvm-image").is_dir(), "HOME");
    assert!(!workspace.path("relative").exists());
}

#[test]
fn a_machine_that_shares_the_hosts_store_needs_no_disk() {
    let workspace = Workspace::with_store();
    workspace.write("machine.json", r#"{"name":"vm","shares":[{"tag":"ro-store","source":"/nix/store/"}],"later":1}"#);
    let reason = r#"the machine's share "ro-store" has the source /nix/store: it needs no store disk"#;
    let run = workspace.run("build --machine machine.json -o image");
    assert_eq!((run.code, run.stdout.as_str()), (0, ""));
    assert_eq!(run.stderr, format!("skipped image: {reason}\n"));
    let run = workspace.run(&format!("{BUILD} image --machine machine.json --closure-info info --json"));
    let report: serde_json::Value = serde_json::from_str(&run.success()).unwrap();
    assert_eq!(report, serde_json::json!({"version": 1, "outcome": "skipped", "reason": reason}));
    assert!(!workspace.path("image").exists());
    workspace.run(&format!("{BUILD} image --machine machine.json --closure-info info --force")).success();
    assert!(workspace.path("image").exists());
}

#[test]
fn a_machine_that_does_not_share_the_hosts_store_needs_a_disk() {
    let workspace = Workspace::with_store();
    workspace.write("machine.json", r#"{"shares":[{"tag":"home","source":"/home"}]}"#);
    workspace.run(&format!("{BUILD} image --machine machine.json --closure-info info")).success();
    assert!(workspace.path("image").exists());
}

#[test]
fn machine_specs_of_the_launcher_are_accepted() {
    let workspace = Workspace::with_store();
    let specs = concat!(env!("CARGO_MANIFEST_DIR"), "/../fixtures/specs");
    let mut outcomes = Vec::new();
    for entry in fs::read_dir(specs).unwrap() {
        let spec = entry.unwrap().path();
        if spec.extension().is_none_or(|extension| extension != "json") {
            continue;
        }
        let text = fs::read_to_string(&spec).unwrap();
        let line = format!("{BUILD} image --machine {} --closure-info info --json --no-cache", spec.display());
        let report: serde_json::Value = serde_json::from_str(&workspace.run(&line).success()).unwrap();
        let expected = if text.contains(r#""source": "/nix/store""#) { "skipped" } else { "built" };
        assert_eq!(report["outcome"], expected, "{}", spec.display());
        outcomes.push(expected);
    }
    assert!(outcomes.contains(&"skipped") && outcomes.contains(&"built"), "{outcomes:?}");
}

#[test]
fn progress_without_a_terminal_is_printed_only_every_few_seconds() {
    let workspace = Workspace::with_store();
    let run = workspace.run("build --closure-info info --store-dir store -o image --no-cache");
    assert!(run.stderr.starts_with("built image"), "{}", run.stderr);
    assert!(!run.stderr.contains('\u{1b}'), "no escapes where there is no terminal: {:?}", run.stderr);
}

#[test]
fn two_builds_to_one_output_left_the_image_of_one_and_the_seal_of_the_other() {
    let workspace = Workspace::with_store();
    // A plain image, and two sealed ones with different seals.
    let builds = ["--level 1", "--level 1 --verity", "--format erofs --verity"].map(|settings| {
        let line = format!("build --closure-info info --store-dir store {settings}");
        workspace.run(&format!("{line} --no-cache -q -o right")).success();
        let seal = fs::read(workspace.path("right.verity.json")).ok();
        (line, workspace.read("right"), seal)
    });
    for round in 0..40 {
        let cache = if round % 2 == 0 { "--no-cache" } else { "--cache cache" };
        let running = builds.each_ref().map(|(line, ..)| {
            let line = format!("{line} {cache} --no-sync -q -o image");
            workspace.command(line.split(' ')).stdout(Stdio::null()).spawn().unwrap()
        });
        for mut build in running {
            assert!(build.wait().unwrap().success());
        }
        let image = workspace.read("image");
        let seal = fs::read(workspace.path("image.verity.json")).ok();
        let (line, _, right) = builds.iter().find(|(_, right, _)| *right == image).unwrap();
        assert!(seal == *right, "round {round}: the image of `{line}` has another seal, or one too many or too few");
        if round % 3 == 0 {
            fs::remove_file(workspace.path("image")).unwrap();
            let _ = fs::remove_file(workspace.path("image.verity.json"));
        }
    }
}
