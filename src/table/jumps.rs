//! The rules in built-in chains that lead to ours (spec section 6.2; network spec section 8.1).

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

    /// The name iptables knows it by.
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
    /// The chain it leads to.
    pub to: &'static str,
    /// For new connections only.
    new_only: bool,
    /// Comment; empty for none.
    comment: &'static str,
    /// It leads to a chain of the pod network, not of the service proxy.
    pub pod_network: bool,
}

impl Jump {
    const fn new(table: Table, from: &'static str, to: &'static str, new_only: bool, comment: &'static str) -> Self {
        Self { table, from, to, new_only, comment, pod_network: false }
    }

    const fn of_pod_network(table: Table, from: &'static str, to: &'static str, comment: &'static str) -> Self {
        Self { table, from, to, new_only: false, comment, pod_network: true }
    }

    /// How it gets into its chain where it is missing: at the top, or behind everything that is there.
    #[must_use]
    pub const fn operation(&self) -> &'static str {
        if self.pod_network { "-A" } else { "-I" }
    }

    /// Whether it should be there, by the chains that should. The proxy's jumps come all or not at all.
    #[must_use]
    pub fn is_desired(&self, has: impl Fn(Table, &'static str) -> bool) -> bool {
        has(self.table, if self.pod_network { self.to } else { chain_names::SERVICES })
    }

    /// The rule after its chain, in restore spelling: `-m conntrack ... -j CHAIN`.
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

/// Every jump, in the order they are ensured. Each missing one goes to the *top* of its chain, so on a clean host they end up
/// in reverse; one that is there is never moved (spec section 12.7). The pod network's go to the end of theirs: packets pass the
/// proxy's chains first, whichever came first.
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
    fn prepending_in_order_gives_upstreams_chains() {
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
