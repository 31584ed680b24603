//! The pod network as values: leases, peers, and the links, addresses, routes, neighbours and FDB entries that they call for. PURE.
//!
//! What is desired is computed from the configuration, this node's lease and the other nodes' ([`desired`]); what is live is dumped from
//! the kernel; [`plan`] is the difference. Names are flannel's, so that flanneld nodes and these can be one cluster.

pub mod allocation;
pub mod annotations;
pub mod bridge;
pub mod claim;
pub mod cni_config;
pub mod contest;
pub mod desired;
pub mod entry;
pub mod families;
pub mod foreign;
pub mod interface;
pub mod leftovers;
pub mod link;
mod link_plan;
pub mod mac;
pub mod masquerade;
pub mod mtu;
pub mod node;
pub mod own_lease;
pub mod peers;
pub mod plan;
pub mod refusal;
pub mod routing;
pub mod subnet_env;
