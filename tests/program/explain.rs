//! `sepal explain`: its output and its exit status.

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};

use sepal_lab::{SingleNode, wait_until};
use serde_json::Value;

use crate::SEPAL;
use crate::logged::Logged;

/// Exit status, standard output and standard error for `testdata/traffic.yaml`.
fn explain(arguments: &[&str]) -> (Option<i32>, String, String) {
    explain_cluster(&Path::new(env!("CARGO_MANIFEST_DIR")).join("testdata/traffic.yaml"), arguments)
}

fn explain_cluster(manifests: &Path, arguments: &[&str]) -> (Option<i32>, String, String) {
    let mut command = Command::new(SEPAL);
    command.args(["explain", "--hostname-override=alder-03", "--manifests"]).arg(manifests).args(arguments);
    let output = command.output().expect("it runs");
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).expect("text");
    (output.status.code(), text(output.stdout), text(output.stderr))
}

#[test]
fn a_path_is_shown_rule_by_rule() {
    let (status, text, _) = explain(&["--from", "10.61.4.20", "--to", "svc/shop/web"]);
    assert_eq!(status, Some(0), "{text}");
    let lines: Vec<&str> = text.lines().collect();
    assert_eq!(lines[0], "10.61.4.20 (outside) to 10.111.0.10:80/tcp");
    assert_eq!(lines[1], "nat PREROUTING: to KUBE-SERVICES, all Services (kubernetes service portals)");
    assert!(lines[2].starts_with("nat KUBE-SERVICES: to KUBE-SVC-") && lines[2].ends_with("(shop/web:http cluster IP)"), "{text}");
    for ip in ["10.61.3.10", "10.61.3.11"] {
        let leaf = format!("=> 50 %: to {ip}:8080, a pod of this node, from 10.61.4.20");
        assert!(lines.iter().any(|line| line.ends_with(&leaf)), "no {leaf} in\n{text}");
    }
}

#[test]
fn json_output_is_one_object() {
    let (status, text, _) = explain(&["--from", "node", "--to", "10.111.0.11:53/udp", "-o", "json"]);
    let object: Value = serde_json::from_str(&text).expect("JSON");
    assert_eq!((status, &object["origin"], &object["protocol"]), (Some(0), &"node".into(), &"udp".into()));
    let shares: f64 =
        object["endings"].as_array().expect("a list").iter().map(|ending| ending["probability"].as_f64().expect("a number")).sum();
    assert!((shares - 1.0).abs() < 1e-9, "{text}");
    assert_eq!(object["endings"][0]["fate"], "passed");
}

/// For a refused or dropped packet the output names the rule, and the exit status is 2.
#[test]
fn what_is_stopped_is_told_with_the_rule() {
    let (status, text, _) = explain(&["--from", "external", "--to", "svc/shop/empty"]);
    assert_eq!(status, Some(2), "{text}");
    let last = text.lines().last().unwrap_or_default();
    assert!(
        last.starts_with("=> refused by '-t filter -A KUBE-SERVICES ") && last.ends_with("': the sender gets an error at once"),
        "{text}"
    );
    assert!(last.contains("-d 10.111.0.13") && last.contains("shop/empty:http has no endpoints") && last.contains("-j REJECT"), "{text}");

    let (status, text, _) = explain(&["--from", "external", "--to", "svc/shop/empty", "-o", "json"]);
    let object: Value = serde_json::from_str(&text).expect("JSON");
    let by = &object["endings"][0]["stoppedBy"];
    assert_eq!((status, &by["table"], &by["chain"]), (Some(2), &"filter".into(), &"KUBE-SERVICES".into()));
    assert!(by["rule"].as_str().is_some_and(|rule| rule.starts_with("-A KUBE-SERVICES ") && rule.ends_with("-j REJECT")), "{text}");
    let (_, text, _) = explain(&["--from", "node", "--to", "svc/shop/web", "-o", "json"]);
    let object: Value = serde_json::from_str(&text).expect("JSON");
    assert_eq!(object["endings"][0]["stoppedBy"], Value::Null);

    // Only some sources may use the load balancer.
    let (status, text, _) = explain(&["--from", "external/198.51.100.99", "--to", "203.0.113.8:80"]);
    let last = text.lines().last().unwrap_or_default();
    assert_eq!(status, Some(2), "{text}");
    assert!(
        last.starts_with("=> dropped by '-t filter -A KUBE-PROXY-FIREWALL ") && last.ends_with("-j DROP': the sender gets no answer"),
        "{text}"
    );
}

