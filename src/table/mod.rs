//! iptables tables as values. Parses the output of iptables-save and plans the input of iptables-restore. PURE.
//!
//! - [`rules`]: the text of desired rules, and where a plan gets it from. [`chain_names`], [`jumps`]: the chains and the jumps to them.
//! - [`desired`]: the desired rules as digests ([`outline`]). [`live`]: the rules in the kernel as iptables-save prints them.
//!   [`acknowledged`]: the rules that the kernel accepted.
//! - [`plan`], [`planner`]: the transactions that turn the acknowledged rules into the desired ones. [`final_counters`]: reads the counters
//!   of rules that a plan deletes. [`rule_counts`]: counts rules.
//! - [`rule`]: one spelling for every rule. [`parse`], [`diff`], [`by_service`]: compare tables as text. [`cleanup`]: finds leftovers.

pub mod acknowledged;
pub mod by_service;
pub mod chain_names;
pub mod cleanup;
pub mod desired;
pub mod diff;
mod difference;
pub mod final_counters;
pub mod jumps;
pub mod live;
pub mod outline;
pub mod parse;
pub mod plan;
pub mod planner;
pub mod rule;
pub mod rule_counts;
pub mod rules;

pub use jumps::Table;
