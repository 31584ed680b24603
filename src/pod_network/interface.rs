//! Selects the external interface, which sends packets to other nodes, and its address [flannel 5.1].
//!
//! Without options it is the interface that has the Node's `InternalIP`, because other nodes and kubelet use that address. flannel takes the
//! interface of the default route, which is often the wrong one on hosts with several interfaces [flannel 12].

use std::cmp::Reverse;
use std::net::IpAddr;

use ipnetwork::IpNetwork;
use regex::Regex;

use crate::cluster::Family;

use super::annotations::{BadAnnotation, NodeAnnotations};
use crate::cluster::families::PerFamily;
use crate::netlink::entry::{Route, RouteKind};
use crate::netlink::link::{Link, LinkAddress, LinkKind, Scope};

/// The options that select the external interface.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct InterfaceOptions {
    /// `--iface`: names or addresses, tried in this order. An empty text means the interface of the default route.
    pub names: Vec<String>,
    /// `--iface-regex`: tried after all names. An empty text means the interface of the default route.
    pub patterns: Vec<String>,
    /// `--iface-can-reach`: tried last.
    pub can_reach: Option<IpAddr>,
    /// The kernel's route to `can_reach`, or why there is none; `None` before the kernel was asked.
    pub reached: Option<Result<Route, String>>,
    /// `--public-ip` and `--public-ipv6`.
    pub public: PerFamily<IpAddr>,
}

impl InterfaceOptions {
    /// Replaces `--public-ip` and `--public-ipv6` by the annotations that the operator has set on the Node.
    ///
    /// # Errors
    /// The text of an annotation is not an address.
    pub(crate) fn with_annotations(mut self, node: &NodeAnnotations) -> Result<Self, BadAnnotation> {
        for family in Family::ALL {
            if let Some(ip) = node.node_public_ip(family)? {
                self.public.set(family, Some(ip));
            }
        }
        Ok(self)
    }
}

/// The interface that sends packets to other nodes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ExternalInterface {
    /// Its index in the kernel.
    pub index: u32,
    /// Its name.
    pub name: String,
    /// Its MTU.
    pub mtu: u32,
    /// Its own addresses, one of each enabled family.
    pub addresses: PerFamily<IpAddr>,
    /// Source addresses of outer packets: `--public-ip` and `--public-ipv6`, else its own addresses.
    pub local: PerFamily<IpAddr>,
    /// Why it was selected.
    pub why: String,
}

impl ExternalInterface {
    /// Checks that the backend host-gw can use the interface.
    ///
    /// # Errors
    /// The published address is not its own.
    pub(crate) fn check_host_gw(&self) -> Result<(), NoInterface> {
        match self.local.iter().find(|(family, ip)| self.addresses.get(*family) != Some(*ip)) {
            Some((_, public)) => Err(NoInterface::Translated { public: *public, name: self.name.clone() }),
            None => Ok(()),
        }
    }
}

/// Why no external interface was selected.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NoInterface {
    /// No option is set, and no interface was found.
    #[error("Failed to find any valid interface to use: {0}")]
    Default(String),
    /// No interface matches the options.
    #[error("Failed to find interface to use that matches the interfaces and/or regexes provided: {}", .0.join("; "))]
    Asked(Vec<String>),
    /// Backend host-gw cannot work behind address translation.
    #[error(
        "your PublicIP differs from interface IP, meaning that probably you're on a NAT, which is not supported by host-gw backend: {public} is not the address of {name}"
    )]
    Translated {
        /// The published address.
        public: IpAddr,
        /// The interface.
        name: String,
    },
}

/// Selects the external interface.
///
/// # Errors
/// No interface matches the options; or no option is set, and neither the Node's addresses nor the default route lead to an interface.
pub fn select(
    options: &InterfaceOptions,
    families: &[Family],
    node_ips: &[IpAddr],
    links: &[Link],
    routes: &[Route],
) -> Result<ExternalInterface, NoInterface> {
    let selection = Selection { options, families, links, routes };
    if options.names.is_empty() && options.patterns.is_empty() && options.can_reach.is_none() {
        // As in flannel, `--public-ip` selects the interface, too.
        let named = options.public.get(Family::V4).or_else(|| options.public.get(Family::V6));
        let found = match named {
            Some(ip) => selection.by_address(*ip, "it has the address of --public-ip"),
            None => selection.by_node(node_ips).map_or_else(|| selection.by_default_route(), Ok),
        };
        return found.map_err(NoInterface::Default);
    }
    let mut failures = Vec::new();
    let names = options.names.iter().map(|name| match name.parse::<IpAddr>() {
        _ if name.is_empty() => selection.by_default_route(),
        Ok(ip) => selection.by_address(ip.to_canonical(), "--iface names its address"),
        Err(_) => selection.by_name(name),
    });
    let patterns = options.patterns.iter().map(|pattern| selection.by_pattern(pattern));
    let reach = options.can_reach.iter().map(|ip| selection.by_reach(*ip));
    for found in names.chain(patterns).chain(reach) {
        match found {
            Ok(external) => return Ok(external),
            Err(failure) => failures.push(failure),
        }
    }
    Err(NoInterface::Asked(failures))
}

