//! This node, as its Node object describes it [kube-proxy 1.5].

use std::net::IpAddr;

use ipnetwork::IpNetwork;

use super::ip::Family;

/// The fields of a Node object that rules and health checks depend on.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Node {
    /// Label `topology.kubernetes.io/zone`; empty if absent.
    pub zone: String,
    /// `status.addresses`: every InternalIP in order, then every ExternalIP.
    pub addresses: Vec<IpAddr>,
    /// `spec.podCIDRs`.
    pub pod_cidrs: Vec<IpNetwork>,
    /// The Node is being deleted, or the cluster autoscaler is about to delete it: load balancers should send no new connections here. No
    /// rule depends on this.
    pub leaving: bool,
}

impl Node {
    /// Returns true if another version of this Node leads to the same rules.
    #[must_use]
    pub(crate) fn same_rules(&self, other: &Self) -> bool {
        let Self { zone, addresses, pod_cidrs, leaving: _ } = self;
        (zone, addresses, pod_cidrs) == (&other.zone, &other.addresses, &other.pod_cidrs)
    }

    /// The node's IP in one family: the first address of that family. kube-proxy takes the first of all addresses and the first address of
    /// the other family; the result is the same.
    #[must_use]
    pub fn ip(&self, family: Family) -> Option<IpAddr> {
        self.addresses.iter().copied().find(|ip| Family::of(*ip) == family)
    }

    /// The first pod CIDR of one family.
    #[must_use]
    pub fn pod_cidr(&self, family: Family) -> Option<IpNetwork> {
        self.pod_cidrs.iter().copied().find(|net| Family::of_net(*net) == family)
    }
}
