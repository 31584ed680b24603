//! The result of ADD: what a container got, in the format of each version [flannel 10.1]. PURE.

use std::net::IpAddr;

use ipnetwork::IpNetwork;
use serde::de::Error as _;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use crate::json_keys::Json;

use super::error::CniError;
use super::error::parse;
use super::version::CniVersion;

/// What a container got from ADD.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct CniResult {
    /// Interfaces of the container and of the host.
    pub interfaces: Vec<CniInterface>,
    /// Addresses of the container.
    pub ips: Vec<CniAddress>,
    /// Routes of the container.
    pub routes: Vec<CniRoute>,
    /// Content for resolv.conf.
    pub dns: CniDns,
}

/// An interface.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct CniInterface {
    /// Its name.
    pub name: String,
    /// Its MAC address.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub mac: String,
    /// Its MTU in bytes (1.1.0).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mtu: Option<u32>,
    /// Path of its network namespace; empty for the host's.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub sandbox: String,
    /// Path of its socket (1.1.0).
    #[serde(rename = "socketPath", skip_serializing_if = "String::is_empty")]
    pub socket_path: String,
    /// Its PCI address (1.1.0).
    #[serde(rename = "pciID", skip_serializing_if = "String::is_empty")]
    pub pci_id: String,
}

/// An IP address of a container.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct CniAddress {
    /// Index of its interface in the list of interfaces.
    #[serde(default)]
    pub interface: Option<usize>,
    /// The address with its prefix length.
    pub address: IpNetwork,
    /// The gateway.
    #[serde(default, deserialize_with = "ip")]
    pub gateway: Option<IpAddr>,
}

/// A route.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CniRoute {
    /// The destination.
    pub dst: IpNetwork,
    /// The gateway. `None` means the gateway of the first address of the family.
    #[serde(default, skip_serializing_if = "Option::is_none", deserialize_with = "ip")]
    pub gw: Option<IpAddr>,
    /// MTU in bytes (1.1.0).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mtu: Option<u32>,
    /// Advertised TCP segment size in bytes (1.1.0).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub advmss: Option<u32>,
    /// Metric (1.1.0).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub priority: Option<u32>,
    /// Routing table; `None` for the main table (1.1.0).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub table: Option<u32>,
    /// Scope as a number (1.1.0).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub scope: Option<u8>,
}

impl CniRoute {
    /// A route to a destination by a gateway.
    #[must_use]
    pub const fn new(dst: IpNetwork, gw: Option<IpAddr>) -> Self {
        Self { dst, gw, mtu: None, advmss: None, priority: None, table: None, scope: None }
    }
}

/// Content for resolv.conf.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct CniDns {
    /// Addresses of name servers.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub nameservers: Vec<String>,
    /// Domain of the host.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub domain: String,
    /// Search domains.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub search: Vec<String>,
    /// Options of the resolver.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub options: Vec<String>,
}

/// Decodes an address. An empty text means none, as in Go.
pub(super) fn ip<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<Option<IpAddr>, D::Error> {
    match Option::<String>::deserialize(deserializer)?.as_deref() {
        None | Some("") => Ok(None),
        Some(text) => text.parse().map(Some).map_err(|_| D::Error::custom(format!("{text:?} is not an IP address"))),
    }
}

impl CniResult {
    /// Parses a result of any version.
    ///
    /// # Errors
    /// The result is invalid.
    pub fn parse(json: &Json) -> Result<Self, CniError> {
        #[derive(Default, Deserialize)]
        #[serde(default)]
        struct Older {
            ip4: Option<Old>,
            ip6: Option<Old>,
        }
        #[derive(Deserialize)]
        struct Old {
            ip: IpNetwork,
            #[serde(default, deserialize_with = "ip")]
            gateway: Option<IpAddr>,
            #[serde(default)]
            routes: Vec<CniRoute>,
        }
        let mut result: Self = parse(json, "result")?;
        let older: Older = parse(json, "result")?;
        for old in [older.ip4, older.ip6].into_iter().flatten() {
            result.ips.push(CniAddress { interface: None, address: old.ip, gateway: old.gateway });
            result.routes.extend(old.routes);
        }
        Ok(result)
    }

