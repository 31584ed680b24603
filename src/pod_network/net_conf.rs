//! flannel's net-conf.json [flannel 1]. It is read as flanneld reads it, but invalid values are refused, and the error names the key.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnetwork::IpNetwork;
use serde::de::{DeserializeOwned, MapAccess, Visitor};
use serde::{Deserialize, Deserializer};
use serde_json::value::RawValue;

use super::vxlan;
use crate::cluster::families::PerFamily;
use crate::cluster::ip::{self, Family};
use crate::json_keys::matches;

/// The kernel's default port of a VXLAN link.
pub(crate) const DEFAULT_PORT: u16 = 8472;

/// The largest VNIs with which `flannel.<VNI>` and `flannel-v6.<VNI>` have at most 15 bytes, as the kernel requires.
const LARGEST_NAMED_VNI: [(Family, u64); 2] = [(Family::V4, 9_999_999), (Family::V6, 9_999)];

/// The configuration of the pod network.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NetConf {
    /// `Network` and `IPv6Network` of the enabled families.
    pub networks: PerFamily<IpNetwork>,
    /// `EnableNFTables`. It has no effect except a warning.
    pub nftables: bool,
    /// The options for the nodes' subnets, of the enabled families.
    pub subnets: PerFamily<SubnetOptions>,
    /// How packets get to other nodes.
    pub backend: Backend,
}

/// Options for the nodes' subnets. They matter only when subnets come from Leases.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SubnetOptions {
    /// `SubnetLen`, `IPv6SubnetLen`; 0 for the default length.
    pub length: u64,
    /// `SubnetMin`, `IPv6SubnetMin`.
    pub min: Option<IpAddr>,
    /// `SubnetMax`, `IPv6SubnetMax`.
    pub max: Option<IpAddr>,
}

/// How packets get to other nodes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Backend {
    /// Packets to other nodes are sent in VXLAN packets.
    Vxlan(VxlanConf),
    /// Packets to other nodes are routed to them directly. All nodes have to be on one network.
    HostGw,
}

impl Backend {
    /// Its name in annotations.
    #[must_use]
    pub const fn as_str(&self) -> &'static str {
        match self {
            Self::Vxlan(_) => "vxlan",
            Self::HostGw => "host-gw",
        }
    }

    /// The VXLAN options, if VXLAN is the backend.
    #[must_use]
    pub const fn vxlan(&self) -> Option<&VxlanConf> {
        match self {
            Self::Vxlan(vxlan) => Some(vxlan),
            Self::HostGw => None,
        }
    }
}

/// The options of the backend `vxlan`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct VxlanConf {
    /// `VNI`: the VXLAN network identifier.
    pub vni: u32,
    /// `Port`: UDP port of the outer packets.
    pub port: u16,
    /// `MTU` of the outer packets; `None` for the MTU of the external interface.
    pub mtu: Option<u32>,
    /// `GBP`: the group-based policy extension.
    pub gbp: bool,
    /// `Learning`: the kernel adds FDB entries from received packets.
    pub learning: bool,
    /// `DirectRouting`: packets to nodes on the same network are routed without VXLAN.
    pub direct_routing: bool,
}

impl Default for VxlanConf {
    fn default() -> Self {
        Self { vni: 1, port: DEFAULT_PORT, mtu: None, gbp: false, learning: false, direct_routing: false }
    }
}

/// Why a net-conf.json is invalid.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadNetConf {
    /// The text is not a JSON object.
    #[error("it is not a JSON object: {0}")]
    Json(String),
    /// A key has an invalid value.
    #[error("{key}: {cause}")]
    Key {
        /// The key.
        key: &'static str,
        /// What is wrong, and which values are valid.
        cause: String,
    },
    /// Both families are off.
    #[error("none defined stack: EnableIPv4 is false and EnableIPv6 is not true, so there is nothing to do; set one of them to true")]
    NoFamily,
    /// An unknown backend.
    #[error("unknown backend type: {found}. Backend.Type has to be vxlan or host-gw{}", if *.missing { " (without a Backend flannel takes udp)" } else { "" })]
    Backend {
        /// The type that was found.
        found: String,
        /// There is no key `Backend`.
        missing: bool,
    },
}

