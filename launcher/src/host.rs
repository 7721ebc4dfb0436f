//! What the host is and has: the facts that a launch depends on, and everything that a launch misses here.

mod desktop;
mod facts;
mod kvm;
mod limits;
mod needs;
mod qcow2;

pub use facts::{FactsError, NoticedKernel, gather, kernel_form};
pub use needs::{HostProblem, Moment, missing};
