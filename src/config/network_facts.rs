//! `NetworkFacts` (`sepal/v1alpha1`): a manifest with a node's part of the pod network, so that another host can compute its rules.

use ipnetwork::IpNetwork;
use serde::Deserialize;
use serde_json::Value;

use crate::bad_setting::BadSetting;
use crate::cluster::Family;
use crate::cluster::families::PerFamily;
use crate::cluster::ip::parse_cidr;
use crate::cluster::pod_rules::{PodRanges, PodRules};
use crate::pod_network::settings::defaults;

/// `kind` of the object; its `apiVersion` is that of `HostFacts`.
pub(crate) const KIND: &str = "NetworkFacts";

/// A node's part of the pod network that rules depend on.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NetworkFacts {
    /// The input of the pod network's rules.
    pub rules: PodRules,
    /// Another program runs the service proxy.
    pub without_proxy: bool,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct NetworkFields {
    networks: Vec<String>,
    subnets: Vec<String>,
    ip_masq: bool,
    ip_masq_fully_random_disable: bool,
    iptables_forward_rules: bool,
    proxy: bool,
}

impl Default for NetworkFields {
    /// The defaults of the flags.
    fn default() -> Self {
        Self {
            networks: Vec::new(),
            subnets: Vec::new(),
            ip_masq: defaults::MASQUERADE,
            ip_masq_fully_random_disable: !defaults::RANDOM_FULLY,
            iptables_forward_rules: defaults::FORWARD_RULES,
            proxy: true,
        }
    }
}

impl NetworkFacts {
    /// Reads the object.
    ///
    /// # Errors
    /// A field is invalid or has the wrong type. The error has its path.
    pub(crate) fn from_value(value: &Value) -> Result<Self, BadSetting> {
        let read: Result<Option<NetworkFields>, _> = serde_path_to_error::deserialize(value.get("network").unwrap_or(&Value::Null));
        let fields = read.map_err(|error| BadSetting { field: format!("network.{}", error.path()), cause: error.inner().to_string() })?;
        let fields = fields.unwrap_or_default();
        let networks = cidrs("network.networks", &fields.networks)?;
        let subnets = cidrs("network.subnets", &fields.subnets)?;
        let ranges =
            |(family, network): (Family, &IpNetwork)| Some((family, PodRanges { network: *network, subnet: *subnets.get(family)? }));
        let rules = PodRules {
            ranges: networks.iter().filter_map(ranges).collect(),
            masquerade: fields.ip_masq,
            random_fully: !fields.ip_masq_fully_random_disable,
            forward: fields.iptables_forward_rules,
        };
        Ok(Self { rules, without_proxy: !fields.proxy })
    }
}

fn cidrs(field: &str, texts: &[String]) -> Result<PerFamily<IpNetwork>, BadSetting> {
    let cidr = |text: &String| {
        let net = parse_cidr(text).ok_or_else(|| BadSetting { field: field.into(), cause: format!("{text:?} is not a CIDR") })?;
        Ok((Family::of_net(net), net))
    };
    texts.iter().map(cidr).collect()
}
