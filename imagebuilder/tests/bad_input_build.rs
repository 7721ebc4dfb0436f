//! Invalid options, outputs and stores are refused before any work, and leave nothing behind.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod program;

use program::{ABSENT, GREETING, Run, TOOLS, Workspace, has_tool, registration, store_paths};
use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::os::unix::net::UnixListener;
use std::process::Command;
use testing::{NEGATIVE, NOT_NUMBERS, TWO_TO_63, TWO_TO_64, YEAR_AND_A_SECOND};

const BUILD: &str = "build --closure-info info --store-dir store";

#[test]
fn an_output_replaced_the_list_or_the_plan_that_the_closure_was_read_from() {
    let workspace = Workspace::with_store();
    workspace.write("list", &store_paths());
    workspace.run("plan --closure-info info --store-dir store -o plan.json").success();
    symlink("list", workspace.path("link")).unwrap();
    for (option, file, output) in [
        ("--paths-from", "list", "list"),
        ("--paths-from", "link", "list"),
        ("--paths-from", "link", "./link"),
        ("--graph", "attrs.json", "./attrs.json"),
        ("--plan", "plan.json", "store/../plan.json"),
    ] {
        let before = workspace.read(file);
        let message =
            format!("error: --output would replace the file of {option}, {file}\nhint: choose another output\n");
        workspace.run(&format!("build --store-dir store {option} {file} -o {output}")).failure(2, &message);
        if option != "--plan" {
            workspace.run(&format!("plan --store-dir store {option} {file} -o {output}")).failure(2, &message);
        }
        assert!(workspace.read(file) == before, "{option} {file}");
    }
    // The spec of the machine, the seal of the image, a file of a directory and one on stdin are inputs too.
    let kernel = r#"{"version": 1, "name": "web", "hypervisor": "qemu", "kernel": "/k"}"#;
    workspace.write("machine.json", kernel);
    workspace.write("image.verity.json", &store_paths());
    let more = [
        ("--machine machine.json --paths-from list -o machine.json", "--machine, machine.json"),
        ("--paths-from image.verity.json --verity -o image", "--paths-from, image.verity.json"),
        ("--closure-info info -o info/registration", "--closure-info, info/registration"),
        ("--closure-info info -o info/../info/store-paths", "--closure-info, info/store-paths"),
    ];
    for (options, file) in more {
        let message = format!("error: --output would replace the file of {file}\nhint: choose another output\n");
        workspace.run(&format!("build --store-dir store {options}")).failure(2, &message);
    }
    let list = fs::File::open(workspace.path("list")).unwrap();
    let build = ["build", "--store-dir", "store", "--paths-from", "-", "-o", "list"];
    let output = workspace.command(build).stdin(list).output().unwrap();
    assert_eq!(output.status.code(), Some(2), "{}", String::from_utf8_lossy(&output.stderr));
    assert_eq!(workspace.read("list"), store_paths().as_bytes());
    // Replacing another name of the list leaves the list.
    fs::hard_link(workspace.path("list"), workspace.path("other")).unwrap();
    workspace.run("build --quiet --store-dir store --paths-from list -o other").success();

    // A plan may be rewritten, and a link to the list is only replaced.
    workspace.run("plan --store-dir store --plan plan.json -o plan.json").success();
    workspace.run("build --quiet --store-dir store --paths-from list -o link").success();
    assert_eq!(workspace.read("list"), store_paths().as_bytes());
}

