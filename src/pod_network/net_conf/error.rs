//! Why a net-conf.json is refused.

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

/// Returns the error for an invalid value of a key.
pub(in crate::pod_network) fn bad(key: &'static str, cause: String) -> BadNetConf {
    BadNetConf::Key { key, cause }
}
