//! Walks the first packet of a connection through the netfilter hooks: nat, then filter, then nat again, as the kernel does. Where a rule
//! matches with a probability, the walk follows both branches, so the result contains every possible ending.

use crate::table::Table;

use super::chains::{Branch, HookResult, Walker};
use super::ending::{Fate, Walk};
use super::packet::{LocalNode, Origin, Packet};
use super::ruleset::Ruleset;

/// Walks a packet through the rules.
#[must_use]
pub fn walk(rules: &Ruleset, packet: Packet, node: &LocalNode) -> Walk {
    let sent_here = packet.origin == Origin::Node;
    let mut walker = Walker::new(rules, packet, node);
    let first = if sent_here { "OUTPUT" } else { "PREROUTING" };
    let mut results = walker.hook(Table::Nat, first, Branch::new(&packet));
    results = for_passed(results, |branch| {
        let filter = match (sent_here, node.is_local(branch.to.ip())) {
            (true, _) => "OUTPUT",
            (false, true) => "INPUT",
            (false, false) => "FORWARD",
        };
        walker.hook(Table::Filter, filter, branch)
    });
    results = for_passed(results, |branch| {
        let to_node = node.is_local(branch.to.ip());
        if to_node && !sent_here {
            return vec![HookResult { branch, fate: Fate::Passed }];
        }
        let left = walker.hook(Table::Nat, "POSTROUTING", branch);
        if to_node { over_loopback(&mut walker, left) } else { left }
    });
    Walk { endings: results.into_iter().map(HookResult::into_ending).collect(), not_understood: walker.not_understood }
}

/// Takes a packet from the node to itself through INPUT, because it comes in again over loopback. It does not pass the nat table a second
/// time.
fn over_loopback(walker: &mut Walker<'_>, results: Vec<HookResult>) -> Vec<HookResult> {
    "lo".clone_into(&mut walker.in_interface);
    let arrived = for_passed(results, |branch| walker.hook(Table::Filter, "INPUT", branch));
    walker.in_interface.clear();
    arrived
}

/// Takes each branch that passed through the next hook. Keeps the results of the other branches.
fn for_passed(results: Vec<HookResult>, mut next: impl FnMut(Branch) -> Vec<HookResult>) -> Vec<HookResult> {
    let mut all = Vec::new();
    for HookResult { branch, fate } in results {
        match fate {
            Fate::Passed => all.extend(next(branch)),
            fate => all.push(HookResult { branch, fate }),
        }
    }
    all
}

#[cfg(test)]
mod tests {
    use super::super::ending::Ending;
    use super::*;
    use crate::cluster::Protocol;

    fn node() -> LocalNode {
        LocalNode {
            addresses: vec!["192.0.2.1".parse().expect("an IP")],
            subnets: Vec::new(),
            pod_interface: "cni0".into(),
            external_interface: "eth0".into(),
        }
    }

    fn packet(origin: Origin, source: &str, to: &str) -> Packet {
        Packet { source: source.parse().expect("an IP"), to: to.parse().expect("an address"), protocol: Protocol::Tcp, origin }
    }

    /// The endings, one line each.
    fn endings(text: &str, packet: Packet) -> Vec<String> {
        let mut lines: Vec<String> = walk(&Ruleset::live(text), packet, &node())
            .endings
            .iter()
            .map(|ending| {
                let Ending { probability, to, translated, masqueraded, fate, .. } = ending;
                format!(
                    "{probability:.2} {fate:?} {to}{}{}",
                    if *translated { " dnat" } else { "" },
                    if *masqueraded { " masq" } else { "" }
                )
            })
            .collect();
        lines.sort_unstable();
        lines
    }

    #[test]
    fn probabilities_add_up_and_marks_are_kept() {
        let text = "*nat\n-A PREROUTING -j S\n-A S -d 10.96.0.1/32 -p tcp -m tcp --dport 80 -j V\n-A V ! -s 10.244.0.0/16 -j M\n\
                    -A V -m statistic --mode random --probability 0.25 -j A\n-A V -j B\n-A A -s 10.244.0.5/32 -j M\n\
                    -A A -p tcp -j DNAT --to-destination 10.244.0.5:8080\n-A B -p tcp -j DNAT --to-destination 10.244.1.6:8080\n-A M -j MARK --or-mark 0x4000\n\
                    -A POSTROUTING -m mark ! --mark 0x4000/0x4000 -j RETURN\n-A POSTROUTING -j MASQUERADE\nCOMMIT\n";
        let pod = |source| packet(Origin::Pod, source, "10.96.0.1:80");
        assert_eq!(endings(text, pod("10.244.0.7")), ["0.25 Passed 10.244.0.5:8080 dnat", "0.75 Passed 10.244.1.6:8080 dnat"]);
        assert_eq!(endings(text, pod("10.244.0.5")), ["0.25 Passed 10.244.0.5:8080 dnat masq", "0.75 Passed 10.244.1.6:8080 dnat"]);
        let outside = packet(Origin::Outside, "203.0.113.9", "10.96.0.1:80");
        assert_eq!(endings(text, outside), ["0.25 Passed 10.244.0.5:8080 dnat masq", "0.75 Passed 10.244.1.6:8080 dnat masq"]);
        assert_eq!(endings(text, packet(Origin::Pod, "10.244.0.7", "10.96.0.1:81")), ["1.00 Passed 10.96.0.1:81"]);
    }