impl NetConf {
    /// Reads the text of a net-conf.json.
    ///
    /// # Errors
    /// The text is not a JSON object, or a value is invalid.
    pub fn parse(text: &str) -> Result<Self, BadNetConf> {
        let keys: Keys = serde_json::from_str(text).map_err(|error| BadNetConf::Json(error.to_string()))?;
        let enabled = [(Family::V4, keys.bool("EnableIPv4", true)?), (Family::V6, keys.bool("EnableIPv6", false)?)];
        let nftables = keys.bool("EnableNFTables", false)?;
        // Read the values of both families, so that an invalid one is refused even if its family is disabled.
        let network = [(Family::V4, keys.network("Network", Family::V4)?), (Family::V6, keys.network("IPv6Network", Family::V6)?)];
        let options = [
            (Family::V4, keys.subnet_options(["SubnetLen", "SubnetMin", "SubnetMax"], Family::V4)?),
            (Family::V6, keys.subnet_options(["IPv6SubnetLen", "IPv6SubnetMin", "IPv6SubnetMax"], Family::V6)?),
        ];
        let mut networks = PerFamily::default();
        let mut subnets = PerFamily::default();
        for (((family, on), (_, network)), (_, options)) in enabled.into_iter().zip(network).zip(options) {
            if on {
                let missing =
                    || bad(network_key(family), format!("please define a correct {} parameter in the flannel config", network_key(family)));
                networks.set(family, Some(network.ok_or_else(missing)?));
                subnets.set(family, Some(options));
            }
        }
        if networks.is_empty() {
            return Err(BadNetConf::NoFamily);
        }
        let backend = backend(&keys, &networks)?;
        Ok(Self { networks, nftables, subnets, backend })
    }

    /// The configuration in flannel's manifest: IPv4 in 10.244.0.0/16 over VXLAN.
    #[must_use]
    pub fn shipped() -> Self {
        Self {
            networks: PerFamily { v4: "10.244.0.0/16".parse().ok(), v6: None },
            nftables: false,
            subnets: PerFamily { v4: Some(SubnetOptions::default()), v6: None },
            backend: Backend::Vxlan(VxlanConf::default()),
        }
    }

    /// Warnings about keys that have no effect.
    #[must_use]
    pub fn warnings(&self) -> Vec<String> {
        let nftables = "EnableNFTables is true, but masquerade and forward rules are written with iptables here all the same";
        self.nftables.then(|| nftables.to_owned()).into_iter().collect()
    }

    /// The keys that differ in another version and that need a restart: all but `MTU` and `DirectRouting`.
    #[must_use]
    pub(crate) fn fixed_differences(&self, other: &Self) -> Vec<&'static str> {
        let mut differences = Vec::new();
        for family in Family::ALL {
            if self.networks.get(family) != other.networks.get(family) {
                differences.push(network_key(family));
            }
            if self.subnets.get(family) != other.subnets.get(family) {
                differences.push(if family == Family::V4 {
                    "SubnetLen, SubnetMin or SubnetMax"
                } else {
                    "IPv6SubnetLen, IPv6SubnetMin or IPv6SubnetMax"
                });
            }
        }
        match (&self.backend, &other.backend) {
            (Backend::Vxlan(here), Backend::Vxlan(there)) => {
                let keys = [
                    ("VNI", here.vni != there.vni),
                    ("Port", here.port != there.port),
                    ("GBP", here.gbp != there.gbp),
                    ("Learning", here.learning != there.learning),
                ];
                differences.extend(keys.into_iter().filter_map(|(key, differs)| differs.then_some(key)));
            }
            (here, there) if here != there => differences.push("Backend.Type"),
            _ => {}
        }
        differences
    }
}

/// The key that holds the network of a family.
#[must_use]
pub(crate) const fn network_key(family: Family) -> &'static str {
    match family {
        Family::V4 => "Network",
        Family::V6 => "IPv6Network",
    }
}

