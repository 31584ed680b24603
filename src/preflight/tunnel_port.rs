//! Checks that the UDP port of the VXLAN link is free. The kernel takes the port when the link is set up, so creating the link does not test it.

use std::io;

use crate::cluster::Family;
use crate::netlink::link::{Link, LinkKind};
use crate::pod_network::net_conf::{NetConf, VxlanConf};
use crate::pod_network::vxlan::link_name;

use super::{Check, CheckGroup};

const GROUP: CheckGroup = CheckGroup::PodNetwork;

/// Checks the port. `tried` has the result of binding the port, for each family of the external network. VXLAN links share a port if they
/// have the same `external` and `gbp` flags (`vxlan_find_sock` in `drivers/net/vxlan/vxlan_core.c`). No other sockets share it.
#[must_use]
pub(crate) fn tunnel_port(tried: &[(Family, io::Result<()>)], links: &[Link], conf: &NetConf) -> Option<Check> {
    let desired = conf.backend.vxlan()?;
    let name = "tunnel port";
    let port = format!("UDP port {}", desired.port);
    let mut in_use = None;
    for (family, outcome) in tried {
        match outcome {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::AddrInUse => in_use = in_use.or(Some(*family)),
            Err(error) => return Some(Check::not_checked(GROUP, name, format!("{port} of {family} cannot be tested: {error}"))),
        }
    }
    let Some(family) = in_use else { return Some(Check::ok(GROUP, name, format!("{port} is free"))) };
    let own: Vec<String> = conf.networks.families().map(|family| link_name(family, desired.vni)).collect();
    // A link that is down holds no port.
    let users = || links.iter().filter(|link| link.up && matches!(link.kind, LinkKind::Vxlan(vxlan) if vxlan.port == desired.port));
    if let Some(link) = users().find(|link| own.contains(&link.name)) {
        return Some(Check::ok(GROUP, name, format!("{port} belongs to {}", link.name)));
    }
    let other_port = "set another Backend.Port in every node's net-conf.json";
    Some(match (users().find(|link| !shares(link, desired)), users().next()) {
        (Some(link), _) => Check::failed(
            GROUP,
            name,
            format!("{} has {port} with other flags (external or gbp), so no other link can be set up on it", link.name),
            format!("remove {} with the program that created it (Cilium uses the same port), or {other_port}", link.name),
        ),
        (None, Some(link)) => Check::ok(GROUP, name, format!("{port} can be shared with {}", link.name)),
        (None, None) => Check::failed(
            GROUP,
            name,
            format!("a program has {port} of {family}, so the tunnel cannot be set up"),
            format!("end it (ss -lunp 'sport = {}'), or {other_port}", desired.port),
        ),
    })
}

fn shares(link: &Link, desired: &VxlanConf) -> bool {
    matches!(link.kind, LinkKind::Vxlan(vxlan) if !vxlan.external && vxlan.gbp == desired.gbp)
}

#[cfg(test)]
mod tests {
    use super::super::CheckOutcome;
    use super::*;
    use crate::netlink::link::Vxlan;

    fn link(name: &str, change: impl Fn(&mut Vxlan)) -> Link {
        let mut vxlan = Vxlan { learning: true, ..Vxlan::new(7, 8472) };
        change(&mut vxlan);
        let (mac, master, addresses) = (None, None, Vec::new());
        Link { index: 3, name: name.into(), mac, mtu: 1450, up: true, master, kind: LinkKind::Vxlan(vxlan), addresses }
    }

    #[test]
    fn only_links_with_the_same_flags_share_the_port() {
        let conf = NetConf::parse(r#"{"Network":"10.244.0.0/16","Backend":{"Type":"vxlan"}}"#).expect("good");
        let judge = |kind: io::ErrorKind, links: &[Link]| tunnel_port(&[(Family::V4, Err(kind.into()))], links, &conf).expect("VXLAN");
        let taken = |links: &[Link]| judge(io::ErrorKind::AddrInUse, links).outcome;
        assert_eq!(taken(&[]), CheckOutcome::Failed);
        assert_eq!(taken(&[link("flannel.1", |_| ())]), CheckOutcome::Ok);
        assert_eq!(taken(&[link("vxlan7", |_| ())]), CheckOutcome::Ok);
        assert_eq!(taken(&[link("cilium_vxlan", |vxlan| vxlan.external = true)]), CheckOutcome::Failed);
        assert_eq!(taken(&[link("vxlan7", |vxlan| vxlan.gbp = true)]), CheckOutcome::Failed);
        assert_eq!(taken(&[link("vxlan7", |_| ()), link("cilium_vxlan", |vxlan| vxlan.external = true)]), CheckOutcome::Failed);
        // These links hold another port, or none. So a program holds the port.
        assert_eq!(taken(&[link("vxlan.calico", |vxlan| vxlan.port = 4789)]), CheckOutcome::Failed);
        assert_eq!(taken(&[Link { up: false, ..link("vxlan7", |_| ()) }]), CheckOutcome::Failed);
        assert_eq!(judge(io::ErrorKind::PermissionDenied, &[]).outcome, CheckOutcome::NotChecked);
        let free = [(Family::V4, Ok(())), (Family::V6, Ok(()))];
        assert_eq!(tunnel_port(&free, &[], &conf).expect("VXLAN").outcome, CheckOutcome::Ok);
        let host_gw = NetConf::parse(r#"{"Network":"10.244.0.0/16","Backend":{"Type":"host-gw"}}"#).expect("good");
        assert_eq!(tunnel_port(&free, &[], &host_gw), None);
    }
}
