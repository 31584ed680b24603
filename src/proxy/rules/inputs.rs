//! The inputs of a node's rules, except the facts that are read from the host.

use crate::cluster::Snapshot;
use crate::cluster::host_facts::HostFactsOverrides;
use crate::cluster::pod_rules::PodRules;
use crate::proxy::settings::{DetectLocal, NodePortAddresses, ProxySettings};

/// The cluster, this node's name and the settings.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Inputs {
    /// The cluster.
    pub snapshot: Snapshot,
    /// This node's name.
    pub node_name: String,
    /// The settings.
    pub settings: ProxySettings,
    /// Facts of the host that a file states. They override the facts that are read from the host.
    pub written_facts: Option<HostFactsOverrides>,
    /// The inputs of the pod network's rules. `None` if they are not known yet, or if another program runs the pod network.
    pub pod_rules: Option<PodRules>,
    /// Another program is the service proxy. sepal only writes the pod network's rules.
    pub without_proxy: bool,
}

impl Inputs {
    /// Returns true if this node's IPs are known, or if no rule needs them.
    #[must_use]
    pub fn knows_node_ip(&self) -> bool {
        self.settings.node_port_addresses != NodePortAddresses::Primary
            || self.settings.bind_address.is_some()
            || self.snapshot.node().is_some_and(|node| !node.addresses.is_empty())
    }

    /// Returns the reason why no rules can be computed yet, if any. In mode NodeCIDR, the Node needs a pod CIDR [kube-proxy 1.5].
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
