//! Runs iptables. All reads and writes of the kernel's rules go through [`Runner`].
//!
//! - [`runner`]: the interface and its errors. [`exec`]: runs the programs. [`record`]: writes to a text instead, for dry runs.
//! - [`detect`]: finds the variant and version. [`lock`]: the xtables lock.
//! - [`clean`]: deletes leftover rules. [`ipvs_nftables`]: deletes the leftovers of kube-proxy's other modes.

pub mod clean;
pub mod detect;
pub mod exec;
pub mod ipvs_nftables;
pub mod lock;
mod probe;
pub mod record;
pub mod runner;

pub use runner::{IptablesError, RestoreResult, Runner};
