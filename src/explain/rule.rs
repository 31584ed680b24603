//! One rule, taken apart: all the matches and targets that sepal writes, and those that other programs use most. A match or target that is
//! not known is kept as text.

use std::borrow::Cow;
use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::ops::RangeInclusive;
use std::sync::Arc;

use ipnetwork::IpNetwork;

use crate::cluster::ip::{host_net, parse_cidr, parse_ip};
use crate::table::rule::words;

/// A condition of a rule, and whether it is turned round.
#[derive(Clone, Debug, PartialEq)]
pub struct Condition {
    /// It holds where the rest does not.
    pub negated: bool,
    /// What is asked.
    pub asks: Asks,
}

/// What a condition asks.
#[derive(Clone, Debug, PartialEq)]
pub enum Asks {
    /// `-s`.
    Source(IpNetwork),
    /// `-d`.
    Destination(IpNetwork),
    /// `-p`, in small letters.
    Protocol(String),
    /// `-i`; a `+` at the end stands for any rest.
    InInterface(String),
    /// `-o`, likewise.
    OutInterface(String),
    /// `--dport`, `--dports`.
    Ports(Vec<RangeInclusive<u16>>),
    /// `addrtype --dst-type LOCAL`.
    DestinationIsLocal,
    /// `addrtype --src-type LOCAL`.
    SourceIsLocal,
    /// `conntrack --ctstate`.
    State(Vec<String>),
    /// `mark --mark`: value and mask.
    Mark(u32, u32),
    /// `statistic --mode random`.
    Chance(f64),
    /// `recent --rcheck` or `--update`: the source is on a list. That of a client that was never there before is not.
    Remembered,
    /// Something else.
    Unknown(String),
}

/// What a rule does with packets that meet its conditions.
#[derive(Clone, Debug, PartialEq)]
pub enum Action {
    /// Nothing: it counts, or remembers.
    Count,
    /// `ACCEPT`.
    Accept,
    /// `DROP`.
    Drop,
    /// `REJECT`.
    Reject,
    /// `RETURN`.
    Return,
    /// `-j CHAIN`.
    Jump(String),
    /// `-g CHAIN`.
    Goto(String),
    /// `MARK`: the mark becomes `(mark & !mask) ^ value`.
    Mark(u32, u32),
    /// `MASQUERADE`.
    Masquerade,
    /// `DNAT`: address, and port where it changes.
    Destination(IpAddr, Option<u16>),
    /// Something else.
    Unknown(String),
}

/// A rule.
#[derive(Clone, Debug, PartialEq)]
pub struct Rule {
    /// All have to hold.
    pub conditions: Vec<Condition>,
    /// What happens then.
    pub action: Action,
    /// Its comment; empty for none.
    pub comment: String,
    /// Its arguments as they were read: all after the chain's name.
    pub text: Arc<str>,
}

/// As iptables writes it.
impl fmt::Display for Asks {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Source(net) => write!(f, "-s {net}"),
            Self::Destination(net) => write!(f, "-d {net}"),
            Self::Protocol(name) => write!(f, "-p {name}"),
            Self::InInterface(name) => write!(f, "-i {name}"),
            Self::OutInterface(name) => write!(f, "-o {name}"),
            Self::Ports(ports) => {
                let range = |ports: &RangeInclusive<u16>| match (ports.start(), ports.end()) {
                    (start, end) if start == end => start.to_string(),
                    (start, end) => format!("{start}:{end}"),
                };
                write!(f, "--dports {}", ports.iter().map(range).collect::<Vec<_>>().join(","))
            }
            Self::DestinationIsLocal => f.write_str("--dst-type LOCAL"),
            Self::SourceIsLocal => f.write_str("--src-type LOCAL"),
            Self::State(states) => write!(f, "--ctstate {}", states.join(",")),
            Self::Mark(value, mask) => write!(f, "--mark {value:#x}/{mask:#x}"),
            Self::Chance(chance) => write!(f, "--mode random --probability {chance}"),
            Self::Remembered => f.write_str("-m recent --rcheck"),
            Self::Unknown(text) => f.write_str(text),
        }
    }
}

