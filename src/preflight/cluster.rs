//! Checks of the API server: permissions, and the Node object of this node.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;

use crate::cluster::Node;
use crate::kubernetes::permission::{NeededPermission, Permission};

use super::{Check, CheckGroup};

const GROUP: CheckGroup = CheckGroup::Cluster;

/// Checks that the API server grants every permission that sepal needs.
#[must_use]
pub(crate) fn permissions(needed: &[NeededPermission], missing: &[NeededPermission]) -> Check {
    let name = "permissions";
    if missing.is_empty() {
        return Check::ok(GROUP, name, format!("all {} needed permissions are granted", needed.len()));
    }
    let listed: Vec<String> =
        missing.iter().map(|NeededPermission { permission, .. }| format!("{} {}", permission.verb, permission.resource)).collect();
    Check::failed(GROUP, name, format!("not allowed: {}", listed.join(", ")), role_rules(missing))
}

/// Returns the missing rules as YAML: for a `ClusterRole`, or for a Role if the permission is needed in one namespace only.
fn role_rules(missing: &[NeededPermission]) -> String {
    let mut text = String::new();
    let namespaces: BTreeSet<Option<&str>> = missing.iter().map(|needed| needed.namespace).collect();
    for namespace in namespaces {
        let _ = match namespace {
            None => writeln!(text, "# add to its ClusterRole\nrules:"),
            Some(namespace) => writeln!(text, "# add to its Role in namespace {namespace}\nrules:"),
        };
        let mut rules: BTreeMap<(&str, &str), Vec<&str>> = BTreeMap::new();
        for NeededPermission { permission: Permission { verb, group, resource }, .. } in
            missing.iter().filter(|needed| needed.namespace == namespace)
        {
            rules.entry((group, resource)).or_default().push(verb);
        }
        for ((group, resource), verbs) in rules {
            let _ = writeln!(text, "  - {{apiGroups: [\"{group}\"], resources: [{resource}], verbs: [{}]}}", verbs.join(", "));
        }
    }
    text.truncate(text.trim_end().len());
    text
}

/// The fields that sepal needs in the Node object of this node, by their use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct NodeNeeds {
    /// The service proxy detects local traffic by the pod CIDR (`detectLocalMode: NodeCIDR`).
    pub by_pod_cidr: bool,
    /// The pod network takes its subnet from the pod CIDR.
    pub subnet: bool,
    /// sepal assigns a subnet by a Lease if the Node has no pod CIDR.
    pub leased: bool,
}

/// Checks that the Node object exists and has an address, and a pod CIDR if one is needed.
#[must_use]
pub(crate) fn node(name: &str, node: Option<&Node>, needs: NodeNeeds) -> Vec<Check> {
    let Some(node) = node else {
        let cure = "kubelet creates it. If it has another name, set --hostname-override, or NODE_NAME by the downward API";
        return vec![Check::failed(GROUP, "Node", format!("there is no Node {name}"), cure)];
    };
    let addresses: Vec<String> = node.addresses.iter().map(ToString::to_string).collect();
    let mut checks = vec![if addresses.is_empty() {
        let cure = "kubelet or the cloud provider sets it. See --node-ip of kubelet";
        Check::warning(GROUP, "Node", format!("{name} has no address"), cure)
    } else {
        Check::ok(GROUP, "Node", format!("{name} with {}", addresses.join(" and ")))
    }];
    if needs.by_pod_cidr || needs.subnet {
        let cidrs: Vec<String> = node.pod_cidrs.iter().map(ToString::to_string).collect();
        checks.push(match (cidrs.is_empty(), needs.leased) {
            (false, _) => Check::ok(GROUP, "pod CIDR", cidrs.join(" and ")),
            (true, true) => Check::ok(GROUP, "pod CIDR", "none yet. sepal assigns one by a Lease"),
            (true, false) => Check::failed(
                GROUP,
                "pod CIDR",
                format!("Node {name} has no pod CIDR"),
                "start kube-controller-manager with --allocate-node-cidrs and --cluster-cidr (kubeadm: --pod-network-cidr), or let sepal assign \
                 subnets: --subnet-source=lease",
            ),
        });
    }
    checks
}

#[cfg(test)]
mod tests {
    use super::super::CheckOutcome;
    use super::*;

    fn needed(verb: &'static str, group: &'static str, resource: &'static str, namespace: Option<&'static str>) -> NeededPermission {
        NeededPermission { permission: Permission { verb, group, resource }, namespace }
    }

    #[test]
    fn missing_rules_are_printed_as_yaml() {
        let missing = [
            needed("list", "", "nodes", None),
            needed("watch", "", "nodes", None),
            needed("create", "coordination.k8s.io", "leases", Some("kube-system")),
        ];
        let check = permissions(&missing, &missing);
        assert_eq!(check.outcome, CheckOutcome::Failed);
        let expected = "# add to its ClusterRole\nrules:\n  - {apiGroups: [\"\"], resources: [nodes], verbs: [list, watch]}\n\
                      # add to its Role in namespace kube-system\nrules:\n  - {apiGroups: [\"coordination.k8s.io\"], resources: [leases], verbs: [create]}";
        assert_eq!(check.cure, expected);
        assert_eq!(permissions(&missing, &[]).outcome, CheckOutcome::Ok);
    }

    #[test]
    fn a_node_without_a_pod_cidr_or_address_is_reported() {
        let needs = NodeNeeds { by_pod_cidr: false, subnet: true, leased: false };
        let bare = Node { addresses: vec!["192.0.2.1".parse().expect("an address")], ..Node::default() };
        let outcomes = |node: Option<&Node>, needs| super::node("a", node, needs).iter().map(|check| check.outcome).collect::<Vec<_>>();
        assert_eq!(outcomes(None, needs), [CheckOutcome::Failed]);
        assert_eq!(outcomes(Some(&bare), needs), [CheckOutcome::Ok, CheckOutcome::Failed]);
        assert_eq!(outcomes(Some(&bare), NodeNeeds { leased: true, ..needs }), [CheckOutcome::Ok, CheckOutcome::Ok]);
        assert_eq!(outcomes(Some(&bare), NodeNeeds { subnet: false, ..needs }), [CheckOutcome::Ok]);
        assert_eq!(outcomes(Some(&Node::default()), NodeNeeds { subnet: false, ..needs }), [CheckOutcome::Warning]);
    }
}