#[test]
fn codecs_levels_and_sizes_out_of_range_are_refused() {
    let workspace = Workspace::with_store();
    for (option, message) in [
        ("--level 0", "level 0 is out of range for zstd: it supports 1 to 22"),
        ("--level 23", "level 23 is out of range for zstd: it supports 1 to 22"),
        ("--compression gzip --level 10", "level 10 is out of range for gzip: it supports 1 to 9"),
        ("--compression xz --level 10", "level 10 is out of range for xz: it supports 0 to 9"),
        ("--compression lz4 --level 1", "lz4 has no levels, but level 1 was given"),
        ("--compression none --level 1", "none has no levels, but level 1 was given"),
        ("--block-size 2M", "block size 2097152 is not a power of two from 4096 (4K) to 1048576 (1M)"),
        ("--block-size 100K", "block size 102400 is not a power of two from 4096 (4K) to 1048576 (1M)"),
        (
            "--block-size 64K --fragment-block-size 128K",
            "fragment block size 131072 is not a power of two from 4096 to the block size 65536",
        ),
    ] {
        workspace.run(&format!("{BUILD} -o image {option}")).failure(2, &format!("error: {message}\n"));
    }
    let more = "\n\nFor more information, try '--help'.\n";
    for (option, message) in [
        (
            "--compression best",
            "invalid value 'best' for '--compression <CODEC>'\n  [possible values: zstd, gzip, xz, lz4, none]",
        ),
        ("--level high", "invalid value 'high' for '--level <N>': it must be a whole number"),
        (
            "--block-size 4Q",
            "invalid value '4Q' for '--block-size <SIZE>': \"Q\" in \"4Q\" is not a unit: use K, M, G or T \
             (or KiB, MiB, GiB, TiB), each 1024 times the previous one",
        ),
        ("--jobs 0", "invalid value '0' for '--jobs <N>': it must be a number of threads from 1 to 256"),
        ("--jobs 257", "invalid value '257' for '--jobs <N>': it must be a number of threads from 1 to 256"),
        ("--jobs 100000", "invalid value '100000' for '--jobs <N>': it must be a number of threads from 1 to 256"),
    ] {
        workspace.run(&format!("{BUILD} -o image {option}")).failure(2, &format!("error: {message}{more}"));
    }
    let run = workspace.run(&format!("{BUILD} -o image --no-cache --cache-verify"));
    run.failure(2, "error: --cache-verify was given, but --no-cache leaves no cache to verify\n");
    assert_eq!(workspace.names(), ["attrs.json", "info", "store"]);
}

#[test]
fn numbers_that_are_none_or_out_of_range_are_refused_by_every_command() {
    let workspace = Workspace::with_store();
    let serve = ["cache", "serve", "--cache", "cache", "--socket", "socket"];
    let build: Vec<_> = BUILD.split(' ').chain(["-o", "image"]).collect();
    // The words before the number, and the numbers that only this option refuses.
    let options: [(&[&str], &str, &[&str]); 19] = [
        (&build, "--jobs", &["0", "1k", "257", "18446744073709551615"]),
        (&build, "--level", &["-1", "1k", "4294967296"]),
        (&build, "--block-size", &["0", "1Q", "18446744073709551615T"]),
        (&build, "--fragment-block-size", &["0", "1Q", "18446744073709551615T"]),
        (&["verify", "image"], "--jobs", &["0", "257"]),
        (&["verify", "image"], "--max-problems", &["1k"]),
        (&["diff", "image", "image"], "--jobs", &["0", "257"]),
        (&["diff", "image", "image"], "--max-differences", &["1k"]),
        (&["size", "image"], "--top", &["1k"]),
        (&["extract", "image", "--output", "out"], "--jobs", &["0", "257"]),
        (&["serve", "--closure-info", "info", "--socket", "socket"], "--queues", &["0", "1k", "65536"]),
        (&serve, "--max-size", &["1Q", "18446744073709551615T"]),
        (&serve, "--jobs", &["0", "257"]),
        (&serve, "--max-clients", &["0", "1k"]),
        (&serve, "--max-clients-per-user", &["0", "1k"]),
        (&serve, "--request-timeout", &["0", "1k", YEAR_AND_A_SECOND]),
        (&serve, "--client-timeout", &["0", "1k", YEAR_AND_A_SECOND]),
        (&serve, "--idle-exit", &["1k", YEAR_AND_A_SECOND]),
        (&["volume", "create", "--fs", "ext4", "volume"], "--size", &["0", "1Q", "513", TWO_TO_63, "8388608T"]),
    ];
    for (before, option, refused) in options {
        let words = option.trim_start_matches('-').replace('-', " ");
        for number in NOT_NUMBERS.iter().chain(&[NEGATIVE, TWO_TO_64]).chain(refused) {
            let argument = format!("{option}={number}");
            let mut ways = vec![vec![argument.as_str()]];
            // As a word of its own, it looked like an option.
            ways.extend((*number == NEGATIVE).then(|| vec![option, number]));
            for way in ways {
                let output = workspace.command(before.iter().chain(&way)).output().unwrap();
                let message = String::from_utf8_lossy(&output.stderr);
                assert_eq!(output.status.code(), Some(2), "{before:?} {way:?}: {message}");
                let says_why = message.starts_with("error: ") && (message.contains(option) || message.contains(&words));
                assert!(says_why && !message.contains("panicked"), "{before:?} {way:?}: {message}");
            }
        }
    }
    assert_eq!(workspace.names(), ["attrs.json", "info", "store"]);
}

