//! The plan of the pod network: from any kernel state and any Nodes it leads to the desired state, keeps the entries of other programs, and
//! is empty afterwards.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::net::IpAddr;

use ipnetwork::IpNetwork;
use proptest::prelude::*;
use sepal::cluster::Family;
use sepal::cluster::families::PerFamily;
use sepal::cluster::ip::overlap;
use sepal::netlink::entry::{BOOT_PROTOCOL, FdbEntry, KERNEL_PROTOCOL, LinkChange, Neighbour, OUR_PROTOCOL, Route, RouteKind};
use sepal::netlink::link::{LinkId, LinkKind, Vxlan};
use sepal::netlink::mac::Mac;
use sepal::pod_network::annotations::Prefix;
use sepal::pod_network::desired::{DesiredEntries, DesiredInputs, DesiredLink, Entry};
use sepal::pod_network::foreign::is_connected;
use sepal::pod_network::interface::{ExternalInterface, InterfaceOptions, select};
use sepal::pod_network::mtu::{Mtu, compute_mtu};
use sepal::pod_network::net_conf::NetConf;
use sepal::pod_network::node::{NetworkNode, NodeText};
use sepal::pod_network::own_lease::{OwnLease, assigned_subnets, choose_mac};
use sepal::pod_network::peers::{LiveSubnets, Peers, check_all};
use sepal::pod_network::plan;
use sepal::pod_network::settings::NetworkSettings;
use sepal::pod_network::vxlan::link_name;

use crate::kernel_model::{Kernel, address, kernel_route, net};

/// The inputs of a plan.
struct Setup {
    conf: NetConf,
    settings: NetworkSettings,
    own: OwnLease,
    external: ExternalInterface,
    mtu: Mtu,
}

impl Setup {
    fn new(backend: &str, blackhole: bool, checksum_offload: Option<bool>) -> Self {
        let conf = format!(r#"{{"EnableIPv6":true,"Network":"10.244.0.0/16","IPv6Network":"fd10:244::/32","Backend":{backend}}}"#);
        let conf = NetConf::parse(&conf).expect("a good one");
        let families: Vec<Family> = conf.networks.families().collect();
        let live = Kernel::new().live;
        let external =
            select(&InterfaceOptions::default(), &families, &[[192, 168, 0, 1].into()], &live.links, &live.routes).expect("eth0");
        let node = node(1, &[]);
        let own = OwnLease {
            node: "n1".into(),
            subnets: assigned_subnets(&node, &conf).expect("a good node"),
            local: external.local,
            published: external.local,
            macs: families.iter().map(|family| (*family, choose_mac(None, None, "uid-1", *family))).collect(),
        };
        let mtu = compute_mtu(&conf, external.mtu).expect("large enough");
        let settings = NetworkSettings { blackhole_route: blackhole, checksum_offload, ..NetworkSettings::default() };
        Self { conf, settings, own, external, mtu }
    }

    fn wanted(&self) -> DesiredInputs<'_> {
        DesiredInputs { conf: &self.conf, settings: &self.settings, own: &self.own, external: &self.external, mtu: &self.mtu }
    }

    fn peers(&self, nodes: &[NetworkNode], kernel: &Kernel) -> Peers {
        check_all(nodes, &self.own, &self.conf, &LiveSubnets::of_live(&kernel.live))
    }

    /// Reads the kernel once, plans and applies; returns the desired state and whether the plan had changes.
    fn round(&self, nodes: &[NetworkNode], kernel: &mut Kernel) -> (Vec<DesiredLink>, DesiredEntries, bool) {
        let links = self.wanted().links();
        let plan = plan::links(&links, &self.conf.networks, &kernel.live, &kernel.offloads);
        let mut changed = !plan.changes.is_empty();
        plan.changes.iter().for_each(|change| kernel.change_link(change));
        let found = plan::our_links(&links, &kernel.live);
        let desired = self.wanted().entries(&self.peers(nodes, kernel), &found, &kernel.live.routes);
        let plan = plan::entries(&desired, &found, &kernel.live);
        changed |= !plan.is_empty();
        let mut seen = BTreeSet::new();
        for group in &plan.groups {
            assert!(group.node.is_none() || seen.insert(group.node.clone()), "one group a peer");
            group.changes.iter().for_each(|change| kernel.change_entry(change));
        }
        (links, desired, changed)
    }

