//! The configuration of the plugin `portmap` [flannel 10.5]. PURE.

use std::fmt;
use std::net::IpAddr;

use serde::Deserialize;

use crate::cluster::Family;
use crate::cni::error::{CniError, ErrorCode};
use crate::cni::network_config::NetworkConfig;

/// The default bit of the mark.
const MARK_BIT: i64 = 13;
/// The longest chain name that iptables accepts, in bytes.
const CHAIN_LEN: usize = 28;

/// A protocol with ports.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum PortProtocol {
    /// SCTP
    Sctp,
    /// TCP
    Tcp,
    /// UDP
    Udp,
}

impl PortProtocol {
    /// Returns its name in rules.
    pub(super) const fn as_str(self) -> &'static str {
        match self {
            Self::Sctp => "sctp",
            Self::Tcp => "tcp",
            Self::Udp => "udp",
        }
    }

    /// Finds a protocol by its name.
    pub(super) fn named(name: &str) -> Option<Self> {
        [Self::Sctp, Self::Tcp, Self::Udp].into_iter().find(|protocol| protocol.as_str().eq_ignore_ascii_case(name))
    }
}

/// A port mapping: a port of the host that leads to a container.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Mapping {
    /// The host's port.
    pub host_port: u16,
    /// The container's port.
    pub container_port: u16,
    /// The protocol.
    pub protocol: PortProtocol,
    /// The host address. The unspecified address means all addresses of its family; `None` means all addresses of both families.
    pub host_ip: Option<IpAddr>,
}

impl Mapping {
    /// Returns true if the mapping applies to a family.
    pub(super) fn is_for(&self, family: Family) -> bool {
        self.host_ip.is_none_or(|ip| Family::of(ip) == family)
    }

    /// Returns the host address, if it is a single one.
    pub(super) fn address(&self) -> Option<IpAddr> {
        self.host_ip.filter(|ip| !ip.is_unspecified())
    }
}

