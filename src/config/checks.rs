//! Checks a valid configuration against the families of the node, and logs what the operator probably did not mean [kube-proxy 1.6].

use std::net::SocketAddr;

use ipnetwork::IpNetwork;

use super::effective::EffectiveConfig;
use crate::cluster::Family;
use crate::cluster::ip::parse_cidr;
use crate::proxy::settings::{DetectLocal, NodePortAddresses};

/// A setting that does not fit the families of the node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mismatch {
    /// The text for the log.
    pub text: String,
    /// The program cannot work with this setting.
    pub fatal: bool,
}

/// Compares a configuration with the node's primary family, the families that run, and the Node's pod CIDRs.
#[must_use]
pub(crate) fn find_mismatches(effective: &EffectiveConfig, primary: Family, families: &[Family], pod_cidrs: &[IpNetwork]) -> Vec<Mismatch> {
    let single = families.len() == 1;
    let other = primary.other();
    let cluster = format!("{}-{}", primary.proper_name(), if single { "only" } else { "primary" });
    let mut found = Vec::new();
    let all_other = |cidrs: &[IpNetwork]| !cidrs.is_empty() && cidrs.iter().all(|cidr| Family::of_net(*cidr) == other);
    let cluster_cidrs: Vec<IpNetwork> = effective.config.cluster_cidr.split(',').filter_map(|text| parse_cidr(text.trim())).collect();
    if all_other(&cluster_cidrs) {
        let fatal = single && matches!(effective.proxy.detect_local, DetectLocal::ClusterCidr(_));
        found.push(Mismatch {
            text: format!("cluster is {cluster} but clusterCIDRs contains only {} addresses", other.proper_name()),
            fatal,
        });
    }
    if all_other(pod_cidrs) {
        let fatal = effective.proxy.detect_local == DetectLocal::NodeCidr;
        found.push(Mismatch {
            text: format!("cluster is {cluster} but node.spec.podCIDRs contains only {} addresses", other.proper_name()),
            fatal,
        });
    }
    let is_other = |address: &SocketAddr| !address.ip().is_unspecified() && Family::of(address.ip()) == other;
    for (field, address) in
        [("healthzBindAddress", effective.daemon.healthz.as_ref()), ("metricsBindAddress", Some(&effective.daemon.metrics))]
    {
        if single && address.is_some_and(is_other) {
            found.push(Mismatch { text: format!("cluster is {cluster} but {field} is {}", other.proper_name()), fatal: false });
        }
    }
    found
}

/// Advice about `nodePortAddresses`, if NodePorts answer on every address of a family.
#[must_use]
pub(crate) fn node_port_advice(effective: &EffectiveConfig, primary: Family, families: &[Family]) -> Option<String> {
    let NodePortAddresses::Cidrs(cidrs) = &effective.proxy.node_port_addresses else { return None };
    let has = |family| cidrs.iter().any(|cidr| Family::of_net(*cidr) == family);
    if cidrs.is_empty() {
        return Some(
            "nodePortAddresses is not set, so NodePorts answer on every address of this node; `nodePortAddresses: [primary]` limits them \
             to the node's own"
                .into(),
        );
    }
    let missing = [primary, primary.other()].into_iter().find(|family| families.contains(family) && !has(*family))?;
    let name = missing.proper_name();
    Some(format!("nodePortAddresses has no {name} CIDR, so {name} NodePorts answer on every address of this node"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::flags::RunFlags;

    fn effective(change: impl FnOnce(&mut RunFlags)) -> EffectiveConfig {
        let mut flags = crate::config::flags::tests::defaults();
        change(&mut flags);
        EffectiveConfig::new(&flags).expect("good flags")
    }

    #[test]
    fn settings_of_the_wrong_family_are_reported() {
        let v6_cidr = effective(|flags| flags.proxy.cluster_cidr = "fd00::/64".into());
        let text = "cluster is IPv4-only but clusterCIDRs contains only IPv6 addresses".to_owned();
        assert_eq!(find_mismatches(&v6_cidr, Family::V4, &[Family::V4], &[]), [Mismatch { text, fatal: true }]);
        let text = "cluster is IPv4-primary but clusterCIDRs contains only IPv6 addresses".to_owned();
        assert_eq!(find_mismatches(&v6_cidr, Family::V4, &Family::ALL, &[]), [Mismatch { text, fatal: false }]);
        assert_eq!(find_mismatches(&v6_cidr, Family::V6, &[Family::V6], &[]).len(), 1, "metricsBindAddress is IPv4");

        let node_cidr = effective(|flags| flags.proxy.detect_local_mode = "NodeCIDR".into());
        let text = "cluster is IPv4-primary but node.spec.podCIDRs contains only IPv6 addresses".to_owned();
        let cidr = "fd00::/64".parse().expect("CIDR");
        assert_eq!(find_mismatches(&node_cidr, Family::V4, &Family::ALL, &[cidr]), [Mismatch { text, fatal: true }]);

        let addresses = effective(|flags| {
            flags.proxy.healthz_bind_address = "[fd00::1]:10256".into();
            flags.proxy.metrics_bind_address = "[::]:10249".into();
        });
        let text = "cluster is IPv4-only but healthzBindAddress is IPv6".to_owned();
        assert_eq!(find_mismatches(&addresses, Family::V4, &[Family::V4], &[]), [Mismatch { text, fatal: false }]);
        assert_eq!(find_mismatches(&addresses, Family::V4, &Family::ALL, &[]), []);
    }

    #[test]
    fn node_ports_that_answer_everywhere_are_reported() {
        let advice = |texts: &[&str], families: &[Family]| {
            let with = effective(|flags| flags.proxy.nodeport_addresses = texts.iter().map(|text| (*text).to_owned()).collect());
            node_port_advice(&with, Family::V4, families)
        };
        assert!(advice(&[], &Family::ALL).is_some_and(|text| text.starts_with("nodePortAddresses is not set")));
        assert_eq!(advice(&["primary"], &Family::ALL), None);
        assert!(advice(&["10.0.0.0/8"], &Family::ALL).is_some_and(|text| text.contains("no IPv6 CIDR")));
        assert_eq!(advice(&["10.0.0.0/8"], &[Family::V4]), None);
        assert!(advice(&["fd00::/8"], &[Family::V4]).is_some_and(|text| text.contains("no IPv4 CIDR")));
    }
}
