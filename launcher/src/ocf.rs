//! The resource agent of a Pacemaker cluster: how the cluster starts, stops, monitors and moves a machine. It follows the
//! resource agent API 1.1 of the Open Cluster Framework.
//!
//! The agent supervises nothing. It starts machines as `microvm run` and the service `microvm@` do, and asks their
//! hypervisors.

mod agent;
mod clustered;
mod exit_code;
mod meta_data;
mod migrate;
mod observe;
pub mod parameters;
mod transfer;

pub use agent::{Agent, Operation};
pub use exit_code::{AgentError, ExitCode};
pub use meta_data::meta_data;
pub use observe::{Observed, observe};
pub use transfer::{Streams, receive, send};
