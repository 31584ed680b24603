//! Fills in what a configuration leaves open, with upstream's defaults [kube-proxy 1.4]. The defaults are also those of the flags.

#![allow(missing_docs, reason = "each constant has the name of its field in KubeProxyConfiguration")]

use super::document::KubeProxyConfiguration;
use super::{API_VERSION, KIND};
use crate::cluster::Family;
use crate::cluster::ip::parse_ip;
use crate::config::duration::GoDuration;
use crate::netlink::kernel_settings::ConntrackSettings;
use crate::proxy::settings::ProxySettings;

pub(crate) const BIND_ADDRESS: &str = "0.0.0.0";
pub(crate) const HEALTHZ_PORT: u16 = 10256;
pub(crate) const METRICS_PORT: u16 = 10249;
pub(crate) const CONTENT_TYPE: &str = "application/vnd.kubernetes.protobuf";
pub(crate) const QPS: f32 = 5.0;
pub(crate) const BURST: i32 = 10;
pub(crate) const LOGGING_FORMAT: &str = "text";
pub(crate) const FLUSH_FREQUENCY: GoDuration = GoDuration::from_secs(5);
pub(crate) const INFO_BUFFER_SIZE: &str = "0";
pub(crate) const MASQUERADE_BIT: i32 = ProxySettings::MASQUERADE_BIT as i32;
pub(crate) const LOCALHOST_NODE_PORTS: bool = ProxySettings::LOCALHOST_NODE_PORTS;
pub const SYNC_PERIOD: GoDuration = GoDuration::of(ProxySettings::SYNC_PERIOD);
pub(crate) const MIN_SYNC_PERIOD: GoDuration = GoDuration::from_secs(1);
pub(crate) const OOM_SCORE_ADJ: i32 = -999;
pub(crate) const CONNTRACK_MAX_PER_CORE: i32 = ConntrackSettings::MAX_PER_CORE.cast_signed();
pub(crate) const CONNTRACK_MIN: i32 = ConntrackSettings::MIN.cast_signed();
pub(crate) const TCP_ESTABLISHED_TIMEOUT: GoDuration = GoDuration::of(ConntrackSettings::TCP_ESTABLISHED_TIMEOUT);
pub(crate) const TCP_CLOSE_WAIT_TIMEOUT: GoDuration = GoDuration::of(ConntrackSettings::TCP_CLOSE_WAIT_TIMEOUT);
pub(crate) const CONFIG_SYNC_PERIOD: GoDuration = GoDuration::from_secs(15 * 60);

/// The default of `healthzBindAddress`, for a `bindAddress` of IPv4.
#[must_use]
pub fn healthz_bind_address() -> String {
    format!("0.0.0.0:{HEALTHZ_PORT}")
}

/// The default of `metricsBindAddress`, for a `bindAddress` of IPv4.
#[must_use]
pub(crate) fn metrics_bind_address() -> String {
    format!("127.0.0.1:{METRICS_PORT}")
}

impl KubeProxyConfiguration {
    /// The configuration without any flag and file.
    #[must_use]
    pub fn built_in() -> Self {
        let mut config = Self::default();
        config.fill();
        config
    }

    /// Sets the fields that are not set to upstream's defaults. A zero or an empty text mostly counts as not set. For an optional field,
    /// zero is a value.
    pub fn fill(&mut self) {
        (self.kind, self.api_version) = (KIND.into(), API_VERSION.into());
        fill_text(&mut self.bind_address, BIND_ADDRESS);
        let v4 = parse_ip(&self.bind_address).is_some_and(|ip| Family::of(ip) == Family::V4);
        let (any, loopback) = if v4 { ("0.0.0.0", "127.0.0.1") } else { ("::", "::1") };
        fill_address(&mut self.healthz_bind_address, any, HEALTHZ_PORT);
        fill_address(&mut self.metrics_bind_address, loopback, METRICS_PORT);

        let client = &mut self.client_connection;
        fill_text(&mut client.content_type, CONTENT_TYPE);
        if client.qps == 0.0 {
            client.qps = QPS;
        }
        if client.burst == 0 {
            client.burst = BURST;
        }
        let logging = &mut self.logging;
        fill_text(&mut logging.format, LOGGING_FORMAT);
        logging.flush_frequency = logging.flush_frequency.or(FLUSH_FREQUENCY);
        fill_text(&mut logging.options.text.info_buffer_size, INFO_BUFFER_SIZE);
        fill_text(&mut logging.options.json.info_buffer_size, INFO_BUFFER_SIZE);

        let iptables = &mut self.iptables;
        iptables.masquerade_bit.get_or_insert(MASQUERADE_BIT);
        iptables.localhost_node_ports.get_or_insert(LOCALHOST_NODE_PORTS);
        iptables.sync_period = iptables.sync_period.or(SYNC_PERIOD);
        self.min_sync_period_is_set = iptables.min_sync_period.0 != 0;
        iptables.min_sync_period = iptables.min_sync_period.or(MIN_SYNC_PERIOD);
        self.nftables.masquerade_bit.get_or_insert(MASQUERADE_BIT);
        self.nftables.sync_period = self.nftables.sync_period.or(SYNC_PERIOD);
        self.nftables.min_sync_period = self.nftables.min_sync_period.or(MIN_SYNC_PERIOD);
        self.ipvs.sync_period = self.ipvs.sync_period.or(SYNC_PERIOD);

        self.oom_score_is_set = self.oom_score_adj.is_some();
        self.oom_score_adj.get_or_insert(OOM_SCORE_ADJ);
        let conntrack = &mut self.conntrack;
        conntrack.max_per_core.get_or_insert(CONNTRACK_MAX_PER_CORE);
        conntrack.min.get_or_insert(CONNTRACK_MIN);
        conntrack.tcp_established_timeout.get_or_insert(TCP_ESTABLISHED_TIMEOUT);
        conntrack.tcp_close_wait_timeout.get_or_insert(TCP_CLOSE_WAIT_TIMEOUT);
        self.config_sync_period = self.config_sync_period.or(CONFIG_SYNC_PERIOD);
    }

