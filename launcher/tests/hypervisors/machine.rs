//! A machine under test: a spec in its own directory, started by the real `microvm` in a network namespace.

use launcher::launch::Launch;
use launcher::path::HostPath;
use launcher::spec::{Hypervisor, MachineSpec};
use launcher::state::RuntimeDirectory;
use std::cell::RefCell;
use std::fs::{self, File};
use std::io::Write;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};
pub(crate) use testing::{missing, skipped};

/// How long a probe guest may take on a busy host.
pub(crate) const TIMEOUT: Duration = Duration::from_secs(300);

/// Returns the output without the warning that is printed on a host with software KVM.
pub(crate) fn without_kvm_warning(printed: &[u8]) -> String {
    String::from_utf8_lossy(printed).split_inclusive('\n').filter(|line| !line.contains("(kvm_pvm)")).collect()
}

/// Returns the hypervisor's program: qemu from `$PATH`, the others from the environment.
pub(crate) fn program_of(hypervisor: Hypervisor) -> Option<PathBuf> {
    let variable = match hypervisor {
        Hypervisor::Qemu => return find_on_path("qemu-system-x86_64"),
        Hypervisor::CloudHypervisor => "MICROVM_TEST_CLOUD_HYPERVISOR",
        Hypervisor::Firecracker => "MICROVM_TEST_FIRECRACKER",
        Hypervisor::Crosvm => "MICROVM_TEST_CROSVM",
        Hypervisor::Kvmtool => "MICROVM_TEST_KVMTOOL",
    };
    std::env::var_os(variable).map(PathBuf::from)
}

/// Like [`program_of`]; reports what prevents it from running here. qemu, which can emulate, must be installed.
pub(crate) fn usable_program_of(hypervisor: Hypervisor) -> Option<PathBuf> {
    let program = program_of(hypervisor);
    if program.is_none() {
        let why = format!("no {hypervisor}: it is not installed, or MICROVM_TEST_... does not name it");
        if hypervisor == Hypervisor::Qemu { testing::missing(&why) } else { testing::skipped(&why) }
    } else if !kvm_opens() && hypervisor != Hypervisor::Qemu {
        testing::skipped("/dev/kvm does not open");
        return None;
    }
    program
}

/// Returns a program in `$PATH`.
pub(crate) fn find_on_path(name: &str) -> Option<PathBuf> {
    launcher::programs::find_program(&HostPath::from(name)).ok()
}

/// Whether /dev/kvm can be opened.
pub(crate) fn kvm_opens() -> bool {
    File::options().read(true).write(true).open("/dev/kvm").is_ok()
}

/// Sets the program of the hypervisor in its section of the spec.
pub(crate) fn use_program(spec: &mut MachineSpec, hypervisor: Hypervisor, program: &Path) {
    let program = Some(HostPath::new(program.to_str().unwrap()));
    match hypervisor {
        Hypervisor::Qemu => spec.qemu.program = program,
        Hypervisor::CloudHypervisor => spec.cloud_hypervisor.program = program,
        Hypervisor::Firecracker => spec.firecracker.program = program,
        Hypervisor::Crosvm => spec.crosvm.program = program,
        Hypervisor::Kvmtool => spec.kvmtool.program = program,
    }
}

/// Isolates the launcher from the environment, except for the passt that is set in it.
pub(crate) fn in_test_environment(command: &mut Command, machine: &TestMachine) {
    command.env("MICROVM_RUNTIME_DIR", machine.path("run")).env("PATH", search_path());
    for variable in ["MICROVM_IMAGE", "MICROVM_NAME", "NOTIFY_SOCKET"] {
        command.env_remove(variable);
    }
}

/// Returns `$PATH`, preceded by the directory of the passt that is set in the environment.
fn search_path() -> String {
    let path = std::env::var("PATH").unwrap_or_default();
    let passt = std::env::var_os("MICROVM_TEST_PASST").map(PathBuf::from);
    match passt.as_deref().and_then(Path::parent) {
        Some(directory) => format!("{}:{path}", directory.display()),
        None => path,
    }
}

