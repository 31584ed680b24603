//! The bridge that this node's pods hang on. The CNI plugin makes it; its MTU has to follow the network's (spec section 12.9).

use super::entry::LinkChange;
use super::link::{Link, LinkKind};
use super::own_lease::OwnLease;

/// Its name, where the CNI configuration says no other.
pub const BRIDGE: &str = "cni0";

/// The step that gives the bridge the MTU of the pods' interfaces, if it has another one. A bridge without an address of this node's
/// subnets is somebody else's.
#[must_use]
pub fn mtu_change(links: &[Link], own: &OwnLease, mtu: u32) -> Option<LinkChange> {
    let is_ours = |link: &&Link| {
        let holds = |ip| own.subnets.iter().any(|(_, subnet)| subnet.contains(ip));
        link.name == BRIDGE && link.kind == LinkKind::Bridge && link.addresses.iter().any(|address| holds(address.net.ip()))
    };
    let bridge = links.iter().find(is_ours)?;
    (bridge.mtu != mtu).then_some(LinkChange::Mtu(bridge.id(), mtu))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::network::families::PerFamily;
    use crate::network::link::{LinkAddress, LinkId, Scope};

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
    fn only_our_bridge_follows() {
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
