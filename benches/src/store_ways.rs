//! `benches live`, `benches boot-ways` and `benches memory`: the ways in which a store reaches the guest, compared: a
//! squashfs or erofs image on a disk, a disk without an image, and persistent memory.

use std::fs::{self, File};
use std::iter;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::error::{Error, file};
use crate::initrd::with_files;
use crate::measure::{self, Cost};
use crate::store_tree::StoreTree;
use crate::timings::Timings;
use crate::workspace;

/// How long an emulated guest may take to boot and to read.
const TIMEOUT: Duration = Duration::from_secs(1800);
const GUEST_MEMORY_MIB: u32 = 512;

/// Measures the time from the plan of a closure to the hypervisor, for which `true` stands: a squashfs that is built
/// without a cache, and a disk without an image.
///
/// # Errors
/// When a program can't be built, or fails.
pub fn start(size: &str, rounds: usize) -> Result<Timings, Error> {
    let programs = Programs::build()?;
    // A tree of packages has no kernel; the kernel of another closure is used, because nothing boots.
    let (closure, bootable) = match size {
        "server" | "desktop" => (StoreTree::open(size)?.closure_info(), workspace::fixture("system")?),
        _ => (workspace::fixture(size)?.join("closure-info"), workspace::fixture(size)?),
    };
    let directory =
        tempfile::tempdir_in(workspace::fixtures()).map_err(file("create a directory in", workspace::fixtures()))?;
    // On most hosts, the runtime directory is in memory.
    let runtime = tempfile::tempdir_in("/dev/shm").map_err(file("create a directory in", Path::new("/dev/shm")))?;
    let here = directory.path();
    let bin = here.join("bin");
    fs::create_dir(&bin).map_err(file("make", &bin))?;
    let program = bin.join("qemu-system-x86_64");
    std::os::unix::fs::symlink("/bin/true", &program).map_err(file("link", &program))?;
    let search_path = format!("{}:{}", bin.display(), std::env::var("PATH").unwrap_or_default());
    let mut candidates = Vec::new();
    for way in [Way::Live, Way::Squashfs] {
        programs.plan(&closure, way, &here.join(way.plan()))?;
        let disk = match way {
            Way::Live => json!({"plan": way.plan(), "live": true}),
            _ => json!({"plan": way.plan(), "image": "store.image", "cache": here.join("cache")}),
        };
        let spec = write_spec(here, way.name(), (&bootable, &bootable.join("initrd")), &disk, &[])?;
        let mut command = Command::new(&programs.microvm);
        command.args(["run", "--accel", "tcg", "--state-dir", "."]).arg(spec).current_dir(here);
        command
            .env("MICROVM_IMAGE", &programs.image)
            .env("PATH", &search_path)
            .env("MICROVM_RUNTIME_DIR", runtime.path());
        candidates.push((way.title().to_owned(), command));
    }
    let title = format!("From the plan of the closure `{size}` to the running hypervisor");
    Timings::alternating(&title, &mut candidates, rounds, |command| {
        // Every round is a first build, and starts a server of its own.
        wait_for_end_of_servers(here)?;
        remove(&here.join("cache"))?;
        remove(&here.join("store.image"))?;
        measure::run(command)
    })
}

/// Waits until no process listens on a socket in the directory. A server ends a moment after its hypervisor.
fn wait_for_end_of_servers(directory: &Path) -> Result<(), Error> {
    let end = Instant::now() + TIMEOUT;
    for entry in fs::read_dir(directory).map_err(file("list", directory))? {
        let path = entry.map_err(file("list", directory))?.path();
        while path.extension().is_some_and(|extension| extension == "sock") && UnixStream::connect(&path).is_ok() {
            if Instant::now() > end {
                return Err(Error::Unexpected(format!("a server still listens on {}", path.display())));
            }
            std::thread::sleep(Duration::from_millis(10));
        }
    }
    Ok(())
}

fn remove(path: &Path) -> Result<(), Error> {
    workspace::run(Command::new("rm").arg("-rf").arg(path)).map(drop)
}

