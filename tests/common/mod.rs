//! What the tests share: a cluster from manifest text, its rules, and tables that live in memory.

#![allow(dead_code, unreachable_pub, reason = "each test binary uses its own part")]
#![allow(clippy::expect_used, reason = "a test that cannot be set up has failed")]

pub mod objects;
pub mod plain;
pub mod simulator;

use sepal::cluster::Family;
use sepal::cluster::host_facts::HostFacts;
use sepal::config::manifests::Manifests;
use sepal::config::settings::Asked;
use sepal::netlink::record::FakeHost;
use sepal::proxy::rules::inputs::Inputs;
use sepal::proxy::rules::{self, Renderer, RuleSet};
use sepal::proxy::sync::facts::{described_facts, whole};
use sepal::table::acknowledged::Acknowledged;
use sepal::table::desired::{Desired, Refresh};
use sepal::table::live::LiveReader;
use sepal::table::plan::Variant;
use sepal::table::planner::{self, DesiredTables};

/// The inputs a manifest text stands for.
pub fn inputs(text: &str) -> Result<Inputs, String> {
    let mut manifests = Manifests::default();
    manifests.add("manifest", text).map_err(|error| error.to_string())?;
    Ok(manifests.into_inputs(&Asked { host_name: "host".into(), ..Asked::default() }))
}

/// What is known of a host about which nothing is known but what the manifest says.
pub fn facts(inputs: &Inputs) -> HostFacts {
    described_facts(inputs, &FakeHost::default(), true).expect("facts were checked when they were read")
}

/// The rules of one family.
pub fn rule_set(inputs: &Inputs, family: Family) -> RuleSet {
    rules::compute(inputs, &facts(inputs), family)
}

/// The restore input of one family, in one transaction per table.
pub fn rendered(inputs: &Inputs, family: Family) -> String {
    let (plan, renderer) = whole(inputs, &facts(inputs), family, &planner::dry_run_tables());
    plan.text(&renderer)
}

/// What is left to write where iptables-save prints this.
pub fn left_to_write(inputs: &Inputs, family: Family, saved: &str) -> String {
    let facts = facts(inputs);
    let mut desired = Desired::default();
    let counter = Renderer::new(inputs, &facts, family);
    desired.count(&counter, Refresh::All);
    let renderer = counter.for_size(desired.endpoints());
    let all = desired.refresh(&renderer, Refresh::All);
    let mut reader = LiveReader::new(desired.services(), &desired.fixed);
    saved.lines().for_each(|line| reader.line(line));
    let held = Acknowledged::from_live(reader.finish(), desired.services());
    let wanted = DesiredTables { services: desired.services(), fixed: &desired.fixed, spared: &[] };
    planner::plan(&wanted, &held, &all, Variant::Nft, planner::CHAINS_PER_TRANSACTION).text(&renderer)
}

/// The restore input that fills tables in which there is nothing: the jumps, too.
pub fn into_empty_tables(inputs: &Inputs, family: Family) -> String {
    let (plan, renderer) = whole(inputs, &facts(inputs), family, &Acknowledged::default());
    plan.text(&renderer)
}
