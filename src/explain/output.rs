//! What came of a walk, in words and as JSON.

use std::fmt::Write as _;

use serde_json::{Value, json};

use super::packet::Packet;
use super::rule::Action;
use super::walk::{Ending, Fate, Step, Walk};

/// What is said of an ending beside what rules say: where its destination is, and how packets get there.
pub type Whereabouts<'a> = &'a dyn Fn(&Ending) -> String;

/// The walk as a tree: each line a rule that had a part in it, with the endings at its leaves.
#[must_use]
pub fn text(packet: &Packet, walk: &Walk, whereabouts: Whereabouts<'_>) -> String {
    let mut text = format!("{packet}\n");
    let endings = sorted(walk);
    branch(&mut text, &endings, 0, "", packet, whereabouts);
    for rule in &walk.passed_over {
        let _ = writeln!(text, "not known to sepal, and ignored: {rule}");
    }
    text
}

/// The walk as an object: `source`, `destination`, `protocol`, `origin`; `endings`, each with `probability`, `fate` (`passed`, `refused` or
/// `dropped`), `destination`, `translated`, `masqueraded`, `whereabouts`, `stoppedBy` (table, chain and rule; null for `passed`) and `steps`;
/// and `notUnderstood`.
#[must_use]
pub fn json(packet: &Packet, walk: &Walk, whereabouts: Whereabouts<'_>) -> Value {
    let step =
        |step: &Step| json!({"table": step.table.as_str(), "chain": step.chain, "comment": step.comment, "action": action(&step.action)});
    let ending = |ending: &&Ending| {
        json!({
            "probability": ending.probability, "fate": fate(ending.fate), "destination": ending.to.to_string(), "translated": ending.translated,
            "masqueraded": ending.masqueraded, "whereabouts": whereabouts(ending),
            "stoppedBy": ending.stopped_by().map(|step| json!({"table": step.table.as_str(), "chain": step.chain, "rule": step.line()})),
            "steps": ending.steps.iter().map(step).collect::<Vec<_>>(),
        })
    };
    json!({
        "source": packet.source.to_string(), "destination": packet.to.to_string(), "protocol": packet.protocol.as_str(),
        "origin": format!("{:?}", packet.origin).to_lowercase(), "endings": sorted(walk).iter().map(ending).collect::<Vec<_>>(),
        "notUnderstood": walk.passed_over,
    })
}

fn sorted(walk: &Walk) -> Vec<&Ending> {
    let mut endings: Vec<&Ending> = walk.endings.iter().collect();
    endings.sort_by(|a, b| (a.fate, a.to).cmp(&(b.fate, b.to)).then_with(|| b.probability.total_cmp(&a.probability)));
    endings
}

/// Adds the endings that have gone the same way so far, from their next step on.
fn branch(text: &mut String, endings: &[&Ending], depth: usize, indent: &str, packet: &Packet, whereabouts: Whereabouts<'_>) {
    let mut groups: Vec<Vec<&Ending>> = Vec::new();
    for ending in endings {
        match groups.iter_mut().find(|group| group[0].steps.get(depth) == ending.steps.get(depth)) {
            Some(group) => group.push(ending),
            None => groups.push(vec![ending]),
        }
    }
    let last = groups.len().saturating_sub(1);
    for (number, group) in groups.iter().enumerate() {
        // A way that does not part needs no deeper lines.
        let (line, deeper) = match (groups.len(), number == last) {
            (1, _) => (String::new(), String::new()),
            (_, true) => ("\u{2514}\u{2500} ".to_owned(), "   ".to_owned()),
            (_, false) => ("\u{251c}\u{2500} ".to_owned(), "\u{2502}  ".to_owned()),
        };
        if let Some(step) = group[0].steps.get(depth) {
            let _ = writeln!(text, "{indent}{line}{}", step_in_words(step));
            branch(text, group, depth + 1, &format!("{indent}{deeper}"), packet, whereabouts);
        } else {
            for ending in group {
                let _ = writeln!(text, "{indent}{line}{}", ending_in_words(ending, packet, whereabouts));
            }
        }
    }
}

fn step_in_words(step: &Step) -> String {
    let Step { table, chain, comment, action: done, .. } = step;
    let comment = if comment.is_empty() { String::new() } else { format!(" ({comment})") };
    format!("{table} {chain}: {}{comment}", action(done))
}