    #[test]
    fn the_destination_decides_which_filter_chain_applies() {
        let text = "*filter\n:FORWARD DROP [0:0]\n-A FORWARD -i cni0 -j ACCEPT\n-A INPUT -p tcp -m tcp --dport 22 -j REJECT\n-A OUTPUT -d 198.51.100.0/24 -j DROP\nCOMMIT\n";
        assert_eq!(endings(text, packet(Origin::Pod, "10.244.0.7", "203.0.113.9:80")), ["1.00 Passed 203.0.113.9:80"]);
        assert_eq!(endings(text, packet(Origin::Outside, "203.0.113.9", "10.244.0.7:80")), ["1.00 Dropped 10.244.0.7:80"]);
        assert_eq!(endings(text, packet(Origin::Outside, "203.0.113.9", "192.0.2.1:22")), ["1.00 Refused 192.0.2.1:22"]);
        assert_eq!(endings(text, packet(Origin::Node, "192.0.2.1", "198.51.100.7:80")), ["1.00 Dropped 198.51.100.7:80"]);
        // A packet of the node to itself passes INPUT, too.
        assert_eq!(endings(text, packet(Origin::Node, "127.0.0.1", "127.0.0.1:22")), ["1.00 Refused 127.0.0.1:22"]);
    }

    #[test]
    fn the_rule_that_stops_a_packet_is_named() {
        let stopped_by = |text: &str, packet| {
            let walked = walk(&Ruleset::live(text), packet, &node());
            assert_eq!(walked.endings.len(), 1, "{walked:?}");
            walked.endings[0].stopped_by().map(|step| format!("{} {}", step.table, step.line()))
        };
        let to_pod = packet(Origin::Outside, "203.0.113.9", "10.244.0.7:80");
        let policy = "*filter\n:FORWARD DROP [0:0]\n-A FORWARD -i cni0 -j ACCEPT\nCOMMIT\n";
        assert_eq!(stopped_by(policy, to_pod).as_deref(), Some("filter -P FORWARD DROP"));
        let returned = "*filter\n:FORWARD DROP [0:0]\n-A FORWARD -p tcp -j RETURN\n-A FORWARD -j ACCEPT\nCOMMIT\n";
        assert_eq!(stopped_by(returned, to_pod).as_deref(), Some("filter -P FORWARD DROP"));
        let refused = "*filter\n-A FORWARD -j A\n-A A -d 10.244.0.7/32 -p tcp -m tcp --dport 80 -j REJECT --reject-with icmp-port-unreachable\nCOMMIT\n";
        let line = "filter -A A -d 10.244.0.7/32 -p tcp -m tcp --dport 80 -j REJECT --reject-with icmp-port-unreachable";
        assert_eq!(stopped_by(refused, to_pod).as_deref(), Some(line));
        assert_eq!(stopped_by("*filter\n-A FORWARD -j ACCEPT\nCOMMIT\n", to_pod), None);
    }

    #[test]
    fn returns_loops_and_unknown_rules() {
        let text = "*nat\n-A PREROUTING -j A\n-A PREROUTING -p tcp -j DNAT --to-destination 10.0.0.9:1\n-A A -g B\n-A A -p tcp -j DNAT --to-destination 10.0.0.8:1\n-A B -j RETURN\nCOMMIT\n";
        let any = packet(Origin::Outside, "203.0.113.9", "10.0.0.1:80");
        assert_eq!(endings(text, any), ["1.00 Passed 10.0.0.9:1 dnat"], "a RETURN after -g skips the rest of the calling chain");
        let looped = walk(&Ruleset::live("*nat\n-A PREROUTING -j A\n-A A -j B\n-A B -j A\nCOMMIT\n"), any, &node());
        assert_eq!((looped.endings.len(), looped.not_understood.len(), looped.endings[0].steps.len()), (1, 1, 0), "{looped:?}");
        let unknown = "*nat\n-A PREROUTING -m socket --transparent -j DROP\n-A PREROUTING -d 10.9.0.0/16 -m socket --transparent -j DROP\n-A PREROUTING -j TPROXY --on-port 1\nCOMMIT\n";
        let walked = walk(&Ruleset::live(unknown), any, &node());
        assert_eq!(walked.endings[0].fate, Fate::Passed);
        let skipped: Vec<&str> = walked.not_understood.iter().map(String::as_str).collect();
        assert_eq!(skipped, ["nat PREROUTING: a rule with --transparent", "nat PREROUTING: target TPROXY --on-port 1"]);
    }
}
