//! Finds the links and routes that a pod network left on a node, for cleanup. Links and routes of flannel are found, too; those of other
//! programs are not.

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

/// What the node's files say about the pod network.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FormerNetwork {
    /// The content of subnet.env; empty if there is no file.
    pub env: SubnetEnv,
    /// net-conf.json, if it exists and is valid.
    pub conf: Option<NetConf>,
}

/// The VXLAN links to delete: those with flannel's names and an address in the network or one of our routes, and those of the VNI in
/// net-conf.json.
#[must_use]
pub fn links<'l>(live: &'l Live, former_network: &FormerNetwork) -> Vec<&'l Link> {
    let networks = [Some(former_network.env.first_networks()), former_network.conf.as_ref().map(|conf| conf.networks)];
    let former = |networks: PerFamily<IpNetwork>| plan::links(&[], &networks, live, &BTreeMap::new()).changes;
    let former: Vec<LinkChange> = networks.into_iter().flatten().flat_map(former).collect();
    let conf = former_network.conf.as_ref();
    let vni = conf.and_then(|conf| conf.backend.vxlan()).map(|vxlan| vxlan.vni);
    let is_named = |link: &Link| vni.is_some_and(|vni| Family::ALL.into_iter().any(|family| is_vxlan_link(link, family, vni)));
    live.links.iter().filter(|link| is_named(link) || former.contains(&LinkChange::Delete(link.id()))).collect()
}

/// VXLAN links with flannel's names that cannot be attributed to this network. They are not deleted.
#[must_use]
pub(crate) fn unattributed<'l>(live: &'l Live, former_network: &FormerNetwork) -> Vec<&'l Link> {
    let ours = links(live, former_network);
    let is_flannels = |link: &Link| {
        let LinkKind::Vxlan(vxlan) = &link.kind else { return false };
        Family::ALL.into_iter().any(|family| is_vxlan_link(link, family, vxlan.vni))
    };
    live.links.iter().filter(|link| is_flannels(link) && !ours.contains(link)).collect()
}

/// Returns true if a link has this VNI and flannel's name for the family.
fn is_vxlan_link(link: &Link, family: Family, vni: u32) -> bool {
    matches!(&link.kind, LinkKind::Vxlan(vxlan) if vxlan.vni == vni) && link.name == link_name(family, vni)
}

/// The routes to delete: those with our protocol, and flannel's blackhole route of this node's subnet.
#[must_use]
pub fn routes(live: &Live, former_network: &FormerNetwork) -> Vec<EntryChange> {
    let ours = plan::entries(&DesiredEntries::default(), &PerFamily::default(), live);
    let subnets = former_network.env.first_subnets();
    let is_flannels = |route: &&Route| {
        let subnet = subnets.get(Family::of_net(route.destination));
        route.kind == RouteKind::Blackhole
            && route.protocol == BOOT_PROTOCOL
            && subnet.is_some_and(|subnet| is_same(*subnet, route.destination))
    };
    let of_flannel = live.routes.iter().filter(is_flannels).map(|route| EntryChange::NoRoute(*route));
    ours.groups.into_iter().flat_map(|group| group.changes).chain(of_flannel).collect()
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
        let vxlan = |vni| Vxlan::new(vni, 8472);
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
    fn links_are_found_by_address_route_or_net_conf() {
        let env = SubnetEnv::parse_lenient("FLANNEL_NETWORK=10.244.0.0/16\nFLANNEL_IPV6_NETWORK=fd10:244::/32\n");
        let former_network = FormerNetwork { env, conf: None };
        assert_eq!(names(&links(&live(), &former_network)), ["flannel.1", "flannel-v6.1", "flannel.11"]);
        assert_eq!(names(&unattributed(&live(), &former_network)), ["flannel.7", "flannel.8"]);
        let conf = NetConf::parse(r#"{"Network":"10.99.0.0/16","Backend":{"Type":"vxlan","VNI":8}}"#).expect("a good one");
        let former_network = FormerNetwork { conf: Some(conf), ..former_network };
        assert_eq!(names(&links(&live(), &former_network)), ["flannel.1", "flannel-v6.1", "flannel.7", "flannel.8", "flannel.11"]);
        assert!(unattributed(&live(), &former_network).is_empty());
        // Without files, a link is found only by our routes.
        assert_eq!(names(&links(&live(), &FormerNetwork::default())), ["flannel.11"]);
    }

    #[test]
    fn routes_are_found_by_protocol() {
        let routes = |former_network: &FormerNetwork| -> Vec<String> {
            let change = |change| match change {
                EntryChange::NoRoute(route) => format!("{} {}", route.destination, route.protocol),
                other => panic!("{other:?}"),
            };
            routes(&live(), former_network).into_iter().map(change).collect()
        };
        let ours =
            [format!("10.244.2.0/24 {OUR_PROTOCOL}"), format!("10.244.4.0/24 {OUR_PROTOCOL}"), format!("fd10:244:1::/64 {OUR_PROTOCOL}")];
        assert_eq!(routes(&FormerNetwork::default()), ours);
        let former_network = FormerNetwork { env: SubnetEnv::parse_lenient("FLANNEL_SUBNET=10.244.1.1/24\n"), conf: None };
        let flannels = format!("10.244.1.0/24 {BOOT_PROTOCOL}");
        assert_eq!(routes(&former_network), [&ours[..], &[flannels]].concat());
    }
}
