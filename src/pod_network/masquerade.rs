//! The input of the pod network's masquerade and forward rules [flannel 8]. PURE. [`crate::proxy::rules::pod_network`] renders them.

use ipnetwork::IpNetwork;

use super::net_conf::NetConf;
use super::own_lease::OwnLease;
use super::settings::NetworkSettings;
use crate::cluster::Family;
use crate::cluster::pod_rules::{PodRanges, PodRules};

/// The rules for these settings and this node's subnets.
#[must_use]
pub fn pod_rules(settings: &NetworkSettings, conf: &NetConf, own: &OwnLease) -> PodRules {
    let of_family =
        |(family, network): (Family, &IpNetwork)| Some((family, PodRanges { network: *network, subnet: *own.subnets.get(family)? }));
    PodRules {
        ranges: conf.networks.iter().filter_map(of_family).collect(),
        masquerade: settings.masquerade,
        random_fully: settings.random_fully,
        forward: settings.forward_rules,
    }
}
