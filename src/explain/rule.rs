//! Parses one iptables rule into its matches and its target. Knows all matches and targets that sepal writes, and the most common ones of
//! other programs. Keeps any other match or target as text.

use std::borrow::Cow;
use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::ops::RangeInclusive;
use std::sync::Arc;

use ipnetwork::IpNetwork;

use crate::cluster::ip::{host_net, parse_cidr, parse_ip};
use crate::table::rule::words;

/// A match of a rule.
#[derive(Clone, Debug, PartialEq)]
pub struct RuleMatch {
    /// True after `!`: the match is inverted.
    pub negated: bool,
    /// What is compared, and with what.
    pub kind: MatchKind,
}

/// What a match compares, and with what.
#[derive(Clone, Debug, PartialEq)]
pub enum MatchKind {
    /// `-s`.
    Source(IpNetwork),
    /// `-d`.
    Destination(IpNetwork),
    /// `-p`, in lower case.
    Protocol(String),
    /// `-i`. A `+` at the end matches any suffix.
    InInterface(String),
    /// `-o`. A `+` at the end matches any suffix.
    OutInterface(String),
    /// `--dport`, `--dports`.
    Ports(Vec<RangeInclusive<u16>>),
    /// `addrtype --dst-type LOCAL`.
    DestinationIsLocal,
    /// `addrtype --src-type LOCAL`.
    SourceIsLocal,
    /// `conntrack --ctstate`.
    ConntrackState(Vec<String>),
    /// `mark --mark`: value and mask.
    Mark(u32, u32),
    /// `statistic --mode random`.
    Probability(f64),
    /// `recent --rcheck` or `--update`: the source address is in a list. The walk assumes a new client, which is in no list.
    Recent,
    /// Any other match, as text.
    Unknown(String),
}

/// What a rule does with the packets that it matches.
#[derive(Clone, Debug, PartialEq)]
pub enum RuleTarget {
    /// No verdict: the rule only counts, logs or adds to a list.
    Continue,
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
    SetMark(u32, u32),
    /// `MASQUERADE`.
    Masquerade,
    /// `DNAT`: the new address, and the new port if it changes.
    Dnat(IpAddr, Option<u16>),
    /// Any other target, as text.
    Unknown(String),
}

/// A parsed rule.
#[derive(Clone, Debug, PartialEq)]
pub struct ParsedRule {
    /// The matches. The rule applies if all of them match.
    pub matches: Vec<RuleMatch>,
    /// What the rule does then.
    pub target: RuleTarget,
    /// The comment. Empty for none.
    pub comment: String,
    /// The arguments as given: everything after the name of the chain.
    pub text: Arc<str>,
}

/// Prints the match as iptables does.
impl fmt::Display for MatchKind {
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
            Self::ConntrackState(states) => write!(f, "--ctstate {}", states.join(",")),
            Self::Mark(value, mask) => write!(f, "--mark {value:#x}/{mask:#x}"),
            Self::Probability(chance) => write!(f, "--mode random --probability {chance}"),
            Self::Recent => f.write_str("-m recent --rcheck"),
            Self::Unknown(text) => f.write_str(text),
        }
    }
}

impl ParsedRule {
    /// Parses the arguments of a rule: everything after the name of the chain.
    #[must_use]
    pub fn parse(arguments: &str) -> Self {
        let mut words = Words { all: words(arguments).collect(), next: 0 };
        let mut rule = Self { matches: Vec::new(), target: RuleTarget::Continue, comment: String::new(), text: arguments.into() };
        let mut module = Cow::default();
        let mut negated = false;
        while let Some(word) = words.take() {
            let kind = match &*word {
                "!" => {
                    negated = true;
                    continue;
                }
                "-m" => {
                    module = words.take().unwrap_or_default();
                    negated = false;
                    continue;
                }
                "-j" | "-g" => {
                    rule.target = target(&word, &mut words);
                    break;
                }
                "--comment" => {
                    rule.comment = words.take().unwrap_or_default().into_owned();
                    continue;
                }
                word => match_kind(word, &module, &mut words),
            };
            if let Some(kind) = kind {
                rule.matches.push(RuleMatch { negated, kind });
            }
            negated = false;
        }
        rule
    }
}

/// The words of a rule, read one after another.
struct Words<'a> {
    all: Vec<Cow<'a, str>>,
    next: usize,
}

