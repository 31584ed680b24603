//! What the operator asked for and what the host is like, resolved: plain data, no parsing left to do.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::Duration;

use ipnetwork::IpNetwork;

/// Everything the proxy's rules and its pace depend on (spec section 1.4).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProxySettings {
    /// How traffic from local pods is told apart.
    pub detect_local: DetectLocal,
    /// Which node addresses answer for NodePorts.
    pub node_port_addresses: NodePortAddresses,
    /// Masquerade all traffic to cluster IPs, not only what comes from outside the pods.
    pub masquerade_all: bool,
    /// The bit of the packet mark that means "masquerade", 0-31.
    pub masquerade_bit: u8,
    /// NodePorts answer on 127.0.0.0/8 too (IPv4 only).
    pub localhost_node_ports: bool,
    /// Feature gate `AllowServiceExternalIPs`.
    pub allow_external_ips: bool,
    /// `bindAddress`: overrides the node IP of its family unless unspecified.
    pub bind_address: Option<IpAddr>,
    /// How long to wait before trying again after a failed sync, at most.
    pub sync_period: Duration,
    /// Least time between the end of a sync and the start of the next, where one is asked for. If not, the pace follows from how long
    /// syncs take.
    pub min_sync_period: Option<Duration>,
}

impl Default for ProxySettings {
    fn default() -> Self {
        Self {
            detect_local: DetectLocal::default(),
            node_port_addresses: NodePortAddresses::default(),
            masquerade_all: false,
            masquerade_bit: 14,
            localhost_node_ports: true,
            allow_external_ips: true,
            bind_address: None,
            sync_period: Duration::from_secs(30),
            min_sync_period: None,
        }
    }
}

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

/// What connection tracking is to be like on this node (spec section 1.10). Zero means: leave the kernel's own value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ConntrackSettings {
    /// Tracked connections per hardware thread; zero leaves the limit alone, whatever `min` says.
    pub max_per_core: u32,
    /// Tracked connections at least, where the limit is set at all.
    pub min: u32,
    /// How long an idle TCP connection is remembered. Whole seconds; fractions are cut off.
    pub tcp_established_timeout: Duration,
    /// How long a TCP connection is remembered in `CLOSE_WAIT`. Whole seconds; fractions are cut off.
    pub tcp_close_wait_timeout: Duration,
    /// Let TCP packets outside the window pass. False leaves the kernel's own value.
    pub tcp_be_liberal: bool,
    /// How long a UDP flow without an answer is remembered. Whole seconds; less than one becomes zero (spec section 12.47).
    pub udp_timeout: Duration,
    /// How long a UDP flow with answers is remembered. Whole seconds; less than one becomes zero.
    pub udp_stream_timeout: Duration,
}

impl Default for ConntrackSettings {
    fn default() -> Self {
        Self {
            max_per_core: 32_768,
            min: 131_072,
            tcp_established_timeout: Duration::from_secs(24 * 60 * 60),
            tcp_close_wait_timeout: Duration::from_secs(60 * 60),
            tcp_be_liberal: false,
            udp_timeout: Duration::ZERO,
            udp_stream_timeout: Duration::ZERO,
        }
    }
}

/// How traffic from local pods is told apart (spec section 1.7).
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DetectLocal {
    /// By source address: the first of these CIDRs of the family, if any.
    ClusterCidr(Vec<IpNetwork>),
    /// By source address: the first pod CIDR of the family of this Node.
    NodeCidr,
    /// By the bridge it comes in through.
    BridgeInterface(String),
    /// By the start of the name of the interface it comes in through.
    InterfaceNamePrefix(String),
}

impl Default for DetectLocal {
    fn default() -> Self {
        Self::ClusterCidr(Vec::new())
    }
}

/// Which node addresses answer for NodePorts (spec section 1.7).
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NodePortAddresses {
    /// Only the node's own primary addresses.
    Primary,
    /// Addresses within these CIDRs; none of a family means all of that family.
    Cidrs(Vec<IpNetwork>),
}

impl Default for NodePortAddresses {
    fn default() -> Self {
        Self::Cidrs(Vec::new())
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

/// What was asked for before any manifest has had its say.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Asked {
    /// Settings from flags or a configuration file.
    pub settings: ProxySettings,
    /// This node's name, where flags or a configuration file say it.
    pub node_name: Option<String>,
    /// The host's name, in lower case: this node's name where nothing else says it.
    pub host_name: String,
}
