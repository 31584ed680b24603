//! From what the kernel holds to what it should hold: the steps, in an order that loses no packet that need not be lost (spec sections
//! 5.3, 6 and 12.1-12.3).
//!
//! Links come first ([`links`]): a link that is made has no number yet, so after these steps the kernel is looked at again. Entries come
//! in groups, one for each peer ([`entries`]), so that a step that fails holds up nobody else. Whatever is ours and not desired goes;
//! whatever others made stays, and where it is in the way that is said.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::fmt;
use std::net::IpAddr;

use ipnetwork::IpNetwork;

use crate::cluster::Family;

use super::desired::{DesiredEntries, DesiredLink, Entry};
use super::entry::{BOOT_PROTOCOL, EntryChange, FdbEntry, LinkChange, Live, Neighbour, OUR_PROTOCOL, Route};
use super::families::PerFamily;
use super::link::{Link, LinkKind, Vxlan};
use super::mac::Mac;

/// Steps for the links, and what keeps others from being taken.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LinkPlan {
    /// The steps, in order.
    pub changes: Vec<LinkChange>,
    /// Links of others because of which one of ours cannot be made.
    pub in_the_way: Vec<LinkInTheWay>,
}

/// A VXLAN link of somebody else's with the same VNI and port: the kernel allows one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LinkInTheWay {
    /// The link that is to be made.
    pub wanted: String,
    /// The one that is there.
    pub found: String,
    /// Its VNI.
    pub vni: u32,
}

impl fmt::Display for LinkInTheWay {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { wanted, found, vni } = self;
        write!(
            f,
            "link {wanted} cannot be made: link {found} has VNI {vni} and the same port. Delete it (ip link delete {found}), or choose another Backend.VNI in net-conf.json on all nodes"
        )
    }
}

/// Steps for the entries, and what keeps others from being taken.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct EntryPlan {
    /// The steps, in groups that do not depend on each other.
    pub groups: Vec<Group>,
    /// Routes of others to the same destinations.
    pub in_the_way: Vec<RouteInTheWay>,
}

/// Steps that are taken one after the other; when one fails the rest of them wait for the next try.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Group {
    /// The peer that they are for; `None` for what is nobody's.
    pub node: Option<Box<str>>,
    /// The steps.
    pub changes: Vec<EntryChange>,
}

/// A route of somebody else's to the same destination as one of ours. It is not replaced.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RouteInTheWay {
    /// The peer whose pods are there, if they are a peer's.
    pub node: Option<Box<str>>,
    /// The route that should be there.
    pub wanted: Route,
    /// The one that is.
    pub found: Route,
}

impl fmt::Display for RouteInTheWay {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Route { destination, protocol, metric, gateway, .. } = &self.found;
        write!(f, "the route to {destination}")?;
        if let Some(node) = &self.node {
            write!(f, ", where the pods of node {node} are,")?;
        }
        f.write_str(" is somebody else's")?;
        if let Some(gateway) = gateway {
            write!(f, " and leads by {gateway}")?;
        }
        write!(f, " (protocol {protocol}, metric {metric}); it stays. If it is not needed: ip route delete {destination} metric {metric}")
    }
}

/// The numbers of the links that are there as desired, or can be made so without making them anew.
#[must_use]
pub fn our_links(desired: &[DesiredLink], live: &Live) -> PerFamily<u32> {
    let of = |desired: &DesiredLink| {
        live.links.iter().find(|link| link.name == desired.name && is_like(link, &desired.vxlan)).map(|link| link.index)
    };
    desired.iter().filter_map(|desired| Some((desired.family, of(desired)?))).collect()
}

/// Whether a link can become the one desired: what cannot be changed is right. As flannel has it, outer checksums do not matter.
fn is_like(link: &Link, wanted: &Vxlan) -> bool {
    matches!(&link.kind, LinkKind::Vxlan(found) if Vxlan { checksum: wanted.checksum, ..*found } == *wanted)
}