/// A network namespace, which is deleted on drop.
pub(crate) struct Namespace(String);

impl Namespace {
    /// Creates a namespace; returns `None` without the required permissions.
    pub(crate) fn new() -> Option<Self> {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let name = format!("microvm-test-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        let made = Command::new("ip").args(["netns", "add", &name]).stderr(Stdio::null()).status();
        if !made.is_ok_and(|status| status.success()) {
            missing("`ip netns add` does not work here: network namespaces require root");
            return None;
        }
        let namespace = Self(name);
        namespace.run("ip", &["link", "set", "lo", "up"]);
        Some(namespace)
    }

    /// Returns a command in the namespace.
    pub(crate) fn command(&self, program: impl AsRef<Path>) -> Command {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &self.0]).arg(program.as_ref());
        command
    }

    /// Runs a command in the namespace, which must succeed, and returns its output.
    pub(crate) fn run(&self, program: &str, arguments: &[&str]) -> String {
        let output = self.command(program).args(arguments).output().unwrap();
        let printed = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        assert!(output.status.success(), "{program} {arguments:?}: {printed}");
        printed
    }
}

impl Namespace {
    /// Allows qemu's helper to use the bridge: `ip netns exec` mounts this file over the host's.
    pub(crate) fn allow_bridge(&self, bridge: &str) {
        let directory = Path::new("/etc/netns").join(&self.0).join("qemu");
        fs::create_dir_all(&directory).unwrap();
        fs::create_dir_all("/etc/qemu").unwrap();
        fs::write(directory.join("bridge.conf"), format!("allow {bridge}\n")).unwrap();
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(Path::new("/etc/netns").join(&self.0));
        let _ = Command::new("ip").args(["netns", "delete", &self.0]).status();
    }
}

/// A machine in its own directory.
pub(crate) struct TestMachine {
    pub(crate) namespace: Namespace,
    pub(crate) directory: tempfile::TempDir,
    pub(crate) name: String,
    helpers: RefCell<Vec<Child>>,
}

impl Drop for TestMachine {
    fn drop(&mut self) {
        for helper in self.helpers.get_mut() {
            let _ = helper.kill();
            let _ = helper.wait();
        }
    }
}

/// A running `microvm run`.
pub(crate) struct Running<'machine> {
    pub(crate) machine: &'machine TestMachine,
    name: String,
    pub(crate) child: Child,
    console: PathBuf,
    messages: PathBuf,
}

impl TestMachine {
    /// Creates an empty directory and a namespace for a machine of that name.
    pub(crate) fn new(name: &str) -> Option<Self> {
        let directory = tempfile::Builder::new().prefix("mv").tempdir().unwrap();
        Some(Self { namespace: Namespace::new()?, directory, name: name.to_owned(), helpers: RefCell::default() })
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// Serves HTTP in the namespace until the machine is dropped.
    pub(crate) fn serve_http(&self, address: &str) {
        let mut command = self.namespace.command("busybox");
        command.args(["httpd", "-f", "-p", address]).current_dir(self.directory.path());
        self.helpers.borrow_mut().push(command.spawn().unwrap());
        let end = Instant::now() + TIMEOUT;
        let connects = || {
            let (host, port) = address.split_once(':').unwrap();
            let mut command = self.namespace.command("busybox");
            command.args(["nc", "-w", "1", host, port]).stdin(Stdio::null()).status().unwrap().success()
        };
        while !connects() {
            assert!(Instant::now() < end, "nothing serves {address}");
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Writes the spec.
    pub(crate) fn write_spec(&self, spec: &MachineSpec) {
        fs::write(self.path("machine.json"), serde_json::to_string_pretty(spec).unwrap()).unwrap();
    }

    /// Returns `microvm` with these arguments, in the namespace and the directory.
    pub(crate) fn microvm(&self, arguments: &[&str]) -> Command {
        let mut command = self.namespace.command(env!("CARGO_BIN_EXE_microvm"));
        command.args(arguments).current_dir(self.directory.path()).stdin(Stdio::null());
        in_test_environment(&mut command, self);
        command
    }

    /// Runs `microvm` until it ends.
    pub(crate) fn output(&self, arguments: &[&str]) -> Output {
        self.microvm(arguments).output().unwrap()
    }

    /// Starts `microvm run` with these arguments.
    pub(crate) fn start(&self, arguments: &[&str]) -> Running<'_> {
        self.start_command(self.microvm(&[&["run", "machine.json"], arguments].concat()))
    }

    pub(crate) fn start_command(&self, command: Command) -> Running<'_> {
        self.start_command_as(&self.name, command)
    }

    /// Starts another machine in the same namespace and runtime directory.
    pub(crate) fn start_command_as(&self, name: &str, mut command: Command) -> Running<'_> {
        let (console, messages) =
            (self.path(&format!("{name}-console.txt")), self.path(&format!("{name}-messages.txt")));
        command.stdout(File::create(&console).unwrap()).stderr(File::create(&messages).unwrap());
        Running { machine: self, name: name.to_owned(), child: command.spawn().unwrap(), console, messages }
    }

