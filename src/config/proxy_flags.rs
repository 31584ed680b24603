//! kube-proxy's flags (spec section 1.2), with its names and defaults, and the configuration they amount to.

use std::path::PathBuf;

use clap::Args;

use super::duration::GoDuration;
use super::flag_values::{Gates, Patterns, address_and_port, duration, gates, go_bool, ip, patterns, version};
use super::kubeproxy::defaults;
use super::kubeproxy::defaults::{HEALTHZ_PORT, METRICS_PORT, append_port};
use super::kubeproxy::document::KubeProxyConfiguration;
use super::settings::LogFormat;

/// Every flag of kube-proxy in iptables mode; those of other modes are taken and have no effect.
#[derive(Args, Clone, Debug, Default)]
#[command(next_help_heading = "Flags of kube-proxy")]
pub struct ProxyFlags {
    /// Path of a KubeProxyConfiguration file. Most other flags are ignored then, see the README
    #[arg(long, value_name = "FILE", default_value = "", hide_default_value = true)]
    pub config: String,
    /// Write the resulting configuration to this file, and exit
    #[arg(long, value_name = "FILE", default_value = "", hide_default_value = true)]
    pub write_config_to: String,
    /// Delete the rules of every proxy mode, and exit
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_value = "false", default_missing_value = "true", value_parser = go_bool, action = clap::ArgAction::Set)]
    pub cleanup: bool,
    /// Write the kernel settings, which needs privileges, and exit
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_value = "false", default_missing_value = "true", value_parser = go_bool, action = clap::ArgAction::Set)]
    pub init_only: bool,
    /// Print the version, and exit; `raw` prints more
    #[arg(long, value_name = "true|false|raw", num_args = 0..=1, require_equals = true, default_value = "false", default_missing_value = "true", value_parser = version)]
    pub version: String,
    /// Feature gates: NAME=true|false, separated by commas
    #[arg(long, value_name = "GATES", value_parser = gates)]
    pub feature_gates: Vec<Gates>,
    /// Path of the kubeconfig for the API server [default: $KUBECONFIG, ~/.kube/config or in-cluster]
    #[arg(long, value_name = "FILE", default_value = "", hide_default_value = true)]
    pub kubeconfig: String,
    /// Address of the API server, overrides the kubeconfig's
    #[arg(long, value_name = "URL", default_value = "", hide_default_value = true)]
    pub master: String,
    /// Accepted and ignored: JSON is used
    #[arg(long, value_name = "TYPE", default_value = "application/vnd.kubernetes.protobuf")]
    pub kube_api_content_type: String,
    /// Requests to the API server in one burst
    #[arg(long, value_name = "N", default_value_t = 10)]
    pub kube_api_burst: i32,
    /// Requests to the API server per second
    #[arg(long, value_name = "N", default_value_t = 5.0)]
    pub kube_api_qps: f32,
    /// Name of this node's Node [default: the host name]
    #[arg(long, value_name = "NAME")]
    pub hostname_override: Option<String>,
    /// IP of this node, in place of its Node's of the same family; nothing listens on it
    #[arg(long, value_name = "IP", default_value = "0.0.0.0", value_parser = ip)]
    pub bind_address: String,
    /// Address of the health server: IP or IP:port
    #[arg(long, value_name = "ADDRESS", default_value = "0.0.0.0:10256", value_parser = address_and_port)]
    pub healthz_bind_address: String,
    /// Address of the metrics server: IP or IP:port
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1:10249", value_parser = address_and_port)]
    pub metrics_bind_address: String,
    /// Deprecated: port of the health server if its address has none; 0 for no health server
    #[arg(long, value_name = "PORT", default_value_t = HEALTHZ_PORT)]
    pub healthz_port: u16,
    /// Deprecated: port of the metrics server if its address has none
    #[arg(long, value_name = "PORT", default_value_t = METRICS_PORT)]
    pub metrics_port: u16,
    /// Exit if the health or the metrics server cannot listen
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_value = "false", default_missing_value = "true", value_parser = go_bool, action = clap::ArgAction::Set)]
    pub bind_address_hard_fail: bool,
    /// Answer /debug/flags/v on the metrics server, which sets the verbosity; profiles are not supported
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_value = "false", default_missing_value = "true", value_parser = go_bool, action = clap::ArgAction::Set)]
    pub profiling: bool,
    /// Previous minor version, to show its hidden metrics
    #[arg(long, value_name = "VERSION", default_value = "", hide_default_value = true)]
    pub show_hidden_metrics_for_version: String,
    /// Proxy mode: only iptables, the default
    #[arg(long, value_name = "MODE", default_value = "", hide_default_value = true)]
    pub proxy_mode: String,
    /// Bit of the packet mark that means "masquerade"
    #[arg(long, value_name = "BIT", default_value_t = 14)]
    pub iptables_masquerade_bit: i32,
    /// Masquerade all traffic to cluster IPs
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_value = "false", default_missing_value = "true", value_parser = go_bool, action = clap::ArgAction::Set)]
    pub masquerade_all: bool,
    /// Let NodePorts answer on 127.0.0.0/8, too
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_value = "true", default_missing_value = "true", value_parser = go_bool, action = clap::ArgAction::Set)]
    pub iptables_localhost_nodeports: bool,
    /// Longest pause before a failed sync is tried again [default: 30s]
    #[arg(long, value_name = "DURATION", value_parser = duration)]
    pub iptables_sync_period: Option<GoDuration>,
    /// Shortest time between two syncs [default: none; the pace follows from how long syncs take]
    #[arg(long, value_name = "DURATION", value_parser = duration)]
    pub iptables_min_sync_period: Option<GoDuration>,
    /// How to detect traffic of local pods: ClusterCIDR, NodeCIDR, BridgeInterface or InterfaceNamePrefix
    #[arg(long, value_name = "MODE", default_value = "", hide_default_value = true)]
    pub detect_local_mode: String,
    /// CIDRs of the cluster's pods, at most one per family, separated by a comma
    #[arg(long, value_name = "CIDRS", default_value = "", hide_default_value = true)]
    pub cluster_cidr: String,
    /// Name of the bridge for --detect-local-mode=BridgeInterface
    #[arg(long, value_name = "NAME", default_value = "", hide_default_value = true)]
    pub pod_bridge_interface: String,
    /// Prefix of interface names for --detect-local-mode=InterfaceNamePrefix
    #[arg(long, value_name = "PREFIX", default_value = "", hide_default_value = true)]
    pub pod_interface_name_prefix: String,
    /// Addresses that NodePorts answer on: CIDRs, or the word primary [default: all addresses of the node]
    #[arg(long, value_name = "CIDRS", value_delimiter = ',')]
    pub nodeport_addresses: Vec<String>,
    /// Score for the kernel's out-of-memory killer, -1000 to 1000 [default: -999]
    #[arg(long, value_name = "SCORE")]
    pub oom_score_adj: Option<i32>,
    /// Connections to track per CPU core; 0 keeps the kernel's limit
    #[arg(long, value_name = "N", default_value_t = 32768)]
    pub conntrack_max_per_core: i32,
    /// Least number of connections to track, however few CPU cores there are
    #[arg(long, value_name = "N", default_value_t = 131_072)]
    pub conntrack_min: i32,
    /// Idle timeout of established TCP connections; 0 keeps the kernel's
    #[arg(long, value_name = "DURATION", default_value = "24h0m0s", value_parser = duration)]
    pub conntrack_tcp_timeout_established: GoDuration,
    /// Timeout of TCP connections that wait for the local side to close; 0 keeps the kernel's
    #[arg(long, value_name = "DURATION", default_value = "1h0m0s", value_parser = duration)]
    pub conntrack_tcp_timeout_close_wait: GoDuration,
    /// Let TCP packets outside the window pass
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_value = "false", default_missing_value = "true", value_parser = go_bool, action = clap::ArgAction::Set)]
    pub conntrack_tcp_be_liberal: bool,
    /// Idle timeout of UDP flows without an answer; 0 keeps the kernel's
    #[arg(long, value_name = "DURATION", default_value = "0s", value_parser = duration)]
    pub conntrack_udp_timeout: GoDuration,
    /// Idle timeout of UDP flows with an answer; 0 keeps the kernel's
    #[arg(long, value_name = "DURATION", default_value = "0s", value_parser = duration)]
    pub conntrack_udp_timeout_stream: GoDuration,
    /// Accepted and ignored: watches need no refresh
    #[arg(long, value_name = "DURATION", default_value = "15m0s", value_parser = duration)]
    pub config_sync_period: GoDuration,
    #[command(flatten)]
    #[allow(missing_docs, reason = "clap would show a doc comment here as help text")]
    pub logging: LoggingFlags,
    #[command(flatten)]
    #[allow(missing_docs, reason = "clap would show a doc comment here as help text")]
    pub ignored: IgnoredFlags,
}