#[test]
fn outputs_that_cannot_be_written_are_refused() {
    let workspace = Workspace::with_store();
    let _socket = UnixListener::bind(workspace.path("socket")).unwrap();
    symlink("/dev/null", workspace.path("link")).unwrap();
    symlink("/dev/stdout", workspace.path("stdout")).unwrap();
    let names = workspace.names();
    let only = "and only regular files are replaced";
    for (output, message) in [
        ("missing/image", "cannot write missing/image: there is no directory missing".to_owned()),
        ("info", format!("cannot write info: it is a directory, {only}")),
        ("attrs.json/image", "cannot write attrs.json/image: there is no directory attrs.json".to_owned()),
        ("..", format!("cannot write ..: it is a directory, {only}")),
        ("/dev/null", format!("cannot write /dev/null: it is a character device, {only}")),
        ("link", format!("cannot write link: it is a character device, {only}")),
        ("socket", format!("cannot write socket: it is a socket, {only}")),
        ("-", format!("cannot write -: it is an open file such as stdout, {only}")),
        ("/dev/stdout", format!("cannot write /dev/stdout: it is an open file such as stdout, {only}")),
        ("stdout", format!("cannot write stdout: it is an open file such as stdout, {only}")),
        ("/proc/self/fd/0", format!("cannot write /proc/self/fd/0: it is an open file such as stdout, {only}")),
    ] {
        workspace.run(&format!("{BUILD} -o {output}")).failure(2, &format!("error: {message}\n"));
        workspace.run(&format!("plan --closure-info info -o {output}")).failure(2, &format!("error: {message}\n"));
    }
    assert_eq!(workspace.names(), names);
}

#[test]
fn the_link_dev_stdout_was_replaced_by_an_image() {
    let workspace = Workspace::with_store();
    // A link of this kind, which root could replace, to a regular file.
    symlink("/proc/self/fd/1", workspace.path("stdout")).unwrap();
    for line in [format!("{BUILD} --no-cache -q -o stdout"), "plan --closure-info info -o stdout".to_owned()] {
        let mut command = workspace.command(line.split(' '));
        let output = command.stdout(fs::File::create(workspace.path("out")).unwrap()).output().unwrap();
        assert_eq!(output.status.code(), Some(2), "{line}");
        assert!(fs::symlink_metadata(workspace.path("stdout")).unwrap().is_symlink(), "{line}");
        assert_eq!(workspace.read("out"), b"", "{line}");
    }
}

#[test]
fn an_image_replaced_a_file_of_the_store_path_that_it_was_made_from() {
    let workspace = Workspace::with_store();
    symlink("store", workspace.path("same")).unwrap();
    let before = workspace.read(&format!("store/{GREETING}"));
    fs::set_permissions(workspace.path("store").join(TOOLS), fs::Permissions::from_mode(0o755)).unwrap();
    for place in [format!("store/{GREETING}"), format!("store/{TOOLS}/image"), format!("same/{TOOLS}/bin/run")] {
        let store_path = if place.ends_with("greeting") { GREETING } else { TOOLS };
        workspace.run(&format!("{BUILD} --no-cache -q -o {place}")).failure(
            2,
            &format!(
                "error: cannot write {place}: it is in the store path {store_path}, which the image is made from\n"
            ),
        );
    }
    assert_eq!(workspace.read(&format!("store/{GREETING}")), before);
    // A derivation writes its output into the store.
    workspace.run(&format!("{BUILD} --no-cache -q -o store/{ABSENT}")).success();
}

#[test]
fn an_image_among_the_packs_was_removed_by_the_next_collection() {
    let workspace = Workspace::with_store();
    workspace.run(&format!("{BUILD} -q -o image")).success();
    for place in ["cache/v2/image", "cache/v2/packs/image"] {
        workspace.run(&format!("{BUILD} -q -o {place}")).failure(
            2,
            &format!(
                "error: cannot write {place}: the cache removes the files in {}\n",
                workspace.path("cache/v2").display()
            ),
        );
    }
    workspace.run(&format!("{BUILD} -q -o cache/image")).success();
    workspace.run("cache gc --max-size 0").success();
    assert!(workspace.path("cache/image").is_file());
}

