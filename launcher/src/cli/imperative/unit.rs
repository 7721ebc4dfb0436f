//! `microvm unit`: the tasks of the host module's units for a machine. All of them run as root, for a machine whose
//! user is not trusted. Users do not need this command.

use crate::cli::host_machine::{failure, name_of};
use crate::cli::machine::{failed, launch_of, watch_signals};
use crate::cli::spec_file::{Overrides, read};
use crate::cli::suspend::{continue_for_service, report_saved, save_for_service};
use crate::cli::suspend_failure::same_mac_failure;
use launcher::imperative::{Layout, MachineName, host_shuts_down};
use launcher::interruption::Interruption;
use launcher::isolation::{self, FORMER_USER, PathOnHost, STORE_DISKS, StateDirectory, StoreDisks, Tree, TreeInputs};
use launcher::launch::{Launch, Needs, TapNeed};
use launcher::network::{NetworkError, macvtap, make_bridge_tap, remove_bridge_tap, tap};
use launcher::ocf::{Streams, observe, receive, send};
use launcher::path::HostPath;
use launcher::spec::{InterfaceType, MachineSpec};
use launcher::state::{MachineState, RuntimeDirectory};
use launcher::store_disk;
use launcher::suspend::{AfterSave, StartingGuest, SuspendedState, keeps_store_disk, require_own_macs};
use nix::unistd::{Gid, Group, Uid, User, setgid, setgroups, setuid};
use program::failure::Failure;
use program::input::{MAX_SECONDS, up_to};
use program::output::{message, print_json};
use program::user::Identity;
use std::ffi::OsString;
use std::fs;
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::{DirBuilderExt, chown};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

/// Perform a task of one of the host module's units for a machine
#[derive(clap::Args)]
pub(crate) struct Arguments {
    #[command(subcommand)]
    task: Task,
}

#[derive(clap::Subcommand)]
enum Task {
    /// Create the state directory of a declared machine, and set its runner
    Install(InstallArguments),
    /// Assign the machine its user, and record the runner that it starts with
    Adopt(Machine),
    /// Remove the record of the runner that the machine was started with
    Release(Machine),
    /// Build the machine's root directory
    RootUp(RootArguments),
    /// Remove the machine's root directory
    RootDown(RootArguments),
    /// Run a program of the machine's runner as root
    Call(CallArguments),
    /// Run a program of the machine's runner as the machine's user
    Enter(CallArguments),
    /// Save the machine as its user. Its hypervisor stays paused, and is ended when the service stops
    Suspend(Machine),
    /// If the host shuts down, save the machine as its user, like `suspend`
    SuspendAtShutdown(ShutdownArguments),
    /// As the machine's user, let a machine that stayed paused continue
    Continue(Machine),
    /// As the machine's user, print as JSON whether the machine runs
    Observe(Machine),
    /// Send the running machine to the host that standard output and standard input are connected to, as its user
    Send(TransferArguments),
    /// Receive a machine from the host that standard input and standard output are connected to, as its user
    Receive(TransferArguments),
}

#[derive(clap::Args)]
struct Machine {
    /// The machine
    #[arg(value_parser = name_of)]
    name: MachineName,
}

#[derive(clap::Args)]
struct TransferArguments {
    #[command(flatten)]
    machine: Machine,
    /// The time limit
    #[arg(value_name = "SECONDS", value_parser = up_to::<MAX_SECONDS>)]
    timeout: u64,
}

#[derive(clap::Args)]
struct InstallArguments {
    #[command(flatten)]
    machine: Machine,
    /// Its runner
    #[arg(long, value_name = "PATH")]
    runner: PathBuf,
    /// The flake that `microvm update` builds it from; without it, the machine is part of the host's configuration
    #[arg(long, value_name = "FLAKE")]
    flake: Option<String>,
    /// A directory in the state directory to create for a share of the machine
    #[arg(long = "directory", value_name = "DIR")]
    directories: Vec<PathBuf>,
}

