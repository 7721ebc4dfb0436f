//! The content of an image: a closure of store paths, and the sources that it can be read from.

mod check;
mod graph;
mod nix_store;
mod path_list;
mod registration;
mod source;

pub use check::{Closure, ClosureProblem, ClosureProblems, ClosureRecord, Position};
pub use graph::GraphError;
pub use nix_store::{NixStoreError, StoreLocation};
pub use source::{CLOSURE_INFO_FILES, ClosureError, ClosureSource, ListInput, read};
