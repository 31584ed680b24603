//! Connections to Services are counted, whatever becomes of the rules that count them: real iptables of both variants and real packets, in
//! network namespaces of the tests' own.

use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use sepal_lab::traffic::tcp;
use sepal_lab::{IN_NAMESPACE, Running, Site, eventually_within, http};

use crate::SEPAL;

/// Counters are read every ten seconds, on a busy machine less often; and it may take two readings.
const READ: Duration = Duration::from_secs(180);

const DOOR: &str = "sepal_service_packets_total{namespace=\"shop\",service=\"web\",port=\"http\",kind=";
const ENDPOINT: &str = "sepal_endpoint_packets_total{namespace=\"shop\",service=\"web\",port=\"http\",";

/// The site, with sepal on its node following manifests that may change.
struct Lab {
    site: Site,
    variant: &'static str,
    folder: tempfile::TempDir,
    _sepal: Running,
}

impl Lab {
    fn new(variant: &'static str) -> Self {
        let (site, folder) = (Site::new(), tempfile::tempdir().expect("a folder"));
        fs::write(folder.path().join("site.yaml"), traffic()).expect("writable");
        let mut command = site.node.command(SEPAL);
        command.arg("run").args(IN_NAMESPACE).args(["--iptables-variant", variant, "--manifests"]).arg(folder.path().join("site.yaml"));
        let sepal = Running(command.stdin(Stdio::null()).spawn().expect("sepal starts"));
        let lab = Self { site, variant, folder, _sepal: sepal };
        lab.wait_for_rules();
        eventually_within(READ, "counting has begun", || lab.counts("cluster_ip", 0));
        lab
    }

    fn manifests(&self) -> PathBuf {
        self.folder.path().join("site.yaml")
    }

    /// Has the manifests say something else, and waits until the rules do so.
    fn change(&self, text: &str) {
        let new = self.folder.path().join("new");
        fs::write(&new, text).expect("writable");
        fs::rename(new, self.manifests()).expect("in one folder");
        self.wait_for_rules();
    }

    fn wait_for_rules(&self) {
        eventually_within(READ, "the live rules are the desired ones", || {
            let mut command = self.site.node.command(SEPAL);
            command.args(["--dry-run", "--diff", "--iptables-variant", self.variant, "--manifests"]).arg(self.manifests());
            command.stdout(Stdio::null()).status().expect("sepal starts").code() == Some(0)
        });
    }

    fn metrics(&self) -> String {
        http::get(&self.site.node, address("127.0.0.1", 10249), "/metrics").map(|answer| answer.body).unwrap_or_default()
    }

    /// Whether so many connections came by this door.
    fn counts(&self, kind: &str, count: u64) -> bool {
        self.metrics().contains(&format!("{DOOR}\"{kind}\"}} {count}\n"))
    }

    /// Connections to all endpoints.
    fn to_endpoints(&self) -> u64 {
        let metrics = self.metrics();
        let counts = metrics.lines().filter_map(|line| line.strip_prefix(ENDPOINT)?.rsplit(' ').next()?.parse::<u64>().ok());
        counts.sum()
    }

    /// So many connections to the Service's address.
    fn connect(&self, times: usize) {
        for _ in 0..times {
            tcp(&self.site.client, address("10.111.0.10", 80)).expect("it answers");
        }
    }
}

fn address(text: &str, port: u16) -> SocketAddr {
    SocketAddr::new(text.parse().expect("an address"), port)
}

fn traffic() -> String {
    fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("testdata/traffic.yaml")).expect("readable")
}

/// Each connection counts once, by the door it comes by.
fn connections_are_counted(variant: &'static str) {
    let lab = Lab::new(variant);
    lab.connect(5);
    for _ in 0..2 {
        tcp(&lab.site.outside, address("192.168.61.13", 30080)).expect("it answers");
    }
    eventually_within(READ, "they are counted", || lab.counts("cluster_ip", 5) && lab.counts("node_port", 2));
    assert_eq!(lab.to_endpoints(), 7, "each went to one of the endpoints");
    // Where somebody sets counters to zero they go on from there, and what was counted stays.
    lab.site.node.run(&format!("iptables-{variant} -t nat -Z"));
    lab.connect(3);
    eventually_within(READ, "they are added", || lab.counts("cluster_ip", 8));
}

#[test]
fn connections_are_counted_nft() {
    connections_are_counted("nft");
}

#[test]
fn connections_are_counted_legacy() {
    connections_are_counted("legacy");
}

/// What rules have counted when they go is not lost, nor what others count that come in their place.
fn rules_that_go_tell_what_they_counted(variant: &'static str) {
    let lab = Lab::new(variant);
    let endpoint = |last: u8| format!("- {{addresses: [\"10.61.3.{last}\"], nodeName: alder-03}}\n");
    let one_less = traffic().replace(&endpoint(11), "");
    let none = one_less.replace(&format!("endpoints:\n{}", endpoint(10)), "endpoints: []\n");
    assert!(traffic().len() > one_less.len() && one_less.len() > none.len(), "the manifests are as this test thinks");

    // Long before counters are read again, both endpoints go, and then the line that leads to them.
    lab.connect(5);
    lab.change(&one_less);
    lab.connect(4);
    lab.change(&none);
    tcp(&lab.site.client, address("10.111.0.10", 80)).expect_err("nobody is left");
    lab.change(&traffic());
    lab.connect(3);
    eventually_within(READ, "all are counted, by their door", || lab.counts("cluster_ip", 12));
    assert_eq!(lab.to_endpoints(), 12);
    // Nothing counts twice.
    lab.connect(1);
    eventually_within(READ, "one more", || lab.counts("cluster_ip", 13));
    assert_eq!(lab.to_endpoints(), 13);
}

#[test]
fn rules_that_go_tell_what_they_counted_nft() {
    rules_that_go_tell_what_they_counted("nft");
}

#[test]
fn rules_that_go_tell_what_they_counted_legacy() {
    rules_that_go_tell_what_they_counted("legacy");
}
