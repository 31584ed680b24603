//! The errors of a reconcile, each with its cure.

use super::node_writes::NodeCondition;
use crate::netlink::NetlinkError;
use crate::observe::readiness::Part;
use crate::pod_network::annotations::BadAnnotation;
use crate::pod_network::interface::NoInterface;
use crate::pod_network::mtu::MtuTooSmall;
use crate::pod_network::plan::LinkInTheWay;

/// Why the pod network is not in the desired state.
#[derive(Debug, thiserror::Error)]
pub(super) enum PodNetworkError {
    /// This node's Node does not exist.
    #[error("there is no Node {0:?} yet: kubelet registers it. Is the node's name right (--hostname-override, NODE_NAME)?")]
    NoNode(Box<str>),
    /// The subnets are unknown in some family.
    #[error("{}", .0.message)]
    Subnets(NodeCondition),
    /// This node has lost its subnet in some family.
    #[error("{}", .0.message)]
    Lost(NodeCondition),
    /// There is no external interface.
    #[error("{0}")]
    Interface(#[from] NoInterface),
    /// An annotation that the operator has set is invalid.
    #[error("Node {0}: {1}")]
    Annotation(Box<str>, BadAnnotation),
    /// The MTU is too small.
    #[error("{0}")]
    Mtu(#[from] MtuTooSmall),
    /// A kernel call failed.
    #[error("{0}")]
    Kernel(#[from] NetlinkError),
    /// A link of another program has the same VNI and port.
    #[error("{0}")]
    InTheWay(LinkInTheWay),
    /// Another program keeps changing our links.
    #[error(
        "another program keeps changing the links of the pod network ({0} changes open). Does NetworkManager or systemd-networkd manage them? Exclude them there"
    )]
    Unstable(usize),
    /// A kernel call ended without a result.
    #[error("{0}")]
    Broken(String),
}

impl PodNetworkError {
    /// The part of the daemon that is not ready, and the reason for the Node's condition.
    pub(super) const fn part(&self) -> (Part, &'static str) {
        match self {
            Self::NoNode(_) => (Part::Subnet, "NodeMissing"),
            Self::Subnets(condition) | Self::Lost(condition) => (Part::Subnet, condition.reason),
            Self::Interface(_) | Self::Annotation(..) => (Part::Interface, "InterfaceMissing"),
            Self::Mtu(_) => (Part::Interface, "MTUTooSmall"),
            Self::Kernel(_) | Self::InTheWay(_) | Self::Unstable(_) | Self::Broken(_) => (Part::Links, "LinksFailed"),
        }
    }
}
