//! Validates a configuration: finds every invalid field, with upstream's path and message [kube-proxy 1.4]. PURE.

use std::fmt::{Display, Write};

use super::defaults::MIN_SYNC_PERIOD;
use super::document::{Conntrack, KubeProxyConfiguration};
use super::gates;
use crate::cluster::Family;
use crate::cluster::ip::{parse_cidr, parse_ip};
use crate::config::duration::GoDuration;

const MODES: &str = "must be iptables, ipvs, nftables or blank (blank means the best-available proxy [currently iptables])";
const NOT_NEGATIVE: &str = "must be greater than or equal to 0";
const POSITIVE: &str = "must be greater than 0";
/// The only version whose hidden metrics can be shown: the minor version before that of the kube-proxy that sepal replaces.
const PREVIOUS_MINOR: &str = "1.35";

/// The problems found so far.
#[derive(Default)]
struct Problems(Vec<String>);

impl Problems {
    fn invalid(&mut self, path: &str, value: impl Display, detail: impl Display) {
        self.0.push(format!("KubeProxyConfiguration.{path}: Invalid value: {value}: {detail}"));
    }

    fn unless(&mut self, holds: bool, path: &str, value: impl Display, detail: impl Display) {
        if !holds {
            self.invalid(path, value, detail);
        }
    }
}

/// Every problem of a configuration with all defaults; empty if it is valid.
#[must_use]
pub fn problems(config: &KubeProxyConfiguration) -> Vec<String> {
    let mut found = Problems::default();
    for problem in gates::problems(&config.feature_gates) {
        let gates: Vec<String> = config.feature_gates.iter().map(|(name, value)| format!("\"{name}\":{value}")).collect();
        found.invalid("featureGates", format!("{{{}}}", gates.join(",")), problem);
    }
    let bit = config.iptables.masquerade_bit.unwrap_or_default();
    found.unless((0..=31).contains(&bit), "KubeProxyIPTablesConfiguration.MasqueradeBit", bit, "must be within the range [0, 31]");
    conntrack(&mut found, &config.conntrack);
    let score = config.oom_score_adj.unwrap_or_default();
    found.unless(
        (-1000..=1000).contains(&score),
        "KubeProxyLinuxConfiguration.OOMScoreAdj",
        score,
        "must be within the range [-1000, 1000]",
    );
    found.unless(matches!(config.mode.as_str(), "" | "iptables" | "ipvs" | "nftables"), "Mode.ProxyMode", quoted(&config.mode), MODES);
    let burst = config.client_connection.burst;
    found.unless(burst >= 0, "ClientConnection.Burst", burst, NOT_NEGATIVE);
    periods(&mut found, config);
    let bind = &config.bind_address;
    found.unless(parse_ip(bind).is_some(), "BindAddress", quoted(bind), "not a valid textual representation of an IP address");
    if !config.healthz_bind_address.is_empty() {
        host_and_port(&mut found, "HealthzBindAddress", &config.healthz_bind_address);
    }
    host_and_port(&mut found, "MetricsBindAddress", &config.metrics_bind_address);
    node_port_addresses(&mut found, config.node_port_addresses.as_deref().unwrap_or_default());
    let hidden = &config.show_hidden_metrics_for_version;
    found.unless(
        hidden.is_empty() || hidden == PREVIOUS_MINOR,
        "ShowHiddenMetricsForVersion",
        quoted(hidden),
        format_args!("invalid showHiddenMetricsForVersion: it must be left out or be '{PREVIOUS_MINOR}', the previous minor version"),
    );
    detect_local(&mut found, config);
    let format = &config.logging.format;
    found.unless(matches!(format.as_str(), "text" | "json"), "logging.format", quoted(format), "Unsupported log format");
    found.0
}

/// Joins problems as upstream does: a single one as it is, several in brackets.
#[must_use]
pub fn joined(problems: &[String]) -> String {
    match problems {
        [one] => one.clone(),
        many => format!("[{}]", many.join(", ")),
    }
}

fn conntrack(found: &mut Problems, conntrack: &Conntrack) {
    let path = |field: &str| format!("KubeProxyLinuxConfiguration.KubeProxyConntrackConfiguration.{field}");
    for (field, number) in [("MaxPerCore", conntrack.max_per_core), ("Min", conntrack.min)] {
        let number = number.unwrap_or_default();
        found.unless(number >= 0, &path(field), number, NOT_NEGATIVE);
    }
    for (field, time) in [
        ("TCPEstablishedTimeout", conntrack.tcp_established_timeout.unwrap_or_default()),
        ("TCPCloseWaitTimeout", conntrack.tcp_close_wait_timeout.unwrap_or_default()),
        ("UDPTimeout", conntrack.udp_timeout),
        ("UDPStreamTimeout", conntrack.udp_stream_timeout),
    ] {
        found.unless(time.0 >= 0, &path(field), duration(time), NOT_NEGATIVE);
    }
}