/// The inputs of the selection.
struct Selection<'a> {
    options: &'a InterfaceOptions,
    families: &'a [Family],
    links: &'a [Link],
    routes: &'a [Route],
}

impl<'a> Selection<'a> {
    fn by_address(&self, ip: IpAddr, why: &str) -> Result<ExternalInterface, String> {
        let carries = |link: &&Link| has_address(link, ip);
        let version = if ip.is_ipv6() { "v6 " } else { "" };
        let missing = || format!("error looking up {version}interface {ip}: no interface with given IP found");
        let link = self.links.iter().find(carries).ok_or_else(missing)?;
        self.external(link, &[ip], format!("{why}, {ip}"))
    }

    fn by_name(&self, name: &str) -> Result<ExternalInterface, String> {
        let missing = || format!("error looking up interface {name}: no such network interface");
        let link = self.links.iter().find(|link| link.name == name).ok_or_else(missing)?;
        self.external(link, &[], "--iface names it".into())
    }

    fn by_pattern(&self, pattern: &str) -> Result<ExternalInterface, String> {
        if pattern.is_empty() {
            return self.by_default_route();
        }
        let regex = Regex::new(pattern).map_err(|error| format!("could not compile the IP address regex '{pattern}': {error}"))?;
        let why = || format!("--iface-regex {pattern} matches it");
        for link in self.links {
            let matching = |family: &Family| {
                preferred(link, *family).into_iter().map(|address| address.net.ip()).find(|ip| regex.is_match(&ip.to_string()))
            };
            let found: Vec<IpAddr> = self.families.iter().filter_map(matching).collect();
            if found.len() == self.families.len() {
                return self.external(link, &found, why());
            }
        }
        let shown = |link: &Link| {
            let family = self.families.first().copied().unwrap_or(Family::V4);
            let ips: Vec<String> = preferred(link, family).into_iter().map(|address| address.net.ip().to_string()).collect();
            format!("{}:[{}]", link.name, ips.join(" "))
        };
        let by_name = self.links.iter().find(|link| regex.is_match(&link.name)).ok_or_else(|| {
            let all: Vec<String> = self.links.iter().map(shown).collect();
            format!("Could not match pattern {pattern} to any of the available network interfaces ({})", all.join(", "))
        })?;
        self.external(by_name, &[], why())
    }

    /// The interface and the source address that the kernel uses for packets to an address. The source may be an address of the loopback, as on
    /// hosts that announce an address by a routing protocol.
    fn by_reach(&self, ip: IpAddr) -> Result<ExternalInterface, String> {
        let failed = |cause: &str| format!("failed to get ifcanreach based interface: couldn't lookup route to {ip}: {cause}");
        let route = self.options.reached.as_ref().ok_or_else(|| failed("the kernel was not asked"))?.as_ref();
        let route = route.map_err(|cause| failed(cause))?;
        let link = self.link(route.link).ok_or_else(|| failed("it has no interface"))?;
        self.external(link, route.source.as_slice(), format!("packets to {ip} leave by it"))
    }

    /// The interface that has one of the Node's addresses, and an address of every enabled family. Loopbacks and VXLAN links are not considered.
    fn by_node(&self, node_ips: &[IpAddr]) -> Option<ExternalInterface> {
        let candidates = node_ips.iter().filter(|ip| self.families.contains(&Family::of(**ip)));
        candidates.into_iter().find_map(|ip| {
            let carries = |link: &&Link| !matches!(link.kind, LinkKind::Loopback | LinkKind::Vxlan(_)) && has_address(link, *ip);
            let link = self.links.iter().find(carries)?;
            let own: Vec<IpAddr> = node_ips.iter().copied().filter(|ip| has_address(link, *ip)).collect();
            self.external(link, &own, format!("it has the Node's address {ip}")).ok()
        })
    }

