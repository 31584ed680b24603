//! The kernel's way through the rules (iptables(8), and the hooks of netfilter), for the first packet of a connection. Where chance decides, both
//! ways are gone, each with its share; so what comes out are all endings there are.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use crate::table::Table;

use super::packet::{Origin, Packet, Place};
use super::rule::{Action, Asks, Condition, Rule};
use super::ruleset::{Chain, Ruleset};

/// More jumps into jumps than the kernel allows are a circle.
const DEPTH: usize = 64;
/// Endings that are worth telling apart.
const ENDINGS: usize = 100_000;

/// A rule that the packet met, or the policy of a built-in chain.
#[derive(Clone, Debug, PartialEq)]
pub struct Step {
    /// Its table.
    pub table: Table,
    /// Its chain.
    pub chain: String,
    /// Its comment; empty for none.
    pub comment: String,
    /// What it did.
    pub action: Action,
    /// Its arguments, as iptables takes them behind `-A CHAIN`; `None` for a chain's policy.
    pub rule: Option<Arc<str>>,
}

impl Step {
    /// The line that iptables-save prints for it.
    #[must_use]
    pub fn line(&self) -> String {
        match &self.rule {
            Some(rule) => format!("-A {} {rule}", self.chain),
            None => format!("-P {} DROP", self.chain),
        }
    }
}

/// How it ends for a packet.
#[derive(Clone, Debug, PartialEq)]
pub struct Ending {
    /// How likely that is, up to 1.
    pub probability: f64,
    /// Its destination in the end.
    pub to: SocketAddr,
    /// A rule has changed its destination.
    pub translated: bool,
    /// It gets the node's address as its source.
    pub masqueraded: bool,
    /// What becomes of it.
    pub fate: Fate,
    /// The rules that it met, in order. The last one of a packet that is refused or dropped is what refuses or drops it.
    pub steps: Vec<Step>,
}

impl Ending {
    /// The rule or policy that refuses or drops the packet; `None` if it passes.
    #[must_use]
    pub fn stopped_by(&self) -> Option<&Step> {
        self.steps.last().filter(|_| self.fate != Fate::Passed)
    }
}

/// What becomes of a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Fate {
    /// It passes.
    Passed,
    /// It is refused: the sender gets an error.
    Refused,
    /// It is dropped: the sender gets no answer.
    Dropped,
}

/// All endings, and what could not be told.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Walk {
    /// The endings.
    pub endings: Vec<Ending>,
    /// Rules that are not understood and were passed over.
    pub passed_over: BTreeSet<String>,
}

/// A packet on its way.
#[derive(Clone, Debug)]
struct Traveller {
    source: IpAddr,
    to: SocketAddr,
    translated: bool,
    masqueraded: bool,
    mark: u32,
    probability: f64,
    steps: Vec<Step>,
}

/// What a hook decides.
struct Decided {
    traveller: Traveller,
    fate: Fate,
}

/// A packet within a chain, and the chains that it came from.
struct Within<'r> {
    traveller: Traveller,
    stack: Vec<Frame<'r>>,
}

/// A chain on the way.
#[derive(Clone)]
struct Frame<'r> {
    name: &'r str,
    chain: &'r Chain,
    /// Which rule is next.
    at: usize,
    /// How many steps had been taken when it was entered, with the one that led to it.
    steps: usize,
}

impl Traveller {
    /// Forgets the step that led into a chain in which nothing happened.
    fn came_back(&mut self, frame: &Frame<'_>) {
        if self.steps.len() == frame.steps {
            self.steps.pop();
        }
    }
}

struct Walker<'a> {
    rules: &'a Ruleset,
    packet: Packet,
    place: &'a Place,
    in_interface: String,
    passed_over: BTreeSet<String>,
}

