//! The resource agent of a Pacemaker cluster: how the cluster starts, stops, monitors and moves a machine. It follows the
//! resource agent API 1.1 of the Open Cluster Framework.

pub mod parameters;
