//! Network namespaces to try sepal in: for its tests, its benchmarks and its demo. Nothing of the host's own network is touched.
//!
//! - [`cluster`]: clusters of any size, as objects.
//! - [`demo`]: all of it, shown.
//! - [`figures`]: what measures.
//! - [`http`]: one request from a namespace.
//! - [`netns`]: a namespace, programs and sockets within it.
//! - [`peers`]: thousands of nodes, of which one is real.
//! - [`plugin`]: pods that the CNI plugin connects.
//! - [`pod`]: a pod on a node's bridge, and servers to talk to.
//! - [`pod_cluster`]: nodes on one switch, each with the daemon that is tried, and an API server.
//! - [`probe`]: a client that notices every lost packet.
//! - [`scale`]: a cluster of any size around one real node.
//! - [`servers`]: two servers that endpoints are moved between.
//! - [`session`]: a connection that lasts, and notices when it does not.
//! - [`site`]: a node between its pods and the world outside.
//! - [`soak`]: trouble without end, after which everything has to be as it was.
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
pub mod demo;
pub mod figures;
pub mod http;
pub mod netns;
pub mod peers;
pub mod plugin;
pub mod pod;
pub mod pod_cluster;
pub mod probe;
pub mod scale;
pub mod servers;
pub mod session;
pub mod site;
pub mod soak;
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
