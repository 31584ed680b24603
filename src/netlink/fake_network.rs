//! A fake kernel for tests and benches: links, routes, neighbours and FDB entries in memory.

use std::collections::BTreeMap;
use std::fmt;
use std::net::IpAddr;
use std::sync::{Mutex, MutexGuard, PoisonError};

use ipnetwork::IpNetwork;
use nix::errno::Errno;

use super::entry::{EntryChange, FdbEntry, LinkChange, Live, Neighbour, Route, RouteKind};
use super::link::{Link, LinkAddress, LinkKind, LinkNames, Scope, Vxlan};
use super::mac::Mac;

use super::encode;
use super::error::{Cause, NetlinkError};
use super::kernel::{FIND_ROUTE, NetworkKernel, check_name};

/// The port of a VXLAN link that is created without one.
const DEFAULT_PORT: u16 = 8472;

/// A recorded call.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum KernelCall {
    /// [`NetworkKernel::dump`].
    Dump,
    /// [`NetworkKernel::links`].
    Links,
    /// One change of [`NetworkKernel::change_entries`].
    Entry(EntryChange),
    /// [`NetworkKernel::change_link`].
    Link(LinkChange),
    /// [`NetworkKernel::route_to`].
    RouteTo(IpAddr),
}

/// A fake kernel. Its tables have the same keys as the real kernel's. It applies changes, records calls, and fails on demand. Unlike the
/// real kernel, it adds no routes and neighbours of its own, and does not check whether a next hop is reachable.
#[derive(Debug, Default)]
pub struct FakeNetwork(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    links: BTreeMap<u32, Link>,
    /// The highest index that a link has had.
    last: u32,
    /// By destination and metric.
    routes: BTreeMap<(IpNetwork, u32), Route>,
    neighbours: BTreeMap<(u32, IpAddr), Neighbour>,
    fdb: BTreeMap<(u32, Mac), FdbEntry>,
    faults: Vec<Fault>,
    calls: Vec<KernelCall>,
}

struct Fault {
    times: usize,
    errno: Errno,
    hits: Box<dyn Fn(&KernelCall) -> bool + Send>,
}

impl fmt::Debug for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Fault").field("times", &self.times).field("errno", &self.errno).finish_non_exhaustive()
    }
}

impl FakeNetwork {
    /// A fake kernel with these tables.
    #[must_use]
    pub fn new(live: Live) -> Self {
        let fake = Self::default();
        fake.lock().put(live);
        fake
    }

    /// Makes the next `times` calls that `hits` selects fail with this error, without any effect.
    pub fn fail(&self, times: usize, errno: Errno, hits: impl Fn(&KernelCall) -> bool + Send + 'static) {
        self.lock().faults.push(Fault { times, errno, hits: Box::new(hits) });
    }

    /// Changes the tables as another program would. No call is recorded.
    pub fn meddle(&self, with: impl FnOnce(&mut Live)) {
        let mut state = self.lock();
        let mut live = state.live();
        with(&mut live);
        state.put(live);
    }

    /// Returns the tables. No call is recorded, and it never fails.
    #[must_use]
    pub fn live(&self) -> Live {
        self.lock().live()
    }