/// Flags about the log. They count with a configuration file, too.
#[derive(Args, Clone, Debug, Default)]
pub struct LoggingFlags {
    /// Verbosity of the log: 0 for events that matter, 2 also for each sync, 4 for each decision, 6 for everything
    #[arg(short = 'v', long = "v", value_name = "LEVEL")]
    pub verbosity: Option<u32>,
    /// Accepted and ignored: PATTERN=LEVEL, separated by commas
    #[arg(long, value_name = "PATTERNS", value_parser = patterns)]
    pub vmodule: Vec<Patterns>,
    /// Format of the log: text or json [default: text]
    #[arg(long, value_name = "FORMAT")]
    pub logging_format: Option<String>,
    /// Accepted and ignored: every line is written at once [default: 5s]
    #[arg(long, value_name = "DURATION", value_parser = duration)]
    pub log_flush_frequency: Option<GoDuration>,
    /// Accepted and ignored: the log is one stream
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true", value_parser = go_bool)]
    pub log_text_split_stream: Option<bool>,
    /// Accepted and ignored: nothing is buffered
    #[arg(long, value_name = "BYTES")]
    pub log_text_info_buffer_size: Option<String>,
    /// Accepted and ignored: the log is one stream
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true", value_parser = go_bool)]
    pub log_json_split_stream: Option<bool>,
    /// Accepted and ignored: nothing is buffered
    #[arg(long, value_name = "BYTES")]
    pub log_json_info_buffer_size: Option<String>,
}

