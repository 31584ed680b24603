//! The flags of kube-proxy [kube-proxy 1.2], with its names and defaults. Each flag is one block, see [`super::flag_blocks`].

use std::convert::Infallible;
use std::path::PathBuf;

use super::duration::GoDuration;
use super::flag_blocks::flags;
use super::flag_values::{Gates, address_and_port, duration, filled, gates, go_bool, ip, version};
use super::ignored_flags::IgnoredFlags;
use super::kubeproxy::defaults::{self, append_port};
use super::kubeproxy::document::KubeProxyConfiguration;
use super::logging_flags::LoggingFlags;

flags! {
    /// Every flag of kube-proxy in iptables mode. Flags of other modes are accepted and have no effect.
    #[command(next_help_heading = "Flags of kube-proxy")]
    pub struct ProxyFlags for KubeProxyConfiguration, error Infallible;

    /// Path of a KubeProxyConfiguration file. Most other flags are ignored then, see docs/service-proxy.md
    #[arg(value_name = "FILE")]
    config: String, unset "";

    /// Write the resulting configuration to this file, and exit
    #[arg(value_name = "FILE")]
    write_config_to: String, unset "";

    /// Delete the rules of every proxy mode, and exit
    cleanup: bool = false, alone "true";

    /// Write the kernel settings, which needs privileges, and exit
    init_only: bool = false, alone "true";

    /// Print the version, and exit; `raw` prints more
    #[arg(value_name = "true|false|raw", value_parser = version)]
    version: String = "false".to_owned(), alone "true";

    /// Feature gates: NAME=true|false, separated by commas
    #[arg(value_name = "GATES", value_parser = gates)]
    feature_gates: Vec<Gates>;
    |flags, config| config.feature_gates = flags.feature_gates.iter().flat_map(|gates| gates.0.iter().cloned()).collect();
    example "--feature-gates=AllAlpha=true" => |config| config.feature_gates.get("AllAlpha") == Some(&true);

    /// Path of the kubeconfig for the API server [default: $KUBECONFIG, ~/.kube/config or in-cluster]
    #[arg(value_name = "FILE")]
    kubeconfig: String, unset "";
    |flags, config| config.client_connection.kubeconfig.clone_from(&flags.kubeconfig);
    example "--kubeconfig=/k" => |config| config.client_connection.kubeconfig == "/k";

    /// Address of the API server, overrides the kubeconfig's
    #[arg(value_name = "URL")]
    master: String, unset "";

    /// Accepted and ignored: JSON is used
    #[arg(value_name = "TYPE")]
    kube_api_content_type: String = defaults::CONTENT_TYPE.to_owned();
    |flags, config| config.client_connection.content_type.clone_from(&flags.kube_api_content_type);
    example "--kube-api-content-type=x" => |config| config.client_connection.content_type == "x";

    /// Requests to the API server in one burst
    #[arg(value_name = "N")]
    kube_api_burst: i32 = defaults::BURST;
    |flags, config| config.client_connection.burst = flags.kube_api_burst;
    example "--kube-api-burst=1" => |config| config.client_connection.burst == 1;

    /// Requests to the API server per second
    #[arg(value_name = "N")]
    kube_api_qps: f32 = defaults::QPS;
    |flags, config| config.client_connection.qps = flags.kube_api_qps;
    example "--kube-api-qps=2.5" => |config| config.client_connection.qps > 2.4 && config.client_connection.qps < 2.6;

    /// Name of this node's Node [default: the host name]
    #[arg(value_name = "NAME")]
    hostname_override: Option<String>;

    /// IP of this node, in place of its Node's of the same family; nothing listens on it
    #[arg(value_name = "IP", value_parser = ip)]
    bind_address: String = defaults::BIND_ADDRESS.to_owned();
    |flags, config| set_text(&mut config.bind_address, &flags.bind_address);
    example "--bind-address=10.0.0.1" => |config| config.bind_address == "10.0.0.1";

    /// Address of the health server: IP or IP:port
    #[arg(value_name = "ADDRESS", value_parser = address_and_port)]
    healthz_bind_address: String = defaults::healthz_bind_address();
    |flags, config| set_text(&mut config.healthz_bind_address, &flags.healthz_bind_address);
    example "--healthz-bind-address=10.0.0.1:1" => |config| config.healthz_bind_address == "10.0.0.1:1";
    example "--healthz-bind-address=::1" => |config| config.healthz_bind_address == "[::1]:10256";

    /// Address of the metrics server: IP or IP:port
    #[arg(value_name = "ADDRESS", value_parser = address_and_port)]
    metrics_bind_address: String = defaults::metrics_bind_address();
    |flags, config| set_text(&mut config.metrics_bind_address, &flags.metrics_bind_address);
    example "--metrics-bind-address=10.0.0.1" => |config| config.metrics_bind_address == "10.0.0.1:10249";

    /// Deprecated: port of the health server if its address has none; 0 for no health server
    #[arg(value_name = "PORT")]
    healthz_port: u16 = defaults::HEALTHZ_PORT;
    |flags, config| {
        // With --write-config-to, the deprecated ports do not count.
        let port = if flags.write_config_to.is_empty() { flags.healthz_port } else { defaults::HEALTHZ_PORT };
        set_port(&mut config.healthz_bind_address, port);
    };
    example "--healthz-port=0" => |config| config.healthz_bind_address.is_empty();
    example "--healthz-port=1 --healthz-bind-address=::1" => |config| config.healthz_bind_address == "[::1]:1";

    /// Deprecated: port of the metrics server if its address has none
    #[arg(value_name = "PORT")]
    metrics_port: u16 = defaults::METRICS_PORT;
    |flags, config| {
        let port = if flags.write_config_to.is_empty() { flags.metrics_port } else { defaults::METRICS_PORT };
        set_port(&mut config.metrics_bind_address, port);
    };
    example "--metrics-port=1 --metrics-bind-address=::1" => |config| config.metrics_bind_address == "[::1]:1";

    /// Exit if the health or the metrics server cannot listen
    bind_address_hard_fail: bool = false, alone "true";
    |flags, config| config.bind_address_hard_fail = flags.bind_address_hard_fail;
    example "--bind-address-hard-fail" => |config| config.bind_address_hard_fail;

    /// Answer /debug/flags/v on the metrics server, which sets the verbosity; profiles are not supported
    profiling: bool = false, alone "true";
    |flags, config| config.enable_profiling = flags.profiling;
    example "--profiling" => |config| config.enable_profiling;

    /// Previous minor version, to show its hidden metrics
    #[arg(value_name = "VERSION")]
    show_hidden_metrics_for_version: String, unset "";
    |flags, config| config.show_hidden_metrics_for_version.clone_from(&flags.show_hidden_metrics_for_version);
    example "--show-hidden-metrics-for-version=1.35" => |config| config.show_hidden_metrics_for_version == "1.35";

    /// Proxy mode: only iptables, the default
    #[arg(value_name = "MODE")]
    proxy_mode: String, unset "";
    |flags, config| config.mode.clone_from(&flags.proxy_mode);
    example "--proxy-mode=iptables" => |config| config.mode == "iptables";

    /// Bit of the packet mark that means "masquerade"
    #[arg(value_name = "BIT")]
    iptables_masquerade_bit: i32 = defaults::MASQUERADE_BIT;
    |flags, config| config.iptables.masquerade_bit = Some(flags.iptables_masquerade_bit);
    example "--iptables-masquerade-bit=0" => |config| config.iptables.masquerade_bit == Some(0);

    /// Masquerade all traffic to cluster IPs
    masquerade_all: bool = false, alone "true";
    |flags, config| config.iptables.masquerade_all = flags.masquerade_all;
    example "--masquerade-all" => |config| config.iptables.masquerade_all;

    /// Let NodePorts answer on 127.0.0.0/8, too
    iptables_localhost_nodeports: bool = defaults::LOCALHOST_NODE_PORTS, alone "true";
    |flags, config| config.iptables.localhost_node_ports = Some(flags.iptables_localhost_nodeports);
    example "--iptables-localhost-nodeports=F" => |config| config.iptables.localhost_node_ports == Some(false);

    /// Longest pause before a failed sync is tried again
    #[arg(value_name = "DURATION", value_parser = duration)]
    iptables_sync_period: Option<GoDuration>, otherwise defaults::SYNC_PERIOD;
    |flags, config| config.iptables.sync_period = flags.iptables_sync_period.unwrap_or(defaults::SYNC_PERIOD);
    example "--iptables-sync-period=-1s" => |config| config.iptables.sync_period == GoDuration::from_secs(-1);

    /// Shortest time between two syncs [default: none; the pace follows from how long syncs take]
    #[arg(value_name = "DURATION", value_parser = duration)]
    iptables_min_sync_period: Option<GoDuration>, otherwise defaults::MIN_SYNC_PERIOD;
    |flags, config| {
        config.iptables.min_sync_period = flags.iptables_min_sync_period.unwrap_or(defaults::MIN_SYNC_PERIOD);
        config.min_sync_period_is_set = flags.iptables_min_sync_period.is_some();
    };
    example "--iptables-min-sync-period=0" => |config| config.iptables.min_sync_period.0 == 0 && config.min_sync_period_is_set;

    /// How to detect traffic of local pods: ClusterCIDR, NodeCIDR, BridgeInterface or InterfaceNamePrefix
    #[arg(value_name = "MODE")]
    detect_local_mode: String, unset "";
    |flags, config| config.detect_local_mode.clone_from(&flags.detect_local_mode);
    example "--detect-local-mode=NodeCIDR" => |config| config.detect_local_mode == "NodeCIDR";

    /// CIDRs of the cluster's pods, at most one per family, separated by a comma
    #[arg(value_name = "CIDRS")]
    cluster_cidr: String, unset "";
    |flags, config| config.cluster_cidr.clone_from(&flags.cluster_cidr);
    example "--cluster-cidr 10.0.0.0/8,fd00::/64" => |config| config.cluster_cidr == "10.0.0.0/8,fd00::/64";

    /// Name of the bridge for --detect-local-mode=BridgeInterface
    #[arg(value_name = "NAME")]
    pod_bridge_interface: String, unset "";
    |flags, config| config.detect_local.bridge_interface.clone_from(&flags.pod_bridge_interface);
    example "--pod-bridge-interface=cni0" => |config| config.detect_local.bridge_interface == "cni0";

    /// Prefix of interface names for --detect-local-mode=InterfaceNamePrefix
    #[arg(value_name = "PREFIX")]
    pod_interface_name_prefix: String, unset "";
    |flags, config| config.detect_local.interface_name_prefix.clone_from(&flags.pod_interface_name_prefix);
    example "--pod-interface-name-prefix=cali" => |config| config.detect_local.interface_name_prefix == "cali";

    /// Addresses that NodePorts answer on: CIDRs, or the word primary [default: all addresses of the node]
    #[arg(value_name = "CIDRS", value_delimiter = ',')]
    nodeport_addresses: Vec<String>;
    |flags, config| config.node_port_addresses = filled(&flags.nodeport_addresses);
    example "--nodeport-addresses=10.0.0.0/8, --nodeport-addresses 11.0.0.0/8" => |config| {
        config.node_port_addresses.as_deref() == Some(&["10.0.0.0/8".to_owned(), "11.0.0.0/8".to_owned()])
    };

    /// Score for the kernel's out-of-memory killer, -1000 to 1000
    #[arg(value_name = "SCORE")]
    oom_score_adj: Option<i32>, otherwise defaults::OOM_SCORE_ADJ;
    |flags, config| {
        config.oom_score_adj = flags.oom_score_adj.or(config.oom_score_adj);
        config.oom_score_is_set = flags.oom_score_adj.is_some();
    };
    example "--oom-score-adj=-5" => |config| config.oom_score_adj == Some(-5) && config.oom_score_is_set;

    /// Connections to track per CPU core; 0 keeps the kernel's limit
    #[arg(value_name = "N")]
    conntrack_max_per_core: i32 = defaults::CONNTRACK_MAX_PER_CORE;
    |flags, config| config.conntrack.max_per_core = Some(flags.conntrack_max_per_core);
    example "--conntrack-max-per-core=0" => |config| config.conntrack.max_per_core == Some(0);

    /// Least number of connections to track, however few CPU cores there are
    #[arg(value_name = "N")]
    conntrack_min: i32 = defaults::CONNTRACK_MIN;
    |flags, config| config.conntrack.min = Some(flags.conntrack_min);
    example "--conntrack-min=7" => |config| config.conntrack.min == Some(7);

    /// Idle timeout of established TCP connections; 0 keeps the kernel's
    #[arg(value_name = "DURATION", value_parser = duration)]
    conntrack_tcp_timeout_established: GoDuration = defaults::TCP_ESTABLISHED_TIMEOUT;
    |flags, config| config.conntrack.tcp_established_timeout = Some(flags.conntrack_tcp_timeout_established);
    example "--conntrack-tcp-timeout-established=1s" => |config| config.conntrack.tcp_established_timeout == Some(GoDuration::from_secs(1));

    /// Timeout of TCP connections that wait for the local side to close; 0 keeps the kernel's
    #[arg(value_name = "DURATION", value_parser = duration)]
    conntrack_tcp_timeout_close_wait: GoDuration = defaults::TCP_CLOSE_WAIT_TIMEOUT;
    |flags, config| config.conntrack.tcp_close_wait_timeout = Some(flags.conntrack_tcp_timeout_close_wait);
    example "--conntrack-tcp-timeout-close-wait=0" => |config| config.conntrack.tcp_close_wait_timeout == Some(GoDuration(0));

    /// Let TCP packets outside the window pass
    conntrack_tcp_be_liberal: bool = false, alone "true";
    |flags, config| config.conntrack.tcp_be_liberal = flags.conntrack_tcp_be_liberal;
    example "--conntrack-tcp-be-liberal" => |config| config.conntrack.tcp_be_liberal;

    /// Idle timeout of UDP flows without an answer; 0 keeps the kernel's
    #[arg(value_name = "DURATION", value_parser = duration)]
    conntrack_udp_timeout: GoDuration = GoDuration(0);
    |flags, config| config.conntrack.udp_timeout = flags.conntrack_udp_timeout;
    example "--conntrack-udp-timeout=1s" => |config| config.conntrack.udp_timeout == GoDuration::from_secs(1);

    /// Idle timeout of UDP flows with an answer; 0 keeps the kernel's
    #[arg(value_name = "DURATION", value_parser = duration)]
    conntrack_udp_timeout_stream: GoDuration = GoDuration(0);
    |flags, config| config.conntrack.udp_stream_timeout = flags.conntrack_udp_timeout_stream;
    example "--conntrack-udp-timeout-stream=1s" => |config| config.conntrack.udp_stream_timeout == GoDuration::from_secs(1);

    /// Accepted and ignored: watches need no refresh
    #[arg(value_name = "DURATION", value_parser = duration)]
    config_sync_period: GoDuration = defaults::CONFIG_SYNC_PERIOD;
    |flags, config| config.config_sync_period = flags.config_sync_period;
    example "--config-sync-period=1s" => |config| config.config_sync_period == GoDuration::from_secs(1);

    flatten logging: LoggingFlags;
    flatten ignored: IgnoredFlags;
}

