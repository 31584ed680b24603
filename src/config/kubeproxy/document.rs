//! The fields of KubeProxyConfiguration `v1alpha1`, in upstream's order, which is also the order of `/configz`.

use std::collections::BTreeMap;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::config::duration::GoDuration;

/// The whole document. A field that is absent or `null` is empty or zero here. [`super::defaults`] fills in the defaults.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct KubeProxyConfiguration {
    /// `KubeProxyConfiguration`.
    #[serde(deserialize_with = "nullable")]
    pub kind: String,
    /// `kubeproxy.config.k8s.io/v1alpha1`.
    #[serde(deserialize_with = "nullable")]
    pub api_version: String,
    /// Feature gates by name.
    #[serde(deserialize_with = "nullable", skip_serializing_if = "BTreeMap::is_empty")]
    pub feature_gates: BTreeMap<String, bool>,
    /// The connection to the API server.
    #[serde(deserialize_with = "nullable")]
    pub client_connection: ClientConnection,
    /// The log.
    #[serde(deserialize_with = "nullable")]
    pub logging: Logging,
    /// The node's name, in place of the host name.
    #[serde(deserialize_with = "nullable")]
    pub hostname_override: String,
    /// The node's primary IP, in place of the Node's.
    #[serde(deserialize_with = "nullable")]
    pub bind_address: String,
    /// Address of the health server: IP, or IP:port.
    #[serde(deserialize_with = "nullable")]
    pub healthz_bind_address: String,
    /// Address of the metrics server: IP, or IP:port.
    #[serde(deserialize_with = "nullable")]
    pub metrics_bind_address: String,
    /// If a server cannot listen, the program ends.
    #[serde(deserialize_with = "nullable")]
    pub bind_address_hard_fail: bool,
    /// Profiling paths on the metrics server.
    #[serde(deserialize_with = "nullable")]
    pub enable_profiling: bool,
    /// The previous minor version, to show its hidden metrics.
    #[serde(deserialize_with = "nullable")]
    pub show_hidden_metrics_for_version: String,
    /// Proxy mode.
    #[serde(deserialize_with = "nullable")]
    pub mode: String,
    /// Options of the iptables mode.
    #[serde(deserialize_with = "nullable")]
    pub iptables: Iptables,
    /// Options of the ipvs mode; without effect.
    #[serde(deserialize_with = "nullable")]
    pub ipvs: Ipvs,
    /// Options of the nftables mode; without effect.
    #[serde(deserialize_with = "nullable")]
    pub nftables: Nftables,
    /// Options for Windows; without effect.
    #[serde(deserialize_with = "nullable")]
    pub winkernel: Winkernel,
    /// ClusterCIDR, NodeCIDR, BridgeInterface or InterfaceNamePrefix.
    #[serde(deserialize_with = "nullable")]
    pub detect_local_mode: String,
    /// Names for the interface modes.
    #[serde(deserialize_with = "nullable")]
    pub detect_local: DetectLocalConfiguration,
    /// CIDRs of the pods, separated by commas: at most one per family.
    #[serde(rename = "clusterCIDR", deserialize_with = "nullable")]
    pub cluster_cidr: String,
    /// CIDRs, or the single word `primary`; `null` if there are none.
    pub node_port_addresses: Option<Vec<String>>,
    /// Score for the kernel's out-of-memory killer; absent means -999.
    pub oom_score_adj: Option<i32>,
    /// Settings of the kernel's connection tracking.
    #[serde(deserialize_with = "nullable")]
    pub conntrack: Conntrack,
    /// Period of a resync of all objects. Without effect: the watches here need none.
    #[serde(deserialize_with = "nullable")]
    pub config_sync_period: GoDuration,
    /// Without effect, neither in kube-proxy nor here.
    #[serde(deserialize_with = "nullable")]
    pub port_range: String,
    /// Without effect outside Windows.
    #[serde(deserialize_with = "nullable", skip_serializing_if = "is_false")]
    pub windows_run_as_service: bool,
    /// The operator set `minSyncPeriod`. Otherwise the pace follows from the duration of syncs. Not part of the document.
    #[serde(skip)]
    pub min_sync_period_is_set: bool,
    /// The operator set `oomScoreAdj`. Not part of the document.
    #[serde(skip)]
    pub oom_score_is_set: bool,
}

