//! A packet that opens a connection, and the node that it comes to.

use std::fmt;
use std::net::{IpAddr, SocketAddr};

use ipnetwork::IpNetwork;

use crate::cluster::Protocol;

/// The first packet of a connection (conntrack state NEW).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Packet {
    /// Its sender.
    pub source: IpAddr,
    /// Its destination.
    pub to: SocketAddr,
    /// Its protocol.
    pub protocol: Protocol,
    /// Where it comes from, as the node sees it.
    pub origin: Origin,
}

/// Where a packet comes from, as the node sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Origin {
    /// A pod of this node.
    Pod,
    /// The node itself.
    Node,
    /// Another host, by the external interface.
    Outside,
}

impl fmt::Display for Packet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let who = match self.origin {
            Origin::Pod => "a pod of this node",
            Origin::Node => "this node",
            Origin::Outside => "outside",
        };
        write!(f, "{} ({who}) to {}/{}", self.source, self.to, self.protocol.as_str())
    }
}

/// What rules may ask about the node.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Place {
    /// Its own addresses, beside loopback.
    pub addresses: Vec<IpAddr>,
    /// Its pods' subnets.
    pub subnets: Vec<IpNetwork>,
    /// The name of the interface that pods' packets come in by.
    pub pod_interface: String,
    /// The name of the interface to other hosts.
    pub external_interface: String,
}

impl Place {
    /// Whether packets to this address are for the node itself.
    #[must_use]
    pub fn is_local(&self, ip: IpAddr) -> bool {
        ip.is_loopback() || self.addresses.contains(&ip)
    }

    /// The name of the interface that packets of this origin come in by; empty for the node's own.
    #[must_use]
    pub fn interface(&self, origin: Origin) -> &str {
        match origin {
            Origin::Pod => &self.pod_interface,
            Origin::Node => "",
            Origin::Outside => &self.external_interface,
        }
    }
}