/// Plans the way to these links. `networks` are the pod network's: by an address in them a VXLAN link with flannel's name is known for a
/// former one of this node's. `offloads` is what is known to be set of transmit checksum offload, by number of link.
#[must_use]
pub fn links(desired: &[DesiredLink], networks: &PerFamily<IpNetwork>, live: &Live, offloads: &BTreeMap<u32, bool>) -> LinkPlan {
    let mut plan = LinkPlan::default();
    let former: Vec<&Link> = live.links.iter().filter(|link| is_former(link, desired, networks, live)).collect();
    plan.changes.extend(former.iter().map(|link| LinkChange::Delete(link.index)));
    for wanted in desired {
        let found = live.links.iter().find(|link| link.name == wanted.name);
        if let Some(link) = found.filter(|link| is_like(link, &wanted.vxlan)) {
            adjust(wanted, link, offloads, &mut plan.changes);
            continue;
        }
        let other = live.links.iter().find(|link| {
            let stays = !former.iter().any(|former| former.index == link.index) && !desired.iter().any(|desired| desired.name == link.name);
            matches!(&link.kind, LinkKind::Vxlan(vxlan) if stays && is_same_network(vxlan, &wanted.vxlan))
        });
        if let Some(other) = other {
            plan.in_the_way.push(LinkInTheWay { wanted: wanted.name.clone(), found: other.name.clone(), vni: wanted.vxlan.vni });
            continue;
        }
        plan.changes.extend(found.map(|link| LinkChange::Delete(link.index)));
        plan.changes.push(LinkChange::CreateVxlan { name: wanted.name.clone(), vxlan: wanted.vxlan, mac: wanted.mac, mtu: wanted.mtu });
    }
    plan
}

/// Whether the kernel would not have both: one VNI on one port with outer packets of one family.
fn is_same_network(a: &Vxlan, b: &Vxlan) -> bool {
    let is_v6 = |vxlan: &Vxlan| vxlan.local.is_some_and(|ip| ip.is_ipv6());
    (a.vni, a.port, is_v6(a)) == (b.vni, b.port, is_v6(b))
}

/// Whether a link was this node's: by its name, and by an address of the network or a route of ours through it.
fn is_former(link: &Link, desired: &[DesiredLink], networks: &PerFamily<IpNetwork>, live: &Live) -> bool {
    let number = ["flannel.", "flannel-v6."].into_iter().find_map(|start| link.name.strip_prefix(start)?.parse::<u32>().ok());
    let named = number.is_some() && matches!(link.kind, LinkKind::Vxlan(_)) && !desired.iter().any(|desired| desired.name == link.name);
    let inside = |net: IpNetwork| networks.get(Family::of_net(net)).is_some_and(|network| network.contains(net.ip()));
    let used = || live.routes.iter().any(|route| route.protocol == OUR_PROTOCOL && route.link == Some(link.index));
    named && (link.addresses.iter().any(|address| inside(address.net)) || used())
}

/// What can be changed while the link carries traffic.
fn adjust(wanted: &DesiredLink, link: &Link, offloads: &BTreeMap<u32, bool>, changes: &mut Vec<LinkChange>) {
    let index = link.index;
    if link.mac != Some(wanted.mac) {
        changes.push(LinkChange::Mac(index, wanted.mac));
    }
    if link.mtu != wanted.mtu {
        changes.push(LinkChange::Mtu(index, wanted.mtu));
    }
    if let Some(offload) = wanted.checksum_offload.filter(|offload| offloads.get(&index) != Some(offload)) {
        changes.push(LinkChange::ChecksumOffload(index, offload));
    }
    let is_stale = |net: IpNetwork| match net {
        _ if Family::of_net(net) != wanted.family || net == wanted.address => false,
        IpNetwork::V4(_) => wanted.network.contains(net.ip()),
        IpNetwork::V6(net) => !net.ip().is_unicast_link_local(),
    };
    let stale = link.addresses.iter().map(|address| address.net).filter(|net| is_stale(*net));
    // Of IPv6 a link has an address once, whatever its prefix: the wrong one goes first.
    changes.extend(stale.map(|net| LinkChange::DeleteAddress(index, net)));
    if !link.addresses.iter().any(|address| address.net == wanted.address) {
        changes.push(LinkChange::AddAddress(index, wanted.address));
    }
    if !link.up {
        changes.push(LinkChange::Up(index));
    }
}

