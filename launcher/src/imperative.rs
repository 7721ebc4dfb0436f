//! The machines of a host: made from flakes, kept in state directories, run by systemd.
//!
//! Every machine has a directory `STATE/NAME` with `current`, a link to its runner; `booted`, a link to the runner that it
//! was started with; and `flake`, what it is built from. A machine of the host's own configuration has `toplevel` instead,
//! and is the host's to update. Each change is one rename, so whatever interrupts it leaves the old state. One process at a
//! time changes a machine (`lock`), and a runner has its root before anything refers to it.

mod activity;
mod create;
mod delete;
mod error;
mod flake;
mod layout;
mod list;
mod lock;
mod machined;
mod name;
mod nix;
mod pci;
mod service;
mod ssh;
mod update;

pub use activity::{MachineActivity, Phase, state_of};
pub use create::create;
pub use delete::{Removal, delete, removal};
pub use error::ImperativeError;
pub use flake::FlakeReference;
pub use layout::{Layout, Machine};
pub use list::{Evaluation, Freshness, ListedActivity, Row, list};
pub use machined::{register, unregister};
pub use name::MachineName;
pub use pci::PciBus;
pub use service::{Service, ServiceState, is_declared};
pub use ssh::{connect_vsock, ssh_command};
pub use update::{Booted, Updated, update};