#[derive(clap::Args)]
struct ShutdownArguments {
    #[command(flatten)]
    machine: Machine,
    /// A machine to suspend [default: all machines]
    #[arg(long = "only", value_name = "NAME")]
    only: Vec<String>,
}

#[derive(clap::Args)]
struct RootArguments {
    #[command(flatten)]
    machine: Machine,
    /// The directory that contains the root directories of the machines
    #[arg(long, value_name = "DIR", default_value = "/run/microvm-roots")]
    roots: PathBuf,
    /// The directory that contains the images of store disks that this host builds
    #[arg(long, value_name = "DIR", default_value = STORE_DISKS)]
    disks: PathBuf,
    /// A file or directory of the host that the machine may read
    #[arg(long = "readable", value_name = "PATH")]
    readable: Vec<PathBuf>,
}

#[derive(clap::Args)]
struct CallArguments {
    #[command(flatten)]
    machine: Machine,
    /// Succeed if the runner does not contain the program
    #[arg(long)]
    if_there: bool,
    /// The program in the runner's bin
    program: String,
    /// Its arguments
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    arguments: Vec<String>,
}

pub(crate) fn run(arguments: &Arguments) -> Result<(), Failure> {
    let layout = Layout::of_environment();
    match &arguments.task {
        Task::Install(arguments) => install(&layout, arguments),
        Task::Adopt(machine) => adopt(&layout, machine),
        Task::Release(machine) => directory_of(&layout, machine)?.clear_booted().map_err(failed),
        Task::RootUp(arguments) => root_up(&layout, arguments),
        Task::RootDown(arguments) => root_down(&layout, arguments),
        Task::Call(arguments) => call(&layout, arguments),
        Task::Enter(arguments) => enter(&layout, arguments),
        Task::Suspend(machine) => {
            become_user_of(&layout, machine)?;
            print_json(&save_for_service(machine.name.as_str(), AfterSave::StayPaused)?)
        }
        Task::SuspendAtShutdown(arguments) => suspend_at_shutdown(&layout, arguments),
        Task::Continue(machine) => {
            become_user_of(&layout, machine)?;
            continue_for_service(machine.name.as_str())
        }
        Task::Observe(machine) => print_json(&observe(&state_as_user(&layout, machine)?).map_err(failed)?),
        Task::Send(arguments) => {
            let state = state_as_user(&layout, &arguments.machine)?;
            send(&state, streams()?, Duration::from_secs(arguments.timeout)).map_err(failed)
        }
        Task::Receive(arguments) => {
            let state = state_as_user(&layout, &arguments.machine)?;
            receive(&state, streams()?, Duration::from_secs(arguments.timeout)).map_err(failed)
        }
    }
}

/// Returns standard input and output as the connection to another host.
fn streams() -> Result<Streams, Failure> {
    let input = io::stdin().as_fd().try_clone_to_owned().map_err(failed)?;
    let output = io::stdout().as_fd().try_clone_to_owned().map_err(failed)?;
    Ok(Streams { input, output })
}

/// Gives up all privileges, and returns what the machine's user has recorded about it.
fn state_as_user(layout: &Layout, machine: &Machine) -> Result<MachineState, Failure> {
    become_user_of(layout, machine)?;
    RuntimeDirectory::locate().and_then(|runtime| runtime.machine(machine.name.as_str())).map_err(failed)
}

/// Saves a machine whose service stops because the host shuts down. The service then ends it without asking its guest.
fn suspend_at_shutdown(layout: &Layout, arguments: &ShutdownArguments) -> Result<(), Failure> {
    let name = arguments.machine.name.as_str();
    let is_selected = arguments.only.is_empty() || arguments.only.iter().any(|only| only == name);
    if !is_selected || !host_shuts_down().map_err(|error| failure(&error))? {
        return Ok(());
    }
    let machine = layout.machine(&arguments.machine.name);
    let (booted, current) = (machine.booted_runner().map_err(failed)?, machine.runner().map_err(failed)?);
    if booted.is_some_and(|booted| booted != current) {
        message(&format!("{name} is shut down and not suspended, because its next start has another runner"));
        return Ok(());
    }
    become_user_of(layout, &arguments.machine)?;
    report_saved(name, &save_for_service(name, AfterSave::StayPausedAtShutdown)?);
    Ok(())
}