impl<'a> Words<'a> {
    /// Takes the next word.
    fn take(&mut self) -> Option<Cow<'a, str>> {
        let word = self.all.get(self.next).cloned();
        self.next += 1;
        word
    }

    /// Returns the next word without taking it. Empty at the end.
    fn peek(&self) -> &str {
        self.all.get(self.next).map(|word| &**word).unwrap_or_default()
    }
}

/// Parses an option into a match. `None` for an option that matches nothing by itself.
fn match_kind(option: &str, module: &str, words: &mut Words<'_>) -> Option<MatchKind> {
    let unknown = |value: &str| MatchKind::Unknown(format!("{option} {value}").trim_end().to_owned());
    // These options take no value.
    match (module, option) {
        ("recent", "--set" | "--reap" | "--rsource") => return None,
        ("recent", "--rcheck" | "--update") => return Some(MatchKind::Recent),
        _ => {}
    }
    let value = if words.peek().starts_with('-') { Cow::default() } else { words.take().unwrap_or_default() };
    let known = match (module, option) {
        (_, "-s") => net(&value).map(MatchKind::Source),
        (_, "-d") => net(&value).map(MatchKind::Destination),
        (_, "-p") => Some(MatchKind::Protocol(value.to_lowercase())),
        (_, "-i") => Some(MatchKind::InInterface(value.clone().into_owned())),
        (_, "-o") => Some(MatchKind::OutInterface(value.clone().into_owned())),
        ("tcp" | "udp" | "sctp" | "multiport" | "", "--dport" | "--dports") => ports(&value).map(MatchKind::Ports),
        ("addrtype", "--dst-type") if &*value == "LOCAL" => Some(MatchKind::DestinationIsLocal),
        ("addrtype", "--src-type") if &*value == "LOCAL" => Some(MatchKind::SourceIsLocal),
        ("conntrack" | "state", "--ctstate" | "--state") => Some(MatchKind::ConntrackState(value.split(',').map(str::to_owned).collect())),
        ("mark", "--mark") => value_and_mask(&value).map(|(value, mask)| MatchKind::Mark(value, mask)),
        ("statistic", "--mode") if &*value == "random" => return None,
        ("statistic", "--probability") => value.parse().ok().map(MatchKind::Probability),
        ("recent", "--name" | "--seconds" | "--mask" | "--hitcount") | ("nfacct", "--nfacct-name") => return None,
        _ => None,
    };
    Some(known.unwrap_or_else(|| unknown(&value)))
}

/// Parses the target after `-j` or `-g`.
fn target(flag: &str, words: &mut Words<'_>) -> RuleTarget {
    let name = words.take().unwrap_or_default();
    let option = words.take().unwrap_or_default();
    let value = words.take().unwrap_or_default();
    let known = match (&*name, &*option) {
        _ if flag == "-g" => Some(RuleTarget::Goto(name.clone().into_owned())),
        ("ACCEPT", _) => Some(RuleTarget::Accept),
        ("DROP", _) => Some(RuleTarget::Drop),
        ("REJECT", _) => Some(RuleTarget::Reject),
        ("RETURN", _) => Some(RuleTarget::Return),
        ("MASQUERADE", _) => Some(RuleTarget::Masquerade),
        ("MARK", "--or-mark") => number(&value).map(|value| RuleTarget::SetMark(value, value)),
        ("MARK", "--xor-mark") => number(&value).map(|value| RuleTarget::SetMark(value, 0)),
        ("MARK", "--set-xmark") => value_and_mask(&value).map(|(value, mask)| RuleTarget::SetMark(value, mask)),
        ("DNAT", "--to-destination") => dnat(&value),
        ("LOG" | "NFLOG" | "TRACE", _) => Some(RuleTarget::Continue),
        // An unknown target without options is taken for a chain. One with options is a target extension.
        (chain, "") => Some(RuleTarget::Jump(chain.to_owned())),
        _ => None,
    };
    known.unwrap_or_else(|| RuleTarget::Unknown([&*name, &*option, &*value].join(" ").trim_end().to_owned()))
}

fn net(text: &str) -> Option<IpNetwork> {
    parse_cidr(text).or_else(|| parse_ip(text).map(host_net))
}

