//! Makes settings of a configuration: parses its texts.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use ipnetwork::IpNetwork;

use super::document::KubeProxyConfiguration;
use super::gates;
use super::validate::{joined, number, problems, split_host_port};
use crate::bad_setting::BadSetting;
use crate::cluster::ip::{parse_cidr, parse_ip};
use crate::config::duration::GoDuration;
use crate::config::settings::{DaemonSettings, LogFormat};
use crate::netlink::kernel_settings::ConntrackSettings;
use crate::proxy::settings::{CpuShare, DetectLocal, NodePortAddresses, ProxySettings};

fn bad(field: &str, cause: impl Into<String>) -> BadSetting {
    BadSetting { field: field.into(), cause: cause.into() }
}

impl KubeProxyConfiguration {
    /// The settings of the service proxy. Fills in the defaults first.
    ///
    /// # Errors
    /// A field is invalid for kube-proxy, or valid for kube-proxy but not for this program.
    pub(crate) fn resolve(&self) -> Result<ProxySettings, BadSetting> {
        let mut config = self.clone();
        config.fill();
        config.min_sync_period_is_set |= self.min_sync_period_is_set;
        config.proxy_settings()
    }

    /// The settings of the service proxy, from a configuration with all defaults.
    ///
    /// # Errors
    /// As [`Self::resolve`].
    pub(crate) fn proxy_settings(&self) -> Result<ProxySettings, BadSetting> {
        let problems = problems(self);
        if !problems.is_empty() {
            return Err(bad("failed validate", joined(&problems)));
        }
        if !matches!(self.mode.as_str(), "" | "iptables") {
            return Err(bad(
                "mode",
                format!(
                    "{:?} is a mode of kube-proxy that sepal does not have: it does what mode \"iptables\" does. Set mode: iptables, and \
                     run `sepal cleanup` once for what the other mode left on the node",
                    self.mode
                ),
            ));
        }
        Ok(ProxySettings {
            detect_local: self.detect_local()?,
            node_port_addresses: self.node_port_addresses(),
            masquerade_all: self.iptables.masquerade_all,
            masquerade_bit: self.iptables.masquerade_bit.and_then(|bit| u8::try_from(bit).ok()).unwrap_or_default(),
            localhost_node_ports: self.iptables.localhost_node_ports.unwrap_or_default(),
            allow_external_ips: gates::enabled(&self.feature_gates, "AllowServiceExternalIPs"),
            bind_address: parse_ip(&self.bind_address).filter(|ip| !ip.is_unspecified()),
            sync_period: positive(self.iptables.sync_period),
            min_sync_period: self.min_sync_period_is_set.then(|| positive(self.iptables.min_sync_period)),
            sync_share: CpuShare::default(),
        })
    }

    /// The settings of the daemon, from a validated configuration.
    ///
    /// # Errors
    /// An address is not IP:port.
    pub(crate) fn daemon_settings(&self) -> Result<DaemonSettings, BadSetting> {
        let number = |number: Option<i32>| number.and_then(|number| u32::try_from(number).ok()).unwrap_or_default();
        let conntrack = &self.conntrack;
        Ok(DaemonSettings {
            healthz: (!self.healthz_bind_address.is_empty())
                .then(|| address("healthzBindAddress", &self.healthz_bind_address))
                .transpose()?,
            metrics: address("metricsBindAddress", &self.metrics_bind_address)?,
            hard_fail: self.bind_address_hard_fail,
            profiling: self.enable_profiling,
            oom_score_adj: self.oom_score_adj.unwrap_or_default(),
            oom_score_is_set: self.oom_score_is_set,
            conntrack: ConntrackSettings {
                max_per_core: number(conntrack.max_per_core),
                min: number(conntrack.min),
                tcp_established_timeout: positive(conntrack.tcp_established_timeout.unwrap_or_default()),
                tcp_close_wait_timeout: positive(conntrack.tcp_close_wait_timeout.unwrap_or_default()),
                tcp_be_liberal: conntrack.tcp_be_liberal,
                udp_timeout: positive(conntrack.udp_timeout),
                udp_stream_timeout: positive(conntrack.udp_stream_timeout),
            },
            verbosity: self.logging.verbosity,
            log_format: if self.logging.format == "json" { LogFormat::Json } else { LogFormat::Text },
        })
    }

    /// This node's name, if the configuration gives one: trimmed and in lower case.
    #[must_use]
    pub fn node_name(&self) -> Option<String> {
        let name = self.hostname_override.trim().to_lowercase();
        (!name.is_empty()).then_some(name)
    }

    fn detect_local(&self) -> Result<DetectLocal, BadSetting> {
        // The name is put into rules, so it must not hold anything that iptables would read as more than a name.
        let interface = |field: &str, name: &str| {
            let usable = name.len() <= 15 && name.bytes().all(|b| b.is_ascii_graphic() && !b"\"'/\\+".contains(&b));
            if usable { Ok(name.to_owned()) } else { Err(bad(field, format!("{name:?} is not the name of an interface"))) }
        };
        let names = &self.detect_local;
        Ok(match self.detect_local_mode.as_str() {
            "NodeCIDR" => DetectLocal::NodeCidr,
            "BridgeInterface" => DetectLocal::BridgeInterface(interface("detectLocal.bridgeInterface", &names.bridge_interface)?),
            "InterfaceNamePrefix" => {
                DetectLocal::InterfaceNamePrefix(interface("detectLocal.interfaceNamePrefix", &names.interface_name_prefix)?)
            }
            _ => DetectLocal::ClusterCidr(cidrs(self.cluster_cidr.split(','))),
        })
    }