    /// Repeats until the plan is empty.
    fn settle(&self, nodes: &[NetworkNode], kernel: &mut Kernel) -> Result<(Vec<DesiredLink>, DesiredEntries), TestCaseError> {
        for _ in 0..4 {
            let (links, desired, changed) = self.round(nodes, kernel);
            if !changed {
                return Ok((links, desired));
            }
        }
        Err(TestCaseError::fail("the plan does not become empty"))
    }
}

/// Node number `n` with some annotations changed. An empty value removes one; `podCIDRs` replaces the Node's podCIDRs.
fn node(n: u8, changes: &[(String, String)]) -> NetworkNode {
    let (name, uid) = (format!("n{n}"), format!("uid-{n}"));
    let mut cidrs = vec![format!("10.244.{n}.0/24"), format!("fd10:244:{n}::/64")];
    let mut annotations: BTreeMap<String, String> = [
        ("kube-subnet-manager", "true".to_owned()),
        ("backend-type", "vxlan".into()),
        ("backend-data", format!("{{\"VNI\":1,\"VtepMAC\":\"02:00:00:00:04:{n:02x}\"}}")),
        ("backend-v6-data", format!("{{\"VNI\":1,\"VtepMAC\":\"02:00:00:00:06:{n:02x}\"}}")),
        ("public-ip", format!("192.168.0.{n}")),
        ("public-ipv6", format!("fd00::{n:x}")),
    ]
    .into_iter()
    .map(|(key, value)| (format!("flannel.alpha.coreos.com/{key}"), value))
    .collect();
    for (key, value) in changes {
        if key == "podCIDRs" {
            cidrs = value.split(',').filter(|cidr| !cidr.is_empty()).map(str::to_owned).collect();
        } else {
            annotations.insert(format!("flannel.alpha.coreos.com/{key}"), value.clone());
        }
    }
    annotations.retain(|_, value| !value.is_empty());
    let text = NodeText {
        name: &name,
        uid: &uid,
        created: "2026-01-05T10:00:00Z",
        pod_cidrs: cidrs.iter().map(String::as_str).collect(),
        annotations: annotations.iter().map(|(key, value)| (key.as_str(), value.as_str())).collect(),
        ..NodeText::default()
    };
    NetworkNode::new(&text, &Prefix::default())
}

/// Changes to a Node: some to valid values, most to invalid ones.
fn change() -> impl Strategy<Value = (String, String)> {
    let pairs: Vec<(&str, &str)> = vec![
        ("podCIDRs", "10.244.40.0/24,fd10:244:40::/64"),
        ("podCIDRs", "10.244.41.0/25,fd10:244:41:0:8000::/65"),
        ("podCIDRs", "10.244.2.0/23"),
        ("podCIDRs", "10.244.1.0/24,fd10:244:1::/64"),
        ("podCIDRs", "10.244.0.0/16,fd10:244::/32"),
        ("podCIDRs", "0.0.0.0/0,::/0"),
        ("podCIDRs", "192.168.0.0/24"),
        ("podCIDRs", ""),
        ("podCIDRs", "x,y,z"),
        ("public-ip", "192.168.0.77"),
        ("public-ip", "192.168.0.1"),
        ("public-ip", "192.168.0.3"),
        ("public-ip", "10.244.4.4"),
        ("public-ip", "203.0.113.9"),
        ("public-ip", "0.0.0.0"),
        ("public-ip", "fd00::9"),
        ("public-ipv6", "fd00::77"),
        ("public-ipv6", "2001:db8::9"),
        ("public-ipv6", ""),
        ("backend-data", "{\"VNI\":1,\"VtepMAC\":\"02:00:00:00:04:77\"}"),
        ("backend-data", "{\"VNI\":1,\"VtepMAC\":\"02:00:00:00:04:03\"}"),
        ("backend-data", "{\"VNI\":9,\"VtepMAC\":\"02:00:00:00:04:78\"}"),
        ("backend-data", "null"),
        ("backend-v6-data", "{\"VtepMAC\":\"02:00:00:00:06:77\"}"),
        ("backend-v6-data", "nonsense"),
        ("backend-type", "host-gw"),
        ("kube-subnet-manager", "false"),
    ];
    proptest::sample::select(pairs).prop_map(|(key, value)| (key.to_owned(), value.to_owned()))
}