/// Walks a packet through the rules.
#[must_use]
pub fn walk(rules: &Ruleset, packet: Packet, place: &Place) -> Walk {
    let in_interface = place.interface(packet.origin).to_owned();
    let mut walker = Walker { rules, packet, place, in_interface, passed_over: BTreeSet::new() };
    let traveller = Traveller {
        source: packet.source,
        to: packet.to,
        translated: false,
        masqueraded: false,
        mark: 0,
        probability: 1.0,
        steps: Vec::new(),
    };
    let own = packet.origin == Origin::Node;
    let mut decided = walker.hook(Table::Nat, if own { "OUTPUT" } else { "PREROUTING" }, vec![traveller]);
    decided = walker.on(decided, |walker, traveller| {
        let to_node = walker.place.is_local(traveller.to.ip());
        let filter = match (own, to_node) {
            (true, _) => "OUTPUT",
            (false, true) => "INPUT",
            (false, false) => "FORWARD",
        };
        walker.hook(Table::Filter, filter, vec![traveller])
    });
    decided = walker.on(decided, |walker, traveller| {
        let to_node = walker.place.is_local(traveller.to.ip());
        if to_node && !own {
            return vec![Decided { traveller, fate: Fate::Passed }];
        }
        let left = walker.hook(Table::Nat, "POSTROUTING", vec![traveller]);
        if !to_node {
            return left;
        }
        // Over the loopback it comes in again; its translation is settled.
        "lo".clone_into(&mut walker.in_interface);
        let arrived = walker.on(left, |walker, traveller| walker.hook(Table::Filter, "INPUT", vec![traveller]));
        walker.in_interface.clear();
        arrived
    });
    let ending = |Decided { traveller, fate }: Decided| {
        let Traveller { to, translated, masqueraded, probability, steps, .. } = traveller;
        Ending { probability, to, translated, masqueraded, fate, steps }
    };
    Walk { endings: decided.into_iter().map(ending).collect(), passed_over: walker.passed_over }
}

impl<'a> Walker<'a> {
    /// What comes next, for those that go on.
    fn on(&mut self, decided: Vec<Decided>, mut next: impl FnMut(&mut Self, Traveller) -> Vec<Decided>) -> Vec<Decided> {
        let mut all = Vec::new();
        for Decided { traveller, fate } in decided {
            match fate {
                Fate::Passed => all.extend(next(self, traveller)),
                fate => all.push(Decided { traveller, fate }),
            }
        }
        all
    }

    /// Goes through a built-in chain.
    fn hook(&mut self, table: Table, name: &'static str, travellers: Vec<Traveller>) -> Vec<Decided> {
        let rules: &'a Ruleset = self.rules;
        let Some(chain) = rules.get(table, name) else {
            return travellers.into_iter().map(|traveller| Decided { traveller, fate: Fate::Passed }).collect();
        };
        let mut open: Vec<Within<'a>> = travellers
            .into_iter()
            .map(|traveller| Within { traveller, stack: vec![Frame { name, chain, at: 0, steps: usize::MAX }] })
            .collect();
        let mut decided = Vec::new();
        while let Some(within) = open.pop() {
            if decided.len() + open.len() >= ENDINGS {
                self.passed_over.insert(format!("more than {ENDINGS} endings: the rest is left out"));
                break;
            }
            self.go_on(table, within, &mut open, &mut decided);
        }
        decided
    }

    /// Takes one packet on to its next branch, or to the end of the hook.
    fn go_on(&mut self, table: Table, within: Within<'a>, open: &mut Vec<Within<'a>>, decided: &mut Vec<Decided>) {
        let Within { mut traveller, mut stack } = within;
        loop {
            let Some(frame) = stack.last_mut() else { return };
            let (name, chain) = (frame.name, frame.chain);
            let Some(rule) = chain.rules.get(frame.at) else {
                let fate = if chain.drops { Fate::Dropped } else { Fate::Passed };
                if let Some(frame) = stack.pop() {
                    traveller.came_back(&frame);
                }
                if chain.drops {
                    traveller.steps.push(policy(table, name));
                }
                if stack.is_empty() {
                    decided.push(Decided { traveller, fate });
                    return;
                }
                continue;
            };
            frame.at += 1;
            let chance = self.chance(table, name, rule, &traveller);
            if chance <= 0.0 {
                continue;
            }
            if chance < 1.0 {
                let mut other = traveller.clone();
                other.probability *= 1.0 - chance;
                open.push(Within { traveller: other, stack: stack.clone() });
                traveller.probability *= chance;
            }
            match self.act(table, name, rule, &mut traveller, &mut stack) {
                Some(fate) => {
                    decided.push(Decided { traveller, fate });
                    return;
                }
                None if stack.is_empty() => {
                    // Returned from the built-in chain.
                    decided.push(Decided { traveller, fate: Fate::Passed });
                    return;
                }
                None => {}
            }
        }
    }

