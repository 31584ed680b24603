//! `sepal explain` compared with an independent implementation of Service semantics.

use std::fs;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};

use proptest::prelude::*;
use sepal::cluster::Family;
use sepal::explain::packet::{LocalNode, Origin, Packet};
use sepal::explain::ruleset::Ruleset;
use sepal::proxy::rules::inputs::Inputs;
use sepal::proxy::settings::NodePortAddresses;

use crate::endings::{Endings, by_ruleset, place};
use crate::random_cluster::{dice, objects, settings};
use crate::{common, oracle};

/// Compares with tolerance: iptables reads ten digits of a probability, and the kernel stores 31 bits.
fn same(a: &Endings, b: &Endings) -> bool {
    a.keys().eq(b.keys()) && a.values().zip(b.values()).all(|(a, b)| (a - b).abs() < 1e-6)
}

/// The senders: pods, endpoints, the node, and outside addresses within and without the load balancers' source ranges.
fn senders(inputs: &Inputs, place: &LocalNode, family: Family) -> Vec<(IpAddr, Origin)> {
    let mut senders: Vec<(IpAddr, Origin)> = place.addresses.iter().take(2).map(|ip| (*ip, Origin::Node)).collect();
    let outside = if family == Family::V4 { "203.0.113.9" } else { "2001:db8::9" };
    senders.push((outside.parse().expect("an IP"), Origin::Outside));
    let snapshot = &inputs.snapshot;
    for (key, service) in snapshot.services() {
        senders.extend(service.source_ranges(family).first().map(|range| (range.network(), Origin::Outside)));
        let endpoints = snapshot.slices(key).flat_map(|slice| &slice.endpoints);
        senders.extend(endpoints.take(3).map(|endpoint| (endpoint.ip, Origin::Pod)));
    }
    if let sepal::proxy::settings::DetectLocal::ClusterCidr(cidrs) = &inputs.settings.detect_local {
        senders.extend(cidrs.iter().filter_map(|cidr| Some((cidr.iter().nth(77)?, Origin::Pod))));
    }
    senders.retain(|(ip, _)| Family::of(*ip) == family && !ip.is_loopback());
    senders.sort_by_key(|(ip, origin)| (*ip, *origin as u8));
    senders.dedup();
    senders
}

/// Every address of every service port, and one address that no Service has.
fn destinations(inputs: &Inputs, place: &LocalNode, family: Family) -> Vec<(SocketAddr, sepal::cluster::Protocol)> {
    let mut all = Vec::new();
    for (_, service) in inputs.snapshot.services() {
        for port in &service.ports {
            let ips = service.cluster_ip(family).into_iter().chain(service.external_ips(family)).chain(service.load_balancer_vips(family));
            all.extend(ips.map(|ip| (SocketAddr::new(ip, port.port), port.protocol)));
            // nodePortAddresses may limit the node's addresses; the first one is always among them.
            let answers = matches!(&inputs.settings.node_port_addresses, NodePortAddresses::Primary)
                || matches!(&inputs.settings.node_port_addresses, NodePortAddresses::Cidrs(cidrs) if cidrs.is_empty());
            let node = place.addresses.iter().find(|ip| Family::of(**ip) == family).filter(|_| answers && port.node_port != 0);
            all.extend(node.map(|ip| (SocketAddr::new(*ip, port.node_port), port.protocol)));
        }
    }
    let unserved = if family == Family::V4 { "198.51.100.200:81" } else { "[2001:db8:5::200]:81" };
    all.push((unserved.parse().expect("an address"), sepal::cluster::Protocol::Tcp));
    all
}

/// Compares the rules with the semantics for every sender and every destination; returns the number of packets.
fn rules_mean_what_services_mean(inputs: &Inputs, name: &str) -> usize {
    let place = place(inputs);
    let mut packets = 0;
    for family in Family::ALL {
        let rules = Ruleset::desired(&common::rendered(inputs, family));
        for (to, protocol) in destinations(inputs, &place, family) {
            for (source, origin) in senders(inputs, &place, family) {
                let packet = Packet { source, to, protocol, origin };
                let (rules, meaning) = (by_ruleset(&rules, packet, &place), oracle::endings(inputs, packet, &place));
                assert!(same(&rules, &meaning), "{name}: {packet}\nby the rules      {rules:?}\nby the semantics  {meaning:?}");
                packets += 1;
            }
        }
    }
    packets
}

fn yaml_files(folder: &Path) -> Vec<PathBuf> {
    let Ok(entries) = fs::read_dir(folder) else { return Vec::new() };
    let path = |entry: fs::DirEntry| if entry.path().is_dir() { entry.path().join("input.yaml") } else { entry.path() };
    let mut files: Vec<PathBuf> =
        entries.flatten().map(path).filter(|path| path.extension().is_some_and(|end| end == "yaml") && path.exists()).collect();
    files.sort_unstable();
    files
}

#[test]
fn every_case_means_what_its_services_mean() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut files = yaml_files(&root.join("testdata"));
    assert!(files.len() > 150, "only {} cases", files.len());
    // Recordings of the real kube-proxy, if they are beside the checkout.
    files.extend(yaml_files(&root.join("../shared/conformance")));
    let (mut packets, mut cases) = (0, 0);
    for file in files {
        let name = file.display().to_string();
        let text = fs::read_to_string(&file).expect("readable");
        let Ok(inputs) = common::inputs(&text) else { continue };
        // Cases with rules of the pod network or without the proxy are skipped, and so are large ones.
        if inputs.pod_rules.is_some() || inputs.without_proxy || inputs.snapshot.services().count() > 60 {
            continue;
        }
        packets += rules_mean_what_services_mean(&inputs, &name);
        cases += 1;
    }
    assert!(cases > 140 && packets > 5_000, "{packets} packets of {cases} cases");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    #[test]
    fn any_cluster_means_what_its_services_mean(dice in proptest::collection::vec(dice(), 1..6), settings in settings()) {
        let text: String = objects(&dice, &settings, 8080).iter().map(|object| format!("---\n{object}\n")).collect();
        let inputs = common::inputs(&text).map_err(TestCaseError::fail)?;
        prop_assert_eq!(inputs.snapshot.services().count(), dice.len());
        rules_mean_what_services_mean(&inputs, "random");
    }
}
