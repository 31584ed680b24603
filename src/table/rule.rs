//! The canonical spelling of a rule. A rule that we wrote and the same rule as iptables-save prints it have the same canonical spelling.
//!
//! iptables-save moves addresses and the protocol to the front, adds masks and defaults, and prints marks and probabilities differently.
//! The variants and their versions differ too. The canonical spelling undoes this for the matches and targets of kube-proxy's rules, and
//! leaves every other word unchanged.

use std::borrow::Cow;
use std::fmt::Write as _;
use std::hash::{DefaultHasher, Hash, Hasher};

use crate::cluster::ip::{host_net, parse_cidr, parse_ip};

/// The digest of a rule, or of the rules of a chain in their order. Rules with the same canonical spelling have the same digest. It has 64
/// bits of `SipHash` and is only compared within one process.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Digest(u64);

impl Digest {
    /// Returns the digest of a rule's arguments: everything after the chain's name.
    #[must_use]
    pub fn of_rule(arguments: &str) -> Self {
        let mut sum = 0_u64;
        // The order of parts of the same kind has no meaning. A sum does not depend on their order.
        each_part(arguments, |kind, text| sum = sum.wrapping_add(hash(&(kind as u8, text))));
        Self(sum)
    }

    /// Returns the digest of a whole `-A` line: the chain and the rule.
    #[must_use]
    pub fn of_line(line: &str) -> Self {
        let (chain, arguments) = split_line(line);
        Self(hash(&(chain, Self::of_rule(arguments).0)))
    }

    /// Returns the digest of a chain after another rule is appended.
    #[must_use]
    pub fn then(self, rule: Self) -> Self {
        Self(hash(&(self.0, rule.0)))
    }

    /// Returns the digest of a chain from the text of its rules, each an `-A` line.
    #[must_use]
    pub(crate) fn of_chain(rules: &str) -> Self {
        rules.lines().fold(Self::default(), |chain, line| chain.then(Self::of_rule(split_line(line).1)))
    }
}

fn hash(value: &impl Hash) -> u64 {
    let mut hasher = DefaultHasher::new();
    value.hash(&mut hasher);
    hasher.finish()
}

/// Splits an `-A` line into chain and arguments. For any other line, the chain is empty.
#[must_use]
pub fn split_line(line: &str) -> (&str, &str) {
    match line.strip_prefix("-A ") {
        Some(rule) => rule.split_once(' ').unwrap_or((rule, "")),
        None => ("", line),
    }
}

/// Returns the target of a rule (`-j` or `-g`), or `None` if the rule has no target and only counts.
#[must_use]
pub fn target(arguments: &str) -> Option<Cow<'_, str>> {
    let mut words = Words(arguments);
    while let Some(word) = words.next() {
        match &*word {
            "-j" | "-g" => return words.next(),
            // A comment can contain `-j`.
            "--comment" => drop(words.next()),
            _ => {}
        }
    }
    None
}

/// Returns the service port name (the first word of the comment) and the protocol of a rule in a shared chain. Both are empty if the rule
/// belongs to no service port.
#[must_use]
pub fn owner(arguments: &str) -> (String, Cow<'_, str>) {
    let (mut name, mut protocol) = (String::new(), Cow::default());
    let mut words = Words(arguments);
    while let Some(word) = words.next() {
        match &*word {
            "--comment" => words.next().unwrap_or_default().split(' ').next().unwrap_or_default().clone_into(&mut name),
            "-p" => protocol = words.next().unwrap_or_default(),
            _ => {}
        }
    }
    (name, protocol)
}

/// Returns a rule's arguments in canonical spelling: addresses, interfaces and protocol, then the sorted matches, then the target. Equal
/// texts mean equal rules.
#[must_use]
pub fn canonical(arguments: &str) -> String {
    let mut parts: Vec<(PartKind, String)> = Vec::new();
    each_part(arguments, |kind, text| parts.push((kind, text.to_owned())));
    parts.sort_by(|(a_kind, a), (b_kind, b)| a_kind.cmp(b_kind).then_with(|| a.trim_start_matches("! ").cmp(b.trim_start_matches("! "))));
    parts.into_iter().map(|(_, text)| text).collect::<Vec<_>>().join(" ")
}

/// The kind of a part of a rule. The canonical spelling sorts by it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum PartKind {
    /// `-s`, `-d`, `-p`, `-i`, `-o`.
    Basic,
    /// `-m` and its options.
    Match,
    /// `-j` or `-g` and its options.
    Target,
}