fn action(action: &Action) -> String {
    match action {
        Action::Count => "counted".to_owned(),
        Action::Accept => "accepted".to_owned(),
        Action::Drop => "dropped".to_owned(),
        Action::Reject => "refused".to_owned(),
        Action::Return => "returned".to_owned(),
        Action::Jump(to) | Action::Goto(to) => match meaning(to) {
            "" => format!("to {to}"),
            meaning => format!("to {to}, {meaning}"),
        },
        Action::Mark(value, mask) if value == mask => format!("marked {value:#x}"),
        Action::Mark(value, 0) => format!("mark {value:#x} turned over"),
        Action::Mark(value, mask) => format!("marked {value:#x}/{mask:#x}"),
        Action::Masquerade => "gets this node's address as its source".to_owned(),
        Action::Destination(ip, Some(port)) => format!("sent to {}", std::net::SocketAddr::new(*ip, *port)),
        Action::Destination(ip, None) => format!("sent to {ip}"),
        Action::Unknown(target) => target.clone(),
    }
}

/// What a chain of ours is for.
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
        "KUBE-EXTERNAL-SERVICES" => "Services that outside traffic cannot get",
        "KUBE-PROXY-FIREWALL" => "load balancers' source ranges",
        "KUBE-MARK-MASQ" => "it will be masqueraded",
        "KUBE-POSTROUTING" => "masquerade of what is marked",
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

fn ending_in_words(ending: &Ending, packet: &Packet, whereabouts: Whereabouts<'_>) -> String {
    let Ending { probability, to, masqueraded, fate, .. } = ending;
    let share = if *probability < 0.999_999 { format!("{} %: ", percent(*probability)) } else { String::new() };
    match fate {
        Fate::Passed => {
            let source = if *masqueraded { "this node's address".to_owned() } else { packet.source.to_string() };
            format!("=> {share}to {to}, {}, from {source}", whereabouts(ending))
        }
        Fate::Refused => format!("=> {share}refused by {}: the sender gets an error at once", rule_in_words(ending)),
        Fate::Dropped => format!("=> {share}dropped by {}: the sender gets no answer", rule_in_words(ending)),
    }
}

/// What stops a packet, as `iptables` is called for it.
fn rule_in_words(ending: &Ending) -> String {
    ending.stopped_by().map_or_else(|| "no rule".to_owned(), |step| format!("'-t {} {}'", step.table, step.line()))
}

/// A probability in percent, with the digits that tell it from others.
fn percent(probability: f64) -> String {
    let text = format!("{:.2}", probability * 100.0);
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cluster::Protocol;
    use crate::explain::packet::{Origin, Place};
    use crate::explain::ruleset::Ruleset;
    use crate::explain::walk::walk;

    #[test]
    fn a_walk_is_told_as_a_tree_and_as_an_object() {
        let rules = Ruleset::live(
            "*nat\n-A PREROUTING -m comment --comment portals -j KUBE-SERVICES\n-A KUBE-SERVICES -d 10.96.0.1/32 -j KUBE-SVC-A\n\
             -A KUBE-SVC-A -m statistic --mode random --probability 0.3333333333 -j KUBE-SEP-A\n-A KUBE-SVC-A -j KUBE-SEP-B\n\
             -A KUBE-SEP-A -p tcp -j DNAT --to-destination 10.244.0.5:8080\n-A KUBE-SEP-B -p tcp -j DNAT --to-destination 10.244.1.6:8080\nCOMMIT\n",
        );
        let packet =
            Packet { source: [10, 244, 0, 7].into(), to: ([10, 96, 0, 1], 80).into(), protocol: Protocol::Tcp, origin: Origin::Pod };
        let walked = walk(&rules, packet, &Place::default());
        let wanted = "10.244.0.7 (a pod of this node) to 10.96.0.1:80/tcp\nnat PREROUTING: to KUBE-SERVICES, all Services (portals)\n\
                      nat KUBE-SERVICES: to KUBE-SVC-A, the Service's endpoints\n\
                      ├─ nat KUBE-SVC-A: to KUBE-SEP-A, an endpoint\n│  nat KUBE-SEP-A: sent to 10.244.0.5:8080\n│  => 33.33 %: to 10.244.0.5:8080, somewhere, from 10.244.0.7\n\
                      └─ nat KUBE-SVC-A: to KUBE-SEP-B, an endpoint\n   nat KUBE-SEP-B: sent to 10.244.1.6:8080\n   => 66.67 %: to 10.244.1.6:8080, somewhere, from 10.244.0.7\n";
        assert_eq!(text(&packet, &walked, &|_| "somewhere".to_owned()), wanted);
        let object = json(&packet, &walked, &|_| "somewhere".to_owned());
        assert_eq!(object["endings"][1]["destination"], "10.244.1.6:8080");
        assert_eq!(object["endings"][0]["steps"][2]["chain"], "KUBE-SVC-A");
        assert_eq!(object["origin"], "pod");
    }
}
