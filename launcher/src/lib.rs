//! Starts one machine spec on qemu, cloud-hypervisor, firecracker, crosvm or kvmtool: see ARCHITECTURE.md.
//!
//! The way of a machine through this crate: text --[`spec`]--> `MachineSpec` --`validate`--> `CheckedSpec`
//! --`hypervisor::lower`--> [`launch::Launch`] --run--> a process. Everything up to the `Launch` is pure.

pub mod balloon;
pub mod capability;
pub mod child;
pub mod cmdline;
pub mod console;
pub mod control;
pub mod explain;
pub mod facts;
pub mod host;
pub mod hypervisor;
pub mod imperative;
pub mod initrd;
pub mod interruption;
pub mod isolation;
pub mod keyval;
pub mod launch;
pub mod network;
pub mod path;
pub mod place;
pub mod programs;
pub mod readiness;
pub mod reference;
pub mod refusal;
pub mod run;
pub mod shell;
pub mod shutdown;
pub mod side_processes;
pub mod sockets;
pub mod spec;
pub mod spelling;
pub mod state;
pub mod store_disk;
#[cfg(test)]
mod test_program;
#[cfg(test)]
mod test_skip;
pub mod validate;
pub mod visible;
pub mod volumes;
