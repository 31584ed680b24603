//! VXLAN: names of links, overhead per packet, smallest MTU. PURE.

use crate::cluster::Family;

/// The name of the VXLAN link of a family.
#[must_use]
pub fn link_name(family: Family, vni: u32) -> String {
    match family {
        Family::V4 => format!("flannel.{vni}"),
        Family::V6 => format!("flannel-v6.{vni}"),
    }
}

/// Bytes that VXLAN adds to a packet: outer IP header, UDP header, VXLAN header and inner Ethernet header. `family` is that of the outer
/// packets.
#[must_use]
pub const fn overhead(family: Family) -> u32 {
    match family {
        Family::V4 => 50,
        Family::V6 => 70,
    }
}

/// The smallest MTU of a link that carries a family (RFC 791, RFC 8200). Below 1280 the kernel turns IPv6 off.
#[must_use]
pub(crate) const fn min_mtu(family: Family) -> u32 {
    match family {
        Family::V4 => 68,
        Family::V6 => 1280,
    }
}