    fn by_default_route(&self) -> Result<ExternalInterface, String> {
        let mut first: Option<&Link> = None;
        for family in self.families {
            let (version, of_version) = if *family == Family::V6 { ("v6 ", "default v6") } else { ("", "default") };
            let failed = |what: String| format!("failed to get default {version}interface: {what}");
            let is_default = |route: &&Route| {
                route.destination.prefix() == 0 && Family::of_net(route.destination) == *family && route.kind == RouteKind::Unicast
            };
            let route = self.routes.iter().find(is_default).ok_or_else(|| failed(format!("unable to find {of_version} route")))?;
            let link =
                self.link(route.link).ok_or_else(|| failed(format!("found {of_version} route but could not determine interface")))?;
            if let Some(first) = first.filter(|first| first.index != link.index) {
                return Err(format!(
                    "v6 default route interface {} must be the same with v4 default route interface {}",
                    link.name, first.name
                ));
            }
            first = Some(link);
        }
        let link = first.ok_or("no family is on")?;
        self.external(link, &[], "the default route leaves by it".into())
    }

    fn link(&self, index: Option<u32>) -> Option<&'a Link> {
        self.links.iter().find(|link| Some(link.index) == index)
    }

    /// Makes a link the external interface. In a family without an address in `addresses`, the link's preferred one is used.
    fn external(&self, link: &Link, addresses: &[IpAddr], why: String) -> Result<ExternalInterface, String> {
        let mut own = PerFamily::default();
        let mut local = PerFamily::default();
        for family in self.families {
            let candidates = preferred(link, *family);
            let given = addresses.iter().copied().find(|ip| Family::of(*ip) == *family);
            let missing = || format!("failed to find {} address for interface {}", family.proper_name(), link.name);
            let ip = given.or_else(|| candidates.first().map(|address| address.net.ip())).ok_or_else(missing)?;
            own.set(*family, Some(ip));
            local.set(*family, Some(self.options.public.get(*family).copied().unwrap_or(ip)));
        }
        if link.mtu == 0 {
            return Err(format!("failed to determine MTU for {} interface", link.name));
        }
        Ok(ExternalInterface { index: link.index, name: link.name.clone(), mtu: link.mtu, addresses: own, local, why })
    }
}

fn has_address(link: &Link, ip: IpAddr) -> bool {
    link.addresses.iter().any(|address| address.net.ip() == ip)
}

/// The usable addresses of a link in a family, the preferred one first: global before link-local, permanent before dynamic, not temporary
/// before temporary.
fn preferred(link: &Link, family: Family) -> Vec<&LinkAddress> {
    let usable = |address: &&LinkAddress| {
        let ip = address.net.ip();
        let is_not_unicast =
            ip.is_unspecified() || ip.is_loopback() || ip.is_multicast() || matches!(ip, IpAddr::V4(ip) if ip.is_broadcast());
        Family::of(ip) == family && !address.deprecated && !is_not_unicast
    };
    let mut found: Vec<&LinkAddress> = link.addresses.iter().filter(usable).collect();
    found.sort_by_key(|address| (is_link_local(address), Reverse(address.permanent), address.temporary));
    found
}