fn directory_of(layout: &Layout, machine: &Machine) -> Result<StateDirectory, Failure> {
    StateDirectory::open(&layout.machine(&machine.name)).map_err(failed)
}

fn install(layout: &Layout, arguments: &InstallArguments) -> Result<(), Failure> {
    let machine = layout.machine(&arguments.machine.name);
    let names = layout.reserve_name(&machine).map_err(failed)?;
    let directory = StateDirectory::make(layout, &machine).map_err(failed)?;
    drop(names);
    directory.set_current(layout, &arguments.runner).map_err(failed)?;
    directory.set_origin(layout, arguments.flake.as_deref(), &arguments.runner).map_err(failed)?;
    // A running machine that uses the former shared user is assigned its own user at its next start.
    let is_running = fs::symlink_metadata(machine.booted()).is_ok();
    if !is_running || directory.user_id().is_ok() {
        directory.adopt(layout).map_err(failed)?.iter().for_each(|line| message(line));
        for name in &arguments.directories {
            directory.make_directory(name).map_err(failed)?;
        }
    }
    layout.add_gc_roots(&machine).map_err(failed)
}

fn adopt(layout: &Layout, machine: &Machine) -> Result<(), Failure> {
    let directory = directory_of(layout, machine)?;
    directory.adopt(layout).map_err(failed)?.iter().for_each(|line| message(line));
    directory.set_booted(layout).map_err(failed)?;
    layout.add_gc_roots(&layout.machine(&machine.name)).map_err(failed)?;
    let runtime = RuntimeDirectory::locate().map_err(failed)?;
    let (state, user_id) =
        (runtime.machine(machine.name.as_str()).map_err(failed)?, directory.user_id().map_err(failed)?);
    let request = state.request_of_root().map_err(failed)?;
    make_runtime_directory(state.directory(), user_id)?;
    match request {
        Some(request) => state.write_request(request, Some(&Identity::of_ids(user_id, user_id))).map_err(failed),
        None => Ok(()),
    }
}

/// Creates the directory in which the machine records that it runs, and removes a former one.
fn make_runtime_directory(path: &Path, user_id: u32) -> Result<(), Failure> {
    let failed = |error: std::io::Error| Failure::problems(vec![format!("{}: {error}", path.display())]);
    match fs::remove_dir_all(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(failed(error)),
        _ => {}
    }
    let mut builder = fs::DirBuilder::new();
    builder.recursive(true).mode(0o750).create(path).map_err(failed)?;
    chown(path, Some(user_id), Some(user_id)).map_err(failed)
}

/// The properties of a machine that is about to start.
struct Starting {
    directory: StateDirectory,
    user_id: u32,
    /// `None` for a runner of microvm.nix.
    known: Option<(MachineSpec, Launch)>,
}

fn starting(layout: &Layout, machine: &Machine, interruption: &Interruption) -> Result<Starting, Failure> {
    let directory = directory_of(layout, machine)?;
    let user_id = directory.user_id().map_err(failed)?;
    let spec_file = directory.runner().map_err(failed)?.join("share/microvm/machine.json");
    if !spec_file.try_exists().map_err(failed)? {
        return Ok(Starting { directory, user_id, known: None });
    }
    let overrides = Overrides {
        hypervisor: None,
        accel: None,
        state_dir: Some(directory.path().to_owned()),
        name: Some(machine.name.to_string()),
    };
    let spec = read(&spec_file, &overrides)?;
    let runtime = RuntimeDirectory::locate().map_err(failed)?;
    let launch = launch_of(&spec, &overrides, &runtime, interruption)?;
    Ok(Starting { directory, user_id, known: Some((spec, launch)) })
}

