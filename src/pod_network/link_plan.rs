//! Plans the steps from the live links to the desired ones, in order. PURE.

use std::collections::BTreeMap;
use std::fmt;

use ipnetwork::IpNetwork;

use crate::cluster::Family;

use super::desired::DesiredLink;
use crate::cluster::families::PerFamily;
use crate::netlink::entry::{LinkChange, Live, OUR_PROTOCOL};
use crate::netlink::link::{Link, LinkKind, Vxlan};

/// The steps for the links, and the links of other programs that block some of ours.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LinkPlan {
    /// The steps, in order.
    pub changes: Vec<LinkChange>,
    /// Links of other programs that prevent a desired one from being created.
    pub in_the_way: Vec<LinkInTheWay>,
}

/// A VXLAN link of another program with the same VNI and port. The kernel allows only one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LinkInTheWay {
    /// The desired link.
    pub desired: String,
    /// The other program's link.
    pub found: String,
    /// Its VNI.
    pub vni: u32,
}

impl fmt::Display for LinkInTheWay {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { desired, found, vni } = self;
        write!(
            f,
            "link {desired} cannot be made: link {found} has VNI {vni} and the same port. Delete it (ip link delete {found}), or choose another Backend.VNI in net-conf.json on all nodes"
        )
    }
}

/// The indexes of live links that have the desired attributes, or can get them without being created again.
#[must_use]
pub fn our_links(desired: &[DesiredLink], live: &Live) -> PerFamily<u32> {
    let of = |desired: &DesiredLink| {
        live.links.iter().find(|link| link.name == desired.name && is_like(link, &desired.vxlan)).map(|link| link.index)
    };
    desired.iter().filter_map(|desired| Some((desired.family, of(desired)?))).collect()
}

/// Returns true if the attributes that cannot be changed later are the desired ones. As in flannel, outer checksums are not compared.
fn is_like(link: &Link, desired: &Vxlan) -> bool {
    matches!(&link.kind, LinkKind::Vxlan(found) if Vxlan { checksum: desired.checksum, ..*found } == *desired)
}

/// Plans the steps to the desired links. `networks` are those of the pod network: a VXLAN link with flannel's name and an address in them is
/// a former link of this node and is deleted. `offloads` is the transmit checksum offload that was set, by link index.
#[must_use]
pub fn links(desired: &[DesiredLink], networks: &PerFamily<IpNetwork>, live: &Live, offloads: &BTreeMap<u32, bool>) -> LinkPlan {
    let mut plan = LinkPlan::default();
    let former: Vec<&Link> = live.links.iter().filter(|link| is_former(link, desired, networks, live)).collect();
    plan.changes.extend(former.iter().map(|link| LinkChange::Delete(link.id())));
    for target in desired {
        let found = live.links.iter().find(|link| link.name == target.name);
        if let Some(link) = found.filter(|link| is_like(link, &target.vxlan)) {
            adjust(target, link, offloads, &mut plan.changes);
            continue;
        }
        let other = live.links.iter().find(|link| {
            let stays = !former.iter().any(|former| former.index == link.index) && !desired.iter().any(|other| other.name == link.name);
            matches!(&link.kind, LinkKind::Vxlan(vxlan) if stays && is_same_network(vxlan, &target.vxlan))
        });
        if let Some(other) = other {
            plan.in_the_way.push(LinkInTheWay { desired: target.name.clone(), found: other.name.clone(), vni: target.vxlan.vni });
            continue;
        }
        plan.changes.extend(found.map(|link| LinkChange::Delete(link.id())));
        plan.changes.push(LinkChange::CreateVxlan { name: target.name.clone(), vxlan: target.vxlan, mac: target.mac, mtu: target.mtu });
    }
    plan
}

/// Returns true if the kernel refuses to have both: they have the same VNI, port and family of outer packets.
fn is_same_network(a: &Vxlan, b: &Vxlan) -> bool {
    let is_v6 = |vxlan: &Vxlan| vxlan.local.is_some_and(|ip| ip.is_ipv6());
    (a.vni, a.port, is_v6(a)) == (b.vni, b.port, is_v6(b))
}

/// Returns true for a former link of this node: it has flannel's name, and an address in the network or one of our routes.
fn is_former(link: &Link, desired: &[DesiredLink], networks: &PerFamily<IpNetwork>, live: &Live) -> bool {
    let number = ["flannel.", "flannel-v6."].into_iter().find_map(|start| link.name.strip_prefix(start)?.parse::<u32>().ok());
    let named = number.is_some() && matches!(link.kind, LinkKind::Vxlan(_)) && !desired.iter().any(|desired| desired.name == link.name);
    let inside = |net: IpNetwork| networks.get(Family::of_net(net)).is_some_and(|network| network.contains(net.ip()));
    let used = || live.routes.iter().any(|route| route.protocol == OUR_PROTOCOL && route.link == Some(link.index));
    named && (link.addresses.iter().any(|address| inside(address.net)) || used())
}

/// Adds the changes that a link can get while it carries traffic.
fn adjust(desired: &DesiredLink, link: &Link, offloads: &BTreeMap<u32, bool>, changes: &mut Vec<LinkChange>) {
    if link.mac != Some(desired.mac) {
        changes.push(LinkChange::Mac(link.id(), desired.mac));
    }
    if link.mtu != desired.mtu {
        changes.push(LinkChange::Mtu(link.id(), desired.mtu));
    }
    if let Some(offload) = desired.checksum_offload.filter(|offload| offloads.get(&link.index) != Some(offload)) {
        changes.push(LinkChange::ChecksumOffload(link.id(), offload));
    }
    let is_stale = |net: IpNetwork| match net {
        _ if Family::of_net(net) != desired.family || net == desired.address => false,
        IpNetwork::V4(_) => desired.network.contains(net.ip()),
        IpNetwork::V6(net) => !net.ip().is_unicast_link_local(),
    };
    let stale = link.addresses.iter().map(|address| address.net).filter(|net| is_stale(*net));
    // A link can have an IPv6 address only once, even with another prefix length, so the stale one is deleted first.
    changes.extend(stale.map(|net| LinkChange::DeleteAddress(link.id(), net)));
    if !link.addresses.iter().any(|address| address.net == desired.address) {
        changes.push(LinkChange::AddAddress(link.id(), desired.address));
    }
    if !link.up {
        changes.push(LinkChange::Up(link.id()));
    }
}
