//! Plans the steps from the live state of the kernel to the desired one, in an order that avoids packet loss [flannel 5.3] [flannel 6]
//! [flannel 12].
//!
//! Links are planned first ([`links`]). A new link has no index yet, so the kernel is dumped again after these steps. Entries are planned in
//! groups, one for each peer ([`entries`]), so that a failed step delays no other peer. Our entries that are not desired are deleted. Routes
//! of other programs stay, except those with the destination and metric of one of ours ([`super::foreign`]).

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::net::IpAddr;

use ipnetwork::IpNetwork;

use super::desired::{DesiredEntries, Entry};
use super::foreign::{ForeignRoute, is_connected};
pub use super::link_plan::{LinkInTheWay, LinkPlan, links, our_links};
use crate::cluster::families::PerFamily;
use crate::netlink::entry::{BOOT_PROTOCOL, EntryChange, FdbEntry, Live, Neighbour, OUR_PROTOCOL, Route, RouteKind};
use crate::netlink::mac::Mac;

/// The steps for the entries, and the routes of other programs that concern them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct EntryPlan {
    /// The steps, in independent groups.
    pub groups: Vec<EntryGroup>,
    /// Routes of other programs with the destination and metric of one of ours. The steps replace or delete them.
    pub replaced: Vec<ForeignRoute>,
    /// Routes of other programs that the kernel prefers to ours, and routes of the kernel that displace ours. They are not changed.
    pub in_the_way: Vec<ForeignRoute>,
}

/// Steps that are applied together. If one fails, the whole group is tried again later.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct EntryGroup {
    /// The peer that they are for; `None` for entries of no peer.
    pub node: Option<Box<str>>,
    /// The steps.
    pub changes: Vec<EntryChange>,
}

/// Plans the steps to the desired entries. `links` are our VXLAN links ([`our_links`]).
#[must_use]
pub fn entries(desired: &DesiredEntries, links: &PerFamily<u32>, live: &Live) -> EntryPlan {
    let planner = Planner::new(desired, links, live);
    let mut plan = EntryPlan::default();
    let mut stale = planner.stale();
    for (node, entries) in &desired.peers {
        let mut changes = planner.changes(Some(node), entries, &mut plan);
        changes.extend(stale.of_peers.remove(node).into_iter().flatten());
        plan.add(Some(node.clone()), changes);
    }
    let changes = planner.changes(None, &desired.own, &mut plan);
    plan.add(None, changes);
    plan.in_the_way.extend(planner.more_specific());
    for changes in stale.of_former.into_values() {
        plan.add(None, changes);
    }
    plan
}

impl EntryPlan {
    /// Returns true if there are no steps.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.groups.is_empty()
    }

    /// Removes the steps for routes to these destinations.
    pub(crate) fn defer(&mut self, destinations: &HashSet<IpNetwork>) {
        let is_deferred = |change: &EntryChange| match change {
            EntryChange::Route(route) | EntryChange::NoRoute(route) => destinations.contains(&route.destination),
            _ => false,
        };
        for group in &mut self.groups {
            group.changes.retain(|change| !is_deferred(change));
        }
        self.groups.retain(|group| !group.changes.is_empty());
    }

    /// Adds a group, unless it is empty.
    fn add(&mut self, node: Option<Box<str>>, changes: Vec<EntryChange>) {
        if !changes.is_empty() {
            self.groups.push(EntryGroup { node, changes });
        }
    }
}

/// Deletions of stale entries: first routes, then FDB entries, then neighbours. Entries that belonged to one peer form a group.
#[derive(Default)]
struct Stale {
    /// Stale entries of existing peers.
    of_peers: BTreeMap<Box<str>, Vec<EntryChange>>,
    /// Stale entries of former peers.
    of_former: BTreeMap<Former, Vec<EntryChange>>,
}

/// The key that groups stale entries of one former peer.
#[derive(PartialEq, Eq, PartialOrd, Ord)]
enum Former {
    /// The network address of a subnet, on this link.
    Base(u32, IpAddr),
    /// The destination of a route.
    Destination(IpNetwork),
    /// A hardware address, on this link.
    Mac(u32, Mac),
}

