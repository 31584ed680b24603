//! Tests that need neither root nor a network: rules, plans, the sync loop on tables in memory, and the documents and manifests.

#![allow(
    clippy::expect_used,
    clippy::panic,
    clippy::disallowed_methods,
    clippy::cast_precision_loss,
    reason = "tests start programs, and fail where they cannot be set up"
)]

#[path = "../common/mod.rs"]
mod common;
#[path = "../common/endings.rs"]
mod endings;
#[path = "../common/kustomization.rs"]
mod kustomization;
#[path = "../common/random_cluster.rs"]
mod random_cluster;

mod allocation;
mod architecture;
mod citations;
mod dispatch_pieces;
mod docs;
mod engine;
mod explain;
mod golden;
mod kernel_model;
mod loop_timing;
mod manifests;
mod metrics;
mod network_plan;
mod objects;
mod oracle;
mod plain;
mod pod_rules;
mod properties;
mod refusals;
mod regress;
mod rule_counts;
mod simulator;
mod sources;
mod threats;

use sepal::cluster::Family;
use sepal::proxy::rules::inputs::Inputs;
use sepal::proxy::rules::{RuleSet, compute};

const SEPAL: &str = env!("CARGO_BIN_EXE_sepal");

/// The rules of one family.
fn rule_set(inputs: &Inputs, family: Family) -> RuleSet {
    compute(inputs, &common::facts(inputs), family)
}

/// Runs a future on a clock that moves only while every task waits.
fn block_on<T>(work: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().expect("a runtime");
    runtime.block_on(work)
}
