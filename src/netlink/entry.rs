//! Entries of the kernel's network tables (routes, neighbours, the forwarding database of VXLAN links), and the changes to them and to links.

use std::fmt;
use std::net::IpAddr;

use ipnetwork::IpNetwork;

use super::link::{Link, LinkId, LinkNames, Vxlan};
use super::mac::Mac;

/// `rtm_protocol` of the routes that sepal adds. No other program uses this number (`/etc/iproute2/rt_protos`).
pub const OUR_PROTOCOL: u8 = 83;
/// `rtm_protocol` of the routes that flannel and administrators add (`RTPROT_BOOT`).
pub const BOOT_PROTOCOL: u8 = 3;

/// `rtm_protocol` of the routes that the kernel adds with an address (`RTPROT_KERNEL`).
pub const KERNEL_PROTOCOL: u8 = 2;

/// The name of the request that creates a VXLAN link, for errors.
pub(crate) const CREATE_VXLAN: &str = "create VXLAN link";

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
    /// The name in `ip route`. Empty for unicast.
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
    /// The destination, with host bits zero. A prefix of length 0 is the default route.
    pub destination: IpNetwork,
    /// The next hop, if the route has one.
    pub gateway: Option<IpAddr>,
    /// The index of the output link. `None` for several next hops and for every kind except unicast.
    pub link: Option<u32>,
    /// The kernel assumes that the next hop is reachable over the link, even without a route to it (`RTNH_F_ONLINK`).
    pub onlink: bool,
    /// What the route does with packets.
    pub kind: RouteKind,
    /// The preferred source address for packets that this host sends.
    pub source: Option<IpAddr>,
    /// The program or kernel part that added the route (`RTPROT_*`).
    pub protocol: u8,
    /// The metric. If several routes have the same destination, the kernel uses the one with the lowest metric. IPv6 turns 0 into 1024.
    pub metric: u32,
}

/// A neighbour (ARP or NDP entry) of a link.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Neighbour {
    /// The index of the link.
    pub link: u32,
    /// The IP address of the neighbour.
    pub ip: IpAddr,
    /// The hardware address of the neighbour.
    pub mac: Mac,
    /// The kernel neither probes nor expires the entry (`NUD_PERMANENT`).
    pub permanent: bool,
}

/// An entry in the forwarding database (FDB) of a VXLAN link: frames to this hardware address go to this host.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct FdbEntry {
    /// The index of the link.
    pub link: u32,
    /// The hardware address.
    pub mac: Mac,
    /// The host, as the destination of the outer packets.
    pub host: IpAddr,
    /// The kernel does not expire the entry (`NUD_PERMANENT`).
    pub permanent: bool,
}

/// The live network state: all links, routes, neighbours and FDB entries that the pod network reads.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Live {
    /// Every link with its addresses, ordered by index.
    pub links: Vec<Link>,
    /// Every route of the main table.
    pub routes: Vec<Route>,
    /// Every neighbour of VXLAN links.
    pub neighbours: Vec<Neighbour>,
    /// Every FDB entry of VXLAN links.
    pub fdb: Vec<FdbEntry>,
}

/// One change of the network tables. Adding replaces an existing entry. Deleting an entry that does not exist succeeds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum EntryChange {
    /// Adds a route. Replaces a route to the same destination with the same metric.
    Route(Route),
    /// Deletes a route.
    NoRoute(Route),
    /// Adds a neighbour.
    Neighbour(Neighbour),
    /// Deletes a neighbour.
    NoNeighbour(Neighbour),
    /// Adds an FDB entry. Replaces an entry for the same hardware address.
    Fdb(FdbEntry),
    /// Deletes an FDB entry.
    NoFdb(FdbEntry),
}

/// One change of a link.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LinkChange {
    /// Creates a VXLAN link.
    CreateVxlan {
        /// The name of the link.
        name: String,
        /// The VXLAN attributes.
        vxlan: Vxlan,
        /// The hardware address. It is part of the request, because systemd would choose another one otherwise [flannel 5.2].
        mac: Mac,
        /// The MTU in bytes.
        mtu: u32,
    },
    /// Deletes a link.
    Delete(LinkId),
    /// Sets the MTU.
    Mtu(LinkId, u32),
    /// Sets the hardware address.
    Mac(LinkId, Mac),
    /// Sets the link up.
    Up(LinkId),
    /// Adds an address.
    AddAddress(LinkId, IpNetwork),
    /// Deletes an address.
    DeleteAddress(LinkId, IpNetwork),
    /// Switches transmit checksum offload (`tx-checksum-ip-generic`) on or off.
    ChecksumOffload(LinkId, bool),
}

impl Route {
    /// Returns the route as `ip route` prints it.
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
    /// The neighbour as `ip neigh` prints it.
    #[must_use]
    pub fn text(&self, names: &LinkNames) -> String {
        format!("{} lladdr {} dev {}", self.ip, self.mac, names.name(self.link))
    }
}

impl FdbEntry {
    /// The entry as `bridge fdb` prints it.
    #[must_use]
    pub fn text(&self, names: &LinkNames) -> String {
        format!("{} dst {} dev {}", self.mac, self.host, names.name(self.link))
    }
}

impl EntryChange {
    /// The kind of the change, as a label of metrics.
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
    /// The kind of the change, as a label of metrics.
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

    /// Returns the verb and the object of the change, for errors and logs.
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