    /// Does what a rule says. Gives the packet's fate where that settles it.
    fn act(&mut self, table: Table, chain: &str, rule: &Rule, traveller: &mut Traveller, stack: &mut Vec<Frame<'a>>) -> Option<Fate> {
        let step = || Step {
            table,
            chain: chain.to_owned(),
            comment: rule.comment.clone(),
            action: rule.action.clone(),
            rule: Some(Arc::clone(&rule.text)),
        };
        let rules: &'a Ruleset = self.rules;
        match &rule.action {
            Action::Count => return None,
            Action::Return => {
                let built_in = stack.len() == 1;
                let frame = stack.pop()?;
                traveller.came_back(&frame);
                if built_in && frame.chain.drops {
                    traveller.steps.push(policy(table, chain));
                    return Some(Fate::Dropped);
                }
                return None;
            }
            Action::Jump(to) | Action::Goto(to) => {
                let Some((name, next)) = rules.named(table, to) else {
                    self.passed_over.insert(format!("{table} {chain} leads to {to}, which is not there or not known"));
                    return None;
                };
                if stack.len() >= DEPTH {
                    self.passed_over.insert(format!("{table} {chain} leads in a circle"));
                    return None;
                }
                if matches!(rule.action, Action::Goto(_)) {
                    // Whoever returns from there comes behind this chain.
                    if let Some(frame) = stack.last_mut() {
                        frame.at = frame.chain.rules.len();
                    }
                }
                traveller.steps.push(step());
                stack.push(Frame { name, chain: next, at: 0, steps: traveller.steps.len() });
                return None;
            }
            Action::Mark(value, mask) => {
                traveller.mark = (traveller.mark & !mask) ^ value;
                traveller.steps.push(step());
                return None;
            }
            Action::Unknown(target) => {
                self.passed_over.insert(format!("{table} {chain}: target {target}"));
                return None;
            }
            Action::Accept | Action::Drop | Action::Reject | Action::Masquerade | Action::Destination(..) => {}
        }
        traveller.steps.push(step());
        match &rule.action {
            Action::Drop => Some(Fate::Dropped),
            Action::Reject => Some(Fate::Refused),
            Action::Destination(ip, port) => {
                traveller.to = SocketAddr::new(*ip, port.unwrap_or(traveller.to.port()));
                traveller.translated = true;
                Some(Fate::Passed)
            }
            Action::Masquerade => {
                traveller.masqueraded = true;
                Some(Fate::Passed)
            }
            _ => Some(Fate::Passed),
        }
    }

    /// How likely a packet meets a rule's conditions.
    fn chance(&mut self, table: Table, chain: &str, rule: &Rule, traveller: &Traveller) -> f64 {
        let mut chance = 1.0;
        let mut unknown = None;
        for Condition { negated, asks } in &rule.conditions {
            let Some(holds) = self.holds(asks, traveller) else {
                unknown = Some(asks);
                continue;
            };
            chance *= if *negated { 1.0 - holds } else { holds };
            if chance <= 0.0 {
                return 0.0;
            }
        }
        if let Some(asks) = unknown {
            self.passed_over.insert(format!("{table} {chain}: a rule with {asks}"));
            return 0.0;
        }
        chance
    }

    /// How likely something holds; `None` if nobody knows.
    fn holds(&self, asks: &Asks, traveller: &Traveller) -> Option<f64> {
        let yes = match asks {
            Asks::Source(net) => net.contains(traveller.source),
            Asks::Destination(net) => net.contains(traveller.to.ip()),
            Asks::Protocol(name) => *name == self.packet.protocol.as_str() || matches!(name.as_str(), "all" | "0"),
            Asks::InInterface(name) => is_interface(&self.in_interface, name),
            // Which interface it leaves by is not known here.
            Asks::OutInterface(_) | Asks::Unknown(_) => return None,
            Asks::Ports(ports) => ports.iter().any(|ports| ports.contains(&traveller.to.port())),
            Asks::DestinationIsLocal => self.place.is_local(traveller.to.ip()),
            Asks::SourceIsLocal => self.place.is_local(traveller.source),
            Asks::State(states) => states.iter().any(|state| state == "NEW" || state == "DNAT" && traveller.translated),
            Asks::Mark(value, mask) => traveller.mark & mask == *value,
            Asks::Chance(chance) => return Some(*chance),
            Asks::Remembered => false,
        };
        Some(if yes { 1.0 } else { 0.0 })
    }
}

/// The policy DROP of a built-in chain.
fn policy(table: Table, chain: &str) -> Step {
    Step { table, chain: chain.to_owned(), comment: "the policy of the chain".to_owned(), action: Action::Drop, rule: None }
}