/// Plans the way to these entries. `links` are our VXLAN links ([`our_links`]).
#[must_use]
pub fn entries(desired: &DesiredEntries, links: &PerFamily<u32>, live: &Live) -> EntryPlan {
    let planner = Planner::new(desired, links, live);
    let mut plan = EntryPlan::default();
    let mut stale = planner.stale();
    for (node, wanted) in &desired.peers {
        let mut changes = planner.changes(Some(node), wanted, &mut plan.in_the_way);
        changes.extend(stale.of_peers.remove(node).into_iter().flatten());
        plan.add(Some(node.clone()), changes);
    }
    let changes = planner.changes(None, &desired.own, &mut plan.in_the_way);
    plan.add(None, changes);
    for changes in stale.of_nobody.into_values() {
        plan.add(None, changes);
    }
    plan
}

impl EntryPlan {
    /// Whether there is nothing to do.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.groups.is_empty()
    }

    fn add(&mut self, node: Option<Box<str>>, changes: Vec<EntryChange>) {
        if !changes.is_empty() {
            self.groups.push(Group { node, changes });
        }
    }
}

/// What goes: routes, then FDB entries, then neighbours, each in a group of what belonged together.
#[derive(Default)]
struct Stale {
    /// What peers no longer have.
    of_peers: BTreeMap<Box<str>, Vec<EntryChange>>,
    /// What belonged to nodes that are gone.
    of_nobody: BTreeMap<Former, Vec<EntryChange>>,
}

/// What held entries together that are to go.
#[derive(PartialEq, Eq, PartialOrd, Ord)]
enum Former {
    /// The base of a subnet, behind a link.
    Base(u32, IpAddr),
    /// A destination.
    Destination(IpNetwork),
    /// A hardware address, behind a link.
    Mac(u32, Mac),
}

struct Planner<'a> {
    live: &'a Live,
    links: Vec<u32>,
    routes: HashMap<IpNetwork, Vec<Route>>,
    neighbours: HashMap<(u32, IpAddr), Neighbour>,
    fdb: HashMap<(u32, Mac), Vec<FdbEntry>>,
    destinations: HashSet<IpNetwork>,
    /// Which peer should have a neighbour, by its link and address.
    bases: HashMap<(u32, IpAddr), &'a str>,
    macs: HashSet<(u32, Mac)>,
}

impl<'a> Planner<'a> {
    fn new(desired: &'a DesiredEntries, links: &PerFamily<u32>, live: &'a Live) -> Self {
        let mut planner = Self {
            live,
            links: links.iter().map(|(_, index)| *index).collect(),
            routes: HashMap::with_capacity(live.routes.len()),
            neighbours: live.neighbours.iter().map(|neighbour| ((neighbour.link, neighbour.ip), *neighbour)).collect(),
            fdb: HashMap::with_capacity(live.fdb.len()),
            destinations: HashSet::new(),
            bases: HashMap::new(),
            macs: HashSet::new(),
        };
        for route in &live.routes {
            planner.routes.entry(route.destination).or_default().push(*route);
        }
        for entry in &live.fdb {
            planner.fdb.entry((entry.link, entry.mac)).or_default().push(*entry);
        }
        let own = desired.own.iter().map(|entry| ("", entry));
        let of_peers = desired.peers.iter().flat_map(|(node, entries)| entries.iter().map(move |entry| (&**node, entry)));
        for (node, entry) in of_peers.chain(own) {
            match entry {
                Entry::Neighbour(neighbour) => drop(planner.bases.insert((neighbour.link, neighbour.ip), node)),
                Entry::Fdb(entry) => drop(planner.macs.insert((entry.link, entry.mac))),
                Entry::Route(route) => drop(planner.destinations.insert(route.destination)),
            }
        }
        planner
    }

    /// The steps to what one peer should have.
    fn changes(&self, node: Option<&str>, wanted: &[Entry], in_the_way: &mut Vec<RouteInTheWay>) -> Vec<EntryChange> {
        let mut changes = Vec::new();
        for entry in wanted {
            match entry {
                Entry::Neighbour(neighbour) => {
                    if self.neighbours.get(&(neighbour.link, neighbour.ip)) != Some(neighbour) {
                        changes.push(entry.put());
                    }
                }
                Entry::Fdb(fdb) => self.fdb_changes(fdb, &mut changes),
                Entry::Route(route) => {
                    let found = self.route_changes(route, wanted, &mut changes);
                    in_the_way.extend(found.into_iter().map(|found| RouteInTheWay { node: node.map(Into::into), wanted: *route, found }));
                }
            }
        }
        changes
    }

