//! The interface that reads and writes the tables of a family, and its errors.

use std::future::Future;
use std::time::Duration;

use crate::cluster::{Family, ServicePortName};
use crate::table::Table;
use crate::table::plan::{Plan, Variant};
use crate::table::rules::RuleSource;

/// Reads and writes the tables of the kernel.
pub trait Runner {
    /// The iptables variant.
    fn variant(&self) -> Variant;

    /// Calls `line` with each line that iptables-save prints for a table.
    ///
    /// # Errors
    /// The table cannot be read.
    fn save(&self, family: Family, table: Table, line: &mut dyn FnMut(&str)) -> impl Future<Output = Result<(), IptablesError>>;

    /// Applies a plan. `renderer` renders its rules. The transactions are applied one after the other, until one fails.
    ///
    /// # Errors
    /// A transaction was refused. The transactions before it are applied.
    fn restore(&self, family: Family, plan: &Plan, renderer: &dyn RuleSource)
    -> impl Future<Output = Result<RestoreResult, IptablesError>>;

    /// Returns true if the canary chain exists. If it does not, another program flushed the tables [kube-proxy 7.3]. `None` if the tables
    /// cannot be read now.
    fn canary(&self, family: Family) -> impl Future<Output = Option<bool>>;

    /// Returns the rules of the built-in chains of a table that contain our jumps, as iptables-save prints them. For many rules this is faster
    /// than [`Runner::save`]: on nft it takes almost no time, on legacy half the time.
    ///
    /// # Errors
    /// The chains cannot be read now.
    fn builtin_jumps(&self, family: Family, table: Table) -> impl Future<Output = Result<String, IptablesError>>;

    /// Returns the generation number, which increases by one with every transaction of any program in any family. `None` if the kernel has no
    /// such number.
    fn generation(&self) -> Option<u32>;

    /// Creates the canary chain in every table of the family that lacks it, in three transactions.
    ///
    /// # Errors
    /// The chain cannot be written.
    fn set_canary(&self, family: Family) -> impl Future<Output = Result<(), IptablesError>>;
}

/// The result of applying a plan.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RestoreResult {
    /// The time spent waiting for the xtables lock.
    pub locked: Duration,
    /// The output of the plan's list steps, in the format of `iptables -v -S`.
    pub listed: String,
}

impl IptablesError {
    /// The time spent waiting for the xtables lock, if the wait failed.
    #[must_use]
    pub const fn waited(&self) -> Duration {
        match self {
            Self::Locked { seconds, .. } => Duration::from_secs(*seconds),
            _ => Duration::ZERO,
        }
    }
}

/// An error of reading or writing tables.
#[derive(Debug, thiserror::Error)]
pub enum IptablesError {
    /// iptables is not installed.
    #[error("cannot run {0}: no such program. Install iptables (on Debian: apt-get install iptables)")]
    Missing(String),
    /// The requested variant is not installed.
    #[error("iptables variant {wanted} is not installed: there is no {missing} in PATH. Install it, or use --iptables-variant={other}")]
    NoVariant {
        /// The variant.
        wanted: Variant,
        /// The missing program.
        missing: String,
        /// The other variant, which may be installed.
        other: Variant,
    },
    /// No family is supported.
    #[error("iptables is not available on this host : {0}")]
    Unusable(String),
    /// The family of the node's first address is not supported.
    #[error("no support for primary IP family \"{}\": {why}", family.proper_name())]
    NoPrimary {
        /// The family.
        family: Family,
        /// The reason.
        why: String,
    },
    /// No permission.
    #[error("{0}: no permission. Run as root, or with the capabilities NET_ADMIN and NET_RAW in this network namespace")]
    Permission(String),
    /// The program could not be started, or its input or output failed.
    #[error("cannot run {command}: {cause}")]
    Run {
        /// The program.
        command: String,
        /// The error.
        cause: std::io::Error,
    },
    /// The program took too long and was stopped.
    #[error("{command} did not finish within {seconds} s and was stopped; it may be waiting for another program's xtables lock")]
    Timeout {
        /// The program.
        command: String,
        /// The time limit.
        seconds: u64,
    },
    /// Another program holds the lock of legacy iptables.
    #[error("{command}: the xtables lock is held by {holder}; waited {seconds} s for it")]
    Locked {
        /// The program.
        command: String,
        /// The program that holds it, if it is visible.
        holder: String,
        /// The time waited for it.
        seconds: u64,
    },
    /// The program failed.
    #[error("{command} failed: {output}")]
    Failed {
        /// The program.
        command: String,
        /// The output.
        output: String,
    },
    /// iptables-restore refused a line of its input.
    #[error("{command} refused line {line}, {text:?}{}: {output}", owner.as_ref().map(|name| format!(", of service port {name}")).unwrap_or_default())]
    Refused {
        /// The program.
        command: String,
        /// The number of the line, counted from 1.
        line: usize,
        /// The line.
        text: String,
        /// The service port that the line belongs to.
        owner: Option<Box<ServicePortName>>,
        /// The output of the program.
        output: String,
    },
    /// The dry run's output could not be written.
    #[error("cannot print the rules: {0}")]
    Print(std::io::Error),
}
