//! The loop of the pod network: receives changes of Nodes, configuration and kernel, computes the desired state, and writes the difference to
//! the kernel.
//!
//! There are two ways to write. A full reconcile ([`reconcile`]) dumps the kernel and corrects every difference. It runs at the start, after
//! changes in the kernel, and at fixed intervals. Changes of other nodes are written incrementally ([`peer_changes`]): they are compared with
//! the acknowledged state, and only the difference is written.

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
