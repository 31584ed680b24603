//! Lists and changes links, addresses, routes, neighbours and the FDB of VXLAN links for the pod network.
//!
//! Each call opens its own socket, works in the network namespace of the calling thread, and blocks. Within an async runtime, call it on a
//! thread for blocking work.

use std::fmt;
use std::net::IpAddr;

use nix::errno::Errno;

use super::entry::{EntryChange, LinkChange, Live, Route};
use super::link::{Link, LinkKind, LinkNames};
use crate::cluster::Family;

use super::error::{Cause, NetlinkError};
use super::host::Kernel;
use super::socket::{Connection, Request};
use super::{decode, encode, offload, sysctl};

/// The call that looks up a route.
pub(super) const FIND_ROUTE: &str = "find the route to";
/// Longest name of a link, in bytes (`IFNAMSIZ` without the zero byte).
const NAME_LEN: usize = 15;

/// The kernel calls of the pod network.
pub trait NetworkKernel: fmt::Debug + Send + Sync + 'static {
    /// Lists everything that the pod network compares with its desired state. The tables are listed one after the other, so a change during
    /// the listing may be missing from the tables that were read before it.
    ///
    /// # Errors
    /// A listing fails.
    fn dump(&self) -> Result<Live, NetlinkError>;

    /// Lists all links with their addresses, sorted by index.
    ///
    /// # Errors
    /// The listing fails.
    fn links(&self) -> Result<Vec<Link>, NetlinkError>;

    /// Applies these changes in this order and returns the result of each. A change that fails does not stop the others. Deleting an
    /// entry that does not exist is no error. Errors name links as in `names`.
    fn change_entries(&self, changes: &[EntryChange], names: &LinkNames) -> Vec<Result<(), NetlinkError>>;

    /// Applies one change of a link. Deleting a link or an address that does not exist is no error.
    ///
    /// # Errors
    /// The kernel refuses.
    fn change_link(&self, change: &LinkChange) -> Result<(), NetlinkError>;

    /// Looks up the route to a host: next hop, link and source address. The route to this host's own addresses uses the loopback link.
    ///
    /// # Errors
    /// There is no route, or the lookup fails.
    fn route_to(&self, ip: IpAddr) -> Result<Route, NetlinkError>;
}

impl NetworkKernel for Kernel {
    fn dump(&self) -> Result<Live, NetlinkError> {
        let mut connection = Connection::route().map_err(NetlinkError::listing("links"))?;
        let links = links(&mut connection)?;
        let mut live = Live::default();
        for family in [Family::V4, Family::V6] {
            let found = connection.dump(&encode::routes(family), |_, body| decode::route(body).filter(|route| is_of(family, route)));
            live.routes.extend(or_empty(found).map_err(NetlinkError::listing("routes"))?);
        }
        for link in links.iter().filter(|link| matches!(link.kind, LinkKind::Vxlan(_))) {
            let of = Some(link.index);
            let found = connection
                .dump(&encode::neighbours(link.index), |_, body| decode::neighbour(body).filter(|neighbour| Some(neighbour.link) == of));
            live.neighbours.extend(found.map_err(NetlinkError::listing("neighbours"))?);
            let found = connection.dump(&encode::fdb(link.index), |_, body| decode::fdb_entry(body).filter(|entry| Some(entry.link) == of));
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
            let found = Connection::route()?.get(&encode::route_to(ip), |_, body| decode::resolved_route(body))?;
            found.into_iter().next().ok_or(Cause::Other("the kernel returned no route"))
        };
        find().map_err(|cause| NetlinkError { call: FIND_ROUTE, object: ip.to_string(), cause })
    }
}

fn links(connection: &mut Connection) -> Result<Vec<Link>, NetlinkError> {
    let mut links = connection.dump(&encode::links(), |_, body| decode::link(body)).map_err(NetlinkError::listing("links"))?;
    links.sort_by_key(|link| link.index);
    let addresses = connection.dump(&encode::addresses(), |_, body| decode::address(body)).map_err(NetlinkError::listing("addresses"))?;
    for (index, address) in addresses {
        if let Ok(at) = links.binary_search_by_key(&index, |link| link.index) {
            links[at].addresses.push(address);
        }
    }
    Ok(links)
}

/// Returns true if a route is of this family. A kernel without the requested family lists the routes of the other family instead.
fn is_of(family: Family, route: &Route) -> bool {
    route.destination.is_ipv4() == (family == Family::V4)
}

/// Turns `ENOENT` into an empty list, because a table without routes may not exist in the kernel.
fn or_empty(found: Result<Vec<Route>, Cause>) -> Result<Vec<Route>, Cause> {
    match found {
        Err(Cause::Kernel { errno: Errno::ENOENT, .. }) => Ok(Vec::new()),
        found => found,
    }
}

fn change(connection: &mut Connection, changes: &[EntryChange]) -> Vec<Result<(), Cause>> {
    let mut outcomes = connection.batch(changes.iter().map(encode::entry));
    // IPv6 refuses an onlink gateway that is covered by a route over another link, whichever program made that route. A temporary route
    // to the gateway alone, over our link, is more specific than all others.
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
        let [before, after] = encode::gateway_route(route);
        [before, encode::entry(&changes[*at]), after]
    });
    let second = connection.batch(again);
    for ((at, _), outcome) in covered.into_iter().zip(second.into_iter().skip(1).step_by(3)) {
        outcomes[at] = outcome;
    }
    for (change, outcome) in changes.iter().zip(&mut outcomes) {
        let deletes = matches!(change, EntryChange::NoRoute(_) | EntryChange::NoNeighbour(_) | EntryChange::NoFdb(_));
        if deletes {
            *outcome = or_missing(outcome.clone());
        }
    }
    outcomes
}

/// Turns the error for a missing entry into success. Used for deletions.
fn or_missing(outcome: Result<(), Cause>) -> Result<(), Cause> {
    let is_missing = |cause: &Cause| matches!(cause.errno(), Some(Errno::ESRCH | Errno::ENOENT | Errno::ENODEV | Errno::EADDRNOTAVAIL));
    if outcome.as_ref().is_err_and(is_missing) { Ok(()) } else { outcome }
}

fn change_link(change: &LinkChange) -> Result<(), Cause> {
    let request = |request: Request| Connection::route()?.request(&request);
    match change {
        LinkChange::CreateVxlan { name, vxlan, mac, mtu } => {
            check_name(name)?;
            request(encode::create_vxlan(name, vxlan, *mac, *mtu))?;
            sysctl::refuse_router_advertisements(name);
            Ok(())
        }
        LinkChange::Delete(link) => or_missing(request(encode::delete_link(link.index))),
        LinkChange::Mtu(link, mtu) => request(encode::set_mtu(link.index, *mtu)),
        LinkChange::Mac(link, mac) => request(encode::set_mac(link.index, *mac)),
        LinkChange::Up(link) => request(encode::set_up(link.index)),
        LinkChange::AddAddress(link, net) => request(encode::add_address(link.index, *net)),
        LinkChange::DeleteAddress(link, net) => or_missing(request(encode::delete_address(link.index, *net))),
        LinkChange::ChecksumOffload(link, on) => offload::set(link.index, *on),
    }
}

/// Checks the length of a link's name. The kernel would only report "out of range".
pub(super) fn check_name(name: &str) -> Result<(), Cause> {
    if (1..=NAME_LEN).contains(&name.len()) { Ok(()) } else { Err(Cause::Other("the name of a link must have 1 to 15 bytes")) }
}
