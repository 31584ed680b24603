//! The annotations with which nodes publish their part of the pod network, in flannel's names and format [flannel 3].

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::net_conf::Backend;
use crate::cluster::Family;
use crate::json_keys;

use crate::cluster::families::PerFamily;
use crate::netlink::mac::Mac;

/// flannel's default prefix.
pub(crate) const DEFAULT_PREFIX: &str = "flannel.alpha.coreos.com";

const MANAGED: &str = "kube-subnet-manager";
const BACKEND_TYPE: &str = "backend-type";
const BACKEND_DATA: [(Family, &str); 2] = [(Family::V4, "backend-data"), (Family::V6, "backend-v6-data")];
const PUBLIC_IP: [(Family, &str); 2] = [(Family::V4, "public-ip"), (Family::V6, "public-ipv6")];
const NODE_PUBLIC_IP: [(Family, &str); 2] = [(Family::V4, "node-public-ip"), (Family::V6, "node-public-ipv6")];
const OVERWRITE: [(Family, &str); 2] = [(Family::V4, "public-ip-overwrite"), (Family::V6, "public-ipv6-overwrite")];

/// The prefix of all annotation names. It ends with `/` or `-`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Prefix(String);

/// An invalid prefix.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadPrefix {
    /// More than one slash.
    #[error("subnet/kube: prefix can contain at most single slash")]
    Slashes,
    /// The form is wrong.
    #[error("subnet/kube: prefix must be in a format: fqdn/[0-9a-z-_]*")]
    Format,
}

impl Default for Prefix {
    fn default() -> Self {
        Self(format!("{DEFAULT_PREFIX}/"))
    }
}

impl Prefix {
    /// Completes a prefix. A slash is appended if there is none. Then a hyphen is appended unless the prefix ends with `/` or `-`.
    ///
    /// # Errors
    /// The part before the slash is not a domain name with a dot, or the part after it has other characters than `0-9a-z-_`.
    pub fn new(text: &str) -> Result<Self, BadPrefix> {
        let mut text = text.to_owned();
        match text.matches('/').count() {
            0 => text.push('/'),
            1 => {}
            _ => return Err(BadPrefix::Slashes),
        }
        if !text.ends_with(['/', '-']) {
            text.push('-');
        }
        let word = |text: &str| text.bytes().all(|c| matches!(c, b'a'..=b'z' | b'0'..=b'9' | b'_' | b'-'));
        let (domain, rest) = text.split_once('/').unwrap_or_default();
        let labels = domain.split('.').count();
        let good = labels > 1 && domain.split('.').all(|label| !label.is_empty() && word(label)) && word(rest) && rest != "-";
        if good { Ok(Self(text)) } else { Err(BadPrefix::Format) }
    }

    /// The name of an annotation.
    #[must_use]
    pub fn name(&self, suffix: &str) -> String {
        [&self.0, suffix].concat()
    }

    /// The names of the annotations that the daemon writes. A cleanup removes them.
    #[must_use]
    pub fn written(&self) -> Vec<String> {
        let of_families = BACKEND_DATA.into_iter().chain(PUBLIC_IP).map(|(_, suffix)| suffix);
        [MANAGED, BACKEND_TYPE].into_iter().chain(of_families).map(|suffix| self.name(suffix)).collect()
    }
}

/// The annotations of a Node that the pod network reads, as texts.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NodeAnnotations {
    /// `kube-subnet-manager` is `true`: the node is part of the pod network.
    pub managed: bool,
    /// `backend-type`.
    pub backend_type: Option<Box<str>>,
    /// `backend-data`, `backend-v6-data`.
    pub data: PerFamily<Box<str>>,
    /// `public-ip`, `public-ipv6`.
    pub public_ips: PerFamily<Box<str>>,
    /// `node-public-ip`, `node-public-ipv6`: the operator sets them instead of `--public-ip`.
    pub node_public_ips: PerFamily<Box<str>>,
    /// `public-ip-overwrite`, `public-ipv6-overwrite`: the operator sets them. They are published instead of the real address.
    pub overwrites: PerFamily<Box<str>>,
}

