//! Prints the result of a walk as text and as JSON.

use std::fmt::Write as _;

use serde_json::{Value, json};

use super::ending::{Ending, Fate, Walk, WalkStep};
use super::packet::Packet;
use super::rule::RuleTarget;

/// Describes where the destination of an ending is and how packets get there. The rules do not contain this information.
pub(crate) type LocationText<'a> = &'a dyn Fn(&Ending) -> String;

/// Prints the walk as a tree. Each line is a rule that decided something. The leaves are the endings.
#[must_use]
pub(crate) fn text(packet: &Packet, walk: &Walk, location: LocationText<'_>) -> String {
    let mut text = format!("{packet}\n");
    let endings = sorted(walk);
    print_branch(&mut text, &endings, 0, "", packet, location);
    for rule in &walk.not_understood {
        let _ = writeln!(text, "not understood, and skipped: {rule}");
    }
    text
}

/// Returns the walk as a JSON object: `source`, `destination`, `protocol`, `origin`; `endings`, each with `probability`, `fate` (`passed`,
/// `refused` or `dropped`), `destination`, `translated`, `masqueraded`, `whereabouts`, `stoppedBy` (table, chain and rule; null for
/// `passed`) and `steps`; and `notUnderstood`.
#[must_use]
pub(crate) fn json(packet: &Packet, walk: &Walk, location: LocationText<'_>) -> Value {
    let step = |step: &WalkStep| json!({"table": step.table.as_str(), "chain": step.chain, "comment": step.comment, "action": target_text(&step.target)});
    let ending = |ending: &&Ending| {
        json!({
            "probability": ending.probability, "fate": fate(ending.fate), "destination": ending.to.to_string(), "translated": ending.translated,
            "masqueraded": ending.masqueraded, "whereabouts": location(ending),
            "stoppedBy": ending.stopped_by().map(|step| json!({"table": step.table.as_str(), "chain": step.chain, "rule": step.line()})),
            "steps": ending.steps.iter().map(step).collect::<Vec<_>>(),
        })
    };
    json!({
        "source": packet.source.to_string(), "destination": packet.to.to_string(), "protocol": packet.protocol.as_str(),
        "origin": format!("{:?}", packet.origin).to_lowercase(), "endings": sorted(walk).iter().map(ending).collect::<Vec<_>>(),
        "notUnderstood": walk.not_understood,
    })
}

fn sorted(walk: &Walk) -> Vec<&Ending> {
    let mut endings: Vec<&Ending> = walk.endings.iter().collect();
    endings.sort_by(|a, b| (a.fate, a.to).cmp(&(b.fate, b.to)).then_with(|| b.probability.total_cmp(&a.probability)));
    endings
}

/// Prints a group of endings that share their first `depth` steps.
fn print_branch(text: &mut String, endings: &[&Ending], depth: usize, indent: &str, packet: &Packet, location: LocationText<'_>) {
    let mut groups: Vec<Vec<&Ending>> = Vec::new();
    for ending in endings {
        match groups.iter_mut().find(|group| group[0].steps.get(depth) == ending.steps.get(depth)) {
            Some(group) => group.push(ending),
            None => groups.push(vec![ending]),
        }
    }
    let last = groups.len().saturating_sub(1);
    for (number, group) in groups.iter().enumerate() {
        // A single group continues at the same indent.
        let (line, deeper) = match (groups.len(), number == last) {
            (1, _) => (String::new(), String::new()),
            (_, true) => ("\u{2514}\u{2500} ".to_owned(), "   ".to_owned()),
            (_, false) => ("\u{251c}\u{2500} ".to_owned(), "\u{2502}  ".to_owned()),
        };
        if let Some(step) = group[0].steps.get(depth) {
            let _ = writeln!(text, "{indent}{line}{}", step_text(step));
            print_branch(text, group, depth + 1, &format!("{indent}{deeper}"), packet, location);
        } else {
            for ending in group {
                let _ = writeln!(text, "{indent}{line}{}", ending_text(ending, packet, location));
            }
        }
    }
}

fn step_text(step: &WalkStep) -> String {
    let WalkStep { table, chain, comment, target, .. } = step;
    let comment = if comment.is_empty() { String::new() } else { format!(" ({comment})") };
    format!("{table} {chain}: {}{comment}", target_text(target))
}

/// Describes what a target does with the packet.
fn target_text(target: &RuleTarget) -> String {
    match target {
        RuleTarget::Continue => "counted".to_owned(),
        RuleTarget::Accept => "accepted".to_owned(),
        RuleTarget::Drop => "dropped".to_owned(),
        RuleTarget::Reject => "refused".to_owned(),
        RuleTarget::Return => "returned".to_owned(),
        RuleTarget::Jump(to) | RuleTarget::Goto(to) => match meaning(to) {
            "" => format!("to {to}"),
            meaning => format!("to {to}, {meaning}"),
        },
        RuleTarget::SetMark(value, mask) if value == mask => format!("marked {value:#x}"),
        RuleTarget::SetMark(value, 0) => format!("mark {value:#x} inverted"),
        RuleTarget::SetMark(value, mask) => format!("marked {value:#x}/{mask:#x}"),
        RuleTarget::Masquerade => "gets this node's address as its source".to_owned(),
        RuleTarget::Dnat(ip, Some(port)) => format!("sent to {}", std::net::SocketAddr::new(*ip, *port)),
        RuleTarget::Dnat(ip, None) => format!("sent to {ip}"),
        RuleTarget::Unknown(target) => target.clone(),
    }
}

