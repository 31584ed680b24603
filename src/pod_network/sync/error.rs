//! What keeps the pod network from being as it should be, each with its cure.

use super::node_writes::NodeCondition;
use crate::netlink::NetlinkError;
use crate::observe::readiness::Part;
use crate::pod_network::annotations::BadAnnotation;
use crate::pod_network::interface::NoInterface;
use crate::pod_network::mtu::MtuTooSmall;
use crate::pod_network::plan::LinkInTheWay;

/// What keeps the network from being as it should be.
#[derive(Debug, thiserror::Error)]
pub(super) enum PodNetworkError {
    /// This node has no Node.
    #[error("there is no Node {0:?} yet: kubelet registers it. Is the node's name right (--hostname-override, NODE_NAME)?")]
    NoNode(Box<str>),
    /// Its subnets are not known, or not all.
    #[error("{}", .0.message)]
    Subnets(NodeCondition),
    /// This node has no subnet any more, or not in all families.
    #[error("{}", .0.message)]
    Lost(NodeCondition),
    /// There is no interface to other nodes.
    #[error("{0}")]
    Interface(#[from] NoInterface),
    /// An annotation of the user's makes no sense.
    #[error("Node {0}: {1}")]
    Annotation(Box<str>, BadAnnotation),
    /// The interface's MTU is too small.
    #[error("{0}")]
    Mtu(#[from] MtuTooSmall),
    /// The kernel does not do something.
    #[error("{0}")]
    Kernel(#[from] NetlinkError),
    /// A link of somebody else's is in the way.
    #[error("{0}")]
    InTheWay(LinkInTheWay),
    /// Links do not stay as they are made.
    #[error(
        "the links of the pod network do not stay as they are made: somebody else changes them all the time ({0} changes open). Does NetworkManager or systemd-networkd manage them? Tell it not to"
    )]
    Restless(usize),
    /// The work ended without an outcome.
    #[error("{0}")]
    Broken(String),
}

impl PodNetworkError {
    /// The part of the daemon that does not do its work, and a word for why.
    pub(super) const fn part(&self) -> (Part, &'static str) {
        match self {
            Self::NoNode(_) => (Part::Subnet, "NodeMissing"),
            Self::Subnets(condition) | Self::Lost(condition) => (Part::Subnet, condition.reason),
            Self::Interface(_) | Self::Annotation(..) => (Part::Interface, "InterfaceMissing"),
            Self::Mtu(_) => (Part::Interface, "MTUTooSmall"),
            Self::Kernel(_) | Self::InTheWay(_) | Self::Restless(_) | Self::Broken(_) => (Part::Links, "LinksFailed"),
        }
    }
}
