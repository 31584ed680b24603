//! Reads the live rules.

use crate::cluster::Family;
use crate::iptables::IptablesError;
use crate::iptables::exec::Exec;
use crate::table::Table;

/// The tables of a family, as iptables-save prints them.
pub(super) async fn saved_tables(exec: &Exec, family: Family) -> Result<String, IptablesError> {
    let mut saved = String::new();
    for table in Table::ALL {
        saved += &exec.save_table(family, table.as_str()).await?;
    }
    Ok(saved)
}
