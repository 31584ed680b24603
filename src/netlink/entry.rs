//! Entries of the kernel's tables: routes, neighbours, the forwarding database (FDB) of VXLAN links.

use std::fmt;
use std::net::IpAddr;

use ipnetwork::IpNetwork;

use super::link::{LinkId, LinkNames, Vxlan};
use super::mac::Mac;

/// `rtm_protocol` of the routes that are ours (`/etc/iproute2/rt_protos` has nothing there). flannel's own say `boot`.
pub const OUR_PROTOCOL: u8 = 83;
/// `rtm_protocol` of routes that administrators, and flannel, add (`RTPROT_BOOT`).
pub const BOOT_PROTOCOL: u8 = 3;

/// `rtm_protocol` of routes that the kernel makes with addresses (`RTPROT_KERNEL`).
pub const KERNEL_PROTOCOL: u8 = 2;

/// What is said of making a VXLAN link.
pub const CREATE_VXLAN: &str = "create VXLAN link";

/// What a route does with packets (`rtm_type`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum RouteKind {
    /// Forwards them.
    #[default]
    Unicast,
    /// Drops them silently.
    Blackhole,
    /// Drops them and answers "host unreachable".
    Unreachable,
    /// Drops them and answers "administratively prohibited".
    Prohibit,
    /// Ends the lookup in this table.
    Throw,
}

impl RouteKind {
    /// Its name, as `ip route` has it; empty for unicast.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Unicast => "",
            Self::Blackhole => "blackhole",
            Self::Unreachable => "unreachable",
            Self::Prohibit => "prohibit",
            Self::Throw => "throw",
        }
    }
}

/// A route of the main table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Route {
    /// Where to; host bits are zero. A prefix of length 0 is the default route.
    pub destination: IpNetwork,
    /// The next hop, if there is one.
    pub gateway: Option<IpAddr>,
    /// The link to leave by, by index; `None` for several next hops and for every kind but unicast.
    pub link: Option<u32>,
    /// The next hop counts as reachable over the link, whatever other routes say.
    pub onlink: bool,
    /// What it does with packets.
    pub kind: RouteKind,
    /// The source address that this host's own packets prefer.
    pub source: Option<IpAddr>,
    /// Who made it (`RTPROT_*`).
    pub protocol: u8,
    /// Of two routes to one destination the lower counts; 0 is printed as none for IPv4, and IPv6 makes it 1024.
    pub metric: u32,
}

/// A neighbour (ARP or NDP entry) of a link.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Neighbour {
    /// The link, by number.
    pub link: u32,
    /// The neighbour's address.
    pub ip: IpAddr,
    /// Its hardware address.
    pub mac: Mac,
    /// It is never probed and never forgotten (`NUD_PERMANENT`).
    pub permanent: bool,
}

/// An entry of a VXLAN link's forwarding database: frames to this hardware address go to that host.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct FdbEntry {
    /// The link, by number.
    pub link: u32,
    /// The hardware address.
    pub mac: Mac,
    /// The host.
    pub host: IpAddr,
    /// It is never forgotten (`NUD_PERMANENT`).
    pub permanent: bool,
}

/// Everything of the kernel's that the pod network looks at.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Live {
    /// Every link, in the kernel's order of numbers, with its addresses.
    pub links: Vec<super::link::Link>,
    /// Every route of the main table.
    pub routes: Vec<Route>,
    /// Every neighbour of VXLAN links.
    pub neighbours: Vec<Neighbour>,
    /// Every FDB entry of VXLAN links.
    pub fdb: Vec<FdbEntry>,
}

/// One step of the kernel's tables. What is to be there replaces what is in its way; what is to go and is gone already has gone.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum EntryChange {
    /// A route that should be there; it takes the place of one to the same destination with the same metric.
    Route(Route),
    /// A route that should go.
    NoRoute(Route),
    /// A neighbour that should be there.
    Neighbour(Neighbour),
    /// A neighbour that should go.
    NoNeighbour(Neighbour),
    /// An FDB entry that should be there; it takes the place of one for the same hardware address.
    Fdb(FdbEntry),
    /// An FDB entry that should go.
    NoFdb(FdbEntry),
}

