//! One test rule for each iptables match and target that sepal writes: for Services, for the pod network, and as the CNI plugin. `preflight`
//! writes them to find out whether the iptables program and the kernel support them.

use std::fmt::Write as _;

use crate::cluster::Family;
use crate::table::Table;

/// A match or target, with a rule that uses it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct RuleProbe {
    /// The name after `-m` or `-j`.
    pub name: &'static str,
    /// The table of the rule.
    pub table: Table,
    rule: &'static str,
    /// What does not work without the match or target. Empty if sepal cannot work at all without it.
    pub without: &'static str,
}

/// The chain of the test rules.
const CHAIN: &str = "SEPAL-PREFLIGHT";

const fn nat(name: &'static str, rule: &'static str) -> RuleProbe {
    RuleProbe { name, table: Table::Nat, rule, without: "" }
}

const fn filter(name: &'static str, rule: &'static str) -> RuleProbe {
    RuleProbe { name, table: Table::Filter, rule, without: "" }
}

/// All matches and targets. The words in braces differ by IP family and by iptables version.
pub(crate) const PROBES: [RuleProbe; 16] = [
    nat("comment", "-m comment --comment \"sepal preflight\" -j RETURN"),
    nat("tcp", "-p tcp -m tcp --dport 80 -j RETURN"),
    nat("udp", "-p udp -m udp --dport 53 -j RETURN"),
    nat("addrtype", "-m addrtype --dst-type LOCAL -j RETURN"),
    filter("conntrack", "-m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT"),
    nat("mark", "-m mark --mark 0x4000/0x4000 -j RETURN"),
    nat("statistic", "-m statistic --mode random --probability 0.3333333333 -j RETURN"),
    nat("DNAT", "-p tcp -m tcp -j DNAT --to-destination {to}"),
    nat("MASQUERADE", "-j MASQUERADE{random}"),
    nat("MARK", "-j MARK --or-mark 0x4000"),
    filter("REJECT", "-j REJECT"),
    filter("DROP", "-j DROP"),
    RuleProbe {
        without: "sepal writes no rules for Services with sessionAffinity",
        ..nat("recent", "-m recent --name SEPAL-PREFLIGHT --rcheck --seconds 10800 --reap -j RETURN")
    },
    RuleProbe { without: "sepal writes no rules for Services with protocol SCTP", ..nat("sctp", "-p sctp -m sctp --dport 80 -j RETURN") },
    RuleProbe {
        without: "the CNI plugin cannot map host ports to pods",
        ..nat("multiport", "-p tcp -m multiport --dports 80,443 -j RETURN")
    },
    RuleProbe {
        without: "sepal does not count packets dropped for their state, nor NodePort traffic on loopback",
        ..filter("nfacct", "-m nfacct --nfacct-name ct_state_invalid_dropped_pkts -j RETURN")
    },
];

impl RuleProbe {
    /// Returns the input of iptables-restore that tries the rule. It adds the rule in a chain that no rule jumps to.
    #[must_use]
    pub(crate) fn text(&self, family: Family, random_fully: bool) -> String {
        let to = if family == Family::V4 { "192.0.2.1:80" } else { "[2001:db8::1]:80" };
        let rule = self.rule.replace("{to}", to).replace("{random}", if random_fully { " --random-fully" } else { "" });
        let mut text = String::new();
        let _ = write!(text, "*{}\n:{CHAIN} - [0:0]\n-A {CHAIN} {rule}\nCOMMIT\n", self.table.as_str());
        text
    }
}

/// Returns the matches and targets in rules, without chains and without the verdicts ACCEPT and RETURN. For tests that compare them with
/// the probes.
#[cfg(test)]
pub(crate) fn used(rules: &str) -> std::collections::BTreeSet<&str> {
    let words = |flag| rules.split(flag).skip(1).filter_map(|rest: &str| rest.split_whitespace().next());
    let is_chain = |word: &str| ["KUBE-", "FLANNEL-", "CNI-"].iter().any(|start| word.starts_with(start));
    words(" -m ").chain(words(" -j ").filter(|word| !["ACCEPT", "RETURN"].contains(word) && !is_chain(word))).collect()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn every_match_and_target_of_the_golden_files_has_a_probe() {
        let golden = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("golden");
        let mut used = BTreeSet::new();
        let mut files = 0;
        for case in std::fs::read_dir(golden).expect("readable") {
            for file in std::fs::read_dir(case.expect("readable").path()).expect("a folder") {
                let text = std::fs::read_to_string(file.expect("readable").path()).expect("text");
                files += 1;
                used.extend(super::used(&text).into_iter().map(str::to_owned));
            }
        }
        assert!(files > 50 && used.len() > 10, "{files} files, {used:?}");
        let tried: BTreeSet<String> = PROBES.iter().map(|probe| probe.name.to_owned()).collect();
        let only_cni = BTreeSet::from(["multiport".to_owned()]);
        assert_eq!(tried.difference(&used).cloned().collect::<BTreeSet<_>>(), only_cni, "probes that no rule needs");
        assert_eq!(used.difference(&tried).collect::<Vec<_>>(), Vec::<&String>::new(), "matches and targets without a probe");
    }

    #[test]
    fn each_probe_uses_the_match_or_target_of_its_name() {
        for probe in PROBES {
            let text = probe.text(Family::V6, true);
            assert!(text.contains(&format!("-m {} ", probe.name)) || text.contains(&format!("-j {}", probe.name)), "{text}");
            assert!(!text.contains('{'), "{text}");
        }
    }
}
