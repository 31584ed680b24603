//! What kube-proxy's other modes leave beside iptables: the nftables table, and of IPVS its services, device and sets (spec section 1.8).
//!
//! Their own tools take it away, where there are any. What is not there is nobody's concern, and needs no tool.

use std::fmt;

use nix::net::if_::if_nametoindex;

use super::exec::output;
use super::runner::IptablesError;

/// The device that holds all service IPs in IPVS mode.
const DEVICE: &str = "kube-ipvs0";

/// Tables of nftables that take the place of chains here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NftTables {
    /// Those of kube-proxy's nftables mode.
    KubeProxy,
    /// Those of flannel with `EnableNFTables` (network spec section 8.2).
    Flannel,
}

impl NftTables {
    /// Their names, one in each family.
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

/// What the kernel allows for the name of a set (`IPSET_MAXNAMELEN` in `include/uapi/linux/netfilter/ipset/ip_set.h`, less the zero).
const SET_NAME_LEN: usize = 31;

/// Something that another mode left and that is still there.
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
            Self::NoTool(program) => write!(f, "there is no program {program} here to remove it with. Install it, or restart the node"),
            Self::Failed(error) => error.fmt(f),
        }
    }
}

/// Deletes tables of nftables, in both families. Where nft is not there or not usable nothing happens.
pub async fn delete_nftables(which: NftTables) -> Vec<NotRemoved> {
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

/// Takes away what the IPVS mode leaves beside iptables. IPVS services are flushed only where the mode's device tells that they are
/// kube-proxy's. Rules that name a set have to be gone before it can be.
pub async fn clean_ipvs() -> Vec<NotRemoved> {
    let mut left = Vec::new();
    if if_nametoindex(DEVICE).is_ok() {
        let services = remove("the table of IPVS services", "ipvsadm", &["-C"]).await;
        // While services may be left, the device has to go on telling whose they are.
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

/// Runs a program that removes something; gives what keeps it there.
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

/// The names of all sets, IPv4's and IPv6's; kube-proxy cuts off what is too long for the kernel.
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
    fn sets_have_the_names_that_fit_the_kernel() {
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
