//! Links (network interfaces): their attributes and addresses.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fmt;
use std::net::IpAddr;

use ipnetwork::IpNetwork;

use super::mac::Mac;

/// A link of this network namespace.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Link {
    /// The index of the link.
    pub index: u32,
    /// The name, at most 15 bytes.
    pub name: String,
    /// The hardware address. `None` if the link has none, or one that is not 6 bytes long.
    pub mac: Option<Mac>,
    /// The MTU in bytes.
    pub mtu: u32,
    /// True if the link is set up (`IFF_UP`).
    pub up: bool,
    /// The index of the bridge that the link is a port of.
    pub master: Option<u32>,
    /// The kind of link.
    pub kind: LinkKind,
    /// The addresses, in the order of the kernel.
    pub addresses: Vec<LinkAddress>,
}

impl Link {
    /// The index and the name.
    #[must_use]
    pub fn id(&self) -> LinkId {
        LinkId { index: self.index, name: self.name.as_str().into() }
    }
}

/// A link that exists. Requests use its index, messages its name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LinkId {
    /// The index.
    pub index: u32,
    /// The name when the link was listed.
    pub name: Box<str>,
}

impl fmt::Display for LinkId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.name)
    }
}

/// The names of links by index, for messages about routes, neighbours and FDB entries.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LinkNames(BTreeMap<u32, Box<str>>);

impl LinkNames {
    /// The names of these links.
    #[must_use]
    pub fn new(links: &[Link]) -> Self {
        Self(links.iter().map(|link| (link.index, link.name.as_str().into())).collect())
    }

    /// The name of a link. A link that was not listed is shown by its index, as `ip` shows it.
    #[must_use]
    pub fn name(&self, index: u32) -> Cow<'_, str> {
        self.0.get(&index).map_or_else(|| format!("if{index}").into(), |name| (&**name).into())
    }
}

/// An address of a link.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LinkAddress {
    /// Address and prefix length, host bits included.
    pub net: IpNetwork,
    /// The scope in which the address is valid.
    pub scope: Scope,
    /// True if the address has no limited lifetime (`IFA_F_PERMANENT`).
    pub permanent: bool,
    /// True for a temporary address of the IPv6 privacy extensions (`IFA_F_TEMPORARY`).
    pub temporary: bool,
    /// True if new connections should not use the address (`IFA_F_DEPRECATED`).
    pub deprecated: bool,
}

/// The scope in which an address is valid (`RT_SCOPE_*`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Scope {
    /// Everywhere.
    Universe,
    /// On the link.
    Link,
    /// On this host.
    Host,
    /// Any other scope.
    Other(u8),
}

/// The kind of a link.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LinkKind {
    /// A VXLAN tunnel end point.
    Vxlan(Vxlan),
    /// A bridge.
    Bridge,
    /// A loopback.
    Loopback,
    /// Any other kind, by its name in the kernel. Empty for a hardware interface.
    Other(String),
}

/// The attributes of a VXLAN link (RFC 7348), as they are set when the link is created.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Vxlan {
    /// The network identifier (VNI), 0 to 2^24-1.
    pub vni: u32,
    /// The UDP port of the outer packets.
    pub port: u16,
    /// The source address of the outer packets.
    pub local: Option<IpAddr>,
    /// The index of the link that the outer packets leave by.
    pub underlay: Option<u32>,
    /// The link learns FDB entries from the packets that it receives.
    pub learning: bool,
    /// The link uses the group-based policy extension.
    pub gbp: bool,
    /// The link has no VNI of its own: routes and programs set it for each packet (`IFLA_VXLAN_COLLECT_METADATA`).
    pub external: bool,
    /// The kernel reports misses in the FDB or the neighbour table to user space.
    pub reports_misses: bool,
    /// Outer IPv4 packets have a UDP checksum.
    pub checksum: bool,
}

impl Vxlan {
    /// A tunnel end point with this VNI and port. Outer packets have checksums; every other attribute is off or unset.
    #[must_use]
    pub const fn new(vni: u32, port: u16) -> Self {
        Self { vni, port, local: None, underlay: None, learning: false, gbp: false, external: false, reports_misses: false, checksum: true }
    }
}
