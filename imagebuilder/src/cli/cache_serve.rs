//! `microvm-image cache serve`.

use super::failure::Failure;
use super::{interrupt, thread_count};
use clap::Args;
use imagebuilder::cache_service::kept_packs::{KeptPacks, KeptPacksOptions};
use imagebuilder::cache_service::listener;
use imagebuilder::cache_service::nix_daemon::DEFAULT_NIX_DAEMON;
use imagebuilder::cache_service::owners::Owners;
use imagebuilder::cache_service::server::{Limits, Service};
use imagebuilder::{open_files, size};
use program::input::{MAX_SECONDS, from_one_up_to, up_to, whole_number};
use std::num::NonZero;
use std::path::{Path, PathBuf};
use std::time::Duration;
use std::{env, thread};

/// Number of packs that one build requests at the same time. With more processors than this, several threads make each
/// pack.
const MAX_CONCURRENT_REQUESTS: usize = 8;

/// Serve packs to all builds of this host, including those in Nix's sandbox
///
/// The service makes the packs of store paths that are valid in Nix, keeps them in its cache directory, and hands out
/// read-only descriptors of them. Nothing that a client sends is written anywhere, so clients need not be trusted.
/// systemd starts it with its socket (ListenSequentialPacket=); --socket creates one that every user can connect to.
#[derive(Debug, Args)]
pub(crate) struct ServeArgs {
    /// Directory of the cache; only the service may be able to write to it
    #[arg(long, value_name = "DIR")]
    cache: PathBuf,
    /// Largest size of the cache in bytes, or with a unit of 1024: 500M, 20G
    #[arg(long, value_name = "SIZE", value_parser = size::parse, default_value = "20G")]
    max_size: u64,
    /// Socket to listen on [default: the one that systemd passes]
    #[arg(long, value_name = "PATH")]
    socket: Option<PathBuf>,
    /// Directory that holds the store paths
    #[arg(long, value_name = "DIR", default_value = "/nix/store")]
    store_dir: PathBuf,
    /// Socket of the Nix daemon, which reports which store paths are valid [default: $NIX_DAEMON_SOCKET_PATH, else
    /// /nix/var/nix/daemon-socket/socket]
    #[arg(long, value_name = "PATH")]
    nix_daemon: Option<PathBuf>,
    /// Packs made at the same time for one user; one more can be made for other users [default: all processors]
    #[arg(short, long, value_name = "N", value_parser = thread_count::parse)]
    jobs: Option<NonZero<usize>>,
    /// Maximum number of connected clients
    #[arg(long, value_name = "N", default_value = "256", value_parser = whole_number::<NonZero<usize>>)]
    max_clients: NonZero<usize>,
    /// Maximum number of connected clients of one user
    #[arg(long, value_name = "N", default_value = "16", value_parser = whole_number::<NonZero<usize>>)]
    max_clients_per_user: NonZero<usize>,
    /// Maximum time for a request
    #[arg(long, value_name = "SECONDS", default_value = "600", value_parser = from_one_up_to::<MAX_SECONDS>)]
    request_timeout: u64,
    /// Time after which an idle client is disconnected
    #[arg(long, value_name = "SECONDS", default_value = "30", value_parser = from_one_up_to::<MAX_SECONDS>)]
    client_timeout: u64,
    /// Time without clients after which the service exits; systemd starts it again [default: never]
    #[arg(long, value_name = "SECONDS", value_parser = up_to::<MAX_SECONDS>)]
    idle_exit: Option<u64>,
}

pub(crate) fn run(args: &ServeArgs) -> Result<(), Failure> {
    let (listener, own_socket) = match (listener::from_service_manager()?, &args.socket) {
        (Some(from_service_manager), None) => (from_service_manager, None),
        (None, Some(path)) => {
            let (listener, own_socket) = listener::make(path)?;
            (listener, Some(own_socket))
        }
        (Some(_), Some(_)) => {
            return Err(Failure::usage("systemd passed a socket, but --socket names another one")
                .with_hint("leave --socket out"));
        }
        (None, None) => {
            return Err(Failure::usage("there is no socket to listen on")
                .with_hint("start the service by a socket unit of systemd, or specify a socket with --socket PATH"));
        }
    };
    open_files::raise_limit();
    let jobs = args.jobs.or_else(|| thread::available_parallelism().ok()).map_or(1, NonZero::get);
    let packs = KeptPacks::open(KeptPacksOptions {
        cache: args.cache.clone(),
        store_dir: args.store_dir.clone(),
        size_max_bytes: args.max_size,
        jobs: jobs.div_ceil(MAX_CONCURRENT_REQUESTS),
    })?;
    let nix_daemon = args
        .nix_daemon
        .clone()
        .or_else(|| env::var_os("NIX_DAEMON_SOCKET_PATH").filter(|value| !value.is_empty()).map(PathBuf::from))
        .unwrap_or_else(|| Path::new(DEFAULT_NIX_DAEMON).to_path_buf());
    let limits = Limits {
        makers: jobs + 1,
        clients: args.max_clients.get(),
        clients_per_user: args.max_clients_per_user.get(),
        request_time: Duration::from_secs(args.request_timeout),
        silence: Duration::from_secs(args.client_timeout),
        idle_exit: args.idle_exit.map(Duration::from_secs),
    };
    let service = Service { listener, packs: &packs, nix_daemon: &nix_daemon, owners: Owners::of_this_host(), limits };
    let ended = service.run(interrupt::cancel_flag(), &mut |line| program::output::message(line));
    // The service still has the listener open here.
    drop(own_socket);
    Ok(ended?)
}
