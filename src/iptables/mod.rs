//! The door to iptables. Everything that reads or writes rules of the kernel goes through [`Runner`].

pub mod clean;
pub mod detect;
pub mod exec;
mod lock;
pub mod other_modes;
pub mod record;
pub mod runner;

pub use runner::{IptablesError, Runner};
