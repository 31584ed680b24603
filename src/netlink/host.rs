//! Facts about this host that rules and settings depend on, and access to its sysctls.

use std::io;
use std::net::IpAddr;
use std::num::NonZero;
use std::path::Path;

use nix::ifaddrs::getifaddrs;

use crate::cluster::host_facts::NfacctCounters;

use super::nfacct::{self, PacketCounters, Packets};

const TCP_BE_LIBERAL: &str = "/proc/sys/net/netfilter/nf_conntrack_tcp_be_liberal";
const IPV6_ADDRESSES: &str = "/proc/net/if_inet6";
const IPV6_DISABLED: &str = "/proc/sys/net/ipv6/conf/all/disable_ipv6";
const CPUS: &str = "/sys/devices/system/cpu";

/// The facts about a host that rules and settings depend on.
pub trait Host {
    /// All addresses of all interfaces in this network namespace.
    ///
    /// # Errors
    /// The listing fails.
    fn addresses(&self) -> io::Result<Vec<IpAddr>>;

    /// True if conntrack lets out-of-window TCP packets pass [kube-proxy 1.7].
    fn tcp_be_liberal(&self) -> bool;

    /// True if the kernel has IPv6 and it is not switched off [kube-proxy 1.6].
    fn ipv6_enabled(&self) -> bool;

    /// Returns which nfacct counters rules may use. With `create`, missing counters are created. Without `create`, a missing counter counts
    /// as usable if the kernel supports nfacct.
    fn counters(&self, create: bool) -> NfacctCounters;

    /// The number of hardware threads that are online [kube-proxy 1.10].
    fn cores(&self) -> usize;

    /// Reads a kernel setting from its file: a sysctl or a module parameter.
    ///
    /// # Errors
    /// The file cannot be read, or its content is not a number.
    fn read_setting(&self, path: &str) -> io::Result<u64>;

    /// Checks that a kernel setting can be written.
    ///
    /// # Errors
    /// It cannot be written.
    fn can_write_setting(&self, path: &str) -> io::Result<()>;

    /// True if the file of a kernel setting has no write permission, so that even root cannot write it.
    fn is_read_only_setting(&self, path: &str) -> bool;

    /// Writes a kernel setting. The value is a text, because some values are negative.
    ///
    /// # Errors
    /// The kernel refuses the value, or the file system is read-only.
    fn write_setting(&self, path: &str, text: &str) -> io::Result<()>;
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

    fn cores(&self) -> usize {
        match threads(Path::new(CPUS)) {
            0 => std::thread::available_parallelism().map_or(1, NonZero::get),
            threads => threads,
        }
    }

    fn read_setting(&self, path: &str) -> io::Result<u64> {
        std::fs::read_to_string(path)?.trim().parse().map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))
    }

    fn can_write_setting(&self, path: &str) -> io::Result<()> {
        std::fs::OpenOptions::new().write(true).open(path).map(drop)
    }

    fn is_read_only_setting(&self, path: &str) -> bool {
        std::fs::metadata(path).is_ok_and(|file| file.permissions().readonly())
    }

    fn write_setting(&self, path: &str, text: &str) -> io::Result<()> {
        std::fs::write(path, text)
    }
}

impl PacketCounters for Kernel {
    fn packets(&self) -> Packets {
        nfacct::packets()
    }
}

/// Counts the hardware threads that are online. Only these have a topology in sysfs.
fn threads(cpus: &Path) -> usize {
    let Ok(entries) = std::fs::read_dir(cpus) else { return 0 };
    let is_thread = |entry: &std::fs::DirEntry| {
        let name = entry.file_name();
        let number = name.to_str().and_then(|name| name.strip_prefix("cpu")).and_then(|number| number.parse::<u32>().ok());
        number.is_some() && entry.path().join("topology/core_id").exists()
    };
    entries.flatten().filter(is_thread).count()
}

fn read_number(path: &str) -> Option<i64> {
    std::fs::read_to_string(path).ok()?.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn threads_that_are_offline_do_not_count() {
        let folder = tempfile::tempdir().expect("a folder");
        for on in ["cpu0", "cpu1", "cpu10"] {
            std::fs::create_dir_all(folder.path().join(on).join("topology")).expect("writable");
            std::fs::write(folder.path().join(on).join("topology/core_id"), "0").expect("writable");
        }
        for other in ["cpu2", "cpufreq", "cpuidle", "smt"] {
            std::fs::create_dir(folder.path().join(other)).expect("writable");
        }
        assert_eq!(threads(folder.path()), 3);
        assert_eq!(threads(&folder.path().join("nowhere")), 0);
        assert!(Kernel.cores() >= 1);
    }
}
