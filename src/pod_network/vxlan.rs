//! VXLAN: the names of its links, and the bytes that it needs. PURE.

use crate::cluster::Family;

/// The name of the VXLAN link of a family.
#[must_use]
pub fn link_name(family: Family, vni: u32) -> String {
    match family {
        Family::V4 => format!("flannel.{vni}"),
        Family::V6 => format!("flannel-v6.{vni}"),
    }
}

/// Bytes that VXLAN puts around a packet: outer IP header, UDP, VXLAN, and the inner Ethernet header. The family is the outer packets'.
#[must_use]
pub const fn overhead(family: Family) -> u32 {
    match family {
        Family::V4 => 50,
        Family::V6 => 70,
    }
}

/// The smallest MTU of a link that carries a family (RFC 791, RFC 8200). Below 1280 the kernel switches IPv6 off.
#[must_use]
pub const fn least(family: Family) -> u32 {
    match family {
        Family::V4 => 68,
        Family::V6 => 1280,
    }
}
