//! Where this node's subnets come from, and how they stand now.

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

/// A source of subnets (`--subnet-source`).
#[derive(Debug)]
pub enum SubnetProvider {
    /// `spec.podCIDRs` of the Node.
    Node,
    /// Leases that are held for it.
    Leases {
        /// How each family's stands.
        standings: PerFamily<watch::Receiver<LeaseStatus>>,
        /// Where whoever holds them is told of the Node.
        node: watch::Sender<Option<RegisteredNode>>,
    },
}

/// How this node's subnets stand.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum SubnetStatus {
    /// These are this node's.
    Assigned(PerFamily<IpNetwork>),
    /// There is no answer yet. What this node uses may still be its own, so it stays.
    Pending(NodeCondition),
    /// The answer is that this node has no subnet in some family.
    Lost(LostSubnets),
}

/// This node has no subnet in some family.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct LostSubnets {
    /// The subnets that are left.
    pub(super) left: PerFamily<IpNetwork>,
    /// SubnetStatus that this node used and another node is known to hold.
    pub(super) of_others: Vec<IpNetwork>,
    /// Why.
    pub(super) condition: NodeCondition,
}

impl SubnetStatus {
    /// The subnets that are this node's; `None` if there is no answer yet.
    pub(super) const fn ours(&self) -> Option<PerFamily<IpNetwork>> {
        match self {
            Self::Assigned(subnets) => Some(*subnets),
            Self::Lost(lost) => Some(lost.left),
            Self::Pending(_) => None,
        }
    }
}

impl SubnetProvider {
    /// How the subnets of a Node stand that uses these subnets now.
    pub(super) fn subnets(&self, node: &NetworkNode, conf: &NetConf, in_use: &PerFamily<IpNetwork>) -> SubnetStatus {
        match self {
            Self::Node => assigned(node, conf, in_use),
            Self::Leases { standings, .. } => {
                leased(&standings.iter().map(|(family, of)| (family, of.borrow().clone())).collect::<Vec<_>>(), in_use)
            }
        }
    }

    /// Tells whoever holds leases of the Node as it is now.
    pub(super) fn tell(&self, node: &NetworkNode) {
        if let Self::Leases { node: registered, .. } = self {
            registered.send_if_modified(|before| {
                let now = Some(registration(node));
                let news = *before != now;
                *before = now;
                news
            });
        }
    }

    /// Waits until something is different, if that can be; the Node is not watched here.
    pub(super) async fn changed(&mut self) {
        match self {
            Self::Node => std::future::pending().await,
            Self::Leases { standings, .. } => {
                let PerFamily { v4, v6 } = standings;
                tokio::select! {
                    () = of_family(v4) => {}
                    () = of_family(v6) => {}
                }
            }
        }
    }
}

async fn of_family(standing: &mut Option<watch::Receiver<LeaseStatus>>) {
    let changed = match standing {
        Some(standing) => standing.changed().await.is_ok(),
        None => false,
    };
    // Whoever held the lease is gone, or there is none.
    if !changed {
        std::future::pending::<()>().await;
    }
}

/// How the podCIDRs of a Node stand. A Node that has none, or others, is an answer; podCIDRs that cannot be read are none.
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

/// How leases stand. A family whose lease is being taken keeps what it uses: no other node is known to have it.
fn leased(standings: &[(Family, LeaseStatus)], in_use: &PerFamily<IpNetwork>) -> SubnetStatus {
    let (mut held, mut left) = (PerFamily::default(), PerFamily::default());
    let (mut losses, mut shortages, mut awaited, mut of_others) = (Vec::new(), Vec::new(), None, Vec::new());
    for (family, standing) in standings {
        match standing {
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
        (false, None, _) => NodeCondition::down("SubnetLost", format!("{}; another subnet is looked for", losses.join("; "))),
    };
    SubnetStatus::Lost(LostSubnets { left, of_others, condition })
}

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
    fn anothers_subnet_is_never_used() {
        let both = PerFamily { v4: Some(net("10.0.1.0/24")), v6: Some(net("fd00:1::/64")) };
        let only_v6 = PerFamily { v4: None, ..both };
        let v6 = || (Family::V6, held("fd00:1::/64"));
        let leased = |v4: LeaseStatus| leased(&[(Family::V4, v4), v6()], &both);
        assert_eq!(leased(held("10.0.1.0/24")), SubnetStatus::Assigned(both));
        let lapsed = LeaseStatus::Lapsed(net("10.0.1.0/24"));
        assert_eq!(leased(lapsed), SubnetStatus::Assigned(both), "it is not known that another node has it");
        assert!(matches!(leased(LeaseStatus::default()), SubnetStatus::Pending(condition) if condition.reason == "SubnetAwaited"));
        assert!(matches!(leased(seeking(None, false)), SubnetStatus::Pending(condition) if condition.reason == "SubnetAwaited"));
        for (standing, reason, others, words) in [
            (seeking(Some("node-b"), false), "SubnetLost", 1, "the lease of subnet 10.0.1.0/24 is lost: node-b has it now; another"),
            (seeking(Some("node-b"), true), "SubnetLost", 1, "node-b has it now; out of subnets"),
            (seeking(None, true), "OutOfSubnets", 0, "out of subnets"),
        ] {
            let SubnetStatus::Lost(lost) = leased(standing) else { panic!("{words}") };
            assert_eq!((lost.left, lost.of_others.len(), lost.condition.reason), (only_v6, others, reason));
            assert!(lost.condition.message.contains(words), "{}", lost.condition.message);
        }
    }

    /// A family without an answer keeps what it uses while another one is lost.
    #[test]
    fn a_family_without_an_answer_keeps_its_subnet() {
        let both = PerFamily { v4: Some(net("10.0.1.0/24")), v6: Some(net("fd00:1::/64")) };
        for standings in [
            [(Family::V4, seeking(Some("node-b"), false)), (Family::V6, LeaseStatus::default())],
            [(Family::V6, LeaseStatus::default()), (Family::V4, seeking(Some("node-b"), false))],
        ] {
            let SubnetStatus::Lost(lost) = leased(&standings, &both) else { panic!("IPv4 is lost") };
            assert_eq!(lost.left, PerFamily { v4: None, ..both });
        }
    }

    #[test]
    fn a_node_with_other_pod_cidrs_or_none_is_an_answer() {
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
        // Outside of the network: a mistake in net-conf.json takes nothing away as long as the podCIDR is the same.
        assert!(matches!(of(&["10.9.1.0/24"], &v4, &one), SubnetStatus::Lost(lost) if lost.left.is_empty()));
        let outside = PerFamily { v4: Some(net("10.9.1.0/24")), v6: None };
        assert!(matches!(of(&["10.9.1.0/24"], &v4, &outside), SubnetStatus::Pending(condition) if condition.reason == "PodCIDRUnusable"));
        // One family went; another one was never there.
        assert!(matches!(of(&["10.0.1.0/24"], &dual, &both), SubnetStatus::Lost(lost) if lost.left == one));
        assert!(matches!(of(&["10.0.1.0/24"], &dual, &one), SubnetStatus::Pending(_)));
        assert!(matches!(of(&["x"], &v4, &one), SubnetStatus::Pending(_)), "that says nothing");
    }
}
