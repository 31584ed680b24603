//! What it takes to read and write a family's tables, and how that can fail.

use std::future::Future;
use std::time::Duration;

use crate::cluster::{Family, ServicePortName};
use crate::table::Table;
use crate::table::plan::{Plan, Variant};
use crate::table::rules::RuleSource;

/// Reads and writes tables.
pub trait Runner {
    /// Which iptables it writes with.
    fn variant(&self) -> Variant;

    /// Gives every line of the family's table as iptables-save prints it.
    ///
    /// # Errors
    /// It cannot be read.
    fn save(&self, family: Family, table: Table, line: &mut dyn FnMut(&str)) -> impl Future<Output = Result<(), IptablesError>>;

    /// Carries out a plan, whose rules the renderer knows. Its transactions take effect one after the other; the first that fails
    /// ends it.
    ///
    /// # Errors
    /// A transaction was refused; those before it hold.
    fn restore(&self, family: Family, plan: &Plan, renderer: &dyn RuleSource)
    -> impl Future<Output = Result<RestoreResult, IptablesError>>;

    /// Whether the chain is still there by which one can tell that tables were flushed (spec section 7.3); `None` if that cannot be
    /// told now.
    fn canary(&self, family: Family) -> impl Future<Output = Option<bool>>;

    /// The rules of the built-in chains of a table that have jumps of ours in them, as iptables-save prints them. Unlike [`Runner::save`]
    /// it costs little where there are many rules: on nft nearly nothing, on legacy half.
    ///
    /// # Errors
    /// They cannot be read now.
    fn builtin_jumps(&self, family: Family, table: Table) -> impl Future<Output = Result<String, IptablesError>>;

    /// A number that moves by one with every transaction that changes rules, whoever makes it and in whichever family; `None` where
    /// there is no such number.
    fn generation(&self) -> Option<u32>;

    /// Puts that chain into every table of the family, where it is not there: three transactions.
    ///
    /// # Errors
    /// It cannot be written.
    fn set_canary(&self, family: Family) -> impl Future<Output = Result<(), IptablesError>>;
}

/// What came of a plan that was carried out.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RestoreResult {
    /// The time that was spent waiting for the xtables lock.
    pub locked: Duration,
    /// What the plan's lists printed, as `iptables -v -S` has it.
    pub listed: String,
}

impl IptablesError {
    /// The time that was spent waiting for the xtables lock, before that was given up.
    #[must_use]
    pub const fn waited(&self) -> Duration {
        match self {
            Self::Locked { seconds, .. } => Duration::from_secs(*seconds),
            _ => Duration::ZERO,
        }
    }
}

/// How reading or writing tables can fail.
#[derive(Debug, thiserror::Error)]
pub enum IptablesError {
    /// No iptables at all.
    #[error("cannot run {0}: no such program. Install iptables (on Debian: apt-get install iptables)")]
    Missing(String),
    /// The variant asked for is not installed.
    #[error("iptables variant {wanted} is not installed: there is no {missing} in PATH. Install it, or use --iptables-variant={other}")]
    NoVariant {
        /// The variant.
        wanted: Variant,
        /// The program that was looked for.
        missing: String,
        /// The variant that may be there.
        other: Variant,
    },
    /// Neither family can be programmed.
    #[error("iptables is not available on this host : {0}")]
    Unusable(String),
    /// The family of the node's first address cannot be programmed.
    #[error("no support for primary IP family \"{}\": {why}", match family { Family::V4 => "IPv4", Family::V6 => "IPv6" })]
    NoPrimary {
        /// The family.
        family: Family,
        /// What keeps it from being programmed.
        why: String,
    },
    /// No permission.
    #[error("{0}: no permission. Run as root, or with the capabilities NET_ADMIN and NET_RAW in this network namespace")]
    Permission(String),
    /// The program could not be started or talked to.
    #[error("cannot run {command}: {cause}")]
    Run {
        /// The program.
        command: String,
        /// Why.
        cause: std::io::Error,
    },
    /// It took too long and was stopped.
    #[error("{command} did not finish within {seconds} s and was stopped; it may be waiting for another program's xtables lock")]
    Timeout {
        /// The program.
        command: String,
        /// The time it was given.
        seconds: u64,
    },
    /// Another program holds the lock of legacy iptables.
    #[error("{command}: the xtables lock is held by {holder}; waited {seconds} s for it")]
    Locked {
        /// The program.
        command: String,
        /// Who holds it, as far as that can be told.
        holder: String,
        /// How long it waited.
        seconds: u64,
    },
    /// It failed.
    #[error("{command} failed: {output}")]
    Failed {
        /// The program.
        command: String,
        /// What it printed.
        output: String,
    },
    /// It refused a line of its input.
    #[error("{command} refused line {line}, {text:?}{}: {output}", owner.as_ref().map(|name| format!(", of service port {name}")).unwrap_or_default())]
    Refused {
        /// The program.
        command: String,
        /// Line of the input, counted from 1.
        line: usize,
        /// That line.
        text: String,
        /// The service port it is for.
        owner: Option<Box<ServicePortName>>,
        /// What the program printed.
        output: String,
    },
    /// The dry run's output could not be written.
    #[error("cannot print the rules: {0}")]
    Print(std::io::Error),
}