    /// One hardware address is at one host: others go. The last one is replaced, so that there is always one.
    fn fdb_changes(&self, wanted: &FdbEntry, changes: &mut Vec<EntryChange>) {
        let there = self.fdb.get(&(wanted.link, wanted.mac)).map(Vec::as_slice).unwrap_or_default();
        if there.contains(wanted) {
            changes.extend(there.iter().filter(|entry| *entry != wanted).map(|entry| EntryChange::NoFdb(*entry)));
        } else {
            changes.extend(there.iter().skip(1).map(|entry| EntryChange::NoFdb(*entry)));
            changes.push(EntryChange::Fdb(*wanted));
        }
    }

    /// The steps to one route; gives those of others that are in the way.
    fn route_changes(&self, wanted: &Route, beside: &[Entry], changes: &mut Vec<EntryChange>) -> Vec<Route> {
        let there = self.routes.get(&wanted.destination).map(Vec::as_slice).unwrap_or_default();
        let (ours, others): (Vec<&Route>, Vec<&Route>) = there.iter().partition(|route| self.is_ours(route, wanted, beside));
        // A route of a higher metric does no harm; and the one that swallows packets is to stand behind all others.
        let harms = |route: &&&Route| route.metric == wanted.metric || route.metric < wanted.metric && !wanted.blackhole;
        let in_the_way: Vec<Route> = others.iter().filter(harms).map(|route| **route).collect();
        let is_there = ours.contains(&wanted);
        let is_blocked = in_the_way.iter().any(|route| route.metric == wanted.metric);
        let replaced = ours.iter().find(|route| !is_there && !is_blocked && route.metric == wanted.metric);
        let mut stale: Vec<Route> =
            ours.iter().filter(|route| **route != wanted && Some(*route) != replaced).map(|route| **route).collect();
        // The kernel takes no IPv6 gateway that a route by another link leads to; so that one has to go first.
        let goes_first = wanted.destination.is_ipv6() && wanted.onlink && ours.iter().any(|route| route.link != wanted.link);
        if goes_first {
            stale.extend(replaced.filter(|route| route.link != wanted.link).map(|route| **route));
            changes.extend(stale.drain(..).map(EntryChange::NoRoute));
        }
        if !is_there && !is_blocked {
            changes.push(EntryChange::Route(*wanted));
        }
        changes.extend(stale.into_iter().map(EntryChange::NoRoute));
        in_the_way
    }

    /// Whether a route to the destination of a desired one is ours to replace: ours by protocol, or one that flannel has left.
    fn is_ours(&self, route: &Route, wanted: &Route, beside: &[Entry]) -> bool {
        let leads_to_host = |entry: &Entry| match entry {
            Entry::Fdb(fdb) => route.gateway == Some(fdb.host),
            Entry::Route(direct) => direct.gateway.is_some() && route.gateway == direct.gateway,
            Entry::Neighbour(_) => false,
        };
        let is_flannels = || self.is_flannels(route) || route.blackhole && wanted.blackhole || beside.iter().any(leads_to_host);
        route.protocol == OUR_PROTOCOL || route.protocol == BOOT_PROTOCOL && is_flannels()
    }

    /// Whether a route leads into one of our links, as flannel makes them.
    fn is_flannels(&self, route: &Route) -> bool {
        route.protocol == BOOT_PROTOCOL && route.link.is_some_and(|link| self.links.contains(&link))
    }