    /// Takes the calls since the last time, in order, failed calls included.
    #[must_use]
    pub fn take_calls(&self) -> Vec<KernelCall> {
        std::mem::take(&mut self.lock().calls)
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl NetworkKernel for FakeNetwork {
    fn dump(&self) -> Result<Live, NetlinkError> {
        let mut state = self.lock();
        state.called(KernelCall::Dump).map_err(NetlinkError::listing("links"))?;
        Ok(state.live())
    }

    fn links(&self) -> Result<Vec<Link>, NetlinkError> {
        let mut state = self.lock();
        state.called(KernelCall::Links).map_err(NetlinkError::listing("links"))?;
        Ok(state.links.values().cloned().collect())
    }

    fn change_entries(&self, changes: &[EntryChange], names: &LinkNames) -> Vec<Result<(), NetlinkError>> {
        let mut state = self.lock();
        let mut one = |change: &EntryChange| {
            state
                .called(KernelCall::Entry(*change))
                .and_then(|()| state.change(change))
                .map_err(|cause| NetlinkError::entry(change, names, cause))
        };
        changes.iter().map(&mut one).collect()
    }

    fn change_link(&self, change: &LinkChange) -> Result<(), NetlinkError> {
        let mut state = self.lock();
        let outcome = state.called(KernelCall::Link(change.clone())).and_then(|()| state.change_link(change));
        outcome.map_err(|cause| NetlinkError::link(change, cause))
    }

    fn route_to(&self, ip: IpAddr) -> Result<Route, NetlinkError> {
        let mut state = self.lock();
        let outcome = state.called(KernelCall::RouteTo(ip)).and_then(|()| state.route_to(ip));
        outcome.map_err(|cause| NetlinkError { call: FIND_ROUTE, object: ip.to_string(), cause })
    }
}

impl State {
    fn live(&self) -> Live {
        Live {
            links: self.links.values().cloned().collect(),
            routes: self.routes.values().copied().collect(),
            neighbours: self.neighbours.values().copied().collect(),
            fdb: self.fdb.values().copied().collect(),
        }
    }

    fn put(&mut self, live: Live) {
        self.links = live.links.into_iter().map(|link| (link.index, link)).collect();
        self.last = self.last.max(self.links.keys().next_back().copied().unwrap_or(0));
        self.routes = live.routes.into_iter().map(|route| ((route.destination, route.metric), route)).collect();
        self.neighbours = live.neighbours.into_iter().map(|neighbour| ((neighbour.link, neighbour.ip), neighbour)).collect();
        self.fdb = live.fdb.into_iter().map(|entry| ((entry.link, entry.mac), entry)).collect();
    }

    /// Records a call, and returns the error of [`FakeNetwork::fail`] if it applies.
    fn called(&mut self, call: KernelCall) -> Result<(), Cause> {
        let fault = self.faults.iter_mut().find(|fault| fault.times > 0 && (fault.hits)(&call));
        self.calls.push(call);
        fault.map_or(Ok(()), |fault| {
            fault.times -= 1;
            Err(fault.errno.into())
        })
    }

    fn change(&mut self, change: &EntryChange) -> Result<(), Cause> {
        match change {
            EntryChange::Route(route) => {
                if let Some(link) = route.link
                    && !self.links.get(&link).ok_or(Errno::ENODEV)?.up
                {
                    return Err(Errno::ENETDOWN.into());
                }
                let metric = encode::metric(&route.destination, route.metric);
                self.routes.insert((route.destination, metric), Route { metric, ..*route });
            }
            EntryChange::NoRoute(route) => {
                let found = self.routes.iter().find(|(_, there)| matches(route, there)).map(|(key, _)| *key);
                found.map(|key| self.routes.remove(&key));
            }
            EntryChange::Neighbour(neighbour) => {
                self.links.get(&neighbour.link).ok_or(Errno::ENODEV)?;
                self.neighbours.insert((neighbour.link, neighbour.ip), *neighbour);
            }
            EntryChange::NoNeighbour(neighbour) => {
                self.neighbours.remove(&(neighbour.link, neighbour.ip));
            }
            EntryChange::Fdb(entry) => {
                let link = self.links.get(&entry.link).ok_or(Errno::ENODEV)?;
                let LinkKind::Vxlan(vxlan) = link.kind else { return Err(Errno::EOPNOTSUPP.into()) };
                if vxlan.local.is_some_and(|local| local.is_ipv4() != entry.host.is_ipv4()) {
                    return Err(Errno::EAFNOSUPPORT.into());
                }
                self.fdb.insert((entry.link, entry.mac), *entry);
            }
            EntryChange::NoFdb(entry) => {
                let key = (entry.link, entry.mac);
                if self.fdb.get(&key).is_some_and(|there| there.host == entry.host) {
                    self.fdb.remove(&key);
                }
            }
        }
        Ok(())
    }

    fn change_link(&mut self, change: &LinkChange) -> Result<(), Cause> {
        match change {
            LinkChange::CreateVxlan { name, vxlan, mac, mtu } => self.create_vxlan(name, *vxlan, *mac, *mtu)?,
            LinkChange::Delete(id) => self.delete(id.index),
            LinkChange::Mtu(id, mtu) => self.link(id.index)?.mtu = *mtu,
            LinkChange::Mac(id, mac) => self.link(id.index)?.mac = Some(*mac),
            LinkChange::Up(id) => self.link(id.index)?.up = true,
            LinkChange::AddAddress(id, net) => {
                let address = LinkAddress { net: *net, scope: Scope::Universe, permanent: true, temporary: false, deprecated: false };
                let addresses = &mut self.link(id.index)?.addresses;
                addresses.retain(|there| there.net != *net);
                addresses.push(address);
            }
            LinkChange::DeleteAddress(id, net) => {
                if let Ok(link) = self.link(id.index) {
                    link.addresses.retain(|there| there.net != *net);
                }
            }
            LinkChange::ChecksumOffload(id, _) => self.link(id.index).map(|_| ())?,
        }
        Ok(())
    }

    fn link(&mut self, index: u32) -> Result<&mut Link, Cause> {
        self.links.get_mut(&index).ok_or(Errno::ENODEV.into())
    }

    fn create_vxlan(&mut self, name: &str, vxlan: Vxlan, mac: Mac, mtu: u32) -> Result<(), Cause> {
        check_name(name)?;
        let vxlan = Vxlan { port: if vxlan.port == 0 { DEFAULT_PORT } else { vxlan.port }, ..vxlan };
        let v6 = vxlan.local.is_some_and(|local| local.is_ipv6());
        let same =
            |other: &Vxlan| (other.vni, other.port) == (vxlan.vni, vxlan.port) && other.local.is_some_and(|local| local.is_ipv6()) == v6;
        if self.links.values().any(|link| link.name == name || matches!(&link.kind, LinkKind::Vxlan(other) if same(other))) {
            return Err(Errno::EEXIST.into());
        }
        let room = match vxlan.underlay {
            // The outer headers also need room.
            Some(underlay) => self.link(underlay)?.mtu.saturating_sub(if v6 { 70 } else { 50 }),
            None => mtu,
        };
        self.last += 1;
        let (index, kind) = (self.last, LinkKind::Vxlan(vxlan));
        let link =
            Link { index, name: name.to_owned(), mac: Some(mac), mtu: mtu.min(room), up: false, master: None, kind, addresses: Vec::new() };
        self.links.insert(index, link);
        Ok(())
    }

    /// Deletes a link with its entries and with the VXLAN links over it.
    fn delete(&mut self, index: u32) {
        self.links.remove(&index);
        self.routes.retain(|_, route| route.link != Some(index));
        self.neighbours.retain(|(link, _), _| *link != index);
        self.fdb.retain(|(link, _), _| *link != index);
        for link in self.links.values_mut().filter(|link| link.master == Some(index)) {
            link.master = None;
        }
        let over = |link: &&Link| matches!(&link.kind, LinkKind::Vxlan(vxlan) if vxlan.underlay == Some(index));
        let above: Vec<u32> = self.links.values().filter(over).map(|link| link.index).collect();
        for index in above {
            self.delete(index);
        }
    }

    /// Selects the route with the longest prefix, then the one with the lowest metric.
    fn route_to(&self, ip: IpAddr) -> Result<Route, Cause> {
        let best = self.routes.values().filter(|route| route.destination.contains(ip));
        let best = best.min_by_key(|route| (u8::MAX - route.destination.prefix(), route.metric)).ok_or(Errno::ENETUNREACH)?;
        if best.kind != RouteKind::Unicast {
            return Err(Errno::EINVAL.into());
        }
        let usable = |address: &&LinkAddress| address.net.is_ipv4() == ip.is_ipv4() && address.scope == Scope::Universe;
        let addresses = best.link.and_then(|link| self.links.get(&link)).map_or(&[][..], |link| &link.addresses);
        let source = best.source.or_else(|| addresses.iter().find(usable).map(|address| address.net.ip()));
        Ok(Route { destination: ip.into(), source, metric: 0, ..*best })
    }
}

/// Returns true if a request to delete a route matches this route. A field that the request leaves out matches any value, and so does
/// metric 0 of IPv4.
fn matches(request: &Route, route: &Route) -> bool {
    let metric = encode::metric(&request.destination, request.metric);
    request.destination == route.destination
        && request.kind == route.kind
        && request.protocol == route.protocol
        && (metric == 0 || metric == route.metric)
        && (request.link.is_none() || request.link == route.link)
        && (request.gateway.is_none() || request.gateway == route.gateway)
        && (request.source.is_none() || request.source == route.source)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::netlink::link::LinkId;

    const VXLAN: Vxlan = Vxlan { underlay: Some(2), ..Vxlan::new(1, 0) };

    fn node() -> FakeNetwork {
        let eth0 = Link {
            index: 2,
            name: "eth0".to_owned(),
            mac: Some(Mac([2, 0, 0, 0, 0, 2])),
            mtu: 1500,
            up: true,
            master: None,
            kind: LinkKind::Other("veth".to_owned()),
            addresses: Vec::new(),
        };
        FakeNetwork::new(Live { links: vec![eth0], ..Live::default() })
    }

    fn create(local: &str, name: &str) -> LinkChange {
        let vxlan = Vxlan { local: local.parse().ok(), ..VXLAN };
        LinkChange::CreateVxlan { name: name.to_owned(), vxlan, mac: Mac([2, 0, 0, 0, 0, 9]), mtu: 1450 }
    }

    fn eth0() -> LinkId {
        LinkId { index: 2, name: "eth0".into() }
    }

    #[test]
    fn vxlan_links_leave_room_for_headers_and_are_deleted_with_their_underlay() {
        let fake = node();
        fake.change_link(&create("192.168.0.1", "flannel.1")).expect("created");
        fake.change_link(&create("fd00::1", "flannel-v6.1")).expect("created");
        assert_eq!(fake.live().links.iter().map(|link| link.mtu).collect::<Vec<_>>(), [1500, 1450, 1430]);
        let again = fake.change_link(&create("192.168.0.1", "other")).expect_err("the same VNI and port");
        assert_eq!(again.cause.errno(), Some(Errno::EEXIST));
        let entry = FdbEntry { link: 3, mac: Mac([2; 6]), host: "192.168.0.2".parse().expect("an address"), permanent: true };
        assert!(fake.change_entries(&[EntryChange::Fdb(entry)], &LinkNames::default())[0].is_ok());
        fake.change_link(&LinkChange::Delete(eth0())).expect("deleted");
        assert_eq!(fake.live(), Live::default());
        fake.change_link(&LinkChange::Delete(eth0())).expect("no error if it does not exist");
    }

    #[test]
    fn calls_are_recorded_and_fail_on_demand() {
        let fake = node();
        fake.fail(2, Errno::ENOBUFS, |call| matches!(call, KernelCall::Entry(EntryChange::Neighbour(_))));
        let neighbour = Neighbour { link: 2, ip: "10.0.0.2".parse().expect("an address"), mac: Mac([2; 6]), permanent: true };
        let change = EntryChange::Neighbour(neighbour);
        let outcomes = fake.change_entries(&[change, EntryChange::NoNeighbour(neighbour), change, change], &LinkNames::default());
        assert_eq!(outcomes.iter().map(Result::is_ok).collect::<Vec<_>>(), [false, true, false, true]);
        assert_eq!(fake.live().neighbours, [neighbour]);
        assert_eq!((fake.take_calls().len(), fake.take_calls().len()), (4, 0));
        fake.meddle(|live| live.neighbours.clear());
        assert_eq!(fake.dump().expect("listed").neighbours, []);
        assert_eq!(fake.take_calls(), [KernelCall::Dump]);
    }

    #[test]
    fn the_longest_prefix_is_used() {
        let fake = node();
        let route = |destination: &str, gateway: Option<&str>| {
            let gateway = gateway.and_then(|ip| ip.parse().ok());
            let destination = destination.parse().expect("a network");
            Route { destination, gateway, link: Some(2), onlink: false, kind: RouteKind::Unicast, source: None, protocol: 2, metric: 0 }
        };
        fake.change_link(&LinkChange::AddAddress(eth0(), "192.168.0.1/24".parse().expect("a network"))).expect("added");
        let changes = [route("192.168.0.0/24", None), route("0.0.0.0/0", Some("192.168.0.254"))].map(EntryChange::Route);
        assert!(fake.change_entries(&changes, &LinkNames::default()).iter().all(Result::is_ok));
        let near = fake.route_to("192.168.0.7".parse().expect("an address")).expect("a route");
        assert_eq!((near.gateway, near.source), (None, "192.168.0.1".parse().ok()));
        let far = fake.route_to("8.8.8.8".parse().expect("an address")).expect("a route");
        assert_eq!(far.gateway, "192.168.0.254".parse().ok());
        assert!(fake.route_to("fd00::1".parse().expect("an address")).is_err());
    }
}