impl ProxyFlags {
    /// The configuration file, if one is named.
    #[must_use]
    pub(crate) fn config_file(&self) -> Option<PathBuf> {
        (!self.config.is_empty()).then(|| PathBuf::from(&self.config))
    }

    /// The configuration that follows from these flags without a file. Defaults come before flags: a flag with the value zero sets zero
    /// [kube-proxy 1.3].
    #[must_use]
    pub fn configuration(&self) -> KubeProxyConfiguration {
        let mut config = KubeProxyConfiguration::built_in();
        let Ok(()) = self.apply(&mut config);
        self.ignored.apply_to(&mut config);
        config
    }

    /// The name of this node's Node, if `--hostname-override` is given: trimmed and in lower case.
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

/// Sets a text. An empty value means that the flag is not given.
fn set_text(text: &mut String, value: &str) {
    if !value.is_empty() {
        value.clone_into(text);
    }
}

/// Appends a port to an address that has none. Port 0 clears the address: there is no server then.
fn set_port(address: &mut String, port: u16) {
    if port == 0 {
        address.clear();
    } else {
        append_port(address, port);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::flag_blocks::check_examples;

    #[test]
    fn each_flag_has_the_effect_of_its_examples() {
        check_examples(&ProxyFlags::examples(), ProxyFlags::configuration);
    }
}
