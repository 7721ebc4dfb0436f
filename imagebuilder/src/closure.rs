//! What goes into an image: store paths that refer to nothing outside of themselves, wherever the list came from.

mod check;
mod graph;
mod nix_store;
mod path_list;
mod registration;
mod source;

pub use check::{Closure, ClosureProblem, ClosureProblems, ClosureRecord, Position};
pub use graph::GraphError;
pub use nix_store::{NixStoreError, StoreLocation};
pub use source::{ClosureError, ClosureSource, ListInput, read};
