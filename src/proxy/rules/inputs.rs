//! Everything a node's rules are computed from, but for what the host says of itself.

use crate::cluster::Snapshot;
use crate::cluster::host_facts::HostFactsOverrides;
use crate::cluster::pod_rules::PodRules;
use crate::proxy::settings::{DetectLocal, NodePortAddresses, ProxySettings};

/// The cluster, this node's name and what was asked for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Inputs {
    /// The cluster.
    pub snapshot: Snapshot,
    /// This node's name.
    pub node_name: String,
    /// What was asked for.
    pub settings: ProxySettings,
    /// What is written about the host; it goes before what the host says.
    pub written_facts: Option<HostFactsOverrides>,
    /// What the pod network's rules are made from; `None` if that is not known yet, or the pod network is somebody else's.
    pub pod_rules: Option<PodRules>,
    /// The service proxy is somebody else's: only the pod network's rules are ours.
    pub without_proxy: bool,
}

impl Inputs {
    /// Whether rules that name this node's IPs can: it is known, or nothing hangs on it.
    #[must_use]
    pub fn knows_node_ip(&self) -> bool {
        self.settings.node_port_addresses != NodePortAddresses::Primary
            || self.settings.bind_address.is_some()
            || self.snapshot.node().is_some_and(|node| !node.addresses.is_empty())
    }

    /// What rules have to wait for, if they do: in mode NodeCIDR, for the Node to get its pod CIDR (spec section 1.5).
    #[must_use]
    pub fn missing(&self) -> Option<String> {
        let has_pod_cidr = self.snapshot.node().is_some_and(|node| !node.pod_cidrs.is_empty());
        (!self.without_proxy && self.settings.detect_local == DetectLocal::NodeCidr && !has_pod_cidr).then(|| {
            format!(
                "waiting for Node {} to get a pod CIDR: detectLocalMode NodeCIDR needs it. Does kube-controller-manager run with --allocate-node-cidrs?",
                self.node_name
            )
        })
    }
}