/// One step of the links.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LinkChange {
    /// Make a VXLAN link with these attributes, a hardware address and an MTU.
    CreateVxlan {
        /// Its name.
        name: String,
        /// Its attributes.
        vxlan: Vxlan,
        /// Its hardware address, set while it is made so that nobody else gets to choose one.
        mac: Mac,
        /// Largest packet, in bytes.
        mtu: u32,
    },
    /// Delete a link.
    Delete(LinkId),
    /// Set the MTU.
    Mtu(LinkId, u32),
    /// Set the hardware address.
    Mac(LinkId, Mac),
    /// Set it up.
    Up(LinkId),
    /// Add an address.
    AddAddress(LinkId, IpNetwork),
    /// Delete an address.
    DeleteAddress(LinkId, IpNetwork),
    /// Switch transmit checksum offload (`tx-checksum-ip-generic`) off or on.
    ChecksumOffload(LinkId, bool),
}

impl Route {
    /// The route in the words of `ip route`.
    #[must_use]
    pub fn text(&self, names: &LinkNames) -> String {
        let Self { destination, gateway, link, kind, metric, .. } = self;
        let mut text = kind.as_str().to_owned();
        let mut add = |word: &str, value: &dyn fmt::Display| {
            for part in [word, &value.to_string()] {
                if !text.is_empty() && !part.is_empty() {
                    text.push(' ');
                }
                text.push_str(part);
            }
        };
        add("", destination);
        if let Some(gateway) = gateway {
            add("via", gateway);
        }
        if let Some(link) = link {
            add("dev", &names.name(*link));
        }
        if *metric != 0 {
            add("metric", metric);
        }
        text
    }
}

impl Neighbour {
    /// The neighbour in the words of `ip neigh`.
    #[must_use]
    pub fn text(&self, names: &LinkNames) -> String {
        format!("{} lladdr {} dev {}", self.ip, self.mac, names.name(self.link))
    }
}

impl FdbEntry {
    /// The entry in the words of `bridge fdb`.
    #[must_use]
    pub fn text(&self, names: &LinkNames) -> String {
        format!("{} dst {} dev {}", self.mac, self.host, names.name(self.link))
    }
}

impl EntryChange {
    /// A word for what it changes, for metrics.
    #[must_use]
    pub const fn kind(&self) -> &'static str {
        match self {
            Self::Route(_) | Self::NoRoute(_) => "route",
            Self::Neighbour(_) | Self::NoNeighbour(_) => "neighbour",
            Self::Fdb(_) | Self::NoFdb(_) => "fdb",
        }
    }
}

impl LinkChange {
    /// A word for what it changes, for metrics.
    #[must_use]
    pub const fn kind(&self) -> &'static str {
        match self {
            Self::CreateVxlan { .. } | Self::Delete(_) | Self::Up(_) => "link",
            Self::Mtu(..) => "mtu",
            Self::Mac(..) => "mac",
            Self::AddAddress(..) | Self::DeleteAddress(..) => "address",
            Self::ChecksumOffload(..) => "offload",
        }
    }

    /// The call, and what it is made with.
    #[must_use]
    pub fn words(&self) -> (&'static str, String) {
        match self {
            Self::CreateVxlan { name, vxlan, .. } => (CREATE_VXLAN, format!("{name} (VNI {})", vxlan.vni)),
            Self::Delete(link) => ("delete", format!("link {link}")),
            Self::Mtu(link, mtu) => ("set the MTU of", format!("link {link} to {mtu}")),
            Self::Mac(link, mac) => ("set the hardware address of", format!("link {link} to {mac}")),
            Self::Up(link) => ("set up", format!("link {link}")),
            Self::AddAddress(link, net) => ("add address", format!("{net} to link {link}")),
            Self::DeleteAddress(link, net) => ("delete address", format!("{net} from link {link}")),
            Self::ChecksumOffload(link, on) => ("switch checksum offload", format!("{} for link {link}", if *on { "on" } else { "off" })),
        }
    }
}

impl fmt::Display for LinkChange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (call, object) = self.words();
        write!(f, "{call} {object}")
    }
}