/// Section `clientConnection`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ClientConnection {
    /// Path of a kubeconfig; empty means the in-cluster configuration.
    #[serde(deserialize_with = "nullable")]
    pub kubeconfig: String,
    /// Without effect: requests use JSON.
    #[serde(deserialize_with = "nullable")]
    pub accept_content_types: String,
    /// Without effect: requests use JSON.
    #[serde(deserialize_with = "nullable")]
    pub content_type: String,
    /// Requests per second.
    #[serde(deserialize_with = "nullable", serialize_with = "go_float")]
    pub qps: f32,
    /// Requests in one burst.
    #[serde(deserialize_with = "nullable")]
    pub burst: i32,
}

/// Section `logging`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Logging {
    /// `text` or `json`.
    #[serde(deserialize_with = "nullable")]
    pub format: String,
    /// Without effect: every line is written at once.
    #[serde(deserialize_with = "duration_or_nanoseconds")]
    pub flush_frequency: GoDuration,
    /// Verbosity: 0 for events that matter.
    #[serde(deserialize_with = "nullable")]
    pub verbosity: u32,
    /// Verbosity by source file.
    #[serde(deserialize_with = "nullable", skip_serializing_if = "Vec::is_empty")]
    pub vmodule: Vec<VModule>,
    /// Options by format.
    #[serde(deserialize_with = "nullable")]
    pub options: LoggingOptions,
}

/// One entry of `logging.vmodule`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct VModule {
    /// Name of a source file without its ending, with the wildcards `*` and `?`.
    #[serde(deserialize_with = "nullable")]
    pub file_pattern: String,
    /// Its verbosity.
    #[serde(deserialize_with = "nullable")]
    pub verbosity: u32,
}

/// Section `logging.options`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct LoggingOptions {
    /// For `text`.
    #[serde(deserialize_with = "nullable")]
    pub text: OutputOptions,
    /// For `json`.
    #[serde(deserialize_with = "nullable")]
    pub json: OutputOptions,
}

/// Output options of one format.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct OutputOptions {
    /// Errors to standard error, the rest to standard output.
    #[serde(deserialize_with = "nullable", skip_serializing_if = "is_false")]
    pub split_stream: bool,
    /// Without effect; a quantity of bytes.
    #[serde(deserialize_with = "quantity")]
    pub info_buffer_size: String,
}

/// Section `iptables`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Iptables {
    /// Bit of the packet mark; absent means 14.
    pub masquerade_bit: Option<i32>,
    /// Masquerade all traffic to cluster IPs.
    #[serde(deserialize_with = "nullable")]
    pub masquerade_all: bool,
    /// NodePorts answer on loopback; absent means true.
    pub localhost_node_ports: Option<bool>,
    /// Zero or absent means 30s.
    #[serde(deserialize_with = "nullable")]
    pub sync_period: GoDuration,
    /// Zero or absent means that it is not set.
    #[serde(deserialize_with = "nullable")]
    pub min_sync_period: GoDuration,
}

/// Section `ipvs`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
#[allow(missing_docs, reason = "fields of a mode that sepal does not have; they are only shown in /configz")]
pub struct Ipvs {
    #[serde(deserialize_with = "nullable")]
    pub sync_period: GoDuration,
    #[serde(deserialize_with = "nullable")]
    pub min_sync_period: GoDuration,
    #[serde(deserialize_with = "nullable")]
    pub scheduler: String,
    #[serde(rename = "excludeCIDRs")]
    pub exclude_cidrs: Option<Vec<String>>,
    #[serde(rename = "strictARP", deserialize_with = "nullable")]
    pub strict_arp: bool,
    #[serde(deserialize_with = "nullable")]
    pub tcp_timeout: GoDuration,
    #[serde(deserialize_with = "nullable")]
    pub tcp_fin_timeout: GoDuration,
    #[serde(deserialize_with = "nullable")]
    pub udp_timeout: GoDuration,
}

/// Section `nftables`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
#[allow(missing_docs, reason = "fields of a mode that sepal does not have; they are only shown in /configz")]
pub struct Nftables {
    pub masquerade_bit: Option<i32>,
    #[serde(deserialize_with = "nullable")]
    pub masquerade_all: bool,
    #[serde(deserialize_with = "nullable")]
    pub sync_period: GoDuration,
    #[serde(deserialize_with = "nullable")]
    pub min_sync_period: GoDuration,
}

