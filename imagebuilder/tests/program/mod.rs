//! Runs the program under test in a new directory with a small store.

#![allow(dead_code, reason = "each test file uses a part of this")]
#![allow(clippy::unwrap_used, reason = "it fails tests")]

use std::ffi::OsStr;
use std::fs;
use std::io::Write;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use tempfile::TempDir;

/// A store path that is a file.
pub(crate) const GREETING: &str = "0a2m3b4c5d6f7g8h9i0jaka1balcmdnp-greeting";
/// A store path that is a directory with an executable, a file and a link to the greeting.
pub(crate) const TOOLS: &str = "1v9z8y7x6w5s4r3q2p1n0m9l8k7j6ihg-tools";
/// A store path that is a link to the greeting.
pub(crate) const LINK: &str = "2f3d4c5b6a7i8j9k0l1m2n3p4q5r6s7v-link";
/// A store path that does not exist.
pub(crate) const ABSENT: &str = "3xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx-absent";

/// `nix-hash --type sha256 --base32` and the length of `nix-store --dump` of the three (Nix 2.8.0).
const FACTS: [(&str, &str, u64, &[&str]); 3] = [
    (GREETING, "04zwf782yjwnh3q6hz5izfd6jyip8kgw6g6yj43fiqhbyhdd0dqw", 120, &[]),
    (TOOLS, "0q18k9if6wsrazs8glrda58iyzn7bd3iwqsbiy3ichx50zxwggi4", 1104, &[GREETING, TOOLS]),
    (LINK, "0nsv6jk3vralkj2cdkcgyzq4sdrbzwl8rgmfpqgy6jz3dvch8zkd", 168, &[GREETING]),
];

/// The result of a run of the program.
#[derive(Debug)]
pub(crate) struct Run {
    /// Exit code; 1000 plus its number for a signal.
    pub(crate) code: i32,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

impl Run {
    fn new(output: Output) -> Self {
        Self {
            code: output.status.code().unwrap_or_else(|| 1000 + output.status.signal().unwrap_or(0)),
            stdout: String::from_utf8(output.stdout).unwrap(),
            stderr: String::from_utf8(output.stderr).unwrap(),
        }
    }

    /// Expects success and returns stdout.
    #[track_caller]
    pub(crate) fn success(self) -> String {
        assert_eq!(self.code, 0, "{}", self.stderr);
        self.stdout
    }

    /// Expects a failure with this exit code and message, and nothing on stdout.
    #[track_caller]
    pub(crate) fn failure(self, code: i32, stderr: &str) {
        assert_eq!((self.code, self.stderr.as_str(), self.stdout.as_str()), (code, stderr, ""));
    }
}

/// A directory with a store, in which the program runs.
pub(crate) struct Workspace {
    directory: TempDir,
}

impl Workspace {
    /// Creates an empty workspace.
    pub(crate) fn new() -> Self {
        Self { directory: TempDir::new().unwrap() }
    }

    /// Creates an empty workspace below a directory.
    pub(crate) fn new_in(directory: &Path) -> Self {
        Self { directory: TempDir::new_in(directory).unwrap() }
    }

    /// Creates a workspace with three store paths in `store`, their `closureInfo` in `info` and their graph in
    /// `attrs.json`.
    pub(crate) fn with_store() -> Self {
        let workspace = Self::new();
        let store = workspace.path("store");
        fs::create_dir(&store).unwrap();
        write(&store.join(GREETING), "hello\n", 0o444);
        let tools = store.join(TOOLS);
        fs::create_dir_all(tools.join("bin")).unwrap();
        fs::create_dir_all(tools.join("share")).unwrap();
        write(&tools.join("bin/run"), "#!/bin/sh\necho hi\n", 0o555);
        write(&tools.join("share/notes"), "notes\n", 0o444);
        symlink(format!("/nix/store/{GREETING}"), tools.join("share/greeting")).unwrap();
        symlink(format!("/nix/store/{GREETING}"), store.join(LINK)).unwrap();
        for directory in [tools.join("bin"), tools.join("share"), tools] {
            fs::set_permissions(directory, fs::Permissions::from_mode(0o555)).unwrap();
        }
        fs::create_dir(workspace.path("info")).unwrap();
        workspace.write("info/registration", &registration());
        workspace.write("info/store-paths", &store_paths());
        workspace.write("attrs.json", &graph());
        workspace
    }

