//! What `microvm` and `microvm-image` share because both are Unix programs: output, failures and exit codes, untrusted
//! text in messages, sections of manual pages, spelling suggestions, files that appear whole or not at all, places that
//! another user may change, users, child processes, and the version.
//!
//! Nothing here knows about machines or images; neither of the two main crates depends on the other.
//!
//! ```
//! use program::escape::one_line;
//! use program::failure::Failure;
//! use program::place::Place;
//! use program::spelling::nearest;
//!
//! // A file is replaced whole, by descriptor: a link that another user puts there in the meantime is not followed.
//! let directory = tempfile::tempdir()?;
//! let place = Place::of(&directory.path().join("machine.json"))?;
//! place.replace(b"{}", 0o644, None)?;
//! assert_eq!(place.read_own()?, b"{}");
//!
//! // Untrusted text cannot control the terminal.
//! assert_eq!(one_line("\u{1b}[2Jweb"), "\\u{1b}[2Jweb");
//!
//! let failure = Failure::usage("there is no field `vpcu`").with_hint("did you mean `vcpu`?");
//! assert_eq!(failure.report().0, ["error: there is no field `vpcu`", "hint: did you mean `vcpu`?"]);
//! assert_eq!(nearest("vpcu", ["vcpu", "mem"].into_iter()), Some("vcpu"));
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

pub mod atomic_file;
pub mod child;
pub mod escape;
pub mod failure;
pub mod input;
pub mod manual;
pub mod output;
pub mod own_socket;
pub mod place;
pub mod plural;
pub mod presence;
pub mod signals;
pub mod spelling;
pub mod unnamed_file;
pub mod user;
pub mod version;
