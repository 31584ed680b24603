//! Keeps this node's part of the pod network as it should be: takes what is told of Nodes, of the configuration and of the kernel,
//! computes what should be there, compares it with what is, and makes the difference.
//!
//! Two ways lead to the kernel. A round ([`reconcile`]) looks at everything that the kernel holds and puts right what differs; it comes at the start,
//! after whatever else changes anything there, and now and then in any case. Other nodes' changes take the short way ([`peer_changes`]): they
//! are compared with what the kernel has acknowledged, and only what differs is written.

pub mod cni_install;
mod error;
mod foreign;
mod foreign_routes;
pub mod leases;
pub mod net_conf_watch;
pub mod node_name;
pub mod node_writes;
pub mod nodes;
mod peer_changes;
pub mod publish;
pub mod publisher;
mod reconcile;
pub mod report;
mod run;
mod schedule;
pub mod state;
pub mod status;
pub(crate) mod subnet_file;
pub mod subnet_lease;
pub mod subnets;
mod withdraw;

pub use state::{Asked, NetworkLoop};
