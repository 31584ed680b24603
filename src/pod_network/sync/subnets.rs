//! The source of this node's subnets, and their current status.

use std::net::IpAddr;

use ipnetwork::IpNetwork;
use tokio::sync::watch;

use super::node_writes::NodeCondition;
use super::subnet_lease::RegisteredNode;
use crate::cluster::Family;
use crate::cluster::families::PerFamily;
use crate::pod_network::claim::LeaseStatus;
use crate::pod_network::net_conf::NetConf;
use crate::pod_network::node::NetworkNode;
use crate::pod_network::own_lease::{self, NoSubnet};

/// The source of this node's subnets (`--subnet-source`), with its channels.
#[derive(Debug)]
pub enum SubnetProvider {
    /// `spec.podCIDRs` of the Node.
    Node,
    /// Leases that this node holds.
    Leases {
        /// The status of the lease of each family.
        statuses: PerFamily<watch::Receiver<LeaseStatus>>,
        /// Sends this node's Node to the tasks that hold the leases.
        node: watch::Sender<Option<RegisteredNode>>,
    },
}

/// The status of this node's subnets.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum SubnetStatus {
    /// This node has these subnets, one of each enabled family.
    Assigned(PerFamily<IpNetwork>),
    /// The subnets are unknown. The ones in use may still belong to this node, so they stay.
    Pending(NodeCondition),
    /// This node definitely has no subnet in some family.
    Lost(LostSubnets),
}

/// This node has no subnet in some family.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct LostSubnets {
    /// The subnets that are left.
    pub(super) left: PerFamily<IpNetwork>,
    /// Subnets that this node used and that another node holds now.
    pub(super) of_others: Vec<IpNetwork>,
    /// The condition that says why.
    pub(super) condition: NodeCondition,
}

impl SubnetStatus {
    /// The subnets of this node; `None` if they are unknown.
    pub(super) const fn ours(&self) -> Option<PerFamily<IpNetwork>> {
        match self {
            Self::Assigned(subnets) => Some(*subnets),
            Self::Lost(lost) => Some(lost.left),
            Self::Pending(_) => None,
        }
    }
}

impl SubnetProvider {
    /// The status of the subnets. `in_use` are those that this node uses now.
    pub(super) fn status(&self, node: &NetworkNode, conf: &NetConf, in_use: &PerFamily<IpNetwork>) -> SubnetStatus {
        match self {
            Self::Node => assigned(node, conf, in_use),
            Self::Leases { statuses, .. } => {
                leased(&statuses.iter().map(|(family, of)| (family, of.borrow().clone())).collect::<Vec<_>>(), in_use)
            }
        }
    }

    /// Sends the Node to the tasks that hold leases.
    pub(super) fn set_node(&self, node: &NetworkNode) {
        if let Self::Leases { node: registered, .. } = self {
            registered.send_if_modified(|before| {
                let now = Some(registration(node));
                let is_changed = *before != now;
                *before = now;
                is_changed
            });
        }
    }

    /// Waits for a change of a lease's status; forever if subnets come from the Node.
    pub(super) async fn changed(&mut self) {
        match self {
            Self::Node => std::future::pending().await,
            Self::Leases { statuses, .. } => {
                let PerFamily { v4, v6 } = statuses;
                tokio::select! {
                    () = changed_status(v4) => {}
                    () = changed_status(v6) => {}
                }
            }
        }
    }
}

/// Waits for a change of one family's status.
async fn changed_status(status: &mut Option<watch::Receiver<LeaseStatus>>) {
    let changed = match status {
        Some(status) => status.changed().await.is_ok(),
        None => false,
    };
    // The task that held the lease has ended, or there is none.
    if !changed {
        std::future::pending::<()>().await;
    }
}

/// The status of subnets that come from podCIDRs. They are lost if the Node has none or others, and unknown if they cannot be parsed.
fn assigned(node: &NetworkNode, conf: &NetConf, in_use: &PerFamily<IpNetwork>) -> SubnetStatus {
    let bad = match own_lease::assigned_subnets(node, conf) {
        Ok(subnets) => return SubnetStatus::Assigned(subnets),
        Err(NoSubnet::Unassigned(name)) => {
            let condition = NodeCondition::pod_cidr_missing(&name);
            return SubnetStatus::Lost(LostSubnets { left: PerFamily::default(), of_others: Vec::new(), condition });
        }
        Err(bad) => bad,
    };
    let condition = NodeCondition::down("PodCIDRUnusable", bad.to_string());
    let Ok(cidrs) = &node.pod_cidrs else { return SubnetStatus::Pending(condition) };
    let is_lost = |family| in_use.get(family).is_some_and(|subnet| cidrs.get(family) != Some(subnet));
    if !conf.networks.families().any(is_lost) {
        return SubnetStatus::Pending(condition);
    }
    let usable = |(family, network): (Family, &IpNetwork)| {
        let subnet = cidrs.get(family).filter(|subnet| own_lease::is_inside(**subnet, *network))?;
        Some((family, *subnet))
    };
    SubnetStatus::Lost(LostSubnets { left: conf.networks.iter().filter_map(usable).collect(), of_others: Vec::new(), condition })
}

