//! The kernel as far as the pod network goes: links, addresses, routes, neighbours and the FDB of VXLAN links. Every call opens a
//! socket of its own, works in the network namespace of the thread that makes it, and blocks: within a runtime it belongs on a thread
//! for blocking work.

use std::fmt;
use std::net::IpAddr;

use nix::errno::Errno;

use super::entry::{EntryChange, LinkChange, Live, Route};
use super::link::{Link, LinkKind, LinkNames};
use crate::cluster::Family;

use super::error::{Cause, NetlinkError};
use super::socket::{Connection, Request};
use super::{Kernel, offload, readings, requests};

/// Longest name of a link, in bytes (`IFNAMSIZ` has room for a zero as well).
const NAME_LEN: usize = 15;

/// What the pod network needs of a kernel.
pub trait NetworkKernel: fmt::Debug + Send + Sync + 'static {
    /// Everything that is there. Not of one moment: what changes between its parts may be seen in one and not in another.
    ///
    /// # Errors
    /// It cannot be listed.
    fn dump(&self) -> Result<Live, NetlinkError>;

    /// Every link, by number, with its addresses.
    ///
    /// # Errors
    /// They cannot be listed.
    fn links(&self) -> Result<Vec<Link>, NetlinkError>;

    /// Makes these changes in this order, and says of each in turn how it went. One that fails holds up no other. What is to go and is
    /// not there has gone. Errors show links by these names.
    fn change_entries(&self, changes: &[EntryChange], names: &LinkNames) -> Vec<Result<(), NetlinkError>>;

    /// Makes one change to the links.
    ///
    /// # Errors
    /// The kernel refuses. A link or an address that is to go and is not there has gone.
    fn change_link(&self, change: &LinkChange) -> Result<(), NetlinkError>;

    /// Which way packets to a host go: next hop, link and source address. A host that is this one is reached over the loopback.
    ///
    /// # Errors
    /// There is no way, or it cannot be found out.
    fn route_to(&self, ip: IpAddr) -> Result<Route, NetlinkError>;
}

impl NetworkKernel for Kernel {
    fn dump(&self) -> Result<Live, NetlinkError> {
        let mut connection = Connection::route().map_err(NetlinkError::listing("links"))?;
        let links = links(&mut connection)?;
        let mut live = Live::default();
        for family in [Family::V4, Family::V6] {
            let found = connection.dump(&requests::routes(family), |_, body| readings::route(body).filter(|route| is(family, route)));
            live.routes.extend(or_no_table(found).map_err(NetlinkError::listing("routes"))?);
        }
        for link in links.iter().filter(|link| matches!(link.kind, LinkKind::Vxlan(_))) {
            let of = Some(link.index);
            let found = connection.dump(&requests::neighbours(link.index), |_, body| {
                readings::neighbour(body).filter(|neighbour| Some(neighbour.link) == of)
            });
            live.neighbours.extend(found.map_err(NetlinkError::listing("neighbours"))?);
            let found =
                connection.dump(&requests::fdb(link.index), |_, body| readings::fdb_entry(body).filter(|entry| Some(entry.link) == of));
            live.fdb.extend(found.map_err(NetlinkError::listing("FDB entries"))?);
        }
        Ok(Live { links, ..live })
    }

    fn links(&self) -> Result<Vec<Link>, NetlinkError> {
        links(&mut Connection::route().map_err(NetlinkError::listing("links"))?)
    }

    fn change_entries(&self, changes: &[EntryChange], names: &LinkNames) -> Vec<Result<(), NetlinkError>> {
        let outcomes = match Connection::route() {
            Ok(mut connection) => change(&mut connection, changes),
            Err(cause) => vec![Err(cause); changes.len()],
        };
        let of_change =
            |(change, outcome): (&EntryChange, Result<(), Cause>)| outcome.map_err(|cause| NetlinkError::entry(change, names, cause));
        changes.iter().zip(outcomes).map(of_change).collect()
    }

    fn change_link(&self, change: &LinkChange) -> Result<(), NetlinkError> {
        change_link(change).map_err(|cause| NetlinkError::link(change, cause))
    }

    fn route_to(&self, ip: IpAddr) -> Result<Route, NetlinkError> {
        let find = || {
            let found = Connection::route()?.get(&requests::route_to(ip), |_, body| readings::way(body))?;
            found.into_iter().next().ok_or(Cause::Unfit("the kernel gave no route"))
        };
        find().map_err(|cause| NetlinkError { call: "find the way to", object: ip.to_string(), cause })
    }
}