/// Reads the key `Backend`.
fn backend(keys: &Keys, networks: &PerFamily<IpNetwork>) -> Result<Backend, BadNetConf> {
    let Some(backend) = keys.raw("Backend") else { return Err(BadNetConf::Backend { found: "udp".into(), missing: true }) };
    let keys: Option<Keys> = serde_json::from_str(backend.get())
        .map_err(|error| bad("Backend", format!("error decoding Backend property of config: {error}")))?;
    let keys = keys.unwrap_or_default();
    let kind: String = keys.value("Type", "a text")?.unwrap_or_default();
    match kind.to_lowercase().as_str() {
        "vxlan" => vxlan(&keys, networks).map(Backend::Vxlan),
        "host-gw" => Ok(Backend::HostGw),
        _ => Err(BadNetConf::Backend { found: if kind.is_empty() { "\"\"".into() } else { kind }, missing: false }),
    }
}

/// Reads the options of the backend `vxlan`.
fn vxlan(keys: &Keys, networks: &PerFamily<IpNetwork>) -> Result<VxlanConf, BadNetConf> {
    let default = VxlanConf::default();
    let vni = keys.number("VNI", 0, (1 << 24) - 1)?.unwrap_or(default.vni.into());
    for (family, largest) in LARGEST_NAMED_VNI {
        if networks.get(family).is_some() && vni > largest {
            let name = vxlan::link_name(family, vni as u32);
            return Err(bad("VNI", format!("{vni} makes the name {name}, which is too long for a link; at most {largest} with {family}")));
        }
    }
    let port = keys.number("Port", 0, u16::MAX.into())?.filter(|port| *port != 0);
    let least = networks.families().map(|family| vxlan::min_mtu(family) + vxlan::overhead(family)).max().unwrap_or_default();
    let mtu = keys.number("MTU", 0, u16::MAX.into())?.filter(|mtu| *mtu != 0).map(|mtu| mtu as u32);
    if let Some(mtu) = mtu.filter(|mtu| *mtu < least) {
        return Err(bad(
            "MTU",
            format!("{mtu} is too small: it is that of the outer packets, {least} at least, or 0 for the external interface's"),
        ));
    }
    Ok(VxlanConf {
        vni: vni as u32,
        port: port.map_or(default.port, |port| port as u16),
        mtu,
        gbp: keys.bool("GBP", false)?,
        learning: keys.bool("Learning", false)?,
        direct_routing: keys.bool("DirectRouting", false)?,
    })
}

/// The error for an invalid value of a key.
pub(super) fn bad(key: &'static str, cause: String) -> BadNetConf {
    BadNetConf::Key { key, cause }
}

/// The keys of an object as they are written, each with the text of its value.
#[derive(Debug, Default)]
struct Keys(Vec<(String, Box<RawValue>)>);

impl<'de> Deserialize<'de> for Keys {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Object;
        impl<'de> Visitor<'de> for Object {
            type Value = Keys;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Keys, A::Error> {
                let mut keys = Vec::new();
                while let Some(entry) = map.next_entry()? {
                    keys.push(entry);
                }
                Ok(Keys(keys))
            }
        }
        deserializer.deserialize_map(Object)
    }
}

impl Keys {
    /// The value of a key. Keys match in any case, and the last one is used. `null` keeps an earlier value, except for `Backend`, whose text is
    /// used even if it is `null`.
    fn raw(&self, key: &str) -> Option<&RawValue> {
        let is_used = |(name, value): &&(String, Box<RawValue>)| matches(name, key) && (value.get() != "null" || key == "Backend");
        self.0.iter().rev().find(is_used).map(|(_, value)| &**value)
    }

    /// Decodes the value of a key. `what` describes valid values.
    fn value<T: DeserializeOwned>(&self, key: &'static str, what: &str) -> Result<Option<T>, BadNetConf> {
        let Some(raw) = self.raw(key) else { return Ok(None) };
        serde_json::from_str(raw.get()).map(Some).map_err(|_| bad(key, format!("{} is not {what}", raw.get())))
    }

    fn bool(&self, key: &'static str, default: bool) -> Result<bool, BadNetConf> {
        Ok(self.value(key, "true or false")?.unwrap_or(default))
    }

    fn number(&self, key: &'static str, least: u64, most: u64) -> Result<Option<u64>, BadNetConf> {
        let what = format!("a whole number from {least} to {most}");
        let number: Option<u64> = self.value(key, &what)?;
        match number {
            Some(number) if !(least..=most).contains(&number) => Err(bad(key, format!("{number} is not {what}"))),
            number => Ok(number),
        }
    }

