//! Input of iptables-restore for a manifest text, and what is left of it to write on a node that has rules already.

use sepal::cluster::Family;
use sepal::proxy::rules::Renderer;
use sepal::proxy::rules::inputs::Inputs;
use sepal::proxy::sync::facts::whole;
use sepal::table::acknowledged::Acknowledged;
use sepal::table::desired::{Desired, Refresh};
use sepal::table::live::LiveReader;
use sepal::table::plan::Variant;
use sepal::table::planner::{self, DesiredTables};

use crate::common::facts;

/// The plan for live tables that iptables-save prints like this.
pub(crate) fn left_to_write(inputs: &Inputs, family: Family, saved: &str) -> String {
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

/// The restore input for empty tables, with the jumps.
pub(crate) fn into_empty_tables(inputs: &Inputs, family: Family) -> String {
    let (plan, renderer) = whole(inputs, &facts(inputs), family, &Acknowledged::default());
    plan.text(&renderer)
}
