//! `microvm-image serve`.

use super::failure::Failure;
use super::interrupt;
use super::source::SourceArgs;
use clap::Args;
use imagebuilder::plan::ImagePlan;
use imagebuilder::serve::confine::{self, FileAccess, StorePaths};
use imagebuilder::serve::content::{DiskContent, StoreContent};
use imagebuilder::serve::device::MAX_QUEUES;
use imagebuilder::serve::socket::{self, ServiceManager, SocketError, SocketRemover};
use imagebuilder::serve::{layout, serve};
use imagebuilder::settings::ImageSettings;
use imagebuilder::{missing_paths, threads};
use std::num::NonZero;
use std::os::fd::RawFd;
use std::os::unix::net::UnixListener;
use std::path::PathBuf;
use std::sync::Arc;
use std::thread;

const EXAMPLES: &str = "\
Examples:
  microvm-image serve --plan plan.json --socket store.sock
  microvm-image serve ./result --socket store.sock
  cloud-hypervisor --memory size=512M,shared=on --disk vhost_user=on,socket=store.sock ...";

/// Serve a store disk to one machine, without an image
///
/// The disk is an uncompressed EROFS with the store paths of the closure. It does not exist as a file: only its metadata
/// is in memory, and the content of files is read from the store when the guest reads it. A hypervisor connects to the
/// socket (vhost-user-blk) and must share the guest's memory. The disk is read-only and has the serial number `nix-store`.
/// A plan must be that of an erofs without a hash tree.
///
/// The command runs in the foreground and ends when the hypervisor disconnects. It needs no privileges. Before it accepts
/// the hypervisor's connection, it restricts itself to the system calls that it needs and to the files of the closure. It
/// notifies systemd when it listens.
#[derive(Debug, Args)]
#[command(override_usage = "microvm-image serve [OPTIONS] --socket <PATH>\n           [STORE_PATH]...", after_long_help = EXAMPLES)]
pub(crate) struct ServeArgs {
    #[command(flatten)]
    source: SourceArgs,
    /// Socket to listen on; only your user can connect to it. A socket that no process listens on is replaced
    #[arg(long, value_name = "PATH", help_heading = "Output")]
    socket: PathBuf,
    /// Queues of the disk, 1 to 64, each with a thread; a guest uses one for each of its processors
    #[arg(long, value_name = "N", default_value = "4", value_parser = parse_queues, help_heading = "Output")]
    queues: usize,
    /// Print no message about the disk
    #[arg(short, long, help_heading = "Output")]
    quiet: bool,
}

fn parse_queues(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(queues) if (1..=MAX_QUEUES).contains(&queues) => Ok(queues),
        _ => Err(format!("a disk has 1 to {MAX_QUEUES} queues")),
    }
}

pub(crate) fn run(args: &ServeArgs) -> Result<(), Failure> {
    interrupt::end_server();
    let Some(closure) = args.source.served_closure()? else { return Err(Failure::no_closure()) };
    let plan = ImagePlan::new(closure, ImageSettings::default());
    let jobs = thread::available_parallelism().map_or(1, NonZero::get).min(threads::MAX_JOBS);
    missing_paths::check(&plan, jobs)?;
    let content = content(&plan, jobs)?;
    let store_paths = confine::open_store_paths(content.map().files())?;
    let (listener, own_socket) = socket::bind(&args.socket)?;
    // The socket must be open when its file is removed: see `OwnSocket`.
    let _open = listener.try_clone().map_err(|source| SocketError::Bind { path: args.socket.clone(), source })?;
    let directory = own_socket.directory();
    let remover = SocketRemover::start(own_socket)?;
    interrupt::remove_at_end(remover.clone());
    let served = serve_confined(args, content, listener, (&store_paths, directory));
    remover.remove();
    served
}

/// Gives up all access that the server does not need, and serves one hypervisor.
fn serve_confined(
    args: &ServeArgs,
    content: StoreContent,
    listener: UnixListener,
    (store_paths, socket_directory): (&StorePaths, RawFd),
) -> Result<(), Failure> {
    let manager = ServiceManager::connect()?;
    let access = confine::restrict_files(store_paths)?;
    confine::restrict_system_calls(socket_directory)?;
    if access == FileAccess::Unrestricted && !args.quiet {
        program::output::message(
            "warning: this kernel has no Landlock, so the server can read all files that your user can",
        );
    }
    super::warn_of_missing_threads();
    manager.ready();
    let content: Arc<dyn DiskContent> = Arc::new(content);
    Ok(serve(&content, listener, args.queues, program::output::message)?)
}

/// Lists the closure and lays the image out.
fn content(plan: &ImagePlan, jobs: usize) -> Result<StoreContent, Failure> {
    Ok(StoreContent::open(layout(plan, jobs)?)?)
}