/// Section `winkernel`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
#[allow(missing_docs, reason = "fields for Windows; they are only shown in /configz")]
pub struct Winkernel {
    #[serde(deserialize_with = "nullable")]
    pub network_name: String,
    #[serde(deserialize_with = "nullable")]
    pub source_vip: String,
    #[serde(rename = "enableDSR", deserialize_with = "nullable")]
    pub enable_dsr: bool,
    #[serde(deserialize_with = "nullable")]
    pub root_hns_endpoint_name: String,
    #[serde(deserialize_with = "nullable")]
    pub forward_health_check_vip: bool,
}

/// Section `detectLocal`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct DetectLocalConfiguration {
    /// For mode BridgeInterface.
    #[serde(deserialize_with = "nullable")]
    pub bridge_interface: String,
    /// For mode InterfaceNamePrefix.
    #[serde(deserialize_with = "nullable")]
    pub interface_name_prefix: String,
}

/// Section `conntrack`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Conntrack {
    /// Connections per CPU core; zero keeps the kernel's limit, absent means 32768.
    pub max_per_core: Option<i32>,
    /// At least this many connections; absent means 131072.
    pub min: Option<i32>,
    /// Zero keeps the kernel's value, absent means 24h.
    pub tcp_established_timeout: Option<GoDuration>,
    /// Zero keeps the kernel's value, absent means 1h.
    pub tcp_close_wait_timeout: Option<GoDuration>,
    /// Let TCP packets outside the window pass.
    #[serde(deserialize_with = "nullable")]
    pub tcp_be_liberal: bool,
    /// Zero keeps the kernel's value.
    #[serde(deserialize_with = "nullable")]
    pub udp_timeout: GoDuration,
    /// Zero keeps the kernel's value.
    #[serde(deserialize_with = "nullable")]
    pub udp_stream_timeout: GoDuration,
}

/// Reads `null` as absent, as everywhere in Kubernetes.
fn nullable<'de, D: Deserializer<'de>, T: Deserialize<'de> + Default>(deserializer: D) -> Result<T, D::Error> {
    Ok(Option::deserialize(deserializer)?.unwrap_or_default())
}

#[allow(clippy::trivially_copy_pass_by_ref, reason = "serde passes a reference")]
const fn is_false(value: &bool) -> bool {
    !*value
}

/// Writes a number as Go does: `5`, not `5.0`, and `0.1`, not the digits of the nearest binary fraction.
#[allow(clippy::trivially_copy_pass_by_ref, reason = "serde passes a reference")]
fn go_float<S: Serializer>(value: &f32, serializer: S) -> Result<S::Ok, S::Error> {
    let shortest = value.to_string();
    match (shortest.parse::<i64>(), shortest.parse::<f64>()) {
        (Ok(whole), _) => serializer.serialize_i64(whole),
        (_, Ok(fraction)) => serializer.serialize_f64(fraction),
        _ => serializer.serialize_f32(*value),
    }
}

/// Reads `logging.flushFrequency`: a duration or, as in older files, a number of nanoseconds.
fn duration_or_nanoseconds<'de, D: Deserializer<'de>>(deserializer: D) -> Result<GoDuration, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Either {
        Nanoseconds(i64),
        Duration(GoDuration),
        Absent(()),
    }
    Ok(match Either::deserialize(deserializer)? {
        Either::Nanoseconds(nanoseconds) => GoDuration(nanoseconds),
        Either::Duration(duration) => duration,
        Either::Absent(()) => GoDuration::default(),
    })
}

/// Reads a quantity, which may be a number or a text.
fn quantity<'de, D: Deserializer<'de>>(deserializer: D) -> Result<String, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Either {
        Number(i64),
        Text(String),
        Absent(()),
    }
    Ok(match Either::deserialize(deserializer)? {
        Either::Number(number) => number.to_string(),
        Either::Text(text) => text,
        Either::Absent(()) => String::new(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_written_as_in_go() {
        for (qps, want) in [(5.0, "5"), (0.0, "0"), (2.5, "2.5"), (0.1, "0.1"), (-1.0, "-1"), (1_000_000.0, "1000000")] {
            let client = ClientConnection { qps, ..ClientConnection::default() };
            let json = serde_json::to_string(&serde_json::to_value(&client).expect("JSON")).expect("JSON");
            assert!(json.contains(&format!("\"qps\":{want},")) || json.contains(&format!("\"qps\":{want}}}")), "{json}");
            let yaml = serde_saphyr::to_string(&serde_json::to_value(&client).expect("JSON")).expect("YAML");
            assert!(yaml.lines().any(|line| line == format!("qps: {want}")), "{yaml}");
        }
    }
}
