//! The pod network's chains. They masquerade traffic that leaves the pod network and accept traffic that is forwarded for it. They are
//! equal to flannel's to the byte [flannel 8.1].

use std::fmt::Write as _;

use crate::cluster::Family;
use crate::cluster::pod_rules::{PodRanges, PodRules};
use crate::table::chain_names::{FLANNEL_FORWARD, FLANNEL_POSTROUTING};
use crate::table::jumps::Table;
use crate::table::rules::{ChainRules, Fixed};

/// Adds the pod network's chains to the fixed chains of a family. A chain that the settings turn off is added to `unwanted`.
pub(super) fn add(fixed: &mut Fixed, rules: &PodRules, mark: u32, random_fully: bool, family: Family) {
    let ranges = rules.ranges.get(family);
    match ranges.filter(|_| rules.masquerade) {
        Some(ranges) => {
            let rules = postrouting(ranges, mark, rules.random_fully && random_fully, family);
            fixed.nat.push(ChainRules { name: FLANNEL_POSTROUTING, rules });
        }
        None => fixed.unwanted.push((Table::Nat, FLANNEL_POSTROUTING)),
    }
    match ranges.filter(|_| rules.forward) {
        Some(ranges) => fixed.filter.push(ChainRules { name: FLANNEL_FORWARD, rules: forward(ranges) }),
        None => fixed.unwanted.push((Table::Filter, FLANNEL_FORWARD)),
    }
}

fn postrouting(PodRanges { network, subnet }: &PodRanges, mark: u32, random_fully: bool, family: Family) -> String {
    let multicast = if family == Family::V4 { "224.0.0.0/4" } else { "ff00::/8" };
    let masquerade = if random_fully { "MASQUERADE --random-fully" } else { "MASQUERADE" };
    let mut out = String::new();
    let mut rule = |matches: &str, target: &str| {
        let _ = writeln!(out, "-A {FLANNEL_POSTROUTING} {matches} -m comment --comment \"flanneld masq\" -j {target}");
    };
    // KUBE-POSTROUTING already masquerades packets that the service proxy marked.
    rule(&format!("-m mark --mark {mark:#x}/{mark:#x}"), "RETURN");
    rule(&format!("-s {subnet} -d {network}"), "RETURN");
    rule(&format!("-s {network} -d {subnet}"), "RETURN");
    // Traffic from outside to local pods keeps the client's address.
    rule(&format!("! -s {network} -d {subnet}"), "RETURN");
    rule(&format!("-s {network} ! -d {multicast}"), masquerade);
    rule(&format!("! -s {network} -d {network}"), masquerade);
    out
}

fn forward(PodRanges { network, .. }: &PodRanges) -> String {
    let rule = |matches: &str| format!("-A {FLANNEL_FORWARD} {matches} {network} -m comment --comment \"flanneld forward\" -j ACCEPT\n");
    rule("-s") + &rule("-d")
}
