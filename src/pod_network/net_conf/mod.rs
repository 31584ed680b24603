//! flannel's net-conf.json [flannel 1]. It is read as flanneld reads it, but invalid values are refused, and the error names the key.
//!
//! Each key stands in one place: [`vxlan_options`] has the options of the backend `vxlan`, [`family_keys`] the keys that exist once per
//! family, and this file the rest.

mod error;
mod family_keys;
mod reader;
mod vxlan_options;

use ipnetwork::IpNetwork;

pub use self::error::BadNetConf;
pub(super) use self::error::bad;
pub(super) use self::family_keys::FamilyKeys;
pub use self::family_keys::SubnetOptions;
use self::reader::Keys;
pub use self::vxlan_options::VxlanConf;
use crate::cluster::families::PerFamily;
use crate::cluster::ip::Family;

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

impl NetConf {
    /// Reads the text of a net-conf.json.
    ///
    /// # Errors
    /// The text is not a JSON object, or a value is invalid.
    pub fn parse(text: &str) -> Result<Self, BadNetConf> {
        let keys: Keys = serde_json::from_str(text).map_err(|error| BadNetConf::Json(error.to_string()))?;
        let nftables = keys.bool("EnableNFTables")?.unwrap_or(false);
        let mut networks = PerFamily::default();
        let mut subnets = PerFamily::default();
        for family_keys in FamilyKeys::ALL {
            if let (family, Some((network, options))) = family_keys.read(&keys)? {
                networks.set(family, Some(network));
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

    /// The keys that differ in another version and that need a restart.
    #[must_use]
    pub(crate) fn fixed_differences(&self, other: &Self) -> Vec<&'static str> {
        let mut differences = Vec::new();
        for family in Family::ALL {
            let keys = FamilyKeys::of(family);
            if self.networks.get(family) != other.networks.get(family) {
                differences.push(keys.network);
            }
            if self.subnets.get(family) != other.subnets.get(family) {
                differences.push(keys.subnet);
            }
        }
        match (&self.backend, &other.backend) {
            (Backend::Vxlan(here), Backend::Vxlan(there)) => differences.extend(here.fixed_differences(there)),
            (here, there) if here != there => differences.push("Backend.Type"),
            _ => {}
        }
        differences
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
        "vxlan" => VxlanConf::read(&keys, networks).map(Backend::Vxlan),
        "host-gw" => Ok(Backend::HostGw),
        _ => Err(BadNetConf::Backend { found: if kind.is_empty() { "\"\"".into() } else { kind }, missing: false }),
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
        for (text, start) in [
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