fn nodes() -> impl Strategy<Value = Vec<NetworkNode>> {
    let one = (1_u8..9, proptest::collection::vec(change(), 0..2));
    proptest::collection::vec(one, 0..9).prop_map(|all| {
        let by_number: BTreeMap<u8, Vec<(String, String)>> = all.into_iter().collect();
        by_number.iter().map(|(n, changes)| node(*n, changes)).collect()
    })
}

/// A change that another program makes to the kernel's tables.
#[derive(Clone, Debug)]
enum Fault {
    NoLink(Family),
    Down(Family),
    Mac(Family),
    Mtu(Family),
    Flushed(Family),
    OtherVni(Family),
    MoreAddresses(Family),
    NoEntry(usize, usize),
    Elsewhere(usize),
    Stray(u8),
}

fn fault() -> impl Strategy<Value = Fault> {
    let family = prop_oneof![Just(Family::V4), Just(Family::V6)];
    (0_u8..10, family, any::<usize>(), any::<usize>(), any::<u8>()).prop_map(|(kind, family, a, b, n)| match kind {
        0 => Fault::NoLink(family),
        1 => Fault::Down(family),
        2 => Fault::Mac(family),
        3 => Fault::Mtu(family),
        4 => Fault::Flushed(family),
        5 => Fault::OtherVni(family),
        6 => Fault::MoreAddresses(family),
        7 => Fault::NoEntry(a, b),
        8 => Fault::Elsewhere(a),
        _ => Fault::Stray(n),
    })
}

fn inflict(kernel: &mut Kernel, fault: &Fault) {
    let index =
        |kernel: &Kernel, family: Family| kernel.live.links.iter().find(|link| link.name == link_name(family, 1)).map(|link| link.index);
    let link = |family: &Family| index(kernel, *family);
    match fault {
        Fault::NoLink(family) => {
            if let Some(index) = link(family) {
                kernel.change_link(&LinkChange::Delete(LinkId { index, name: Box::default() }));
            }
        }
        Fault::Down(family) => {
            if let Some(index) = link(family) {
                kernel.link(index).up = false;
                kernel.live.routes.retain(|route| route.link != Some(index));
                kernel.live.neighbours.retain(|neighbour| neighbour.link != index);
            }
        }
        Fault::Mac(family) => link(family).into_iter().for_each(|index| kernel.link(index).mac = Some(Mac([2, 9, 9, 9, 9, 9]))),
        Fault::Mtu(family) => link(family).into_iter().for_each(|index| kernel.link(index).mtu = 1300),
        Fault::Flushed(family) => link(family).into_iter().for_each(|index| kernel.link(index).addresses.clear()),
        Fault::OtherVni(family) => {
            if let Some(index) = link(family) {
                let kind = kernel.link(index).kind.clone();
                let LinkKind::Vxlan(vxlan) = kind else { panic!("it is a VXLAN link") };
                kernel.link(index).kind = LinkKind::Vxlan(Vxlan { vni: 99, ..vxlan });
            }
        }
        Fault::MoreAddresses(family) => {
            if let Some(index) = link(family) {
                let more = [
                    address(net("10.244.9.9/24")),
                    address(net("172.16.0.1/24")),
                    address(net("fd10:244:9::9/64")),
                    address(net("fe80::9/64")),
                ];
                kernel.link(index).addresses.extend(more);
            }
        }
        Fault::NoEntry(a, b) => {
            let live = &mut kernel.live;
            let ours: Vec<Route> = live.routes.iter().filter(|route| route.protocol == OUR_PROTOCOL).copied().collect();
            match a % 3 {
                0 if !ours.is_empty() => live.routes.retain(|route| *route != ours[b % ours.len()]),
                1 if !live.neighbours.is_empty() => drop(live.neighbours.remove(b % live.neighbours.len())),
                2 if !live.fdb.is_empty() => drop(live.fdb.remove(b % live.fdb.len())),
                _ => {}
            }
        }
        Fault::Elsewhere(a) => {
            let live = &mut kernel.live;
            if let Some(count) = live.fdb.len().checked_sub(1) {
                live.fdb[a % (count + 1)].host = [192, 168, 0, 99].into();
            }
            if let Some(count) = live.neighbours.len().checked_sub(1) {
                live.neighbours[a % (count + 1)].mac = Mac([2, 8, 8, 8, 8, 8]);
            }
        }
        // Entries that a deleted node, or flannel, has left.
        Fault::Stray(n) => {
            let Some(link) = link(&Family::V4) else { return };
            let base: IpAddr = [10, 244, 100, *n].into();
            let mac = Mac([2, 7, 7, 7, 7, *n]);
            let destination = IpNetwork::new(base, 32).expect("a CIDR");
            let protocol = if n % 2 == 0 { OUR_PROTOCOL } else { BOOT_PROTOCOL };
            let stray = Route { gateway: Some(base), onlink: true, protocol, destination, ..kernel_route("10.0.0.0/8", None, link, 0) };
            kernel.live.routes.push(stray);
            kernel.live.neighbours.push(Neighbour { link, ip: base, mac, permanent: true });
            kernel.live.neighbours.push(Neighbour { link, ip: [224, 0, 0, *n].into(), mac: Mac([1, 0, 0x5e, 0, 0, *n]), permanent: false });
            kernel.live.fdb.push(FdbEntry { link, mac, host: [192, 168, 0, *n].into(), permanent: true });
            add_foreign(kernel, *n);
        }
    }
}

