//! The program: what it prints, and how it ends.

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};

use sepal_lab::{Running, Site, eventually};
use serde_json::Value;

use crate::SEPAL;

/// Exit status, output and complaint.
fn explain(arguments: &[&str]) -> (Option<i32>, String, String) {
    let manifests = Path::new(env!("CARGO_MANIFEST_DIR")).join("testdata/traffic.yaml");
    let mut command = Command::new(SEPAL);
    command.args(["explain", "--hostname-override=alder-03", "--manifests"]).arg(manifests).args(arguments);
    let output = command.output().expect("it runs");
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).expect("text");
    (output.status.code(), text(output.stdout), text(output.stderr))
}

#[test]
fn a_way_is_told_rule_by_rule() {
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
fn programs_get_an_object() {
    let (status, text, _) = explain(&["--from", "node", "--to", "10.111.0.11:53/udp", "-o", "json"]);
    let object: Value = serde_json::from_str(&text).expect("JSON");
    assert_eq!((status, &object["origin"], &object["protocol"]), (Some(0), &"node".into(), &"udp".into()));
    let shares: f64 =
        object["endings"].as_array().expect("a list").iter().map(|ending| ending["probability"].as_f64().expect("a number")).sum();
    assert!((shares - 1.0).abs() < 1e-9, "{text}");
    assert_eq!(object["endings"][0]["fate"], "passed");
}

/// What does not get through says why, and the exit status does, too.
#[test]
fn what_is_stopped_is_told_with_the_rule() {
    let (status, text, _) = explain(&["--from", "external", "--to", "svc/shop/empty"]);
    assert_eq!(status, Some(2), "{text}");
    assert!(text.contains("has no endpoints") && text.contains("=> refused: the sender is told at once"), "{text}");
}

#[test]
fn what_cannot_be_understood_is_said_in_one_line() {
    for (arguments, complaint) in [
        (&["--from", "nowhere", "--to", "10.0.0.1:80"][..], "is none of IP, node, external, external/IP, pod/NAMESPACE/NAME"),
        (&["--from", "node", "--to", "10.0.0.1"], "is neither IP:PORT nor svc/NAMESPACE/NAME[:PORT]"),
        (&["--from", "node", "--to", "svc/shop"], "is neither IP:PORT nor svc/NAMESPACE/NAME[:PORT]"),
        (&["--from", "node", "--to", "svc/shop/nothing"], "there is no Service shop/nothing"),
        (&["--from", "node", "--to", "svc/shop/web:ftp"], "one of its ports has to be named: http 80/tcp"),
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

/// By the rules in the kernel; and where those that should be there lead elsewhere, that is said.
#[test]
fn live_rules_are_walked_and_compared() {
    let site = Site::new();
    let manifests = Path::new(env!("CARGO_MANIFEST_DIR")).join("testdata/traffic.yaml");
    let log = tempfile::NamedTempFile::new().expect("writable");
    let sepal = |arguments: &[&str]| {
        let mut command = site.node.command(SEPAL);
        command.args(arguments).args(["--hostname-override=alder-03", "--iptables-variant=nft", "--manifests"]).arg(&manifests);
        command.stdin(Stdio::null());
        command
    };
    let mut run = sepal(&["run", "--conntrack-max-per-core=0"]);
    let running = Running(run.stderr(log.reopen().expect("writable")).spawn().expect("it starts"));
    eventually("the rules are there", || fs::read_to_string(log.path()).expect("readable").matches("service ports").count() > 1);
    assert_eq!(running.terminate(), Some(0));
    let live = |output: &str| {
        let output = sepal(&["explain", "--live", "--from", "10.61.4.20", "--to", "svc/shop/web", "-o", output]).output().expect("it runs");
        (output.status.code(), String::from_utf8(output.stdout).expect("text"))
    };
    let (status, text) = live("text");
    assert_eq!(status, Some(0), "{text}");
    assert!(text.contains("=> 50 %: to 10.61.3.10:8080") && text.contains("by pods0, MTU 1500"), "{text}");
    assert!(!text.contains("otherwise"), "{text}");
    assert!(live("json").1.contains("\"desired\": null"));

    site.node.run("iptables-nft -t nat -I KUBE-SERVICES -p tcp -d 10.111.0.10 -j DNAT --to-destination 10.61.3.11:8080");
    let (_, text) = live("text");
    let (is, should) = text.split_once("By the rules that should be there it is otherwise:").expect("both are told");
    assert!(is.contains("=> to 10.61.3.11:8080") && should.contains("=> 50 %: to 10.61.3.10:8080"), "{text}");
}
