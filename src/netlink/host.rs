//! What the rules need to know of this host, and the one setting they need of it.

use std::io;
use std::net::IpAddr;
use std::path::Path;

use nix::ifaddrs::getifaddrs;

use crate::config::settings::NfacctCounters;

use super::nfacct;

const ROUTE_LOCALNET: &str = "/proc/sys/net/ipv4/conf/all/route_localnet";
const TCP_BE_LIBERAL: &str = "/proc/sys/net/netfilter/nf_conntrack_tcp_be_liberal";
const IPV6_ADDRESSES: &str = "/proc/net/if_inet6";
const IPV6_DISABLED: &str = "/proc/sys/net/ipv6/conf/all/disable_ipv6";

/// This host, as far as rules depend on it.
pub trait Host {
    /// Every address of every interface of this network namespace.
    ///
    /// # Errors
    /// They cannot be listed.
    fn addresses(&self) -> io::Result<Vec<IpAddr>>;

    /// conntrack lets out-of-window TCP packets pass (spec section 1.7).
    fn tcp_be_liberal(&self) -> bool;

    /// Whether the kernel has IPv6 and it is not switched off (spec section 1.6).
    fn ipv6_enabled(&self) -> bool;

    /// Which nfacct counters rules may name. With `create`, those that are missing are made; without, they count as there if the
    /// kernel has counters at all.
    fn counters(&self, create: bool) -> NfacctCounters;

    /// Lets 127.0.0.0/8 be routed, which NodePorts on loopback need. Read first, written only if different.
    ///
    /// # Errors
    /// It is off and cannot be switched on.
    fn allow_route_localnet(&self) -> io::Result<()>;
}

/// The real host.
#[derive(Clone, Copy, Debug, Default)]
pub struct Kernel;

impl Host for Kernel {
    fn addresses(&self) -> io::Result<Vec<IpAddr>> {
        let with_address = getifaddrs()?.filter_map(|interface| interface.address);
        let ip = |address: nix::sys::socket::SockaddrStorage| {
            let v4 = address.as_sockaddr_in().map(|v4| IpAddr::V4(v4.ip()));
            v4.or_else(|| address.as_sockaddr_in6().map(|v6| IpAddr::V6(v6.ip())))
        };
        Ok(with_address.filter_map(ip).collect())
    }

    fn tcp_be_liberal(&self) -> bool {
        read_number(TCP_BE_LIBERAL).is_some_and(|value| value != 0)
    }

    fn ipv6_enabled(&self) -> bool {
        Path::new(IPV6_ADDRESSES).exists() && read_number(IPV6_DISABLED) != Some(1)
    }

    fn counters(&self, create: bool) -> NfacctCounters {
        nfacct::counters(create)
    }

    fn allow_route_localnet(&self) -> io::Result<()> {
        if read_number(ROUTE_LOCALNET) == Some(1) { Ok(()) } else { std::fs::write(ROUTE_LOCALNET, "1") }
    }
}

fn read_number(path: &str) -> Option<i64> {
    std::fs::read_to_string(path).ok()?.trim().parse().ok()
}
