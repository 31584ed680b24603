//! The pod network: what flannel does with VXLAN or host-gw.
//!
//! The files in this folder are PURE. [`desired`] computes the desired links, routes, neighbours and FDB entries from net-conf.json, this
//! node's subnets and the other Nodes. [`plan`] computes the steps from the live state to the desired one. [`sync`] is the loop.
//!
//! Links, annotations and subnet.env have flannel's names, so that flanneld nodes and sepal nodes work in one cluster.

pub mod allocation;
pub mod annotations;
mod api_objects;
mod backoff;
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
