//! Finds the rules that sepal, kube-proxy in iptables or IPVS mode [kube-proxy 1.8], or flannel [flannel 8.1] left in a table, and writes
//! the input of iptables-restore that deletes them. PURE.
//!
//! kubelet's KUBE-FIREWALL and KUBE-KUBELET-CANARY stay, and so do the rules of other programs. If such a rule jumps to one of our chains,
//! the kernel refuses to delete the chain, and the whole transaction with it. So that chain is emptied and stays.

use std::collections::BTreeSet;

use super::chain_names::{self, ChainKind};
use super::jumps::JUMPS;

use super::plan::Variant;
use super::rule::{Digest, split_line, target};

/// The tables to clean, in this order.
pub(crate) const TABLES: [&str; 3] = ["nat", "filter", "mangle"];

/// The largest number of chains in one COMMIT on nft. The time that iptables-nft needs is quadratic in this number [costs 1].
const GROUP: usize = 256;

/// Chains in `nat` that belong to no service port, in upstream's order. The last two are from the IPVS mode.
const NAT: [&str; 7] = [
    chain_names::SERVICES,
    chain_names::NODEPORTS,
    chain_names::POSTROUTING,
    chain_names::MARK_MASQ,
    chain_names::CANARY,
    "KUBE-NODE-PORT",
    "KUBE-LOAD-BALANCER",
];

/// Chains in `filter`, in upstream's order. The last four are from the IPVS mode.
const FILTER: [&str; 10] = [
    chain_names::SERVICES,
    chain_names::EXTERNAL_SERVICES,
    chain_names::FORWARD,
    chain_names::NODEPORTS,
    chain_names::PROXY_FIREWALL,
    chain_names::CANARY,
    "KUBE-NODE-PORT",
    "KUBE-SOURCE-RANGES-FIREWALL",
    "KUBE-IPVS-FILTER",
    "KUBE-IPVS-OUT-FILTER",
];

/// The pod network's chains in `nat`. flannel never creates the second one there, but also tries to delete it.
const POD_NETWORK_NAT: [&str; 2] = [chain_names::FLANNEL_POSTROUTING, chain_names::FLANNEL_FORWARD];

/// The pod network's chains in `filter`.
const POD_NETWORK_FILTER: [&str; 1] = [chain_names::FLANNEL_FORWARD];

/// Jumps that only the IPVS mode adds, all in `filter`, each with its chain.
const IPVS_JUMPS: [(&str, &str); 6] = [
    ("FORWARD", "-m comment --comment \"kubernetes forwarding rules\" -j KUBE-FORWARD"),
    ("INPUT", "-m comment --comment \"kubernetes health check rules\" -j KUBE-NODE-PORT"),
    ("INPUT", "-m comment --comment \"kube-proxy firewall rules\" -j KUBE-PROXY-FIREWALL"),
    ("FORWARD", "-m comment --comment \"kube-proxy firewall rules\" -j KUBE-PROXY-FIREWALL"),
    ("INPUT", "-m comment --comment \"kubernetes ipvs access filter\" -j KUBE-IPVS-FILTER"),
    ("OUTPUT", "-m comment --comment \"kubernetes ipvs access filter\" -j KUBE-IPVS-OUT-FILTER"),
];

/// The part of sepal whose rules are deleted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Owner {
    /// The service proxy.
    Proxy,
    /// The pod network.
    PodNetwork,
}

impl Owner {
    /// Finds the owner's rules and chains in a table. `saved` is the output of iptables-save.
    #[must_use]
    pub(crate) fn leftovers<'t>(self, table: &'static str, saved: &'t str) -> Leftovers<'t> {
        match self {
            Self::Proxy => Leftovers::of(table, saved),
            Self::PodNetwork => Leftovers::of_pod_network(table, saved),
        }
    }
}

/// A rule of another program that jumps to one of our chains.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ForeignRule {
    /// The chain that stays because of the rule.
    pub chain: String,
    /// The rule, as iptables-save prints it: an `-A` line.
    pub rule: String,
}

/// The leftover rules and chains in one table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Leftovers<'t> {
    table: &'static str,
    /// Jumps in built-in chains, one `-A` line for each copy.
    jumps: Vec<&'t str>,
    /// Our chains.
    chains: Vec<&'t str>,
    foreign_rules: Vec<ForeignRule>,
}

impl<'t> Leftovers<'t> {
    /// Finds the leftovers of the service proxy.
    fn of(table: &'static str, saved: &'t str) -> Self {
        Self::find(table, saved, &OwnRules::of(table))
    }

    /// Finds the leftovers of the pod network.
    fn of_pod_network(table: &'static str, saved: &'t str) -> Self {
        Self::find(table, saved, &OwnRules::of_pod_network(table))
    }

