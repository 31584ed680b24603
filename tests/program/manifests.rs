//! The program with `--manifests`: the meaning of manual manifests, and the messages about them.

use std::fs;
use std::net::SocketAddr;
use std::path::Path;
use std::process::{Output, Stdio};

use sepal_lab::{NAMESPACE_FLAGS, Netns, Running, http, wait_until};

use crate::SEPAL;

const HOST: &str = "apiVersion: sepal/v1alpha1\nkind: HostFacts\nhost: {addresses: [192.0.2.11/24], tcpBeLiberal: false, nfacct: false, noRandomFully: false}\n---\n";
const SERVICE: &str =
    "apiVersion: v1\nkind: Service\nmetadata: {name: legacy, namespace: shop}\nspec: {clusterIP: 10.96.7.11, ports: [{port: 80}]}\n---\n";

fn slice(api_version: &str) -> String {
    format!(
        "apiVersion: {api_version}\nkind: EndpointSlice\nmetadata: {{name: legacy-1, namespace: shop, labels: {{kubernetes.io/service-name: legacy}}}}\n\
         addressType: IPv4\nendpoints: [{{addresses: [192.0.2.77]}}]\nports: [{{port: 9376}}]\n---\n"
    )
}

fn configuration(fields: &str) -> String {
    format!("apiVersion: kubeproxy.config.k8s.io/v1alpha1\nkind: KubeProxyConfiguration\nclusterCIDR: 10.244.0.0/16\n{fields}---\n")
}

