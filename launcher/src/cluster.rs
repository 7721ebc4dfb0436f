//! A cluster of hosts that run machines together, on Pacemaker and Corosync.
//!
//! [`spec`] has the types of `cluster.json`; [`check()`] compares it with the machine specs and returns a
//! [`CheckedCluster`], from which [`cib`] generates the configuration of Pacemaker and [`corosync`] that of Corosync. These
//! modules are pure. [`simulation`] lets Pacemaker's scheduler decide whether a failure leaves a machine without a host;
//! [`engine`] runs Pacemaker's tools, and [`operations`] changes a running cluster with them. Pacemaker and
//! Corosync decide about membership, quorum, placement and fencing.

mod check;
mod checked;
pub mod cib;
pub mod corosync;
mod date;
pub mod engine;
pub mod merge;
mod migration;
pub mod operations;
mod placement;
pub mod runners;
pub mod secrets;
pub mod simulation;
pub mod spec;
pub mod status;
pub mod xml;

pub use check::{ClusterProblem, check};
pub use checked::{CheckedCluster, CheckedDevice, CheckedMachine, CheckedNode};
