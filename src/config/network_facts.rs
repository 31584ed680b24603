//! `NetworkFacts` (`sepal/v1alpha1`): a node's part of the pod network, written down, so that its rules can be rendered anywhere.

use ipnetwork::IpNetwork;
use serde::Deserialize;
use serde_json::Value;

use crate::bad_setting::BadSetting;
use crate::cluster::Family;
use crate::cluster::families::PerFamily;
use crate::cluster::ip::parse_cidr;
use crate::cluster::pod_rules::{PodRanges, PodRules};

/// `kind` of the object; its `apiVersion` is that of `HostFacts`.
pub const KIND: &str = "NetworkFacts";

/// A node's part of the pod network, as far as rules depend on it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NetworkFacts {
    /// What the rules are made from.
    pub rules: PodRules,
    /// The service proxy is somebody else's.
    pub without_proxy: bool,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Written {
    networks: Vec<String>,
    subnets: Vec<String>,
    ip_masq: bool,
    ip_masq_fully_random_disable: bool,
    iptables_forward_rules: bool,
    proxy: bool,
}

impl Default for Written {
    /// The defaults of flags.
    fn default() -> Self {
        Self {
            networks: Vec::new(),
            subnets: Vec::new(),
            ip_masq: false,
            ip_masq_fully_random_disable: false,
            iptables_forward_rules: true,
            proxy: true,
        }
    }
}

impl NetworkFacts {
    /// Reads the object.
    ///
    /// # Errors
    /// A field of the wrong type, or one that makes no sense, by its path.
    pub fn from_value(value: &Value) -> Result<Self, BadSetting> {
        let read: Result<Option<Written>, _> = serde_path_to_error::deserialize(value.get("network").unwrap_or(&Value::Null));
        let written = read.map_err(|error| BadSetting { field: format!("network.{}", error.path()), cause: error.inner().to_string() })?;
        let written = written.unwrap_or_default();
        let networks = cidrs("network.networks", &written.networks)?;
        let subnets = cidrs("network.subnets", &written.subnets)?;
        let ranges =
            |(family, network): (Family, &IpNetwork)| Some((family, PodRanges { network: *network, subnet: *subnets.get(family)? }));
        let rules = PodRules {
            ranges: networks.iter().filter_map(ranges).collect(),
            masquerade: written.ip_masq,
            random_fully: !written.ip_masq_fully_random_disable,
            forward: written.iptables_forward_rules,
        };
        Ok(Self { rules, without_proxy: !written.proxy })
    }
}

fn cidrs(field: &str, texts: &[String]) -> Result<PerFamily<IpNetwork>, BadSetting> {
    let cidr = |text: &String| {
        let net = parse_cidr(text).ok_or_else(|| BadSetting { field: field.into(), cause: format!("{text:?} is not a CIDR") })?;
        Ok((Family::of_net(net), net))
    };
    texts.iter().map(cidr).collect()
}
