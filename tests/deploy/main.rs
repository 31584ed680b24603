//! What `deploy/` holds: accepted by the API's types, true of the program, and enough of permissions and capabilities, but not more.

#![allow(clippy::expect_used, clippy::panic, clippy::disallowed_methods, reason = "tests start programs, and fail where they cannot")]

mod compose;
mod manifests;
mod node;
mod permissions;

const SEPAL: &str = env!("CARGO_BIN_EXE_sepal");

/// The kustomizations that somebody applies, each by itself.
const MODES: [&str; 3] = ["proxy-only", "network-only", "all"];
