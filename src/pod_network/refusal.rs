//! The reasons why a node is refused as a peer of the pod network, with texts for logs, Events and metrics. PURE.

use std::fmt;
use std::net::IpAddr;

use ipnetwork::IpNetwork;

use crate::cluster::Family;

use super::annotations::BadAnnotation;
use super::node::BadPodCidrs;
use crate::netlink::mac::Mac;

/// A refused node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PeerRefusal {
    /// The node.
    pub node: Box<str>,
    /// The family in which it is refused; `None` for all families.
    pub family: Option<Family>,
    /// The reason.
    pub reason: RefusalReason,
}

/// The reason why a node is refused.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RefusalReason {
    /// It is not part of the pod network: it lacks the annotation.
    NotManaged,
    /// It uses another backend.
    OtherBackend(Option<Box<str>>),
    /// Its pod CIDRs are missing or invalid.
    PodCidrs(BadPodCidrs),
    /// It has no pod CIDR in this family.
    NoPodCidr,
    /// Its pod CIDR is not inside the network.
    OutsideNetwork(IpNetwork, IpNetwork),
    /// Its pod CIDR is the whole network.
    WholeNetwork(IpNetwork),
    /// Its pod CIDR overlaps this node's.
    OverlapsOurs(IpNetwork, IpNetwork),
    /// Its pod CIDR overlaps another node's.
    Overlaps(IpNetwork, IpNetwork, Box<str>),
    /// Its pod CIDR contains the address of a node.
    ContainsNodeAddress(IpNetwork, IpAddr),
    /// Its address is inside another node's pod CIDR.
    InsideSubnet(IpAddr, Box<str>),
    /// It publishes no address.
    NoPublicIp,
    /// It publishes an address that no node can have.
    BadPublicIp(IpAddr),
    /// It publishes this node's address.
    ClaimsOurAddress(IpAddr),
    /// It publishes the address of another node.
    SameAddress(IpAddr, Box<str>),
    /// It does not publish its VXLAN link.
    NoBackendData,
    /// Its VXLAN link has another VNI.
    OtherVni(u32, u32),
    /// Its VXLAN link has the same hardware address as this node's.
    ClaimsOurMac(Mac),
    /// Its VXLAN link has the same hardware address as another node's.
    SameMac(Mac, Box<str>),
    /// An annotation is invalid.
    Annotation(BadAnnotation),
    /// It is not on the network of the external interface, which the backend host-gw requires.
    NotOnLink(IpAddr),
}

impl RefusalReason {
    /// Its name in metrics.
    #[must_use]
    pub const fn as_str(&self) -> &'static str {
        match self {
            Self::NotManaged => "not_managed",
            Self::OtherBackend(_) => "other_backend",
            Self::PodCidrs(_) | Self::NoPodCidr => "pod_cidr",
            Self::OutsideNetwork(..) | Self::WholeNetwork(_) => "outside_network",
            Self::OverlapsOurs(..) | Self::Overlaps(..) => "overlap",
            Self::ContainsNodeAddress(..) | Self::InsideSubnet(..) => "address_in_subnet",
            Self::NoPublicIp | Self::BadPublicIp(_) => "public_ip",
            Self::ClaimsOurAddress(_) | Self::SameAddress(..) => "same_address",
            Self::NoBackendData | Self::OtherVni(..) | Self::Annotation(_) => "annotation",
            Self::ClaimsOurMac(_) | Self::SameMac(..) => "same_mac",
            Self::NotOnLink(_) => "not_on_link",
        }
    }

    /// Returns true if the reason may depend on another node, so that a change of that node can end it.
    #[must_use]
    pub(crate) const fn depends_on_others(&self) -> bool {
        matches!(
            self,
            Self::Overlaps(..) | Self::ContainsNodeAddress(..) | Self::InsideSubnet(..) | Self::SameAddress(..) | Self::SameMac(..)
        )
    }

    /// Returns true if the refusal is logged and reported as an Event. Nodes that are not part of the network, or wait for a pod CIDR, are normal.
    #[must_use]
    pub(crate) const fn is_noteworthy(&self) -> bool {
        !matches!(self, Self::NotManaged | Self::PodCidrs(BadPodCidrs::Unassigned))
    }
}

