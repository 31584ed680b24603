//! Connections per Service are counted correctly while the rules that count them are replaced and deleted.

use std::fs;
use std::net::SocketAddr;
use std::time::Duration;

use sepal_lab::traffic::tcp;
use sepal_lab::{http, wait_until_within};

use crate::manifest_site::{self, Following};

/// Counters are read every ten seconds, less often on a busy machine, and two reads may be needed.
const READ: Duration = Duration::from_secs(180);

const SERVICE: &str = "sepal_service_packets_total{namespace=\"shop\",service=\"web\",port=\"http\",kind=";
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
        wait_until_within(READ, "counting has begun", || lab.counts("cluster_ip", 0));
        lab
    }

    fn metrics(&self) -> String {
        http::get(&self.node, address("127.0.0.1", 10249), "/metrics").map(|answer| answer.body).unwrap_or_default()
    }

    /// Whether this number of connections came to this kind of address.
    fn counts(&self, kind: &str, count: u64) -> bool {
        self.metrics().contains(&format!("{SERVICE}\"{kind}\"}} {count}\n"))
    }

    /// The number of connections to all endpoints.
    fn to_endpoints(&self) -> u64 {
        let metrics = self.metrics();
        let counts = metrics.lines().filter_map(|line| line.strip_prefix(ENDPOINT)?.rsplit(' ').next()?.parse::<u64>().ok());
        counts.sum()
    }

    /// Opens this number of connections to the cluster IP.
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

/// Each connection is counted once, with the kind of its Service address.
fn connections_are_counted(variant: &'static str) {
    let lab = Lab::new(variant);
    lab.connect(5);
    for _ in 0..2 {
        tcp(&lab.outside, address("192.168.61.13", 30080)).expect("it answers");
    }
    wait_until_within(READ, "they are counted", || lab.counts("cluster_ip", 5) && lab.counts("node_port", 2));
    assert_eq!(lab.to_endpoints(), 7, "each went to one of the endpoints");
    // When another program resets the counters, counting continues and the total stays.
    lab.node.run(&format!("iptables-{variant} -t nat -Z"));
    lab.connect(3);
    wait_until_within(READ, "they are added", || lab.counts("cluster_ip", 8));
}

#[test]
fn connections_are_counted_nft() {
    connections_are_counted("nft");
}

#[test]
fn connections_are_counted_legacy() {
    connections_are_counted("legacy");
}

/// The counts of deleted rules, and of the rules that replace them, are not lost.
fn deleted_rules_keep_their_counts(variant: &'static str) {
    let lab = Lab::new(variant);
    let endpoint = |last: u8| format!("- {{addresses: [\"10.61.3.{last}\"], nodeName: alder-03}}\n");
    let one_less = traffic().replace(&endpoint(11), "");
    let none = one_less.replace(&format!("endpoints:\n{}", endpoint(10)), "endpoints: []\n");
    assert!(traffic().len() > one_less.len() && one_less.len() > none.len(), "the manifests are as this test thinks");

    // Before the next read of the counters both endpoints are removed, and with them the dispatch rule.
    lab.connect(5);
    lab.change(&one_less);
    lab.connect(4);
    lab.change(&none);
    tcp(&lab.client, address("10.111.0.10", 80)).expect_err("no endpoint is left");
    lab.change(&traffic());
    lab.connect(3);
    wait_until_within(READ, "all are counted, by kind of address", || lab.counts("cluster_ip", 12));
    assert_eq!(lab.to_endpoints(), 12);
    // No connection is counted twice.
    lab.connect(1);
    wait_until_within(READ, "one more", || lab.counts("cluster_ip", 13));
    assert_eq!(lab.to_endpoints(), 13);
}

#[test]
fn deleted_rules_keep_their_counts_nft() {
    deleted_rules_keep_their_counts("nft");
}

#[test]
fn deleted_rules_keep_their_counts_legacy() {
    deleted_rules_keep_their_counts("legacy");
}
