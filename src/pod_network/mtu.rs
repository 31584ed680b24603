//! Computes the MTUs of links and pods from the external interface's MTU and the overhead of encapsulation [flannel 5.2] [flannel 12].

use super::net_conf::NetConf;
use super::vxlan::{min_mtu, overhead};
use crate::cluster::Family;

use crate::cluster::families::PerFamily;

/// The MTUs of a pod network.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mtu {
    /// MTU of the VXLAN link of each family; empty for host-gw. Outer and inner packets of a link have the same family.
    pub links: PerFamily<u32>,
    /// MTU of the pods' interfaces, which subnet.env states: the smallest MTU of all links.
    pub pods: u32,
    /// `Backend.MTU`, if it is larger than the MTU of the external interface.
    pub too_large: Option<u32>,
}

/// The remaining MTU is smaller than IP allows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "an MTU of {outer} for outer packets leaves {inner} for pods, and {family} needs {} at least: set a larger MTU on the external interface (or for Backend.MTU in net-conf.json, if it is set there)",
    min_mtu(*.family)
)]
pub struct MtuTooSmall {
    /// MTU of the outer packets.
    pub outer: u32,
    /// MTU that remains for pods.
    pub inner: u32,
    /// The family that needs a larger one.
    pub family: Family,
}

/// Computes the MTUs from the configuration and the MTU of the external interface. A `Backend.MTU` above that of the interface is ignored.
///
/// # Errors
/// The remaining MTU is smaller than a family needs.
pub fn compute_mtu(conf: &NetConf, external: u32) -> Result<Mtu, MtuTooSmall> {
    let requested = conf.backend.vxlan().and_then(|vxlan| vxlan.mtu);
    let outer = requested.unwrap_or(external).min(external);
    let mut links = PerFamily::default();
    for family in conf.networks.families() {
        let overhead = if conf.backend.vxlan().is_some() { overhead(family) } else { 0 };
        let inner = outer.saturating_sub(overhead);
        if inner < min_mtu(family) {
            return Err(MtuTooSmall { outer, inner, family });
        }
        links.set(family, Some(inner));
    }
    let pods = links.iter().map(|(_, inner)| *inner).min().unwrap_or(outer);
    let links = if conf.backend.vxlan().is_some() { links } else { PerFamily::default() };
    Ok(Mtu { links, pods, too_large: requested.filter(|requested| *requested > external) })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn conf(families: &str, backend: &str) -> NetConf {
        let (v4, v6) = (families.contains('4'), families.contains('6'));
        let text =
            format!(r#"{{"EnableIPv4":{v4},"EnableIPv6":{v6},"Network":"10.244.0.0/16","IPv6Network":"fd10::/32","Backend":{backend}}}"#);
        NetConf::parse(&text).expect("a good one")
    }

    #[test]
    fn the_overhead_is_subtracted() {
        let vxlan = r#"{"Type":"vxlan"}"#;
        for (families, backend, external, v4, v6, pods, too_large) in [
            ("4", vxlan, 1500, Some(1450), None, 1450, None),
            ("6", vxlan, 1500, None, Some(1430), 1430, None),
            ("46", vxlan, 1500, Some(1450), Some(1430), 1430, None),
            ("46", vxlan, 9001, Some(8951), Some(8931), 8931, None),
            ("4", r#"{"Type":"vxlan","MTU":1400}"#, 1500, Some(1350), None, 1350, None),
            ("4", r#"{"Type":"vxlan","MTU":9000}"#, 1500, Some(1450), None, 1450, Some(9000)),
            ("46", r#"{"Type":"host-gw"}"#, 1500, None, None, 1500, None),
            ("6", vxlan, 1350, None, Some(1280), 1280, None),
        ] {
            let want = Mtu { links: PerFamily { v4, v6 }, pods, too_large };
            assert_eq!(compute_mtu(&conf(families, backend), external), Ok(want), "{families} {backend} {external}");
        }
    }

    #[test]
    fn less_than_a_family_needs_is_refused() {
        let too_small = compute_mtu(&conf("46", r#"{"Type":"vxlan"}"#), 1349).expect_err("too small");
        assert_eq!(too_small, MtuTooSmall { outer: 1349, inner: 1279, family: Family::V6 });
        assert!(too_small.to_string().contains("leaves 1279 for pods, and ipv6 needs 1280 at least"));
        assert!(compute_mtu(&conf("4", r#"{"Type":"vxlan"}"#), 1349).is_ok());
        assert!(compute_mtu(&conf("6", r#"{"Type":"host-gw"}"#), 1279).is_err());
        assert!(compute_mtu(&conf("4", r#"{"Type":"vxlan"}"#), 0).is_err());
    }
}
