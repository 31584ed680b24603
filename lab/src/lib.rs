//! Network namespaces for sepal's tests, benchmarks and demo. The host's own network is never changed.
//!
//! - [`cluster`]: API objects of a cluster of any size.
//! - [`demo`]: the demo.
//! - [`figures`]: measurements and their table.
//! - [`http`]: one HTTP request from a namespace.
//! - [`netns`]: a network namespace, and programs and sockets in it.
//! - [`peers`]: Node objects of thousands of peers around one real node.
//! - [`plugin`]: pods that the CNI plugin connects.
//! - [`pod`]: a pod, and the servers in it.
//! - [`pod_cluster`]: nodes on one switch, each with a daemon, and an API server.
//! - [`probe`]: a client that notices every lost packet.
//! - [`scale`]: a simulated cluster of any size around one real node.
//! - [`servers`]: two servers for the endpoints of a [`Cluster`].
//! - [`session`]: a client with a long-lived connection.
//! - [`site`]: a node between its pods and the outside.
//! - [`soak`]: changes, faults and restarts for a long time, with a check that nothing is left over.
//! - [`traffic`]: one request of a client to a server.

#![allow(
    clippy::disallowed_methods,
    clippy::expect_used,
    clippy::panic,
    clippy::missing_panics_doc,
    clippy::must_use_candidate,
    clippy::new_without_default,
    reason = "a tool for tests: it starts programs and waits, and a failed setup fails the test"
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
pub mod single_node;
pub mod soak;
pub mod traffic;

pub use cluster::Cluster;
pub use netns::{NAMESPACE_FLAGS, Netns, Running, wait_until, wait_until_within};
pub use pod::Pod;
pub use pod_cluster::{Families, Layout, PodCluster, PodNode};
pub use probe::Prober;
pub use session::Session;
pub use single_node::SingleNode;