/// Boots the same emulated guest with its store on a squashfs, on an erofs, on a disk without an image and in
/// persistent memory, until it reports that it is up. Images are built before; what is measured begins with `microvm
/// run`, so it includes the start of the server. The processor time is that of the launcher, the hypervisor and the
/// server.
///
/// # Errors
/// When a program can't be built, or a guest does not come up.
pub fn boot(size: &str, rounds: usize) -> Result<Timings, Error> {
    let programs = Programs::build()?;
    let fixture = workspace::fixture(size)?;
    let directory =
        tempfile::tempdir_in(workspace::fixtures()).map_err(file("create a directory in", workspace::fixtures()))?;
    let initrd = fixture.join("initrd");
    let mut candidates = Vec::new();
    for way in [Way::Squashfs, Way::Live, Way::Erofs, Way::Pmem] {
        let here = directory.path().join(way.name());
        fs::create_dir(&here).map_err(file("make", &here))?;
        let disk = way.store_disk(&programs, &fixture, &here)?;
        let [device, kind, options] = way.mount();
        let mount = format!("systemd.mount-extra={device}:/nix/store:{kind}:{options}");
        let system = (fixture.as_path(), initrd.as_path());
        let spec = write_spec(&here, way.name(), system, &disk, &[&mount, "guest.actions=report,wait"])?;
        candidates.push((way.title().to_owned(), (here, spec)));
    }
    let title = format!("Booting the same emulated guest with the closure `{size}`, until it reports that it is up");
    Timings::alternating(&title, &mut candidates, rounds, |(here, spec)| {
        let started = Instant::now();
        let mut guest = Guest::start(&programs, here, "guest", spec)?;
        guest.wait()?;
        let seconds = started.elapsed().as_secs_f64();
        guest.cost(seconds)
    })
}

/// Starts several guests that read the beginning of their store, and measures the memory that they take of the host: their
/// own, and the page cache of what they read. Passes the lines of a table to `line`, each as soon as it is known.
///
/// # Errors
/// When a program can't be built, or a guest does not get that far.
pub fn memory(
    size: &str,
    ways: &[Way],
    guests: &[usize],
    megabytes: u64,
    mut line: impl FnMut(&str),
) -> Result<(), Error> {
    let programs = Programs::build()?;
    let fixture = workspace::fixture(size)?;
    let (store_bytes, wanted) = (store_bytes(&fixture)?, megabytes * 1_000_000);
    if store_bytes < wanted {
        crate::message(&format!("memory: each guest reads all {store_bytes} bytes of the store of `{size}`"));
    }
    let bytes = store_bytes.min(wanted);
    line(
        "| way | guests | guests' own MiB | page cache MiB | in all MiB | a server's MiB |\n| --- | ---: | ---: | ---: | ---: | ---: |\n",
    );
    for &way in ways {
        for count in guests {
            let started = Instant::now();
            let used = memory_of(&programs, &fixture, way, *count, bytes)?;
            let mib = |bytes: u64| bytes >> 20;
            let server = if used.server_bytes == 0 {
                "-".to_owned()
            } else {
                format!("{:.1}", used.server_bytes as f64 / 1_048_576.0)
            };
            let (own, cache, all) =
                (mib(used.own_bytes), mib(used.cache_bytes), mib(used.own_bytes + used.cache_bytes));
            line(&format!("| {} | {count} | {own} | {cache} | {all} | {server} |\n", way.title()));
            crate::message(&format!("memory: {count} guests, {}: {} s", way.title(), started.elapsed().as_secs()));
        }
    }
    Ok(())
}

struct Programs {
    microvm: PathBuf,
    image: PathBuf,
}

impl Programs {
    fn build() -> Result<Self, Error> {
        Ok(Self {
            microvm: workspace::release_program("launcher", "microvm")?,
            image: workspace::release_program("imagebuilder", "microvm-image")?,
        })
    }

    /// Runs `microvm-image` on a closure, whose store is beside its registration if it has one of its own.
    fn of_closure(&self, closure: &Path, words: &[&str], output: &Path) -> Result<(), Error> {
        let own = closure.with_file_name("store");
        let store = if own.is_dir() { own } else { workspace::fixtures().join("store/nix/store") };
        let mut command = Command::new(&self.image);
        command.args(words).arg("--closure-info").arg(closure).arg("--store-dir").arg(store);
        workspace::run(command.arg("--output").arg(output)).map(drop)
    }