/// How runners of release 0.1 call their launcher.
const LAUNCHER_OF_0_1: &str = "-microvm-0.1.0/bin/microvm ";

/// Refuses a runner of release 0.1 if its launcher would do something itself that root does since then.
fn require_later_release(name: &str, script: &str, needs: &Needs) -> Result<(), Failure> {
    let work = match needs {
        Needs { store_disk: Some(_), .. } => "builds the store disk itself",
        Needs { bridges, .. } if !bridges.is_empty() => "adds the interface to the bridge itself",
        _ => return Ok(()),
    };
    if !script.contains(LAUNCHER_OF_0_1) {
        return Ok(());
    }
    let problem = format!("{name} was built with release 0.1, which {work}; its unit no longer allows that");
    let hint = format!("build it again: microvm update {name}");
    Err(Failure::problems(vec![problem]).with_hint(hint))
}

fn root_up(layout: &Layout, arguments: &RootArguments) -> Result<(), Failure> {
    let interruption = watch_signals()?;
    let Starting { directory, user_id, known } = starting(layout, &arguments.machine, &interruption)?;
    let runtime = RuntimeDirectory::locate().map_err(failed)?;
    let launch = known.as_ref().map(|(_, launch)| launch);
    let store_disk = match launch {
        Some(launch) => make_store_disk(launch, layout, arguments, &interruption)?,
        None => None,
    };
    let name = arguments.machine.name.as_str();
    if let Some(launch) = launch {
        let script = directory.runner().map_err(failed)?.join("bin/microvm-run");
        let script = fs::read_to_string(&script).map_err(failed)?;
        require_later_release(name, &script, &launch.needs)?;
    }
    let mut tree = Tree::plan(&TreeInputs {
        name,
        state: directory.path(),
        launch,
        user_id,
        kvm_group: kvm_group().as_raw(),
        runtime: runtime.path(),
        other_paths: other_paths(arguments),
        resolves_names: known.as_ref().is_none_or(|(spec, _)| {
            spec.interfaces.iter().any(|interface| interface.interface_type == InterfaceType::User)
        }),
        store_disk,
        sysfs: Path::new("/sys"),
    })
    .map_err(failed)?;
    for bridge in launch.iter().flat_map(|launch| &launch.needs.bridges) {
        make_bridge_tap(bridge, Uid::from_raw(user_id)).map_err(failed)?;
    }
    if let Some((spec, launch)) = &known {
        // The machine's user cannot look at other machines.
        let macs: Vec<_> = spec.interfaces.iter().map(|interface| interface.mac.clone()).collect();
        require_own_macs(StartingGuest { launch, macs: &macs }, &runtime).map_err(same_mac_failure)?;
    }
    isolation::make_volumes(&mut tree, runtime.path(), &interruption).map_err(failed)?;
    isolation::make(&tree, &arguments.roots.join(name)).map_err(failed)?;
    isolation::allow_devices(&tree, &format!("microvm@{name}.service")).map_err(failed)
}

fn root_down(layout: &Layout, arguments: &RootArguments) -> Result<(), Failure> {
    isolation::remove(&arguments.roots.join(arguments.machine.name.as_str())).map_err(failed)?;
    let starting = starting(layout, &arguments.machine, &watch_signals()?)?;
    for bridge in starting.known.iter().flat_map(|(_, launch)| &launch.needs.bridges) {
        remove_bridge_tap(bridge).map_err(failed)?;
    }
    Ok(())
}

fn other_paths(arguments: &RootArguments) -> Vec<PathOnHost> {
    let path = |path: &PathBuf, writable| PathOnHost {
        path: path.clone(),
        writable,
        optional: false,
        option: "further paths of the host".to_owned(),
    };
    // Paths from the unit of a single machine, in addition to those that the template gives to all machines.
    let of_environment = |variable: &str| std::env::var_os(variable).unwrap_or_default();
    let (readable, writable) = (of_environment("MICROVM_READABLE_PATHS"), of_environment("MICROVM_WRITABLE_PATHS"));
    let split =
        |paths: &OsString| -> Vec<PathBuf> { std::env::split_paths(paths).filter(|path| path.is_absolute()).collect() };
    let readable = arguments.readable.iter().cloned().chain(split(&readable)).map(|each| path(&each, false));
    readable.chain(split(&writable).iter().map(|each| path(each, true))).collect()
}

