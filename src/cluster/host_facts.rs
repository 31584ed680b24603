//! Facts about the host that rules depend on and that no API object contains. The object `HostFacts` (`sepal/v1alpha1`) states them in a
//! file, so that rules can be rendered on any machine.

use serde::Deserialize;
use serde_json::Value;
use std::net::IpAddr;

use crate::bad_setting::BadSetting;

use crate::cluster::ip::parse_ip;

/// `apiVersion` of the object.
pub const API_VERSION: &str = "sepal/v1alpha1";
/// `kind` of the object.
pub(crate) const KIND: &str = "HostFacts";

/// The facts that a `HostFacts` object states. A field that is absent keeps the value read from the host.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct HostFactsOverrides {
    /// Every local address, with or without a prefix length.
    pub addresses: Option<Vec<String>>,
    /// conntrack accepts TCP packets outside the window.
    pub tcp_be_liberal: Option<bool>,
    /// Both nfacct counters are usable.
    pub nfacct: Option<bool>,
    /// iptables is too old for `--random-fully`.
    pub no_random_fully: Option<bool>,
}

impl HostFactsOverrides {
    /// Reads the object.
    ///
    /// # Errors
    /// A field has the wrong type. The error names its path.
    pub(crate) fn from_value(value: &Value) -> Result<Self, BadSetting> {
        let host = value.get("host").unwrap_or(&Value::Null);
        let read: Result<Option<Self>, _> = serde_path_to_error::deserialize(host);
        read.map(Option::unwrap_or_default)
            .map_err(|error| BadSetting { field: format!("host.{}", error.path()), cause: error.inner().to_string() })
    }

    /// Returns true if every fact is stated, so that the host need not be read.
    #[must_use]
    pub const fn complete(&self) -> bool {
        self.addresses.is_some() && self.tcp_be_liberal.is_some() && self.nfacct.is_some() && self.no_random_fully.is_some()
    }

    /// Returns the facts of the host, with the stated facts in place of the real ones.
    ///
    /// # Errors
    /// A text in `addresses` is not an address.
    pub fn over(&self, mut host: HostFacts) -> Result<HostFacts, BadSetting> {
        if let Some(texts) = &self.addresses {
            let address = |text: &String| {
                let bare = text.split_once('/').map_or(text.as_str(), |(ip, _)| ip);
                parse_ip(bare).ok_or_else(|| BadSetting { field: "host.addresses".into(), cause: format!("{text:?} is not an address") })
            };
            host.addresses = texts.iter().map(address).collect::<Result<_, _>>()?;
        }
        if let Some(liberal) = self.tcp_be_liberal {
            host.tcp_be_liberal = liberal;
        }
        if let Some(usable) = self.nfacct {
            host.nfacct = NfacctCounters { ct_state_invalid: usable, localhost_node_ports: usable };
        }
        if let Some(old) = self.no_random_fully {
            host.random_fully = !old;
        }
        Ok(host)
    }
}

/// Facts about the host that no API object contains.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct HostFacts {
    /// Every address of every local interface.
    pub addresses: Vec<IpAddr>,
    /// `net.netfilter.nf_conntrack_tcp_be_liberal` is on: packets outside the window are not dropped.
    pub tcp_be_liberal: bool,
    /// Which of kube-proxy's two nfacct counters exist [kube-proxy 6.8].
    pub nfacct: NfacctCounters,
    /// MASQUERADE supports `--random-fully` (iptables 1.6.2 and later).
    pub random_fully: bool,
}

/// kube-proxy's nfacct counters that are usable on this host.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct NfacctCounters {
    /// `ct_state_invalid_dropped_pkts`.
    pub ct_state_invalid: bool,
    /// `localhost_nps_accepted_pkts`.
    pub localhost_node_ports: bool,
}