/// Flags that mean nothing in iptables mode, there as here.
#[derive(Args, Clone, Debug, Default)]
#[allow(missing_docs, reason = "flags of a mode that is not this program's; they are kept, and that is all")]
pub struct IgnoredFlags {
    #[arg(long, hide = true, default_value = "30s", value_parser = duration)]
    pub ipvs_sync_period: GoDuration,
    #[arg(long, hide = true, default_value = "0s", value_parser = duration)]
    pub ipvs_min_sync_period: GoDuration,
    #[arg(long, hide = true, default_value = "")]
    pub ipvs_scheduler: String,
    #[arg(long, hide = true, value_delimiter = ',')]
    pub ipvs_exclude_cidrs: Vec<String>,
    #[arg(long, hide = true, num_args = 0..=1, require_equals = true, default_value = "false", default_missing_value = "true", value_parser = go_bool, action = clap::ArgAction::Set)]
    pub ipvs_strict_arp: bool,
    #[arg(long, hide = true, default_value = "0s", value_parser = duration)]
    pub ipvs_tcp_timeout: GoDuration,
    #[arg(long, hide = true, default_value = "0s", value_parser = duration)]
    pub ipvs_tcpfin_timeout: GoDuration,
    #[arg(long, hide = true, default_value = "0s", value_parser = duration)]
    pub ipvs_udp_timeout: GoDuration,
    #[arg(long, hide = true, default_value = "/proc/sys/kernel/random/boot_id")]
    pub boot_id_file: String,
    #[arg(long, hide = true, default_value = "/etc/machine-id,/var/lib/dbus/machine-id")]
    pub machine_id_file: String,
}

impl ProxyFlags {
    /// The configuration file, if one is named.
    #[must_use]
    pub fn config_file(&self) -> Option<PathBuf> {
        (!self.config.is_empty()).then(|| PathBuf::from(&self.config))
    }

    /// The configuration these flags amount to without a file. It is filled in: defaults come before flags, so that zero is zero where
    /// the command line says so (spec section 1.3).
    #[must_use]
    pub fn configuration(&self) -> KubeProxyConfiguration {
        let mut config = KubeProxyConfiguration::built_in();
        config.feature_gates = self.feature_gates.iter().flat_map(|gates| gates.0.iter().cloned()).collect();
        let client = &mut config.client_connection;
        client.kubeconfig.clone_from(&self.kubeconfig);
        client.content_type.clone_from(&self.kube_api_content_type);
        (client.burst, client.qps) = (self.kube_api_burst, self.kube_api_qps);
        if !self.bind_address.is_empty() {
            config.bind_address.clone_from(&self.bind_address);
        }
        let ports = self.write_config_to.is_empty().then_some((self.healthz_port, self.metrics_port));
        config.healthz_bind_address = listen(&self.healthz_bind_address, config.healthz_bind_address, HEALTHZ_PORT, ports.map(|p| p.0));
        config.metrics_bind_address = listen(&self.metrics_bind_address, config.metrics_bind_address, METRICS_PORT, ports.map(|p| p.1));
        config.bind_address_hard_fail = self.bind_address_hard_fail;
        config.enable_profiling = self.profiling;
        config.show_hidden_metrics_for_version.clone_from(&self.show_hidden_metrics_for_version);
        config.mode.clone_from(&self.proxy_mode);
        let iptables = &mut config.iptables;
        iptables.masquerade_bit = Some(self.iptables_masquerade_bit);
        iptables.masquerade_all = self.masquerade_all;
        iptables.localhost_node_ports = Some(self.iptables_localhost_nodeports);
        iptables.sync_period = self.iptables_sync_period.unwrap_or(iptables.sync_period);
        iptables.min_sync_period = self.iptables_min_sync_period.unwrap_or(defaults::MIN_SYNC_PERIOD);
        config.paced = self.iptables_min_sync_period.is_some();
        config.detect_local_mode.clone_from(&self.detect_local_mode);
        config.detect_local.bridge_interface.clone_from(&self.pod_bridge_interface);
        config.detect_local.interface_name_prefix.clone_from(&self.pod_interface_name_prefix);
        config.cluster_cidr.clone_from(&self.cluster_cidr);
        config.node_port_addresses = some(&self.nodeport_addresses);
        config.oom_score_adj = self.oom_score_adj.or(config.oom_score_adj);
        config.score_asked = self.oom_score_adj.is_some();
        let conntrack = &mut config.conntrack;
        (conntrack.max_per_core, conntrack.min) = (Some(self.conntrack_max_per_core), Some(self.conntrack_min));
        conntrack.tcp_established_timeout = Some(self.conntrack_tcp_timeout_established);
        conntrack.tcp_close_wait_timeout = Some(self.conntrack_tcp_timeout_close_wait);
        conntrack.tcp_be_liberal = self.conntrack_tcp_be_liberal;
        (conntrack.udp_timeout, conntrack.udp_stream_timeout) = (self.conntrack_udp_timeout, self.conntrack_udp_timeout_stream);
        config.config_sync_period = self.config_sync_period;
        self.ignored.over(&mut config);
        config
    }

