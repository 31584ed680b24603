//! The door to iptables. Everything that reads or writes rules of the kernel goes through [`Runner`].

pub mod clean;
pub mod detect;
pub mod exec;
pub mod lock;
pub mod other_modes;
pub mod record;
pub mod runner;
mod trial;

pub use runner::{IptablesError, Restored, Runner};
