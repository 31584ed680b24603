//! What the pod network needs: an interface to other nodes, room for what encapsulation takes, and VXLAN.

use crate::netlink::link::{Link, LinkKind};
use crate::pod_network::interface::{ExternalInterface, NoInterface};
use crate::pod_network::mtu::compute_mtu;
use crate::pod_network::net_conf::NetConf;
use crate::pod_network::vxlan::link_name;

use super::{Check, Part};

const PART: Part = Part::PodNetwork;

/// The interface that packets to other nodes leave by, and how large packets of pods can be.
#[must_use]
pub fn interface(selected: &Result<ExternalInterface, NoInterface>, conf: &NetConf) -> Vec<Check> {
    let external = match selected {
        Ok(external) => external,
        Err(error) => {
            let cure = "say --iface, --iface-regex or --iface-can-reach, or give the node an address";
            return vec![Check::failed(PART, "external interface", error.to_string(), cure)];
        }
    };
    let addresses: Vec<String> = external.local.iter().map(|(_, ip)| ip.to_string()).collect();
    let found = format!("{} with {}: {}", external.name, addresses.join(" and "), external.why);
    let mut checks = vec![Check::ok(PART, "external interface", found)];
    if let (None, Err(error)) = (conf.backend.vxlan(), external.check_host_gw()) {
        checks.push(Check::failed(PART, "host-gw", error.to_string(), ""));
    }
    checks.push(match compute_mtu(conf, external.mtu) {
        Ok(mtu) => match mtu.too_large {
            Some(asked) => Check::warning(
                PART,
                "MTU",
                format!("net-conf.json asks for {asked}, and {} takes {}: pods get {}", external.name, external.mtu, mtu.pods),
                "set Backend.MTU to what all nodes' interfaces take, or leave it out",
            ),
            None => Check::ok(PART, "MTU", format!("{} of {}, which leaves {} for pods", external.mtu, external.name, mtu.pods)),
        },
        Err(error) => Check::failed(PART, "MTU", error.to_string(), ""),
    });
    checks
}

/// Links that have the tunnel's port or number already, and are not the tunnel.
#[must_use]
pub fn other_tunnels(links: &[Link], conf: &NetConf) -> Option<Check> {
    let asked = conf.backend.vxlan()?;
    let own: Vec<String> = conf.networks.families().map(|family| link_name(family, asked.vni)).collect();
    let name = "other VXLAN links";
    let in_the_way = links.iter().find(|link| match link.kind {
        LinkKind::Vxlan(vxlan) => !own.contains(&link.name) && vxlan.vni == asked.vni && vxlan.port == asked.port,
        _ => false,
    });
    Some(match in_the_way {
        None => Check::ok(PART, name, format!("none has VNI {} on UDP port {}", asked.vni, asked.port)),
        Some(link) => Check::failed(
            PART,
            name,
            format!("{} has VNI {} on UDP port {}, and the kernel allows only one", link.name, asked.vni, asked.port),
            format!("ip link delete {}, or another Backend.VNI or Backend.Port in every node's net-conf.json", link.name),
        ),
    })
}

/// Whether a VXLAN link can be made. `there` says that one is there that this program would use.
#[must_use]
pub fn vxlan(tried: Result<(), String>, unknown: Option<&str>, there: bool) -> Check {
    match (tried, unknown) {
        (Ok(()), None) => Check::ok(PART, "VXLAN", "a link can be made; tried in a network namespace of its own"),
        (Err(why), None) => Check::failed(
            PART,
            "VXLAN",
            format!("no link can be made: {why}"),
            "modprobe vxlan (some clouds' kernels have it in a package of its own, like linux-modules-extra)",
        ),
        (_, Some(_)) if there => Check::ok(PART, "VXLAN", "the link is there"),
        (_, Some(why)) => Check::not_checked(PART, "VXLAN", why),
    }
}

#[cfg(test)]
mod tests {
    use super::super::Outcome;
    use super::*;
    use crate::cluster::families::PerFamily;
    use crate::netlink::link::Vxlan;

    fn conf(text: &str) -> NetConf {
        NetConf::parse(text).expect("good")
    }

    fn external(mtu: u32) -> ExternalInterface {
        let local = PerFamily { v4: "192.0.2.7".parse().ok(), v6: None };
        ExternalInterface { index: 2, name: "eth0".into(), mtu, addresses: local, local, why: "it carries the Node's InternalIP".into() }
    }

    #[test]
    fn what_is_left_for_pods_is_told_and_too_little_is_a_failure() {
        let vxlan = conf(r#"{"Network":"10.244.0.0/16","Backend":{"Type":"vxlan"}}"#);
        let checks = interface(&Ok(external(1500)), &vxlan);
        assert_eq!(checks.iter().map(|check| check.outcome).collect::<Vec<_>>(), [Outcome::Ok, Outcome::Ok]);
        assert_eq!(checks[1].found, "1500 of eth0, which leaves 1450 for pods");
        assert_eq!(interface(&Ok(external(100)), &vxlan)[1].outcome, Outcome::Failed);
        let asked = conf(r#"{"Network":"10.244.0.0/16","Backend":{"Type":"vxlan","MTU":9000}}"#);
        assert_eq!(interface(&Ok(external(1500)), &asked)[1].outcome, Outcome::Warning);
        let none = interface(&Err(NoInterface::Default("no default route".into())), &vxlan);
        assert_eq!((none.len(), none[0].outcome), (1, Outcome::Failed));
    }

    #[test]
    fn a_tunnel_of_somebody_else_is_in_the_way() {
        let link = |name: &str, vni| Link {
            index: 3,
            name: name.into(),
            mac: None,
            mtu: 1450,
            up: true,
            master: None,
            kind: LinkKind::Vxlan(Vxlan { learning: true, ..Vxlan::new(vni, 8472) }),
            addresses: Vec::new(),
        };
        let vxlan = conf(r#"{"Network":"10.244.0.0/16","Backend":{"Type":"vxlan"}}"#);
        let outcome = |links: &[Link]| other_tunnels(links, &vxlan).expect("it is asked for").outcome;
        assert_eq!(outcome(&[link("flannel.1", 1), link("vxlan.calico", 4096)]), Outcome::Ok);
        assert_eq!(outcome(&[link("tunnel", 1)]), Outcome::Failed);
        assert_eq!(other_tunnels(&[link("tunnel", 1)], &conf(r#"{"Network":"10.244.0.0/16","Backend":{"Type":"host-gw"}}"#)), None);
    }

    #[test]
    fn a_link_that_is_there_needs_no_try() {
        assert_eq!(vxlan(Ok(()), Some("not root"), true).outcome, Outcome::Ok);
        assert_eq!(vxlan(Ok(()), Some("not root"), false).outcome, Outcome::NotChecked);
        assert_eq!(vxlan(Err("operation not supported".into()), None, true).outcome, Outcome::Failed);
    }
}