impl fmt::Display for Mapping {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.host_port, self.protocol.as_str())?;
        self.address().map_or(Ok(()), |ip| write!(f, " of {ip}"))
    }
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Keys {
    backend: String,
    snat: Option<bool>,
    masq_all: bool,
    mark_masq_bit: Option<i64>,
    external_set_mark_chain: Option<String>,
    #[serde(rename = "conditionsV4")]
    conditions_v4: Vec<String>,
    #[serde(rename = "conditionsV6")]
    conditions_v6: Vec<String>,
    runtime_config: Runtime,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Runtime {
    port_mappings: Vec<PortEntry>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct PortEntry {
    host_port: i64,
    container_port: i64,
    protocol: String,
    #[serde(rename = "hostIP")]
    host_ip: String,
}

impl PortEntry {
    fn mapping(&self) -> Result<Mapping, String> {
        let port = |what: &str, port: i64| match u16::try_from(port) {
            Ok(port) if port > 0 => Ok(port),
            _ => Err(format!("Invalid {what} port number: {port}")),
        };
        let host_ip = match self.host_ip.as_str() {
            "" => None,
            text => Some(text.parse::<IpAddr>().map_err(|_| format!("hostIP {text:?} is not an IP address"))?),
        };
        Ok(Mapping {
            host_port: port("host", self.host_port)?,
            container_port: port("container", self.container_port)?,
            protocol: PortProtocol::named(&self.protocol).ok_or_else(|| format!("protocol {:?} has no ports to map", self.protocol))?,
            host_ip,
        })
    }
}

/// The configuration of the plugin.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct PortmapConfig {
    /// The port mappings.
    pub mappings: Vec<Mapping>,
    /// Packets from some sources are masqueraded (`snat`).
    pub snat: bool,
    /// Packets from all sources are masqueraded (`masqAll`).
    pub masquerade_all: bool,
    /// The mark of packets to masquerade.
    pub mark: u32,
    /// A chain of another program that marks packets (`externalSetMarkChain`).
    pub external_chain: Option<String>,
    /// Further matches in the rules, for IPv4 and for IPv6 (`conditionsV4`, `conditionsV6`).
    pub conditions: [String; 2],
}

impl PortmapConfig {
    /// Parses a network configuration and the port mappings of the runtime.
    ///
    /// # Errors
    /// The configuration is invalid, or uses a feature that this plugin does not have.
    pub(super) fn read(config: &NetworkConfig) -> Result<Self, CniError> {
        let keys: Keys = config.parse()?;
        let bad = |message: String| CniError::new(ErrorCode::BAD_CONFIG, message);
        if !matches!(keys.backend.as_str(), "" | "iptables") {
            return Err(CniError::new(ErrorCode::UNSUPPORTED_FIELD, "backend has to be \"iptables\""));
        }
        if keys.external_set_mark_chain.is_some() && keys.mark_masq_bit.is_some() {
            return Err(bad("Cannot specify externalSetMarkChain and markMasqBit".to_owned()));
        }
        let bit = keys.mark_masq_bit.unwrap_or(MARK_BIT);
        let Some(mark) = u32::try_from(bit).ok().and_then(|bit| 1_u32.checked_shl(bit)) else {
            return Err(bad("MasqMarkBit must be between 0 and 31".to_owned()));
        };
        if let Some(chain) = &keys.external_set_mark_chain
            && (chain.is_empty()
                || chain.len() > CHAIN_LEN
                || chain.starts_with('-')
                || !chain.bytes().all(|byte| byte.is_ascii_graphic() && byte != b'"'))
        {
            return Err(bad(format!("externalSetMarkChain {chain:?} is not the name of a chain")));
        }
        let mappings = keys.runtime_config.port_mappings.iter().map(PortEntry::mapping).collect::<Result<_, _>>().map_err(bad)?;
        Ok(Self {
            mappings,
            snat: keys.snat.unwrap_or(true),
            masquerade_all: keys.masq_all,
            mark,
            external_chain: keys.external_set_mark_chain,
            conditions: [words(&keys.conditions_v4).map_err(bad)?, words(&keys.conditions_v6).map_err(bad)?],
        })
    }
}

/// Splits a rule into words as `iptables-restore` does.
fn words(words: &[String]) -> Result<String, String> {
    let mut text = String::new();
    for word in words {
        if word.chars().any(char::is_control) {
            return Err(format!("condition {word:?} cannot stand in a rule"));
        }
        let plain = !word.is_empty() && word.bytes().all(|byte| byte.is_ascii_graphic() && !matches!(byte, b'"' | b'\\' | b'\''));
        let quoted = || format!("\"{}\"", word.replace('\\', "\\\\").replace('"', "\\\""));
        text.push(' ');
        text += &if plain { word.clone() } else { quoted() };
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    #[allow(clippy::needless_pass_by_value, reason = "reads best where it is called")]
    fn read(keys: Value) -> Result<PortmapConfig, String> {
        let mut all = keys.as_object().cloned().unwrap_or_default();
        all.insert("name".into(), json!("n"));
        PortmapConfig::read(&NetworkConfig::of((&all).into()).expect("a frame")).map_err(|error| error.message)
    }

    #[test]
    fn ports_are_parsed_and_checked() {
        let ports = |port: Value| read(json!({"runtimeConfig": {"portMappings": [port]}}));
        let good = ports(json!({"hostPort": 80, "containerPort": 8080, "protocol": "TCP", "hostIP": "0.0.0.0"})).expect("good");
        assert_eq!((good.mappings[0].to_string(), good.mark, good.snat), ("80/tcp".into(), 0x2000, true));
        for (port, words) in [
            (json!({"hostPort": 0, "containerPort": 1, "protocol": "tcp"}), "Invalid host port number: 0"),
            (json!({"hostPort": 1, "containerPort": 65536, "protocol": "tcp"}), "Invalid container port number: 65536"),
            (json!({"hostPort": 1, "containerPort": 1, "protocol": "icmp"}), "protocol \"icmp\" has no ports to map"),
            (
                json!({"hostPort": 1, "containerPort": 1, "protocol": "udp", "hostIP": "x\nCOMMIT"}),
                "hostIP \"x\\nCOMMIT\" is not an IP address",
            ),
        ] {
            assert_eq!(ports(port), Err(words.to_owned()));
        }
        assert_eq!(read(json!({"markMasqBit": 32})), Err("MasqMarkBit must be between 0 and 31".to_owned()));
        assert_eq!(read(json!({"backend": "nftables"})), Err("backend has to be \"iptables\"".to_owned()));
        assert!(
            read(json!({"externalSetMarkChain": "A\nB"})).is_err() && read(json!({"externalSetMarkChain": "A", "markMasqBit": 1})).is_err()
        );
        assert!(read(json!({"runtimeConfig": null, "snat": null, "prevResult": {}})).expect("good").mappings.is_empty());
    }

    #[test]
    fn conditions_stay_one_rule() {
        let conditions = |text: &str| read(json!({"conditionsV4": ["!", "-d", text]})).map(|config| config.conditions[0].clone());
        assert_eq!(conditions("192.0.2.0/24").as_deref(), Ok(" ! -d 192.0.2.0/24"));
        assert_eq!(conditions("a b\"").as_deref(), Ok(" ! -d \"a b\\\"\""));
        assert!(conditions("x\n-F").is_err());
    }
}
