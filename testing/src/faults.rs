//! System calls that fail: `fixtures/faults/faults.c` says how.

use crate::missing;
use nix::errno::Errno;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Runs programs some of whose system calls fail.
#[derive(Debug)]
pub struct Faults {
    program: PathBuf,
    log: PathBuf,
}

/// The system calls that fail.
#[derive(Clone, Copy, Debug)]
pub struct Fault<'a> {
    /// A group of system calls, as `faults.c` names it.
    pub calls: &'a str,
    /// Only calls for files below this directory count, and those for sockets.
    pub below: &'a Path,
    /// The first call that fails, from 1 on; 0 for none.
    pub at: u64,
    /// How many calls fail; 0 for all from the first on.
    pub count: u64,
    /// The error.
    pub error: Errno,
}

impl Faults {
    /// Builds the program in `directory`. If it cannot be built or does not work here, calls [`missing`].
    #[track_caller]
    pub fn new(directory: &Path) -> Option<Self> {
        if !cfg!(target_arch = "x86_64") {
            crate::skipped("faults.c knows the system calls of x86_64 only");
            return None;
        }
        let compiler = crate::find_tool("gcc")?;
        let faults = Self { program: directory.join("faults"), log: directory.join("faults.log") };
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("../fixtures/faults/faults.c");
        let mut compile = Command::new(compiler);
        compile.args(["-O1", "-Wall", "-Werror", "-Wno-implicit-fallthrough", "-o"]).arg(&faults.program).arg(source);
        let built = compile.output().unwrap();
        assert!(built.status.success(), "{}", String::from_utf8_lossy(&built.stderr));
        let fault = Fault { calls: "mkdir", below: Path::new("/"), at: 1, count: 1, error: Errno::EIO };
        let mut check = Command::new("mkdir");
        check.arg(directory.join("never"));
        let output = faults.apply(&check, &fault).output().unwrap();
        if !String::from_utf8_lossy(&output.stderr).contains("Input/output error") {
            missing(&format!("system calls cannot be intercepted: {}", String::from_utf8_lossy(&output.stderr)));
            return None;
        }
        Some(faults)
    }

    /// Returns a command that does the same with this fault. The program and the environment must be set explicitly, and
    /// neither inherited nor changed later.
    pub fn apply(&self, command: &Command, fault: &Fault<'_>) -> Command {
        let _ = fs::remove_file(&self.log);
        let mut with_fault = Command::new(&self.program);
        let program = Path::new(command.get_program());
        let program = if program.is_absolute() { Some(program.to_owned()) } else { find(program) };
        with_fault.arg(program.unwrap()).args(command.get_args()).env_clear();
        with_fault.envs(command.get_envs().filter_map(|(name, value)| Some((name, value?))));
        if let Some(directory) = command.get_current_dir() {
            with_fault.current_dir(directory);
        }
        with_fault.env("FAULT_CALLS", fault.calls).env("FAULT_BELOW", fault.below).env("FAULT_LOG", &self.log);
        let numbers = [("AT", fault.at), ("COUNT", fault.count), ("ERRNO", fault.error as u64)];
        with_fault.envs(numbers.map(|(name, value)| (format!("FAULT_{name}"), value.to_string())));
        with_fault
    }

    /// Returns the number of calls that counted in the last run, and the first one that failed.
    pub fn log(&self) -> (u64, Option<String>) {
        let text = fs::read_to_string(&self.log).unwrap_or_default();
        let (calls, first) = text.trim().split_once(' ').unwrap_or((text.trim(), ""));
        (calls.parse().unwrap_or(0), Some(first.to_owned()).filter(|first| !first.is_empty()))
    }
}

fn find(name: &Path) -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path).map(|directory| directory.join(name)).find(|candidate| candidate.is_file())
}