const SAME_ADDRESS: &str = "Every node needs an address of its own: where all machines have one interface with the same address (Vagrant's first one has 10.0.2.15), say --iface, --iface-regex or --public-ip on each, or annotate its Node with public-ip-overwrite. If the other node is gone, delete its Node";

impl fmt::Display for PeerRefusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "node {}", self.node)?;
        if let Some(family) = self.family {
            write!(f, " ({family})")?;
        }
        f.write_str(": ")?;
        match &self.reason {
            RefusalReason::NotManaged => f.write_str("its annotation kube-subnet-manager is not true, so it does not take part"),
            RefusalReason::OtherBackend(Some(kind)) => write!(f, "its backend is {kind}; all nodes need the same Backend in net-conf.json"),
            RefusalReason::OtherBackend(None) => f.write_str("it does not say what its backend is (annotation backend-type)"),
            RefusalReason::PodCidrs(bad) => f.write_str(&bad.of_node(&self.node)),
            RefusalReason::NoPodCidr => f.write_str("it has no pod CIDR in this family"),
            RefusalReason::OutsideNetwork(subnet, network) => write!(f, "its pod CIDR {subnet} is not inside the network {network}"),
            RefusalReason::WholeNetwork(network) => {
                write!(f, "its pod CIDR is all of the network {network}, which would leave nothing for other nodes")
            }
            RefusalReason::OverlapsOurs(subnet, own) => write!(f, "its pod CIDR {subnet} overlaps this node's {own}"),
            RefusalReason::Overlaps(subnet, theirs, other) => {
                write!(f, "its pod CIDR {subnet} overlaps {theirs} of node {other}, which keeps it")
            }
            RefusalReason::ContainsNodeAddress(subnet, ip) => write!(f, "its pod CIDR {subnet} holds {ip}, which is a node's own address"),
            RefusalReason::InsideSubnet(ip, other) => write!(f, "its address {ip} is inside the pod CIDR of node {other}"),
            RefusalReason::NoPublicIp => f.write_str("it publishes no address (annotation public-ip or public-ipv6)"),
            RefusalReason::BadPublicIp(ip) => write!(f, "it publishes the address {ip}, which no node can have"),
            RefusalReason::ClaimsOurAddress(ip) => write!(f, "it publishes {ip}, which is this node's address. {SAME_ADDRESS}"),
            RefusalReason::SameAddress(ip, other) => write!(f, "it publishes {ip}, as node {other} does, which keeps it. {SAME_ADDRESS}"),
            RefusalReason::NoBackendData => f.write_str("it says nothing of its VXLAN link (annotation backend-data or backend-v6-data)"),
            RefusalReason::OtherVni(theirs, ours) => {
                write!(f, "its VXLAN link has VNI {theirs}, and this node's {ours}; all nodes need the same net-conf.json")
            }
            RefusalReason::ClaimsOurMac(mac) => write!(
                f,
                "its VXLAN link has the hardware address {mac} of this node's. Was one copied from the other? Delete its annotations backend-data and backend-v6-data and its VXLAN link, and start its daemon again"
            ),
            RefusalReason::SameMac(mac, other) => write!(
                f,
                "its VXLAN link has the hardware address {mac}, as that of node {other}, which keeps it. Was one copied from the other? Delete its annotations backend-data and backend-v6-data and its VXLAN link, and start its daemon again"
            ),
            RefusalReason::Annotation(bad) => write!(f, "{bad}"),
            RefusalReason::NotOnLink(ip) => {
                write!(f, "its address {ip} is not on a network of the external interface, which backend host-gw needs; use vxlan")
            }
        }
    }
}
