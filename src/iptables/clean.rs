//! Deletes leftover rules of kube-proxy or of the pod network, table by table. If one table fails, the others are still cleaned
//! [kube-proxy 1.8].

use crate::cluster::Family;
use crate::table::cleanup::{ForeignRule, Owner, TABLES};

use super::exec::Exec;
use super::runner::{IptablesError, Runner};

/// The result of cleaning up one family.
#[derive(Debug, Default)]
pub struct Cleaned {
    /// The number of deleted jumps from built-in chains.
    pub jumps: usize,
    /// The number of deleted chains.
    pub chains: usize,
    /// The rules and chains that could not be deleted.
    pub errors: Vec<CleanError>,
}

/// A leftover that could not be deleted.
#[derive(Debug, thiserror::Error)]
pub enum CleanError {
    /// A table could not be read or written.
    #[error("table {table} of {family} is not cleaned up: {cause}")]
    Table {
        /// The family.
        family: Family,
        /// The table.
        table: &'static str,
        /// The error of iptables.
        cause: IptablesError,
    },
    /// A rule of another program jumps to a chain, so the chain stays.
    #[error(
        "chain {} of table {table} stays, empty: another program's rule {:?} jumps to it. Delete that rule ({program} -t {table} -D {}) and clean up again",
        foreign.chain, foreign.rule, foreign.rule.trim_start_matches("-A ")
    )]
    ChainKept {
        /// The program that can delete the rule.
        program: String,
        /// The table.
        table: &'static str,
        /// The chain and the rule.
        foreign: ForeignRule,
    },
}

/// Deletes every jump and chain of an owner in one family. Rules of other programs stay.
pub async fn clean(exec: &Exec, family: Family, owner: Owner) -> Cleaned {
    let mut cleaned = Cleaned::default();
    for table in TABLES {
        let saved = match exec.save_table(family, table).await {
            Ok(saved) => saved,
            // Only an empty canary chain can be in `mangle`, and not every kernel has this table.
            Err(error) if table == "mangle" => {
                tracing::debug!("{family}: table {table} is skipped: {error}");
                continue;
            }
            Err(cause) => {
                cleaned.errors.push(CleanError::Table { family, table, cause });
                continue;
            }
        };
        let left = owner.leftovers(table, &saved);
        let input = left.input(exec.variant());
        if !input.is_empty() {
            match exec.restore_text(family, &input).await {
                Ok(()) => {
                    cleaned.jumps += left.jumps();
                    cleaned.chains += left.deleted().count();
                }
                Err(cause) => cleaned.errors.push(CleanError::Table { family, table, cause }),
            }
        }
        let program = || exec.program(family, "");
        cleaned.errors.extend(left.foreign_rules().iter().map(|foreign| CleanError::ChainKept {
            program: program(),
            table,
            foreign: foreign.clone(),
        }));
    }
    cleaned
}