fn dry_run(manifests: &str) -> Output {
    let file = tempfile::NamedTempFile::new().expect("writable");
    fs::write(file.path(), manifests).expect("writable");
    let mut command = std::process::Command::new(SEPAL);
    command.args(["--dry-run", "--hostname-override=n1", "--ip-family=ipv4", "--manifests"]).arg(file.path());
    command.stdin(Stdio::null()).output().expect("sepal starts")
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

#[test]
fn a_port_without_a_name_is_what_the_api_server_makes_of_it() {
    let output = dry_run(&(HOST.to_owned() + &configuration("") + SERVICE + &slice("discovery.k8s.io/v1")));
    let rules = text(&output.stdout);
    assert!(output.status.success() && rules.contains("-j DNAT --to-destination 192.0.2.77:9376"), "{output:?}");
    assert!(!rules.contains("has no endpoints"), "{rules}");
}

#[test]
fn an_object_of_another_version_is_named() {
    let output = dry_run(&(HOST.to_owned() + &configuration("") + SERVICE + &slice("discovery.k8s.io/v1beta1")));
    let said = text(&output.stderr);
    assert!(output.status.success() && text(&output.stdout).contains("has no endpoints"), "{output:?}");
    let want = "EndpointSlice shop/legacy-1: skipped: its apiVersion is \"discovery.k8s.io/v1beta1\", and only discovery.k8s.io/v1 is read";
    assert!(said.contains(want), "{said}");

    let output = dry_run(&(HOST.to_owned() + &configuration("") + "apiVersion: apps/v1\nkind: Deployment\nmetadata: {name: x}\n"));
    assert!(text(&output.stderr).contains("documents of kinds that are not needed: 1 apps/v1 Deployment"), "{output:?}");

    let output = dry_run("apiVersion: kubeproxy.config.k8s.io/v1beta1\nkind: KubeProxyConfiguration\n");
    assert_eq!(output.status.code(), Some(1));
    assert!(text(&output.stderr).contains("apiVersion: \"kubeproxy.config.k8s.io/v1beta1\" cannot be read here"), "{output:?}");
}

#[test]
fn what_only_an_api_server_can_choose_is_said() {
    let output = dry_run(&(HOST.to_owned() + &SERVICE.replace("clusterIP: 10.96.7.11, ", "")));
    let said = text(&output.stderr);
    assert!(output.status.success() && said.contains("Service shop/legacy: no rules: it has no clusterIP"), "{said}");
}

#[test]
fn a_dry_run_takes_the_configuration_in_full_or_refuses_it() {
    let invalid = "KUBE-FORWARD -m conntrack --ctstate INVALID -j DROP";
    let output = dry_run(&(HOST.to_owned() + &configuration("") + SERVICE));
    assert!(text(&output.stdout).contains(invalid), "{output:?}");
    let output = dry_run(&(HOST.to_owned() + &configuration("conntrack: {tcpBeLiberal: true}\n") + SERVICE));
    assert!(output.status.success() && !text(&output.stdout).contains(invalid), "{output:?}");
    let output = dry_run(&(HOST.to_owned() + &configuration("typo: 1\n") + SERVICE));
    assert!(
        text(&output.stderr).contains("KubeProxyConfiguration among the manifests: unknown field \"typo\"; read past it"),
        "{output:?}"
    );
    for (fields, want) in [
        ("healthzBindAddress: nonsense\n", "KubeProxyConfiguration.HealthzBindAddress"),
        ("conntrack: {udpTimeout: soon}\n", "KubeProxyConfiguration: conntrack.udpTimeout: "),
        ("featureGates: {nogate: true}\n", "unrecognized feature gate: nogate"),
    ] {
        let output = dry_run(&(HOST.to_owned() + &configuration(fields)));
        assert!(output.status.code() == Some(1) && text(&output.stderr).contains(want), "{output:?}");
    }
}

/// Fields without an effect on rules are used, too. Missing fields are taken from flags.
#[test]
fn the_daemon_takes_the_configuration_in_full() {
    let node = Netns::new();
    let folder = tempfile::tempdir().expect("a folder");
    let (manifests, log) = (folder.path().join("cluster.yaml"), folder.path().join("log"));
    let write = |fields: &str| {
        let new = folder.path().join("new");
        fs::write(&new, configuration(fields) + SERVICE + &slice("discovery.k8s.io/v1")).expect("writable");
        fs::rename(new, &manifests).expect("writable");
    };
    write("healthzBindAddress: 127.0.0.1:7777\nconntrack: {tcpCloseWaitTimeout: 77s, tcpBeLiberal: true}\n");
    let mut command = node.command(SEPAL);
    command
        .args(["run", "--iptables-variant=nft", "--metrics-bind-address=127.0.0.1:7778", "--conntrack-udp-timeout=33s"])
        .args(NAMESPACE_FLAGS);
    command.arg("--manifests").arg(&manifests).stdin(Stdio::null());
    let _sepal = Running(command.stderr(fs::File::create(&log).expect("writable")).spawn().expect("sepal starts"));
    let answers =
        |port: u16, path: &str| http::get(&node, SocketAddr::from(([127, 0, 0, 1], port)), path).is_ok_and(|answer| answer.status == 200);
    wait_until("it is alive where the configuration says", || answers(7777, "/livez"));
    wait_until("metrics are where the flag says", || answers(7778, "/metrics"));
    let keys = ["tcp_timeout_close_wait", "tcp_be_liberal", "udp_timeout"].map(|key| format!("net.netfilter.nf_conntrack_{key}"));
    assert_eq!(node.run(&format!("sysctl -n {}", keys.join(" "))), "77\n1\n33\n");
    let rules = || node.run("iptables-nft-save");
    wait_until("the rules are written", || rules().contains("192.0.2.77:9376"));
    let rules = rules();
    assert!(!rules.contains("--ctstate INVALID"), "{rules}");

    // A field that cannot change at run time is reported.
    write("healthzBindAddress: 127.0.0.1:7779\nconntrack: {tcpCloseWaitTimeout: 77s, tcpBeLiberal: true}\n");
    let said = || fs::read_to_string(Path::new(&log)).expect("readable");
    wait_until("the field is named", || said().contains("healthzBindAddress changed, which counts after a restart"));
    assert!(!said().contains("conntrack changed"), "{}", said());
}
