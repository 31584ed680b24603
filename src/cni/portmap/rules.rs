//! The rules that map host ports to a container, as the plugin `portmap` writes them [flannel 10.5]. PURE.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use ipnetwork::IpNetwork;

use crate::cluster::Family;
use crate::cni::iptables::{chain_name, comment, names_of};

use super::config::{Mapping, PortProtocol, PortmapConfig};

/// Prefix of the chains of containers.
const PREFIX: &str = "CNI-DN-";
/// The chain that jumps to the chains of containers.
pub(super) const DNAT: &str = "CNI-HOSTPORT-DNAT";
/// The chain that masquerades marked packets.
pub(super) const MASQUERADE: &str = "CNI-HOSTPORT-MASQ";
/// The chain that marks packets.
pub(super) const SET_MARK: &str = "CNI-HOSTPORT-SETMARK";
/// The largest number of ports in one rule: the limit of the multiport match.
const PORTS: usize = 15;
const TO_LOCAL: &str = "-m addrtype --dst-type LOCAL";

/// The listed rules of each chain; `None` for a chain that does not exist.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct LiveChains {
    /// `PREROUTING`
    pub prerouting: String,
    /// `OUTPUT`
    pub output: String,
    /// `POSTROUTING`
    pub postrouting: String,
    /// [`DNAT`]
    pub dnat: Option<String>,
    /// [`MASQUERADE`]
    pub masquerade: Option<String>,
    /// [`SET_MARK`]
    pub set_mark: Option<String>,
}

/// The desired rules of one container in one family.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct ContainerRules {
    /// The container's chain.
    pub chain: String,
    /// The rules of that chain.
    pub own: Vec<String>,
    /// The rules of [`DNAT`] that jump to that chain.
    pub entries: Vec<String>,
}

/// Returns true if a desired rule is among the listed ones. `conditions` are the operator's matches in the rule. The kernel may list them
/// in another form and at another place.
pub(super) fn is_listed(listed: &str, wanted: &str, conditions: &str) -> bool {
    let wanted = plain(&wanted.replacen(&format!("{conditions} -j "), " -j ", 1));
    listed.lines().filter_map(|line| line.strip_prefix("-A ")).map(plain).any(|line| {
        let mut words = line.split(' ');
        if conditions.is_empty() { line == wanted } else { wanted.split(' ').all(|word| words.any(|found| found == word)) }
    })
}

/// Returns a rule without the protocol matches that iptables adds when it lists, and without a source that is every address.
fn plain(rule: &str) -> String {
    [" -m tcp ", " -m udp ", " -m sctp ", " -s 0.0.0.0/0 ", " -s ::/0 "]
        .iter()
        .fold(rule.to_owned(), |rule, words| rule.replace(words, " "))
}

/// Returns the name of a container's chain.
pub(super) fn chain_of(network: &str, container: &str) -> String {
    chain_name(PREFIX, network, container)
}

/// Returns the rules of a container, without the command in front.
pub(super) fn rules(config: &PortmapConfig, network: &str, container: &str, address: IpNetwork) -> ContainerRules {
    let family = Family::of_net(address);
    let chain = chain_of(network, container);
    let mut ports: BTreeMap<PortProtocol, Vec<u16>> = BTreeMap::new();
    let mut own: Vec<String> = Vec::new();
    for mapping in &config.mappings {
        // As in the reference plugin, the entry rules have the ports of all mappings, also of those for a host address of the other family.
        // A port with two mappings is in them twice. CHECK of the reference plugin compares these rules as text.
        ports.entry(mapping.protocol).or_default().push(mapping.host_port);
        if mapping.is_for(family) {
            let new = own_rules(config, &chain, mapping, address);
            own.extend(new.into_iter().filter(|rule| !own.contains(rule)).collect::<Vec<_>>());
        }
    }
    let comment = comment(&format!("dnat name: \"{network}\" id: \"{container}\""));
    let conditions = &config.conditions[usize::from(family == Family::V6)];
    let entries = ports.iter().flat_map(|(protocol, ports)| ports.chunks(PORTS).map(move |ports| (protocol.as_str(), ports)));
    let entries = entries.map(|(protocol, ports)| {
        let ports: Vec<String> = ports.iter().map(u16::to_string).collect();
        format!("{DNAT} -p {protocol} {comment} -m multiport --dports {}{conditions} -j {chain}", ports.join(","))
    });
    ContainerRules { entries: entries.collect(), chain, own }
}