fn is_link_local(address: &LinkAddress) -> bool {
    let by_value = match address.net {
        IpNetwork::V4(net) => net.ip().is_link_local(),
        IpNetwork::V6(net) => net.ip().is_unicast_link_local(),
    };
    by_value || address.scope == Scope::Link
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pod_network::routing::tests::route;

    const BOTH: [Family; 2] = Family::ALL;
    const V4: [Family; 1] = [Family::V4];

    fn link(index: u32, name: &str, addresses: &[&str]) -> Link {
        let address = |text: &&str| {
            let mut words = text.split(' ');
            let net: IpNetwork = words.next().and_then(|word| word.parse().ok()).expect("an address");
            let words: Vec<&str> = words.collect();
            let scope = if net.ip().to_string().starts_with("fe80") { Scope::Link } else { Scope::Universe };
            LinkAddress {
                net,
                scope,
                permanent: !words.contains(&"dynamic"),
                temporary: words.contains(&"temporary"),
                deprecated: words.contains(&"deprecated"),
            }
        };
        let kind = if name == "lo" { LinkKind::Loopback } else { LinkKind::Other(String::new()) };
        Link {
            index,
            name: name.into(),
            mac: None,
            mtu: 1500,
            up: true,
            master: None,
            kind,
            addresses: addresses.iter().map(address).collect(),
        }
    }

    /// A Vagrant host: the first interface is the same on all hosts, the second connects the nodes.
    fn host() -> (Vec<Link>, Vec<Route>) {
        let links = vec![
            link(1, "lo", &["127.0.0.1/8", "::1/128", "10.99.0.1/32"]),
            link(2, "eth0", &["10.0.2.15/24", "fe80::2/64", "fd00:2::15/64"]),
            link(
                3,
                "eth1",
                &[
                    "192.168.56.11/24",
                    "192.168.56.12/24",
                    "fd00:3::11/64 dynamic temporary",
                    "fd00:3::12/64 dynamic",
                    "fd00:3::13/64",
                    "fd00:3::10/64 deprecated",
                ],
            ),
        ];
        let routes =
            ["0.0.0.0/0 via 10.0.2.2 dev 2", "::/0 via fe80::1 dev 2", "192.168.56.0/24 dev 3 src 192.168.56.12", "fd00:3::/64 dev 3"];
        (links, routes.map(route).to_vec())
    }

    fn chosen(options: &InterfaceOptions, families: &[Family], node_ips: &[&str]) -> Result<String, String> {
        let (links, routes) = host();
        let node_ips: Vec<IpAddr> = node_ips.iter().map(|ip| ip.parse().expect("an address")).collect();
        let shown = |external: ExternalInterface| {
            let ips: Vec<String> = external.local.iter().map(|(_, ip)| ip.to_string()).collect();
            format!("{} {}", external.name, ips.join(" "))
        };
        select(options, families, &node_ips, &links, &routes).map(shown).map_err(|error| error.to_string())
    }

    fn options(names: &[&str], patterns: &[&str], can_reach: &str, public: &str) -> InterfaceOptions {
        let all = |texts: &[&str]| texts.iter().map(|text| (*text).to_owned()).collect();
        InterfaceOptions {
            names: all(names),
            patterns: all(patterns),
            can_reach: can_reach.parse().ok(),
            public: PerFamily { v4: public.parse().ok(), v6: None },
            ..InterfaceOptions::default()
        }
    }

    /// Options with the kernel's route to the address of `--iface-can-reach`.
    fn reaching(ip: &str, answer: &str) -> InterfaceOptions {
        InterfaceOptions { reached: Some(Ok(route(&format!("{ip} {answer}")))), ..options(&[], &[], ip, "") }
    }

    #[test]
    fn the_nodes_own_address_comes_first_and_then_the_default_route() {
        let nothing = InterfaceOptions::default();
        for (families, node_ips, want) in [
            (&V4[..], &["192.168.56.12"][..], "eth1 192.168.56.12"),
            (&BOTH, &["192.168.56.11"], "eth1 192.168.56.11 fd00:3::13"),
            (&BOTH, &["192.168.56.11", "fd00:3::12"], "eth1 192.168.56.11 fd00:3::12"),
            (&[Family::V6], &["192.168.56.11", "fd00:3::12"], "eth1 fd00:3::12"),
            // An address of the loopback, and one that no interface has.
            (&V4, &["10.99.0.1"], "eth0 10.0.2.15"),
            (&V4, &["203.0.113.5"], "eth0 10.0.2.15"),
            (&BOTH, &[], "eth0 10.0.2.15 fd00:2::15"),
        ] {
            assert_eq!(chosen(&nothing, families, node_ips), Ok(want.to_owned()), "{families:?} {node_ips:?}");
        }
    }

    #[test]
    fn options_take_precedence() {
        for (options, families, want) in [
            (options(&["eth9", "eth1"], &[], "", ""), &V4[..], "eth1 192.168.56.11"),
            (options(&["192.168.56.12"], &[], "", ""), &V4, "eth1 192.168.56.12"),
            (options(&["fd00:3::12"], &[], "", ""), &BOTH, "eth1 192.168.56.11 fd00:3::12"),
            (options(&[], &["x", r"^192\.168\.56\.12$"], "", ""), &V4, "eth1 192.168.56.12"),
            (options(&[], &[r"eth[1-9]"], "", ""), &V4, "eth1 192.168.56.11"),
            (options(&[], &["^(10|fd00:2)"], "", ""), &BOTH, "eth0 10.0.2.15 fd00:2::15"),
            // The kernel's source address is used, not the interface's first one.
            (reaching("192.168.56.200", "dev 3 src 192.168.56.12"), &V4, "eth1 192.168.56.12"),
            (reaching("8.8.8.8", "via 10.0.2.2 dev 2 src 10.0.2.15"), &V4, "eth0 10.0.2.15"),
            (reaching("8.8.8.8", "via 10.0.2.2 dev 2 src 10.99.0.1"), &V4, "eth0 10.99.0.1"),
            (reaching("192.168.56.200", "dev 3 src 192.168.56.12"), &BOTH, "eth1 192.168.56.12 fd00:3::13"),
            (reaching("fd00:3::99", "dev 3 src fd00:3::12"), &[Family::V6], "eth1 fd00:3::12"),
            (reaching("fd00:3::99", "dev 3 src fd00:3::12"), &BOTH, "eth1 192.168.56.11 fd00:3::12"),
            // An empty text means the interface of the default route, even if the Node has an address of another one. The order stays.
            (options(&[""], &[], "", ""), &V4, "eth0 10.0.2.15"),
            (options(&[], &[""], "", ""), &V4, "eth0 10.0.2.15"),
            (options(&["", "eth1"], &[], "", ""), &V4, "eth0 10.0.2.15"),
            (options(&["eth1", ""], &[], "", ""), &V4, "eth1 192.168.56.11"),
            (options(&["eth9", ""], &["eth1"], "", ""), &BOTH, "eth0 10.0.2.15 fd00:2::15"),
            // The order is always: names, patterns, reach.
            (options(&["eth0"], &["eth1"], "192.168.56.1", ""), &V4, "eth0 10.0.2.15"),
            (options(&[], &[], "", "192.168.56.12"), &V4, "eth1 192.168.56.12"),
            (options(&["eth1"], &[], "", "203.0.113.7"), &V4, "eth1 203.0.113.7"),
        ] {
            assert_eq!(chosen(&options, families, &["192.168.56.11"]), Ok(want.to_owned()), "{options:?}");
        }
    }

    #[test]
    fn errors_have_flannels_words() {
        for (options, families, want) in [
            (
                options(&[], &[], "", "203.0.113.7"),
                &V4[..],
                "Failed to find any valid interface to use: error looking up interface 203.0.113.7: no interface with given IP found",
            ),
            (
                options(&["eth9"], &["^x"], "", ""),
                &V4,
                "Failed to find interface to use that matches the interfaces and/or regexes provided: error looking up interface eth9: no such network interface; Could not match pattern ^x to any of the available network interfaces (lo:[10.99.0.1], eth0:[10.0.2.15], eth1:[192.168.56.11 192.168.56.12])",
            ),
            (
                options(&[], &["("], "", ""),
                &V4,
                "Failed to find interface to use that matches the interfaces and/or regexes provided: could not compile the IP address regex '('",
            ),
            (
                InterfaceOptions { reached: Some(Err("Network is unreachable".into())), ..options(&[], &[], "8.8.8.8", "") },
                &V4,
                "Failed to find interface to use that matches the interfaces and/or regexes provided: failed to get ifcanreach based interface: couldn't lookup route to 8.8.8.8: Network is unreachable",
            ),
            (
                options(&["lo"], &[], "", ""),
                &BOTH,
                "Failed to find interface to use that matches the interfaces and/or regexes provided: failed to find IPv6 address for interface lo",
            ),
        ] {
            let error = chosen(&options, families, &[]).expect_err(want);
            assert!(error.starts_with(want), "{error}");
        }
        let (links, routes) = host();
        let with = |routes: &[Route], families: &[Family]| {
            select(&InterfaceOptions::default(), families, &[], &links, routes)
                .map(|external| external.name)
                .map_err(|error| error.to_string())
        };
        let failed = |what: &str| Err(format!("Failed to find any valid interface to use: {what}"));
        assert_eq!(with(&[], &V4), failed("failed to get default interface: unable to find default route"));
        assert_eq!(with(&routes[..1], &BOTH), failed("failed to get default v6 interface: unable to find default v6 route"));
        assert_eq!(
            with(&[route("0.0.0.0/0")], &V4),
            failed("failed to get default interface: found default route but could not determine interface")
        );
        let crossed = [route("0.0.0.0/0 via 10.0.2.2 dev 2"), route("::/0 via fe80::1 dev 3")];
        assert_eq!(with(&crossed, &BOTH), failed("v6 default route interface eth1 must be the same with v4 default route interface eth0"));
    }

    #[test]
    fn host_gw_needs_the_interfaces_own_address() {
        let (links, routes) = host();
        let external = |public: &str| select(&options(&["eth1"], &[], "", public), &V4, &[], &links, &routes).expect("eth1 is there");
        assert_eq!(external("").check_host_gw(), Ok(()));
        let error = external("203.0.113.7").check_host_gw().expect_err("another's address").to_string();
        assert!(
            error.starts_with(
                "your PublicIP differs from interface IP, meaning that probably you're on a NAT, which is not supported by host-gw backend"
            ),
            "{error}"
        );
    }
}
