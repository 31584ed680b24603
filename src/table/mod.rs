//! Tables as text and as values: what iptables-save prints, what iptables-restore takes, and the way from one to the other. PURE.

pub mod diff;
pub mod parse;
pub mod plan;
pub mod rule;

pub use crate::rules::jumps::Table;
