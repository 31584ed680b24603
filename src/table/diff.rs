//! What differs between the rules this node should have and the rules it has, for people to read.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use similar::TextDiff;

use super::chain_names::{self, ChainKind};

use super::Table;
use super::parse::Tables;
use super::rule::{canonical, owner};

/// Chains in which the order of service ports means nothing, but for the NodePort rule at the end.
const SHARED: [&str; 4] = [chain_names::SERVICES, chain_names::NODEPORTS, chain_names::EXTERNAL_SERVICES, chain_names::PROXY_FIREWALL];

const LAST: &str = "this must be the last rule in this chain";

/// A unified diff from live to desired, grouped by chain; empty if they are the same. Rules are compared by meaning, so text that
/// iptables spells differently makes no difference, and shown in one spelling.
#[must_use]
pub fn unified(desired: &Tables<'_>, live: &Tables<'_>) -> String {
    let mut out = String::new();
    for table in Table::ALL {
        for (chain, missing) in missing_jumps(table, desired, live) {
            difference(&mut out, table, chain, "", &missing);
        }
        let (have, want) = (live.chains(table), desired.chains(table));
        for (chain, rules) in want {
            let live_rules = have.get(chain);
            let old = live_rules.map(|rules| lines(chain, rules)).unwrap_or_default();
            difference(&mut out, table, chain, &old, &lines(chain, rules));
        }
        for (chain, rules) in
            have.iter().filter(|(chain, _)| table == Table::Nat && ChainKind::of(chain).is_some() && !want.contains_key(**chain))
        {
            difference(&mut out, table, chain, &lines(chain, rules), "");
        }
    }
    out
}

/// A chain as text in canonical spelling, the chain's own line first: an empty chain is not a missing one. The rules of one service port
/// stay in their order.
fn lines(chain: &str, rules: &[&str]) -> String {
    let mut rules = rules.to_vec();
    if SHARED.contains(&chain) {
        rules.sort_by_cached_key(|rule| (rule.contains(LAST), owner(rule)));
    }
    let lines = rules.iter().map(|rule| format!("-A {chain} {}\n", canonical(rule)));
    format!(":{chain}\n{}", lines.collect::<String>())
}

fn difference(out: &mut String, table: Table, chain: &str, old: &str, new: &str) {
    if old != new {
        let diff = TextDiff::from_lines(old, new);
        let _ = write!(out, "{}", diff.unified_diff().header(&format!("live {table} {chain}"), &format!("desired {table} {chain}")));
    }
}

/// Jumps that are missing, as text by the chain they belong in: only these of a built-in chain's rules are ours to have an opinion on.
fn missing_jumps(table: Table, desired: &Tables<'_>, live: &Tables<'_>) -> BTreeMap<&'static str, String> {
    let mut missing: BTreeMap<_, String> = BTreeMap::new();
    for jump in live.missing_jumps(table, |table, chain| desired.chains(table).contains_key(chain)) {
        let rule = format!("-A {} {}\n", jump.from, canonical(&jump.arguments()));
        // The last one ensured ends up first, but for those that go to the end.
        let rules = missing.entry(jump.from).or_default();
        rules.insert_str(if jump.pod_network { rules.len() } else { 0 }, &rule);
    }
    missing
}