    /// The name this node goes by, if the command line says so: trimmed and in lower case.
    ///
    /// # Errors
    /// It is blank.
    pub fn node_name(&self) -> Result<Option<String>, &'static str> {
        let Some(name) = self.hostname_override.as_ref().filter(|name| !name.is_empty()) else { return Ok(None) };
        match name.trim().to_lowercase() {
            name if name.is_empty() => Err("empty hostname-override is invalid"),
            name => Ok(Some(name)),
        }
    }
}

/// The items of a list that are not empty; `None` if there are none.
fn some(items: &[String]) -> Option<Vec<String>> {
    let items: Vec<String> = items.iter().filter(|item| !item.is_empty()).cloned().collect();
    (!items.is_empty()).then_some(items)
}

/// An address to listen on, from its flag and that of its port.
fn listen(flag: &str, default: String, default_port: u16, port: Option<u16>) -> String {
    if port == Some(0) {
        return String::new();
    }
    let mut text = if flag.is_empty() { default } else { flag.to_owned() };
    append_port(&mut text, port.unwrap_or(default_port));
    text
}

impl LoggingFlags {
    /// How to log where nothing else is known.
    #[must_use]
    pub fn format(&self) -> LogFormat {
        if self.logging_format.as_deref() == Some("json") { LogFormat::Json } else { LogFormat::Text }
    }

    /// Puts what was typed over what the configuration says.
    pub fn over(&self, config: &mut KubeProxyConfiguration) {
        let logging = &mut config.logging;
        logging.verbosity = self.verbosity.unwrap_or(logging.verbosity);
        logging.vmodule.splice(0..0, self.vmodule.iter().flat_map(|patterns| patterns.0.iter().cloned()));
        if let Some(format) = &self.logging_format {
            logging.format.clone_from(format);
        }
        logging.flush_frequency = self.log_flush_frequency.unwrap_or(logging.flush_frequency);
        for (options, split, size) in [
            (&mut logging.options.text, self.log_text_split_stream, &self.log_text_info_buffer_size),
            (&mut logging.options.json, self.log_json_split_stream, &self.log_json_info_buffer_size),
        ] {
            options.split_stream = split.unwrap_or(options.split_stream);
            if let Some(size) = size {
                options.info_buffer_size.clone_from(size);
            }
        }
    }
}

impl IgnoredFlags {
    fn over(&self, config: &mut KubeProxyConfiguration) {
        let ipvs = &mut config.ipvs;
        (ipvs.sync_period, ipvs.min_sync_period) = (self.ipvs_sync_period, self.ipvs_min_sync_period);
        ipvs.scheduler.clone_from(&self.ipvs_scheduler);
        ipvs.exclude_cidrs = some(&self.ipvs_exclude_cidrs);
        ipvs.strict_arp = self.ipvs_strict_arp;
        (ipvs.tcp_timeout, ipvs.tcp_fin_timeout, ipvs.udp_timeout) =
            (self.ipvs_tcp_timeout, self.ipvs_tcpfin_timeout, self.ipvs_udp_timeout);
    }
}
