//! Tests against an API server in memory. They need no root.

#![allow(
    clippy::expect_used,
    clippy::panic,
    clippy::disallowed_methods,
    reason = "tests start programs and wait, and fail where they cannot be set up"
)]

mod network_loop;
mod network_node;
mod network_state;
mod pod_network_api;
mod proxied_api;
mod request_metrics;
mod secure_api;

const SEPAL: &str = env!("CARGO_BIN_EXE_sepal");
