//! The pod network: what flannel does with VXLAN or host-gw.
//!
//! The files in this folder are PURE: leases, peers, and the desired links, routes, neighbours and FDB entries as values. [`desired`] computes
//! them from net-conf.json, this node's subnets and the other Nodes; [`plan`] is the difference to the live state. [`sync`] is the loop.
//!
//! Names are flannel's, so that flanneld nodes and sepal nodes work in one cluster.

pub mod allocation;
pub mod annotations;
mod api_objects;
pub mod bridge;
pub mod claim;
pub mod cni_config;
pub mod contest;
pub mod desired;
pub mod foreign;
pub mod interface;
pub mod leftovers;
mod link_plan;
pub mod masquerade;
pub mod mtu;
pub mod net_conf;
pub mod node;
pub mod own_lease;
pub mod peers;
pub mod plan;
pub mod refusal;
pub mod routing;
pub mod settings;
pub mod subnet_env;
pub mod subnet_space;
pub mod sync;
pub mod vxlan;
