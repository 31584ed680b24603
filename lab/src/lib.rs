//! Network namespaces to try sepal in: for its tests, its benchmarks and its demo. Nothing of the host's own network is touched.
//!
//! - [`cluster`]: clusters of any size, as objects.
//! - [`http`]: one request from a namespace.
//! - [`netns`]: a namespace, programs and sockets within it.
//! - [`plugin`]: pods that the CNI plugin connects.
//! - [`pod`]: a pod on a node's bridge, and servers to talk to.
//! - [`pod_cluster`]: nodes on one switch, each with the daemon that is tried, and an API server.
//! - [`probe`]: a client that notices every lost packet.
//! - [`session`]: a connection that lasts, and notices when it does not.
//! - [`site`]: a node between its pods and the world outside.
//! - [`traffic`]: one try of a client at a server.

#![allow(
    clippy::disallowed_methods,
    clippy::expect_used,
    clippy::panic,
    clippy::missing_panics_doc,
    clippy::must_use_candidate,
    clippy::new_without_default,
    reason = "an instrument for tests: it starts programs, waits, and where it cannot be set up the test has failed"
)]

pub mod cluster;
pub mod http;
pub mod netns;
pub mod plugin;
pub mod pod;
pub mod pod_cluster;
pub mod probe;
pub mod session;
pub mod site;
pub mod traffic;

/// Flags for a sepal that runs in a network namespace: the limit of tracked connections is the host's own, and cannot be set from there.
pub const IN_NAMESPACE: [&str; 1] = ["--conntrack-max-per-core=0"];

pub use cluster::Cluster;
pub use netns::{Netns, Running, eventually, eventually_within};
pub use pod::Pod;
pub use pod_cluster::{Families, Layout, PodCluster, PodNode};
pub use probe::Prober;
pub use session::Session;
pub use site::Site;
