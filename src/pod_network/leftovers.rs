//! What a pod network leaves on a node, found for whoever takes it away. Whether this program or flannel made it does not matter; what
//! others made stays.

use std::collections::BTreeMap;

use ipnetwork::IpNetwork;

use super::net_conf::NetConf;
use crate::cluster::Family;

use super::desired::DesiredEntries;
use super::plan;
use super::subnet_env::SubnetEnv;
use super::vxlan::link_name;
use crate::cluster::families::PerFamily;
use crate::netlink::entry::{BOOT_PROTOCOL, EntryChange, LinkChange, Live, Route, RouteKind};
use crate::netlink::link::{Link, LinkKind};

/// What is known of the network whose leftovers are looked for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Known {
    /// What subnet.env says; nothing if there is none.
    pub env: SubnetEnv,
    /// net-conf.json, if there is one that makes sense.
    pub conf: Option<NetConf>,
}

/// VXLAN links that go: those with flannel's names and an address in the network, or a route of ours; and the one that net-conf.json
/// names.
#[must_use]
pub fn links<'l>(live: &'l Live, known: &Known) -> Vec<&'l Link> {
    let networks = [Some(&known.env.networks), known.conf.as_ref().map(|conf| &conf.networks)];
    let former = |networks: &PerFamily<IpNetwork>| plan::links(&[], networks, live, &BTreeMap::new()).changes;
    let former: Vec<LinkChange> = networks.into_iter().flatten().flat_map(former).collect();
    let conf = known.conf.as_ref();
    let vni = conf.and_then(|conf| conf.backend.vxlan()).map(|vxlan| vxlan.vni);
    let is_named = |link: &Link| vni.is_some_and(|vni| Family::ALL.into_iter().any(|family| has(link, family, vni)));
    live.links.iter().filter(|link| is_named(link) || former.contains(&LinkChange::Delete(link.id()))).collect()
}

/// VXLAN links with flannel's names of which nothing tells that they are this network's, so that they stay.
#[must_use]
pub fn doubtful<'l>(live: &'l Live, known: &Known) -> Vec<&'l Link> {
    let ours = links(live, known);
    let is_flannels = |link: &Link| {
        let LinkKind::Vxlan(vxlan) = &link.kind else { return false };
        Family::ALL.into_iter().any(|family| has(link, family, vxlan.vni))
    };
    live.links.iter().filter(|link| is_flannels(link) && !ours.contains(link)).collect()
}

/// Whether a link is the VXLAN link of a family and a network's identifier, to judge by its name.
fn has(link: &Link, family: Family, vni: u32) -> bool {
    matches!(&link.kind, LinkKind::Vxlan(vxlan) if vxlan.vni == vni) && link.name == link_name(family, vni)
}

/// Routes that go: those of our protocol, and the one with which flannel swallows what no pod of this node has.
#[must_use]
pub fn routes(live: &Live, known: &Known) -> Vec<EntryChange> {
    let ours = plan::entries(&DesiredEntries::default(), &PerFamily::default(), live);
    let swallows = |route: &&Route| {
        let subnet = known.env.subnets.get(Family::of_net(route.destination));
        route.kind == RouteKind::Blackhole
            && route.protocol == BOOT_PROTOCOL
            && subnet.is_some_and(|subnet| is_same(*subnet, route.destination))
    };
    let swallowing = live.routes.iter().filter(swallows).map(|route| EntryChange::NoRoute(*route));
    ours.groups.into_iter().flat_map(|group| group.changes).chain(swallowing).collect()
}