    fn address(&self, key: &'static str, family: Family) -> Result<Option<IpAddr>, BadNetConf> {
        let Some(text) = self.value::<String>(key, "a text")? else { return Ok(None) };
        let address = address(&text, family).ok_or_else(|| bad(key, format!("{text:?} is not an {} address", family.proper_name())))?;
        // flannel treats the unspecified address as absent.
        Ok(Some(address).filter(|address| !address.is_unspecified()))
    }

    fn network(&self, key: &'static str, family: Family) -> Result<Option<IpNetwork>, BadNetConf> {
        let Some(text) = self.value::<String>(key, "a text")? else { return Ok(None) };
        let network = || {
            let (ip, length) = text.split_once('/')?;
            let length: u8 = length.bytes().all(|c| c.is_ascii_digit()).then(|| length.parse().ok())??;
            let ip = address(ip, family)?;
            ip::network(ip, length)
        };
        network().map(Some).ok_or_else(|| bad(key, format!("invalid {} CIDR format: {text:?}", family.proper_name())))
    }

    fn subnet_options(&self, [length, min, max]: [&'static str; 3], family: Family) -> Result<SubnetOptions, BadNetConf> {
        let length: u64 = self.value(length, "a whole number")?.unwrap_or_default();
        Ok(SubnetOptions { length, min: self.address(min, family)?, max: self.address(max, family)? })
    }
}

fn address(text: &str, family: Family) -> Option<IpAddr> {
    match family {
        Family::V4 => text.parse::<Ipv4Addr>().ok().map(IpAddr::V4),
        Family::V6 => text.parse::<Ipv6Addr>().ok().map(IpAddr::V6),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> NetConf {
        NetConf::parse(text).unwrap_or_else(|error| panic!("{text}: {error}"))
    }

    fn refused(text: &str) -> String {
        NetConf::parse(text).expect_err(text).to_string()
    }

    #[test]
    fn the_shipped_configuration_has_flannels_defaults() {
        let conf = parse(r#"{"Network":"10.244.0.0/16","EnableNFTables":false,"Backend":{"Type":"vxlan"}}"#);
        assert_eq!(conf.networks, PerFamily { v4: "10.244.0.0/16".parse().ok(), v6: None });
        assert_eq!(
            conf.backend,
            Backend::Vxlan(VxlanConf { vni: 1, port: 8472, mtu: None, gbp: false, learning: false, direct_routing: false })
        );
        assert_eq!((conf.warnings(), conf.backend.as_str()), (Vec::new(), "vxlan"));
        assert_eq!(NetConf::shipped(), conf);
    }

    #[test]
    fn keys_match_in_any_case_and_the_last_one_is_used() {
        let conf = parse(
            r#"{"network":"10.1.2.3/16","NETWORK":"10.244.7.9/16","enableipv6":true,"IPV6network":"fd10:244::5/32","enableNFTables":true,"other":[1],
                "Backend":{"type":"host-gw"},"backend":{"TYPE":"VXLAN","vni":7,"VNI":5,"port":4789,"MTU":1400,"Gbp":true,"learning":true,"directrouting":true,"Type":null}}"#,
        );
        assert_eq!(conf.networks, PerFamily { v4: "10.244.0.0/16".parse().ok(), v6: "fd10:244::/32".parse().ok() });
        let vxlan = VxlanConf { vni: 5, port: 4789, mtu: Some(1400), gbp: true, learning: true, direct_routing: true };
        assert_eq!(conf.backend.vxlan(), Some(&vxlan));
        assert_eq!(conf.warnings().len(), 1);
        let conf = parse(
            r#"{"EnableIPv4":false,"EnableIPv6":true,"Network":"10.0.0.0/8","IPv6Network":"fd00::/48","Backend":{"Type":"Host-GW"}}"#,
        );
        assert_eq!((conf.networks.v4, conf.backend), (None, Backend::HostGw));
    }

    #[test]
    fn an_error_names_the_key_of_the_invalid_value() {
        let with = |keys: &str| format!(r#"{{"Network":"10.244.0.0/16",{keys}"Backend":{{"Type":"vxlan"}}}}"#);
        let vxlan = |keys: &str| format!(r#"{{"Network":"10.244.0.0/16","Backend":{{"Type":"vxlan",{keys}}}}}"#);
        for (text, start) in [
            (vxlan(r#""VNI":16777216"#), "VNI: 16777216 is not a whole number from 0 to 16777215"),
            (vxlan(r#""VNI":-1"#), "VNI: -1 is not"),
            (vxlan(r#""VNI":"1""#), "VNI: \"1\" is not"),
            (vxlan(r#""VNI":16777215"#), "VNI: 16777215 makes the name flannel.16777215"),
            (vxlan(r#""Port":65536"#), "Port: 65536 is not"),
            (vxlan(r#""MTU":100"#), "MTU: 100 is too small"),
            (vxlan(r#""MTU":65536"#), "MTU: 65536 is not"),
            (vxlan(r#""GBP":1"#), "GBP: 1 is not true or false"),
            (with(r#""EnableIPv4":"yes","#), "EnableIPv4: "),
            (with(r#""Network":"fd00::/48","#), "Network: invalid IPv4 CIDR format: \"fd00::/48\""),
            (with(r#""Network":"10.244.0.0","#), "Network: invalid IPv4 CIDR format"),
            (with(r#""IPv6Network":"10.0.0.0/8","#), "IPv6Network: invalid IPv6 CIDR format"),
            (with(r#""SubnetMin":"x","#), "SubnetMin: \"x\" is not an IPv4 address"),
            (with(r#""SubnetLen":-1,"#), "SubnetLen: -1 is not a whole number"),
            (with(r#""EnableIPv6":true,"#), "IPv6Network: please define a correct IPv6Network parameter in the flannel config"),
            (with(r#""EnableIPv4":false,"#), "none defined stack"),
            (r#"{"Backend":{"Type":"vxlan"}}"#.into(), "Network: please define a correct Network parameter in the flannel config"),
            (r#"{"Network":"10.244.0.0/16"}"#.into(), "unknown backend type: udp. Backend.Type has to be vxlan or host-gw (without"),
            (r#"{"Network":"10.244.0.0/16","Backend":{}}"#.into(), "unknown backend type: \"\". Backend.Type has to be vxlan or host-gw"),
            (r#"{"Network":"10.244.0.0/16","Backend":null}"#.into(), "unknown backend type: \"\""),
            (r#"{"Network":"10.244.0.0/16","Backend":{"Type":"WireGuard"}}"#.into(), "unknown backend type: WireGuard"),
            (r#"{"Network":"10.244.0.0/16","Backend":7}"#.into(), "Backend: error decoding"),
            ("[]".into(), "it is not a JSON object"),
            ("{".into(), "it is not a JSON object"),
        ] {
            let error = refused(&text);
            assert!(error.starts_with(start), "{text}: {error}");
        }
        let v6 = |keys: &str| {
            format!(r#"{{"EnableIPv4":false,"EnableIPv6":true,"IPv6Network":"fd00::/48","Backend":{{"Type":"vxlan",{keys}}}}}"#)
        };
        assert!(refused(&v6(r#""VNI":10000"#)).starts_with("VNI: 10000 makes the name flannel-v6.10000"));
        assert!(refused(&v6(r#""MTU":1349"#)).starts_with("MTU: 1349 is too small"));
        assert_eq!(parse(&v6(r#""MTU":1350"#)).backend.vxlan().and_then(|vxlan| vxlan.mtu), Some(1350));
    }

    #[test]
    fn keys_that_need_a_restart_are_named() {
        let conf = |backend: &str| parse(&format!(r#"{{"Network":"10.244.0.0/16","Backend":{backend}}}"#));
        let here = conf(r#"{"Type":"vxlan"}"#);
        assert_eq!(here.fixed_differences(&conf(r#"{"Type":"vxlan","MTU":1400,"DirectRouting":true}"#)), [""; 0]);
        assert_eq!(here.fixed_differences(&conf(r#"{"Type":"vxlan","VNI":2,"Port":4789}"#)), ["VNI", "Port"]);
        assert_eq!(here.fixed_differences(&conf(r#"{"Type":"host-gw"}"#)), ["Backend.Type"]);
        let other = parse(r#"{"Network":"10.0.0.0/8","SubnetLen":24,"Backend":{"Type":"vxlan"}}"#);
        assert_eq!(here.fixed_differences(&other), ["Network", "SubnetLen, SubnetMin or SubnetMax"]);
    }
}