#[test]
fn a_full_disk_is_an_error_with_a_hint() {
    let workspace = Workspace::with_store();
    let store = workspace.path("store");
    // Random, so that it does not compress.
    let noise: Vec<u8> =
        (0..40_000_u64).flat_map(|number| blake3::hash(&number.to_le_bytes()).as_bytes()[..16].to_vec()).collect();
    fs::write(store.join("3aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa-noise"), noise).unwrap();
    workspace.write("list", "3aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa-noise\n");
    fs::create_dir(workspace.path("small")).unwrap();
    if !has_tool("unshare") {
        return;
    }
    let script = "mount -t tmpfs -o size=256k small small || exit 99; \
                  \"$0\" build --paths-from list --store-dir store --no-cache -o small/image; code=$?; ls -A small; exit $code";
    let program = workspace.command([] as [&str; 0]).get_program().to_owned();
    let output = Command::new("unshare")
        .args(["--user", "--map-root-user", "--mount", "sh", "-c", script])
        .arg(program)
        .current_dir(workspace.root())
        .output()
        .unwrap();
    let stderr = String::from_utf8(output.stderr).unwrap();
    if output.status.code() == Some(99) || stderr.starts_with("unshare:") {
        testing::missing(&format!("no tmpfs can be mounted: {stderr}"));
        return;
    }
    let expected = "error: cannot write small/image: No space left on device (os error 28)\n\
                    hint: free some space there, or write to another file system\n";
    assert_eq!(stderr, expected);
    assert_eq!((output.status.code(), output.stdout.as_slice()), (Some(1), b"".as_slice()));
}

#[test]
fn commands_continue_with_fewer_threads_and_one_warning_if_threads_cannot_be_started() {
    let workspace = Workspace::with_store();
    if !nix::unistd::geteuid().is_root() {
        testing::missing("only root can run a program as a user of its own, whose processes are limited");
        return;
    }
    if !has_tool("prlimit") || !has_tool("setpriv") {
        return;
    }
    workspace.run(&format!("{BUILD} -j 1 --no-cache -o expected")).success();
    let program = workspace.command_of_ordinary_user([] as [&str; 0]).get_program().to_owned();
    // A user without other processes.
    let user = (1 << 29) + std::process::id();
    // One more thread waits for signals.
    for (command, processes, wanted) in [
        (format!("{BUILD} -q -j 64 -o image"), 6, 64),
        (format!("{BUILD} -q --json -j 64 --cache other -o image"), 6, 64),
        (format!("{BUILD} -q -j 64 --no-cache --format erofs -o erofs"), 2, 2),
        (format!("{BUILD} -q -j 1 --no-cache --format erofs -o erofs"), 2, 0),
        ("verify -j 64 image".to_owned(), 6, 64),
        ("extract -j 64 image -o extracted".to_owned(), 6, 64),
        ("diff -j 64 image expected".to_owned(), 6, 64),
    ] {
        let output = Command::new("setpriv")
            .args([&format!("--reuid={user}"), "--clear-groups", "prlimit", &format!("--nproc={processes}")])
            .arg(&program)
            .args(command.split(' '))
            .current_dir(workspace.root())
            .env("MICROVM_IMAGE_CACHE", workspace.path("cache"))
            .output()
            .unwrap();
        let stderr = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(0), "{command}: {stderr}");
        let warning = format!(" of {wanted} threads could be started, so that this took longer\n");
        assert_eq!(stderr.matches("warning: only ").count(), usize::from(wanted > 0), "{command}: {stderr}");
        assert!(wanted == 0 || stderr.ends_with(&warning), "{command}: {stderr}");
        assert!(workspace.read("image") == workspace.read("expected"), "{command}");
    }
}