#[test]
fn exit_statuses_are_in_the_help_and_in_the_documents() {
    let help = Command::new(SEPAL).args(["explain", "--help"]).output().expect("it runs");
    let help = String::from_utf8(help.stdout).expect("text");
    let help = help.split_whitespace().collect::<Vec<_>>().join(" ");
    assert!(
        help.contains("Exit status: 0 if the packet passes, 2 if every such packet is dropped or refused, 1 if there is an error."),
        "{help}"
    );
    for document in ["docs/command-line.md", "docs/operations.md"] {
        let text = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(document)).expect("readable");
        let text = text.split_whitespace().collect::<Vec<_>>().join(" ");
        assert!(
            text.contains("exit status is 0 if the packet passes, 2 if every such packet is dropped or refused, 1 if there is an error"),
            "{document}"
        );
    }
}

#[test]
fn protocols_and_port_names_are_read_in_any_case() {
    for (to, want) in [
        ("10.111.0.11:53/UDP", "10.111.0.11:53/udp"),
        ("10.111.0.11:53/Udp", "10.111.0.11:53/udp"),
        ("10.111.0.10:80/TCP", "10.111.0.10:80/tcp"),
        ("10.111.0.10:80/SCTP", "10.111.0.10:80/sctp"),
        ("svc/shop/dns/UDP", "10.111.0.11:53/udp"),
        ("svc/shop/dns:dns/UDP", "10.111.0.11:53/udp"),
        ("svc/shop/dns:DNS", "10.111.0.11:53/udp"),
        ("svc/shop/dns:53/uDP", "10.111.0.11:53/udp"),
    ] {
        let (status, text, error) = explain(&["--from", "node", "--to", to]);
        assert_eq!(status, Some(0), "{to}: {error}");
        assert!(text.lines().next().is_some_and(|line| line.ends_with(&format!(" to {want}"))), "{to}: {text}");
    }
}

/// An ambiguous or unknown destination leads to an error that lists the choices.
#[test]
fn errors_list_the_choices() {
    let ports = |ports: &[(&str, u16, &str)]| -> String {
        ports.iter().map(|(name, port, protocol)| format!("{{name: {name}, port: {port}, protocol: {protocol}}},")).collect()
    };
    let service = |namespace: &str, name: &str, ip: &str, ports: String| {
        format!(
            "---\napiVersion: v1\nkind: Service\nmetadata: {{namespace: {namespace}, name: {name}}}\n\
             spec: {{type: ClusterIP, clusterIP: {ip}, clusterIPs: [{ip}], ipFamilies: [IPv4], ports: [{ports}]}}\n"
        )
    };
    let dns = [("dns", 53, "UDP"), ("dns-tcp", 53, "TCP"), ("metrics", 9153, "TCP")];
    let text = service("kube-system", "kube-dns", "10.96.0.10", ports(&dns))
        + &service("other", "kube-dns", "10.96.0.11", ports(&[("", 53, "UDP")]).replace("name: ,", ""))
        + "---\napiVersion: v1\nkind: Node\nmetadata: {name: alder-03}\nspec: {podCIDR: 10.61.3.0/24}\n\
           status: {addresses: [{type: InternalIP, address: 192.168.61.13}]}\n";
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("cluster.yaml");
    fs::write(&file, text).expect("writable");
    let all =
        "svc/kube-system/kube-dns:53/udp (dns), svc/kube-system/kube-dns:53/tcp (dns-tcp), svc/kube-system/kube-dns:9153/tcp (metrics)";
    let both = "svc/kube-system/kube-dns:53/udp (dns), svc/kube-system/kube-dns:53/tcp (dns-tcp)";
    let tcp = "svc/kube-system/kube-dns:53/tcp (dns-tcp), svc/kube-system/kube-dns:9153/tcp (metrics)";
    for (to, want) in [
        ("svc/kube-system/kube-dns", format!("Service kube-system/kube-dns has several such ports; choose one: {all}")),
        ("svc/kube-system/kube-dns:53", format!("Service kube-system/kube-dns has several such ports; choose one: {both}")),
        ("svc/kube-system/kube-dns/TCP", format!("Service kube-system/kube-dns has several such ports; choose one: {tcp}")),
        ("svc/kube-system/kube-dns:54", format!("Service kube-system/kube-dns has no such port; it has: {all}")),
        ("svc/kube-system/kube-dns:http/udp", format!("Service kube-system/kube-dns has no such port; it has: {all}")),
        ("svc/other/kube-dns/sctp", "Service other/kube-dns has no such port; it has: svc/other/kube-dns:53/udp".into()),
        ("10.96.0.10", "10.96.0.10 needs a port: 10.96.0.10:53/udp, 10.96.0.10:53/tcp, 10.96.0.10:9153/tcp".into()),
        ("10.96.0.10/udp", "10.96.0.10 needs a port: 10.96.0.10:53/udp, 10.96.0.10:53/tcp, 10.96.0.10:9153/tcp".into()),
        ("10.96.0.99", "10.96.0.99 needs a port: IP:PORT".into()),
        (
            "svc/kube-dns",
            "svc/kube-dns has no namespace: svc/NAMESPACE/NAME is needed; did you mean svc/kube-system/kube-dns or svc/other/kube-dns?"
                .into(),
        ),
        ("svc/default/kube-dns", "did you mean svc/kube-system/kube-dns or svc/other/kube-dns?".into()),
        ("svc/kube-system/kube-dns:53/icmp", "\"icmp\" is not a protocol of Services: tcp, udp or sctp".into()),
        ("10.96.0.10:53/", "\"\" is not a protocol of Services: tcp, udp or sctp".into()),
    ] {
        let (status, text, error) = explain_cluster(&file, &["--from", "node", "--to", to]);
        assert_eq!((status, text.as_str()), (Some(1), ""), "{to}");
        assert!(error.trim_end().ends_with(&want), "{to}: {error}");
    }
    let (status, text, error) = explain_cluster(&file, &["--from", "node", "--to", "svc/kube-system/kube-dns:dns-tcp"]);
    assert!(text.starts_with("192.168.61.13 (this node) to 10.96.0.10:53/tcp"), "{status:?} {text} {error}");
}