fn own_rules(config: &PortmapConfig, chain: &str, mapping: &Mapping, address: IpNetwork) -> Vec<String> {
    let Mapping { host_port, container_port, protocol, .. } = mapping;
    let to = mapping.address().map(|ip| format!("-d {} ", IpNetwork::from(ip))).unwrap_or_default();
    let rest = format!("{to}-p {} --dport {host_port}", protocol.as_str());
    let mut rules = Vec::new();
    if config.snat {
        let set_mark = config.external_chain.as_deref().unwrap_or(SET_MARK);
        let own = IpNetwork::new(address.network(), address.prefix()).unwrap_or(address);
        let (from, loopback) = match (config.masquerade_all, address.is_ipv4()) {
            (true, true) => ("-s 0.0.0.0/0 ".to_owned(), false),
            (true, false) => ("-s ::/0 ".to_owned(), false),
            (false, v4) => (format!("-s {own} "), v4),
        };
        rules.push(format!("{chain} {from}{rest} -j {set_mark}"));
        rules.extend(loopback.then(|| format!("{chain} -s 127.0.0.1/32 {rest} -j {set_mark}")));
    }
    let target = match address.ip() {
        IpAddr::V4(ip) => format!("{ip}:{container_port}"),
        IpAddr::V6(ip) => format!("[{ip}]:{container_port}"),
    };
    rules.push(format!("{chain} {rest} -j DNAT --to-destination {target}"));
    rules
}

/// Returns the lines that write these rules, if they do not exist. The container's chain is created empty. Shared chains are created only
/// if they are missing, and iptables refuses to create one that another program created meanwhile.
pub(super) fn additions(config: &PortmapConfig, rules: &ContainerRules, present: &LiveChains) -> Vec<String> {
    let mut lines = vec![format!(":{} - [0:0]", rules.chain)];
    let mut chain = |name: &str, found: Option<&String>, wanted: &[String]| {
        if found.is_none() {
            lines.push(format!("-N {name}"));
        }
        let found = found.map(String::as_str).unwrap_or_default();
        lines.extend(wanted.iter().filter(|rule| !has(found, rule)).map(|rule| format!("-A {rule}")));
    };
    let masquerade = format!("{MASQUERADE} -m mark --mark {mark:#x}/{mark:#x} -j MASQUERADE", mark = config.mark);
    let set_mark =
        format!("{SET_MARK} {} -j MARK --set-xmark {mark:#x}/{mark:#x}", comment("CNI portfwd masquerade mark"), mark = config.mark);
    let own_mark = config.snat && config.external_chain.is_none();
    if own_mark {
        chain(SET_MARK, present.set_mark.as_ref(), &[set_mark]);
        chain(MASQUERADE, present.masquerade.as_ref(), &[masquerade]);
    }
    chain(DNAT, present.dnat.as_ref(), &[]);
    if own_mark {
        let jump = format!("{} -j {MASQUERADE}", comment("CNI portfwd requiring masquerade"));
        if !has(&present.postrouting, &format!("POSTROUTING {jump}")) {
            lines.push(format!("-I POSTROUTING 1 {jump}"));
        }
    }
    for (name, found) in [("PREROUTING", &present.prerouting), ("OUTPUT", &present.output)] {
        let jump = format!("{name} {TO_LOCAL} -j {DNAT}");
        if !has(found, &jump) {
            lines.push(format!("-A {jump}"));
        }
    }
    lines.extend(deletions(present.dnat.as_deref().unwrap_or_default(), &rules.chain));
    lines.extend(rules.own.iter().chain(&rules.entries).map(|rule| format!("-A {rule}")));
    lines
}

fn has(listed: &str, rule: &str) -> bool {
    listed.lines().filter_map(|line| line.strip_prefix("-A ")).any(|line| line == rule)
}

/// Returns the lines that delete an existing container chain and the jumps to it.
pub(super) fn removal(dnat: &str, chain: &str) -> Vec<String> {
    let mut lines = deletions(dnat, chain);
    lines.extend([format!("-F {chain}"), format!("-X {chain}")]);
    lines
}

