//! Where this node's subnets come from, and how they stand now.

use std::net::IpAddr;

use ipnetwork::IpNetwork;
use tokio::sync::watch;

use crate::agent::node_writes::Condition;
use crate::agent::subnet_lease::Registered;
use crate::cluster::Family;
use crate::config::netconf::NetConf;
use crate::network::claim::{Loss, Standing};
use crate::network::families::PerFamily;
use crate::network::node::NetworkNode;
use crate::network::own_lease::{self, NoSubnet};

/// A source of subnets (`--subnet-source`).
#[derive(Debug)]
pub enum Source {
    /// `spec.podCIDRs` of the Node.
    Node,
    /// Leases that are held for it.
    Leases {
        /// How each family's stands.
        standings: PerFamily<watch::Receiver<Standing>>,
        /// Where whoever holds them is told of the Node.
        node: watch::Sender<Option<Registered>>,
    },
}

/// How this node's subnets stand.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Subnets {
    /// These are this node's.
    Known(PerFamily<IpNetwork>),
    /// They are not known; what the kernel has of former ones can stay.
    Awaited(Condition),
    /// Of what this node had another node has something now: only these are left.
    Lost(PerFamily<IpNetwork>, Condition),
}

impl Source {
    /// How the subnets of a Node stand.
    pub(super) fn subnets(&self, node: &NetworkNode, conf: &NetConf) -> Subnets {
        match self {
            Self::Node => match own_lease::subnets(node, conf) {
                Ok(subnets) => Subnets::Known(subnets),
                Err(NoSubnet::Unassigned(name)) => Subnets::Awaited(Condition::pod_cidr_missing(&name)),
                Err(bad) => Subnets::Awaited(Condition::down("PodCIDRUnusable", bad.to_string())),
            },
            Self::Leases { standings, .. } => {
                leased(&standings.iter().map(|(family, of)| (family, of.borrow().clone())).collect::<Vec<_>>())
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

async fn of_family(standing: &mut Option<watch::Receiver<Standing>>) {
    let changed = match standing {
        Some(standing) => standing.changed().await.is_ok(),
        None => false,
    };
    // Whoever held the lease is gone, or there is none.
    if !changed {
        std::future::pending::<()>().await;
    }
}

fn leased(standings: &[(Family, Standing)]) -> Subnets {
    let mut held = PerFamily::default();
    let mut lost = None;
    let mut awaited = None;
    for (family, standing) in standings {
        match standing {
            Standing::Held(subnet) | Standing::Lapsed(subnet) => held.set(*family, Some(*subnet)),
            Standing::Seeking { loss: Some(Loss { subnet, holder: Some(holder) }), .. } => {
                let message = format!("the lease of subnet {subnet} is lost: {holder} has it now; another subnet is looked for");
                lost = Some(Condition::down("SubnetLost", message));
            }
            Standing::Seeking { shortage: Some(shortage), .. } => awaited = Some(Condition::out_of_subnets(shortage)),
            Standing::Seeking { .. } => {
                awaited.get_or_insert_with(|| Condition::down("SubnetAwaited", format!("a lease of an {family} subnet is being taken")));
            }
        }
    }
    match (lost, awaited) {
        (Some(lost), _) => Subnets::Lost(held, lost),
        (None, Some(awaited)) => Subnets::Awaited(awaited),
        (None, None) => Subnets::Known(held),
    }
}

fn registration(node: &NetworkNode) -> Registered {
    let cidrs = node.pod_cidrs.as_ref().map(|cidrs| cidrs.iter().map(|(_, cidr)| *cidr).collect()).unwrap_or_default();
    let public = Family::ALL.into_iter().filter_map(|family| node.annotations.public_ip(family).ok().flatten());
    let mut addresses: Vec<IpAddr> = node.internal_ips.iter().copied().chain(public).collect();
    addresses.dedup();
    Registered { name: (*node.name).into(), uid: (*node.uid).into(), pod_cidrs: cidrs, addresses }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn held(text: &str) -> Standing {
        Standing::Held(text.parse().expect("a CIDR"))
    }

    #[test]
    fn anothers_subnet_is_never_used() {
        let loss = |holder: Option<&str>| Standing::Seeking {
            loss: Some(Loss { subnet: "10.0.1.0/24".parse().expect("a CIDR"), holder: holder.map(Into::into) }),
            shortage: None,
        };
        let both = PerFamily { v4: "10.0.1.0/24".parse().ok(), v6: "fd00:1::/64".parse().ok() };
        let only_v6 = PerFamily { v4: None, ..both };
        let v6 = (Family::V6, held("fd00:1::/64"));
        assert_eq!(leased(&[(Family::V4, held("10.0.1.0/24")), v6.clone()]), Subnets::Known(both));
        assert!(matches!(
            leased(&[(Family::V4, loss(Some("node-b"))), v6.clone()]),
            Subnets::Lost(left, condition) if left == only_v6 && condition.reason == "SubnetLost"
        ));
        assert!(matches!(leased(&[(Family::V4, loss(None)), v6]), Subnets::Awaited(condition) if condition.reason == "SubnetAwaited"));
        let lapsed = Standing::Lapsed("10.0.1.0/24".parse().expect("a CIDR"));
        assert!(matches!(leased(&[(Family::V4, lapsed)]), Subnets::Known(_)), "it is not known that anybody else has it");
    }
}