fn links(connection: &mut Connection) -> Result<Vec<Link>, NetlinkError> {
    let mut links = connection.dump(&requests::links(), |_, body| readings::link(body)).map_err(NetlinkError::listing("links"))?;
    links.sort_by_key(|link| link.index);
    let addresses =
        connection.dump(&requests::addresses(), |_, body| readings::address(body)).map_err(NetlinkError::listing("addresses"))?;
    for (index, address) in addresses {
        if let Ok(at) = links.binary_search_by_key(&index, |link| link.index) {
            links[at].addresses.push(address);
        }
    }
    Ok(links)
}

/// A kernel without one family lists the other's when it is asked for it.
fn is(family: Family, route: &Route) -> bool {
    route.destination.is_ipv4() == (family == Family::V4)
}

/// A table that nothing was ever put in does not exist yet.
fn or_no_table(found: Result<Vec<Route>, Cause>) -> Result<Vec<Route>, Cause> {
    match found {
        Err(Cause::Kernel { errno: Errno::ENOENT, .. }) => Ok(Vec::new()),
        found => found,
    }
}

fn change(connection: &mut Connection, changes: &[EntryChange]) -> Vec<Result<(), Cause>> {
    let mut outcomes = connection.batch(changes.iter().map(requests::entry));
    // IPv6 refuses an onlink gateway that a route over another link leads to, whosever route that is. A route to the gateway alone, over
    // our link and for as long as it takes, is more specific than all others.
    let covered: Vec<(usize, &Route)> = changes
        .iter()
        .enumerate()
        .filter_map(|(at, change)| match change {
            EntryChange::Route(route) if route.destination.is_ipv6() && route.onlink => Some((at, route)),
            _ => None,
        })
        .filter(|(at, _)| matches!(outcomes[*at], Err(Cause::Kernel { errno: Errno::EINVAL, .. })))
        .collect();
    let again = covered.iter().flat_map(|(at, route)| {
        let [before, after] = requests::gateway_route(route);
        [before, requests::entry(&changes[*at]), after]
    });
    let second = connection.batch(again);
    for ((at, _), outcome) in covered.into_iter().zip(second.into_iter().skip(1).step_by(3)) {
        outcomes[at] = outcome;
    }
    for (change, outcome) in changes.iter().zip(&mut outcomes) {
        let goes = matches!(change, EntryChange::NoRoute(_) | EntryChange::NoNeighbour(_) | EntryChange::NoFdb(_));
        if goes {
            *outcome = gone(outcome.clone());
        }
    }
    outcomes
}

/// What is to go and is not there has gone.
fn gone(outcome: Result<(), Cause>) -> Result<(), Cause> {
    let is_gone = |cause: &Cause| matches!(cause.errno(), Some(Errno::ESRCH | Errno::ENOENT | Errno::ENODEV | Errno::EADDRNOTAVAIL));
    if outcome.as_ref().is_err_and(is_gone) { Ok(()) } else { outcome }
}

fn change_link(change: &LinkChange) -> Result<(), Cause> {
    let request = |request: Request| Connection::route()?.request(&request);
    match change {
        LinkChange::CreateVxlan { name, vxlan, mac, mtu } => {
            check_name(name)?;
            request(requests::create_vxlan(name, vxlan, *mac, *mtu))?;
            refuse_router_advertisements(name);
            Ok(())
        }
        LinkChange::Delete(link) => gone(request(requests::delete_link(link.index))),
        LinkChange::Mtu(link, mtu) => request(requests::set_mtu(link.index, *mtu)),
        LinkChange::Mac(link, mac) => request(requests::set_mac(link.index, *mac)),
        LinkChange::Up(link) => request(requests::set_up(link.index)),
        LinkChange::AddAddress(link, net) => request(requests::add_address(link.index, *net)),
        LinkChange::DeleteAddress(link, net) => gone(request(requests::delete_address(link.index, *net))),
        LinkChange::ChecksumOffload(link, on) => offload::set(link.index, *on),
    }
}

/// The kernel says no more than "out of range".
pub(super) fn check_name(name: &str) -> Result<(), Cause> {
    if (1..=NAME_LEN).contains(&name.len()) { Ok(()) } else { Err(Cause::Unfit("the name of a link has 1 to 15 bytes")) }
}

/// As flannel does (spec section 5.2); without IPv6, or where sysctls are read-only, it does not matter.
fn refuse_router_advertisements(name: &str) {
    let _ = std::fs::write(format!("/proc/sys/net/ipv6/conf/{name}/accept_ra"), "0");
}
