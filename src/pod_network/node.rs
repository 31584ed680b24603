//! Nodes as the pod network reads them [flannel 3]. Every field may be missing or invalid.

use std::net::IpAddr;

use ipnetwork::IpNetwork;

use crate::cluster::Family;
use crate::cluster::ip::{parse_cidr, parse_ip};

use super::annotations::{NodeAnnotations, Prefix};
use crate::cluster::families::PerFamily;

/// The texts of the fields that the pod network reads.
#[derive(Clone, Debug, Default)]
pub struct NodeText<'a> {
    /// `metadata.name`.
    pub name: &'a str,
    /// `metadata.uid`.
    pub uid: &'a str,
    /// `metadata.creationTimestamp`.
    pub created: &'a str,
    /// `spec.podCIDR`.
    pub pod_cidr: &'a str,
    /// `spec.podCIDRs`.
    pub pod_cidrs: Vec<&'a str>,
    /// `metadata.annotations`.
    pub annotations: Vec<(&'a str, &'a str)>,
    /// `status.addresses` of type InternalIP.
    pub internal_ips: Vec<&'a str>,
}

/// The part of a Node that the pod network needs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NetworkNode {
    /// Its name.
    pub name: Box<str>,
    /// Its UID.
    pub uid: Box<str>,
    /// `metadata.creationTimestamp`. Such texts sort by time. Empty if absent.
    pub created: Box<str>,
    /// Its pod CIDRs, which are its subnets.
    pub pod_cidrs: Result<PerFamily<IpNetwork>, BadPodCidrs>,
    /// Its annotations.
    pub annotations: NodeAnnotations,
    /// Its `InternalIP` addresses, in order.
    pub internal_ips: Vec<IpAddr>,
}

/// Why pod CIDRs cannot be used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum BadPodCidrs {
    /// None is assigned yet.
    Unassigned,
    /// There is more than one of a family.
    TooMany,
    /// A text is not a CIDR.
    Malformed(Box<str>),
}

impl BadPodCidrs {
    /// The error message for a node, in flannel's words.
    #[must_use]
    pub fn of_node(&self, node: &str) -> String {
        match self {
            Self::Unassigned => format!("node {node:?} pod cidr not assigned"),
            Self::TooMany => format!("node {node:?} pod cidrs should be IPv4/IPv6 only or dualstack"),
            Self::Malformed(text) => format!("node {node:?} pod cidr {text:?} is not a CIDR"),
        }
    }
}

impl NetworkNode {
    /// Parses the fields of a Node.
    #[must_use]
    pub fn new(text: &NodeText<'_>, prefix: &Prefix) -> Self {
        Self {
            name: text.name.into(),
            uid: text.uid.into(),
            created: text.created.into(),
            pod_cidrs: pod_cidrs(text.pod_cidr, &text.pod_cidrs),
            annotations: NodeAnnotations::read(prefix, text.annotations.iter().copied()),
            internal_ips: text.internal_ips.iter().filter_map(|ip| parse_ip(ip)).collect(),
        }
    }
}

/// Parses `podCIDRs`, or `podCIDR` if that list is empty. At most one CIDR of each family is allowed.
fn pod_cidrs(single: &str, several: &[&str]) -> Result<PerFamily<IpNetwork>, BadPodCidrs> {
    let texts = match several {
        [] if single.is_empty() => return Err(BadPodCidrs::Unassigned),
        [] => &[single],
        several => several,
    };
    let mut cidrs = PerFamily::default();
    for text in texts {
        let cidr = parse_cidr(text).ok_or_else(|| BadPodCidrs::Malformed((*text).into()))?;
        let family = Family::of_net(cidr);
        if cidrs.get(family).is_some() {
            return Err(BadPodCidrs::TooMany);
        }
        cidrs.set(family, Some(cidr));
    }
    Ok(cidrs)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pod_cidrs_are_one_of_each_family() {
        let v4 = PerFamily { v4: "10.244.1.0/24".parse().ok(), v6: None };
        let both = PerFamily { v6: "fd10:244:1::/64".parse().ok(), ..v4 };
        for (single, several, want) in [
            ("", &[][..], Err(BadPodCidrs::Unassigned)),
            ("10.244.1.0/24", &[], Ok(v4)),
            ("10.9.9.0/24", &["10.244.1.0/24"], Ok(v4)),
            ("10.244.1.0/24", &["10.244.1.7/24", "fd10:244:1::/64"], Ok(both)),
            ("", &["fd10:244:1::/64", "10.244.1.0/24"], Ok(both)),
            ("", &["10.244.1.0/24", "10.244.2.0/24"], Err(BadPodCidrs::TooMany)),
            ("", &["10.244.1.0/24", "fd10:244:1::/64", "10.244.2.0/24"], Err(BadPodCidrs::TooMany)),
            ("", &["10.244.1.0/24", "x"], Err(BadPodCidrs::Malformed("x".into()))),
        ] {
            assert_eq!(pod_cidrs(single, several), want, "{single} {several:?}");
        }
        assert_eq!(BadPodCidrs::Unassigned.of_node("a"), "node \"a\" pod cidr not assigned");
        assert_eq!(BadPodCidrs::TooMany.of_node("a"), "node \"a\" pod cidrs should be IPv4/IPv6 only or dualstack");
    }

    #[test]
    fn all_fields_may_be_missing() {
        let node = NetworkNode::new(&NodeText::default(), &Prefix::default());
        assert_eq!((node.pod_cidrs, node.annotations), (Err(BadPodCidrs::Unassigned), NodeAnnotations::default()));
        let text = NodeText { internal_ips: vec!["x", "10.0.0.1", "fd00::1"], ..NodeText::default() };
        assert_eq!(NetworkNode::new(&text, &Prefix::default()).internal_ips.len(), 2);
    }
}
