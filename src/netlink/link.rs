//! Links, as the kernel shows them and as they should be.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fmt;
use std::net::IpAddr;

use ipnetwork::IpNetwork;

use super::mac::Mac;

/// A link of this network namespace, in the parts that matter here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Link {
    /// The kernel's number of it.
    pub index: u32,
    /// Its name, at most 15 bytes.
    pub name: String,
    /// Its hardware address; `None` if it has none, or one of another length.
    pub mac: Option<Mac>,
    /// Largest packet, in bytes.
    pub mtu: u32,
    /// It is set up (`IFF_UP`).
    pub up: bool,
    /// The bridge it is a port of, by number.
    pub master: Option<u32>,
    /// What it is.
    pub kind: LinkKind,
    /// Its addresses, each with its prefix length, in the kernel's order.
    pub addresses: Vec<LinkAddress>,
}

impl Link {
    /// Its index and its name.
    #[must_use]
    pub fn id(&self) -> LinkId {
        LinkId { index: self.index, name: self.name.as_str().into() }
    }
}

/// A link that exists. Requests use its index, messages its name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LinkId {
    /// Its index.
    pub index: u32,
    /// Its name when it was listed.
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
    /// How far it is valid.
    pub scope: Scope,
    /// It was not assigned for a limited time (`IFA_F_PERMANENT`).
    pub permanent: bool,
    /// It is one of those that change for privacy (`IFA_F_TEMPORARY`).
    pub temporary: bool,
    /// It should not be used for new connections (`IFA_F_DEPRECATED`).
    pub deprecated: bool,
}

/// How far an address is valid (`RT_SCOPE_*`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Scope {
    /// Everywhere.
    Universe,
    /// On its link.
    Link,
    /// On this host.
    Host,
    /// Something else.
    Other(u8),
}

/// What a link is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LinkKind {
    /// A VXLAN tunnel end point.
    Vxlan(Vxlan),
    /// A bridge.
    Bridge,
    /// A loopback.
    Loopback,
    /// Anything else, by the kernel's word for it; empty for hardware.
    Other(String),
}

/// A VXLAN tunnel end point (RFC 7348), in the attributes that are set when it is made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Vxlan {
    /// The network's identifier, 0 to 2^24-1.
    pub vni: u32,
    /// UDP port of the outer packets.
    pub port: u16,
    /// Source address of the outer packets.
    pub local: Option<IpAddr>,
    /// The link that outer packets leave by, by number.
    pub underlay: Option<u32>,
    /// It learns where hardware addresses are from packets that come in.
    pub learning: bool,
    /// It has the group-based policy extension.
    pub gbp: bool,
    /// It has no VNI of its own, but what routes and rules say of each packet (`IFLA_VXLAN_COLLECT_METADATA`).
    pub external: bool,
    /// Misses of the forwarding table or the neighbour table are reported to user space.
    pub reports_misses: bool,
    /// Outer UDP packets over IPv4 have a checksum.
    pub checksum: bool,
}

impl Vxlan {
    /// A tunnel end point with this VNI and port. Outer packets have checksums; every other attribute is off or unset.
    #[must_use]
    pub const fn new(vni: u32, port: u16) -> Self {
        Self { vni, port, local: None, underlay: None, learning: false, gbp: false, external: false, reports_misses: false, checksum: true }
    }
}