/// A match or target whose options are still being read. Addresses may stand between its options.
struct Open<'a> {
    kind: PartKind,
    /// `-m`, `-j` or `-g`.
    word: Cow<'a, str>,
    name: Cow<'a, str>,
}

/// Calls `part` with each part of a rule in canonical spelling.
fn each_part(arguments: &str, mut part: impl FnMut(PartKind, &str)) {
    let mut words = Words(arguments);
    let mut open: Option<Open<'_>> = None;
    let mut options: Vec<Cow<'_, str>> = Vec::with_capacity(8);
    let mut text = String::with_capacity(96);
    let mut negated = false;
    while let Some(word) = words.next() {
        match &*word {
            "!" => {
                negated = true;
                continue;
            }
            "-s" | "-d" | "-p" | "-i" | "-o" => {
                let value = words.next().unwrap_or_default();
                // A /0 network matches every address, so it is left out.
                if negated || !value.ends_with("/0") {
                    text.clear();
                    text.extend([if negated { "! " } else { "" }, &*word, " "]);
                    if matches!(&*word, "-s" | "-d") {
                        push_address(&mut text, &value);
                    } else {
                        push_word(&mut text, &value);
                    }
                    part(PartKind::Basic, &text);
                }
            }
            "-m" | "-j" | "-g" => {
                close(open.take().as_ref(), &mut options, &mut text, &mut part);
                let kind = if word == "-m" { PartKind::Match } else { PartKind::Target };
                open = Some(Open { kind, word, name: words.next().unwrap_or_default() });
            }
            _ => {
                if negated {
                    options.push("!".into());
                }
                options.push(word);
            }
        }
        negated = false;
    }
    close(open.as_ref(), &mut options, &mut text, &mut part);
}

/// Calls `part` with a part whose options are all read. Options before the first match are a separate part, so that rules still differ if
/// they have options that this parser does not know.
fn close(open: Option<&Open<'_>>, options: &mut Vec<Cow<'_, str>>, text: &mut String, part: &mut impl FnMut(PartKind, &str)) {
    text.clear();
    let kind = match open {
        None if options.is_empty() => return,
        None => PartKind::Basic,
        Some(Open { kind, word, name }) => {
            text.extend([&**word, " "]);
            push_word(text, name);
            let has_effect = if *kind == PartKind::Match { match_options(name, options) } else { target_options(name, options) };
            if !has_effect {
                return;
            }
            *kind
        }
    };
    for option in options.drain(..) {
        if !text.is_empty() {
            text.push(' ');
        }
        push_word(text, &option);
    }
    part(kind, text);
}

/// Returns the words of a rule, without quotes and backslashes.
pub fn words(arguments: &str) -> impl Iterator<Item = Cow<'_, str>> {
    Words(arguments)
}

/// Iterates over the words of a rule, without quotes and backslashes.
struct Words<'a>(&'a str);

impl<'a> Iterator for Words<'a> {
    type Item = Cow<'a, str>;

    fn next(&mut self) -> Option<Cow<'a, str>> {
        let text = self.0.trim_start_matches(' ');
        if text.is_empty() {
            self.0 = text;
            return None;
        }
        let bytes = text.as_bytes();
        let special = bytes.iter().position(|b| matches!(b, b' ' | b'"' | b'\\')).unwrap_or(bytes.len());
        if special == bytes.len() || bytes[special] == b' ' {
            self.0 = &text[special..];
            return Some(text[..special].into());
        }
        // One pair of quotes around the whole word, as iptables-save writes comments.
        if special == 0 && bytes[0] == b'"' {
            let inside = &bytes[1..];
            let end = inside.iter().position(|b| matches!(b, b'"' | b'\\'));
            if let Some(end) = end.filter(|end| inside[*end] == b'"' && matches!(inside.get(end + 1), None | Some(b' '))) {
                self.0 = &text[end + 2..];
                return Some(text[1..=end].into());
            }
        }
        Some(self.escaped(text).into())
    }
}

impl<'a> Words<'a> {
    fn escaped(&mut self, text: &'a str) -> String {
        let mut word = String::new();
        let mut quoted = false;
        let mut chars = text.char_indices();
        while let Some((at, c)) = chars.next() {
            match c {
                '"' => quoted = !quoted,
                '\\' => word.extend(chars.next().map(|(_, c)| c)),
                ' ' if !quoted => {
                    self.0 = &text[at..];
                    return word;
                }
                c => word.push(c),
            }
        }
        self.0 = "";
        word
    }
}

fn push_address(text: &mut String, value: &str) {
    match parse_cidr(value).or_else(|| parse_ip(value).map(host_net)) {
        Some(net) => {
            let _ = write!(text, "{net}");
        }
        None => push_word(text, value),
    }
}

