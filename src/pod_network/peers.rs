//! Validates the other nodes of the pod network before they are programmed [flannel 12]. An invalid node is refused, and no other node is
//! affected.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::net::IpAddr;

use ipnetwork::IpNetwork;

use super::net_conf::NetConf;
use crate::cluster::Family;
use crate::cluster::ip::overlap;

use super::node::NetworkNode;
use super::own_lease::{OwnLease, is_inside};
use super::refusal::{PeerRefusal, RefusalReason};
use crate::cluster::families::PerFamily;
use crate::netlink::entry::Live;
use crate::netlink::mac::Mac;

/// The subnet of another node in one family, and how packets get there.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct RemoteSubnet {
    /// The subnet of its pods.
    pub subnet: IpNetwork,
    /// The address of the node.
    pub public_ip: IpAddr,
    /// The hardware address of its VXLAN link; `None` for host-gw.
    pub mac: Option<Mac>,
}

/// The other nodes, accepted or refused.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Peers {
    /// The accepted nodes by name, each in the families in which it is accepted.
    pub accepted: BTreeMap<Box<str>, PerFamily<RemoteSubnet>>,
    /// The refused nodes, each with the reason.
    pub refused: Vec<PeerRefusal>,
}

/// The live subnets of other nodes: those that the kernel has routes for, each with the address of its node.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LiveSubnets(HashSet<(IpNetwork, IpAddr)>);

impl LiveSubnets {
    /// Reads them from the kernel's tables.
    #[must_use]
    pub fn of_live(live: &Live) -> Self {
        let macs: HashMap<(u32, IpAddr), Mac> =
            live.neighbours.iter().map(|neighbour| ((neighbour.link, neighbour.ip), neighbour.mac)).collect();
        let hosts: HashMap<(u32, Mac), IpAddr> = live.fdb.iter().map(|entry| ((entry.link, entry.mac), entry.host)).collect();
        let reached = |route: &crate::netlink::entry::Route| {
            let (link, gateway) = (route.link?, route.gateway?);
            // With VXLAN the gateway is the network address of the subnet. Otherwise it is the node itself.
            let host = macs.get(&(link, gateway)).and_then(|mac| hosts.get(&(link, *mac)));
            Some((route.destination, *host.unwrap_or(&gateway)))
        };
        Self(live.routes.iter().filter_map(reached).collect())
    }
}

impl Peers {
    /// Updates one node that has changed or was deleted. Returns false if the result depends on other nodes, too. Then this value is unusable, and
    /// all nodes have to be checked again ([`check_all`]).
    pub(crate) fn update_one(&mut self, name: &str, node: Option<&NetworkNode>, own: &OwnLease, conf: &NetConf) -> bool {
        // A node that was refused because of another node may be accepted now.
        if self.refused.iter().any(|refusal| refusal.reason.depends_on_others()) {
            return false;
        }
        self.refused.retain(|refusal| *refusal.node != *name);
        self.accepted.remove(name);
        let Some(node) = node.filter(|_| *name != *own.node) else { return true };
        let mut refuse = |family, reason| self.refused.push(PeerRefusal { node: name.into(), family, reason });
        let mut remotes = PerFamily::default();
        if let Err(reason) = takes_part(node, conf) {
            refuse(None, reason);
        } else {
            for (family, network) in conf.networks.iter() {
                match remote(node, family, *network, own, conf) {
                    Ok(remote) => remotes.set(family, Some(remote)),
                    Err(reason) => refuse(Some(family), reason),
                }
            }
        }
        let clashes = |(family, remote): (Family, &RemoteSubnet)| {
            let others = self.accepted.values().filter_map(|others| others.get(family));
            others.into_iter().any(|other| other.clashes(remote)) || Taken::new(own, family).clash(remote).is_some()
        };
        if remotes.iter().any(clashes) || self.refused.iter().any(|refusal| refusal.reason.depends_on_others()) {
            return false;
        }
        if !remotes.is_empty() {
            self.accepted.insert(name.into(), remotes);
        }
        self.refused.sort_by(|a, b| (&a.node, a.family).cmp(&(&b.node, b.family)));
        true
    }
}