    fn find(table: &'static str, saved: &'t str, ours: &OwnRules) -> Self {
        let mut left = Self { table, jumps: Vec::new(), chains: Vec::new(), foreign_rules: Vec::new() };
        let mut of_services = Vec::new();
        let mut present = BTreeSet::new();
        let mut inside = false;
        for line in saved.lines() {
            if let Some(name) = line.strip_prefix('*') {
                inside = name.trim_end() == table;
            } else if line == "COMMIT" {
                inside = false;
            } else if let Some(chain) = line.strip_prefix(':').filter(|_| inside) {
                let chain = chain.split(' ').next().unwrap_or_default();
                if ours.fixed.contains(&chain) {
                    present.insert(chain);
                } else if ours.is_chain(chain) {
                    of_services.push(chain);
                }
            } else if inside && line.starts_with("-A ") {
                left.rule(ours, line);
            }
        }
        left.chains = ours.fixed.iter().filter_map(|chain| present.get(chain).copied()).chain(of_services).collect();
        left
    }

    fn rule(&mut self, ours: &OwnRules, line: &'t str) {
        let (chain, arguments) = split_line(line);
        // Rules in our own chains are deleted together with the chains.
        let jumps_to = target(arguments).filter(|to| !ours.is_chain(chain) && ours.is_chain(to));
        let Some(to) = jumps_to else { return };
        if ours.jumps.contains(&(chain, Digest::of_rule(arguments))) {
            self.jumps.push(line);
        } else {
            self.foreign_rules.push(ForeignRule { chain: to.into_owned(), rule: line.to_owned() });
        }
    }

    /// The number of jumps to delete.
    #[must_use]
    pub const fn jumps(&self) -> usize {
        self.jumps.len()
    }

    /// The chains to delete, in this order.
    pub fn deleted(&self) -> impl Iterator<Item = &'t str> {
        let kept: BTreeSet<&str> = self.foreign_rules.iter().map(|foreign| foreign.chain.as_str()).collect();
        self.chains.iter().copied().filter(move |chain| !kept.contains(chain))
    }

    /// Rules of other programs that jump to our chains. Those chains stay.
    #[must_use]
    pub(crate) fn foreign_rules(&self) -> &[ForeignRule] {
        &self.foreign_rules
    }

    /// Returns the input of iptables-restore that deletes the leftovers, or an empty text if there are none. It first deletes the jumps and
    /// all rules, then the empty chains in their own transactions. If one of these is refused, the remaining chains have no effect.
    #[must_use]
    pub fn input(&self, variant: Variant) -> String {
        let group = match variant {
            Variant::Nft => GROUP,
            Variant::Legacy => usize::MAX,
        };
        let mut input = String::new();
        let removed: String = self.jumps.iter().filter_map(|jump| jump.strip_prefix("-A ")).map(|jump| format!("-D {jump}\n")).collect();
        self.transaction(&mut input, &removed);
        for chains in self.chains.chunks(group) {
            self.transaction(&mut input, &chains.iter().map(|chain| format!(":{chain} - [0:0]\n")).collect::<String>());
        }
        for chains in self.deleted().collect::<Vec<_>>().chunks(group) {
            self.transaction(&mut input, &chains.iter().map(|chain| format!("-X {chain}\n")).collect::<String>());
        }
        input
    }

    fn transaction(&self, input: &mut String, lines: &str) {
        if !lines.is_empty() {
            input.extend(["*", self.table, "\n", lines, "COMMIT\n"]);
        }
    }
}

/// The chains and jumps of one owner in a table.
struct OwnRules {
    table: &'static str,
    fixed: &'static [&'static str],
    /// Jumps, each with its chain.
    jumps: BTreeSet<(&'static str, Digest)>,
    /// The chains of service ports are included.
    proxy: bool,
}

impl OwnRules {
    fn of(table: &'static str) -> Self {
        let fixed: &[&str] = match table {
            "nat" => &NAT,
            "filter" => &FILTER,
            _ => &[chain_names::CANARY],
        };
        // kubelet adds the jumps to KUBE-FIREWALL too, so they stay.
        let jumps = JUMPS.iter().filter(|jump| jump.table.as_str() == table && jump.to != chain_names::FIREWALL && !jump.pod_network);
        let jumps = jumps.map(|jump| (jump.from, Digest::of_rule(&jump.arguments())));
        let ipvs = IPVS_JUMPS.iter().filter(|_| table == "filter").map(|(from, arguments)| (*from, Digest::of_rule(arguments)));
        Self { table, fixed, jumps: jumps.chain(ipvs).collect(), proxy: true }
    }

    fn of_pod_network(table: &'static str) -> Self {
        let fixed: &[&str] = match table {
            "nat" => &POD_NETWORK_NAT,
            "filter" => &POD_NETWORK_FILTER,
            _ => &[],
        };
        let jumps = JUMPS.iter().filter(|jump| jump.table.as_str() == table && jump.pod_network);
        Self { table, fixed, jumps: jumps.map(|jump| (jump.from, Digest::of_rule(&jump.arguments()))).collect(), proxy: false }
    }