fn deletions(dnat: &str, chain: &str) -> Vec<String> {
    let jump = format!("-j {chain}");
    let rules = dnat.lines().filter(|line| line.ends_with(&jump)).filter_map(|line| line.strip_prefix("-A "));
    rules.map(|rule| format!("-D {rule}")).collect()
}

/// Another container that has some of the ports.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct OtherContainer {
    /// Its network.
    pub network: String,
    /// The runtime's ID of the container.
    pub container: String,
    /// Its chain.
    pub chain: String,
}

/// Returns the other containers that have a rule for one of these ports. Only their chains show for which host addresses.
pub(super) fn suspects(mappings: &[Mapping], dnat: &str, own_chain: &str) -> BTreeSet<OtherContainer> {
    let mut found = BTreeSet::new();
    for rule in dnat.lines() {
        let Some((network, container, chain)) = names_of(rule) else { continue };
        let words: Vec<&str> = rule.split(' ').collect();
        let after = |key: &str| words.iter().position(|word| *word == key).and_then(|at| words.get(at + 1).copied());
        let protocol = after("-p").and_then(PortProtocol::named);
        let ports: Vec<u16> = after("--dports").unwrap_or_default().split(',').filter_map(|port| port.parse().ok()).collect();
        let same = |mapping: &Mapping| Some(mapping.protocol) == protocol && ports.contains(&mapping.host_port);
        if chain != own_chain && mappings.iter().any(same) {
            found.insert(OtherContainer { network, container, chain });
        }
    }
    found
}

