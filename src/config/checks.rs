//! Configurations that are well-formed and yet cannot be meant: what is said about them at the start (spec section 1.6).

use std::net::SocketAddr;

use ipnetwork::IpNetwork;

use super::effective::Effective;
use crate::cluster::Family;
use crate::cluster::ip::parse_cidr;
use crate::proxy::settings::{DetectLocal, NodePortAddresses};

/// What is wrong between a configuration and the families of the node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mismatch {
    /// What.
    pub what: String,
    /// The program cannot do its work like this.
    pub fatal: bool,
}

/// Checks a configuration against the node's primary family, the families that run, and the Node's pod CIDRs.
#[must_use]
pub fn mismatches(effective: &Effective, primary: Family, families: &[Family], pod_cidrs: &[IpNetwork]) -> Vec<Mismatch> {
    let single = families.len() == 1;
    let other = primary.other();
    let cluster = if single { format!("{primary_name}-only", primary_name = name(primary)) } else { format!("{}-primary", name(primary)) };
    let mut found = Vec::new();
    let all_other = |cidrs: &[IpNetwork]| !cidrs.is_empty() && cidrs.iter().all(|cidr| Family::of_net(*cidr) == other);
    let cluster_cidrs: Vec<IpNetwork> = effective.config.cluster_cidr.split(',').filter_map(|text| parse_cidr(text.trim())).collect();
    if all_other(&cluster_cidrs) {
        let fatal = single && matches!(effective.proxy.detect_local, DetectLocal::ClusterCidr(_));
        found.push(Mismatch { what: format!("cluster is {cluster} but clusterCIDRs contains only {} addresses", name(other)), fatal });
    }
    if all_other(pod_cidrs) {
        let fatal = effective.proxy.detect_local == DetectLocal::NodeCidr;
        found
            .push(Mismatch { what: format!("cluster is {cluster} but node.spec.podCIDRs contains only {} addresses", name(other)), fatal });
    }
    let of_other = |address: &SocketAddr| !address.ip().is_unspecified() && Family::of(address.ip()) == other;
    for (field, address) in
        [("healthzBindAddress", effective.daemon.healthz.as_ref()), ("metricsBindAddress", Some(&effective.daemon.metrics))]
    {
        if single && address.is_some_and(of_other) {
            found.push(Mismatch { what: format!("cluster is {cluster} but {field} is {}", name(other)), fatal: false });
        }
    }
    found
}

/// What an operator may not have thought of; none of it is wrong.
#[must_use]
pub fn advice(effective: &Effective, primary: Family, families: &[Family]) -> Option<String> {
    let NodePortAddresses::Cidrs(cidrs) = &effective.proxy.node_port_addresses else { return None };
    let has = |family| cidrs.iter().any(|cidr| Family::of_net(*cidr) == family);
    if cidrs.is_empty() {
        return Some(
            "nodePortAddresses is not set, so NodePorts answer on every address of this node; `nodePortAddresses: [primary]` limits them \
             to the node's own"
                .into(),
        );
    }
    let lacking = [primary, primary.other()].into_iter().find(|family| families.contains(family) && !has(*family))?;
    Some(format!("nodePortAddresses has no {} CIDR, so {} NodePorts answer on every address of this node", name(lacking), name(lacking)))
}

const fn name(family: Family) -> &'static str {
    match family {
        Family::V4 => "IPv4",
        Family::V6 => "IPv6",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::flags::RunFlags;

    fn effective(change: impl FnOnce(&mut RunFlags)) -> Effective {
        let mut flags = crate::config::flags::tests::defaults();
        change(&mut flags);
        Effective::new(&flags).expect("good flags")
    }

    #[test]
    fn families_that_do_not_fit_are_named() {
        let v6_cidr = effective(|flags| flags.proxy.cluster_cidr = "fd00::/64".into());
        let what = "cluster is IPv4-only but clusterCIDRs contains only IPv6 addresses".to_owned();
        assert_eq!(mismatches(&v6_cidr, Family::V4, &[Family::V4], &[]), [Mismatch { what, fatal: true }]);
        let what = "cluster is IPv4-primary but clusterCIDRs contains only IPv6 addresses".to_owned();
        assert_eq!(mismatches(&v6_cidr, Family::V4, &Family::ALL, &[]), [Mismatch { what, fatal: false }]);
        assert_eq!(mismatches(&v6_cidr, Family::V6, &[Family::V6], &[]).len(), 1, "metricsBindAddress is IPv4");

        let node_cidr = effective(|flags| flags.proxy.detect_local_mode = "NodeCIDR".into());
        let what = "cluster is IPv4-primary but node.spec.podCIDRs contains only IPv6 addresses".to_owned();
        let cidr = "fd00::/64".parse().expect("CIDR");
        assert_eq!(mismatches(&node_cidr, Family::V4, &Family::ALL, &[cidr]), [Mismatch { what, fatal: true }]);

        let addresses = effective(|flags| {
            flags.proxy.healthz_bind_address = "[fd00::1]:10256".into();
            flags.proxy.metrics_bind_address = "[::]:10249".into();
        });
        let what = "cluster is IPv4-only but healthzBindAddress is IPv6".to_owned();
        assert_eq!(mismatches(&addresses, Family::V4, &[Family::V4], &[]), [Mismatch { what, fatal: false }]);
        assert_eq!(mismatches(&addresses, Family::V4, &Family::ALL, &[]), []);
    }

    #[test]
    fn node_ports_that_are_open_are_told() {
        let told = |texts: &[&str], families: &[Family]| {
            let with = effective(|flags| flags.proxy.nodeport_addresses = texts.iter().map(|text| (*text).to_owned()).collect());
            advice(&with, Family::V4, families)
        };
        assert!(told(&[], &Family::ALL).is_some_and(|text| text.starts_with("nodePortAddresses is not set")));
        assert_eq!(told(&["primary"], &Family::ALL), None);
        assert!(told(&["10.0.0.0/8"], &Family::ALL).is_some_and(|text| text.contains("no IPv6 CIDR")));
        assert_eq!(told(&["10.0.0.0/8"], &[Family::V4]), None);
        assert!(told(&["fd00::/8"], &[Family::V4]).is_some_and(|text| text.contains("no IPv4 CIDR")));
    }
}
