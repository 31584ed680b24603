//! Tests against the real kernel: both variants of iptables, rtnetlink and packets. Each test makes its own network namespaces, which takes
//! root.

#![allow(
    clippy::expect_used,
    clippy::panic,
    clippy::disallowed_methods,
    clippy::print_stdout,
    reason = "tests start programs and wait, and fail where they cannot be set up"
)]

#[path = "../common/mod.rs"]
mod common;
#[path = "../common/endings.rs"]
mod endings;
#[path = "../common/logged.rs"]
mod logged;
#[path = "../common/predecessors.rs"]
mod predecessors;
#[path = "../common/random_cluster.rs"]
mod random_cluster;

mod conntrack;
mod explain_packets;
mod lab;
mod manifest_site;
mod netlink;
mod packet_counters;
mod pod_network;
mod pod_network_faults;
mod pod_network_leases;
mod pod_network_state;
mod pod_network_trust;
mod policies;
mod real_iptables;
mod restore_input;
mod sysctls;
mod traffic;

const SEPAL: &str = env!("CARGO_BIN_EXE_sepal");
