//! The bridge that connects this node's pods. The CNI plugin creates it. The daemon keeps its MTU equal to the pod network's, and deletes
//! addresses of former subnets [flannel 12].

use ipnetwork::IpNetwork;

use crate::cluster::Family;

use super::own_lease::OwnLease;
use crate::cluster::families::PerFamily;
use crate::netlink::entry::LinkChange;
use crate::netlink::link::{Link, LinkKind};

/// The default name of the bridge in the CNI configuration.
pub(crate) const BRIDGE: &str = "cni0";

/// The change that sets the bridge's MTU to that of the pods' interfaces, if it differs. A bridge without an address in this node's subnets
/// belongs to another program and is not changed.
#[must_use]
pub(crate) fn mtu_change(links: &[Link], own: &OwnLease, mtu: u32) -> Option<LinkChange> {
    let is_ours = |link: &&Link| {
        let holds = |ip| own.subnets.iter().any(|(_, subnet)| subnet.contains(ip));
        link.name == BRIDGE && link.kind == LinkKind::Bridge && link.addresses.iter().any(|address| holds(address.net.ip()))
    };
    let bridge = links.iter().find(is_ours)?;
    (bridge.mtu != mtu).then_some(LinkChange::Mtu(bridge.id(), mtu))
}

/// Subnets of the pod network in which the bridge has an address, but which are not this node's subnets.
#[must_use]
pub(crate) fn former_subnets(links: &[Link], own: &OwnLease, networks: &PerFamily<IpNetwork>) -> Vec<IpNetwork> {
    let Some(bridge) = links.iter().find(|link| link.name == BRIDGE && link.kind == LinkKind::Bridge) else { return Vec::new() };
    let is_former = |net: &IpNetwork| {
        let family = Family::of_net(*net);
        let is_inside = networks.get(family).is_some_and(|network| network.contains(net.ip()));
        is_inside && !own.subnets.get(family).is_some_and(|own| own.contains(net.ip()))
    };
    let nets = bridge.addresses.iter().map(|address| address.net).filter(is_former);
    nets.filter_map(|net| IpNetwork::new(net.network(), net.prefix()).ok()).collect()
}

/// The changes that delete the bridge's addresses in former subnets. With such an address the bridge would receive packets for pods of
/// another node, and the CNI plugin `bridge` would refuse to add an address of the new subnet. While this node has no subnet in a family,
/// only addresses in subnets of other nodes are deleted, so that running pods keep their gateway.
#[must_use]
pub(crate) fn stale_addresses(links: &[Link], own: &OwnLease, networks: &PerFamily<IpNetwork>, of_others: &[IpNetwork]) -> Vec<LinkChange> {
    let former = former_subnets(links, own, networks);
    let is_deleted =
        |net: &IpNetwork| own.subnets.get(Family::of_net(*net)).is_some() || of_others.iter().any(|other| other.contains(net.ip()));
    let of_bridge = links.iter().filter(|link| link.name == BRIDGE && link.kind == LinkKind::Bridge);
    let nets = of_bridge.flat_map(|bridge| bridge.addresses.iter().map(move |address| (bridge, address.net)));
    let stale = nets.filter(|(_, net)| former.iter().any(|former| former.contains(net.ip())) && is_deleted(net));
    stale.map(|(bridge, net)| LinkChange::DeleteAddress(bridge.id(), net)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::netlink::link::{LinkAddress, LinkId, Scope};

    fn bridge(name: &str, address: &str, mtu: u32) -> Link {
        let net = address.parse().expect("an address");
        Link {
            index: 4,
            name: name.into(),
            mac: None,
            mtu,
            up: true,
            master: None,
            kind: LinkKind::Bridge,
            addresses: vec![LinkAddress { net, scope: Scope::Universe, permanent: true, temporary: false, deprecated: false }],
        }
    }

    #[test]
    fn addresses_of_former_subnets_are_deleted() {
        let net = |text: &str| -> IpNetwork { text.parse().expect("a CIDR") };
        let own = |subnet: &str| OwnLease { subnets: PerFamily { v4: subnet.parse().ok(), v6: None }, ..OwnLease::default() };
        let networks = PerFamily { v4: Some(net("10.244.0.0/16")), v6: Some(net("fd10:244::/32")) };
        let address = "10.244.1.1/24";
        for (name, address, own, of_others, is_deleted) in [
            ("cni0", address, own("10.244.1.0/24"), vec![], false),
            ("cni0", address, own("10.244.7.0/24"), vec![], true),
            ("br0", address, own("10.244.7.0/24"), vec![], false),
            ("cni0", "10.88.0.1/16", own("10.244.7.0/24"), vec![net("10.88.0.0/16")], false),
            // This node has no subnet: only addresses in subnets of other nodes are deleted.
            ("cni0", address, own(""), vec![net("10.244.2.0/24")], false),
            ("cni0", address, own(""), vec![net("10.244.1.0/25")], true),
            ("cni0", "fd10:244:1::1/64", own("10.244.1.0/24"), vec![net("fd10:244:1::/64")], true),
            ("cni0", "fe80::1/64", own("10.244.1.0/24"), vec![net("fd10:244:1::/64")], false),
        ] {
            let want: Vec<LinkChange> =
                is_deleted.then(|| LinkChange::DeleteAddress(LinkId { index: 4, name: name.into() }, net(address))).into_iter().collect();
            assert_eq!(
                stale_addresses(&[bridge(name, address, 1450)], &own, &networks, &of_others),
                want,
                "{name} {address} {of_others:?}"
            );
        }
    }

    #[test]
    fn only_our_bridge_gets_the_mtu() {
        let own = OwnLease { subnets: PerFamily { v4: "10.244.1.0/24".parse().ok(), v6: None }, ..OwnLease::default() };
        for (link, want) in [
            (bridge("cni0", "10.244.1.1/24", 1500), Some(LinkChange::Mtu(LinkId { index: 4, name: "cni0".into() }, 1450))),
            (bridge("cni0", "10.244.1.1/24", 1450), None),
            (bridge("cni0", "10.88.0.1/16", 1500), None),
            (bridge("br0", "10.244.1.1/24", 1500), None),
            (Link { kind: LinkKind::Loopback, ..bridge("cni0", "10.244.1.1/24", 1500) }, None),
        ] {
            assert_eq!(mtu_change(std::slice::from_ref(&link), &own, 1450), want, "{link:?}");
        }
    }
}