/// The status of leased subnets. A family whose lease is being taken keeps its subnet, because no other node is known to hold it.
fn leased(statuses: &[(Family, LeaseStatus)], in_use: &PerFamily<IpNetwork>) -> SubnetStatus {
    let (mut held, mut left) = (PerFamily::default(), PerFamily::default());
    let (mut losses, mut shortages, mut awaited, mut of_others) = (Vec::new(), Vec::new(), None, Vec::new());
    for (family, status) in statuses {
        match status {
            LeaseStatus::Held(subnet) | LeaseStatus::Lapsed(subnet) => {
                held.set(*family, Some(*subnet));
                left.set(*family, Some(*subnet));
            }
            LeaseStatus::Seeking { loss, shortage } => {
                let taken = loss.as_ref().and_then(|loss| Some((loss.subnet, loss.holder.as_ref()?)));
                if let Some((subnet, holder)) = taken {
                    of_others.push(subnet);
                    losses.push(format!("the lease of subnet {subnet} is lost: {holder} has it now"));
                }
                shortages.extend(shortage);
                if taken.is_none() && shortage.is_none() {
                    left.set(*family, in_use.get(*family).copied());
                    awaited.get_or_insert_with(|| {
                        NodeCondition::down("SubnetAwaited", format!("a lease of an {family} subnet is being taken"))
                    });
                }
            }
        }
    }
    let condition = match (losses.is_empty(), shortages.first(), awaited) {
        (true, None, None) => return SubnetStatus::Assigned(held),
        (true, None, Some(awaited)) => return SubnetStatus::Pending(awaited),
        (true, Some(shortage), _) => NodeCondition::out_of_subnets(shortage),
        (false, Some(shortage), _) => {
            let message = format!("{}; {}", losses.join("; "), NodeCondition::out_of_subnets(shortage).message);
            NodeCondition::down("SubnetLost", message)
        }
        (false, None, _) => NodeCondition::down("SubnetLost", format!("{}; another subnet is being taken", losses.join("; "))),
    };
    SubnetStatus::Lost(LostSubnets { left, of_others, condition })
}