/// Adds a route of another program to a node's subnet, in place of ours or beside it, or to a part of the subnet.
fn add_foreign(kernel: &mut Kernel, n: u8) {
    let foreign = Route { protocol: 4, ..kernel_route(&format!("10.244.{}.0/24", n % 9), Some("192.168.0.200"), 2, 0) };
    let foreign = match n % 6 {
        0 => foreign,
        1 => Route { kind: RouteKind::Unreachable, gateway: None, link: None, ..foreign },
        2 => Route { protocol: 12, metric: 1024, ..kernel_route(&format!("fd10:244:{}::/64", n % 9), Some("fd00::200"), 2, 0) },
        3 => Route { protocol: 12, ..kernel_route(&format!("fd10:244:{}::/64", n % 9), Some("fd00::200"), 2, 100) },
        4 => Route { destination: net(&format!("10.244.{}.128/25", n % 9)), ..foreign },
        // The connected route of an address in the subnet.
        _ => Route { gateway: None, protocol: KERNEL_PROTOCOL, ..foreign },
    };
    let same = |route: &Route| (route.destination, route.metric) == (foreign.destination, foreign.metric);
    // Only some routes are added beside ours; the others replace it.
    if n % 12 < 6 {
        kernel.live.routes.retain(|route| !same(route) || is_connected(route));
    }
    if !kernel.live.routes.iter().any(|route| same(route) && (is_connected(route) || is_connected(&foreign) || *route == foreign)) {
        kernel.live.routes.insert(0, foreign);
    }
}

fn foreign(kernel: &Kernel) -> HashSet<Route> {
    let ours: Vec<u32> = kernel.live.links.iter().filter(|link| link.name.starts_with("flannel")).map(|link| link.index).collect();
    let is_foreign = |route: &&Route| route.protocol != OUR_PROTOCOL && !route.link.is_some_and(|link| ours.contains(&link));
    kernel.live.routes.iter().filter(is_foreign).copied().collect()
}