impl Rule {
    /// Reads a rule's arguments: all after the chain's name.
    #[must_use]
    pub fn read(arguments: &str) -> Self {
        let mut reader = Reader { words: words(arguments).collect(), at: 0 };
        let mut rule = Self { conditions: Vec::new(), action: Action::Count, comment: String::new(), text: arguments.into() };
        let mut module = Cow::default();
        let mut negated = false;
        while let Some(word) = reader.next() {
            let asks = match &*word {
                "!" => {
                    negated = true;
                    continue;
                }
                "-m" => {
                    module = reader.next().unwrap_or_default();
                    negated = false;
                    continue;
                }
                "-j" | "-g" => {
                    rule.action = action(&word, &mut reader);
                    break;
                }
                "--comment" => {
                    rule.comment = reader.next().unwrap_or_default().into_owned();
                    continue;
                }
                word => condition(word, &module, &mut reader),
            };
            if let Some(asks) = asks {
                rule.conditions.push(Condition { negated, asks });
            }
            negated = false;
        }
        rule
    }
}

struct Reader<'a> {
    words: Vec<Cow<'a, str>>,
    at: usize,
}

impl<'a> Reader<'a> {
    fn next(&mut self) -> Option<Cow<'a, str>> {
        let word = self.words.get(self.at).cloned();
        self.at += 1;
        word
    }

    fn peek(&self) -> &str {
        self.words.get(self.at).map(|word| &**word).unwrap_or_default()
    }
}

/// What an option asks; `None` if it asks nothing by itself.
fn condition(option: &str, module: &str, reader: &mut Reader<'_>) -> Option<Asks> {
    let unknown = |value: &str| Asks::Unknown(format!("{option} {value}").trim_end().to_owned());
    // These take no value.
    match (module, option) {
        ("recent", "--set" | "--reap" | "--rsource") => return None,
        ("recent", "--rcheck" | "--update") => return Some(Asks::Remembered),
        _ => {}
    }
    let value = if reader.peek().starts_with('-') { Cow::default() } else { reader.next().unwrap_or_default() };
    let known = match (module, option) {
        (_, "-s") => net(&value).map(Asks::Source),
        (_, "-d") => net(&value).map(Asks::Destination),
        (_, "-p") => Some(Asks::Protocol(value.to_lowercase())),
        (_, "-i") => Some(Asks::InInterface(value.clone().into_owned())),
        (_, "-o") => Some(Asks::OutInterface(value.clone().into_owned())),
        ("tcp" | "udp" | "sctp" | "multiport" | "", "--dport" | "--dports") => ports(&value).map(Asks::Ports),
        ("addrtype", "--dst-type") if &*value == "LOCAL" => Some(Asks::DestinationIsLocal),
        ("addrtype", "--src-type") if &*value == "LOCAL" => Some(Asks::SourceIsLocal),
        ("conntrack" | "state", "--ctstate" | "--state") => Some(Asks::State(value.split(',').map(str::to_owned).collect())),
        ("mark", "--mark") => pair(&value).map(|(value, mask)| Asks::Mark(value, mask)),
        ("statistic", "--mode") if &*value == "random" => return None,
        ("statistic", "--probability") => value.parse().ok().map(Asks::Chance),
        ("recent", "--name" | "--seconds" | "--mask" | "--hitcount") | ("nfacct", "--nfacct-name") => return None,
        _ => None,
    };
    Some(known.unwrap_or_else(|| unknown(&value)))
}

fn action(how: &str, reader: &mut Reader<'_>) -> Action {
    let target = reader.next().unwrap_or_default();
    let option = reader.next().unwrap_or_default();
    let value = reader.next().unwrap_or_default();
    let known = match (&*target, &*option) {
        _ if how == "-g" => Some(Action::Goto(target.clone().into_owned())),
        ("ACCEPT", _) => Some(Action::Accept),
        ("DROP", _) => Some(Action::Drop),
        ("REJECT", _) => Some(Action::Reject),
        ("RETURN", _) => Some(Action::Return),
        ("MASQUERADE", _) => Some(Action::Masquerade),
        ("MARK", "--or-mark") => number(&value).map(|value| Action::Mark(value, value)),
        ("MARK", "--xor-mark") => number(&value).map(|value| Action::Mark(value, 0)),
        ("MARK", "--set-xmark") => pair(&value).map(|(value, mask)| Action::Mark(value, mask)),
        ("DNAT", "--to-destination") => destination(&value),
        ("LOG" | "NFLOG" | "TRACE", _) => Some(Action::Count),
        // Chains are called in many ways; targets of modules are not in small letters, and take options.
        (name, "") => Some(Action::Jump(name.to_owned())),
        _ => None,
    };
    known.unwrap_or_else(|| Action::Unknown([&*target, &*option, &*value].join(" ").trim_end().to_owned()))
}

fn net(text: &str) -> Option<IpNetwork> {
    parse_cidr(text).or_else(|| parse_ip(text).map(host_net))
}

