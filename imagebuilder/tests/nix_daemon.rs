//! Queries the daemon of the installed Nix as the cache service does.

#![allow(clippy::unwrap_used, clippy::panic, reason = "tests")]

mod program;
mod service;

use imagebuilder::cache_service::nix_daemon::NixDaemon;
use imagebuilder::store_path::StorePath;
use program::NIX_ENVIRONMENT;
use service::wait_until;
use std::path::Path;
use std::process::{Child, Command, Stdio};

/// The daemon of a chroot store. It is killed when the test ends.
struct Daemon(Child);

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn nix(program: &str, root: &Path) -> Command {
    let mut command = Command::new(program);
    command.envs(NIX_ENVIRONMENT).env("NIX_REMOTE", root).env("NIX_CONF_DIR", "/var/empty").stdin(Stdio::null());
    command.env("NIX_DAEMON_SOCKET_PATH", root.join("socket"));
    command
}

fn start(root: &Path) -> Daemon {
    let _ = std::fs::remove_file(root.join("socket"));
    let daemon = Daemon(nix("nix-daemon", root).stderr(Stdio::null()).stdout(Stdio::null()).spawn().unwrap());
    wait_until("Nix's daemon listens", || std::os::unix::net::UnixStream::connect(root.join("socket")).is_ok());
    daemon
}

fn output(command: &mut Command) -> String {
    let output = command.output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap().trim().to_owned()
}

#[test]
fn the_daemon_reports_valid_paths_and_is_connected_to_again_after_a_restart() {
    if Command::new("nix-daemon").arg("--version").output().is_err() {
        return testing::missing("nix-daemon is not installed");
    }
    let directory = tempfile::tempdir().unwrap();
    let root = directory.path();
    std::fs::write(root.join("greeting"), "hello\n").unwrap();
    let added = output(nix("nix-store", root).arg("--add").arg(root.join("greeting")));
    let path = StorePath::from_base_name(added.strip_prefix("/nix/store/").unwrap()).unwrap();
    let hash = output(nix("nix-store", root).args(["--query", "--hash"]).arg(&added));
    let size = output(nix("nix-store", root).args(["--query", "--size"]).arg(&added));
    let unknown = StorePath::from_base_name("0c0wqvhs4gn6a6ps1q4a9qd3h2ra2bnv-unknown").unwrap();

    let mut daemon = start(root);
    let mut asked = NixDaemon::new(&root.join("socket"));
    for round in 0..70 {
        let valid = if round % 2 == 0 { asked.query(&path) } else { asked.query_and_keep(&path) }.unwrap().unwrap();
        assert_eq!(imagebuilder::nar_hash::print(&valid.nar_hash), hash);
        assert_eq!(valid.nar_size_bytes.to_string(), size);
        assert_eq!(asked.query(&unknown).unwrap(), None);
        if round == 30 {
            drop(daemon);
            daemon = start(root);
        }
    }
    drop(daemon);
    asked.close();
    assert!(asked.query(&path).unwrap_err().to_string().contains("cannot reach Nix's daemon at "));
}
