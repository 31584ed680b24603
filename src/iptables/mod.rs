//! The door to iptables. Everything that reads or writes rules of the kernel goes through [`Runner`].

pub mod clean;
pub mod detect;
pub mod exec;
pub mod ipvs_nftables;
pub mod lock;
mod probe;
pub mod record;
pub mod runner;

pub use runner::{IptablesError, RestoreResult, Runner};