#[test]
fn store_paths_without_read_permission_are_refused() {
    let workspace = Workspace::with_store();
    let hidden = "3aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa-hidden";
    let path = workspace.path("store").join(hidden);
    fs::write(&path, "").unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o000)).unwrap();
    workspace.write("list", &format!("{}{hidden}\n", store_paths()));
    let arguments = "build --paths-from list --store-dir store --no-cache -o image".split(' ');
    let output = workspace.command_of_ordinary_user(arguments).output().unwrap();
    let expected = format!(
        "error: 1 of 4 store paths cannot be read in {}:\n  {hidden}: Permission denied (os error 13)\n\
         hint: use --store-dir DIR if the store paths are in another directory\n",
        workspace.path("store").display()
    );
    assert_eq!((output.status.code(), String::from_utf8(output.stderr).unwrap()), (Some(2), expected));
    assert!(!workspace.path("image").exists());
}

#[test]
fn a_store_path_with_another_size_than_registered_is_refused() {
    let workspace = Workspace::with_store();
    workspace.write("info/registration", &registration().replace("\n1104\n", "\n1112\n"));
    let run = workspace.run(&format!("{BUILD} --no-cache -o image"));
    run.failure(
        2,
        &format!(
            "error: {}/{TOOLS} has a NAR size of 1104 bytes, but the closure's source says 1112: \
             the store path is damaged, or the source describes another one\n\
             hint: `nix-store --verify-path PATH` checks a store path; `nix-store --repair-path PATH`, as root, \
             replaces a damaged one\n",
            workspace.path("store").display()
        ),
    );
    assert!(!workspace.path("image").exists());
}

#[test]
fn files_that_cannot_occur_in_a_store_are_refused() {
    let workspace = Workspace::with_store();
    let [socket, setuid] = ["3aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa-socket", "4aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa-setuid"];
    workspace.write("list", &format!("{}{socket}\n{setuid}\n", store_paths()));
    let store = workspace.path("store");
    let _socket = UnixListener::bind(store.join(socket)).unwrap();
    fs::write(store.join(setuid), "").unwrap();
    fs::set_permissions(store.join(setuid), fs::Permissions::from_mode(0o4755)).unwrap();
    let run = workspace.run("build --paths-from list --store-dir store --no-cache -o image");
    let store = store.display();
    assert_eq!(run.code, 2);
    for line in [
        format!("{store}/{socket} is a socket: a Nix store holds only regular files, directories and symbolic links"),
        format!("{store}/{setuid} has mode 4755: a Nix store holds no setuid, setgid or sticky files"),
    ] {
        assert!(run.stderr.contains(&line), "{}", run.stderr);
    }
    assert!(!workspace.path("image").exists());
}

#[test]
fn a_refused_build_leaves_an_existing_image_unchanged() {
    let workspace = Workspace::with_store();
    workspace.write("image", "precious");
    fs::remove_file(workspace.path("store").join(GREETING)).unwrap();
    assert_eq!(workspace.run(&format!("{BUILD} -o image")).code, 2);
    assert_eq!(workspace.read("image"), b"precious");
}

#[test]
fn a_build_without_a_directory_for_the_cache_is_refused() {
    let workspace = Workspace::with_store();
    let mut command = workspace.command_of_ordinary_user(format!("{BUILD} -o image").split(' '));
    let output = command.env_remove("MICROVM_IMAGE_CACHE").env_remove("HOME").output().unwrap();
    assert_eq!(
        (output.status.code(), String::from_utf8(output.stderr).unwrap().as_str()),
        (
            Some(2),
            "error: there is no directory for the cache: neither MICROVM_IMAGE_CACHE nor XDG_CACHE_HOME nor HOME is set\n\
             hint: specify a directory with --cache DIR, or build without a cache: --no-cache\n"
        )
    );
    workspace.write("taken", "");
    // A cache that cannot be used causes a warning and a slower build.
    let run = workspace.run(&format!("{BUILD} -q -o image --cache taken"));
    assert_eq!(
        run.stderr,
        "warning: cannot create a directory in the cache, taken/v2: File exists (os error 17); the image is not affected, \
         but the next build will be slower\n"
    );
    run.success();
    assert!(workspace.path("image").is_file());
}