fn is_same(a: IpNetwork, b: IpNetwork) -> bool {
    (a.network(), a.prefix()) == (b.network(), b.prefix())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::netlink::entry::OUR_PROTOCOL;
    use crate::netlink::link::{LinkAddress, Scope, Vxlan};
    use crate::pod_network::routing::tests::route;

    fn link(index: u32, name: &str, vni: Option<u32>, addresses: &[&str]) -> Link {
        let vxlan = |vni| Vxlan {
            vni,
            port: 8472,
            local: None,
            underlay: None,
            learning: false,
            gbp: false,
            external: false,
            reports_misses: false,
            checksum: true,
        };
        let address = |net: &&str| LinkAddress {
            net: net.parse().expect("an address"),
            scope: Scope::Universe,
            permanent: true,
            temporary: false,
            deprecated: false,
        };
        Link {
            index,
            name: name.to_owned(),
            mac: None,
            mtu: 1450,
            up: true,
            master: None,
            kind: vni.map_or(LinkKind::Bridge, |vni| LinkKind::Vxlan(vxlan(vni))),
            addresses: addresses.iter().map(address).collect(),
        }
    }

    fn names(links: &[&Link]) -> Vec<String> {
        links.iter().map(|link| link.name.clone()).collect()
    }

    fn live() -> Live {
        let links = vec![
            link(2, "eth0", None, &["192.168.0.1/24"]),
            link(3, "flannel.1", Some(1), &["10.244.1.0/32"]),
            link(4, "flannel-v6.1", Some(1), &["fd10:244:1::/128"]),
            link(5, "flannel.7", Some(7), &["10.99.1.0/32"]),
            link(6, "flannel.8", Some(8), &[]),
            link(7, "flannel.9", None, &["10.244.1.0/32"]),
            link(8, "vxlan1", Some(10), &["10.244.1.0/32"]),
            link(9, "flannel.11", Some(11), &[]),
        ];
        let routes = [
            "10.244.2.0/24 via 192.168.0.2 dev 2 proto 83",
            "10.244.3.0/24 via 192.168.0.3 dev 2",
            "10.244.4.0/24 via 10.244.4.0 dev 9 proto 83",
            "10.244.1.0/24 blackhole",
            "10.244.5.0/24 blackhole",
            "fd10:244:1::/64 blackhole proto 83",
            "0.0.0.0/0 via 192.168.0.254 dev 2",
        ];
        Live { links, routes: routes.into_iter().map(route).collect(), ..Live::default() }
    }

    #[test]
    fn links_are_known_by_their_addresses_their_routes_or_by_net_conf() {
        let env = SubnetEnv::read("FLANNEL_NETWORK=10.244.0.0/16\nFLANNEL_IPV6_NETWORK=fd10:244::/32\n");
        let known = Known { env, conf: None };
        assert_eq!(names(&links(&live(), &known)), ["flannel.1", "flannel-v6.1", "flannel.11"]);
        assert_eq!(names(&doubtful(&live(), &known)), ["flannel.7", "flannel.8"]);
        let conf = NetConf::parse(r#"{"Network":"10.99.0.0/16","Backend":{"Type":"vxlan","VNI":8}}"#).expect("a good one");
        let known = Known { conf: Some(conf), ..known };
        assert_eq!(names(&links(&live(), &known)), ["flannel.1", "flannel-v6.1", "flannel.7", "flannel.8", "flannel.11"]);
        assert!(doubtful(&live(), &known).is_empty());
        // Where nothing is known, only our routes tell.
        assert_eq!(names(&links(&live(), &Known::default())), ["flannel.11"]);
    }

    #[test]
    fn routes_are_known_by_their_protocol() {
        let routes = |known: &Known| -> Vec<String> {
            let change = |change| match change {
                EntryChange::NoRoute(route) => format!("{} {}", route.destination, route.protocol),
                other => panic!("{other:?}"),
            };
            routes(&live(), known).into_iter().map(change).collect()
        };
        let ours =
            [format!("10.244.2.0/24 {OUR_PROTOCOL}"), format!("10.244.4.0/24 {OUR_PROTOCOL}"), format!("fd10:244:1::/64 {OUR_PROTOCOL}")];
        assert_eq!(routes(&Known::default()), ours);
        let known = Known { env: SubnetEnv::read("FLANNEL_SUBNET=10.244.1.1/24\n"), conf: None };
        let flannels = format!("10.244.1.0/24 {BOOT_PROTOCOL}");
        assert_eq!(routes(&known), [&ours[..], &[flannels]].concat());
    }
}
