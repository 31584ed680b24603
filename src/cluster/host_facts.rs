//! `HostFacts` (`sepal/v1alpha1`): what a node knows and objects can't tell, written down, so that rules can be rendered anywhere.

use serde::Deserialize;
use serde_json::Value;
use std::net::IpAddr;

use crate::bad_setting::BadSetting;

use crate::cluster::ip::parse_ip;

/// `apiVersion` of the object.
pub const API_VERSION: &str = "sepal/v1alpha1";
/// `kind` of the object.
pub const KIND: &str = "HostFacts";

/// The facts as written; what is absent is the host's own.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct HostFactsOverrides {
    /// Every local address, in CIDR notation or bare.
    pub addresses: Option<Vec<String>>,
    /// conntrack lets out-of-window TCP packets pass.
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
    /// A field of the wrong type, by its path.
    pub fn from_value(value: &Value) -> Result<Self, BadSetting> {
        let host = value.get("host").unwrap_or(&Value::Null);
        let read: Result<Option<Self>, _> = serde_path_to_error::deserialize(host);
        read.map(Option::unwrap_or_default)
            .map_err(|error| BadSetting { field: format!("host.{}", error.path()), cause: error.inner().to_string() })
    }

    /// Whether nothing is left for the host to say.
    #[must_use]
    pub const fn complete(&self) -> bool {
        self.addresses.is_some() && self.tcp_be_liberal.is_some() && self.nfacct.is_some() && self.no_random_fully.is_some()
    }

    /// Puts what is written over what the host says.
    ///
    /// # Errors
    /// An address that is none.
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

/// What a node knows and objects can't tell.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct HostFacts {
    /// Every address of every local interface.
    pub addresses: Vec<IpAddr>,
    /// `net.netfilter.nf_conntrack_tcp_be_liberal` is on: out-of-window packets are not to be dropped.
    pub tcp_be_liberal: bool,
    /// Which of kube-proxy's two nfacct counters exist (spec section 6.8).
    pub nfacct: NfacctCounters,
    /// MASQUERADE understands `--random-fully` (iptables 1.6.2 and later).
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
