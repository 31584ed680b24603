//! Parses the output of iptables-save, or the input of iptables-restore, into tables.

use std::collections::BTreeMap;

use super::jumps::{JUMPS, Jump};

use super::Table;
use super::rule::canonical;

/// Chains by name. Each has its rules in the order and spelling of the text, without `-A CHAIN`.
pub type Chains<'a> = BTreeMap<&'a str, Vec<&'a str>>;

/// The tables `filter` and `nat` of a text.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tables<'a> {
    filter: Chains<'a>,
    nat: Chains<'a>,
}

impl<'a> Tables<'a> {
    /// Adds the chains and rules of a text. Skips other tables, and lines other than `*table`, `:chain` and `-A`, because iptables also
    /// prints warnings.
    pub fn read(&mut self, text: &'a str) {
        let mut table = None;
        for line in text.lines() {
            if let Some(name) = line.strip_prefix('*') {
                table = Table::ALL.into_iter().find(|table| table.as_str() == name.trim_end());
            } else if line == "COMMIT" {
                table = None;
            } else if let Some(chains) = table.map(|table| self.chains_mut(table)) {
                if let Some(chain) = line.strip_prefix(':') {
                    chains.entry(first_word(chain).0).or_default();
                } else if let Some((chain, rule)) = without_counters(line).strip_prefix("-A ").map(first_word) {
                    chains.entry(chain).or_default().push(rule);
                }
            }
        }
    }

    /// The chains of one table.
    #[must_use]
    pub const fn chains(&self, table: Table) -> &Chains<'a> {
        match table {
            Table::Filter => &self.filter,
            Table::Nat => &self.nat,
        }
    }

    /// Returns the desired jumps that a table lacks, in the order in which they are added. `has_chain` says which chains are desired.
    pub fn missing_jumps<'b>(
        &'b self,
        table: Table,
        has_chain: impl Fn(Table, &'static str) -> bool + 'b,
    ) -> impl Iterator<Item = &'static Jump> + 'b {
        let is_desired = move |jump: &&Jump| jump.is_desired(&has_chain);
        JUMPS.iter().filter(move |jump| jump.table == table).filter(is_desired).filter(move |jump| {
            let desired = canonical(&jump.arguments());
            let rules = self.chains(table).get(jump.from).map(Vec::as_slice).unwrap_or_default();
            !rules.iter().any(|rule| rule.ends_with(jump.to) && canonical(rule) == desired)
        })
    }

    const fn chains_mut(&mut self, table: Table) -> &mut Chains<'a> {
        match table {
            Table::Filter => &mut self.filter,
            Table::Nat => &mut self.nat,
        }
    }
}

fn first_word(text: &str) -> (&str, &str) {
    text.split_once(' ').unwrap_or((text, ""))
}

/// Removes `[packets:bytes] `, which `iptables-save -c` prints before each rule.
fn without_counters(line: &str) -> &str {
    if line.starts_with('[') { line.split_once("] ").map_or(line, |(_, rest)| rest) } else { line }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn other_tables_and_other_lines_are_skipped() {
        let text = "# Generated\n*mangle\n:KUBE-KUBELET-CANARY - [0:0]\nCOMMIT\n*nat\n:PREROUTING ACCEPT [3:4]\n:KUBE-SERVICES - [0:0]\n\
                    -A PREROUTING -m comment --comment \"x y\" -j KUBE-SERVICES\n[1:60] -A KUBE-SERVICES -j RETURN\n-A KUBE-SERVICES\nCOMMIT\n# Warning\n";
        let mut tables = Tables::default();
        tables.read(text);
        let nat = tables.chains(Table::Nat);
        assert_eq!(nat.keys().copied().collect::<Vec<_>>(), ["KUBE-SERVICES", "PREROUTING"]);
        assert_eq!(nat["KUBE-SERVICES"], ["-j RETURN", ""]);
        assert_eq!(nat["PREROUTING"], ["-m comment --comment \"x y\" -j KUBE-SERVICES"]);
        assert!(tables.chains(Table::Filter).is_empty());
    }
}