    /// Returns the most recent launch.
    pub(crate) fn launch(&self) -> Launch {
        RuntimeDirectory::at(self.path("run")).machine(&self.name).unwrap().last_launch().unwrap().unwrap()
    }
}

impl Running<'_> {
    /// Returns the guest's output.
    pub(crate) fn console(&self) -> String {
        String::from_utf8_lossy(&fs::read(&self.console).unwrap()).into_owned()
    }

    /// Returns the messages of the launcher and the hypervisor.
    pub(crate) fn messages(&self) -> String {
        without_kvm_warning(&fs::read(&self.messages).unwrap())
    }

    /// Waits until the guest has printed a line that contains the text.
    pub(crate) fn wait_for(&mut self, text: &str) {
        let end = Instant::now() + TIMEOUT;
        while !self.console().contains(text) {
            let ended = self.child.try_wait().unwrap();
            assert!(ended.is_none(), "ended with {ended:?} before {text:?}\n{}\n{}", self.console(), self.messages());
            assert!(Instant::now() < end, "no {text:?} in time\n{}\n{}", self.console(), self.messages());
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// Waits until the launcher has printed a message that contains the text.
    pub(crate) fn wait_for_message(&mut self, text: &str) {
        let end = Instant::now() + TIMEOUT;
        while !self.messages().contains(text) {
            let ended = self.child.try_wait().unwrap();
            assert!(ended.is_none(), "ended with {ended:?} before {text:?}\n{}\n{}", self.console(), self.messages());
            assert!(Instant::now() < end, "no {text:?} in time\n{}\n{}", self.console(), self.messages());
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// Waits until it ends.
    pub(crate) fn end(&mut self) -> ExitStatus {
        let end = Instant::now() + TIMEOUT;
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                return status;
            }
            assert!(Instant::now() < end, "does not end\n{}\n{}", self.console(), self.messages());
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// Waits until it ends, which must be successful, and returns the guest's output.
    pub(crate) fn end_well(&mut self) -> String {
        let status = self.end();
        let signal = status.signal().map(|signal| format!(" by signal {signal}")).unwrap_or_default();
        assert!(status.success(), "{status}{signal}\n{}\n{}", self.console(), self.messages());
        self.console()
    }
}

impl Drop for Running<'_> {
    fn drop(&mut self) {
        if matches!(self.child.try_wait(), Ok(None)) {
            let _ = self.machine.output(&["stop", &self.name, "--timeout", "0"]);
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
    }
}

/// Writes a file that starts with a mark of 16 bytes, which identifies it in the probe guest's report.
pub(crate) fn write_disk(path: &Path, mark: &str, sectors: u64) {
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    let mut file = File::create(path).unwrap();
    file.write_all(format!("{mark:.<16}").as_bytes()).unwrap();
    file.set_len(sectors * 512).unwrap();
}
