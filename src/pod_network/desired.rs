//! What the kernel should hold for the pod network: links, and for each peer its neighbour, FDB entry and route (spec sections 5 and 6).

use super::vxlan::link_name;
use std::collections::BTreeMap;
use std::net::IpAddr;

use ipnetwork::IpNetwork;

use super::net_conf::{Backend, NetConf};
use super::settings::NetworkSettings;
use crate::cluster::Family;
use crate::cluster::ip::host_net;

use super::interface::External;
use super::mtu::Mtu;
use super::own_lease::OwnLease;
use super::peers::{Peers, Remote};
use super::refusal::{Reason, Refusal};
use super::routing::RoutingTable;
use crate::cluster::families::PerFamily;
use crate::netlink::entry::{EntryChange, FdbEntry, Neighbour, OUR_PROTOCOL, Route, RouteKind};
use crate::netlink::link::Vxlan;
use crate::netlink::mac::Mac;

/// What IPv6 makes of a metric that is not given.
const IPV6_METRIC: u32 = 1024;

/// Metric of the route that swallows what no pod of this node has. That of the pods' bridge is lower, so it goes first.
const LAST_METRIC: u32 = 4096;

/// A VXLAN link that should be there, up.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DesiredLink {
    /// The family that it carries, in packets of the same family.
    pub family: Family,
    /// Its name.
    pub name: String,
    /// What it is made with.
    pub vxlan: Vxlan,
    /// Its hardware address.
    pub mac: Mac,
    /// Its MTU.
    pub mtu: u32,
    /// The one address it has of this network: the base of this node's subnet, alone.
    pub address: IpNetwork,
    /// The network: other IPv4 addresses in it are to go, those outside stay. Of IPv6 all others go but for link-local ones.
    pub network: IpNetwork,
    /// Transmit checksum offload, if it is not to be left as it is.
    pub checksum_offload: Option<bool>,
}

/// An entry of the kernel's tables that should be there.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Entry {
    /// The base of a subnet has this hardware address.
    Neighbour(Neighbour),
    /// That hardware address is at this node.
    Fdb(FdbEntry),
    /// The subnet is behind that neighbour.
    Route(Route),
}

impl Entry {
    /// The step that makes it be there.
    #[must_use]
    pub const fn put(self) -> EntryChange {
        match self {
            Self::Neighbour(neighbour) => EntryChange::Neighbour(neighbour),
            Self::Fdb(entry) => EntryChange::Fdb(entry),
            Self::Route(route) => EntryChange::Route(route),
        }
    }
}

/// The entries that should be there.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DesiredEntries {
    /// For each peer in the order in which they are made, so that the kernel never has to ask where a packet goes.
    pub peers: BTreeMap<Box<str>, Vec<Entry>>,
    /// For nobody: the route that swallows what no pod of this node has.
    pub own: Vec<Entry>,
    /// Peers that cannot be reached with this backend.
    pub refused: Vec<Refusal>,
}

/// What is asked for, and what it is asked of.
#[derive(Clone, Copy, Debug)]
pub struct Wanted<'a> {
    /// net-conf.json.
    pub conf: &'a NetConf,
    /// The rest.
    pub settings: &'a NetworkSettings,
    /// This node's own part.
    pub own: &'a OwnLease,
    /// The interface that outer packets leave by.
    pub external: &'a External,
    /// How large they can be.
    pub mtu: &'a Mtu,
}

impl Wanted<'_> {
    /// The links that should be there; none for host-gw.
    #[must_use]
    pub fn links(&self) -> Vec<DesiredLink> {
        let Backend::Vxlan(asked) = &self.conf.backend else { return Vec::new() };
        let of_family = |(family, network): (Family, &IpNetwork)| {
            let vxlan = Vxlan {
                vni: asked.vni,
                port: asked.port,
                local: self.own.local.get(family).copied(),
                underlay: Some(self.external.index),
                learning: asked.learning,
                gbp: asked.gbp,
                external: false,
                reports_misses: false,
                checksum: true,
            };
            Some(DesiredLink {
                family,
                name: link_name(family, asked.vni),
                vxlan,
                mac: *self.own.macs.get(family)?,
                mtu: *self.mtu.links.get(family)?,
                address: host_net(self.own.subnets.get(family)?.network()),
                network: *network,
                checksum_offload: self.settings.checksum_offload,
            })
        };
        self.conf.networks.iter().filter_map(of_family).collect()
    }

    /// The entries for these peers, where the links have these numbers (a family without a link has to wait for it) and the main table
    /// holds these routes.
    #[must_use]
    pub fn entries(&self, peers: &Peers, links: &PerFamily<u32>, routes: &[Route]) -> DesiredEntries {
        let table = RoutingTable::new(routes);
        let mut desired = DesiredEntries::default();
        for (name, remotes) in &peers.accepted {
            let entries = desired.peers.entry(name.clone()).or_default();
            // A node without a subnet takes no part in the network of that family.
            for (family, remote) in remotes.iter().filter(|(family, _)| self.own.subnets.get(*family).is_some()) {
                match self.conf.backend {
                    Backend::HostGw if table.neighbour_link(remote.public_ip) != Some(self.external.index) => {
                        desired.refused.push(Refusal {
                            node: name.clone(),
                            family: Some(family),
                            reason: Reason::NotOnLink(remote.public_ip),
                        });
                    }
                    Backend::HostGw => entries.push(direct(remote, self.external.index)),
                    Backend::Vxlan(asked) => {
                        let neighbour = if asked.direct_routing { table.neighbour_link(remote.public_ip) } else { None };
                        match (neighbour, links.get(family), remote.mac) {
                            (Some(link), _, _) => entries.push(direct(remote, link)),
                            (None, Some(link), Some(mac)) => entries.extend(tunnelled(remote, *link, mac)),
                            _ => {}
                        }
                    }
                }
            }
            if entries.is_empty() {
                desired.peers.remove(name);
            }
        }
        if self.settings.blackhole_route {
            desired.own = self.own.subnets.iter().map(|(_, subnet)| Entry::Route(blackhole(*subnet))).collect();
        }
        desired
    }
}

fn direct(remote: &Remote, link: u32) -> Entry {
    Entry::Route(Route { gateway: Some(remote.public_ip), link: Some(link), ..to(remote.subnet) })
}

fn tunnelled(remote: &Remote, link: u32, mac: Mac) -> [Entry; 3] {
    let base: IpAddr = remote.subnet.network();
    [
        Entry::Neighbour(Neighbour { link, ip: base, mac, permanent: true }),
        Entry::Fdb(FdbEntry { link, mac, host: remote.public_ip, permanent: true }),
        Entry::Route(Route { gateway: Some(base), link: Some(link), onlink: true, ..to(remote.subnet) }),
    ]
}

fn blackhole(subnet: IpNetwork) -> Route {
    Route { kind: RouteKind::Blackhole, metric: LAST_METRIC, ..to(subnet) }
}

/// A route of ours that leads nowhere yet.
fn to(destination: IpNetwork) -> Route {
    let metric = if destination.is_ipv4() { 0 } else { IPV6_METRIC };
    Route { destination, gateway: None, link: None, onlink: false, kind: RouteKind::Unicast, source: None, protocol: OUR_PROTOCOL, metric }
}
