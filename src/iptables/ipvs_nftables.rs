//! Deletes leftovers of kube-proxy's other modes [kube-proxy 1.8]: the tables of the nftables mode; the services, the device and the sets of
//! the IPVS mode.
//!
//! Uses the programs `nft`, `ipvsadm`, `ip` and `ipset`. A program is only needed if there is something to delete.

use std::fmt;

use nix::net::if_::if_nametoindex;

use super::exec::output;
use super::runner::IptablesError;

/// The device that holds all service IPs in IPVS mode.
const DEVICE: &str = "kube-ipvs0";

/// nftables tables that another mode uses instead of iptables chains.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NftTables {
    /// The tables of kube-proxy's nftables mode.
    KubeProxy,
    /// The tables of flannel with `EnableNFTables` [flannel 8.2].
    Flannel,
}

impl NftTables {
    /// The names, one in each family.
    #[must_use]
    pub const fn names(self) -> [&'static str; 2] {
        match self {
            Self::KubeProxy => ["ip kube-proxy", "ip6 kube-proxy"],
            Self::Flannel => ["ip flannel-ipv4", "ip6 flannel-ipv6"],
        }
    }
}

/// Sets of the IPVS mode, without their prefix.
const SETS: [&str; 17] = [
    "LOOP-BACK",
    "CLUSTER-IP",
    "EXTERNAL-IP",
    "EXTERNAL-IP-LOCAL",
    "LOAD-BALANCER",
    "LOAD-BALANCER-LOCAL",
    "LOAD-BALANCER-FW",
    "LOAD-BALANCER-SOURCE-IP",
    "LOAD-BALANCER-SOURCE-CIDR",
    "NODE-PORT-TCP",
    "NODE-PORT-UDP",
    "NODE-PORT-SCTP-HASH",
    "NODE-PORT-LOCAL-TCP",
    "NODE-PORT-LOCAL-UDP",
    "NODE-PORT-LOCAL-SCTP-HASH",
    "HEALTH-CHECK-NODE-PORT",
    "IPVS-IPS",
];

/// The longest set name that the kernel allows (`IPSET_MAXNAMELEN` in `include/uapi/linux/netfilter/ipset/ip_set.h`, less the zero).
const SET_NAME_LEN: usize = 31;

/// A leftover that could not be deleted.
#[derive(Debug, thiserror::Error)]
#[error("{what} stays: {why}")]
pub struct NotRemoved {
    what: String,
    why: Why,
}

#[derive(Debug)]
enum Why {
    NoTool(&'static str),
    Failed(IptablesError),
}

impl fmt::Display for Why {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoTool(program) => write!(f, "there is no program {program} to remove it with. Install it, or restart the node"),
            Self::Failed(error) => error.fmt(f),
        }
    }
}

/// Deletes nftables tables in both families. Does nothing if `nft` is missing or fails.
pub(crate) async fn delete_nftables(which: NftTables) -> Vec<NotRemoved> {
    let mut left = Vec::new();
    let tables = match output("nft", &["list", "tables"]).await {
        Ok(tables) => tables,
        Err(IptablesError::Missing(_)) => return left,
        Err(error) => {
            tracing::debug!("cannot list the tables of nftables, so none is deleted: {error}");
            return left;
        }
    };
    for name in which.names() {
        if tables.lines().any(|line| line.trim().strip_prefix("table ") == Some(name)) {
            let [family, table] = name.split_once(' ').map_or(["", name], |(family, table)| [family, table]);
            left.extend(remove(&format!("nftables table {name}"), "nft", &["delete", "table", family, table]).await);
        }
    }
    left
}

/// Deletes the leftovers of the IPVS mode, except its iptables rules. IPVS services are only deleted if kube-proxy's device exists, because
/// other programs can use IPVS too. Rules that use a set must be deleted before the set.
pub(crate) async fn clean_ipvs() -> Vec<NotRemoved> {
    let mut left = Vec::new();
    if if_nametoindex(DEVICE).is_ok() {
        let services = remove("the table of IPVS services", "ipvsadm", &["-C"]).await;
        // If the services could not be deleted, keep the device. It shows the next clean-up that the services belong to kube-proxy.
        left.extend(match services {
            None => remove(&format!("interface {DEVICE}"), "ip", &["link", "delete", DEVICE]).await,
            failed => failed,
        });
    }
    let listed = match output("ipset", &["list", "-n"]).await {
        Ok(listed) => listed,
        Err(IptablesError::Missing(_)) => return left,
        Err(error) => {
            tracing::debug!("cannot list the sets of ipset, so none is deleted: {error}");
            return left;
        }
    };
    for name in set_names().filter(|name| listed.lines().any(|line| line.trim() == name)) {
        left.extend(remove(&format!("set {name}"), "ipset", &["destroy", &name]).await);
    }
    left
}

/// Removes a leftover with a program. Returns an error if the leftover stays.
async fn remove(what: &str, program: &'static str, arguments: &[&str]) -> Option<NotRemoved> {
    let why = match output(program, arguments).await {
        Ok(_) => {
            tracing::info!("{what} is removed");
            return None;
        }
        Err(IptablesError::Missing(_)) => Why::NoTool(program),
        Err(error) => Why::Failed(error),
    };
    Some(NotRemoved { what: what.to_owned(), why })
}

/// Returns the names of all sets for IPv4 and IPv6. kube-proxy truncates names that are too long for the kernel.
fn set_names() -> impl Iterator<Item = String> {
    let prefixed = |prefix: &'static str| {
        SETS.iter().map(move |set| {
            let mut name = format!("{prefix}{set}");
            name.truncate(SET_NAME_LEN);
            name
        })
    };
    prefixed("KUBE-").chain(prefixed("KUBE-6-"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn set_names_are_truncated_for_the_kernel() {
        let names: Vec<String> = set_names().collect();
        for name in [
            "KUBE-LOOP-BACK",
            "KUBE-LOAD-BALANCER-SOURCE-CIDR",
            "KUBE-6-IPVS-IPS",
            "KUBE-6-LOAD-BALANCER-SOURCE-CID",
            "KUBE-6-NODE-PORT-LOCAL-SCTP-HAS",
        ] {
            assert!(names.iter().any(|found| found == name), "{name} is not among {names:?}");
        }
        assert_eq!(names.len(), 34);
        assert!(names.iter().all(|name| name.len() <= SET_NAME_LEN));
    }
}