fn dnat(text: &str) -> Option<RuleTarget> {
    if let Ok(address) = text.parse::<SocketAddr>() {
        return Some(RuleTarget::Dnat(address.ip(), Some(address.port())));
    }
    parse_ip(text).map(|ip| RuleTarget::Dnat(ip, None))
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

/// Parses a value and its mask: `VALUE/MASK`, or `VALUE` for the full mask.
fn value_and_mask(text: &str) -> Option<(u32, u32)> {
    match text.split_once('/') {
        Some((value, mask)) => Some((number(value)?, number(mask)?)),
        None => Some((number(text)?, u32::MAX)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rule_parses_the_same_as_written_and_as_saved() {
        let written = "-m comment --comment \"a/b cluster IP\" -m tcp -p tcp -d 10.96.0.1 --dport 80 ! -s 10.0.0.0/8 -j KUBE-MARK-MASQ";
        let saved = "! -s 10.0.0.0/8 -d 10.96.0.1/32 -p tcp -m comment --comment \"a/b cluster IP\" -m tcp --dport 80 -j KUBE-MARK-MASQ";
        for text in [written, saved] {
            let rule = ParsedRule::parse(text);
            assert_eq!((rule.comment.as_str(), &rule.target), ("a/b cluster IP", &RuleTarget::Jump("KUBE-MARK-MASQ".into())));
            for (negated, kind) in [
                (true, MatchKind::Source("10.0.0.0/8".parse().expect("a CIDR"))),
                (false, MatchKind::Destination("10.96.0.1/32".parse().expect("a CIDR"))),
                (false, MatchKind::Protocol("tcp".into())),
                (false, MatchKind::Ports(vec![80..=80])),
            ] {
                assert!(rule.matches.contains(&RuleMatch { negated, kind }), "{rule:?}");
            }
            assert_eq!(rule.matches.len(), 4);
        }
    }

    #[test]
    fn all_kinds_of_targets_and_matches_are_parsed() {
        for (text, kind, target) in [
            ("-m mark ! --mark 0x4000/0x4000 -j RETURN", Some(MatchKind::Mark(0x4000, 0x4000)), RuleTarget::Return),
            ("-j MARK --xor-mark 0x00004000", None, RuleTarget::SetMark(0x4000, 0)),
            ("-j MARK --set-xmark 0x4000/0x4000", None, RuleTarget::SetMark(0x4000, 0x4000)),
            ("-j MASQUERADE --random-fully", None, RuleTarget::Masquerade),
            ("-m statistic --mode random --probability 0.5 -j A", Some(MatchKind::Probability(0.5)), RuleTarget::Jump("A".into())),
            (
                "-m recent --name S --rcheck --seconds 9 --reap --mask 255.255.255.255 --rsource -g A",
                Some(MatchKind::Recent),
                RuleTarget::Goto("A".into()),
            ),
            (
                "-m recent --name S --set -j DNAT --to-destination [fd00::1]:80",
                None,
                RuleTarget::Dnat("fd00::1".parse().expect("an IP"), Some(80)),
            ),
            (
                "-m conntrack --ctstate INVALID -m nfacct --nfacct-name x -j DROP",
                Some(MatchKind::ConntrackState(vec!["INVALID".into()])),
                RuleTarget::Drop,
            ),
            ("-p tcp -m multiport --dports 80,90:99", Some(MatchKind::Protocol("tcp".into())), RuleTarget::Continue),
            ("-j REJECT --reject-with icmp-port-unreachable", None, RuleTarget::Reject),
            ("-m addrtype ! --src-type LOCAL -j ACCEPT", Some(MatchKind::SourceIsLocal), RuleTarget::Accept),
            ("-m socket --transparent -j ACCEPT", Some(MatchKind::Unknown("--transparent".into())), RuleTarget::Accept),
            ("-j TPROXY --on-port 1", None, RuleTarget::Unknown("TPROXY --on-port 1".into())),
            ("", None, RuleTarget::Continue),
        ] {
            let rule = ParsedRule::parse(text);
            assert_eq!(rule.target, target, "{text}");
            assert_eq!(rule.matches.first().map(|rule_match| rule_match.kind.clone()), kind, "{text}");
        }
        assert_eq!(ParsedRule::parse("-p tcp -m multiport --dports 80,90:99").matches[1].kind, MatchKind::Ports(vec![80..=80, 90..=99]));
    }
}