    fn is_chain(&self, name: &str) -> bool {
        self.fixed.contains(&name) || self.proxy && self.table == "nat" && ChainKind::of(name).is_some()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NAT_SAVED: &str = "# Generated by iptables-save v1.8.9 on Mon Jan  5 10:00:00 2026
*nat
:PREROUTING ACCEPT [0:0]
:INPUT ACCEPT [0:0]
:OUTPUT ACCEPT [0:0]
:POSTROUTING ACCEPT [0:0]
:DOCKER - [0:0]
:KUBE-EXT-NUKIZ6OKUXPJNT4C - [0:0]
:KUBE-FW-NUKIZ6OKUXPJNT4C - [0:0]
:KUBE-KUBELET-CANARY - [0:0]
:KUBE-MARK-MASQ - [0:0]
:KUBE-NODEPORTS - [0:0]
:KUBE-POSTROUTING - [0:0]
:KUBE-PROXY-CANARY - [0:0]
:KUBE-SEP-SXIVWICOYRO3J4NJ - [0:0]
:KUBE-SERVICES - [0:0]
:KUBE-SVC-XPGD46QRK7WJZT7O - [0:0]
:KUBE-SVL-XPGD46QRK7WJZT7O - [0:0]
-A PREROUTING -m comment --comment \"kubernetes service portals\" -j KUBE-SERVICES
-A PREROUTING -m addrtype --dst-type LOCAL -j DOCKER
-A PREROUTING -m comment --comment \"kubernetes service portals\" -j KUBE-SERVICES
-A OUTPUT -m comment --comment \"kubernetes service portals\" -j KUBE-SERVICES
-A POSTROUTING -m comment --comment \"kubernetes postrouting rules\" -j KUBE-POSTROUTING
-A POSTROUTING -m comment --comment \"not to -j KUBE-SERVICES\" -j MASQUERADE
-A KUBE-SERVICES -d 10.20.30.41/32 -p tcp -m comment --comment \"ns1/svc1:p80 cluster IP\" -m tcp --dport 80 -j KUBE-SVC-XPGD46QRK7WJZT7O
-A KUBE-SVC-XPGD46QRK7WJZT7O -j KUBE-SEP-SXIVWICOYRO3J4NJ
COMMIT
# Completed on Mon Jan  5 10:00:00 2026
";

    #[test]
    fn exactly_our_rules_are_deleted() {
        let left = Leftovers::of("nat", NAT_SAVED);
        assert_eq!((left.jumps(), left.foreign_rules()), (4, &[][..]));
        let portals = "-m comment --comment \"kubernetes service portals\" -j KUBE-SERVICES";
        let chains = [
            "KUBE-SERVICES",
            "KUBE-NODEPORTS",
            "KUBE-POSTROUTING",
            "KUBE-MARK-MASQ",
            "KUBE-PROXY-CANARY",
            "KUBE-EXT-NUKIZ6OKUXPJNT4C",
            "KUBE-FW-NUKIZ6OKUXPJNT4C",
            "KUBE-SEP-SXIVWICOYRO3J4NJ",
            "KUBE-SVC-XPGD46QRK7WJZT7O",
            "KUBE-SVL-XPGD46QRK7WJZT7O",
        ];
        let flushed: String = chains.iter().map(|chain| format!(":{chain} - [0:0]\n")).collect();
        let deleted: String = chains.iter().map(|chain| format!("-X {chain}\n")).collect();
        let input = format!(
            "*nat\n-D PREROUTING {portals}\n-D PREROUTING {portals}\n-D OUTPUT {portals}\n\
             -D POSTROUTING -m comment --comment \"kubernetes postrouting rules\" -j KUBE-POSTROUTING\nCOMMIT\n\
             *nat\n{flushed}COMMIT\n*nat\n{deleted}COMMIT\n"
        );
        for variant in [Variant::Nft, Variant::Legacy] {
            assert_eq!(left.input(variant), input);
        }
    }

    #[test]
    fn kubelets_firewall_stays_with_its_jumps() {
        let saved = "*filter\n:INPUT ACCEPT [0:0]\n:KUBE-FIREWALL - [0:0]\n:KUBE-KUBELET-CANARY - [0:0]\n:KUBE-FORWARD - [0:0]\n\
            :KUBE-SVC-XPGD46QRK7WJZT7O - [0:0]\n-A INPUT -j KUBE-FIREWALL\n-A OUTPUT -j KUBE-FIREWALL\n\
            -A FORWARD -m comment --comment \"kubernetes forwarding rules\" -j KUBE-FORWARD\n\
            -A KUBE-FIREWALL ! -s 127.0.0.0/8 -d 127.0.0.0/8 -j DROP\nCOMMIT\n*mangle\n:KUBE-PROXY-CANARY - [0:0]\nCOMMIT\n";
        let left = Leftovers::of("filter", saved);
        assert_eq!((left.jumps(), left.foreign_rules()), (1, &[][..]));
        // A chain with a service port's name is ours in nat only.
        assert_eq!(left.deleted().collect::<Vec<_>>(), ["KUBE-FORWARD"]);
        assert_eq!(Leftovers::of("mangle", saved).deleted().collect::<Vec<_>>(), ["KUBE-PROXY-CANARY"]);
    }

    #[test]
    fn every_jump_is_found() {
        let mut found = 0;
        for table in TABLES {
            let mut saved = format!("*{table}\n");
            for jump in JUMPS.iter().filter(|jump| jump.table.as_str() == table && !jump.pod_network) {
                saved.extend([format!("-A {} {}\n", jump.from, jump.arguments())]);
            }
            if table == "filter" {
                saved.extend(IPVS_JUMPS.map(|(from, arguments)| format!("-A {from} {arguments}\n")));
            }
            let left = Leftovers::of(table, &saved);
            assert_eq!(left.foreign_rules(), []);
            found += left.jumps();
        }
        assert_eq!(found, 12 + IPVS_JUMPS.len());
    }

    #[test]
    fn each_owner_deletes_only_its_own_rules() {
        let saved = "*nat\n:POSTROUTING ACCEPT [0:0]\n:FLANNEL-POSTRTG - [0:0]\n:KUBE-POSTROUTING - [0:0]\n\
            -A POSTROUTING -m comment --comment \"kubernetes postrouting rules\" -j KUBE-POSTROUTING\n\
            -A POSTROUTING -m comment --comment \"flanneld masq\" -j FLANNEL-POSTRTG\n\
            -A FLANNEL-POSTRTG -s 10.244.0.0/16 -m comment --comment \"flanneld masq\" -j MASQUERADE\nCOMMIT\n";
        let (proxy, network) = (Leftovers::of("nat", saved), Leftovers::of_pod_network("nat", saved));
        assert_eq!((proxy.jumps(), proxy.deleted().collect::<Vec<_>>()), (1, vec!["KUBE-POSTROUTING"]));
        assert_eq!((network.jumps(), network.deleted().collect::<Vec<_>>()), (1, vec!["FLANNEL-POSTRTG"]));
        assert_eq!(Leftovers::of_pod_network("mangle", saved).input(Variant::Nft), "");
    }

    #[test]
    fn only_chains_that_foreign_rules_jump_to_stay_and_they_are_emptied() {
        let foreign = "-A DOCKER -d 10.0.0.1/32 -g KUBE-MARK-MASQ";
        let portal = "-A PREROUTING -j KUBE-SERVICES";
        let saved = NAT_SAVED.replace("COMMIT", &format!("{foreign}\n{portal}\nCOMMIT"));
        let left = Leftovers::of("nat", &saved);
        let entry = |chain: &str, rule: &str| ForeignRule { chain: chain.into(), rule: rule.into() };
        assert_eq!(left.foreign_rules(), [entry("KUBE-MARK-MASQ", foreign), entry("KUBE-SERVICES", portal)]);
        assert_eq!((left.jumps(), left.deleted().count()), (4, 8));
        let input = left.input(Variant::Legacy);
        for kept in ["KUBE-SERVICES", "KUBE-MARK-MASQ"] {
            assert!(input.contains(&format!(":{kept} - [0:0]\n")) && !input.contains(&format!("-X {kept}\n")), "{input}");
        }
        assert!(!input.contains("DOCKER"), "{input}");
    }

    #[test]
    fn without_leftovers_nothing_is_written() {
        for saved in ["", "# Warning: nothing here\n*nat\n:PREROUTING ACCEPT [0:0]\n:KUBE-KUBELET-CANARY - [0:0]\nCOMMIT\n"] {
            assert_eq!(Leftovers::of("nat", saved).input(Variant::Nft), "");
        }
    }

    #[test]
    fn nft_deletes_many_chains_in_groups_and_legacy_in_one_commit() {
        let chains: String = (0..600).map(|n| format!(":KUBE-SEP-{n:016} - [0:0]\n")).collect();
        let saved = format!("*nat\n{chains}COMMIT\n");
        let left = Leftovers::of("nat", &saved);
        for (variant, commits) in [(Variant::Nft, 6), (Variant::Legacy, 2)] {
            let input = left.input(variant);
            assert_eq!(input.matches("COMMIT\n").count(), commits, "{variant}");
            assert_eq!((input.matches("\n:").count(), input.matches("-X ").count()), (600, 600));
        }
    }
}