#[test]
fn what_cannot_be_understood_is_said_in_one_line() {
    for (arguments, complaint) in [
        (&["--from", "nowhere", "--to", "10.0.0.1:80"][..], "is none of IP, node, external, external/IP, pod/NAMESPACE/NAME"),
        (&["--from", "node", "--to", "somewhere"], "is neither IP:PORT nor svc/NAMESPACE/NAME[:PORT]"),
        (&["--from", "node", "--to", "svc/shop"], "svc/shop has no namespace"),
        (&["--from", "node", "--to", "svc/shop/nothing"], "there is no Service shop/nothing"),
        (&["--from", "node", "--to", "svc/shop/web:ftp"], "Service shop/web has no such port; it has: svc/shop/web:80/tcp (http)"),
        (&["--from", "fd00::1", "--to", "10.0.0.1:80"], "not of the same IP family"),
        (&["--from", "pod/a/b", "--to", "10.0.0.1:80"], "manifests say nothing of pods' addresses: give the IP of pod a/b"),
    ] {
        let (status, text, error) = explain(arguments);
        assert_eq!((status, text.as_str()), (Some(1), ""), "{arguments:?}");
        assert!(
            error.contains(complaint) && error.lines().filter(|line| line.contains("ERROR") || line.contains("Error")).count() <= 1,
            "{arguments:?}: {error}"
        );
    }
}

/// `--live` follows the rules in the kernel. If the desired rules lead elsewhere, both are shown.
#[test]
fn live_rules_are_walked_and_compared() {
    let site = SingleNode::new();
    let manifests = Path::new(env!("CARGO_MANIFEST_DIR")).join("testdata/traffic.yaml");
    let sepal = |arguments: &[&str]| {
        let mut command = site.node.command(SEPAL);
        command.args(arguments).args(["--hostname-override=alder-03", "--iptables-variant=nft", "--manifests"]).arg(&manifests);
        command.stdin(Stdio::null());
        command
    };
    let mut run = sepal(&["run", "--conntrack-max-per-core=0"]);
    let running = Logged::start(&mut run);
    wait_until("the rules are there", || running.log().matches("service ports").count() > 1);
    assert_eq!(running.terminate().0, Some(0));
    let live = |output: &str| {
        let output = sepal(&["explain", "--live", "--from", "10.61.4.20", "--to", "svc/shop/web", "-o", output]).output().expect("it runs");
        (output.status.code(), String::from_utf8(output.stdout).expect("text"))
    };
    let (status, text) = live("text");
    assert_eq!(status, Some(0), "{text}");
    assert!(text.contains("=> 50 %: to 10.61.3.10:8080") && text.contains("by pods0, MTU 1500"), "{text}");
    assert!(!text.contains("it is different"), "{text}");
    assert!(live("json").1.contains("\"desired\": null"));

    site.node.run("iptables-nft -t nat -I KUBE-SERVICES -p tcp -d 10.111.0.10 -j DNAT --to-destination 10.61.3.11:8080");
    let (_, text) = live("text");
    let (is, should) = text.split_once("With the rules that sepal would write it is different:").expect("both are shown");
    assert!(is.contains("=> to 10.61.3.11:8080") && should.contains("=> 50 %: to 10.61.3.10:8080"), "{text}");
}