fn destination(text: &str) -> Option<Action> {
    if let Ok(address) = text.parse::<SocketAddr>() {
        return Some(Action::Destination(address.ip(), Some(address.port())));
    }
    parse_ip(text).map(|ip| Action::Destination(ip, None))
}

fn ports(text: &str) -> Option<Vec<RangeInclusive<u16>>> {
    let range = |part: &str| match part.split_once(':') {
        Some((from, to)) => Some(from.parse().ok()?..=to.parse().ok()?),
        None => part.parse().ok().map(|port| port..=port),
    };
    text.split(',').map(range).collect()
}

fn number(text: &str) -> Option<u32> {
    text.strip_prefix("0x").map_or_else(|| text.parse().ok(), |hex| u32::from_str_radix(hex, 16).ok())
}

fn pair(text: &str) -> Option<(u32, u32)> {
    match text.split_once('/') {
        Some((value, mask)) => Some((number(value)?, number(mask)?)),
        None => Some((number(text)?, u32::MAX)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rule_is_taken_apart_as_written_and_as_saved() {
        let written = "-m comment --comment \"a/b cluster IP\" -m tcp -p tcp -d 10.96.0.1 --dport 80 ! -s 10.0.0.0/8 -j KUBE-MARK-MASQ";
        let saved = "! -s 10.0.0.0/8 -d 10.96.0.1/32 -p tcp -m comment --comment \"a/b cluster IP\" -m tcp --dport 80 -j KUBE-MARK-MASQ";
        for text in [written, saved] {
            let rule = Rule::read(text);
            assert_eq!((rule.comment.as_str(), &rule.action), ("a/b cluster IP", &Action::Jump("KUBE-MARK-MASQ".into())));
            for (negated, asks) in [
                (true, Asks::Source("10.0.0.0/8".parse().expect("a CIDR"))),
                (false, Asks::Destination("10.96.0.1/32".parse().expect("a CIDR"))),
                (false, Asks::Protocol("tcp".into())),
                (false, Asks::Ports(vec![80..=80])),
            ] {
                assert!(rule.conditions.contains(&Condition { negated, asks }), "{rule:?}");
            }
            assert_eq!(rule.conditions.len(), 4);
        }
    }

    #[test]
    fn actions_and_conditions_of_all_kinds_are_known() {
        for (text, asks, action) in [
            ("-m mark ! --mark 0x4000/0x4000 -j RETURN", Some(Asks::Mark(0x4000, 0x4000)), Action::Return),
            ("-j MARK --xor-mark 0x00004000", None, Action::Mark(0x4000, 0)),
            ("-j MARK --set-xmark 0x4000/0x4000", None, Action::Mark(0x4000, 0x4000)),
            ("-j MASQUERADE --random-fully", None, Action::Masquerade),
            ("-m statistic --mode random --probability 0.5 -j A", Some(Asks::Chance(0.5)), Action::Jump("A".into())),
            (
                "-m recent --name S --rcheck --seconds 9 --reap --mask 255.255.255.255 --rsource -g A",
                Some(Asks::Remembered),
                Action::Goto("A".into()),
            ),
            (
                "-m recent --name S --set -j DNAT --to-destination [fd00::1]:80",
                None,
                Action::Destination("fd00::1".parse().expect("an IP"), Some(80)),
            ),
            ("-m conntrack --ctstate INVALID -m nfacct --nfacct-name x -j DROP", Some(Asks::State(vec!["INVALID".into()])), Action::Drop),
            ("-p tcp -m multiport --dports 80,90:99", Some(Asks::Protocol("tcp".into())), Action::Count),
            ("-j REJECT --reject-with icmp-port-unreachable", None, Action::Reject),
            ("-m addrtype ! --src-type LOCAL -j ACCEPT", Some(Asks::SourceIsLocal), Action::Accept),
            ("-m socket --transparent -j ACCEPT", Some(Asks::Unknown("--transparent".into())), Action::Accept),
            ("-j TPROXY --on-port 1", None, Action::Unknown("TPROXY --on-port 1".into())),
            ("", None, Action::Count),
        ] {
            let rule = Rule::read(text);
            assert_eq!(rule.action, action, "{text}");
            assert_eq!(rule.conditions.first().map(|condition| condition.asks.clone()), asks, "{text}");
        }
        assert_eq!(Rule::read("-p tcp -m multiport --dports 80,90:99").conditions[1].asks, Asks::Ports(vec![80..=80, 90..=99]));
    }
}