    fn plan(&self, closure: &Path, way: Way, output: &Path) -> Result<(), Error> {
        let format: &[&str] = if way == Way::Squashfs { &[] } else { &["--format", "erofs"] };
        self.of_closure(closure, &[&["plan"], format].concat(), output)
    }
}

/// A way in which a store reaches a guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Way {
    /// A squashfs on a virtio disk.
    Squashfs,
    /// An erofs on a virtio disk.
    Erofs,
    /// A disk without an image.
    Live,
    /// An erofs as persistent memory.
    Pmem,
}

impl Way {
    fn name(self) -> &'static str {
        match self {
            Self::Squashfs => "squashfs",
            Self::Erofs => "erofs",
            Self::Live => "live",
            Self::Pmem => "pmem",
        }
    }

    fn title(self) -> &'static str {
        match self {
            Self::Squashfs => "squashfs on a virtio disk",
            Self::Erofs => "erofs on a virtio disk",
            Self::Live => "live",
            Self::Pmem => "persistent memory",
        }
    }

    fn plan(self) -> String {
        format!("{}-plan.json", self.name())
    }

    /// Device, file system and options.
    fn mount(self) -> [&'static str; 3] {
        match self {
            Self::Squashfs => ["/dev/vda", "squashfs", "ro"],
            Self::Erofs | Self::Live => ["/dev/vda", "erofs", "ro"],
            Self::Pmem => ["/dev/pmem0", "erofs", "ro,dax=always"],
        }
    }

    /// Makes what the machines share, and returns their store disk.
    fn store_disk(self, programs: &Programs, fixture: &Path, directory: &Path) -> Result<Value, Error> {
        let (image, closure) = (directory.join("image"), fixture.join("closure-info"));
        let build = ["build", "--quiet", "--no-cache"];
        match self {
            Self::Squashfs => programs.of_closure(&closure, &build, &image)?,
            Self::Erofs => programs.of_closure(&closure, &[&build[..], &["--format", "erofs"]].concat(), &image)?,
            Self::Pmem => {
                programs.of_closure(&closure, &[&build[..], &["--format", "erofs", "--dax"]].concat(), &image)?
            }
            Self::Live => {
                let plan = directory.join(self.plan());
                programs.plan(&closure, self, &plan)?;
                return Ok(json!({"plan": plan, "live": true, "builder": programs.image}));
            }
        }
        let transport = if self == Self::Pmem { "pmem" } else { "block" };
        Ok(json!({"image": image, "transport": transport}))
    }
}

struct Used {
    own_bytes: u64,
    cache_bytes: u64,
    server_bytes: u64,
}

/// The guests do not boot further than their initrd, because a booting system reads and writes other memory too.
fn memory_of(programs: &Programs, fixture: &Path, way: Way, count: usize, bytes: u64) -> Result<Used, Error> {
    let directory =
        tempfile::tempdir_in(workspace::fixtures()).map_err(file("create a directory in", workspace::fixtures()))?;
    let here = directory.path();
    let disk = way.store_disk(programs, fixture, here)?;
    let initrd = here.join("initrd");
    with_files(&fixture.join("initrd"), &[("guest-memory", include_bytes!("guest-memory.sh"))], &initrd)?;
    let [device, kind, options] = way.mount();
    let parameters = format!(
        "rdinit=/guest-memory memory.device={device} memory.type={kind} memory.options={options} memory.bytes={bytes}"
    );
    let parameters: Vec<&str> = parameters.split(' ').collect();
    let mut guests = Vec::new();
    drop_page_cache()?;
    for number in 0..count {
        let name = format!("{}-{number}", way.name());
        let spec = write_spec(here, &name, (fixture, &initrd), &disk, &parameters)?;
        guests.push(Guest::start(programs, here, &name, &spec)?);
    }
    for guest in &mut guests {
        guest.wait()?;
        guest.require(&format!("guest: bytes={bytes}\r"))?;
    }
    let mut used = Used { own_bytes: 0, cache_bytes: cached_bytes(way, here, fixture)?, server_bytes: 0 };
    for guest in &guests {
        let process = guest.child.id();
        used.own_bytes += own_bytes(process)?;
        for server in servers(process)? {
            used.own_bytes += own_bytes(server)?;
            used.server_bytes = used.server_bytes.max(server_bytes(server)?);
        }
    }
    Ok(used)
}

