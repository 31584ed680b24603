//! Tables as text and as values: what iptables-save prints, what iptables-restore takes, and the way from one to the other. PURE.
//!
//! [`desired`] is what should be there, [`live`] what is there, [`acknowledged`] what the kernel is known to hold; [`plan`] leads from the
//! last to the first.

pub mod acknowledged;
pub mod by_service;
pub mod chain_names;
pub mod cleanup;
pub mod desired;
pub mod diff;
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
