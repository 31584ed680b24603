//! KubeProxyConfiguration `v1alpha1`: the fields the rules and their pace depend on (spec section 1.4).

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::Duration;

use ipnetwork::IpNetwork;
use serde::Deserialize;
use serde_json::Value;

use super::settings::{DetectLocal, NodePortAddresses, ProxySettings};
use crate::cluster::ip::{parse_cidr, parse_ip};

/// `apiVersion` of the configuration.
pub const API_VERSION: &str = "kubeproxy.config.k8s.io/v1alpha1";
/// `kind` of the configuration.
pub const KIND: &str = "KubeProxyConfiguration";

/// A setting that cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{field}: {cause}")]
pub struct BadSetting {
    /// The field, as the configuration spells it.
    pub field: String,
    /// What is wrong and what would be right.
    pub cause: String,
}

fn bad(field: impl Into<String>, cause: impl Into<String>) -> BadSetting {
    BadSetting { field: field.into(), cause: cause.into() }
}

/// The configuration as written. Fields that do not bear on the rules are accepted and left alone.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct KubeProxyConfiguration {
    /// Feature gates by name.
    #[serde(deserialize_with = "nullable")]
    pub feature_gates: BTreeMap<String, bool>,
    /// How to reach the API server.
    #[serde(deserialize_with = "nullable")]
    pub client_connection: ClientConnection,
    /// Overrides the host name as the node's name.
    #[serde(deserialize_with = "nullable")]
    pub hostname_override: String,
    /// Overrides the node's primary IP.
    #[serde(deserialize_with = "nullable")]
    pub bind_address: String,
    /// Proxy mode; only `iptables`.
    #[serde(deserialize_with = "nullable")]
    pub mode: String,
    /// Options of the iptables mode.
    #[serde(deserialize_with = "nullable")]
    pub iptables: IptablesConfiguration,
    /// ClusterCIDR, NodeCIDR, BridgeInterface or InterfaceNamePrefix.
    #[serde(deserialize_with = "nullable")]
    pub detect_local_mode: String,
    /// Names for the interface modes.
    #[serde(deserialize_with = "nullable")]
    pub detect_local: DetectLocalConfiguration,
    /// CIDRs of the pods, separated by commas: at most one per family.
    #[serde(rename = "clusterCIDR", deserialize_with = "nullable")]
    pub cluster_cidr: String,
    /// CIDRs, or the single word `primary`.
    #[serde(deserialize_with = "nullable")]
    pub node_port_addresses: Vec<String>,
}

/// Section `clientConnection`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct ClientConnection {
    /// Path of a kubeconfig; empty means in-cluster.
    #[serde(deserialize_with = "nullable")]
    pub kubeconfig: String,
}

/// Section `iptables`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct IptablesConfiguration {
    /// Bit of the packet mark; absent means 14.
    pub masquerade_bit: Option<i64>,
    /// Masquerade everything that goes to a cluster IP.
    #[serde(deserialize_with = "nullable")]
    pub masquerade_all: bool,
    /// NodePorts answer on loopback; absent means true.
    pub localhost_node_ports: Option<bool>,
    /// Go duration; zero or absent means 30s.
    #[serde(deserialize_with = "nullable")]
    pub sync_period: String,
    /// Go duration; zero or absent means: as fast as syncs are. (Upstream has 1s there; section 7.1.)
    #[serde(deserialize_with = "nullable")]
    pub min_sync_period: String,
}

/// Section `detectLocal`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct DetectLocalConfiguration {
    /// For mode BridgeInterface.
    #[serde(deserialize_with = "nullable")]
    pub bridge_interface: String,
    /// For mode InterfaceNamePrefix.
    #[serde(deserialize_with = "nullable")]
    pub interface_name_prefix: String,
}

/// `null` means absent, as everywhere in Kubernetes.
fn nullable<'de, D: serde::Deserializer<'de>, T: Deserialize<'de> + Default>(deserializer: D) -> Result<T, D::Error> {
    Ok(Option::deserialize(deserializer)?.unwrap_or_default())
}

impl KubeProxyConfiguration {
    /// Reads a configuration file, YAML or JSON.
    ///
    /// # Errors
    /// It is neither, of another kind, or a field has the wrong type.
    pub fn from_text(text: &str) -> Result<Self, BadSetting> {
        let value: Value =
            serde_saphyr::from_str(text).map_err(|error| bad("document", error.to_string().lines().next().unwrap_or_default()))?;
        let field = |name: &str| value.get(name).and_then(Value::as_str).unwrap_or_default();
        if (field("apiVersion"), field("kind")) != (API_VERSION, KIND) {
            return Err(bad("kind", format!("{:?} of apiVersion {:?}, not {KIND} of {API_VERSION}", field("kind"), field("apiVersion"))));
        }
        Self::from_value(&value)
    }

