//! sepal: services, endpoints and leases. One daemon per Kubernetes node in place of kube-proxy (iptables mode).
//!
//! The map of the house, in the order data flows through it:
//!
//! - [`source`]: manifests or an API server; [`source::convert`] turns objects into cluster values and is pure.
//! - [`cluster`]: Services, EndpointSlices and this Node, as this node needs them. Pure.
//! - [`config`]: what the operator asked for.
//! - [`rules`]: the rules this node should have, computed as plain values. Pure.
//! - [`table`]: rules as text, live tables parsed, the difference, and the plan of writes. Pure.
//! - [`network`]: the pod network: links, routes, neighbours and forwarding entries as values. Pure.
//! - [`iptables`] and [`netlink`]: the only doors to the kernel, each behind a trait.
//! - [`conntrack`]: flows that contradict the cluster, found (pure) and deleted (its own door to the kernel).
//! - [`agent`]: the loop that joins these. [`cli`]: the program's other faces. [`cni`]: the program as a plugin of container runtimes.
//!
//! - [`json_keys`]: JSON with keys in any case, as programs in Go read it. Pure.
//! - [`explain`]: which way a packet goes through the rules. Pure.
//! - [`preflight`]: what all of that needs of a node, and what was found there. Pure.
//!
//! - `error_text`: errors as text for operators.
//!
//! "Pure" means values in, values out: no async, no processes, no files, no clock; a test holds these rooms to it.

pub mod agent;
pub mod cli;
pub mod cluster;
pub mod cni;
pub mod config;
pub mod conntrack;
mod error_text;
pub mod explain;
pub mod iptables;
pub mod json_keys;
pub mod netlink;
pub mod network;
pub mod parallel;
pub mod preflight;
pub mod rules;
pub mod source;
pub mod table;
mod whole_file;