impl RemoteSubnet {
    /// Returns true if both cannot be accepted in one family.
    fn clashes(&self, other: &Self) -> bool {
        overlap(self.subnet, other.subnet)
            || self.public_ip == other.public_ip
            || self.subnet.contains(other.public_ip)
            || other.subnet.contains(self.public_ip)
            || self.mac.is_some_and(|mac| other.mac == Some(mac))
    }
}

/// Accepts or refuses all Nodes but this node's own. If two contradict each other, the one with live routes is accepted, else the older one,
/// else the first by name. So the result does not depend on the order of the Nodes.
#[must_use]
pub fn check_all<'a>(nodes: impl IntoIterator<Item = &'a NetworkNode>, own: &OwnLease, conf: &NetConf, live: &LiveSubnets) -> Peers {
    let mut peers = Peers::default();
    let mut candidates: PerFamily<Vec<Candidate<'a>>> = conf.networks.families().map(|family| (family, Vec::new())).collect();
    for node in nodes.into_iter().filter(|node| *node.name != *own.node) {
        if let Err(reason) = takes_part(node, conf) {
            peers.refused.push(PeerRefusal { node: node.name.clone(), family: None, reason });
            continue;
        }
        for (family, network) in conf.networks.iter() {
            match remote(node, family, *network, own, conf) {
                Ok(remote) => {
                    let is_live = live.0.contains(&(remote.subnet, remote.public_ip));
                    let candidate = Candidate { node, remote, is_live };
                    match family {
                        Family::V4 => candidates.v4.get_or_insert_default().push(candidate),
                        Family::V6 => candidates.v6.get_or_insert_default().push(candidate),
                    }
                }
                Err(reason) => peers.refused.push(PeerRefusal { node: node.name.clone(), family: Some(family), reason }),
            }
        }
    }
    for family in Family::ALL {
        let mut of_family = candidates.get(family).cloned().unwrap_or_default();
        of_family.sort_by(|a, b| a.rank().cmp(&b.rank()));
        let mut taken = Taken::new(own, family);
        for Candidate { node, remote, .. } in of_family {
            match taken.clash(&remote) {
                None => {
                    taken.add(&node.name, &remote);
                    peers.accepted.entry(node.name.clone()).or_default().set(family, Some(remote));
                }
                Some(reason) => peers.refused.push(PeerRefusal { node: node.name.clone(), family: Some(family), reason }),
            }
        }
    }
    peers.refused.sort_by(|a, b| (&a.node, a.family).cmp(&(&b.node, b.family)));
    peers
}

/// A node that is valid in itself, but may contradict another one.
#[derive(Clone, Copy)]
struct Candidate<'a> {
    node: &'a NetworkNode,
    remote: RemoteSubnet,
    is_live: bool,
}

impl Candidate<'_> {
    /// The sort key: nodes with live routes first, then by age (an unknown age counts as new), then by name.
    fn rank(&self) -> (bool, bool, &str, &str) {
        (!self.is_live, self.node.created.is_empty(), &self.node.created, &self.node.name)
    }
}

/// Checks everything that does not depend on the family.
fn takes_part(node: &NetworkNode, conf: &NetConf) -> Result<(), RefusalReason> {
    let annotations = &node.annotations;
    if !annotations.managed {
        return Err(RefusalReason::NotManaged);
    }
    if annotations.backend_type.as_deref() != Some(conf.backend.as_str()) {
        return Err(RefusalReason::OtherBackend(annotations.backend_type.clone()));
    }
    node.pod_cidrs.as_ref().map(|_| ()).map_err(|bad| RefusalReason::PodCidrs(bad.clone()))
}