    /// Reads a configuration object.
    ///
    /// # Errors
    /// A field of the wrong type, by its path.
    pub fn from_value(value: &Value) -> Result<Self, BadSetting> {
        serde_path_to_error::deserialize(value).map_err(|error| bad(error.path().to_string(), error.inner().to_string()))
    }

    /// Resolves it: defaults filled in, texts parsed.
    ///
    /// # Errors
    /// The first setting that makes no sense.
    pub fn resolve(&self) -> Result<ProxySettings, BadSetting> {
        let defaults = ProxySettings::default();
        if !matches!(self.mode.as_str(), "" | "iptables") {
            return Err(bad("mode", format!("{:?} is not supported, only iptables is", self.mode)));
        }
        let bit = self.iptables.masquerade_bit.unwrap_or(i64::from(defaults.masquerade_bit));
        let masquerade_bit = u8::try_from(bit).ok().filter(|bit| *bit <= 31);
        Ok(ProxySettings {
            detect_local: self.detect_local()?,
            node_port_addresses: self.node_port_addresses()?,
            masquerade_all: self.iptables.masquerade_all,
            masquerade_bit: masquerade_bit
                .ok_or_else(|| bad("iptables.masqueradeBit", format!("{bit} is not within the range [0, 31]")))?,
            localhost_node_ports: self.iptables.localhost_node_ports.unwrap_or(defaults.localhost_node_ports),
            allow_external_ips: self.feature_gates.get("AllowServiceExternalIPs").copied().unwrap_or(defaults.allow_external_ips),
            bind_address: self.bind_address()?,
            sync_period: duration("iptables.syncPeriod", &self.iptables.sync_period)?.unwrap_or(defaults.sync_period),
            min_sync_period: duration("iptables.minSyncPeriod", &self.iptables.min_sync_period)?,
        })
    }

    /// This node's name, if the configuration says it: trimmed and in lower case.
    #[must_use]
    pub fn node_name(&self) -> Option<String> {
        let name = self.hostname_override.trim().to_lowercase();
        (!name.is_empty()).then_some(name)
    }

    fn bind_address(&self) -> Result<Option<IpAddr>, BadSetting> {
        match self.bind_address.as_str() {
            "" => Ok(None),
            text => parse_ip(text).map(Some).ok_or_else(|| bad("bindAddress", format!("{text:?} is not an IP address"))),
        }
    }

    fn detect_local(&self) -> Result<DetectLocal, BadSetting> {
        let interface = |field: &str, name: &str| match name {
            "" => Err(bad(field, "must not be empty in this detectLocalMode")),
            name if name.len() <= 15 && name.bytes().all(|b| b.is_ascii_graphic() && !matches!(b, b'"' | b'\'' | b'/' | b'\\' | b'+')) => {
                Ok(name.to_owned())
            }
            name => Err(bad(field, format!("{name:?} is not the name of an interface"))),
        };
        match self.detect_local_mode.as_str() {
            "" | "ClusterCIDR" => Ok(DetectLocal::ClusterCidr(self.cluster_cidrs()?)),
            "NodeCIDR" => Ok(DetectLocal::NodeCidr),
            "BridgeInterface" => {
                Ok(DetectLocal::BridgeInterface(interface("detectLocal.bridgeInterface", &self.detect_local.bridge_interface)?))
            }
            "InterfaceNamePrefix" => Ok(DetectLocal::InterfaceNamePrefix(interface(
                "detectLocal.interfaceNamePrefix",
                &self.detect_local.interface_name_prefix,
            )?)),
            other => {
                Err(bad("detectLocalMode", format!("{other:?} is none of ClusterCIDR, NodeCIDR, BridgeInterface, InterfaceNamePrefix")))
            }
        }
    }

    fn cluster_cidrs(&self) -> Result<Vec<IpNetwork>, BadSetting> {
        let texts = self.cluster_cidr.split(',').map(str::trim).filter(|text| !text.is_empty());
        texts
            .map(|text| parse_cidr(text).ok_or_else(|| bad("clusterCIDR", format!("{text:?} is not a CIDR block (like 10.100.0.0/16)"))))
            .collect()
    }

    fn node_port_addresses(&self) -> Result<NodePortAddresses, BadSetting> {
        let texts = &self.node_port_addresses;
        if texts.as_slice() == ["primary"] {
            return Ok(NodePortAddresses::Primary);
        }
        let cidr = |(i, text): (usize, &String)| {
            let cause = if text == "primary" { "can't use both 'primary' and CIDRs".into() } else { format!("{text:?} is not a CIDR") };
            parse_cidr(text.trim()).ok_or_else(|| bad(format!("nodePortAddresses[{i}]"), cause))
        };
        texts.iter().enumerate().map(cidr).collect::<Result<_, _>>().map(NodePortAddresses::Cidrs)
    }
}