fn push_word(text: &mut String, word: &str) {
    if !word.is_empty() && !word.bytes().any(|b| matches!(b, b' ' | b'"' | b'\'' | b'\\')) {
        text.push_str(word);
        return;
    }
    text.push('"');
    for c in word.chars() {
        if matches!(c, '"' | '\\') {
            text.push('\\');
        }
        text.push(c);
    }
    text.push('"');
}

/// Rewrites the options of a match in canonical spelling. Returns false if the match has no effect.
fn match_options(name: &str, options: &mut Vec<Cow<'_, str>>) -> bool {
    match name {
        // `-m tcp` without options means the same as `-p tcp`, and the nft variant does not print it.
        "tcp" | "udp" | "sctp" => return !options.is_empty(),
        "mark" => each_value(options, "--mark", mark),
        "statistic" => each_value(options, "--probability", probability),
        "conntrack" => each_value(options, "--ctstate", |states| Some(sorted_list(states))),
        "recent" => without_recent_defaults(options),
        _ => {}
    }
    true
}

/// Rewrites the options of a target in canonical spelling. Returns true, because a target always has an effect.
fn target_options(name: &str, options: &mut Vec<Cow<'_, str>>) -> bool {
    match (name, options.as_slice()) {
        ("MARK", [how, value]) => {
            if let Some(value) = set_xmark(how, value) {
                *options = vec!["--set-xmark".into(), value.into()];
            }
        }
        ("REJECT", [_, with]) if matches!(&**with, "icmp-port-unreachable" | "icmp6-port-unreachable") => options.clear(),
        _ => {}
    }
    true
}

