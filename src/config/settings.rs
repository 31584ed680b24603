//! What the operator asked for and what the host is like, resolved: plain data, no parsing left to do.

use crate::netlink::kernel_settings::ConntrackSettings;
use crate::proxy::settings::ProxySettings;
use std::net::{Ipv4Addr, SocketAddr};

/// Everything about the daemon that is not about rules (spec section 1.4).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DaemonSettings {
    /// Where the health server listens; `None` for nowhere.
    pub healthz: Option<SocketAddr>,
    /// Where the metrics server listens.
    pub metrics: SocketAddr,
    /// A server that cannot listen ends the program; if not, it is tried again.
    pub hard_fail: bool,
    /// The metrics server answers for profiling, too.
    pub profiling: bool,
    /// Score for the kernel's out-of-memory killer, -1000 to 1000.
    pub oom_score_adj: i32,
    /// The operator asked for that score.
    pub oom_score_asked: bool,
    /// Settings of the kernel's connection tracking.
    pub conntrack: ConntrackSettings,
    /// How much is logged, as klog counts: 0 for what matters, 10 for everything.
    pub verbosity: u32,
    /// How it is logged.
    pub log_format: LogFormat,
}

impl Default for DaemonSettings {
    fn default() -> Self {
        Self {
            healthz: Some((Ipv4Addr::UNSPECIFIED, 10256).into()),
            metrics: (Ipv4Addr::LOCALHOST, 10249).into(),
            hard_fail: false,
            profiling: false,
            oom_score_adj: -999,
            oom_score_asked: false,
            conntrack: ConntrackSettings::default(),
            verbosity: 0,
            log_format: LogFormat::Text,
        }
    }
}

/// How log lines look.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum LogFormat {
    /// For people.
    #[default]
    Text,
    /// An object a line.
    Json,
}

/// What was asked for before any manifest has had its say.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RequestedSettings {
    /// Settings from flags or a configuration file.
    pub settings: ProxySettings,
    /// This node's name, where flags or a configuration file say it.
    pub node_name: Option<String>,
    /// The host's name, in lower case: this node's name where nothing else says it.
    pub host_name: String,
}
