//! iptables refuses many service ports at once. All other service ports are written, with a bounded number of runs.

use std::collections::BTreeSet;
use std::time::Duration;

use serde_json::{Value, json};

use sepal::cluster::{Family, ServiceKey};
use sepal::proxy::rules::inputs::Inputs;
use sepal::proxy::sync::family::FamilyRules;
use sepal::table::plan::Variant;

use crate::block_on;
use crate::common;
use crate::plain;
use crate::simulator::Memory;

/// A cluster with this number of Services. Endpoints of a bad one are in 10.66.0.0/16, of a good one in 10.62.0.0/16.
fn cluster(services: usize, bad: impl Fn(usize) -> bool) -> Inputs {
    let mut text = String::new();
    let mut put = |object: Value| text.extend([object.to_string().as_str(), "\n"]);
    for i in 0..services {
        let (name, place) = (format!("s{i:04}"), format!("{}.{}", i / 250, i % 250));
        put(plain::service(
            &name,
            &json!({"clusterIP": format!("10.61.{place}"), "clusterIPs": [format!("10.61.{place}")], "ipFamilies": ["IPv4"]}),
        ));
        put(plain::slice(&name, "IPv4", &[&format!("10.{}.{place}", if bad(i) { 66 } else { 62 })]));
    }
    common::inputs(&text).expect("well formed")
}

/// The outcome of a series of syncs.
#[derive(Debug, Default)]
struct Outcome {
    syncs: usize,
    /// Runs of iptables-restore, and the highest number of failed runs in one sync.
    runs: usize,
    failures: usize,
    refused: BTreeSet<String>,
}

/// Syncs until no sync is due.
async fn settle(rules: &mut FamilyRules, memory: &Memory, inputs: &Inputs) -> Outcome {
    let (mut outcome, facts, before) = (Outcome::default(), common::facts(inputs), memory.times.borrow().len());
    while rules.is_due() {
        let left = unwritten(rules, memory);
        let synced = rules.sync(memory, inputs, &facts).await.expect("no sync fails as a whole");
        assert!(synced.unfinished == 0 || unwritten(rules, memory) < left || outcome.syncs == 0, "each sync makes progress");
        outcome.refused.extend(synced.refused.iter().map(|refusal| refusal.name.to_string()));
        outcome.failures = outcome.failures.max(rules.attempt().failures);
        outcome.syncs += 1;
        assert!(outcome.syncs < 500, "the syncs do not end: {outcome:?}");
    }
    outcome.runs = memory.times.borrow().len() - before;
    outcome
}

/// The number of service ports that are neither written nor quarantined, as a negative offset.
fn unwritten(rules: &FamilyRules, memory: &Memory) -> isize {
    -isize::try_from(served(memory, "10.6") + rules.quarantined().count()).expect("few")
}

/// The number of endpoints in the rules whose address has this prefix.
fn served(memory: &Memory, prefix: &str) -> usize {
    let tables = memory.tables.borrow();
    tables.tables["nat"].values().flatten().filter(|rule| rule.contains(&format!("--to-destination {prefix}"))).count()
}

/// iptables refuses the bad ones of these Services, with their line number or without.
fn many_are_refused(variant: Variant, services: usize, bad: impl Fn(usize) -> bool + Copy, by_line: bool) {
    let inputs = cluster(services, bad);
    let count = (0..services).filter(|i| bad(*i)).count();
    let memory = Memory::new(variant);
    memory.keeps_states.set(false);
    *memory.refused.borrow_mut() = Some(("10.66.".into(), by_line));
    block_on(async {
        let mut rules = FamilyRules::new(Family::V4);
        let first = settle(&mut rules, &memory, &inputs).await;
        assert_eq!((served(&memory, "10.62."), served(&memory, "10.66.")), (services - count, 0), "{variant} {first:?}");
        assert_eq!((rules.quarantined().count(), first.refused.len()), (count, count));
        assert!(first.failures <= 16, "a sync is bounded: {first:?}");
        let each = if by_line { 3 } else { 12 };
        assert!(first.runs < count * each + 50, "{variant} {first:?}");

        // A change of another Service is written at once while others are in quarantine.
        let good = (0..services).find(|i| !bad(*i)).expect("a good one");
        rules.touch(&[ServiceKey { namespace: "ns".into(), name: format!("s{good:04}").into() }]);
        assert_eq!(settle(&mut rules, &memory, &inputs).await.refused.len(), 0);

        // The next trial is short, because all were refused for the same cause.
        tokio::time::advance(Duration::from_secs(241)).await;
        let again = settle(&mut rules, &memory, &inputs).await;
        assert!((1..=8).contains(&again.refused.len()) && again.runs < 120, "{variant} {again:?}");
        assert_eq!(rules.quarantined().count(), count);

        // When iptables accepts one of them, all are written.
        *memory.refused.borrow_mut() = None;
        tokio::time::advance(Duration::from_secs(241)).await;
        settle(&mut rules, &memory, &inputs).await;
        assert_eq!((served(&memory, "10.66."), rules.quarantined().count()), (count, 0), "{variant}");
        assert!(rules.next_trial().is_none());
    });
}

#[test]
fn seventy_bad_ones_do_not_keep_ten_good_ones_out() {
    for variant in [Variant::Nft, Variant::Legacy] {
        for by_line in [true, false] {
            many_are_refused(variant, 80, |i| i % 8 != 3, by_line);
        }
    }
}

#[test]
fn three_hundred_of_a_thousand_scattered() {
    many_are_refused(Variant::Nft, 1000, |i| i % 10 < 3, true);
    many_are_refused(Variant::Legacy, 1000, |i| i % 10 < 3, true);
}

#[test]
fn three_hundred_of_a_thousand_in_a_row_and_without_a_line_to_their_name() {
    many_are_refused(Variant::Nft, 1000, |i| (350..650).contains(&i), false);
    many_are_refused(Variant::Legacy, 1000, |i| (350..650).contains(&i), false);
}

/// A sync that fails for another reason still reports the service ports that were refused before.
#[test]
fn refusals_are_told_of_when_the_sync_fails() {
    let inputs = cluster(4, |i| i == 2);
    let memory = Memory::new(Variant::Legacy);
    *memory.refused.borrow_mut() = Some(("10.66.".into(), true));
    block_on(async {
        let mut rules = FamilyRules::new(Family::V4);
        memory.faults.borrow_mut().extend([None, Some(crate::simulator::Fault::Locked)]);
        let unsynced = rules.sync(&memory, &inputs, &common::facts(&inputs)).await.expect_err("locked");
        assert_eq!(unsynced.refused.len(), 1, "{unsynced}");
        assert_eq!(rules.quarantined().count(), 1);
        settle(&mut rules, &memory, &inputs).await;
        assert_eq!(served(&memory, "10.62."), 3);
    });
}
