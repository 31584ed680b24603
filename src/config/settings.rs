//! Settings of the daemon, and what was requested before manifests are read. Plain values: `config` has parsed and checked them. PURE.

use std::net::SocketAddr;

use crate::netlink::kernel_settings::ConntrackSettings;
use crate::proxy::settings::ProxySettings;

/// Settings of the daemon that do not change rules [kube-proxy 1.4].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DaemonSettings {
    /// Address of the health server; `None` if there is none.
    pub healthz: Option<SocketAddr>,
    /// Address of the metrics server.
    pub metrics: SocketAddr,
    /// If a server cannot listen, the program ends. Otherwise it tries again.
    pub hard_fail: bool,
    /// The metrics server answers profiling paths.
    pub profiling: bool,
    /// Score for the kernel's out-of-memory killer, -1000 to 1000.
    pub oom_score_adj: i32,
    /// The operator set that score; it is not the default.
    pub oom_score_is_set: bool,
    /// Settings of the kernel's connection tracking.
    pub conntrack: ConntrackSettings,
    /// Verbosity of the log, as in klog: 0 for events that matter, 10 for everything.
    pub verbosity: u32,
    /// Format of the log.
    pub log_format: LogFormat,
}

/// Formats of the log.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum LogFormat {
    /// Lines of text, for people.
    #[default]
    Text,
    /// One JSON object per line.
    Json,
}

/// What flags, the configuration file and the host say. Manifests may override some of it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RequestedSettings {
    /// Settings from flags or a configuration file.
    pub settings: ProxySettings,
    /// This node's name, if flags or a configuration file give one.
    pub node_name: Option<String>,
    /// The host's name, in lower case: this node's name if nothing else gives one.
    pub host_name: String,
}