/// Builds the image as the user of the image cache, which no guest can access, in a place where the machine can only
/// read it. Machines with the same plan share an image.
fn make_store_disk(
    launch: &Launch,
    layout: &Layout,
    arguments: &RootArguments,
    interruption: &Interruption,
) -> Result<Option<PathBuf>, Failure> {
    let Some(need) = &launch.needs.store_disk else { return Ok(None) };
    let identity = Identity::of(FORMER_USER).map_err(failed)?;
    let disks = StoreDisks::at(&arguments.disks);
    let is_suspended = |name: &str| MachineName::new(name).is_ok_and(|name| may_be_suspended(&layout.machine(&name)));
    let name = arguments.machine.name.as_str();
    let image = disks.assign(name, need.plan.as_path(), is_suspended).map_err(failed)?;
    let mut need = need.clone();
    need.image = image.to_string_lossy().into_owned().into();
    {
        let _lock = disks.lock(&image, interruption).map_err(failed)?;
        // The memory of the guest fits only this file.
        if !keeps_store_disk(launch, Some(&image)) {
            store_disk::make(&need, &"/".into(), Some(&identity), interruption).map_err(failed)?;
        }
    }
    let exists = |name: &str| MachineName::new(name).is_ok_and(|name| layout.machine(&name).directory.is_dir());
    disks.remove_unused(exists, is_suspended).map_err(failed)?;
    Ok(Some(image))
}

/// Whether a machine has saved state. Its user controls that state, and only its start reads it.
fn may_be_suspended(machine: &launcher::imperative::Machine) -> bool {
    let directory = HostPath::new(machine.directory.to_string_lossy());
    let saved = SuspendedState::new(&directory, machine.name.as_str()).complete();
    fs::symlink_metadata(saved.as_path()).is_ok()
}

fn call(layout: &Layout, arguments: &CallArguments) -> Result<(), Failure> {
    let directory = directory_of(layout, &arguments.machine)?;
    if ["tap-up", "macvtap-up"].contains(&arguments.program.as_str()) {
        let interruption = watch_signals()?;
        let starting = starting(layout, &arguments.machine, &interruption)?;
        if let Some((_, launch)) = &starting.known {
            make_interfaces(&launch.needs, &arguments.program, starting.user_id).map_err(failed)?;
        }
        interruption.restore_mask().map_err(failed)?;
        if starting.known.is_none() && arguments.program == "tap-up" {
            return make_taps_of_others(&starting, arguments);
        }
    }
    exec_program(&directory, arguments)
}

/// Creates the interfaces for the machine's user before the runner's own program uses them, because a runner of an
/// earlier release creates them for the former shared user.
fn make_interfaces(needs: &Needs, program: &str, user_id: u32) -> Result<(), NetworkError> {
    let owner = Uid::from_raw(user_id);
    if program == "macvtap-up" {
        return needs.macvtaps.iter().try_for_each(|need| macvtap::make_ready(need, owner).map(drop));
    }
    for need in &needs.taps {
        match tap::make_ready(need, owner) {
            Err(NetworkError::TapOwner { found, .. }) if found == FORMER_USER => tap::set_owner(need, owner)?,
            made => drop(made?),
        }
    }
    Ok(())
}

