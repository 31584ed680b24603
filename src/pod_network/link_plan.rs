//! From the links that the kernel has to those that it should have: the steps, in order.

use std::collections::BTreeMap;
use std::fmt;

use ipnetwork::IpNetwork;

use crate::cluster::Family;

use super::desired::DesiredLink;
use crate::cluster::families::PerFamily;
use crate::netlink::entry::{LinkChange, Live, OUR_PROTOCOL};
use crate::netlink::link::{Link, LinkKind, Vxlan};

/// Steps for the links, and what keeps others from being taken.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LinkPlan {
    /// The steps, in order.
    pub changes: Vec<LinkChange>,
    /// Links of others because of which one of ours cannot be made.
    pub in_the_way: Vec<LinkInTheWay>,
}

/// A VXLAN link of another program with the same VNI and port: the kernel allows one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LinkInTheWay {
    /// The link that is to be made.
    pub wanted: String,
    /// The one that is there.
    pub found: String,
    /// Its VNI.
    pub vni: u32,
}

impl fmt::Display for LinkInTheWay {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { wanted, found, vni } = self;
        write!(
            f,
            "link {wanted} cannot be made: link {found} has VNI {vni} and the same port. Delete it (ip link delete {found}), or choose another Backend.VNI in net-conf.json on all nodes"
        )
    }
}

/// The numbers of the links that are there as desired, or can be made so without making them anew.
#[must_use]
pub fn our_links(desired: &[DesiredLink], live: &Live) -> PerFamily<u32> {
    let of = |desired: &DesiredLink| {
        live.links.iter().find(|link| link.name == desired.name && is_like(link, &desired.vxlan)).map(|link| link.index)
    };
    desired.iter().filter_map(|desired| Some((desired.family, of(desired)?))).collect()
}

/// Whether a link can become the one desired: what cannot be changed is right. As flannel has it, outer checksums do not matter.
fn is_like(link: &Link, wanted: &Vxlan) -> bool {
    matches!(&link.kind, LinkKind::Vxlan(found) if Vxlan { checksum: wanted.checksum, ..*found } == *wanted)
}

/// Plans the way to these links. `networks` are the pod network's: by an address in them a VXLAN link with flannel's name is known for a
/// former one of this node's. `offloads` is what is known to be set of transmit checksum offload, by number of link.
#[must_use]
pub fn links(desired: &[DesiredLink], networks: &PerFamily<IpNetwork>, live: &Live, offloads: &BTreeMap<u32, bool>) -> LinkPlan {
    let mut plan = LinkPlan::default();
    let former: Vec<&Link> = live.links.iter().filter(|link| is_former(link, desired, networks, live)).collect();
    plan.changes.extend(former.iter().map(|link| LinkChange::Delete(link.id())));
    for wanted in desired {
        let found = live.links.iter().find(|link| link.name == wanted.name);
        if let Some(link) = found.filter(|link| is_like(link, &wanted.vxlan)) {
            adjust(wanted, link, offloads, &mut plan.changes);
            continue;
        }
        let other = live.links.iter().find(|link| {
            let stays = !former.iter().any(|former| former.index == link.index) && !desired.iter().any(|desired| desired.name == link.name);
            matches!(&link.kind, LinkKind::Vxlan(vxlan) if stays && is_same_network(vxlan, &wanted.vxlan))
        });
        if let Some(other) = other {
            plan.in_the_way.push(LinkInTheWay { wanted: wanted.name.clone(), found: other.name.clone(), vni: wanted.vxlan.vni });
            continue;
        }
        plan.changes.extend(found.map(|link| LinkChange::Delete(link.id())));
        plan.changes.push(LinkChange::CreateVxlan { name: wanted.name.clone(), vxlan: wanted.vxlan, mac: wanted.mac, mtu: wanted.mtu });
    }
    plan
}

/// Whether the kernel would not have both: one VNI on one port with outer packets of one family.
fn is_same_network(a: &Vxlan, b: &Vxlan) -> bool {
    let is_v6 = |vxlan: &Vxlan| vxlan.local.is_some_and(|ip| ip.is_ipv6());
    (a.vni, a.port, is_v6(a)) == (b.vni, b.port, is_v6(b))
}

/// Whether a link was this node's: by its name, and by an address of the network or a route of ours through it.
fn is_former(link: &Link, desired: &[DesiredLink], networks: &PerFamily<IpNetwork>, live: &Live) -> bool {
    let number = ["flannel.", "flannel-v6."].into_iter().find_map(|start| link.name.strip_prefix(start)?.parse::<u32>().ok());
    let named = number.is_some() && matches!(link.kind, LinkKind::Vxlan(_)) && !desired.iter().any(|desired| desired.name == link.name);
    let inside = |net: IpNetwork| networks.get(Family::of_net(net)).is_some_and(|network| network.contains(net.ip()));
    let used = || live.routes.iter().any(|route| route.protocol == OUR_PROTOCOL && route.link == Some(link.index));
    named && (link.addresses.iter().any(|address| inside(address.net)) || used())
}

/// What can be changed while the link carries traffic.
fn adjust(wanted: &DesiredLink, link: &Link, offloads: &BTreeMap<u32, bool>, changes: &mut Vec<LinkChange>) {
    if link.mac != Some(wanted.mac) {
        changes.push(LinkChange::Mac(link.id(), wanted.mac));
    }
    if link.mtu != wanted.mtu {
        changes.push(LinkChange::Mtu(link.id(), wanted.mtu));
    }
    if let Some(offload) = wanted.checksum_offload.filter(|offload| offloads.get(&link.index) != Some(offload)) {
        changes.push(LinkChange::ChecksumOffload(link.id(), offload));
    }
    let is_stale = |net: IpNetwork| match net {
        _ if Family::of_net(net) != wanted.family || net == wanted.address => false,
        IpNetwork::V4(_) => wanted.network.contains(net.ip()),
        IpNetwork::V6(net) => !net.ip().is_unicast_link_local(),
    };
    let stale = link.addresses.iter().map(|address| address.net).filter(|net| is_stale(*net));
    // Of IPv6 a link has an address once, whatever its prefix: the wrong one goes first.
    changes.extend(stale.map(|net| LinkChange::DeleteAddress(link.id(), net)));
    if !link.addresses.iter().any(|address| address.net == wanted.address) {
        changes.push(LinkChange::AddAddress(link.id(), wanted.address));
    }
    if !link.up {
        changes.push(LinkChange::Up(link.id()));
    }
}
