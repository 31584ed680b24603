//! What the tests share: a cluster from manifest text, its rules, and tables that live in memory.

#![allow(dead_code, unreachable_pub, reason = "each test binary uses its own part")]
#![allow(clippy::expect_used, reason = "a test that cannot be set up has failed")]

pub mod simulator;

use sepal::agent::sync::described_facts;
use sepal::cluster::Family;
use sepal::config::settings::Asked;
use sepal::netlink::record::FakeHost;
use sepal::rules::inputs::Inputs;
use sepal::rules::{self, RuleSet};
use sepal::source::manifests::Manifests;
use sepal::table::plan::{Plan, Variant};

/// The inputs a manifest text stands for.
pub fn inputs(text: &str) -> Result<Inputs, String> {
    let mut manifests = Manifests::default();
    manifests.add("manifest", text).map_err(|error| error.to_string())?;
    Ok(manifests.into_inputs(&Asked { host_name: "host".into(), ..Asked::default() }))
}

/// The rules of one family, on a host about which nothing is known but what the manifest says.
pub fn rule_set(inputs: &Inputs, family: Family) -> RuleSet {
    let host = described_facts(inputs, &FakeHost::default(), true).expect("facts were checked when they were read");
    rules::compute(inputs, &host, family)
}

/// The restore input of one family, in one transaction per table.
pub fn rendered(inputs: &Inputs, family: Family) -> String {
    Plan::full(&rule_set(inputs, family), None, Variant::Legacy).text()
}