fn periods(found: &mut Problems, config: &KubeProxyConfiguration) {
    let (sync, least) = (config.iptables.sync_period, config.iptables.min_sync_period);
    found.unless(config.config_sync_period.0 > 0, "ConfigSyncPeriod", duration(config.config_sync_period), POSITIVE);
    found.unless(sync.0 > 0, "SyncPeriod", duration(sync), POSITIVE);
    found.unless(least.0 >= 0, "MinSyncPeriod", duration(least), NOT_NEGATIVE);
    // The default of minSyncPeriod does not count: without a set minSyncPeriod, a short sync period is valid.
    let is_set = config.min_sync_period_is_set || least != MIN_SYNC_PERIOD;
    found.unless(
        least <= sync || !is_set,
        "SyncPeriod",
        duration(least),
        "must be greater than or equal to KubeProxyConfiguration.MinSyncPeriod",
    );
}

fn host_and_port(found: &mut Problems, path: &str, text: &str) {
    let Some((host, port)) = split_host_port(text) else {
        return found.invalid(path, quoted(text), "must be IP:port");
    };
    found.unless(parse_ip(host).is_some(), path, quoted(host), "must be a valid IP");
    found.unless(number(port).is_some_and(|port| port > 0), path, quoted(port), "must be a valid port");
}

/// Parses a port number. Only digits are allowed.
pub(super) fn number(text: &str) -> Option<u16> {
    text.bytes().all(|c| c.is_ascii_digit()).then(|| text.parse().ok()).flatten()
}

/// Splits `host:port` or `[host]:port`; `None` if the text is neither.
pub(super) fn split_host_port(text: &str) -> Option<(&str, &str)> {
    let (host, port) = text.rsplit_once(':')?;
    match host.strip_prefix('[') {
        Some(host) => host.strip_suffix(']').map(|host| (host, port)),
        None => (!host.contains([':', '[', ']'])).then_some((host, port)),
    }
}

fn node_port_addresses(found: &mut Problems, texts: &[String]) {
    if texts == ["primary"] {
        return;
    }
    for (i, text) in texts.iter().enumerate() {
        let path = format!("NodePortAddresses[{i}]");
        if text == "primary" {
            return found.invalid(&path, quoted(text), "can't use both 'primary' and CIDRs");
        }
        found.unless(parse_cidr(text).is_some(), &path, quoted(text), "must be a valid CIDR");
    }
}

fn detect_local(found: &mut Problems, config: &KubeProxyConfiguration) {
    let names = &config.detect_local;
    match config.detect_local_mode.as_str() {
        "" | "ClusterCIDR" => cluster_cidrs(found, &config.cluster_cidr),
        "NodeCIDR" => {}
        "BridgeInterface" => found.unless(
            !names.bridge_interface.is_empty(),
            "DetectLocalConfiguration.InterfaceName",
            quoted(&names.bridge_interface),
            "must not be empty",
        ),
        "InterfaceNamePrefix" => found.unless(
            !names.interface_name_prefix.is_empty(),
            "DetectLocalConfiguration.InterfacePrefix",
            quoted(&names.interface_name_prefix),
            "must not be empty",
        ),
        other => found.0.push(format!(
            "KubeProxyConfiguration.DetectLocalMode: Unsupported value: {}: supported values: \"ClusterCIDR\", \"NodeCIDR\", \
             \"BridgeInterface\", \"InterfaceNamePrefix\", \"\"",
            quoted(other)
        )),
    }
}

fn cluster_cidrs(found: &mut Problems, text: &str) {
    const PATH: &str = "DetectLocalConfiguration.ClusterCIDRs";
    if text.is_empty() {
        return;
    }
    let texts: Vec<&str> = text.split(',').map(str::trim).collect();
    let families: Vec<Family> = texts.iter().filter_map(|text| parse_cidr(text)).map(Family::of_net).collect();
    if texts.len() > 2 || families.len() == 2 && families[0] == families[1] {
        found.invalid(
            PATH,
            format_args!("[{}]", texts.iter().map(|text| quoted(text)).collect::<Vec<_>>().join(",")),
            "must be a either a single CIDR or dual-stack pair of CIDRs (e.g. [10.100.0.0/16, fde4:8dba:82e1::/48]",
        );
    }
    for (i, text) in texts.iter().enumerate().filter(|(_, text)| parse_cidr(text).is_none()) {
        let detail = "must be a valid CIDR block (e.g. 10.100.0.0/16 or fde4:8dba:82e1::/48)";
        found.invalid(&format!("{PATH}[{i}]"), quoted(text), detail);
    }
}

fn duration(duration: GoDuration) -> String {
    format!("\"{duration}\"")
}

/// Quotes a text as Go's `%q` does.
fn quoted(text: &str) -> String {
    let mut out = String::from('"');
    for c in text.chars() {
        match c {
            '"' | '\\' => out.extend(['\\', c]),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            // Writing to a String does not fail.
            c if c.is_ascii_control() => drop(write!(out, "\\x{:02x}", u32::from(c))),
            c => out.push(c),
        }
    }
    out + "\""
}

#[cfg(test)]
#[path = "validate_tests.rs"]
mod tests;