/// A port that another container has, and the address to which it leads.
pub(super) fn conflict(mappings: &[Mapping], rules_of_other: &str) -> Option<(Mapping, IpAddr)> {
    for rule in rules_of_other.lines() {
        let words: Vec<&str> = rule.split(' ').collect();
        let after = |key: &str| words.iter().position(|word| *word == key).and_then(|at| words.get(at + 1).copied());
        let Some(target) = after("--to-destination").and_then(|target| target.parse::<std::net::SocketAddr>().ok()) else { continue };
        let (protocol, port) = (after("-p").and_then(PortProtocol::named), after("--dport").and_then(|port| port.parse::<u16>().ok()));
        let host_ip = after("-d").and_then(|net| net.parse::<IpNetwork>().ok()).map(|net| net.ip());
        let same = |mapping: &&Mapping| {
            Some(mapping.protocol) == protocol
                && Some(mapping.host_port) == port
                && (mapping.address().is_none() || host_ip.is_none() || mapping.address() == host_ip)
        };
        let of_family = |mapping: &&Mapping| mapping.is_for(Family::of(target.ip()));
        if let Some(mapping) = mappings.iter().filter(of_family).find(same) {
            return Some((*mapping, target.ip()));
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cni::network_config::NetworkConfig;
    use crate::preflight::probes::{self, PROBES};
    use serde_json::{Value, json};

    #[allow(clippy::needless_pass_by_value, reason = "reads best where it is called")]
    fn config(mut keys: Value, ports: Value) -> PortmapConfig {
        keys["name"] = json!("cbr0");
        keys["runtimeConfig"] = json!({"portMappings": ports});
        PortmapConfig::read(&NetworkConfig::of((&keys).into()).expect("a frame")).expect("good")
    }

    fn two() -> Value {
        json!([
            {"hostPort": 8080, "containerPort": 80, "protocol": "tcp"},
            {"hostPort": 53, "containerPort": 53, "protocol": "udp", "hostIP": "10.1.1.1"},
        ])
    }

    fn of(config: &PortmapConfig, address: &str) -> ContainerRules {
        rules(config, "cbr0", "abc123", address.parse().expect("a network"))
    }

    #[test]
    fn the_rules_are_those_of_the_reference_plugin() {
        let made = of(&config(json!({}), two()), "10.244.1.2/24");
        let chain = "CNI-DN-3e9a3d0f9583cdc0e7133";
        assert_eq!(made.chain, chain);
        assert_eq!(
            made.own,
            [
                format!("{chain} -s 10.244.1.0/24 -p tcp --dport 8080 -j CNI-HOSTPORT-SETMARK"),
                format!("{chain} -s 127.0.0.1/32 -p tcp --dport 8080 -j CNI-HOSTPORT-SETMARK"),
                format!("{chain} -p tcp --dport 8080 -j DNAT --to-destination 10.244.1.2:80"),
                format!("{chain} -s 10.244.1.0/24 -d 10.1.1.1/32 -p udp --dport 53 -j CNI-HOSTPORT-SETMARK"),
                format!("{chain} -s 127.0.0.1/32 -d 10.1.1.1/32 -p udp --dport 53 -j CNI-HOSTPORT-SETMARK"),
                format!("{chain} -d 10.1.1.1/32 -p udp --dport 53 -j DNAT --to-destination 10.244.1.2:53"),
            ]
        );
        let comment = r#"-m comment --comment "dnat name: \"cbr0\" id: \"abc123\"""#;
        let entry = |protocol: &str, port: u16| format!("{DNAT} -p {protocol} {comment} -m multiport --dports {port} -j {chain}");
        assert_eq!(made.entries, [entry("tcp", 8080), entry("udp", 53)]);
        // A mapping of the other family has an entry rule only, and IPv6 has no loopback rule.
        let v6 = of(&config(json!({}), two()), "fd00:1::2/64");
        assert_eq!(v6.entries, made.entries);
        assert_eq!(
            v6.own,
            [
                format!("{chain} -s fd00:1::/64 -p tcp --dport 8080 -j CNI-HOSTPORT-SETMARK"),
                format!("{chain} -p tcp --dport 8080 -j DNAT --to-destination [fd00:1::2]:80"),
            ]
        );
    }

    #[test]
    fn a_port_with_two_mappings_is_in_entry_rules_twice() {
        let port = |ip: &str| json!({"hostPort": 80, "containerPort": 8080, "protocol": "tcp", "hostIP": ip});
        let made = of(&config(json!({}), json!([port("10.1.1.1"), port("fd00::1"), port("10.1.1.1")])), "10.244.1.2/24");
        assert!(made.entries.len() == 1 && made.entries[0].contains(" --dports 80,80,80 "), "{:?}", made.entries);
        assert_eq!(made.own.len(), 3);
    }

    #[test]
    fn sources_are_marked_as_asked() {
        let ports = json!([{"hostPort": 1, "containerPort": 2, "protocol": "tcp"}]);
        let all = of(&config(json!({"masqAll": true, "externalSetMarkChain": "KUBE-MARK-MASQ"}), ports.clone()), "10.0.0.2/24");
        assert_eq!(all.own.len(), 2);
        assert!(all.own[0].ends_with("-s 0.0.0.0/0 -p tcp --dport 1 -j KUBE-MARK-MASQ"));
        assert_eq!(of(&config(json!({"snat": false}), ports), "10.0.0.2/24").own.len(), 1);
        let many: Vec<Value> = (1..=16).map(|port| json!({"hostPort": port, "containerPort": port, "protocol": "tcp"})).collect();
        assert_eq!(of(&config(json!({}), json!(many)), "10.0.0.2/24").entries.len(), 2);
    }

    /// `sepal preflight` tests each match and target.
    #[test]
    fn preflight_tests_every_match_and_target() {
        let tried: BTreeSet<&str> = PROBES.iter().map(|probe| probe.name).collect();
        for address in ["10.244.1.2/24", "fd00:1::2/64"] {
            let ports =
                json!([{"hostPort": 80, "containerPort": 80, "protocol": "tcp"}, {"hostPort": 5, "containerPort": 5, "protocol": "sctp"}]);
            let config = config(json!({}), ports);
            let text = additions(&config, &of(&config, address), &LiveChains::default()).join("\n");
            let used = probes::used(&text);
            assert!(
                used.is_superset(&BTreeSet::from(["multiport", "addrtype", "mark", "comment", "DNAT", "MASQUERADE", "MARK"])),
                "{used:?}"
            );
            assert!(used.is_subset(&tried), "{used:?}");
        }
    }

    #[test]
    fn existing_rules_are_not_written_again() {
        let config = config(json!({}), json!([{"hostPort": 80, "containerPort": 80, "protocol": "tcp"}]));
        let made = of(&config, "10.244.1.2/24");
        let first = additions(&config, &made, &LiveChains::default());
        for line in [
            "-N CNI-HOSTPORT-DNAT",
            "-I POSTROUTING 1 -m comment --comment \"CNI portfwd requiring masquerade\" -j CNI-HOSTPORT-MASQ",
            "-A PREROUTING -m addrtype --dst-type LOCAL -j CNI-HOSTPORT-DNAT",
            "-A OUTPUT -m addrtype --dst-type LOCAL -j CNI-HOSTPORT-DNAT",
            "-A CNI-HOSTPORT-MASQ -m mark --mark 0x2000/0x2000 -j MASQUERADE",
            "-A CNI-HOSTPORT-SETMARK -m comment --comment \"CNI portfwd masquerade mark\" -j MARK --set-xmark 0x2000/0x2000",
        ] {
            assert!(first.iter().any(|found| found == line), "{line}: {first:?}");
        }
        let in_chain =
            |name: &str| first.iter().filter(|line| line.starts_with(&format!("-A {name} "))).map(|line| format!("{line}\n")).collect();
        let present = LiveChains {
            prerouting: in_chain("PREROUTING"),
            output: in_chain("OUTPUT"),
            postrouting: "-A POSTROUTING -m comment --comment \"CNI portfwd requiring masquerade\" -j CNI-HOSTPORT-MASQ\n".into(),
            dnat: Some(in_chain(DNAT)),
            masquerade: Some(in_chain(MASQUERADE)),
            set_mark: Some(in_chain(SET_MARK)),
        };
        let again = additions(&config, &made, &present);
        assert_eq!(again.len(), 1 + 1 + made.own.len() + made.entries.len(), "{again:?}");
        assert!(again[1].starts_with("-D CNI-HOSTPORT-DNAT -p tcp"), "what a killed process left goes first");
    }

    #[test]
    fn rules_are_found_in_every_listed_form() {
        let listed = "-P X\n-A X ! -s 192.0.2.1/32 -p tcp -m comment --comment \"a b\" -m multiport --dports 1,2 -j Y\n-A Y -s 10.0.0.0/24 -d 10.1.1.1/32 -p udp -m udp --dport 53 -j Z\n";
        let entry = |ports: &str| format!("X -p tcp -m comment --comment \"a b\" -m multiport --dports {ports} ! -s 192.0.2.1 -j Y");
        let conditions = " ! -s 192.0.2.1";
        assert!(is_listed(listed, &entry("1,2"), conditions) && !is_listed(listed, &entry("1"), conditions));
        assert!(is_listed(listed, "Y -s 10.0.0.0/24 -d 10.1.1.1/32 -p udp --dport 53 -j Z", ""));
        assert!(!is_listed(listed, "Y -s 10.0.0.0/24 -p udp --dport 53 -j Z", ""), "it is for one address only");
        assert!(is_listed("-A Y -p tcp -m tcp --dport 1 -j Z", "Y -s ::/0 -p tcp --dport 1 -j Z", ""));
    }

    #[test]
    fn conflicts_are_found_in_listed_rules() {
        let wanted = config(json!({}), two()).mappings;
        let other = r#"-A CNI-HOSTPORT-DNAT -p udp -m comment --comment "dnat name: \"net\" id: \"other\"" -m multiport --dports 52,53 -j CNI-DN-o"#;
        let found = suspects(&wanted, other, "CNI-DN-own");
        assert_eq!(found.iter().map(|other| other.container.as_str()).collect::<Vec<_>>(), ["other"]);
        assert!(suspects(&wanted, other, "CNI-DN-o").is_empty(), "its own are no others");
        assert!(suspects(&wanted, &other.replace("udp", "tcp"), "").is_empty());
        let at = |ip: &str| format!("-A CNI-DN-o {ip}-p udp -m udp --dport 53 -j DNAT --to-destination 10.244.1.9:53");
        assert_eq!(conflict(&wanted, &at("-d 10.1.1.2/32 ")), None);
        for ip in ["", "-d 10.1.1.1/32 "] {
            let (mapping, target) = conflict(&wanted, &at(ip)).expect("the same port");
            assert_eq!((mapping.to_string(), target.to_string()), ("53/udp of 10.1.1.1".into(), "10.244.1.9".into()));
        }
        assert_eq!(conflict(&wanted, "nonsense -p\n-A X --to-destination"), None);
    }
}
