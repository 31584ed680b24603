//! One spelling for every rule, so that a rule as written and the same rule as iptables-save prints it compare equal.
//!
//! iptables-save moves the addresses and the protocol to the front, adds masks and defaults, writes marks and probabilities
//! its own way; the nft and the legacy variant and their versions differ among themselves. The canonical form undoes all of that
//! for the matches and targets that kube-proxy's rules use, and leaves every other word as it is.

use crate::cluster::ip::{host_net, parse_cidr, parse_ip};

/// A part of a rule: what it is, and its words.
#[derive(Debug)]
struct Part {
    /// `-s`, `-m tcp`, `-j`...
    head: String,
    words: Vec<String>,
}

/// The canonical form of a rule's arguments (all after the chain's name): addresses, interfaces and protocol, then matches sorted, then
/// the target; equal texts mean equal rules.
#[must_use]
pub fn canonical(arguments: &str) -> String {
    let mut basics = Vec::new();
    let mut matches: Vec<Part> = Vec::new();
    let mut target = None;
    let mut negated = false;
    let mut words = split(arguments).into_iter().peekable();
    while let Some(word) = words.next() {
        match word.as_str() {
            "!" => {
                negated = true;
                continue;
            }
            "-s" | "-d" | "-p" | "-i" | "-o" => {
                let value = words.next().unwrap_or_default();
                let value = if matches!(word.as_str(), "-s" | "-d") { address(&value) } else { value };
                // Everywhere is no condition.
                if !value.ends_with("/0") || negated {
                    basics.push(format!("{}{word} {}", if negated { "! " } else { "" }, quote(&value)));
                }
            }
            "-m" => matches.push(Part { head: words.next().unwrap_or_default(), words: Vec::new() }),
            "-j" | "-g" => target = Some(Part { head: format!("{word} {}", quote(&words.next().unwrap_or_default())), words: Vec::new() }),
            _ => {
                let part = target.as_mut().or(matches.last_mut());
                if let Some(part) = part {
                    if negated {
                        part.words.push("!".into());
                    }
                    part.words.push(word);
                }
            }
        }
        negated = false;
    }
    basics.sort_by_cached_key(|basic| basic.trim_start_matches("! ").to_owned());
    let mut matches: Vec<String> = matches.into_iter().filter_map(match_text).collect();
    matches.sort();
    let target = target.map(target_text);
    basics.into_iter().chain(matches).chain(target).collect::<Vec<_>>().join(" ")
}

/// Words, with quotes and backslashes undone.
fn split(text: &str) -> Vec<String> {
    let mut words = Vec::new();
    let mut word: Option<String> = None;
    let mut quoted = false;
    let mut chars = text.chars();
    while let Some(c) = chars.next() {
        match c {
            '"' => {
                quoted = !quoted;
                word.get_or_insert_default();
            }
            '\\' => word.get_or_insert_default().extend(chars.next()),
            ' ' if !quoted => words.extend(word.take()),
            c => word.get_or_insert_default().push(c),
        }
    }
    words.extend(word);
    words
}

fn address(text: &str) -> String {
    let net = parse_cidr(text).or_else(|| parse_ip(text).map(host_net));
    net.map_or_else(|| text.to_owned(), |net| net.to_string())
}

fn match_text(part: Part) -> Option<String> {
    let Part { head, words } = part;
    let options = match head.as_str() {
        // `-m tcp` without options says no more than `-p tcp`, and the nft variant forgets it.
        "tcp" | "udp" | "sctp" if words.is_empty() => return None,
        "comment" => return words.get(1).map(|text| format!("-m comment --comment {}", quote(text))),
        "mark" => each_value(words, "--mark", mark),
        "statistic" => each_value(words, "--probability", probability),
        "conntrack" => each_value(words, "--ctstate", |states| Some(sorted_list(states))),
        "recent" => without_recent_defaults(words),
        _ => words,
    };
    Some(joined(&format!("-m {}", quote(&head)), &options))
}

fn target_text(part: Part) -> String {
    let Part { head, words } = part;
    let options = match (head.as_str(), words.as_slice()) {
        ("-j MARK", [how, value]) => set_xmark(how, value).unwrap_or(words),
        ("-j REJECT", [_, with]) if matches!(with.as_str(), "icmp-port-unreachable" | "icmp6-port-unreachable") => Vec::new(),
        _ => words,
    };
    joined(&head, &options)
}

fn joined(head: &str, options: &[String]) -> String {
    let mut text = head.to_owned();
    for option in options {
        text.push(' ');
        text.push_str(&quote(option));
    }
    text
}

fn quote(word: &str) -> String {
    let plain = !word.is_empty() && !word.contains([' ', '"', '\'', '\\']);
    if plain { word.to_owned() } else { format!("\"{}\"", word.replace('\\', "\\\\").replace('"', "\\\"")) }
}

/// Applies `spell` to what follows each `option`.
fn each_value(mut words: Vec<String>, option: &str, spell: impl Fn(&str) -> Option<String>) -> Vec<String> {
    for i in 1..words.len() {
        if words[i - 1] == option
            && let Some(value) = spell(&words[i])
        {
            words[i] = value;
        }
    }
    words
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

/// The kernel keeps probabilities in 31 bits; so does the canonical form.
fn probability(text: &str) -> Option<String> {
    let probability: f64 = text.parse().ok()?;
    Some(format!("{:.0}/2147483648", (probability * 2_147_483_648.0).round()))
}

fn sorted_list(text: &str) -> String {
    let mut items: Vec<&str> = text.split(',').collect();
    items.sort_unstable();
    items.join(",")
}

/// `--or-mark`, `--xor-mark` and `--set-xmark` are one thing: mark = (mark & !mask) ^ value.
fn set_xmark(how: &str, text: &str) -> Option<Vec<String>> {
    let (value, mask) = match how {
        "--set-xmark" => value_and_mask(text, u32::MAX)?,
        "--or-mark" => (number(text)?, number(text)?),
        "--xor-mark" => (number(text)?, 0),
        _ => return None,
    };
    Some(vec!["--set-xmark".into(), format!("{value:#x}/{mask:#x}")])
}

/// `-m recent` prints its default mask and direction; and its options in an order of its own.
fn without_recent_defaults(words: Vec<String>) -> Vec<String> {
    let mut options: Vec<Vec<String>> = Vec::new();
    for word in words {
        match options.last_mut() {
            Some(option) if !word.starts_with("--") => option.push(word),
            _ => options.push(vec![word]),
        }
    }
    let full_mask = |mask: &str| mask == "255.255.255.255" || mask == "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff";
    options.retain(|option| option[0] != "--rsource" && !(option[0] == "--mask" && option.get(1).is_some_and(|mask| full_mask(mask))));
    options.sort();
    options.concat()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Rules as they are written, and as iptables-save prints them (1.8.9, legacy and nft).
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
        }
    }
}