    fn node_port_addresses(&self) -> NodePortAddresses {
        let texts = self.node_port_addresses.as_deref().unwrap_or_default();
        if texts == ["primary"] {
            return NodePortAddresses::Primary;
        }
        NodePortAddresses::Cidrs(cidrs(texts.iter().map(String::as_str)))
    }
}

/// Parses CIDRs. Validation has refused every other text.
fn cidrs<'a>(texts: impl Iterator<Item = &'a str>) -> Vec<IpNetwork> {
    texts.filter_map(|text| parse_cidr(text.trim())).collect()
}

/// A duration of a validated configuration, which is not negative.
fn positive(duration: GoDuration) -> Duration {
    duration.positive().unwrap_or_default()
}

fn address(field: &str, text: &str) -> Result<SocketAddr, BadSetting> {
    let parts = split_host_port(text);
    let parsed: Option<(IpAddr, u16)> = parts.and_then(|(host, port)| Some((parse_ip(host)?, number(port)?)));
    parsed.map(SocketAddr::from).ok_or_else(|| bad(field, format!("{text:?} is not IP:port")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::kubeproxy::decode;

    fn config(json: &str) -> KubeProxyConfiguration {
        decode::value(&serde_json::from_str(json).expect("JSON")).expect("a configuration")
    }

    fn default_daemon_settings() -> DaemonSettings {
        DaemonSettings {
            healthz: "0.0.0.0:10256".parse().ok(),
            metrics: "127.0.0.1:10249".parse().expect("an address"),
            hard_fail: false,
            profiling: false,
            oom_score_adj: -999,
            oom_score_is_set: false,
            conntrack: ConntrackSettings::default(),
            verbosity: 0,
            log_format: LogFormat::Text,
        }
    }

    #[test]
    fn an_empty_configuration_gives_the_default_settings() {
        for json in [
            "{}",
            r#"{"detectLocal": null, "nodePortAddresses": null, "bindAddress": "0.0.0.0",
                "iptables": {"minSyncPeriod": "0s", "syncPeriod": "0s"}}"#,
        ] {
            assert_eq!(config(json).resolve(), Ok(ProxySettings::default()), "{json}");
            let mut filled = config(json);
            filled.fill();
            assert_eq!(filled.daemon_settings(), Ok(default_daemon_settings()), "{json}");
        }
    }

    #[test]
    fn fields_become_settings() {
        let settings = config(
            r#"{"clusterCIDR": "10.1.2.3/16, fd00::/64", "nodePortAddresses": ["primary"], "bindAddress": "::",
                "iptables": {"masqueradeBit": 0, "localhostNodePorts": false, "syncPeriod": "1m30s", "minSyncPeriod": "250ms"},
                "featureGates": {"AllowServiceExternalIPs": false}, "portRange": ""}"#,
        )
        .resolve()
        .expect("settings");
        assert_eq!(
            settings.detect_local,
            DetectLocal::ClusterCidr(vec!["10.1.0.0/16".parse().expect("CIDR"), "fd00::/64".parse().expect("CIDR")])
        );
        assert_eq!(settings.node_port_addresses, NodePortAddresses::Primary);
        assert_eq!((settings.masquerade_bit, settings.localhost_node_ports, settings.allow_external_ips), (0, false, false));
        assert_eq!((settings.sync_period, settings.min_sync_period), (Duration::from_secs(90), Some(Duration::from_millis(250))));
    }

    #[test]
    fn other_modes_and_invalid_interface_names_are_refused() {
        for (json, want) in [
            (
                r#"{"mode": "ipvs"}"#,
                "mode: \"ipvs\" is a mode of kube-proxy that sepal does not have: it does what mode \"iptables\" does.",
            ),
            (r#"{"mode": "nftables"}"#, "mode: \"nftables\" is a mode of kube-proxy that sepal does not have"),
            (
                r#"{"detectLocalMode": "BridgeInterface", "detectLocal": {"bridgeInterface": "cni0 -j DROP"}}"#,
                "detectLocal.bridgeInterface: \"cni0 -j DROP\" is not the name of an interface",
            ),
            (
                r#"{"iptables": {"masqueradeBit": 99}}"#,
                "failed validate: KubeProxyConfiguration.KubeProxyIPTablesConfiguration.MasqueradeBit",
            ),
        ] {
            let error = config(json).resolve().expect_err(json).to_string();
            assert!(error.starts_with(want), "{error}");
        }
    }

    /// The file of kubeadm has mostly zero values, empty strings and nulls.
    #[test]
    fn a_file_of_kubeadm_gives_the_defaults_except_for_its_cluster_cidr() {
        let decoded = decode::file(include_bytes!("../../../testdata/config/kubeadm.yaml")).expect("kubeadm's file");
        assert_eq!(decoded.warnings, Vec::<String>::new());
        let settings = decoded.config.resolve().expect("settings");
        let cidr = "10.244.0.0/16".parse().expect("CIDR");
        assert_eq!(settings, ProxySettings { detect_local: DetectLocal::ClusterCidr(vec![cidr]), ..ProxySettings::default() });
        let mut filled = decoded.config;
        filled.fill();
        assert_eq!(filled.daemon_settings(), Ok(default_daemon_settings()));
        assert_eq!(filled.client_connection.kubeconfig, "/var/lib/kube-proxy/kubeconfig.conf");
    }
}