/// Checks what a node publishes in one family, without regard to other nodes.
fn remote(node: &NetworkNode, family: Family, network: IpNetwork, own: &OwnLease, conf: &NetConf) -> Result<RemoteSubnet, RefusalReason> {
    let cidrs = node.pod_cidrs.as_ref().map_err(|bad| RefusalReason::PodCidrs(bad.clone()))?;
    let subnet = *cidrs.get(family).ok_or(RefusalReason::NoPodCidr)?;
    if !is_inside(subnet, network) {
        return Err(RefusalReason::OutsideNetwork(subnet, network));
    }
    if subnet == network {
        return Err(RefusalReason::WholeNetwork(network));
    }
    if let Some(ours) = own.subnets.get(family).filter(|ours| overlap(**ours, subnet)) {
        return Err(RefusalReason::OverlapsOurs(subnet, *ours));
    }
    let public_ip = node.annotations.public_ip(family).map_err(RefusalReason::Annotation)?.ok_or(RefusalReason::NoPublicIp)?;
    if !is_usable(public_ip) {
        return Err(RefusalReason::BadPublicIp(public_ip));
    }
    let ours = |addresses: &PerFamily<IpAddr>| addresses.get(family) == Some(&public_ip);
    if ours(&own.local) || ours(&own.published) {
        return Err(RefusalReason::ClaimsOurAddress(public_ip));
    }
    if subnet.contains(public_ip) {
        return Err(RefusalReason::ContainsNodeAddress(subnet, public_ip));
    }
    let mac = match &conf.backend.vxlan() {
        None => None,
        Some(vxlan) => {
            let data = node.annotations.vxlan(family).map_err(RefusalReason::Annotation)?.ok_or(RefusalReason::NoBackendData)?;
            if let Some(vni) = data.vni.filter(|vni| *vni != vxlan.vni) {
                return Err(RefusalReason::OtherVni(vni, vxlan.vni));
            }
            if own.macs.get(family) == Some(&data.mac) {
                return Err(RefusalReason::ClaimsOurMac(data.mac));
            }
            Some(data.mac)
        }
    };
    Ok(RemoteSubnet { subnet, public_ip, mac })
}

/// Returns true if an address can be the address of a node.
fn is_usable(ip: IpAddr) -> bool {
    let broadcast = matches!(ip, IpAddr::V4(ip) if ip.is_broadcast() || ip.octets()[0] == 0);
    // A link-local address is only valid together with a link.
    let link_local = matches!(ip, IpAddr::V6(ip) if ip.is_unicast_link_local() || ip.to_ipv4_mapped().is_some());
    !(ip.is_unspecified() || ip.is_loopback() || ip.is_multicast() || broadcast || link_local)
}

/// The subnets and addresses of the accepted nodes and of this node, in one family.
struct Taken<'a> {
    own: &'a OwnLease,
    family: Family,
    /// By network address. They do not overlap.
    subnets: BTreeMap<IpAddr, (IpNetwork, &'a str)>,
    addresses: BTreeMap<IpAddr, &'a str>,
    macs: HashMap<Mac, &'a str>,
}

impl<'a> Taken<'a> {
    fn new(own: &'a OwnLease, family: Family) -> Self {
        let mut taken = Self { own, family, subnets: BTreeMap::new(), addresses: BTreeMap::new(), macs: HashMap::new() };
        if let Some(subnet) = own.subnets.get(family) {
            taken.subnets.insert(subnet.network(), (*subnet, &own.node));
        }
        for ip in [own.local.get(family), own.published.get(family)].into_iter().flatten() {
            taken.addresses.insert(*ip, &own.node);
        }
        taken
    }

    /// The reason to refuse a node that contradicts an accepted one.
    fn clash(&self, remote: &RemoteSubnet) -> Option<RefusalReason> {
        let RemoteSubnet { subnet, public_ip, mac } = *remote;
        let before = |ip: IpAddr| self.subnets.range(..=ip).next_back().map(|(_, (subnet, node))| (*subnet, *node));
        if let Some((theirs, other)) = before(subnet.broadcast()).filter(|(theirs, _)| overlap(*theirs, subnet)) {
            return Some(RefusalReason::Overlaps(subnet, theirs, other.into()));
        }
        if let Some(other) = self.addresses.get(&public_ip) {
            return Some(RefusalReason::SameAddress(public_ip, (*other).into()));
        }
        if let Some((ip, _)) = self.addresses.range(subnet.network()..=subnet.broadcast()).next() {
            return Some(RefusalReason::ContainsNodeAddress(subnet, *ip));
        }
        if let Some((_, other)) = before(public_ip).filter(|(theirs, _)| theirs.contains(public_ip)) {
            return Some(RefusalReason::InsideSubnet(public_ip, other.into()));
        }
        let other = self.macs.get(&mac?)?;
        Some(RefusalReason::SameMac(mac?, (*other).into()))
    }

