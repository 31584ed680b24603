//! The UDP port of the tunnel: whether the kernel will get it when the link is set up. Making the link does not show that.

use std::io;

use crate::cluster::Family;
use crate::netlink::link::{Link, LinkKind};
use crate::pod_network::net_conf::{NetConf, VxlanConf};
use crate::pod_network::vxlan::link_name;

use super::{Check, Part};

const PART: Part = Part::PodNetwork;

/// What came of taking the port, for each family of the external network. The kernel shares it among VXLAN links that read packets the
/// same way (`vxlan_find_sock` in `drivers/net/vxlan/vxlan_core.c`), and among nobody else.
#[must_use]
pub fn tunnel_port(tried: &[(Family, io::Result<()>)], links: &[Link], conf: &NetConf) -> Option<Check> {
    let asked = conf.backend.vxlan()?;
    let name = "tunnel port";
    let port = format!("UDP port {}", asked.port);
    let mut in_use = None;
    for (family, outcome) in tried {
        match outcome {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::AddrInUse => in_use = in_use.or(Some(*family)),
            Err(error) => return Some(Check::not_checked(PART, name, format!("{port} of {family} cannot be tried: {error}"))),
        }
    }
    let Some(family) = in_use else { return Some(Check::ok(PART, name, format!("{port} is free"))) };
    let own: Vec<String> = conf.networks.families().map(|family| link_name(family, asked.vni)).collect();
    // Links that are down hold nothing.
    let users = || links.iter().filter(|link| link.up && matches!(link.kind, LinkKind::Vxlan(vxlan) if vxlan.port == asked.port));
    if let Some(link) = users().find(|link| own.contains(&link.name)) {
        return Some(Check::ok(PART, name, format!("{port} is {}'s", link.name)));
    }
    let elsewhere = "another Backend.Port in every node's net-conf.json";
    Some(match (users().find(|link| !shares(link, asked)), users().next()) {
        (Some(link), _) => Check::failed(
            PART,
            name,
            format!("{} has {port} and reads packets another way (external or gbp), so no other link can be set up on it", link.name),
            format!("take {} off this node with the program that made it (Cilium's port is the same), or {elsewhere}", link.name),
        ),
        (None, Some(link)) => Check::ok(PART, name, format!("{port} can be shared with {}", link.name)),
        (None, None) => Check::failed(
            PART,
            name,
            format!("a program has {port} of {family}, so the tunnel cannot be set up"),
            format!("end it (ss -lunp 'sport = {}'), or {elsewhere}", asked.port),
        ),
    })
}

fn shares(link: &Link, asked: &VxlanConf) -> bool {
    matches!(link.kind, LinkKind::Vxlan(vxlan) if !vxlan.external && vxlan.gbp == asked.gbp)
}

#[cfg(test)]
mod tests {
    use super::super::Outcome;
    use super::*;
    use crate::netlink::link::Vxlan;

    fn link(name: &str, change: impl Fn(&mut Vxlan)) -> Link {
        let (port, reports_misses) = (8472, false);
        let mut vxlan = Vxlan { learning: true, reports_misses, ..Vxlan::new(7, port) };
        change(&mut vxlan);
        let (mac, master, addresses) = (None, None, Vec::new());
        Link { index: 3, name: name.into(), mac, mtu: 1450, up: true, master, kind: LinkKind::Vxlan(vxlan), addresses }
    }

    #[test]
    fn only_links_that_read_alike_share_the_port() {
        let conf = NetConf::parse(r#"{"Network":"10.244.0.0/16","Backend":{"Type":"vxlan"}}"#).expect("good");
        let judge = |kind: io::ErrorKind, links: &[Link]| tunnel_port(&[(Family::V4, Err(kind.into()))], links, &conf).expect("VXLAN");
        let taken = |links: &[Link]| judge(io::ErrorKind::AddrInUse, links).outcome;
        assert_eq!(taken(&[]), Outcome::Failed);
        assert_eq!(taken(&[link("flannel.1", |_| ())]), Outcome::Ok);
        assert_eq!(taken(&[link("vxlan7", |_| ())]), Outcome::Ok);
        assert_eq!(taken(&[link("cilium_vxlan", |vxlan| vxlan.external = true)]), Outcome::Failed);
        assert_eq!(taken(&[link("vxlan7", |vxlan| vxlan.gbp = true)]), Outcome::Failed);
        assert_eq!(taken(&[link("vxlan7", |_| ()), link("cilium_vxlan", |vxlan| vxlan.external = true)]), Outcome::Failed);
        // These hold another port, or none: it is a program that does.
        assert_eq!(taken(&[link("vxlan.calico", |vxlan| vxlan.port = 4789)]), Outcome::Failed);
        assert_eq!(taken(&[Link { up: false, ..link("vxlan7", |_| ()) }]), Outcome::Failed);
        assert_eq!(judge(io::ErrorKind::PermissionDenied, &[]).outcome, Outcome::NotChecked);
        let free = [(Family::V4, Ok(())), (Family::V6, Ok(()))];
        assert_eq!(tunnel_port(&free, &[], &conf).expect("VXLAN").outcome, Outcome::Ok);
        let host_gw = NetConf::parse(r#"{"Network":"10.244.0.0/16","Backend":{"Type":"host-gw"}}"#).expect("good");
        assert_eq!(tunnel_port(&free, &[], &host_gw), None);
    }
}
