//! Runs machines on qemu, cloud-hypervisor, firecracker, crosvm or kvmtool. The program `microvm` is a thin layer over
//! this crate; `ARCHITECTURE.md` explains how the modules work together.
//!
//! A machine passes through a sequence of types: [`spec::parse::parse`] parses text into a [`spec::MachineSpec`],
//! [`validate::check`] turns it into a [`validate::CheckedSpec`], [`hypervisor::lower`] turns that into a
//! [`launch::Launch`] for one hypervisor, and [`run`] executes the launch. Everything before `run` is pure: it reads
//! neither files nor the environment.
//!
//! ```
//! use launcher::facts::HostFacts;
//! use launcher::hypervisor::{lower, runs_on};
//! use launcher::path::HostPath;
//! use launcher::spec::{Hypervisor, parse::parse};
//! use launcher::validate::check;
//!
//! let spec = parse(r#"{"version": 1, "name": "web", "kernel": "/srv/vmlinux", "vcpu": 2}"#).expect("a valid spec");
//! let spec = check(&spec).expect("no problems");
//! let host = HostFacts::assumed(HostPath::from("/var/lib/microvms/web"));
//! assert_eq!(runs_on(&spec, &host).len(), 5);
//!
//! let launch = lower(&spec, &host, Hypervisor::Qemu).expect("qemu supports the machine");
//! assert!(launch.arguments.windows(2).any(|pair| pair == ["-smp", "2"]));
//!
//! // All problems are reported at once.
//! let problems = parse(r#"{"version": 1, "nmae": "web"}"#).expect_err("two problems");
//! assert!(problems.len() >= 2);
//! ```

pub mod balloon;
pub mod capability;
pub mod cluster;
pub mod cmdline;
pub mod console;
pub mod control;
pub mod explain;
pub mod facts;
pub mod host;
pub mod hypervisor;
pub mod identity;
pub mod imperative;
pub mod initrd;
pub mod interruption;
pub mod isolation;
pub mod keyval;
pub mod launch;
pub mod name;
pub mod network;
pub mod ocf;
pub mod own_files;
pub mod path;
pub mod programs;
pub mod readiness;
pub mod reference;
pub mod refusal;
pub mod run;
pub mod share_view;
pub mod shell;
pub mod shutdown;
pub mod side_processes;
pub mod sockets;
pub mod spec;
pub mod stamp;
pub mod state;
pub mod store_disk;
pub mod store_seal;
pub mod suspend;
pub mod validate;
pub mod volumes;
