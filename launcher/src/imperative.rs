//! Managing the machines of a host: built from flakes, kept in state directories, and run by systemd.
//!
//! Every machine has a directory `STATE/NAME` that contains `current`, a symbolic link to its runner; `booted`, a
//! symbolic link to the runner that it was started with; and `flake`, the reference that it is built from. A machine of
//! the host's own configuration has `toplevel` instead of `flake`, and is updated with the host. Each change is one
//! rename, so an interrupted change leaves the old state. Only one process at a time can change a machine (`lock`), and
//! a runner gets its garbage collection root before anything refers to it.

mod activity;
mod assign;
mod clone;
mod clone_arguments;
mod create;
mod delete;
mod error;
mod flake;
mod layout;
mod list;
mod lock;
mod nix;
mod parallel;
mod pci;
mod resources;
mod service;
mod ssh;
mod update;

pub use crate::name::MachineName;
pub use activity::{MachineActivity, Phase, is_held, last_failure, state_of};
pub use assign::{assign, fetch};
pub use clone::{CloneError, CloneRequest, NewClone, clone};
pub use create::create;
pub use delete::{Removal, delete, removal};
pub use error::ImperativeError;
pub use flake::FlakeReference;
pub use layout::{Layout, Machine};
pub use list::{Evaluation, ListOptions, ListedActivity, Measurement, Row, UpdateState, list};
pub use lock::NamesLock;
pub use nix::BuildOutput;
pub use parallel::in_parallel;
pub use pci::PciBus;
pub use resources::{ProcessUsage, Resources, disk_bytes, memory_mib, read_spec};
pub use service::{JournalPosition, Service, ServiceState, host_shuts_down, is_declared, register, unregister};
pub use ssh::{connect_vsock, ssh_command};
pub use update::{Booted, Updated, runs_older_system, update};