/// The fields of a Node that a claim needs.
fn registration(node: &NetworkNode) -> RegisteredNode {
    let cidrs = node.pod_cidrs.as_ref().map(|cidrs| cidrs.iter().map(|(_, cidr)| *cidr).collect()).unwrap_or_default();
    let public = Family::ALL.into_iter().filter_map(|family| node.annotations.public_ip(family).ok().flatten());
    let mut addresses: Vec<IpAddr> = node.internal_ips.iter().copied().chain(public).collect();
    addresses.dedup();
    RegisteredNode { name: (*node.name).into(), uid: (*node.uid).into(), pod_cidrs: cidrs, addresses }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pod_network::allocation::{Shortage, SubnetSpace};
    use crate::pod_network::annotations::Prefix;
    use crate::pod_network::claim::LostLease;
    use crate::pod_network::node::NodeText;

    fn held(text: &str) -> LeaseStatus {
        LeaseStatus::Held(text.parse().expect("a CIDR"))
    }

    fn net(text: &str) -> IpNetwork {
        text.parse().expect("a CIDR")
    }

    fn seeking(holder: Option<&str>, is_short: bool) -> LeaseStatus {
        let space = SubnetSpace { network: net("10.0.0.0/16"), subnet_len: 24, min: net("10.0.1.0/24"), max: net("10.0.1.0/24") };
        let shortage = is_short.then_some(Shortage { space, held: 1, reserved: 0, unlisted: 0, next_expiry: None });
        LeaseStatus::Seeking { loss: Some(LostLease { subnet: net("10.0.1.0/24"), holder: holder.map(Into::into) }), shortage }
    }

    #[test]
    fn a_subnet_of_another_node_is_never_used() {
        let both = PerFamily { v4: Some(net("10.0.1.0/24")), v6: Some(net("fd00:1::/64")) };
        let only_v6 = PerFamily { v4: None, ..both };
        let v6 = || (Family::V6, held("fd00:1::/64"));
        let leased = |v4: LeaseStatus| leased(&[(Family::V4, v4), v6()], &both);
        assert_eq!(leased(held("10.0.1.0/24")), SubnetStatus::Assigned(both));
        let lapsed = LeaseStatus::Lapsed(net("10.0.1.0/24"));
        assert_eq!(leased(lapsed), SubnetStatus::Assigned(both), "no other node is known to hold it");
        assert!(matches!(leased(LeaseStatus::default()), SubnetStatus::Pending(condition) if condition.reason == "SubnetAwaited"));
        assert!(matches!(leased(seeking(None, false)), SubnetStatus::Pending(condition) if condition.reason == "SubnetAwaited"));
        for (status, reason, others, words) in [
            (seeking(Some("node-b"), false), "SubnetLost", 1, "the lease of subnet 10.0.1.0/24 is lost: node-b has it now; another"),
            (seeking(Some("node-b"), true), "SubnetLost", 1, "node-b has it now; out of subnets"),
            (seeking(None, true), "OutOfSubnets", 0, "out of subnets"),
        ] {
            let SubnetStatus::Lost(lost) = leased(status) else { panic!("{words}") };
            assert_eq!((lost.left, lost.of_others.len(), lost.condition.reason), (only_v6, others, reason));
            assert!(lost.condition.message.contains(words), "{}", lost.condition.message);
        }
    }

    /// A family with an unknown subnet keeps it while the subnet of the other family is lost.
    #[test]
    fn a_family_with_an_unknown_subnet_keeps_it() {
        let both = PerFamily { v4: Some(net("10.0.1.0/24")), v6: Some(net("fd00:1::/64")) };
        for statuses in [
            [(Family::V4, seeking(Some("node-b"), false)), (Family::V6, LeaseStatus::default())],
            [(Family::V6, LeaseStatus::default()), (Family::V4, seeking(Some("node-b"), false))],
        ] {
            let SubnetStatus::Lost(lost) = leased(&statuses, &both) else { panic!("IPv4 is lost") };
            assert_eq!(lost.left, PerFamily { v4: None, ..both });
        }
    }

    #[test]
    fn other_or_missing_pod_cidrs_mean_that_the_subnet_is_lost() {
        let v4 = NetConf::parse(r#"{"Network":"10.0.0.0/16","Backend":{"Type":"vxlan"}}"#).expect("good");
        let dual = r#"{"EnableIPv6":true,"Network":"10.0.0.0/16","IPv6Network":"fd00::/32","Backend":{"Type":"vxlan"}}"#;
        let dual = NetConf::parse(dual).expect("good");
        let of = |cidrs: &[&str], conf: &NetConf, in_use: &PerFamily<IpNetwork>| {
            let text = NodeText { name: "n1", pod_cidrs: cidrs.to_vec(), ..NodeText::default() };
            assigned(&NetworkNode::new(&text, &Prefix::default()), conf, in_use)
        };
        let nothing = PerFamily::default();
        let one = PerFamily { v4: Some(net("10.0.1.0/24")), v6: None };
        let both = PerFamily { v6: Some(net("fd00:0:1::/64")), ..one };
        assert_eq!(of(&["10.0.2.0/24"], &v4, &one), SubnetStatus::Assigned(PerFamily { v4: Some(net("10.0.2.0/24")), v6: None }));
        for in_use in [&nothing, &one] {
            assert!(
                matches!(of(&[], &v4, in_use), SubnetStatus::Lost(lost) if lost.left.is_empty() && lost.condition.reason == "PodCIDRMissing")
            );
        }
        // The podCIDR is outside the network: after a mistake in net-conf.json, the subnet stays as long as the podCIDR is the same.
        assert!(matches!(of(&["10.9.1.0/24"], &v4, &one), SubnetStatus::Lost(lost) if lost.left.is_empty()));
        let outside = PerFamily { v4: Some(net("10.9.1.0/24")), v6: None };
        assert!(matches!(of(&["10.9.1.0/24"], &v4, &outside), SubnetStatus::Pending(condition) if condition.reason == "PodCIDRUnusable"));
        // The subnet of one family was lost; the family never had one.
        assert!(matches!(of(&["10.0.1.0/24"], &dual, &both), SubnetStatus::Lost(lost) if lost.left == one));
        assert!(matches!(of(&["10.0.1.0/24"], &dual, &one), SubnetStatus::Pending(_)));
        assert!(matches!(of(&["x"], &v4, &one), SubnetStatus::Pending(_)), "the podCIDR cannot be parsed");
    }
}
