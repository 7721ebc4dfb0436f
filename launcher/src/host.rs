//! The host: the facts that a launch depends on, and the requirements of a launch that the host does not meet.

mod desktop;
mod devices;
mod facts;
mod first_output;
mod image_features;
mod kvm;
mod landlock;
mod mapped_image;
mod needs;
mod qcow2;

pub(crate) use first_output::{first_output, last_output};

pub use facts::{FactsError, KernelImage, gather, inspect_store_disk, kernel_form};
pub use needs::{CheckTime, HostProblem, missing};