    fn add(&mut self, node: &'a str, remote: &RemoteSubnet) {
        debug_assert!(Family::of(remote.public_ip) == self.family && node != self.own.node);
        self.subnets.insert(remote.subnet.network(), (remote.subnet, node));
        self.addresses.insert(remote.public_ip, node);
        self.macs.extend(remote.mac.map(|mac| (mac, node)));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pod_network::annotations::Prefix;
    use crate::pod_network::node::NodeText;

    const CONF: &str = r#"{"EnableIPv6":true,"Network":"10.244.0.0/16","IPv6Network":"fd10:244::/32","Backend":{"Type":"vxlan"}}"#;

    /// Node number `n`, with some annotations changed: an empty value removes one.
    fn node(n: u8, changes: &[(&str, &str)]) -> NetworkNode {
        let cidrs = [format!("10.244.{n}.0/24"), format!("fd10:244:{n}::/64")];
        let name = format!("n{n}");
        let mut annotations = vec![
            ("kube-subnet-manager", "true".to_owned()),
            ("backend-type", "vxlan".into()),
            ("backend-data", format!("{{\"VNI\":1,\"VtepMAC\":\"02:00:00:00:04:{n:02x}\"}}")),
            ("backend-v6-data", format!("{{\"VNI\":1,\"VtepMAC\":\"02:00:00:00:06:{n:02x}\"}}")),
            ("public-ip", format!("192.168.0.{n}")),
            ("public-ipv6", format!("fd00::{n:x}")),
        ];
        let mut pod_cidrs: Vec<&str> = cidrs.iter().map(String::as_str).collect();
        let mut created = "2026-01-05T10:00:00Z";
        for (key, value) in changes {
            match *key {
                "podCIDR" => pod_cidrs = value.split(',').filter(|cidr| !cidr.is_empty()).collect(),
                "created" => created = value,
                key => {
                    annotations.retain(|(name, _)| *name != key);
                    annotations.push((key, (*value).to_owned()));
                }
            }
        }
        let named: Vec<(String, String)> =
            annotations.into_iter().map(|(key, value)| (format!("flannel.alpha.coreos.com/{key}"), value)).collect();
        let annotations = named.iter().filter(|(_, value)| !value.is_empty()).map(|(key, value)| (key.as_str(), value.as_str())).collect();
        NetworkNode::new(&NodeText { name: &name, uid: &name, created, pod_cidrs, annotations, ..NodeText::default() }, &Prefix::default())
    }

    fn own() -> OwnLease {
        let addresses = PerFamily { v4: "192.168.0.1".parse().ok(), v6: "fd00::1".parse().ok() };
        OwnLease {
            node: "n1".into(),
            subnets: PerFamily { v4: "10.244.1.0/24".parse().ok(), v6: "fd10:244:1::/64".parse().ok() },
            local: addresses,
            published: PerFamily { v4: "203.0.113.1".parse().ok(), ..addresses },
            macs: PerFamily { v4: "02:00:00:00:04:01".parse().ok(), v6: "02:00:00:00:06:01".parse().ok() },
        }
    }

    fn sorted(nodes: &[NetworkNode]) -> Peers {
        check_all(nodes, &own(), &NetConf::parse(CONF).expect("good"), &LiveSubnets::default())
    }

    fn reasons(peers: &Peers) -> Vec<String> {
        peers
            .refused
            .iter()
            .map(|refusal| format!("{} {} {}", refusal.node, refusal.family.map_or("all", Family::as_str), refusal.reason.as_str()))
            .collect()
    }

    #[test]
    fn valid_nodes_are_accepted() {
        let peers = sorted(&[node(1, &[]), node(2, &[]), node(3, &[])]);
        assert_eq!((peers.accepted.len(), peers.refused.len()), (2, 0));
        let v4 = RemoteSubnet {
            subnet: "10.244.2.0/24".parse().expect("a CIDR"),
            public_ip: [192, 168, 0, 2].into(),
            mac: "02:00:00:00:04:02".parse().ok(),
        };
        assert_eq!(peers.accepted["n2"].v4, Some(v4));
    }

    #[test]
    fn an_invalid_node_is_refused_alone_and_only_in_its_family() {
        for (changes, want) in [
            (&[("kube-subnet-manager", "false")][..], &["n2 all not_managed"][..]),
            (&[("kube-subnet-manager", "")], &["n2 all not_managed"]),
            (&[("backend-type", "host-gw")], &["n2 all other_backend"]),
            (&[("backend-type", "")], &["n2 all other_backend"]),
            (&[("podCIDR", "")], &["n2 all pod_cidr"]),
            (&[("podCIDR", "10.244.2.0/24")], &["n2 ipv6 pod_cidr"]),
            (&[("podCIDR", "10.245.2.0/24,fd10:244:2::/64")], &["n2 ipv4 outside_network"]),
            (&[("podCIDR", "10.0.0.0/8,fd10:244:2::/64")], &["n2 ipv4 outside_network"]),
            (&[("podCIDR", "0.0.0.0/0,::/0")], &["n2 ipv4 outside_network", "n2 ipv6 outside_network"]),
            (&[("podCIDR", "10.244.0.0/16,fd10:244:2::/64")], &["n2 ipv4 outside_network"]),
            (&[("podCIDR", "10.244.1.128/25,fd10:244:2::/64")], &["n2 ipv4 overlap"]),
            (&[("podCIDR", "10.244.0.0/22,fd10:244:2::/64")], &["n2 ipv4 overlap"]),
            (&[("podCIDR", "10.244.3.0/25,fd10:244:3:0:8000::/65")], &["n3 ipv4 overlap"]),
            (&[("public-ip", "")], &["n2 ipv4 public_ip"]),
            (&[("public-ip", "x")], &["n2 ipv4 annotation"]),
            (&[("public-ip", "127.0.0.1"), ("public-ipv6", "ff02::1")], &["n2 ipv4 public_ip", "n2 ipv6 public_ip"]),
            (&[("public-ip", "192.168.0.1")], &["n2 ipv4 same_address"]),
            (&[("public-ip", "203.0.113.1"), ("public-ipv6", "fd00::1")], &["n2 ipv4 same_address", "n2 ipv6 same_address"]),
            (&[("public-ip", "10.244.2.7")], &["n2 ipv4 address_in_subnet"]),
            (&[("public-ip", "10.244.1.7")], &["n2 ipv4 address_in_subnet"]),
            (&[("public-ip", "192.168.0.3"), ("created", "2027")], &["n2 ipv4 same_address"]),
            (&[("backend-data", "")], &["n2 ipv4 annotation"]),
            (&[("backend-data", "null")], &["n2 ipv4 annotation"]),
            (&[("backend-data", "{\"VNI\":1,\"VtepMAC\":\"ff:ff:ff:ff:ff:ff\"}")], &["n2 ipv4 annotation"]),
            (&[("backend-data", "{\"VNI\":2,\"VtepMAC\":\"02:00:00:00:04:02\"}")], &["n2 ipv4 annotation"]),
            (&[("backend-v6-data", "{\"VNI\":1,\"VtepMAC\":\"02:00:00:00:06:01\"}")], &["n2 ipv6 same_mac"]),
        ] {
            let peers = sorted(&[node(2, changes), node(3, &[]), node(4, &[])]);
            let found = reasons(&peers);
            if changes[0].0 == "podCIDR" && changes[0].1.contains(":8000::") {
                // The other node is as old, but later by name.
                assert_eq!(found, ["n3 ipv4 overlap", "n3 ipv6 overlap"], "{changes:?}");
            } else {
                assert_eq!(found, want, "{changes:?}");
                assert!(peers.accepted["n3"].v4.is_some() && peers.accepted["n3"].v6.is_some(), "{changes:?}");
            }
            assert!(peers.accepted["n4"].v4.is_some() && peers.accepted["n4"].v6.is_some(), "{changes:?}");
            for refusal in &peers.refused {
                assert!(refusal.to_string().starts_with(&format!("node {}", refusal.node)), "{refusal}");
            }
        }
    }

    #[test]
    fn the_accepted_one_of_two_does_not_depend_on_the_order() {
        let young = node(2, &[("created", "2026-02-01T00:00:00Z")]);
        let old = node(3, &[("public-ip", "192.168.0.2"), ("public-ipv6", "fd00::2")]);
        for nodes in [[young.clone(), old.clone()], [old.clone(), young.clone()]] {
            let peers = sorted(&nodes);
            assert_eq!(reasons(&peers), ["n2 ipv4 same_address", "n2 ipv6 same_address"]);
            let text = peers.refused[0].to_string();
            assert!(
                text.starts_with("node n2 (ipv4): it publishes 192.168.0.2, as node n3 does") && text.contains("--public-ip"),
                "{text}"
            );
        }
        // A node with live routes wins over an older one.
        let live = LiveSubnets([("10.244.2.0/24".parse().expect("a CIDR"), [192, 168, 0, 2].into())].into());
        let peers = check_all(&[old, young], &own(), &NetConf::parse(CONF).expect("good"), &live);
        assert_eq!(reasons(&peers), ["n2 ipv6 same_address", "n3 ipv4 same_address"]);
    }

    #[test]
    fn host_gw_needs_no_backend_data() {
        let conf = CONF.replace("vxlan", "host-gw");
        let peers = check_all(
            &[node(2, &[("backend-type", "host-gw"), ("backend-data", "null"), ("backend-v6-data", "")])],
            &own(),
            &NetConf::parse(&conf).expect("good"),
            &LiveSubnets::default(),
        );
        assert_eq!(peers.refused, []);
        assert_eq!(peers.accepted["n2"].v4.map(|remote| remote.mac), Some(None));
    }

    /// Nodes change at random, one at a time. If an update of one node succeeds, its result is that of checking all nodes.
    #[test]
    fn updating_one_node_equals_checking_all() {
        let conf = NetConf::parse(CONF).expect("a good one");
        let own = own();
        let mut random = fastrand::Rng::with_seed(7);
        let mut nodes: BTreeMap<Box<str>, NetworkNode> = BTreeMap::new();
        let mut sorted = Peers::default();
        let (mut alone, mut all) = (0, 0);
        for _ in 0..3000 {
            let number = random.u8(1..9);
            let annotations: &[(&str, &str)] = match random.u8(..12) {
                0 => &[("kube-subnet-manager", "")],
                1 => &[("podCIDR", "10.244.3.0/24,fd10:244:3::/64")],
                2 => &[("public-ip", "192.168.0.4")],
                3 => &[("backend-v6-data", "{}")],
                4 => &[("backend-data", "{\"VNI\":1,\"VtepMAC\":\"02:00:00:00:04:05\"}")],
                5 => &[("podCIDR", "10.99.0.0/24,fd10:244:77::/64")],
                _ => &[],
            };
            let changed = node(number, annotations);
            let name = changed.name.clone();
            if random.u8(..5) == 0 {
                nodes.remove(&name)
            } else {
                nodes.insert(name.clone(), changed)
            };
            let whole = check_all(nodes.values(), &own, &conf, &LiveSubnets::default());
            if sorted.update_one(&name, nodes.get(&name), &own, &conf) {
                assert_eq!(sorted, whole);
                alone += 1;
            } else {
                all += 1;
            }
            sorted = whole;
        }
        assert!(alone > 300 && all > 300, "both happen: {alone} and {all}");
    }
}