    /// Returns the document in the format of a version.
    #[must_use]
    pub fn render(&self, version: CniVersion) -> Value {
        if version <= CniVersion::V0_2_0 {
            return self.render_old(version);
        }
        let mut document = Map::new();
        document.insert("cniVersion".into(), json!(version.as_str()));
        if !self.interfaces.is_empty() {
            document.insert("interfaces".into(), json!(self.interfaces));
        }
        let ips: Vec<Value> = self.ips.iter().map(|ip| ip.render(version)).collect();
        if !ips.is_empty() {
            document.insert("ips".into(), json!(ips));
        }
        if !self.routes.is_empty() {
            let routes: Vec<Value> = self.routes.iter().map(|route| route.render(version)).collect();
            document.insert("routes".into(), json!(routes));
        }
        if version < CniVersion::V1_0_0 || self.dns != CniDns::default() {
            document.insert("dns".into(), json!(self.dns));
        }
        Value::Object(document)
    }

    /// Returns the result with at most one address per family, and the routes of these families, as version 0.2.0 needs.
    fn render_old(&self, version: CniVersion) -> Value {
        let mut document = json!({"cniVersion": version.as_str()});
        for (key, v4) in [("ip4", true), ("ip6", false)] {
            let Some(ip) = self.ips.iter().find(|ip| ip.address.is_ipv4() == v4) else { continue };
            let mut old = json!({"ip": ip.address});
            if let Some(gateway) = ip.gateway {
                old["gateway"] = json!(gateway);
            }
            let routes: Vec<Value> =
                self.routes.iter().filter(|route| route.dst.is_ipv4() == v4).map(|route| route.render(version)).collect();
            if !routes.is_empty() {
                old["routes"] = json!(routes);
            }
            document[key] = old;
        }
        document["dns"] = json!(self.dns);
        document
    }

    /// Returns the first address of a family on the container's interface with this name. A result without interfaces only has addresses of
    /// that interface.
    #[must_use]
    pub(crate) fn address_of(&self, interface: &str, v4: bool) -> Option<IpNetwork> {
        let is_of = |ip: &&CniAddress| match ip.interface.and_then(|index| self.interfaces.get(index)) {
            Some(found) => !found.sandbox.is_empty() && found.name == interface,
            None => ip.interface.is_none(),
        };
        self.ips.iter().filter(|ip| ip.address.is_ipv4() == v4).find(is_of).map(|ip| ip.address)
    }
}

impl CniAddress {
    fn render(&self, version: CniVersion) -> Value {
        let mut document = Map::new();
        if version < CniVersion::V1_0_0 {
            document.insert("version".into(), json!(if self.address.is_ipv4() { "4" } else { "6" }));
        }
        if let Some(interface) = self.interface {
            document.insert("interface".into(), json!(interface));
        }
        document.insert("address".into(), json!(self.address));
        if let Some(gateway) = self.gateway {
            document.insert("gateway".into(), json!(gateway));
        }
        Value::Object(document)
    }
}