    /// Replaces the empty mode and the empty local-traffic mode by the modes that they stand for. Clears the periods of the other modes:
    /// upstream has only one set of periods.
    pub fn complete(&mut self) {
        fill_text(&mut self.mode, "iptables");
        fill_text(&mut self.detect_local_mode, "ClusterCIDR");
        if self.mode == "iptables" {
            for period in [
                &mut self.ipvs.sync_period,
                &mut self.ipvs.min_sync_period,
                &mut self.nftables.sync_period,
                &mut self.nftables.min_sync_period,
            ] {
                *period = GoDuration::default();
            }
            self.nftables.masquerade_all = false;
        }
    }
}

fn fill_text(text: &mut String, default: &str) {
    if text.is_empty() {
        *text = default.into();
    }
}

/// Completes an address to listen on: empty becomes the default, and an IP without a port gets the default port.
fn fill_address(text: &mut String, default: &str, port: u16) {
    fill_text(text, default);
    append_port(text, port);
}

/// Appends a port to an IP that has none.
pub(in crate::config) fn append_port(text: &mut String, port: u16) {
    if parse_ip(text).is_some() {
        *text = if text.contains(':') { format!("[{text}]:{port}") } else { format!("{text}:{port}") };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_built_in_configuration_is_upstreams() {
        let config = KubeProxyConfiguration::built_in();
        let want = serde_json::json!({
            "kind": "KubeProxyConfiguration", "apiVersion": "kubeproxy.config.k8s.io/v1alpha1",
            "clientConnection": {"kubeconfig": "", "acceptContentTypes": "", "contentType": "application/vnd.kubernetes.protobuf",
                "qps": 5, "burst": 10},
            "logging": {"format": "text", "flushFrequency": "5s", "verbosity": 0,
                "options": {"text": {"infoBufferSize": "0"}, "json": {"infoBufferSize": "0"}}},
            "hostnameOverride": "", "bindAddress": "0.0.0.0", "healthzBindAddress": "0.0.0.0:10256",
            "metricsBindAddress": "127.0.0.1:10249", "bindAddressHardFail": false, "enableProfiling": false,
            "showHiddenMetricsForVersion": "", "mode": "",
            "iptables": {"masqueradeBit": 14, "masqueradeAll": false, "localhostNodePorts": true, "syncPeriod": "30s", "minSyncPeriod": "1s"},
            "ipvs": {"syncPeriod": "30s", "minSyncPeriod": "0s", "scheduler": "", "excludeCIDRs": null, "strictARP": false,
                "tcpTimeout": "0s", "tcpFinTimeout": "0s", "udpTimeout": "0s"},
            "nftables": {"masqueradeBit": 14, "masqueradeAll": false, "syncPeriod": "30s", "minSyncPeriod": "1s"},
            "winkernel": {"networkName": "", "sourceVip": "", "enableDSR": false, "rootHnsEndpointName": "", "forwardHealthCheckVip": false},
            "detectLocalMode": "", "detectLocal": {"bridgeInterface": "", "interfaceNamePrefix": ""}, "clusterCIDR": "",
            "nodePortAddresses": null, "oomScoreAdj": -999,
            "conntrack": {"maxPerCore": 32768, "min": 131_072, "tcpEstablishedTimeout": "24h0m0s", "tcpCloseWaitTimeout": "1h0m0s",
                "tcpBeLiberal": false, "udpTimeout": "0s", "udpStreamTimeout": "0s"},
            "configSyncPeriod": "15m0s", "portRange": "",
        });
        assert_eq!(serde_json::to_value(&config).expect("JSON"), want);
        assert!(!config.min_sync_period_is_set, "minSyncPeriod is not set");
    }

    #[test]
    fn addresses_follow_the_bind_address_and_get_ports() {
        let mut config = KubeProxyConfiguration { bind_address: "::".into(), ..KubeProxyConfiguration::default() };
        config.fill();
        assert_eq!((config.healthz_bind_address.as_str(), config.metrics_bind_address.as_str()), ("[::]:10256", "[::1]:10249"));
        let mut config = KubeProxyConfiguration {
            healthz_bind_address: "10.0.0.1".into(),
            metrics_bind_address: "fd00::1".into(),
            ..KubeProxyConfiguration::default()
        };
        config.fill();
        assert_eq!((config.healthz_bind_address.as_str(), config.metrics_bind_address.as_str()), ("10.0.0.1:10256", "[fd00::1]:10249"));
    }

    #[test]
    fn explicit_zeros_of_optional_fields_stay() {
        let mut config: KubeProxyConfiguration = serde_json::from_value(serde_json::json!({
            "iptables": {"masqueradeBit": 0, "localhostNodePorts": false}, "oomScoreAdj": 0,
            "conntrack": {"maxPerCore": 0, "min": 0, "tcpEstablishedTimeout": "0s", "tcpCloseWaitTimeout": "0s"},
        }))
        .expect("configuration");
        config.fill();
        assert_eq!((config.iptables.masquerade_bit, config.iptables.localhost_node_ports), (Some(0), Some(false)));
        assert_eq!((config.oom_score_adj, config.conntrack.max_per_core, config.conntrack.min), (Some(0), Some(0), Some(0)));
        let zero = Some(GoDuration::default());
        assert_eq!((config.conntrack.tcp_established_timeout, config.conntrack.tcp_close_wait_timeout), (zero, zero));
    }
}