fn write_spec(
    directory: &Path,
    name: &str,
    (fixture, initrd): (&Path, &Path),
    disk: &Value,
    parameters: &[&str],
) -> Result<PathBuf, Error> {
    let toplevel = fixture.join("toplevel");
    let toplevel = fs::read_to_string(&toplevel).map_err(file("read", &toplevel))?;
    let mut all = vec![
        "quiet".to_owned(),
        format!("tsc_early_khz={}", workspace::tsc_khz()?),
        format!("init={}/init", toplevel.trim()),
    ];
    all.extend(parameters.iter().map(|&word| word.to_owned()));
    let machine = json!({
        "version": 1, "name": name, "hypervisor": "qemu", "mem": GUEST_MEMORY_MIB,
        "kernel": fixture.join("vmlinux"), "initrd": initrd,
        "storeDisk": disk, "kernelParams": all,
    });
    let spec = directory.join(format!("{name}.json"));
    fs::write(&spec, machine.to_string()).map_err(file("write", &spec))?;
    Ok(spec)
}

/// A guest, which is killed on drop. The processes beside it end with it.
struct Guest {
    child: Child,
    console: PathBuf,
}

impl Guest {
    fn start(programs: &Programs, directory: &Path, name: &str, spec: &Path) -> Result<Self, Error> {
        let console = directory.join(format!("{name}.console"));
        let output = File::create(&console).map_err(file("write", &console))?;
        let state = directory.join(name);
        let mut command = Command::new(&programs.microvm);
        command.args(["run", "--accel", "tcg", "--state-dir"]).arg(&state).arg(spec);
        command.env("MICROVM_RUNTIME_DIR", directory.join("run")).stdin(Stdio::null()).stdout(output);
        let child = command.spawn().map_err(|source| Error::Start { program: "microvm".into(), source })?;
        Ok(Self { child, console })
    }