fn is_interface(name: &str, asked: &str) -> bool {
    asked.strip_suffix('+').map_or(name == asked, |start| name.starts_with(start))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cluster::Protocol;

    fn place() -> Place {
        Place {
            addresses: vec!["192.0.2.1".parse().expect("an IP")],
            subnets: Vec::new(),
            pod_interface: "cni0".into(),
            external_interface: "eth0".into(),
        }
    }

    fn packet(origin: Origin, source: &str, to: &str) -> Packet {
        Packet { source: source.parse().expect("an IP"), to: to.parse().expect("an address"), protocol: Protocol::Tcp, origin }
    }

    /// Endings, each in one line.
    fn told(text: &str, packet: Packet) -> Vec<String> {
        let mut lines: Vec<String> = walk(&Ruleset::live(text), packet, &place())
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
    fn chance_is_shared_out_and_marks_are_kept() {
        let text = "*nat\n-A PREROUTING -j S\n-A S -d 10.96.0.1/32 -p tcp -m tcp --dport 80 -j V\n-A V ! -s 10.244.0.0/16 -j M\n\
                    -A V -m statistic --mode random --probability 0.25 -j A\n-A V -j B\n-A A -s 10.244.0.5/32 -j M\n\
                    -A A -p tcp -j DNAT --to-destination 10.244.0.5:8080\n-A B -p tcp -j DNAT --to-destination 10.244.1.6:8080\n-A M -j MARK --or-mark 0x4000\n\
                    -A POSTROUTING -m mark ! --mark 0x4000/0x4000 -j RETURN\n-A POSTROUTING -j MASQUERADE\nCOMMIT\n";
        let pod = |source| packet(Origin::Pod, source, "10.96.0.1:80");
        assert_eq!(told(text, pod("10.244.0.7")), ["0.25 Passed 10.244.0.5:8080 dnat", "0.75 Passed 10.244.1.6:8080 dnat"]);
        assert_eq!(told(text, pod("10.244.0.5")), ["0.25 Passed 10.244.0.5:8080 dnat masq", "0.75 Passed 10.244.1.6:8080 dnat"]);
        let outside = packet(Origin::Outside, "203.0.113.9", "10.96.0.1:80");
        assert_eq!(told(text, outside), ["0.25 Passed 10.244.0.5:8080 dnat masq", "0.75 Passed 10.244.1.6:8080 dnat masq"]);
        assert_eq!(told(text, packet(Origin::Pod, "10.244.0.7", "10.96.0.1:81")), ["1.00 Passed 10.96.0.1:81"]);
    }

    #[test]
    fn filters_decide_by_where_the_packet_goes() {
        let text = "*filter\n:FORWARD DROP [0:0]\n-A FORWARD -i cni0 -j ACCEPT\n-A INPUT -p tcp -m tcp --dport 22 -j REJECT\n-A OUTPUT -d 198.51.100.0/24 -j DROP\nCOMMIT\n";
        assert_eq!(told(text, packet(Origin::Pod, "10.244.0.7", "203.0.113.9:80")), ["1.00 Passed 203.0.113.9:80"]);
        assert_eq!(told(text, packet(Origin::Outside, "203.0.113.9", "10.244.0.7:80")), ["1.00 Dropped 10.244.0.7:80"]);
        assert_eq!(told(text, packet(Origin::Outside, "203.0.113.9", "192.0.2.1:22")), ["1.00 Refused 192.0.2.1:22"]);
        assert_eq!(told(text, packet(Origin::Node, "192.0.2.1", "198.51.100.7:80")), ["1.00 Dropped 198.51.100.7:80"]);
        // Over the loopback the node's own packets pass INPUT, too.
        assert_eq!(told(text, packet(Origin::Node, "127.0.0.1", "127.0.0.1:22")), ["1.00 Refused 127.0.0.1:22"]);
    }

    #[test]
    fn what_stops_a_packet_is_known() {
        let stopped_by = |text: &str, packet| {
            let walked = walk(&Ruleset::live(text), packet, &place());
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
    fn returns_and_circles_and_unknown_rules() {
        let text = "*nat\n-A PREROUTING -j A\n-A PREROUTING -p tcp -j DNAT --to-destination 10.0.0.9:1\n-A A -g B\n-A A -p tcp -j DNAT --to-destination 10.0.0.8:1\n-A B -j RETURN\nCOMMIT\n";
        let any = packet(Origin::Outside, "203.0.113.9", "10.0.0.1:80");
        assert_eq!(told(text, any), ["1.00 Passed 10.0.0.9:1 dnat"], "from where -g leads it returns past its chain");
        let circle = walk(&Ruleset::live("*nat\n-A PREROUTING -j A\n-A A -j B\n-A B -j A\nCOMMIT\n"), any, &place());
        assert_eq!((circle.endings.len(), circle.passed_over.len(), circle.endings[0].steps.len()), (1, 1, 0), "{circle:?}");
        let unknown = "*nat\n-A PREROUTING -m socket --transparent -j DROP\n-A PREROUTING -d 10.9.0.0/16 -m socket --transparent -j DROP\n-A PREROUTING -j TPROXY --on-port 1\nCOMMIT\n";
        let walked = walk(&Ruleset::live(unknown), any, &place());
        assert_eq!(walked.endings[0].fate, Fate::Passed);
        let passed_over: Vec<&str> = walked.passed_over.iter().map(String::as_str).collect();
        assert_eq!(passed_over, ["nat PREROUTING: a rule with --transparent", "nat PREROUTING: target TPROXY --on-port 1"]);
    }
}
