//! What the tests share: a cluster from manifest text, its rules, and tables that live in memory.

#![allow(dead_code, unreachable_pub, reason = "each test binary uses its own part")]
#![allow(clippy::expect_used, reason = "a test that cannot be set up has failed")]

pub mod objects;
pub mod plain;
pub mod simulator;

use sepal::agent::facts::{described_facts, whole};
use sepal::cluster::Family;
use sepal::config::settings::{Asked, HostFacts};
use sepal::netlink::record::FakeHost;
use sepal::rules::inputs::Inputs;
use sepal::rules::{self, RuleSet};
use sepal::source::manifests::Manifests;
use sepal::table::acknowledged::Acknowledged;
use sepal::table::planner;

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
    let (plan, renderer) = whole(inputs, &facts(inputs), family, &planner::unknown());
    plan.text(&renderer)
}

/// The restore input that fills tables in which there is nothing: the jumps, too.
pub fn into_empty_tables(inputs: &Inputs, family: Family) -> String {
    let (plan, renderer) = whole(inputs, &facts(inputs), family, &Acknowledged::default());
    plan.text(&renderer)
}
