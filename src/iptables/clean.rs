//! Taking away what is left of kube-proxy's or the pod network's rules, table by table; a failure is noted and the rest goes on (spec
//! section 1.8).

use crate::cluster::Family;
use crate::table::cleanup::{ForeignRule, Owner, TABLES};

use super::exec::Exec;
use super::runner::{IptablesError, Runner};

/// What came of cleaning up one family.
#[derive(Debug, Default)]
pub struct Cleaned {
    /// How many jumps from built-in chains were deleted.
    pub jumps: usize,
    /// How many chains were deleted.
    pub chains: usize,
    /// What is still there, and why.
    pub errors: Vec<CleanError>,
}

/// Something of ours that is still there.
#[derive(Debug, thiserror::Error)]
pub enum CleanError {
    /// A table could not be read or written.
    #[error("table {table} of {family} is not cleaned up: {cause}")]
    Table {
        /// The family.
        family: Family,
        /// The table.
        table: &'static str,
        /// Why.
        cause: IptablesError,
    },
    /// A rule of somebody else's leads to a chain.
    #[error(
        "chain {} of table {table} stays, empty: the rule {:?} leads to it and is somebody else's. Delete that rule ({program} -t {table} -D {}) and clean up again",
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

/// Deletes every jump and chain of an owner in one family. What others made stays.
pub async fn clean(exec: &Exec, family: Family, owner: Owner) -> Cleaned {
    let mut cleaned = Cleaned::default();
    for table in TABLES {
        let saved = match exec.save_table(family, table).await {
            Ok(saved) => saved,
            // All that can be in it is an empty chain, and not every kernel has it.
            Err(error) if table == "mangle" => {
                tracing::debug!("{family}: table {table} is left alone: {error}");
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