/// Describes the purpose of a chain. Empty for chains that sepal does not write.
fn meaning(chain: &str) -> &'static str {
    const OF_PREFIX: [(&str, &str); 6] = [
        ("KUBE-SVC-", "the Service's endpoints"),
        ("KUBE-SVL-", "the Service's endpoints on this node"),
        ("KUBE-EXT-", "traffic from outside the cluster"),
        ("KUBE-FW-", "the load balancer's source ranges"),
        ("KUBE-SEP-", "an endpoint"),
        ("CNI-DN-", "a pod's host ports"),
    ];
    match chain {
        "KUBE-SERVICES" => "all Services",
        "KUBE-NODEPORTS" => "all NodePorts",
        "KUBE-EXTERNAL-SERVICES" => "Services that traffic from outside cannot reach",
        "KUBE-PROXY-FIREWALL" => "load balancers' source ranges",
        "KUBE-MARK-MASQ" => "it will be masqueraded",
        "KUBE-POSTROUTING" => "masquerade of marked packets",
        "KUBE-FORWARD" => "forwarding of Services' traffic",
        "KUBE-FIREWALL" => "no packets from outside to loopback",
        "FLANNEL-POSTRTG" => "masquerade of pods",
        "FLANNEL-FWD" => "forwarding of pods' traffic",
        _ => OF_PREFIX.iter().find(|(prefix, _)| chain.starts_with(prefix)).map_or("", |(_, meaning)| meaning),
    }
}

const fn fate(fate: Fate) -> &'static str {
    match fate {
        Fate::Passed => "passed",
        Fate::Refused => "refused",
        Fate::Dropped => "dropped",
    }
}

fn ending_text(ending: &Ending, packet: &Packet, location: LocationText<'_>) -> String {
    let Ending { probability, to, masqueraded, fate, .. } = ending;
    let share = if *probability < 0.999_999 { format!("{} %: ", percent(*probability)) } else { String::new() };
    match fate {
        Fate::Passed => {
            let source = if *masqueraded { "this node's address".to_owned() } else { packet.source.to_string() };
            format!("=> {share}to {to}, {}, from {source}", location(ending))
        }
        Fate::Refused => format!("=> {share}refused by {}: the sender gets an error at once", stopping_rule(ending)),
        Fate::Dropped => format!("=> {share}dropped by {}: the sender gets no answer", stopping_rule(ending)),
    }
}

/// Returns the rule that stops the packet, as arguments of `iptables`.
fn stopping_rule(ending: &Ending) -> String {
    ending.stopped_by().map_or_else(|| "no rule".to_owned(), |step| format!("'-t {} {}'", step.table, step.line()))
}

/// Formats a probability in percent, with at most two decimal places.
fn percent(probability: f64) -> String {
    let text = format!("{:.2}", probability * 100.0);
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cluster::Protocol;
    use crate::explain::packet::{LocalNode, Origin};
    use crate::explain::ruleset::Ruleset;
    use crate::explain::walk::walk;

    #[test]
    fn a_walk_prints_as_a_tree_and_as_an_object() {
        let rules = Ruleset::live(
            "*nat\n-A PREROUTING -m comment --comment portals -j KUBE-SERVICES\n-A KUBE-SERVICES -d 10.96.0.1/32 -j KUBE-SVC-A\n\
             -A KUBE-SVC-A -m statistic --mode random --probability 0.3333333333 -j KUBE-SEP-A\n-A KUBE-SVC-A -j KUBE-SEP-B\n\
             -A KUBE-SEP-A -p tcp -j DNAT --to-destination 10.244.0.5:8080\n-A KUBE-SEP-B -p tcp -j DNAT --to-destination 10.244.1.6:8080\nCOMMIT\n",
        );
        let packet =
            Packet { source: [10, 244, 0, 7].into(), to: ([10, 96, 0, 1], 80).into(), protocol: Protocol::Tcp, origin: Origin::Pod };
        let walked = walk(&rules, packet, &LocalNode::default());
        let expected = "10.244.0.7 (a pod of this node) to 10.96.0.1:80/tcp\nnat PREROUTING: to KUBE-SERVICES, all Services (portals)\n\
                      nat KUBE-SERVICES: to KUBE-SVC-A, the Service's endpoints\n\
                      ├─ nat KUBE-SVC-A: to KUBE-SEP-A, an endpoint\n│  nat KUBE-SEP-A: sent to 10.244.0.5:8080\n│  => 33.33 %: to 10.244.0.5:8080, somewhere, from 10.244.0.7\n\
                      └─ nat KUBE-SVC-A: to KUBE-SEP-B, an endpoint\n   nat KUBE-SEP-B: sent to 10.244.1.6:8080\n   => 66.67 %: to 10.244.1.6:8080, somewhere, from 10.244.0.7\n";
        assert_eq!(text(&packet, &walked, &|_| "somewhere".to_owned()), expected);
        let object = json(&packet, &walked, &|_| "somewhere".to_owned());
        assert_eq!(object["endings"][1]["destination"], "10.244.1.6:8080");
        assert_eq!(object["endings"][0]["steps"][2]["chain"], "KUBE-SVC-A");
        assert_eq!(object["origin"], "pod");
    }
}