/// Runs the program of a runner of microvm.nix, which creates its taps for the former shared user, and gives them to
/// the machine's user.
fn make_taps_of_others(starting: &Starting, arguments: &CallArguments) -> Result<(), Failure> {
    let Some(mut command) = program_of(&starting.directory, arguments)? else { return Ok(()) };
    let status = command.status().map_err(failed)?;
    if !status.success() {
        return Err(Failure::problems(vec![format!("tap-up of {} ended with {status}", arguments.machine.name)]));
    }
    let facts = starting.directory.runner().map_err(failed)?.join("share/microvm");
    let lines = |name: &str| fs::read_to_string(facts.join(name)).unwrap_or_default();
    let flags = lines("tap-flags");
    let has = |flag: &str| flags.split_whitespace().any(|word| word == flag);
    for name in lines("tap-interfaces").lines() {
        let need = TapNeed {
            name: name.to_owned(),
            owner: None,
            multi_queue: has("multi_queue"),
            vnet_hdr: has("vnet_hdr"),
            queue_pairs: 1,
        };
        tap::set_owner(&need, Uid::from_raw(starting.user_id)).map_err(failed)?;
    }
    Ok(())
}

fn enter(layout: &Layout, arguments: &CallArguments) -> Result<(), Failure> {
    let directory = become_user_of(layout, &arguments.machine)?;
    exec_program(&directory, arguments)
}

/// Gives up all privileges, and returns the state directory.
fn become_user_of(layout: &Layout, machine: &Machine) -> Result<StateDirectory, Failure> {
    let directory = directory_of(layout, machine)?;
    let id = directory.user_id().map_err(failed)?;
    let become_user = || -> nix::Result<()> {
        nix::sys::prctl::set_no_new_privs()?;
        setgroups(&[kvm_group()])?;
        setgid(Gid::from_raw(id))?;
        setuid(Uid::from_raw(id))
    };
    become_user().map_err(|errno| failed(std::io::Error::from(errno)))?;
    Ok(directory)
}

fn exec_program(directory: &StateDirectory, arguments: &CallArguments) -> Result<(), Failure> {
    match program_of(directory, arguments)? {
        Some(mut command) => Err(failed(command.exec())),
        None => Ok(()),
    }
}

/// Returns the command of a program in the runner, or `None` if the runner does not contain it and that is allowed.
fn program_of(directory: &StateDirectory, arguments: &CallArguments) -> Result<Option<Command>, Failure> {
    let Some(program) = directory.program(&arguments.program).map_err(failed)? else {
        if arguments.if_there {
            return Ok(None);
        }
        let problem = format!("the runner of {} has no program {}", arguments.machine.name, arguments.program);
        return Err(Failure::usage(problem));
    };
    let mut command = Command::new(&program);
    // With `RootDirectoryStartOnly=`, systemd runs all other commands outside the root directory, and so in another
    // working directory.
    command.args(&arguments.arguments).current_dir(directory.path()).env("HOME", directory.path());
    Ok(Some(command))
}

/// Returns the group that can use /dev/kvm; if the host has no such group, one without privileges.
fn kvm_group() -> Gid {
    let group = Group::from_name("kvm").ok().flatten().map(|group| group.gid);
    let of_former = || User::from_name(FORMER_USER).ok().flatten().map(|user| user.gid);
    group.or_else(of_former).unwrap_or(Gid::from_raw(65_534))
}

#[cfg(test)]
mod tests {
    use super::*;
    use launcher::launch::BridgeNeed;

    #[test]
    fn a_runner_of_release_0_1_that_needs_an_update_is_refused_with_the_command() {
        let bridge: BridgeNeed = serde_json::from_value(serde_json::json!({"bridge": "br0", "helper": null})).unwrap();
        let bridged = Needs { bridges: vec![bridge], ..Needs::default() };
        let script =
            |version: &str| format!("exec /nix/store/0123-microvm-{version}/bin/microvm run machine.json \"$@\"\n");
        let refused = require_later_release("web", &script("0.1.0"), &bridged).unwrap_err();
        let text = refused.document().to_string();
        assert!(text.contains("web was built with release 0.1") && text.contains("microvm update web"), "{text}");
        assert!(require_later_release("web", &script("0.2.0"), &bridged).is_ok());
        assert!(require_later_release("web", &script("0.1.0"), &Needs::default()).is_ok());
    }
}