    /// Waits until the guest has done its actions.
    fn wait(&mut self) -> Result<(), Error> {
        let end = Instant::now() + TIMEOUT;
        loop {
            let console = fs::read_to_string(&self.console).map_err(file("read", &self.console))?;
            if console.contains("guest: waiting") {
                return Ok(());
            }
            let has_ended = self.child.try_wait().map_err(file("wait for", &self.console))?.is_some();
            if has_ended || console.contains("Kernel panic") || Instant::now() > end {
                return Err(Error::Unexpected(format!("the guest has not done its actions; its console:\n{console}")));
            }
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// Fails if the guest has not printed this line.
    fn require(&self, line: &str) -> Result<(), Error> {
        let console = fs::read_to_string(&self.console).map_err(file("read", &self.console))?;
        if console.contains(line) {
            return Ok(());
        }
        Err(Error::Unexpected(format!("the guest has not printed `{}`; its console:\n{console}", line.trim_end())))
    }

    /// The cost so far of the launcher, and of the hypervisor and the server if they are its children.
    fn cost(&self, seconds: f64) -> Result<Cost, Error> {
        let mut cost = Cost { seconds, user_seconds: 0.0, system_seconds: 0.0, peak_memory_bytes: 0 };
        let launcher = self.child.id();
        for process in iter::once(launcher).chain(children(launcher)?) {
            let (user_seconds, system_seconds) = processor_seconds(process)?;
            cost.user_seconds += user_seconds;
            cost.system_seconds += system_seconds;
            cost.peak_memory_bytes = cost.peak_memory_bytes.max(process_field(process, "status", "VmHWM:")?);
        }
        Ok(cost)
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The memory of a process other than page cache: anonymous, and shared without a file, as the memory of a guest is
/// that a server of disks can read.
fn own_bytes(process: u32) -> Result<u64, Error> {
    Ok(process_field(process, "smaps_rollup", "Pss_Anon:")? + process_field(process, "smaps_rollup", "Pss_Shmem:")?)
}

/// The resident memory of a server, without the memory of the guest that it has mapped.
pub(crate) fn server_bytes(process: u32) -> Result<u64, Error> {
    Ok(process_field(process, "status", "RssAnon:")? + process_field(process, "status", "RssFile:")?)
}

/// Returns a field of a file in /proc that counts in kB.
fn process_field(process: u32, name: &str, field: &str) -> Result<u64, Error> {
    let path = PathBuf::from(format!("/proc/{process}/{name}"));
    let text = fs::read_to_string(&path).map_err(file("read", &path))?;
    let line = text.lines().find_map(|line| line.strip_prefix(field));
    let kib: Option<u64> = line.and_then(|line| line.trim().trim_end_matches(" kB").parse().ok());
    kib.map(|kib| kib << 10).ok_or_else(|| Error::Unexpected(format!("{} has no field {field}", path.display())))
}

/// Returns the seconds in user mode and in the kernel of a process and of its children that have ended:
/// proc_pid_stat(5).
fn processor_seconds(process: u32) -> Result<(f64, f64), Error> {
    let path = PathBuf::from(format!("/proc/{process}/stat"));
    let text = fs::read_to_string(&path).map_err(file("read", &path))?;
    let per_second = nix::unistd::sysconf(nix::unistd::SysconfVar::CLK_TCK);
    let per_second =
        per_second.ok().flatten().ok_or_else(|| Error::Unexpected("the kernel has no clock".to_owned()))?;
    // The name of the program, in parentheses, may contain anything. The times are the fields 14 to 17.
    let fields = text.rsplit_once(')').map_or("", |(_, fields)| fields).split_whitespace().skip(11);
    let ticks: Vec<f64> = fields.take(4).filter_map(|field| field.parse().ok()).collect();
    let [user, system, user_of_ended, system_of_ended] = ticks[..] else {
        return Err(Error::Unexpected(format!("{} has no times", path.display())));
    };
    #[expect(clippy::cast_precision_loss, reason = "100 on all computers")]
    let per_second = per_second as f64;
    Ok(((user + user_of_ended) / per_second, (system + system_of_ended) / per_second))
}

fn servers(process: u32) -> Result<Vec<u32>, Error> {
    let all = children(process)?;
    // The process that removes interfaces afterwards does not belong to a guest.
    let is_server = |process: &u32| {
        fs::read(format!("/proc/{process}/cmdline"))
            .is_ok_and(|words| words.split(|byte| *byte == 0).any(|word| word == b"serve"))
    };
    Ok(all.into_iter().filter(is_server).collect())
}

fn children(process: u32) -> Result<Vec<u32>, Error> {
    let path = PathBuf::from(format!("/proc/{process}/task/{process}/children"));
    let text = fs::read_to_string(&path).map_err(file("read", &path))?;
    Ok(text.split_whitespace().filter_map(|number| number.parse().ok()).collect())
}

/// Runs find(1) on the store paths of a closure.
fn find_in_store(fixture: &Path, expression: &[&str]) -> Result<String, Error> {
    let list = fixture.join("closure-info/store-paths");
    let text = fs::read_to_string(&list).map_err(file("read", &list))?;
    let store = workspace::fixtures().join("store/nix/store");
    let paths = text.lines().filter_map(|path| Path::new(path).file_name()).map(|name| store.join(name));
    workspace::run(Command::new("find").args(paths).args(expression))
}

/// The bytes of all files of a closure.
fn store_bytes(fixture: &Path) -> Result<u64, Error> {
    let sizes = find_in_store(fixture, &["-type", "f", "-printf", "%s\\n"])?;
    Ok(sizes.lines().filter_map(|size| size.parse::<u64>().ok()).sum())
}

/// The bytes of the image, or of the store files, in the host's page cache: fincore(1).
fn cached_bytes(way: Way, directory: &Path, fixture: &Path) -> Result<u64, Error> {
    let mut files = vec![directory.join("image")];
    if way == Way::Live {
        let found = find_in_store(fixture, &["-type", "f", "-size", "+0"])?;
        files = found.lines().map(PathBuf::from).collect();
    }
    let mut bytes = 0;
    for part in files.chunks(500) {
        let sizes =
            workspace::run(Command::new("fincore").args(["--bytes", "--noheadings", "--output", "RES"]).args(part))?;
        bytes += sizes.lines().filter_map(|line| line.trim().parse::<u64>().ok()).sum::<u64>();
    }
    Ok(bytes)
}

fn drop_page_cache() -> Result<(), Error> {
    nix::unistd::sync();
    let path = Path::new("/proc/sys/vm/drop_caches");
    fs::write(path, "1").map_err(file("write", path))
}