#[test]
fn a_failed_command_with_json_prints_an_error_object_and_nothing_else_on_stdout() {
    let workspace = Workspace::with_store();
    workspace.write("list", ABSENT);
    for (line, code) in [
        ("build --json --plan missing -o image", 2),
        ("build --json --paths-from list --store-dir store -o image", 2),
        ("build --json --plan /proc/self/mem -o image", 1),
        ("inspect --json missing", 1),
        ("size --json list", 1),
        ("diff --json list list", 1),
        ("extract --json list -o out", 1),
        ("verify --json missing", 1),
        ("volume create --json missing/volume --size 1M --fs ext4", 2),
        ("cache gc --json --max-size many", 2),
        ("cache stat --json --cache", 2),
        ("cache stat --json --cache list", 2),
        ("build --json --bogus", 2),
    ] {
        let run = workspace.run(line);
        assert_eq!(run.code, code, "{line}: {}", run.stderr);
        let document: serde_json::Value = serde_json::from_str(&run.stdout).unwrap_or_else(|error| {
            panic!("{line}: {error}: {}", run.stdout);
        });
        assert_eq!((&document["version"], &document["error"]["exitCode"]), (&1.into(), &code.into()), "{line}");
        let problem = document["error"]["problems"][0].as_str().unwrap();
        assert!(run.stderr.starts_with(&format!("error: {problem}")), "{line}: {problem}\n{}", run.stderr);
    }
}

#[test]
fn an_error_of_the_system_is_neither_bad_input_nor_a_missing_directory() {
    let workspace = Workspace::with_store();
    // Reading this file fails with EIO.
    let io = "Input/output error (os error 5)";
    for option in ["--plan", "--graph", "--paths-from"] {
        let run = workspace.run(&format!("plan {option} /proc/self/mem"));
        assert!(run.stderr.contains(io), "{option}: {}", run.stderr);
        assert_eq!(run.code, 1, "{option}: {}", run.stderr);
    }
    let long = "x".repeat(300);
    let run = workspace.run(&format!("build --closure-info info --store-dir store -o {long}/image"));
    assert!(run.stderr.ends_with("/image: File name too long (os error 36)\n"), "{}", run.stderr);
    assert_eq!(run.code, 2);
}

#[test]
fn a_link_in_the_place_of_the_image_is_replaced_and_its_target_is_not_touched() {
    let workspace = Workspace::with_store();
    workspace.write("precious", "data of somebody");
    symlink("precious", workspace.path("image")).unwrap();
    symlink("nowhere/file", workspace.path("dangling")).unwrap();
    for image in ["image", "dangling"] {
        workspace.run(&format!("{BUILD} -q -o {image}")).success();
        assert!(fs::symlink_metadata(workspace.path(image)).unwrap().is_file(), "{image}");
    }
    assert_eq!(workspace.read("precious"), b"data of somebody");
    assert!(!workspace.path("nowhere").exists());
}

#[test]
fn a_store_path_damaged_before_it_enters_a_cache_is_refused_and_not_cached() {
    let workspace = Workspace::with_store();
    let greeting = workspace.path("store").join(GREETING);
    let sound = fs::read(&greeting).unwrap();
    // As a failing disk would do it: the length is still right.
    let mut damaged = sound.clone();
    damaged[0] ^= 1;
    let write = |content: &[u8]| {
        fs::remove_file(&greeting).unwrap();
        fs::write(&greeting, content).unwrap();
    };
    write(&damaged);
    let Run { code, stderr, .. } = workspace.run(&format!("{BUILD} -o image"));
    assert_eq!(code, 2, "{stderr}");
    assert!(
        stderr.contains(&format!("error: {} has the NAR hash sha256:", greeting.display()))
            && stderr.contains("the store path is damaged, or the source describes another one")
            && stderr.contains("hint: `nix-store --verify-path PATH`"),
        "{stderr}"
    );
    assert!(!workspace.path("image").exists());
    // The other paths are in the cache; this one is not, so the repaired path is read.
    write(&sound);
    let run = workspace.run(&format!("{BUILD} --json -o image"));
    let report: serde_json::Value = serde_json::from_str(&run.success()).unwrap();
    assert_eq!(report["cache"]["missedPaths"], 1, "{report}");
    workspace.run("verify image --closure-info info --store-dir store --nar").success();
    // What is in the cache stays correct.
    write(&damaged);
    fs::remove_file(workspace.path("image")).unwrap();
    workspace.run(&format!("{BUILD} -q -o image")).success();
    write(&sound);
    workspace.run("verify image --closure-info info --store-dir store --nar").success();
}