fn backend() -> impl Strategy<Value = &'static str> {
    prop_oneof![
        3 => Just(r#"{"Type":"vxlan"}"#),
        2 => Just(r#"{"Type":"vxlan","DirectRouting":true}"#),
        1 => Just(r#"{"Type":"vxlan","MTU":1400,"Port":4789}"#),
        1 => Just(r#"{"Type":"host-gw"}"#),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, failure_persistence: None, ..ProptestConfig::default() })]

    /// After any faults the kernel ends with exactly the desired entries and those of other programs, and the plan is empty.
    #[test]
    fn any_state_leads_to_the_desired_one(
        steps in proptest::collection::vec((nodes(), proptest::collection::vec(fault(), 0..4), backend()), 1..4),
        blackhole in any::<bool>(),
        offload in any::<Option<bool>>(),
    ) {
        let mut kernel = Kernel::new();
        for (nodes, faults, backend) in &steps {
            let known = Setup::new(backend, blackhole, offload);
            // Without an address, a link that is not desired any more cannot be told from another program's.
            let is_recognisable = |fault: &&Fault| !(backend.contains("host-gw") && matches!(fault, Fault::Flushed(_)));
            faults.iter().filter(is_recognisable).for_each(|fault| inflict(&mut kernel, fault));
            let others = foreign(&kernel);
            let (links, desired) = known.settle(nodes, &mut kernel)?;
            // Routes of other programs stay, except those with the destination and metric of one of ours.
            let in_place = |route: &Route| {
                let ours = desired.peers.values().flatten().chain(&desired.own);
                !is_connected(route)
                    && ours.into_iter().any(|entry| matches!(entry, Entry::Route(ours) if (ours.destination, ours.metric) == (route.destination, route.metric)))
            };
            let others: HashSet<Route> = others.into_iter().filter(|route| !in_place(route)).collect();
            prop_assert_eq!(&foreign(&kernel), &others, "the routes of other programs stay");

            // Links.
            for wanted in &links {
                let link = kernel.live.links.iter().find(|link| link.name == wanted.name).expect("it is there");
                prop_assert!(link.up && link.mac == Some(wanted.mac) && link.mtu == wanted.mtu && link.kind == LinkKind::Vxlan(wanted.vxlan));
                let inside: Vec<IpNetwork> = link.addresses.iter().map(|address| address.net).filter(|net| wanted.network.is_ipv4() == net.is_ipv4() && wanted.network.contains(net.ip())).collect();
                prop_assert_eq!(inside, vec![wanted.address]);
                prop_assert_eq!(kernel.offloads.get(&link.index).copied().filter(|_| offload.is_some()), offload);
            }
            let flannels = kernel.live.links.iter().filter(|link| link.name.starts_with("flannel")).count();
            prop_assert_eq!(flannels, links.len());

            // Entries: exactly the desired ones, except where a link has an address in a peer's subnet.
            let all: Vec<Entry> = desired.peers.values().flatten().chain(&desired.own).copied().collect();
            let in_the_way = |route: &Route| kernel.live.routes.iter().any(|other| is_connected(other) && (other.destination, other.metric) == (route.destination, route.metric));
            let routes: BTreeSet<Route> = all.iter().filter_map(|entry| match entry { Entry::Route(route) if !in_the_way(route) => Some(*route), _ => None }).collect();
            let neighbours: BTreeSet<Neighbour> = all.iter().filter_map(|entry| match entry { Entry::Neighbour(neighbour) => Some(*neighbour), _ => None }).collect();
            let fdb: BTreeSet<FdbEntry> = all.iter().filter_map(|entry| match entry { Entry::Fdb(entry) => Some(*entry), _ => None }).collect();
            prop_assert_eq!(&kernel.live.routes.iter().copied().filter(|route| !others.contains(route)).collect::<BTreeSet<_>>(), &routes);
            prop_assert_eq!(&kernel.live.neighbours.iter().copied().filter(|neighbour| neighbour.permanent).collect::<BTreeSet<_>>(), &neighbours);
            prop_assert_eq!(&kernel.live.fdb.iter().copied().collect::<BTreeSet<_>>(), &fdb);

            // Refused nodes have no entries, and the subnets of accepted nodes do not overlap.
            let peers = known.peers(nodes, &kernel);
            for refusal in &peers.refused {
                let accepted = peers.accepted.get(&refusal.node).and_then(|remotes| refusal.family.and_then(|family| remotes.get(family)));
                prop_assert_eq!(accepted, None, "{}", refusal);
                if refusal.family.is_none() {
                    prop_assert!(!desired.peers.contains_key(&refusal.node));
                }
            }
            let subnets: Vec<IpNetwork> = routes.iter().filter(|route| route.kind == RouteKind::Unicast).map(|route| route.destination).collect();
            for (i, a) in subnets.iter().enumerate() {
                prop_assert!(known.conf.networks.get(Family::of_net(*a)).is_some_and(|network| network.contains(a.network()) && network.prefix() < a.prefix()));
                prop_assert!(!known.own.subnets.iter().any(|(family, own)| family == Family::of_net(*a) && overlap(*own, *a)));
                for b in &subnets[i + 1..] {
                    prop_assert!(Family::of_net(*a) != Family::of_net(*b) || !overlap(*a, *b), "{} and {}", a, b);
                }
            }
        }
    }

    /// The order of Nodes does not matter.
    #[test]
    fn the_order_of_nodes_does_not_matter(all in nodes(), turn in 0_usize..9) {
        let known = Setup::new(r#"{"Type":"vxlan"}"#, false, None);
        let kernel = Kernel::new();
        let mut turned = all.clone();
        turned.reverse();
        let count = turned.len().max(1);
        turned.rotate_left(if all.is_empty() { 0 } else { turn % count });
        prop_assert_eq!(known.peers(&all, &kernel), known.peers(&turned, &kernel));
    }

    /// A programmed peer stays when other Nodes claim its subnet or addresses.
    #[test]
    fn who_is_programmed_stays(first in nodes(), more in nodes()) {
        let known = Setup::new(r#"{"Type":"vxlan"}"#, false, None);
        let mut kernel = Kernel::new();
        known.settle(&first, &mut kernel)?;
        let before = known.peers(&first, &kernel);
        let names: BTreeSet<&str> = first.iter().map(|node| &*node.name).collect();
        let all: Vec<NetworkNode> = first.iter().chain(more.iter().filter(|node| !names.contains(&*node.name))).cloned().collect();
        let after = known.peers(&all, &kernel);
        for (name, remotes) in &before.accepted {
            prop_assert_eq!(after.accepted.get(name), Some(remotes));
        }
    }
}

/// The link that flannel 0.28.9 made is used unchanged.
#[test]
fn flannels_link_is_kept_as_it_is() {
    let known = Setup::new(r#"{"Type":"vxlan"}"#, false, None);
    let mut kernel = Kernel::new();
    let mut owned = known.own.clone();
    owned.macs = PerFamily { v4: "02:00:00:00:00:01".parse().ok(), v6: "02:00:00:00:00:02".parse().ok() };
    let known = Setup { own: owned, ..known };
    known.settle(&[], &mut kernel).expect("the plan becomes empty");
    // flannel leaves outer checksums at the kernel's default.
    for link in kernel.live.links.iter_mut().filter(|link| link.name.starts_with("flannel")) {
        if let LinkKind::Vxlan(vxlan) = &mut link.kind {
            vxlan.checksum = !vxlan.checksum;
        }
    }
    let plan = plan::links(&known.wanted().links(), &known.conf.networks, &kernel.live, &kernel.offloads);
    assert_eq!(plan, plan::LinkPlan::default());
}

/// Another program's VXLAN link with our VNI is reported, not deleted.
#[test]
fn a_foreign_link_with_our_vni_is_named() {
    let known = Setup::new(r#"{"Type":"vxlan"}"#, false, None);
    let mut kernel = Kernel::new();
    let links = known.wanted().links();
    kernel.change_link(&LinkChange::CreateVxlan { name: "vxlan0".into(), vxlan: links[0].vxlan, mac: Mac([2; 6]), mtu: 1450 });
    let plan = plan::links(&links, &known.conf.networks, &kernel.live, &kernel.offloads);
    assert_eq!(plan.changes.len(), 1, "the other family's link is made");
    let text = plan.in_the_way[0].to_string();
    assert!(text.starts_with("link flannel.1 cannot be made: link vxlan0 has VNI 1 and the same port"), "{text}");
}

/// When the VNI changes, the former link is deleted; a link of another network stays.
#[test]
fn a_former_link_goes() {
    let mut kernel = Kernel::new();
    Setup::new(r#"{"Type":"vxlan"}"#, false, None).settle(&[node(2, &[])], &mut kernel).expect("the plan becomes empty");
    kernel.change_link(&LinkChange::CreateVxlan {
        name: "flannel.77".into(),
        vxlan: Vxlan { local: "192.168.0.1".parse().ok(), underlay: Some(2), ..Vxlan::new(77, 8472) },
        mac: Mac([2; 6]),
        mtu: 1450,
    });
    let (links, _) = Setup::new(r#"{"Type":"vxlan","VNI":5}"#, false, None).settle(&[], &mut kernel).expect("the plan becomes empty");
    assert_eq!(links.len(), 2);
    let names: Vec<&str> = kernel.live.links.iter().map(|link| link.name.as_str()).filter(|name| name.starts_with("flannel")).collect();
    assert_eq!(names, ["flannel.77", "flannel.5", "flannel-v6.5"]);
}
