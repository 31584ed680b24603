//! Computes the desired state of the kernel for the pod network: VXLAN links [flannel 5], and a neighbour, an FDB entry and a route for each
//! peer [flannel 6].

use super::vxlan::link_name;
use std::collections::BTreeMap;
use std::net::IpAddr;

use ipnetwork::IpNetwork;

use super::net_conf::{Backend, NetConf};
use super::settings::NetworkSettings;
use crate::cluster::Family;
use crate::cluster::ip::host_net;

use super::interface::ExternalInterface;
use super::mtu::Mtu;
use super::own_lease::OwnLease;
use super::peers::{Peers, RemoteSubnet};
use super::refusal::{PeerRefusal, RefusalReason};
use super::routing::RoutingTable;
use crate::cluster::families::PerFamily;
use crate::netlink::entry::{EntryChange, FdbEntry, Neighbour, OUR_PROTOCOL, Route, RouteKind};
use crate::netlink::link::Vxlan;
use crate::netlink::mac::Mac;

/// The metric that the kernel uses for an IPv6 route without one.
const IPV6_METRIC: u32 = 1024;

/// Metric of the blackhole route of this node's subnet. The route of the pods' bridge has a lower metric, so it is preferred.
const BLACKHOLE_METRIC: u32 = 4096;

/// A VXLAN link that should exist and be up.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DesiredLink {
    /// The family of the inner and outer packets.
    pub family: Family,
    /// Its name.
    pub name: String,
    /// Its attributes.
    pub vxlan: Vxlan,
    /// Its hardware address.
    pub mac: Mac,
    /// Its MTU.
    pub mtu: u32,
    /// Its only address in the pod network: the network address of this node's subnet, with full prefix length.
    pub address: IpNetwork,
    /// The pod network. Other IPv4 addresses inside it are deleted from the link. Of IPv6, all other addresses except link-local ones are deleted.
    pub network: IpNetwork,
    /// Transmit checksum offload; `None` leaves it unchanged.
    pub checksum_offload: Option<bool>,
}

/// An entry in the kernel's neighbour table, FDB or routing table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Entry {
    /// The network address of a subnet has this hardware address.
    Neighbour(Neighbour),
    /// Packets to this hardware address are sent to this node.
    Fdb(FdbEntry),
    /// Packets to this subnet are sent to this gateway.
    Route(Route),
}

impl Entry {
    /// The change that adds or replaces the entry.
    #[must_use]
    pub const fn change(self) -> EntryChange {
        match self {
            Self::Neighbour(neighbour) => EntryChange::Neighbour(neighbour),
            Self::Fdb(entry) => EntryChange::Fdb(entry),
            Self::Route(route) => EntryChange::Route(route),
        }
    }
}

/// The desired entries.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DesiredEntries {
    /// The entries of each peer, in the order in which they are written: neighbour and FDB entry come before the route.
    pub peers: BTreeMap<Box<str>, Vec<Entry>>,
    /// Entries of no peer: the blackhole routes of this node's subnets.
    pub own: Vec<Entry>,
    /// Peers that this node cannot reach with the configured backend.
    pub refused: Vec<PeerRefusal>,
}

/// The inputs of the desired state, besides the other Nodes.
#[derive(Clone, Copy, Debug)]
pub struct DesiredInputs<'a> {
    /// net-conf.json.
    pub conf: &'a NetConf,
    /// Settings that are not in net-conf.json.
    pub settings: &'a NetworkSettings,
    /// This node's own lease.
    pub own: &'a OwnLease,
    /// The interface that sends packets to other nodes.
    pub external: &'a ExternalInterface,
    /// The MTUs.
    pub mtu: &'a Mtu,
}

impl DesiredInputs<'_> {
    /// Computes the desired links. There are none for host-gw.
    #[must_use]
    pub fn links(&self) -> Vec<DesiredLink> {
        let Backend::Vxlan(conf) = &self.conf.backend else { return Vec::new() };
        let of_family = |(family, network): (Family, &IpNetwork)| {
            let vxlan = Vxlan {
                local: self.own.local.get(family).copied(),
                underlay: Some(self.external.index),
                learning: conf.learning,
                gbp: conf.gbp,
                ..Vxlan::new(conf.vni, conf.port)
            };
            Some(DesiredLink {
                family,
                name: link_name(family, conf.vni),
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

    /// Computes the desired entries. `links` are the indexes of the VXLAN links; a family without a link gets no VXLAN entries. `routes` are the
    /// live routes of the main table.
    #[must_use]
    pub fn entries(&self, peers: &Peers, links: &PerFamily<u32>, routes: &[Route]) -> DesiredEntries {
        let table = RoutingTable::new(routes);
        let mut desired = DesiredEntries::default();
        for (name, remotes) in &peers.accepted {
            let entries = desired.peers.entry(name.clone()).or_default();
            // Without an own subnet in a family, this node has no entries in it.
            for (family, remote) in remotes.iter().filter(|(family, _)| self.own.subnets.get(*family).is_some()) {
                match self.conf.backend {
                    Backend::HostGw if table.neighbour_link(remote.public_ip) != Some(self.external.index) => {
                        desired.refused.push(PeerRefusal {
                            node: name.clone(),
                            family: Some(family),
                            reason: RefusalReason::NotOnLink(remote.public_ip),
                        });
                    }
                    Backend::HostGw => entries.push(direct(remote, self.external.index)),
                    Backend::Vxlan(vxlan) => {
                        let neighbour = if vxlan.direct_routing { table.neighbour_link(remote.public_ip) } else { None };
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

/// The route to a peer on the same network.
fn direct(remote: &RemoteSubnet, link: u32) -> Entry {
    Entry::Route(Route { gateway: Some(remote.public_ip), link: Some(link), ..to(remote.subnet) })
}

/// The entries of a peer that is reached over VXLAN.
fn tunnelled(remote: &RemoteSubnet, link: u32, mac: Mac) -> [Entry; 3] {
    let base: IpAddr = remote.subnet.network();
    [
        Entry::Neighbour(Neighbour { link, ip: base, mac, permanent: true }),
        Entry::Fdb(FdbEntry { link, mac, host: remote.public_ip, permanent: true }),
        Entry::Route(Route { gateway: Some(base), link: Some(link), onlink: true, ..to(remote.subnet) }),
    ]
}

fn blackhole(subnet: IpNetwork) -> Route {
    Route { kind: RouteKind::Blackhole, metric: BLACKHOLE_METRIC, ..to(subnet) }
}

/// A route with our protocol, without gateway and link.
fn to(destination: IpNetwork) -> Route {
    let metric = if destination.is_ipv4() { 0 } else { IPV6_METRIC };
    Route { destination, gateway: None, link: None, onlink: false, kind: RouteKind::Unicast, source: None, protocol: OUR_PROTOCOL, metric }
}
