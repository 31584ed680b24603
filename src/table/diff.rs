//! Prints the differences between the desired and the live rules as a unified diff.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use similar::TextDiff;

use super::Table;
use super::chain_names::ChainKind;
use super::live::SHARED;
use super::parse::Tables;
use super::rule::{canonical, owner};

/// The comment of the NodePort rule, which stays at the end of its chain.
const LAST: &str = "this must be the last rule in this chain";

/// Returns a unified diff from live to desired, grouped by chain, or an empty text if they are the same. Rules are compared and shown in
/// canonical spelling, so a different spelling of the same rule is no difference.
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

/// Returns a chain as text in canonical spelling. The first line declares the chain, so that an empty chain differs from a missing one.
/// In shared chains, rules are sorted by service port. The rules of one service port keep their order.
fn lines(chain: &str, rules: &[&str]) -> String {
    let mut rules = rules.to_vec();
    if SHARED.iter().any(|(_, shared)| *shared == chain) {
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

/// Returns the missing jumps as text, by built-in chain. Other rules of built-in chains are not ours, so they are not compared.
fn missing_jumps(table: Table, desired: &Tables<'_>, live: &Tables<'_>) -> BTreeMap<&'static str, String> {
    let mut missing: BTreeMap<_, String> = BTreeMap::new();
    for jump in live.missing_jumps(table, |table, chain| desired.chains(table).contains_key(chain)) {
        let rule = format!("-A {} {}\n", jump.from, canonical(&jump.arguments()));
        // A jump that is inserted later ends up above the earlier ones. The pod network's jumps are appended.
        let rules = missing.entry(jump.from).or_default();
        rules.insert_str(if jump.pod_network { rules.len() } else { 0 }, &rule);
    }
    missing
}