    /// What is ours and not desired. Learned FDB entries and neighbours that are not permanent are the kernel's.
    fn stale(&self) -> Stale {
        let mut stale = Stale::default();
        let mut bases: HashMap<(u32, Mac), IpAddr> = HashMap::new();
        for neighbour in &self.live.neighbours {
            bases.insert((neighbour.link, neighbour.mac), neighbour.ip);
        }
        for route in &self.live.routes {
            let goes = route.protocol == OUR_PROTOCOL || self.is_flannels(route);
            if goes && !self.destinations.contains(&route.destination) {
                let former = match (route.link, route.gateway) {
                    (Some(link), Some(gateway)) if self.links.contains(&link) => Former::Base(link, gateway),
                    _ => Former::Destination(route.destination),
                };
                stale.of_nobody.entry(former).or_default().push(EntryChange::NoRoute(*route));
            }
        }
        for entry in self.live.fdb.iter().filter(|entry| entry.permanent && self.links.contains(&entry.link)) {
            let FdbEntry { link, mac, .. } = *entry;
            if self.macs.contains(&(link, mac)) {
                continue;
            }
            let base = bases.get(&(link, mac));
            // The former hardware address of a peer that has another one now.
            if let Some(node) = base.and_then(|base| self.bases.get(&(link, *base))) {
                stale.of_peers.entry((*node).into()).or_default().push(EntryChange::NoFdb(*entry));
            } else {
                let former = base.map_or(Former::Mac(link, mac), |base| Former::Base(link, *base));
                stale.of_nobody.entry(former).or_default().push(EntryChange::NoFdb(*entry));
            }
        }
        for neighbour in self.live.neighbours.iter().filter(|neighbour| neighbour.permanent && self.links.contains(&neighbour.link)) {
            let key = (neighbour.link, neighbour.ip);
            if !self.bases.contains_key(&key) {
                stale.of_nobody.entry(Former::Base(key.0, key.1)).or_default().push(EntryChange::NoNeighbour(*neighbour));
            }
        }
        stale
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::network::routing::tests::route;

    const LINK: u32 = 7;

    fn mac(n: u8) -> Mac {
        Mac([2, 0, 0, 0, 0, n])
    }

    fn tunnelled(subnet: &str, host: &str, n: u8) -> Vec<Entry> {
        let route = Route {
            protocol: OUR_PROTOCOL,
            ..route(&format!("{subnet} via {} dev {LINK} onlink", subnet.split('/').next().expect("a base")))
        };
        vec![
            Entry::Neighbour(Neighbour { link: LINK, ip: route.destination.network(), mac: mac(n), permanent: true }),
            Entry::Fdb(FdbEntry { link: LINK, mac: mac(n), host: host.parse().expect("an address"), permanent: true }),
            Entry::Route(route),
        ]
    }

    fn desired(peers: &[(&str, Vec<Entry>)]) -> DesiredEntries {
        DesiredEntries {
            peers: peers.iter().map(|(name, entries)| ((*name).into(), entries.clone())).collect(),
            ..DesiredEntries::default()
        }
    }

    fn live(entries: &[Entry], more: &[&str]) -> Live {
        let mut live = Live::default();
        for entry in entries {
            match entry {
                Entry::Neighbour(neighbour) => live.neighbours.push(*neighbour),
                Entry::Fdb(fdb) => live.fdb.push(*fdb),
                Entry::Route(route) => live.routes.push(*route),
            }
        }
        live.routes.extend(more.iter().map(|text| route(text)));
        live
    }

    /// The steps of each group in short.
    fn steps(plan: &EntryPlan) -> Vec<String> {
        let shown = |change: &EntryChange| match change {
            EntryChange::Route(route) => format!("+route {}", route.destination),
            EntryChange::NoRoute(route) => format!("-route {}", route.destination),
            EntryChange::Neighbour(neighbour) => format!("+neighbour {}", neighbour.ip),
            EntryChange::NoNeighbour(neighbour) => format!("-neighbour {}", neighbour.ip),
            EntryChange::Fdb(entry) => format!("+fdb {} {}", entry.mac.0[5], entry.host),
            EntryChange::NoFdb(entry) => format!("-fdb {} {}", entry.mac.0[5], entry.host),
        };
        let group = |group: &Group| {
            let changes: Vec<String> = group.changes.iter().map(shown).collect();
            format!("{}: {}", group.node.as_deref().unwrap_or("nobody"), changes.join(", "))
        };
        plan.groups.iter().map(group).collect()
    }

    fn plan(desired: &DesiredEntries, live: &Live) -> EntryPlan {
        let v6 = live.routes.iter().any(|route| route.destination.is_ipv6());
        let links = if v6 { PerFamily { v4: None, v6: Some(LINK) } } else { PerFamily { v4: Some(LINK), v6: None } };
        entries(desired, &links, live)
    }

    #[test]
    fn what_appears_comes_in_order_and_what_goes_in_reverse() {
        let two = tunnelled("10.244.2.0/24", "192.168.0.2", 2);
        let gone = tunnelled("10.244.9.0/24", "192.168.0.9", 9);
        let want = desired(&[("n2", two.clone())]);
        assert_eq!(
            steps(&plan(&want, &live(&gone, &[]))),
            [
                "n2: +neighbour 10.244.2.0, +fdb 2 192.168.0.2, +route 10.244.2.0/24",
                "nobody: -route 10.244.9.0/24, -fdb 9 192.168.0.9, -neighbour 10.244.9.0"
            ]
        );
        assert!(plan(&want, &live(&two, &["10.244.7.0/24 via 10.0.0.1 dev 2", "0.0.0.0/0 via 10.0.0.1 dev 2 proto 16"])).is_empty());
    }

    #[test]
    fn a_change_of_hardware_address_or_host_replaces() {
        let before = tunnelled("10.244.2.0/24", "192.168.0.2", 2);
        let new_mac = desired(&[("n2", tunnelled("10.244.2.0/24", "192.168.0.2", 3))]);
        assert_eq!(steps(&plan(&new_mac, &live(&before, &[]))), ["n2: +neighbour 10.244.2.0, +fdb 3 192.168.0.2, -fdb 2 192.168.0.2"]);
        let new_host = desired(&[("n2", tunnelled("10.244.2.0/24", "192.168.0.5", 2))]);
        assert_eq!(steps(&plan(&new_host, &live(&before, &[]))), ["n2: +fdb 2 192.168.0.5"]);
        // Two hosts for one hardware address: the wrong one goes, whichever came first.
        let mut twice = live(&before, &[]);
        twice.fdb.push(FdbEntry { host: [192, 168, 0, 5].into(), ..twice.fdb[0] });
        assert_eq!(steps(&plan(&new_host, &twice)), ["n2: -fdb 2 192.168.0.2"]);
    }

    #[test]
    fn what_flannel_left_is_taken_over_or_goes() {
        let two = tunnelled("10.244.2.0/24", "192.168.0.2", 2);
        let want = desired(&[("n2", two.clone())]);
        let by_flannel = live(&two[..2], &["10.244.2.0/24 via 10.244.2.0 dev 7 onlink", "10.244.8.0/24 via 10.244.8.0 dev 7 onlink"]);
        assert_eq!(steps(&plan(&want, &by_flannel)), ["n2: +route 10.244.2.0/24", "nobody: -route 10.244.8.0/24"]);
        let direct = live(&two[..2], &["10.244.2.0/24 via 192.168.0.2 dev 2"]);
        assert_eq!(steps(&plan(&want, &direct)), ["n2: +route 10.244.2.0/24"]);
    }

    #[test]
    fn a_route_of_somebody_elses_is_named_and_stays() {
        let two = tunnelled("10.244.2.0/24", "192.168.0.2", 2);
        let want = desired(&[("n2", two.clone())]);
        for (there, blocked, named) in [
            ("10.244.2.0/24 via 10.0.0.1 dev 2", true, true),
            ("10.244.2.0/24 via 10.0.0.1 dev 2 proto 186", true, true),
            ("10.244.2.0/24 via 10.0.0.1 dev 2 metric 50", false, false),
        ] {
            let plan = plan(&want, &live(&two[..2], &[there]));
            assert_eq!((plan.is_empty(), plan.in_the_way.len()), (blocked, usize::from(named)), "{there}");
            if named {
                let text = plan.in_the_way[0].to_string();
                assert!(
                    text.starts_with("the route to 10.244.2.0/24, where the pods of node n2 are, is somebody else's and leads by 10.0.0.1"),
                    "{text}"
                );
            }
        }
    }

    #[test]
    fn an_ipv6_route_by_another_link_goes_first() {
        let two = tunnelled("fd10:244:2::/64", "fd00::2", 2);
        let want = desired(&[("n2", two.clone())]);
        let direct = live(&two[..2], &["fd10:244:2::/64 via fd00::2 dev 2 proto 83"]);
        assert_eq!(steps(&plan(&want, &direct)), ["n2: -route fd10:244:2::/64, +route fd10:244:2::/64"]);
    }

    #[test]
    fn the_route_that_swallows_stands_behind_the_bridges() {
        let swallow = Route { protocol: OUR_PROTOCOL, ..route("10.244.1.0/24 blackhole metric 4096") };
        let want = DesiredEntries { own: vec![Entry::Route(swallow)], ..DesiredEntries::default() };
        let plan = plan(&want, &live(&[], &["10.244.1.0/24 dev 4 proto 2", "10.244.1.0/24 blackhole"]));
        assert_eq!((steps(&plan), plan.in_the_way), (vec!["nobody: +route 10.244.1.0/24, -route 10.244.1.0/24".to_owned()], vec![]));
    }
}
