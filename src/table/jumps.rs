//! The rules in built-in chains that jump to our chains ([kube-proxy 6.2], [flannel 8.1]).

use std::fmt;

use super::chain_names;

/// A table of iptables that sepal writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Table {
    /// `filter`.
    Filter,
    /// `nat`.
    Nat,
}

impl Table {
    /// Both tables, in the order they are written.
    pub const ALL: [Self; 2] = [Self::Filter, Self::Nat];

    /// The name that iptables uses.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Filter => "filter",
            Self::Nat => "nat",
        }
    }
}

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// One jump from a built-in chain.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Jump {
    /// Its table.
    pub table: Table,
    /// The built-in chain.
    pub from: &'static str,
    /// The target chain.
    pub to: &'static str,
    /// Matches new connections only.
    new_only: bool,
    /// The comment, or empty for none.
    comment: &'static str,
    /// The target chain belongs to the pod network, not to the service proxy.
    pub pod_network: bool,
}

impl Jump {
    const fn new(table: Table, from: &'static str, to: &'static str, new_only: bool, comment: &'static str) -> Self {
        Self { table, from, to, new_only, comment, pod_network: false }
    }

    const fn of_pod_network(table: Table, from: &'static str, to: &'static str, comment: &'static str) -> Self {
        Self { table, from, to, new_only: false, comment, pod_network: true }
    }

    /// The operation that adds a missing jump: insert at the top of its chain, or append at the end.
    #[must_use]
    pub const fn operation(&self) -> &'static str {
        if self.pod_network { "-A" } else { "-I" }
    }

    /// Returns true if the jump is desired. `has_chain` says which chains are desired. Either all jumps of the proxy are desired or none.
    #[must_use]
    pub fn is_desired(&self, has_chain: impl Fn(Table, &'static str) -> bool) -> bool {
        has_chain(self.table, if self.pod_network { self.to } else { chain_names::SERVICES })
    }

    /// The rule without `-A CHAIN`, in the spelling of iptables-restore: `-m conntrack ... -j CHAIN`.
    #[must_use]
    pub fn arguments(&self) -> String {
        let new_only = if self.new_only { "-m conntrack --ctstate NEW " } else { "" };
        let comment = if self.comment.is_empty() { String::new() } else { format!("-m comment --comment \"{}\" ", self.comment) };
        format!("{new_only}{comment}-j {}", self.to)
    }
}

const PORTALS: &str = "kubernetes service portals";
const EXTERNAL: &str = "kubernetes externally-visible service portals";
const BALANCER: &str = "kubernetes load balancer firewall";

/// Every jump, in the order in which they are added. A missing jump is inserted at the *top* of its chain, so on a clean host the jumps
/// end up in reverse order. An existing jump is never moved [kube-proxy 12.7]. The pod network's jumps are appended at the end, so packets
/// always pass the proxy's chains first.
pub const JUMPS: [Jump; 16] = [
    Jump::new(Table::Filter, "INPUT", chain_names::EXTERNAL_SERVICES, true, EXTERNAL),
    Jump::new(Table::Filter, "FORWARD", chain_names::EXTERNAL_SERVICES, true, EXTERNAL),
    Jump::new(Table::Filter, "INPUT", chain_names::NODEPORTS, false, "kubernetes health check service ports"),
    Jump::new(Table::Filter, "FORWARD", chain_names::SERVICES, true, PORTALS),
    Jump::new(Table::Filter, "OUTPUT", chain_names::SERVICES, true, PORTALS),
    Jump::new(Table::Filter, "FORWARD", chain_names::FORWARD, false, "kubernetes forwarding rules"),
    Jump::new(Table::Filter, "INPUT", chain_names::PROXY_FIREWALL, true, BALANCER),
    Jump::new(Table::Filter, "OUTPUT", chain_names::PROXY_FIREWALL, true, BALANCER),
    Jump::new(Table::Filter, "FORWARD", chain_names::PROXY_FIREWALL, true, BALANCER),
    Jump::new(Table::Nat, "OUTPUT", chain_names::SERVICES, false, PORTALS),
    Jump::new(Table::Nat, "PREROUTING", chain_names::SERVICES, false, PORTALS),
    Jump::new(Table::Nat, "POSTROUTING", chain_names::POSTROUTING, false, "kubernetes postrouting rules"),
    Jump::new(Table::Filter, "INPUT", chain_names::FIREWALL, false, ""),
    Jump::new(Table::Filter, "OUTPUT", chain_names::FIREWALL, false, ""),
    Jump::of_pod_network(Table::Filter, "FORWARD", chain_names::FLANNEL_FORWARD, "flanneld forward"),
    Jump::of_pod_network(Table::Nat, "POSTROUTING", chain_names::FLANNEL_POSTROUTING, "flanneld masq"),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn inserting_all_jumps_gives_the_order_of_kube_proxy() {
        let top_down = |table, from| -> Vec<&str> {
            JUMPS.iter().rev().filter(|j| j.table == table && j.from == from && !j.pod_network).map(|j| j.to).collect()
        };
        assert_eq!(top_down(Table::Filter, "INPUT"), ["KUBE-FIREWALL", "KUBE-PROXY-FIREWALL", "KUBE-NODEPORTS", "KUBE-EXTERNAL-SERVICES"]);
        assert_eq!(top_down(Table::Filter, "FORWARD"), ["KUBE-PROXY-FIREWALL", "KUBE-FORWARD", "KUBE-SERVICES", "KUBE-EXTERNAL-SERVICES"]);
        assert_eq!(top_down(Table::Filter, "OUTPUT"), ["KUBE-FIREWALL", "KUBE-PROXY-FIREWALL", "KUBE-SERVICES"]);
        assert_eq!(
            JUMPS[0].arguments(),
            "-m conntrack --ctstate NEW -m comment --comment \"kubernetes externally-visible service portals\" -j KUBE-EXTERNAL-SERVICES"
        );
        assert_eq!(JUMPS[13].arguments(), "-j KUBE-FIREWALL");
        assert_eq!(JUMPS[15].arguments(), "-m comment --comment \"flanneld masq\" -j FLANNEL-POSTRTG");
    }
}
