//! Checks of the pod network: the external interface, the MTU, and VXLAN.

use crate::netlink::link::{Link, LinkKind};
use crate::pod_network::interface::{ExternalInterface, NoInterface};
use crate::pod_network::mtu::compute_mtu;
use crate::pod_network::net_conf::NetConf;
use crate::pod_network::vxlan::link_name;

use super::{Check, CheckGroup};

const GROUP: CheckGroup = CheckGroup::PodNetwork;

/// Checks the external interface, and the MTU that it leaves for pods.
#[must_use]
pub(crate) fn interface(selected: &Result<ExternalInterface, NoInterface>, conf: &NetConf) -> Vec<Check> {
    let external = match selected {
        Ok(external) => external,
        Err(error) => {
            let cure = "set --iface, --iface-regex or --iface-can-reach, or give the node an address";
            return vec![Check::failed(GROUP, "external interface", error.to_string(), cure)];
        }
    };
    let addresses: Vec<String> = external.local.iter().map(|(_, ip)| ip.to_string()).collect();
    let found = format!("{} with {}: {}", external.name, addresses.join(" and "), external.why);
    let mut checks = vec![Check::ok(GROUP, "external interface", found)];
    if let (None, Err(error)) = (conf.backend.vxlan(), external.check_host_gw()) {
        checks.push(Check::failed(GROUP, "host-gw", error.to_string(), ""));
    }
    checks.push(match compute_mtu(conf, external.mtu) {
        Ok(mtu) => match mtu.too_large {
            Some(configured) => Check::warning(
                GROUP,
                "MTU",
                format!("net-conf.json sets {configured}, but {} has MTU {}: pods get {}", external.name, external.mtu, mtu.pods),
                "set Backend.MTU to a value that the interfaces of all nodes allow, or remove it",
            ),
            None => Check::ok(GROUP, "MTU", format!("{} of {}, which leaves {} for pods", external.mtu, external.name, mtu.pods)),
        },
        Err(error) => Check::failed(GROUP, "MTU", error.to_string(), ""),
    });
    checks
}

/// Checks that no other link has the VNI and the port of our VXLAN link.
#[must_use]
pub(crate) fn other_tunnels(links: &[Link], conf: &NetConf) -> Option<Check> {
    let desired = conf.backend.vxlan()?;
    let own: Vec<String> = conf.networks.families().map(|family| link_name(family, desired.vni)).collect();
    let name = "other VXLAN links";
    let conflict = links.iter().find(|link| match link.kind {
        LinkKind::Vxlan(vxlan) => !own.contains(&link.name) && vxlan.vni == desired.vni && vxlan.port == desired.port,
        _ => false,
    });
    Some(match conflict {
        None => Check::ok(GROUP, name, format!("none has VNI {} on UDP port {}", desired.vni, desired.port)),
        Some(link) => Check::failed(
            GROUP,
            name,
            format!("{} has VNI {} on UDP port {}, and the kernel allows only one", link.name, desired.vni, desired.port),
            format!("ip link delete {}, or set another Backend.VNI or Backend.Port in every node's net-conf.json", link.name),
        ),
    })
}

/// Checks that a VXLAN link can be created. If it could not be tried, `unknown` is the reason. `exists` is true if our link already exists.
#[must_use]
pub(crate) fn vxlan(tried: Result<(), String>, unknown: Option<&str>, exists: bool) -> Check {
    match (tried, unknown) {
        (Ok(()), None) => Check::ok(GROUP, "VXLAN", "a link can be created; tried in a network namespace of its own"),
        (Err(why), None) => Check::failed(
            GROUP,
            "VXLAN",
            format!("no link can be created: {why}"),
            "modprobe vxlan (kernels of some clouds need an extra package for it, such as linux-modules-extra)",
        ),
        (_, Some(_)) if exists => Check::ok(GROUP, "VXLAN", "the link exists"),
        (_, Some(why)) => Check::not_checked(GROUP, "VXLAN", why),
    }
}

#[cfg(test)]
mod tests {
    use super::super::CheckOutcome;
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
    fn the_mtu_of_pods_is_reported_and_too_small_a_value_fails() {
        let vxlan = conf(r#"{"Network":"10.244.0.0/16","Backend":{"Type":"vxlan"}}"#);
        let checks = interface(&Ok(external(1500)), &vxlan);
        assert_eq!(checks.iter().map(|check| check.outcome).collect::<Vec<_>>(), [CheckOutcome::Ok, CheckOutcome::Ok]);
        assert_eq!(checks[1].found, "1500 of eth0, which leaves 1450 for pods");
        assert_eq!(interface(&Ok(external(100)), &vxlan)[1].outcome, CheckOutcome::Failed);
        let asked = conf(r#"{"Network":"10.244.0.0/16","Backend":{"Type":"vxlan","MTU":9000}}"#);
        assert_eq!(interface(&Ok(external(1500)), &asked)[1].outcome, CheckOutcome::Warning);
        let none = interface(&Err(NoInterface::Default("no default route".into())), &vxlan);
        assert_eq!((none.len(), none[0].outcome), (1, CheckOutcome::Failed));
    }

    #[test]
    fn a_link_of_another_program_with_the_same_vni_and_port_fails() {
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
        let outcome = |links: &[Link]| other_tunnels(links, &vxlan).expect("VXLAN").outcome;
        assert_eq!(outcome(&[link("flannel.1", 1), link("vxlan.calico", 4096)]), CheckOutcome::Ok);
        assert_eq!(outcome(&[link("tunnel", 1)]), CheckOutcome::Failed);
        assert_eq!(other_tunnels(&[link("tunnel", 1)], &conf(r#"{"Network":"10.244.0.0/16","Backend":{"Type":"host-gw"}}"#)), None);
    }

    #[test]
    fn an_existing_link_needs_no_trial() {
        assert_eq!(vxlan(Ok(()), Some("not root"), true).outcome, CheckOutcome::Ok);
        assert_eq!(vxlan(Ok(()), Some("not root"), false).outcome, CheckOutcome::NotChecked);
        assert_eq!(vxlan(Err("operation not supported".into()), None, true).outcome, CheckOutcome::Failed);
    }
}
