//! Connections to Services are counted, whatever becomes of the rules that count them: real iptables of both variants and real packets, in
//! network namespaces of the tests' own.

use std::fs;
use std::net::SocketAddr;
use std::time::Duration;

use sepal_lab::traffic::tcp;
use sepal_lab::{eventually_within, http};

use crate::manifest_site::{self, Following};

/// Counters are read every ten seconds, on a busy machine less often; and it may take two readings.
const READ: Duration = Duration::from_secs(180);

const DOOR: &str = "sepal_service_packets_total{namespace=\"shop\",service=\"web\",port=\"http\",kind=";
const ENDPOINT: &str = "sepal_endpoint_packets_total{namespace=\"shop\",service=\"web\",port=\"http\",";

/// A site whose connections are counted.
struct Lab {
    following: Following,
}

impl std::ops::Deref for Lab {
    type Target = Following;

    fn deref(&self) -> &Following {
        &self.following
    }
}

impl Lab {
    fn new(variant: &'static str) -> Self {
        let lab = Self { following: Following::new(variant, &traffic()) };
        eventually_within(READ, "counting has begun", || lab.counts("cluster_ip", 0));
        lab
    }

    fn metrics(&self) -> String {
        http::get(&self.node, address("127.0.0.1", 10249), "/metrics").map(|answer| answer.body).unwrap_or_default()
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
            tcp(&self.client, address("10.111.0.10", 80)).expect("it answers");
        }
    }
}

fn address(text: &str, port: u16) -> SocketAddr {
    SocketAddr::new(text.parse().expect("an address"), port)
}

fn traffic() -> String {
    fs::read_to_string(manifest_site::traffic()).expect("readable")
}

/// Each connection counts once, by the door it comes by.
fn connections_are_counted(variant: &'static str) {
    let lab = Lab::new(variant);
    lab.connect(5);
    for _ in 0..2 {
        tcp(&lab.outside, address("192.168.61.13", 30080)).expect("it answers");
    }
    eventually_within(READ, "they are counted", || lab.counts("cluster_ip", 5) && lab.counts("node_port", 2));
    assert_eq!(lab.to_endpoints(), 7, "each went to one of the endpoints");
    // Where somebody sets counters to zero they go on from there, and what was counted stays.
    lab.node.run(&format!("iptables-{variant} -t nat -Z"));
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
    tcp(&lab.client, address("10.111.0.10", 80)).expect_err("nobody is left");
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
