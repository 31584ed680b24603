//! What the API server allows, and what it says of this node.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;

use crate::cluster::Node;
use crate::kubernetes::permission::{NeededPermission, Permission};

use super::{Check, Part};

const PART: Part = Part::Cluster;

/// What is asked of the API server, and what it does not allow.
#[must_use]
pub fn permissions(needed: &[NeededPermission], missing: &[NeededPermission]) -> Check {
    let name = "permissions";
    if missing.is_empty() {
        return Check::ok(PART, name, format!("all {} that are needed", needed.len()));
    }
    let listed: Vec<String> =
        missing.iter().map(|NeededPermission { permission, .. }| format!("{} {}", permission.verb, permission.resource)).collect();
    Check::failed(PART, name, format!("not allowed: {}", listed.join(", ")), rules(missing))
}

/// The rules that are missing, as they stand in roles. What is needed in one namespace belongs in a Role there.
#[must_use]
pub fn rules(missing: &[NeededPermission]) -> String {
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

/// What is needed of this node's Node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Wanted {
    /// Local traffic is told apart by its pod CIDR (`detectLocalMode: NodeCIDR`).
    pub by_pod_cidr: bool,
    /// The pod network takes its subnet from there.
    pub subnet: bool,
    /// sepal gives it one by itself.
    pub leased: bool,
}

/// Whether the Node is there and says what is needed.
#[must_use]
pub fn node(name: &str, node: Option<&Node>, wanted: Wanted) -> Vec<Check> {
    let Some(node) = node else {
        let cure = "kubelet makes it; if it has another name, say --hostname-override, or NODE_NAME by the downward API";
        return vec![Check::failed(PART, "Node", format!("there is no Node {name}"), cure)];
    };
    let addresses: Vec<String> = node.addresses.iter().map(ToString::to_string).collect();
    let mut checks = vec![if addresses.is_empty() {
        let cure = "kubelet sets it; see its --node-ip, or what the cloud provider says";
        Check::warning(PART, "Node", format!("{name} has no address"), cure)
    } else {
        Check::ok(PART, "Node", format!("{name} with {}", addresses.join(" and ")))
    }];
    let needs_cidr = wanted.by_pod_cidr || wanted.subnet;
    if needs_cidr {
        let cidrs: Vec<String> = node.pod_cidrs.iter().map(ToString::to_string).collect();
        checks.push(match (cidrs.is_empty(), wanted.leased) {
            (false, _) => Check::ok(PART, "pod CIDR", cidrs.join(" and ")),
            (true, true) => Check::ok(PART, "pod CIDR", "none yet; this node takes one by a Lease"),
            (true, false) => Check::failed(
                PART,
                "pod CIDR",
                format!("Node {name} has none"),
                "start kube-controller-manager with --allocate-node-cidrs and --cluster-cidr (kubeadm: --pod-network-cidr), or let sepal assign \
                 subnets: --subnet-source=lease",
            ),
        });
    }
    checks
}

#[cfg(test)]
mod tests {
    use super::super::Outcome;
    use super::*;

    fn needed(verb: &'static str, group: &'static str, resource: &'static str, namespace: Option<&'static str>) -> NeededPermission {
        NeededPermission { permission: Permission { verb, group, resource }, namespace }
    }

    #[test]
    fn missing_rules_can_be_pasted() {
        let missing = [
            needed("list", "", "nodes", None),
            needed("watch", "", "nodes", None),
            needed("create", "coordination.k8s.io", "leases", Some("kube-system")),
        ];
        let check = permissions(&missing, &missing);
        assert_eq!(check.outcome, Outcome::Failed);
        let wanted = "# add to its ClusterRole\nrules:\n  - {apiGroups: [\"\"], resources: [nodes], verbs: [list, watch]}\n\
                      # add to its Role in namespace kube-system\nrules:\n  - {apiGroups: [\"coordination.k8s.io\"], resources: [leases], verbs: [create]}";
        assert_eq!(check.cure, wanted);
        assert_eq!(permissions(&missing, &[]).outcome, Outcome::Ok);
    }

    #[test]
    fn a_node_without_what_is_needed_is_told_of() {
        let wanted = Wanted { by_pod_cidr: false, subnet: true, leased: false };
        let bare = Node { addresses: vec!["192.0.2.1".parse().expect("an address")], ..Node::default() };
        let outcomes = |node: Option<&Node>, wanted| super::node("a", node, wanted).iter().map(|check| check.outcome).collect::<Vec<_>>();
        assert_eq!(outcomes(None, wanted), [Outcome::Failed]);
        assert_eq!(outcomes(Some(&bare), wanted), [Outcome::Ok, Outcome::Failed]);
        assert_eq!(outcomes(Some(&bare), Wanted { leased: true, ..wanted }), [Outcome::Ok, Outcome::Ok]);
        assert_eq!(outcomes(Some(&bare), Wanted { subnet: false, ..wanted }), [Outcome::Ok]);
        assert_eq!(outcomes(Some(&Node::default()), Wanted { subnet: false, ..wanted }), [Outcome::Warning]);
    }
}