    pub(crate) fn root(&self) -> &Path {
        self.directory.path()
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    pub(crate) fn write(&self, name: &str, content: &str) {
        fs::write(self.path(name), content).unwrap();
    }

    pub(crate) fn read(&self, name: &str) -> Vec<u8> {
        fs::read(self.path(name)).unwrap()
    }

    /// Returns the sorted names in the directory, to check that nothing remains.
    pub(crate) fn names(&self) -> Vec<String> {
        let entries = fs::read_dir(self.root()).unwrap();
        let mut names: Vec<String> = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    /// Returns a command that runs the program in the workspace, without the user's cache, home and Nix.
    pub(crate) fn command<Arguments>(&self, arguments: Arguments) -> Command
    where
        Arguments: IntoIterator,
        Arguments::Item: AsRef<OsStr>,
    {
        self.command_of(Path::new(env!("CARGO_BIN_EXE_microvm-image")), arguments)
    }

    /// Same as [`Self::command`], but as an ordinary user: as nobody if root runs the tests, because root has all
    /// permissions.
    pub(crate) fn command_of_ordinary_user<Arguments>(&self, arguments: Arguments) -> Command
    where
        Arguments: IntoIterator,
        Arguments::Item: AsRef<OsStr>,
    {
        if !nix::unistd::geteuid().is_root() {
            return self.command(arguments);
        }
        // The project may be in a directory that only root can enter, such as root's home.
        let program = self.path("program-of-nobody");
        // Another process copies it. If this process did, a program started by another test in the meantime would keep
        // the copy open for writing until its exec, and starting the copy would fail with "Text file busy".
        let copied = Command::new("cp").arg(env!("CARGO_BIN_EXE_microvm-image")).arg(&program).status().unwrap();
        assert!(copied.success());
        fs::set_permissions(self.root(), fs::Permissions::from_mode(0o777)).unwrap();
        let mut command = self.command_of(&program, arguments);
        command.uid(65534).gid(65534);
        command
    }

    pub(crate) fn command_of<Arguments>(&self, program: &Path, arguments: Arguments) -> Command
    where
        Arguments: IntoIterator,
        Arguments::Item: AsRef<OsStr>,
    {
        let mut command = Command::new(program);
        command.args(arguments).current_dir(self.root()).stdin(Stdio::null());
        command.env_clear().env("PATH", std::env::var_os("PATH").unwrap_or_default());
        command.env("MICROVM_IMAGE_CACHE", self.path("cache")).env("HOME", self.root());
        // Never use the service of the machine that runs the test.
        command.env("MICROVM_IMAGE_CACHE_SOCKET", self.path("cache.sock"));
        for (name, value) in NIX_ENVIRONMENT {
            command.env(name, value);
        }
        command
    }

    /// Runs the program with the words of `line` as its arguments.
    pub(crate) fn run(&self, line: &str) -> Run {
        Run::new(self.command(line.split_whitespace()).output().unwrap())
    }

    /// Same as [`Self::run`], with `stdin` as its standard input.
    pub(crate) fn run_with_stdin(&self, line: &str, stdin: &str) -> Run {
        let mut command = self.command(line.split_whitespace());
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        child.stdin.take().unwrap().write_all(stdin.as_bytes()).unwrap();
        Run::new(child.wait_with_output().unwrap())
    }
}

impl Drop for Workspace {
    /// Makes the store's directories writable, because only root could remove them otherwise.
    fn drop(&mut self) {
        let tools = self.path("store").join(TOOLS);
        for directory in [tools.clone(), tools.join("bin"), tools.join("share")] {
            _ = fs::set_permissions(directory, fs::Permissions::from_mode(0o755));
        }
    }
}

/// Settings of Nix without a daemon, build users and network, so that it works in all tests.
pub(crate) const NIX_ENVIRONMENT: [(&str, &str); 2] =
    [("NIX_REMOTE", ""), ("NIX_CONFIG", "substituters =\nbuild-users-group =\nbuilders =\nfsync-metadata = false")];

/// Returns the store paths, with the SHA-256 and the length of their NAR serialisations.
pub(crate) fn facts() -> Vec<(&'static str, [u8; 32], u64)> {
    FACTS
        .iter()
        .map(|(name, hash, size, _)| (*name, imagebuilder::nar_hash::parse(&format!("sha256:{hash}")).unwrap(), *size))
        .collect()
}

/// Returns `registration` as written by `closureInfo`.
pub(crate) fn registration() -> String {
    let mut text = String::new();
    for (name, hash, size, references) in FACTS {
        text.push_str(&format!("/nix/store/{name}\nsha256:{hash}\n{size}\n\n{}\n", references.len()));
        references.iter().for_each(|reference| text.push_str(&format!("/nix/store/{reference}\n")));
    }
    text
}

/// Returns `store-paths` as written by `closureInfo`.
pub(crate) fn store_paths() -> String {
    FACTS.iter().map(|(name, ..)| format!("/nix/store/{name}\n")).collect()
}

/// Returns `.attrs.json` as written by Nix, with one graph.
pub(crate) fn graph() -> String {
    let entries: Vec<serde_json::Value> = FACTS
        .iter()
        .map(|(name, hash, size, references)| {
            let references: Vec<String> = references.iter().map(|name| format!("/nix/store/{name}")).collect();
            serde_json::json!({
                "closureSize": 0, "narHash": format!("sha256:{hash}"), "narSize": size,
                "path": format!("/nix/store/{name}"), "references": references, "valid": true,
            })
        })
        .collect();
    let roots = [format!("/nix/store/{TOOLS}"), format!("/nix/store/{LINK}")];
    serde_json::json!({
        "name": "image", "system": "x86_64-linux", "outputs": {"out": "/nix/store/x"},
        "exportReferencesGraph": {"closure": roots}, "closure": entries,
    })
    .to_string()
}

fn write(path: &Path, content: &str, mode: u32) {
    fs::write(path, content).unwrap();
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
}

/// Returns whether a program that a test needs is installed. If not, prints the reason, and the test must return.
/// With `MICROVM_TEST_REQUIRE_TOOLS=1` it fails the test instead.
#[track_caller]
pub(crate) fn has_tool(name: &str) -> bool {
    testing::find_tool(name).is_some()
}
