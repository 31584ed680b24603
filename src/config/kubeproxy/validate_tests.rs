//! Checks every message of the table in [kube-proxy 1.4].

use super::*;
use crate::config::kubeproxy::decode;

fn found(json: &str) -> Vec<String> {
    let mut config = decode::value(&serde_json::from_str(json).expect("JSON")).expect("a configuration");
    config.fill();
    problems(&config)
}

#[test]
fn the_defaults_are_valid() {
    assert_eq!(found("{}"), Vec::<String>::new());
}

#[test]
#[allow(clippy::too_many_lines, reason = "the table of the specification, row by row")]
fn every_problem_has_upstreams_path_and_message() {
    const CONNTRACK: &str = "KubeProxyConfiguration.KubeProxyLinuxConfiguration.KubeProxyConntrackConfiguration.";
    for (json, want) in [
        (
            r#"{"featureGates":{"PreferSameTrafficDistribution":false}}"#,
            r#"KubeProxyConfiguration.featureGates: Invalid value: {"PreferSameTrafficDistribution":false}: cannot set feature gate PreferSameTrafficDistribution to false, feature is locked to true"#.to_owned(),
        ),
        (
            r#"{"featureGates":{"no gate":true}}"#,
            r#"KubeProxyConfiguration.featureGates: Invalid value: {"no gate":true}: unrecognized feature gate: no gate"#.into(),
        ),
        (
            r#"{"iptables":{"masqueradeBit":32}}"#,
            "KubeProxyConfiguration.KubeProxyIPTablesConfiguration.MasqueradeBit: Invalid value: 32: must be within the range [0, 31]".into(),
        ),
        (r#"{"conntrack":{"maxPerCore":-1}}"#, format!("{CONNTRACK}MaxPerCore: Invalid value: -1: must be greater than or equal to 0")),
        (r#"{"conntrack":{"min":-2}}"#, format!("{CONNTRACK}Min: Invalid value: -2: must be greater than or equal to 0")),
        (
            r#"{"conntrack":{"tcpEstablishedTimeout":"-5s"}}"#,
            format!(r#"{CONNTRACK}TCPEstablishedTimeout: Invalid value: "-5s": must be greater than or equal to 0"#),
        ),
        (
            r#"{"conntrack":{"tcpCloseWaitTimeout":"-5s"}}"#,
            format!(r#"{CONNTRACK}TCPCloseWaitTimeout: Invalid value: "-5s": must be greater than or equal to 0"#),
        ),
        (
            r#"{"conntrack":{"udpTimeout":"-5s"}}"#,
            format!(r#"{CONNTRACK}UDPTimeout: Invalid value: "-5s": must be greater than or equal to 0"#),
        ),
        (
            r#"{"conntrack":{"udpStreamTimeout":"-1m30s"}}"#,
            format!(r#"{CONNTRACK}UDPStreamTimeout: Invalid value: "-1m30s": must be greater than or equal to 0"#),
        ),
        (
            r#"{"oomScoreAdj":1001}"#,
            "KubeProxyConfiguration.KubeProxyLinuxConfiguration.OOMScoreAdj: Invalid value: 1001: must be within the range [-1000, 1000]".into(),
        ),
        (
            r#"{"mode":"userspace"}"#,
            r#"KubeProxyConfiguration.Mode.ProxyMode: Invalid value: "userspace": must be iptables, ipvs, nftables or blank (blank means the best-available proxy [currently iptables])"#.into(),
        ),
        (
            r#"{"clientConnection":{"burst":-5}}"#,
            "KubeProxyConfiguration.ClientConnection.Burst: Invalid value: -5: must be greater than or equal to 0".into(),
        ),
        (
            r#"{"configSyncPeriod":"-1s"}"#,
            r#"KubeProxyConfiguration.ConfigSyncPeriod: Invalid value: "-1s": must be greater than 0"#.into(),
        ),
        (
            r#"{"iptables":{"minSyncPeriod":"-1s"}}"#,
            r#"KubeProxyConfiguration.MinSyncPeriod: Invalid value: "-1s": must be greater than or equal to 0"#.into(),
        ),
        (
            r#"{"iptables":{"minSyncPeriod":"1m","syncPeriod":"30s"}}"#,
            r#"KubeProxyConfiguration.SyncPeriod: Invalid value: "1m0s": must be greater than or equal to KubeProxyConfiguration.MinSyncPeriod"#.into(),
        ),
        (
            r#"{"bindAddress":"10.1"}"#,
            r#"KubeProxyConfiguration.BindAddress: Invalid value: "10.1": not a valid textual representation of an IP address"#.into(),
        ),
        (
            r#"{"healthzBindAddress":"localhost"}"#,
            r#"KubeProxyConfiguration.HealthzBindAddress: Invalid value: "localhost": must be IP:port"#.into(),
        ),
        (
            r#"{"healthzBindAddress":"localhost:1"}"#,
            r#"KubeProxyConfiguration.HealthzBindAddress: Invalid value: "localhost": must be a valid IP"#.into(),
        ),
        (
            r#"{"metricsBindAddress":"10.0.0.1:0"}"#,
            r#"KubeProxyConfiguration.MetricsBindAddress: Invalid value: "0": must be a valid port"#.into(),
        ),
        (
            r#"{"metricsBindAddress":"[fd00::1]:http"}"#,
            r#"KubeProxyConfiguration.MetricsBindAddress: Invalid value: "http": must be a valid port"#.into(),
        ),
        (
            r#"{"nodePortAddresses":["10.0.0.0/8","primary","nonsense"]}"#,
            r#"KubeProxyConfiguration.NodePortAddresses[1]: Invalid value: "primary": can't use both 'primary' and CIDRs"#.into(),
        ),
        (
            r#"{"nodePortAddresses":["10.0.0.0"]}"#,
            r#"KubeProxyConfiguration.NodePortAddresses[0]: Invalid value: "10.0.0.0": must be a valid CIDR"#.into(),
        ),
        (
            r#"{"showHiddenMetricsForVersion":"1.2"}"#,
            r#"KubeProxyConfiguration.ShowHiddenMetricsForVersion: Invalid value: "1.2": invalid showHiddenMetricsForVersion: it must be left out or be '1.35', the previous minor version"#.into(),
        ),
        (
            r#"{"detectLocalMode":"Guess"}"#,
            r#"KubeProxyConfiguration.DetectLocalMode: Unsupported value: "Guess": supported values: "ClusterCIDR", "NodeCIDR", "BridgeInterface", "InterfaceNamePrefix", """#.into(),
        ),
        (
            r#"{"detectLocalMode":"BridgeInterface"}"#,
            r#"KubeProxyConfiguration.DetectLocalConfiguration.InterfaceName: Invalid value: "": must not be empty"#.into(),
        ),
        (
            r#"{"detectLocalMode":"InterfaceNamePrefix"}"#,
            r#"KubeProxyConfiguration.DetectLocalConfiguration.InterfacePrefix: Invalid value: "": must not be empty"#.into(),
        ),
        (
            r#"{"clusterCIDR":"10.0.0.0/8,10.1.0.0/16"}"#,
            r#"KubeProxyConfiguration.DetectLocalConfiguration.ClusterCIDRs: Invalid value: ["10.0.0.0/8","10.1.0.0/16"]: must be a either a single CIDR or dual-stack pair of CIDRs (e.g. [10.100.0.0/16, fde4:8dba:82e1::/48]"#.into(),
        ),
        (
            r#"{"clusterCIDR":"10.0.0.0/8,wrong"}"#,
            r#"KubeProxyConfiguration.DetectLocalConfiguration.ClusterCIDRs[1]: Invalid value: "wrong": must be a valid CIDR block (e.g. 10.100.0.0/16 or fde4:8dba:82e1::/48)"#.into(),
        ),
        (r#"{"logging":{"format":"xml"}}"#, r#"KubeProxyConfiguration.logging.format: Invalid value: "xml": Unsupported log format"#.into()),
    ] {
        assert_eq!(found(json), [want], "{json}");
    }
}

#[test]
fn a_negative_sync_period_is_also_shorter_than_the_minimum() {
    assert_eq!(
        found(r#"{"iptables":{"syncPeriod":"-1s","minSyncPeriod":"2s"}}"#),
        [
            r#"KubeProxyConfiguration.SyncPeriod: Invalid value: "-1s": must be greater than 0"#,
            r#"KubeProxyConfiguration.SyncPeriod: Invalid value: "2s": must be greater than or equal to KubeProxyConfiguration.MinSyncPeriod"#,
        ]
    );
}

#[test]
fn several_problems_come_in_brackets() {
    let problems = found(r#"{"iptables":{"masqueradeBit":-1},"oomScoreAdj":-1001}"#);
    assert_eq!(
        joined(&problems),
        "[KubeProxyConfiguration.KubeProxyIPTablesConfiguration.MasqueradeBit: Invalid value: -1: must be within the range [0, 31], \
         KubeProxyConfiguration.KubeProxyLinuxConfiguration.OOMScoreAdj: Invalid value: -1001: must be within the range [-1000, 1000]]"
    );
}

#[test]
fn addresses_may_have_leading_zeros() {
    assert_eq!(
        found(r#"{"bindAddress":"010.000.0.1","nodePortAddresses":["010.0.0.0/08"],"clusterCIDR":"010.0.0.0/08"}"#),
        Vec::<String>::new()
    );
}