/// A Go duration (`1h2m3.5s`, `300ms`, `0`); zero and empty come back as `None`.
fn duration(field: &str, text: &str) -> Result<Option<Duration>, BadSetting> {
    if text.is_empty() {
        return Ok(None);
    }
    let wrong = || bad(field, format!("{text:?} is not a duration (like 30s or 1m30s)"));
    parse_duration(text).map(|found| (!found.is_zero()).then_some(found)).ok_or_else(wrong)
}

/// Reads a non-negative Go duration.
#[must_use]
pub fn parse_duration(text: &str) -> Option<Duration> {
    let mut rest = text.strip_prefix('+').unwrap_or(text);
    if rest == "0" {
        return Some(Duration::ZERO);
    }
    if rest.is_empty() {
        return None;
    }
    let mut total = 0.0;
    while !rest.is_empty() {
        let number = rest.find(|c: char| !c.is_ascii_digit() && c != '.')?;
        let (digits, tail) = rest.split_at(number);
        let unit = tail.find(|c: char| c.is_ascii_digit() || c == '.').unwrap_or(tail.len());
        let (name, tail) = tail.split_at(unit);
        let seconds = match name {
            "ns" => 1e-9,
            "us" | "µs" | "μs" => 1e-6,
            "ms" => 1e-3,
            "s" => 1.0,
            "m" => 60.0,
            "h" => 3600.0,
            _ => return None,
        };
        total += digits.parse::<f64>().ok()? * seconds;
        rest = tail;
    }
    Duration::try_from_secs_f64(total).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn resolve(json: &str) -> Result<ProxySettings, String> {
        let value = serde_json::from_str(json).expect("JSON");
        KubeProxyConfiguration::from_value(&value).and_then(|config| config.resolve()).map_err(|error| error.to_string())
    }

    #[test]
    fn an_empty_configuration_is_the_defaults() {
        assert_eq!(resolve("{}"), Ok(ProxySettings::default()));
        assert_eq!(
            resolve(r#"{"detectLocal": null, "nodePortAddresses": null, "iptables": {"minSyncPeriod": "0s", "syncPeriod": ""}}"#),
            Ok(ProxySettings::default())
        );
    }

    #[test]
    fn fields_are_read() {
        let settings = resolve(
            r#"{"clusterCIDR": "10.1.2.3/16, fd00::/64", "nodePortAddresses": ["primary"], "bindAddress": "::",
                "iptables": {"masqueradeBit": 0, "localhostNodePorts": false, "syncPeriod": "1m30s", "minSyncPeriod": "250ms"},
                "featureGates": {"AllowServiceExternalIPs": false}, "portRange": ""}"#,
        )
        .expect("settings");
        assert_eq!(
            settings.detect_local,
            DetectLocal::ClusterCidr(vec!["10.1.0.0/16".parse().expect("CIDR"), "fd00::/64".parse().expect("CIDR")])
        );
        assert_eq!(settings.node_port_addresses, NodePortAddresses::Primary);
        assert_eq!((settings.masquerade_bit, settings.localhost_node_ports, settings.allow_external_ips), (0, false, false));
        assert_eq!((settings.sync_period, settings.min_sync_period), (Duration::from_secs(90), Some(Duration::from_millis(250))));
    }

    #[test]
    fn nonsense_is_refused_by_name() {
        for (json, want) in [
            (r#"{"mode": "ipvs"}"#, "mode: \"ipvs\" is not supported, only iptables is"),
            (r#"{"iptables": {"masqueradeBit": 32}}"#, "iptables.masqueradeBit: 32 is not within the range [0, 31]"),
            (r#"{"detectLocalMode": "BridgeInterface"}"#, "detectLocal.bridgeInterface: must not be empty in this detectLocalMode"),
            (r#"{"nodePortAddresses": ["10.0.0.0/8", "primary"]}"#, "nodePortAddresses[1]: can't use both 'primary' and CIDRs"),
            (r#"{"iptables": {"syncPeriod": "soon"}}"#, "iptables.syncPeriod: \"soon\" is not a duration (like 30s or 1m30s)"),
        ] {
            assert_eq!(resolve(json).expect_err(json), want);
        }
        assert!(
            resolve(r#"{"iptables": {"masqueradeAll": "yes"}}"#).expect_err("a word is no bool").starts_with("iptables.masqueradeAll: ")
        );
    }
}
