//! The packet that is explained, and the node whose rules it meets.

use std::fmt;
use std::net::{IpAddr, SocketAddr};

use ipnetwork::IpNetwork;

use crate::cluster::Protocol;

/// The first packet of a connection (conntrack state NEW).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Packet {
    /// The source address.
    pub source: IpAddr,
    /// The destination address and port.
    pub to: SocketAddr,
    /// The protocol.
    pub protocol: Protocol,
    /// Where the packet was sent from.
    pub origin: Origin,
}

/// Where a packet was sent from, relative to this node. It decides which hooks and which interface the packet passes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Origin {
    /// In a pod of this node.
    Pod,
    /// On the node itself.
    Node,
    /// On another host. The packet comes in by the external interface.
    Outside,
}

impl fmt::Display for Packet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let origin = match self.origin {
            Origin::Pod => "a pod of this node",
            Origin::Node => "this node",
            Origin::Outside => "outside",
        };
        write!(f, "{} ({origin}) to {}/{}", self.source, self.to, self.protocol.as_str())
    }
}

/// The facts about this node that decide matches: its addresses, its pod subnets and its interfaces.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LocalNode {
    /// The addresses of the node, without loopback.
    pub addresses: Vec<IpAddr>,
    /// The subnets of the pods on this node.
    pub subnets: Vec<IpNetwork>,
    /// The name of the interface that packets of pods come in by.
    pub pod_interface: String,
    /// The name of the interface to other hosts.
    pub external_interface: String,
}

impl LocalNode {
    /// True for an address of the node itself, loopback included.
    #[must_use]
    pub fn is_local(&self, ip: IpAddr) -> bool {
        ip.is_loopback() || self.addresses.contains(&ip)
    }

    /// The name of the interface that packets of this origin come in by. Empty for packets of the node itself.
    #[must_use]
    pub fn interface(&self, origin: Origin) -> &str {
        match origin {
            Origin::Pod => &self.pod_interface,
            Origin::Node => "",
            Origin::Outside => &self.external_interface,
        }
    }
}