impl CniRoute {
    fn render(&self, version: CniVersion) -> Value {
        if version < CniVersion::V1_1_0 { json!(Self::new(self.dst, self.gw)) } else { json!(self) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn result() -> CniResult {
        let net = |text: &str| text.parse().expect("a network");
        let ip = |text: &str| text.parse().ok();
        CniResult {
            interfaces: vec![CniInterface {
                name: "eth0".into(),
                mac: "02:00:00:00:00:01".into(),
                sandbox: "/n".into(),
                ..CniInterface::default()
            }],
            ips: vec![
                CniAddress { interface: Some(0), address: net("10.244.1.2/24"), gateway: ip("10.244.1.1") },
                CniAddress { interface: Some(0), address: net("fd00::2/64"), gateway: None },
            ],
            routes: vec![
                CniRoute { mtu: Some(1400), ..CniRoute::new(net("0.0.0.0/0"), ip("10.244.1.1")) },
                CniRoute::new(net("::/0"), None),
            ],
            dns: CniDns::default(),
        }
    }

    #[test]
    fn each_version_has_its_form() {
        let text = |version| result().render(version).to_string();
        assert_eq!(
            text(CniVersion::V1_1_0),
            r#"{"cniVersion":"1.1.0","interfaces":[{"mac":"02:00:00:00:00:01","name":"eth0","sandbox":"/n"}],"ips":[{"address":"10.244.1.2/24","gateway":"10.244.1.1","interface":0},{"address":"fd00::2/64","interface":0}],"routes":[{"dst":"0.0.0.0/0","gw":"10.244.1.1","mtu":1400},{"dst":"::/0"}]}"#
        );
        assert_eq!(
            text(CniVersion::V0_3_1),
            r#"{"cniVersion":"0.3.1","dns":{},"interfaces":[{"mac":"02:00:00:00:00:01","name":"eth0","sandbox":"/n"}],"ips":[{"address":"10.244.1.2/24","gateway":"10.244.1.1","interface":0,"version":"4"},{"address":"fd00::2/64","interface":0,"version":"6"}],"routes":[{"dst":"0.0.0.0/0","gw":"10.244.1.1"},{"dst":"::/0"}]}"#
        );
        assert_eq!(
            text(CniVersion::V0_2_0),
            r#"{"cniVersion":"0.2.0","dns":{},"ip4":{"gateway":"10.244.1.1","ip":"10.244.1.2/24","routes":[{"dst":"0.0.0.0/0","gw":"10.244.1.1"}]},"ip6":{"ip":"fd00::2/64","routes":[{"dst":"::/0"}]}}"#
        );
    }

    fn parsed(document: &Value) -> Result<CniResult, CniError> {
        CniResult::parse(&document.into())
    }

    #[test]
    fn every_form_is_read_back() {
        assert_eq!(parsed(&result().render(CniVersion::V1_1_0)), Ok(result()));
        for version in CniVersion::ALL {
            let read = parsed(&result().render(version)).expect("it was just written");
            assert_eq!(read.ips.len(), 2, "{version:?}");
            assert_eq!(read.address_of("eth0", true), "10.244.1.2/24".parse().ok(), "{version:?}");
        }
        assert_eq!(parsed(&json!({"interfaces": null, "dns": null})), Ok(CniResult::default()));
        assert!(parsed(&json!({"ips": [{"address": "10.0.0.1/99"}]})).is_err());
        let more = json!({"cniVersion": "1.1.0", "interfaces": [{"name": "a", "mtu": 1400, "socketPath": "/s", "pciID": "0000:00:1f.6"}]});
        assert_eq!(parsed(&more).expect("good").render(CniVersion::V1_1_0), more);
    }

    #[test]
    fn keys_match_in_any_case_and_empty_addresses_are_none() {
        let text = r#"{"Interfaces":[{"Name":"eth0","MAC":"02:00:00:00:00:01","Sandbox":"/n"}],"IPs":[{"Address":"10.0.0.2/24","Gateway":"","INTERFACE":0}],
            "routes":[{"Dst":"0.0.0.0/0","GW":""},{"dst":"10.1.0.0/16","gw":"10.0.0.9","Gw":"10.0.0.1"}],"DNS":{"Nameservers":["10.96.0.10"],"Search":null}}"#;
        let json: Json = serde_json::from_str(text).expect("JSON");
        let result = CniResult::parse(&json).expect("good");
        assert_eq!((result.interfaces[0].name.as_str(), result.interfaces[0].mac.as_str()), ("eth0", "02:00:00:00:00:01"));
        assert_eq!((result.ips[0].gateway, result.ips[0].interface), (None, Some(0)));
        assert_eq!(result.routes.iter().map(|route| route.gw).collect::<Vec<_>>(), [None, "10.0.0.1".parse().ok()]);
        assert_eq!(result.dns.nameservers, ["10.96.0.10"]);
        let bad = CniResult::parse(&(&json!({"ips": [{"address": "10.0.0.2/24", "gateway": "x"}]})).into()).expect_err("no address");
        assert_eq!(bad.message, "result: ips[0].gateway: \"x\" is not an IP address");
    }
}