/// Applies `spell` to the value of each `option`.
fn each_value(options: &mut [Cow<'_, str>], option: &str, spell: impl Fn(&str) -> Option<String>) {
    for i in 1..options.len() {
        if options[i - 1] == option
            && let Some(value) = spell(&options[i])
        {
            options[i] = value.into();
        }
    }
}

fn number(text: &str) -> Option<u32> {
    text.strip_prefix("0x").map_or_else(|| text.parse().ok(), |hex| u32::from_str_radix(hex, 16).ok())
}

fn value_and_mask(text: &str, default_mask: u32) -> Option<(u32, u32)> {
    match text.split_once('/') {
        Some((value, mask)) => Some((number(value)?, number(mask)?)),
        None => Some((number(text)?, default_mask)),
    }
}

fn mark(text: &str) -> Option<String> {
    value_and_mask(text, u32::MAX).map(|(value, mask)| format!("{value:#x}/{mask:#x}"))
}

/// The kernel stores probabilities in 31 bits, so the canonical spelling uses 31 bits too.
fn probability(text: &str) -> Option<String> {
    if text.ends_with("/2147483648") {
        return None;
    }
    let probability: f64 = text.parse().ok()?;
    Some(format!("{:.0}/2147483648", (probability * 2_147_483_648.0).round()))
}

fn sorted_list(text: &str) -> String {
    let mut items: Vec<&str> = text.split(',').collect();
    items.sort_unstable();
    items.join(",")
}

/// Rewrites `--or-mark` and `--xor-mark` as the value and mask of `--set-xmark`: mark = (mark & !mask) ^ value.
fn set_xmark(how: &str, text: &str) -> Option<String> {
    let (value, mask) = match how {
        "--set-xmark" => value_and_mask(text, u32::MAX)?,
        "--or-mark" => (number(text)?, number(text)?),
        "--xor-mark" => (number(text)?, 0),
        _ => return None,
    };
    Some(format!("{value:#x}/{mask:#x}"))
}

/// Removes the default mask and direction of `-m recent`, which iptables-save prints, and sorts the options.
fn without_recent_defaults(options: &mut Vec<Cow<'_, str>>) {
    let mut groups: Vec<Vec<Cow<'_, str>>> = Vec::new();
    for word in options.drain(..) {
        match groups.last_mut() {
            Some(group) if !word.starts_with("--") => group.push(word),
            _ => groups.push(vec![word]),
        }
    }
    let full_mask = |mask: &str| mask == "255.255.255.255" || mask == "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff";
    groups.retain(|group| group[0] != "--rsource" && !(group[0] == "--mask" && group.get(1).is_some_and(|mask| full_mask(mask))));
    groups.sort();
    options.extend(groups.into_iter().flatten());
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Each rule as we write it and as iptables-save prints it (1.8.9, legacy and nft).
    #[test]
    fn written_and_saved_rules_are_the_same() {
        for (written, saved) in [
            (
                "-m comment --comment \"ns1/svc1:p80 cluster IP\" -m tcp -p tcp -d 10.96.0.1 --dport 80 ! -s 10.0.0.0/8 -j KUBE-MARK-MASQ",
                "! -s 10.0.0.0/8 -d 10.96.0.1/32 -p tcp -m comment --comment \"ns1/svc1:p80 cluster IP\" -m tcp --dport 80 -j KUBE-MARK-MASQ",
            ),
            (
                "-m comment --comment ns1/svc1 -s fd00::1 -j KUBE-MARK-MASQ",
                "-s fd00::1/128 -m comment --comment \"ns1/svc1\" -j KUBE-MARK-MASQ",
            ),
            ("-m mark ! --mark 0x00004000/0x00004000 -j RETURN", "-m mark ! --mark 0x4000/0x4000 -j RETURN"),
            ("-j MARK --xor-mark 0x00004000", "-j MARK --set-xmark 0x4000/0x0"),
            ("-j MARK --or-mark 0x00004000", "-j MARK --set-xmark 0x4000/0x4000"),
            ("-m statistic --mode random --probability 0.3333333333 -j A", "-m statistic --mode random --probability 0.33333333349 -j A"),
            (
                "-m recent --name S --rcheck --seconds 10800 --reap -j S",
                "-m recent --rcheck --seconds 10800 --reap --name S --mask 255.255.255.255 --rsource -j S",
            ),
            (
                "-m comment --comment a/b -m recent --name S --set -m tcp -p tcp -j DNAT --to-destination [fd00::1]:80",
                "-p tcp -m comment --comment \"a/b\" -m recent --set --name S --mask ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff --rsource -m tcp -j DNAT --to-destination [fd00::1]:80",
            ),
            ("-m tcp -p tcp -j DNAT --to-destination 1.2.3.4:80", "-p tcp -j DNAT --to-destination 1.2.3.4:80"),
            ("-d 10.0.0.1 -j REJECT", "-d 10.0.0.1/32 -j REJECT --reject-with icmp-port-unreachable"),
            ("-m conntrack ! --ctstate RELATED,ESTABLISHED,DNAT -j DROP", "-m conntrack ! --ctstate DNAT,ESTABLISHED,RELATED -j DROP"),
            ("-m addrtype --dst-type LOCAL ! -d 127.0.0.0/8 -j A", "! -d 127.0.0.0/8 -m addrtype --dst-type LOCAL -j A"),
            ("-m nfacct --nfacct-name x -j DROP", "-m nfacct --nfacct-name  x -j DROP"),
        ] {
            assert_eq!(canonical(written), canonical(saved));
            assert_eq!(Digest::of_rule(written), Digest::of_rule(saved));
        }
    }

    #[test]
    fn a_comment_is_not_read_as_the_target() {
        for (rule, leads_to) in [
            ("-m comment --comment \"to -j A\" -j B", Some("B")),
            ("-m comment --comment -j -g C", Some("C")),
            ("-j LOG --log-prefix \"-j A\"", Some("LOG")),
            ("-s 10.0.0.1/32", None),
            ("-j", None),
            ("", None),
        ] {
            assert_eq!(target(rule).as_deref(), leads_to, "{rule}");
        }
    }

    #[test]
    fn different_rules_stay_different() {
        for (a, b) in [
            ("-d 10.0.0.1 -j A", "-s 10.0.0.1 -j A"),
            ("-d 10.0.0.1 -j A", "! -d 10.0.0.1 -j A"),
            ("-d 10.0.0.1 -j A", "-d 10.0.0.1 -j B"),
            ("-d 10.0.0.1/24 -j A", "-d 10.0.0.1 -j A"),
            ("-m tcp -p tcp --dport 80 -j A", "-m tcp -p tcp --dport 81 -j A"),
            ("-m tcp -p tcp -j A", "-m udp -p udp -j A"),
            ("-j MARK --or-mark 0x1", "-j MARK --xor-mark 0x1"),
            ("-m mark --mark 0x1/0x1 -j A", "-m mark ! --mark 0x1/0x1 -j A"),
            ("-m statistic --mode random --probability 0.5 -j A", "-m statistic --mode random --probability 0.25 -j A"),
            ("-j REJECT", "-j REJECT --reject-with tcp-reset"),
            ("-m recent --name S --set", "-m recent --name S --rcheck"),
            ("-j A", "-g A"),
            ("-m comment --comment x", ""),
        ] {
            assert_ne!(canonical(a), canonical(b));
            assert_ne!(Digest::of_rule(a), Digest::of_rule(b));
        }
    }
}