/// Live and desired entries, indexed for planning.
struct Planner<'a> {
    live: &'a Live,
    links: Vec<u32>,
    routes: HashMap<IpNetwork, Vec<Route>>,
    neighbours: HashMap<(u32, IpAddr), Neighbour>,
    fdb: HashMap<(u32, Mac), Vec<FdbEntry>>,
    /// Desired routes by destination, each with the name of its peer; the name is empty for routes of no peer.
    destinations: HashMap<IpNetwork, (&'a str, Route)>,
    /// The peer of each desired neighbour, by link and address.
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
            destinations: HashMap::new(),
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
                Entry::Route(route) => drop(planner.destinations.insert(route.destination, (node, *route))),
            }
        }
        planner
    }

    /// The steps to the desired entries of one peer. Routes of other programs are added to the plan.
    fn changes(&self, node: Option<&str>, entries: &[Entry], plan: &mut EntryPlan) -> Vec<EntryChange> {
        let mut changes = Vec::new();
        for entry in entries {
            match entry {
                Entry::Neighbour(neighbour) => {
                    if self.neighbours.get(&(neighbour.link, neighbour.ip)) != Some(neighbour) {
                        changes.push(entry.change());
                    }
                }
                Entry::Fdb(fdb) => self.fdb_changes(fdb, &mut changes),
                Entry::Route(route) => {
                    let (replaced, in_the_way) = self.route_changes(route, entries, &mut changes);
                    let named = |found: Route| ForeignRoute { node: node.map(Into::into), desired: *route, found };
                    plan.replaced.extend(replaced.into_iter().map(named));
                    plan.in_the_way.extend(in_the_way.into_iter().map(named));
                }
            }
        }
        changes
    }

    /// The steps to one FDB entry. A hardware address belongs to one host, so other entries are deleted. The last one is replaced, so that there
    /// is always an entry.
    fn fdb_changes(&self, desired: &FdbEntry, changes: &mut Vec<EntryChange>) {
        let there = self.fdb.get(&(desired.link, desired.mac)).map(Vec::as_slice).unwrap_or_default();
        if there.contains(desired) {
            changes.extend(there.iter().filter(|entry| *entry != desired).map(|entry| EntryChange::NoFdb(*entry)));
        } else {
            changes.extend(there.iter().skip(1).map(|entry| EntryChange::NoFdb(*entry)));
            changes.push(EntryChange::Fdb(*desired));
        }
    }

    /// The steps to one route. Gives the routes of other programs that the steps replace, and those that displace ours and stay.
    fn route_changes(&self, desired: &Route, beside: &[Entry], changes: &mut Vec<EntryChange>) -> (Vec<Route>, Vec<Route>) {
        let there = self.routes.get(&desired.destination).map(Vec::as_slice).unwrap_or_default();
        let (ours, others): (Vec<&Route>, Vec<&Route>) = there.iter().partition(|route| self.is_ours(route, desired, beside));
        let is_last = desired.kind == RouteKind::Blackhole;
        // A route with a higher metric is not preferred to ours. Our blackhole route has to be the last one, so a lower metric is right.
        let is_better = |route: &Route| route.metric < desired.metric && !is_last;
        let same: Vec<Route> = others.iter().filter(|route| route.metric == desired.metric).map(|route| **route).collect();
        let is_blocked = same.iter().any(is_connected);
        let better = others.iter().map(|route| **route).filter(is_better);
        let (foreign, in_the_way) =
            if is_blocked { (Vec::new(), same.into_iter().chain(better).collect()) } else { (same, better.collect()) };

        let is_there = ours.contains(&desired);
        // The kernel replaces the first route with the same destination and metric.
        let first = there.iter().find(|route| !is_there && !is_blocked && route.metric == desired.metric);
        let is_first = |route: &Route| Some(route) == first;
        let mut stale: Vec<Route> = ours.iter().map(|route| **route).filter(|route| route != desired && !is_first(route)).collect();
        // The kernel replaces an IPv6 route with one next hop only by another one with one next hop. So routes of other programs are deleted first.
        let is_v6 = desired.destination.is_ipv6();
        let mut before: Vec<Route> = foreign.iter().copied().filter(|route| is_v6 || !is_first(route)).collect();
        // The kernel refuses an IPv6 gateway that is routed over another link. So such a route has to be deleted first.
        if is_v6 && desired.onlink && ours.iter().any(|route| route.link != desired.link) {
            before.append(&mut stale);
            before.extend(ours.iter().map(|route| **route).filter(|route| is_first(route) && route.link != desired.link));
        }
        changes.extend(before.into_iter().map(EntryChange::NoRoute));
        if !is_there && !is_blocked {
            changes.push(EntryChange::Route(*desired));
        }
        changes.extend(stale.into_iter().map(EntryChange::NoRoute));
        (foreign, in_the_way)
    }

    /// Routes of other programs to a part of a peer's subnet. The kernel prefers them, because they are more specific.
    fn more_specific(&self) -> Vec<ForeignRoute> {
        let lengths: BTreeSet<u8> = self.destinations.keys().map(IpNetwork::prefix).collect();
        let of_peer = |route: &Route| {
            let within = |length: &u8| {
                let around = IpNetwork::new(route.destination.ip(), *length).ok()?;
                let around = IpNetwork::new(around.network(), *length).ok()?;
                self.destinations.get(&around).filter(|(node, _)| !node.is_empty())
            };
            lengths.range(..route.destination.prefix()).rev().find_map(within)
        };
        let is_foreign = |route: &&Route| route.protocol != OUR_PROTOCOL && !self.is_flannels(route);
        let found =
            |route: &Route| of_peer(route).map(|(node, ours)| ForeignRoute { node: Some((*node).into()), desired: *ours, found: *route });
        self.live.routes.iter().filter(is_foreign).filter_map(found).collect()
    }

    /// Returns true if a route to the destination of a desired one may be replaced: it has our protocol, or flannel created it.
    fn is_ours(&self, route: &Route, desired: &Route, beside: &[Entry]) -> bool {
        let leads_to_host = |entry: &Entry| match entry {
            Entry::Fdb(fdb) => route.gateway == Some(fdb.host),
            Entry::Route(direct) => direct.gateway.is_some() && route.gateway == direct.gateway,
            Entry::Neighbour(_) => false,
        };
        let is_flannels = || {
            self.is_flannels(route)
                || route.kind == RouteKind::Blackhole && desired.kind == RouteKind::Blackhole
                || beside.iter().any(leads_to_host)
        };
        route.protocol == OUR_PROTOCOL || route.protocol == BOOT_PROTOCOL && is_flannels()
    }

    /// Returns true if flannel created the route: it leads into one of our links and has no route protocol.
    fn is_flannels(&self, route: &Route) -> bool {
        route.protocol == BOOT_PROTOCOL && route.link.is_some_and(|link| self.links.contains(&link))
    }

    /// Our entries that are not desired. Learned FDB entries and neighbours that are not permanent belong to the kernel and stay.
    fn stale(&self) -> Stale {
        let mut stale = Stale::default();
        let mut bases: HashMap<(u32, Mac), IpAddr> = HashMap::new();
        for neighbour in &self.live.neighbours {
            bases.insert((neighbour.link, neighbour.mac), neighbour.ip);
        }
        for route in &self.live.routes {
            let is_ours = route.protocol == OUR_PROTOCOL || self.is_flannels(route);
            if is_ours && !self.destinations.contains_key(&route.destination) {
                let former = match (route.link, route.gateway) {
                    (Some(link), Some(gateway)) if self.links.contains(&link) => Former::Base(link, gateway),
                    _ => Former::Destination(route.destination),
                };
                stale.of_former.entry(former).or_default().push(EntryChange::NoRoute(*route));
            }
        }
        for entry in self.live.fdb.iter().filter(|entry| entry.permanent && self.links.contains(&entry.link)) {
            let FdbEntry { link, mac, .. } = *entry;
            if self.macs.contains(&(link, mac)) {
                continue;
            }
            let base = bases.get(&(link, mac));
            // The peer has a new hardware address; this entry has the former one.
            if let Some(node) = base.and_then(|base| self.bases.get(&(link, *base))) {
                stale.of_peers.entry((*node).into()).or_default().push(EntryChange::NoFdb(*entry));
            } else {
                let former = base.map_or(Former::Mac(link, mac), |base| Former::Base(link, *base));
                stale.of_former.entry(former).or_default().push(EntryChange::NoFdb(*entry));
            }
        }
        for neighbour in self.live.neighbours.iter().filter(|neighbour| neighbour.permanent && self.links.contains(&neighbour.link)) {
            let key = (neighbour.link, neighbour.ip);
            if !self.bases.contains_key(&key) {
                stale.of_former.entry(Former::Base(key.0, key.1)).or_default().push(EntryChange::NoNeighbour(*neighbour));
            }
        }
        stale
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pod_network::routing::tests::route;

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
        let group = |group: &EntryGroup| {
            let changes: Vec<String> = group.changes.iter().map(shown).collect();
            format!("{}: {}", group.node.as_deref().unwrap_or("no peer"), changes.join(", "))
        };
        plan.groups.iter().map(group).collect()
    }

    fn plan(desired: &DesiredEntries, live: &Live) -> EntryPlan {
        let v6 = live.routes.iter().any(|route| route.destination.is_ipv6());
        let links = if v6 { PerFamily { v4: None, v6: Some(LINK) } } else { PerFamily { v4: Some(LINK), v6: None } };
        entries(desired, &links, live)
    }

    #[test]
    fn entries_are_added_in_order_and_deleted_in_reverse() {
        let two = tunnelled("10.244.2.0/24", "192.168.0.2", 2);
        let former = tunnelled("10.244.9.0/24", "192.168.0.9", 9);
        let want = desired(&[("n2", two.clone())]);
        assert_eq!(
            steps(&plan(&want, &live(&former, &[]))),
            [
                "n2: +neighbour 10.244.2.0, +fdb 2 192.168.0.2, +route 10.244.2.0/24",
                "no peer: -route 10.244.9.0/24, -fdb 9 192.168.0.9, -neighbour 10.244.9.0"
            ]
        );
        assert!(plan(&want, &live(&two, &["10.244.7.0/24 via 10.0.0.1 dev 2", "0.0.0.0/0 via 10.0.0.1 dev 2 proto 16"])).is_empty());
    }

    #[test]
    fn a_new_hardware_address_or_host_replaces_the_entry() {
        let before = tunnelled("10.244.2.0/24", "192.168.0.2", 2);
        let new_mac = desired(&[("n2", tunnelled("10.244.2.0/24", "192.168.0.2", 3))]);
        assert_eq!(steps(&plan(&new_mac, &live(&before, &[]))), ["n2: +neighbour 10.244.2.0, +fdb 3 192.168.0.2, -fdb 2 192.168.0.2"]);
        let new_host = desired(&[("n2", tunnelled("10.244.2.0/24", "192.168.0.5", 2))]);
        assert_eq!(steps(&plan(&new_host, &live(&before, &[]))), ["n2: +fdb 2 192.168.0.5"]);
        // Two hosts for one hardware address: the wrong entry is deleted, also if it is the first.
        let mut twice = live(&before, &[]);
        twice.fdb.push(FdbEntry { host: [192, 168, 0, 5].into(), ..twice.fdb[0] });
        assert_eq!(steps(&plan(&new_host, &twice)), ["n2: -fdb 2 192.168.0.2"]);
    }

    #[test]
    fn routes_of_flannel_are_replaced_or_deleted() {
        let two = tunnelled("10.244.2.0/24", "192.168.0.2", 2);
        let want = desired(&[("n2", two.clone())]);
        let by_flannel = live(&two[..2], &["10.244.2.0/24 via 10.244.2.0 dev 7 onlink", "10.244.8.0/24 via 10.244.8.0 dev 7 onlink"]);
        assert_eq!(steps(&plan(&want, &by_flannel)), ["n2: +route 10.244.2.0/24", "no peer: -route 10.244.8.0/24"]);
        let direct = live(&two[..2], &["10.244.2.0/24 via 192.168.0.2 dev 2"]);
        assert_eq!(steps(&plan(&want, &direct)), ["n2: +route 10.244.2.0/24"]);
    }

    #[test]
    fn a_foreign_route_in_place_of_ours_is_replaced() {
        let two = tunnelled("10.244.2.0/24", "192.168.0.2", 2);
        let want = desired(&[("n2", two.clone())]);
        for there in [
            "10.244.2.0/24 via 10.0.0.1 dev 2",
            "10.244.2.0/24 via 10.0.0.1 dev 2 proto 4",
            "10.244.2.0/24 via 10.0.0.1 dev 2 proto 186",
            "10.244.2.0/24 dev 2",
            // With a gateway it is not the route of an address.
            "10.244.2.0/24 via 10.0.0.1 dev 2 proto 2",
            "10.244.2.0/24 blackhole",
            "10.244.2.0/24 unreachable proto 4",
        ] {
            let plan = plan(&want, &live(&two[..2], &[there]));
            assert_eq!(steps(&plan), ["n2: +route 10.244.2.0/24"], "{there}");
            assert_eq!((plan.replaced[0].found, plan.in_the_way), (route(there), vec![]), "{there}");
        }
        // Our route exists beside one of another program; or two routes of other programs exist.
        let beside = plan(&want, &live(&two, &["10.244.2.0/24 via 10.0.0.1 dev 2 proto 4"]));
        assert_eq!((steps(&beside), beside.replaced.len()), (vec!["n2: -route 10.244.2.0/24".to_owned()], 1));
        let twice = plan(&want, &live(&two[..2], &["10.244.2.0/24 via 10.0.0.1 dev 2", "10.244.2.0/24 unreachable"]));
        assert_eq!((steps(&twice), twice.replaced.len()), (vec!["n2: -route 10.244.2.0/24, +route 10.244.2.0/24".to_owned()], 2));
        // IPv6: the route has our metric, and is deleted first.
        let two = tunnelled("fd10:244:2::/64", "fd00::2", 2);
        let want = desired(&[("n2", two.clone())]);
        let v6 = plan(&want, &live(&two[..2], &["fd10:244:2::/64 via fd00::9 dev 2 proto 4"]));
        assert_eq!((steps(&v6), v6.replaced.len()), (vec!["n2: -route fd10:244:2::/64, +route fd10:244:2::/64".to_owned()], 1));
    }

    #[test]
    fn deferred_destinations_are_left_alone() {
        let [two, three] = [2, 3].map(|n| tunnelled(&format!("10.244.{n}.0/24"), &format!("192.168.0.{n}"), n));
        let want = desired(&[("n2", two.clone()), ("n3", three)]);
        let mut plan = plan(&want, &live(&two[..2], &["10.244.2.0/24 via 10.0.0.1 dev 2"]));
        plan.defer(&HashSet::from(["10.244.2.0/24".parse().expect("a CIDR")]));
        assert_eq!(steps(&plan), ["n3: +neighbour 10.244.3.0, +fdb 3 192.168.0.3, +route 10.244.3.0/24"]);
    }

    #[test]
    fn routes_that_the_kernel_prefers_are_reported_and_stay() {
        let two = tunnelled("10.244.2.0/24", "192.168.0.2", 2);
        let want = desired(&[("n2", two.clone())]);
        for (there, is_blocked, is_named) in [
            // A link has an address in the peer's subnet.
            ("10.244.2.0/24 dev 2 proto 2", true, true),
            ("10.244.2.0/24 via 10.0.0.1 dev 2 metric 50", false, false),
            ("10.244.2.128/25 via 10.0.0.1 dev 2", false, true),
            ("10.244.3.0/24 via 10.0.0.1 dev 2", false, false),
            ("10.244.0.0/16 via 10.0.0.1 dev 2", false, false),
        ] {
            let plan = plan(&want, &live(&two[..2], &[there]));
            assert_eq!((plan.is_empty(), plan.in_the_way.len(), plan.replaced.len()), (is_blocked, usize::from(is_named), 0), "{there}");
        }
        let two = tunnelled("fd10:244:2::/64", "fd00::2", 2);
        let plan = plan(&desired(&[("n2", two.clone())]), &live(&two, &["fd10:244:2::/64 via fd00::9 dev 2 metric 100"]));
        assert_eq!((steps(&plan), plan.in_the_way.len(), plan.replaced.len()), (Vec::<String>::new(), 1, 0));
    }

    #[test]
    fn an_ipv6_route_over_another_link_is_deleted_first() {
        let two = tunnelled("fd10:244:2::/64", "fd00::2", 2);
        let want = desired(&[("n2", two.clone())]);
        let direct = live(&two[..2], &["fd10:244:2::/64 via fd00::2 dev 2 proto 83"]);
        assert_eq!(steps(&plan(&want, &direct)), ["n2: -route fd10:244:2::/64, +route fd10:244:2::/64"]);
    }

    #[test]
    fn the_blackhole_route_has_a_higher_metric_than_the_bridges() {
        let blackhole = Route { protocol: OUR_PROTOCOL, ..route("10.244.1.0/24 blackhole metric 4096") };
        let want = DesiredEntries { own: vec![Entry::Route(blackhole)], ..DesiredEntries::default() };
        let plan = plan(&want, &live(&[], &["10.244.1.0/24 dev 4 proto 2", "10.244.1.0/24 blackhole"]));
        assert_eq!((steps(&plan), plan.in_the_way), (vec!["no peer: +route 10.244.1.0/24, -route 10.244.1.0/24".to_owned()], vec![]));
    }
}