/// An annotation with an invalid value.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("annotation {name} is {value:?}, which is not {expected}")]
pub struct BadAnnotation {
    /// The annotation, without the prefix.
    pub name: &'static str,
    /// Its value.
    pub value: String,
    /// A description of valid values.
    pub expected: &'static str,
}

/// The VXLAN link of a node, as it is published: `{"VNI":1,"VtepMAC":"26:22:24:fa:1a:29"}`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct VxlanData {
    /// The VNI. Old versions of flannel do not publish it.
    #[serde(rename = "VNI", default, skip_serializing_if = "Option::is_none")]
    pub vni: Option<u32>,
    /// The link's hardware address.
    #[serde(rename = "VtepMAC")]
    pub mac: Mac,
}

impl NodeAnnotations {
    /// Reads the annotations that matter from all annotations of a Node.
    pub fn read<'a>(prefix: &Prefix, all: impl IntoIterator<Item = (&'a str, &'a str)>) -> Self {
        let mut found = Self::default();
        for (name, value) in all {
            let Some(suffix) = name.strip_prefix(prefix.0.as_str()) else { continue };
            match suffix {
                MANAGED => found.managed = value == "true",
                BACKEND_TYPE => found.backend_type = Some(value.into()),
                _ => {
                    let kinds = [
                        (BACKEND_DATA, &mut found.data),
                        (PUBLIC_IP, &mut found.public_ips),
                        (NODE_PUBLIC_IP, &mut found.node_public_ips),
                        (OVERWRITE, &mut found.overwrites),
                    ];
                    for (names, values) in kinds {
                        if let Some((family, _)) = names.into_iter().find(|(_, name)| *name == suffix) {
                            values.set(family, Some(value.into()));
                        }
                    }
                }
            }
        }
        found
    }

    /// The annotations that the node's own daemon writes, by full name.
    #[must_use]
    pub fn written(&self, prefix: &Prefix) -> BTreeMap<String, String> {
        let mut all = BTreeMap::new();
        let mut add = |suffix: &str, value: Option<&str>| all.extend(value.map(|value| (prefix.name(suffix), value.to_owned())));
        add(MANAGED, self.managed.then_some("true"));
        add(BACKEND_TYPE, self.backend_type.as_deref());
        for (names, values) in [(BACKEND_DATA, &self.data), (PUBLIC_IP, &self.public_ips)] {
            for (family, suffix) in names {
                add(suffix, values.get(family).map(|value| &**value));
            }
        }
        all
    }

    /// The address that the node publishes in a family, if any.
    ///
    /// # Errors
    /// The text is not an address.
    pub fn public_ip(&self, family: Family) -> Result<Option<IpAddr>, BadAnnotation> {
        address(PUBLIC_IP, &self.public_ips, family)
    }

    /// The address that replaces `--public-ip` or `--public-ipv6`, if any.
    ///
    /// # Errors
    /// The text is not an address.
    pub(crate) fn node_public_ip(&self, family: Family) -> Result<Option<IpAddr>, BadAnnotation> {
        address(NODE_PUBLIC_IP, &self.node_public_ips, family)
    }

    /// The address that is published instead of the real one, if any. It need not be an address of this host.
    ///
    /// # Errors
    /// The text is not an address.
    pub fn overwrite(&self, family: Family) -> Result<Option<IpAddr>, BadAnnotation> {
        address(OVERWRITE, &self.overwrites, family)
    }

    /// The VXLAN link that the node publishes in a family, if any.
    ///
    /// # Errors
    /// The text is not JSON of this form, or the hardware address is not a unicast address.
    pub fn vxlan(&self, family: Family) -> Result<Option<VxlanData>, BadAnnotation> {
        let Some(text) = self.data.get(family) else { return Ok(None) };
        let bad = || BadAnnotation {
            name: suffix(BACKEND_DATA, family),
            value: (**text).to_owned(),
            expected: "{\"VNI\":...,\"VtepMAC\":\"...\"}",
        };
        // flannel writes `null` when there is no link of the family.
        if &**text == "null" {
            return Ok(None);
        }
        let data: VxlanData = json_keys::from_slice(text.as_bytes()).map_err(|_| bad())?;
        if data.mac.is_unicast() { Ok(Some(data)) } else { Err(bad()) }
    }
}

