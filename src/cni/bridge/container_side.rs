//! The container's end of the link: addresses, routes and kernel settings.

use std::fs;
use std::net::IpAddr;
use std::path::Path;
use std::time::{Duration, Instant};

use ipnetwork::IpNetwork;
use nix::errno::Errno;

use crate::cni::error::CniError;
use crate::cni::netns::{NamespaceError, NetworkNamespace};
use crate::cni::result::CniResult;
use crate::netlink::socket::Connection;
use crate::netlink::{Cause, device, device::Device, device::PodRoute};

use super::host_side::cannot;

/// How long an IPv6 address may stay tentative.
const SETTLE: Duration = Duration::from_secs(5);
/// The longest pause between two checks of it.
const LONGEST_PAUSE: Duration = Duration::from_millis(50);

/// Configures the container's interface as the result says. Returns the interface.
pub(super) fn configure(pod: &NetworkNamespace, interface: &str, result: &CniResult, detect_duplicates: bool) -> Result<Device, CniError> {
    pod.within(|| configure_here(interface, result, detect_duplicates)).map_err(|error| no_namespace(&error))?
}

/// Finds the container's interface.
pub(super) fn find(pod: &NetworkNamespace, interface: &str) -> Result<Device, CniError> {
    let find = || {
        let found = device::find(&mut Connection::route()?, interface)?;
        found.ok_or(Cause::Other("it is gone"))
    };
    pod.within(find).map_err(|error| no_namespace(&error))?.map_err(cannot("find interface", interface))
}

pub(super) fn no_namespace(error: &NamespaceError) -> CniError {
    CniError::other(format!("cannot enter the container's network namespace: {}", error.cause()))
}

fn configure_here(interface: &str, result: &CniResult, detect_duplicates: bool) -> Result<Device, CniError> {
    let addresses: Vec<IpNetwork> = result.ips.iter().map(|ip| ip.address).collect();
    let v6 = addresses.iter().any(IpNetwork::is_ipv6);
    settings(interface, v6, detect_duplicates)?;
    let mut inside = Connection::route().map_err(cannot("open a socket for", interface))?;
    let find = |inside: &mut Connection| {
        device::find(inside, interface)
            .and_then(|found| found.ok_or(Cause::Other("it is gone")))
            .map_err(cannot("find interface", interface))
    };
    let found = find(&mut inside)?;
    let routes: Vec<PodRoute> = result.routes.iter().map(|route| pod_route(route, result, found.link.index)).collect();
    let mut requests = device::configuration(found.link.index, &addresses);
    let changes = requests.len();
    // Routes do not need settled addresses. Only IPv6 addresses with duplicate detection have to settle.
    requests.extend(routes.iter().map(device::add_route));
    for (at, done) in inside.batch(requests).into_iter().enumerate() {
        match (done, at.checked_sub(changes).and_then(|route| routes.get(route))) {
            (Ok(()), _) | (Err(Cause::Kernel { errno: Errno::EEXIST, .. }), Some(_)) => {}
            (Err(cause), Some(route)) => {
                let via = route.gateway.map(|gateway| format!(" via {gateway}")).unwrap_or_default();
                return Err(CniError::other(format!("failed to add route '{}{via} dev {interface}': {cause}", route.destination)));
            }
            (Err(cause), None) => {
                let what = addresses.get(at).map_or_else(|| "set up".to_owned(), |net| format!("add address {net} to"));
                return Err(cannot(&what, interface)(cause));
            }
        }
    }
    if v6 {
        settle(&mut inside, interface, found.link.index)?;
    }
    find(&mut inside)
}

fn settings(interface: &str, v6: bool, detect_duplicates: bool) -> Result<(), CniError> {
    let v6_path = |name: &str, key: &str| Path::new("/proc/sys/net/ipv6/conf").join(name).join(key);
    // These settings are optional: not every kernel has them.
    if detect_duplicates {
        let _ = fs::write(v6_path(interface, "enhanced_dad"), "1");
    }
    let _ = fs::write(v6_path(interface, "accept_dad"), if detect_duplicates { "1" } else { "0" });
    let _ = fs::write(Path::new("/proc/sys/net/ipv4/conf").join(interface).join("arp_notify"), "1");
    if !v6 {
        return Ok(());
    }
    for name in ["lo", interface] {
        crate::cni::netns::set_sysctl(&v6_path(name, "disable_ipv6").to_string_lossy(), "0")?;
    }
    let _ = fs::write(v6_path(interface, "keep_addr_on_down"), "1");
    Ok(())
}

fn pod_route(route: &crate::cni::result::CniRoute, result: &CniResult, link: u32) -> PodRoute {
    let of_family = |ip: &IpAddr| ip.is_ipv4() == route.dst.is_ipv4();
    let gateway = route.gw.or_else(|| result.ips.iter().filter_map(|ip| ip.gateway).find(of_family));
    // A given scope is used. Without a gateway, the kernel needs the scope of the link.
    let scope = route.scope.unwrap_or(if gateway.is_none() && route.dst.is_ipv4() { SCOPE_LINK } else { SCOPE_UNIVERSE });
    PodRoute {
        destination: route.dst,
        gateway,
        link,
        mtu: route.mtu,
        advmss: route.advmss,
        metric: route.priority,
        table: route.table,
        scope,
    }
}

const SCOPE_UNIVERSE: u8 = 0;
const SCOPE_LINK: u8 = 253;

/// Waits until no IPv6 address is tentative.
fn settle(inside: &mut Connection, interface: &str, index: u32) -> Result<(), CniError> {
    let limit = Instant::now() + SETTLE;
    let mut pause = Duration::from_micros(100);
    loop {
        let held = device::addresses(inside, index).map_err(cannot("list the addresses of", interface))?;
        if let Some(duplicate) = held.iter().find(|held| held.duplicate) {
            return Err(CniError::other(format!("IP address {} is in use by another host already", duplicate.address.net)));
        }
        let Some(waiting) = held.iter().find(|held| held.tentative) else { return Ok(()) };
        if Instant::now() > limit {
            return Err(CniError::other(format!("IP address {} is still tentative after {} s", waiting.address.net, SETTLE.as_secs())));
        }
        nap(pause);
        pause = (pause * 2).min(LONGEST_PAUSE);
    }
}

/// Sleeps while the kernel settles addresses.
#[allow(clippy::disallowed_methods, reason = "a plugin is a process of its own that has nothing else to do meanwhile")]
pub(super) fn nap(pause: Duration) {
    std::thread::sleep(pause);
}
