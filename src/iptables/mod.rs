//! The door to iptables. Everything that reads or writes rules of the kernel goes through [`Runner`].

pub mod detect;
pub mod exec;
mod lock;
pub mod record;
pub mod runner;

pub use runner::{IptablesError, Runner};