/// The name of a family's annotation, without the prefix.
fn suffix(names: [(Family, &'static str); 2], family: Family) -> &'static str {
    let [(_, v4), (_, v6)] = names;
    if family == Family::V4 { v4 } else { v6 }
}

/// Parses the address in an annotation.
fn address(names: [(Family, &'static str); 2], texts: &PerFamily<Box<str>>, family: Family) -> Result<Option<IpAddr>, BadAnnotation> {
    let Some(text) = texts.get(family).filter(|text| !text.is_empty()) else { return Ok(None) };
    let (parsed, expected) = match family {
        Family::V4 => (text.parse::<Ipv4Addr>().ok().map(IpAddr::V4), "an IPv4 address"),
        Family::V6 => (text.parse::<Ipv6Addr>().ok().map(IpAddr::V6), "an IPv6 address"),
    };
    parsed.map(Some).ok_or_else(|| BadAnnotation { name: suffix(names, family), value: (**text).to_owned(), expected })
}

/// The address and the VXLAN link that a node publishes in one family.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PublishedAddress {
    /// The address that other nodes send packets to.
    pub public_ip: IpAddr,
    /// Its VXLAN link; `None` for other backends.
    pub vxlan: Option<VxlanData>,
}

/// The annotations that a node publishes, by full name.
#[must_use]
pub(crate) fn published_annotations(prefix: &Prefix, backend: &Backend, ends: &PerFamily<PublishedAddress>) -> BTreeMap<String, String> {
    let mut all: BTreeMap<String, String> =
        [(prefix.name(MANAGED), "true".to_owned()), (prefix.name(BACKEND_TYPE), backend.as_str().to_owned())].into();
    for (family, end) in ends.iter() {
        let data = end.vxlan.as_ref().and_then(|data| serde_json::to_string(data).ok()).unwrap_or_else(|| "null".into());
        all.insert(prefix.name(suffix(BACKEND_DATA, family)), data);
        all.insert(prefix.name(suffix(PUBLIC_IP, family)), end.public_ip.to_string());
    }
    all
}

/// The strategic merge patch that sets these annotations of a Node; `None` if the Node has them already. It contains only the annotations
/// that change. flannel sends such a patch to `nodes/status`.
#[must_use]
pub(crate) fn annotation_patch<'a>(
    desired: &BTreeMap<String, String>,
    found: impl IntoIterator<Item = (&'a str, &'a str)>,
) -> Option<Value> {
    let found: BTreeMap<&str, &str> = found.into_iter().collect();
    let changed: BTreeMap<&String, &String> =
        desired.iter().filter(|(name, value)| found.get(name.as_str()) != Some(&value.as_str())).collect();
    (!changed.is_empty()).then(|| json!({"metadata": {"annotations": changed}}))
}

/// The merge patch with which a node leaves the pod network: in all families, or in the lost ones. `None` if it has left already. Other
/// nodes read its podCIDRs, which cannot be changed, so without the patch they would still send packets to it.
#[must_use]
pub(crate) fn withdrawal_patch(prefix: &Prefix, lost: &[Family], is_all: bool, found: &NodeAnnotations) -> Option<Value> {
    let names: Vec<&str> = if is_all {
        found.managed.then_some(MANAGED).into_iter().collect()
    } else {
        let published = lost.iter().filter(|family| found.public_ips.get(**family).is_some());
        published.map(|family| suffix(PUBLIC_IP, *family)).collect()
    };
    let absent: BTreeMap<String, Value> = names.iter().map(|name| (prefix.name(name), Value::Null)).collect();
    (!absent.is_empty()).then(|| json!({"metadata": {"annotations": absent}}))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pod_network::net_conf::VxlanConf;

    fn mac(text: &str) -> Mac {
        text.parse().expect("a hardware address")
    }

    #[test]
    fn prefixes_are_completed_or_refused() {
        for (text, name) in [
            ("flannel.alpha.coreos.com", "flannel.alpha.coreos.com/public-ip"),
            ("flannel.alpha.coreos.com/", "flannel.alpha.coreos.com/public-ip"),
            ("flannel.alpha.coreos.com/pod", "flannel.alpha.coreos.com/pod-public-ip"),
            ("flannel.alpha.coreos.com/pod-", "flannel.alpha.coreos.com/pod-public-ip"),
            ("a.b/c_d-1", "a.b/c_d-1-public-ip"),
        ] {
            assert_eq!(Prefix::new(text).map(|prefix| prefix.name("public-ip")), Ok(name.to_owned()), "{text}");
        }
        assert_eq!(Prefix::new("a.b/c/d"), Err(BadPrefix::Slashes));
        for text in ["", "/", "flannel", "flannel/", "a..b/", "A.b/", "a.b/C", "a.b/c.d", "a.b/-", ".a/x"] {
            assert_eq!(Prefix::new(text), Err(BadPrefix::Format), "{text}");
        }
        assert_eq!(Prefix::new(DEFAULT_PREFIX), Ok(Prefix::default()));
    }

    #[test]
    fn a_node_without_a_subnet_leaves_the_network() {
        let prefix = Prefix::default();
        let found = [("kube-subnet-manager", "true"), ("public-ip", "192.0.2.1"), ("public-ipv6", "fd00::1"), ("backend-data", "null")]
            .map(|(suffix, value)| (prefix.name(suffix), value));
        let found = NodeAnnotations::read(&prefix, found.iter().map(|(name, value)| (name.as_str(), *value)));
        let patch =
            |lost: &[Family], is_all| withdrawal_patch(&prefix, lost, is_all, &found).map(|patch| patch["metadata"]["annotations"].clone());
        assert_eq!(patch(&[Family::V4], true), Some(json!({"flannel.alpha.coreos.com/kube-subnet-manager": null})));
        assert_eq!(patch(&[Family::V6], false), Some(json!({"flannel.alpha.coreos.com/public-ipv6": null})));
        assert_eq!(withdrawal_patch(&prefix, &[Family::V4], true, &NodeAnnotations::default()), None);
    }

    #[test]
    fn published_annotations_are_flannels_to_the_byte() {
        let vxlan = Some(VxlanData { vni: Some(1), mac: mac("26:22:24:FA:1a:29") });
        let ends: PerFamily<PublishedAddress> =
            [(Family::V4, PublishedAddress { public_ip: [192, 168, 77, 1].into(), vxlan })].into_iter().collect();
        let desired = published_annotations(&Prefix::default(), &Backend::Vxlan(VxlanConf::default()), &ends);
        assert_eq!(
            annotation_patch(&desired, []).map(|patch| patch.to_string()).as_deref(),
            Some(
                r#"{"metadata":{"annotations":{"flannel.alpha.coreos.com/backend-data":"{\"VNI\":1,\"VtepMAC\":\"26:22:24:fa:1a:29\"}","flannel.alpha.coreos.com/backend-type":"vxlan","flannel.alpha.coreos.com/kube-subnet-manager":"true","flannel.alpha.coreos.com/public-ip":"192.168.77.1"}}}"#
            )
        );
        // The patch contains only what differs. There is none if nothing differs.
        let mut found: Vec<(&str, &str)> =
            desired.iter().map(|(name, value)| (name.as_str(), value.as_str())).chain([("other", "x")]).collect();
        assert_eq!(annotation_patch(&desired, found.iter().copied()), None);
        found[3].1 = "192.168.77.2";
        let text = annotation_patch(&desired, found).map(|patch| patch.to_string());
        assert_eq!(text.as_deref(), Some(r#"{"metadata":{"annotations":{"flannel.alpha.coreos.com/public-ip":"192.168.77.1"}}}"#));

        let ends = [
            (Family::V4, PublishedAddress { public_ip: [10, 0, 0, 1].into(), vxlan: None }),
            (Family::V6, PublishedAddress { public_ip: "fd00::1".parse().expect("an address"), vxlan: None }),
        ];
        let desired = published_annotations(&Prefix::new("a.b/c").expect("good"), &Backend::HostGw, &ends.into_iter().collect());
        let lines: Vec<String> = desired.iter().map(|(name, value)| format!("{name}={value}")).collect();
        assert_eq!(
            lines,
            [
                "a.b/c-backend-data=null",
                "a.b/c-backend-type=host-gw",
                "a.b/c-backend-v6-data=null",
                "a.b/c-kube-subnet-manager=true",
                "a.b/c-public-ip=10.0.0.1",
                "a.b/c-public-ipv6=fd00::1"
            ]
        );
        assert!(desired.keys().all(|name| Prefix::new("a.b/c").expect("good").written().contains(name)));
    }

    #[test]
    fn annotations_of_nodes_are_validated() {
        let read = |pairs: &[(&str, &str)]| {
            let all: Vec<(String, &str)> = pairs.iter().map(|(name, value)| (format!("{DEFAULT_PREFIX}/{name}"), *value)).collect();
            NodeAnnotations::read(
                &Prefix::default(),
                all.iter().map(|(name, value)| (name.as_str(), *value)).chain([("public-ip", "9.9.9.9")]),
            )
        };
        let node = read(&[
            ("kube-subnet-manager", "true"),
            ("backend-type", "vxlan"),
            ("backend-data", r#"{"VtepMAC":"26:22:24:fa:1a:29","VNI":5,"More":1}"#),
            ("backend-v6-data", "null"),
            ("public-ip", "192.168.77.1"),
            ("public-ipv6", "192.168.77.1"),
            ("node-public-ip", "10.0.0.9"),
            ("public-ip-overwrite", ""),
            ("public-ipv6-overwrite", "fd00::9"),
        ]);
        assert!(node.managed && node.backend_type.as_deref() == Some("vxlan"));
        assert_eq!(node.vxlan(Family::V4), Ok(Some(VxlanData { vni: Some(5), mac: mac("26:22:24:fa:1a:29") })));
        assert_eq!(node.vxlan(Family::V6), Ok(None));
        assert_eq!(node.public_ip(Family::V4), Ok(Some([192, 168, 77, 1].into())));
        let bad = node.public_ip(Family::V6).expect_err("an IPv4 address").to_string();
        assert_eq!(bad, "annotation public-ipv6 is \"192.168.77.1\", which is not an IPv6 address");
        assert_eq!((node.node_public_ip(Family::V4), node.overwrite(Family::V4)), (Ok(Some([10, 0, 0, 9].into())), Ok(None)));
        assert_eq!(node.overwrite(Family::V6), Ok("fd00::9".parse().ok()));
        // As Go's encoding/json: a key in any case, the last of two, and every spelling of a hardware address.
        for data in [
            r#"{"vni":5,"vtepmac":"26:22:24:fa:1a:29"}"#,
            r#"{"VNI":5,"VtepMac":"26-22-24-FA-1A-29"}"#,
            r#"{"Vni":5,"VTEPMAC":"2622.24fa.1a29"}"#,
            r#"{"VNI":1,"VtepMAC":"02:00:00:00:00:01","vtepMAC":"26:22:24:fa:1a:29","VNI":5}"#,
        ] {
            let want = VxlanData { vni: Some(5), mac: mac("26:22:24:fa:1a:29") };
            assert_eq!(read(&[("backend-data", data)]).vxlan(Family::V4), Ok(Some(want)), "{data}");
        }
        for data in [
            "",
            "{}",
            "x",
            r#"{"VtepMAC":null}"#,
            r#"{"VtepMAC":"26-22-24:fa:1a:29"}"#,
            r#"{"VtepMAC":"26:22:24:fa:1a:29:00:01"}"#,
            r#"{"VtepMAC":"00:00:00:00:00:00"}"#,
            r#"{"VtepMAC":"01:00:5e:00:00:01"}"#,
            r#"{"VNI":-1,"VtepMAC":"26:22:24:fa:1a:29"}"#,
        ] {
            assert!(read(&[("backend-data", data)]).vxlan(Family::V4).is_err(), "{data}");
        }
        assert_eq!(
            read(&[("backend-data", r#"{"VtepMAC":"26:22:24:fa:1a:29"}"#)]).vxlan(Family::V4).map(|data| data.and_then(|data| data.vni)),
            Ok(None)
        );
        assert!(!read(&[("kube-subnet-manager", "True")]).managed);
    }
}
