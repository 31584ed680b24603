//! The rules of one family, from what iptables-save prints or what would be written.

use std::collections::HashMap;

use crate::table::Table;
use crate::table::jumps::JUMPS;

use super::rule::Rule;

/// Chains with their rules.
#[derive(Clone, Debug, Default)]
pub struct Ruleset {
    chains: HashMap<(Table, String), Chain>,
}

/// A chain.
#[derive(Clone, Debug, Default)]
pub struct Chain {
    /// Its rules, in order.
    pub rules: Vec<Rule>,
    /// A built-in chain drops what no rule decides about.
    pub drops: bool,
}

impl Ruleset {
    /// Reads tables, as iptables-save prints them. Lines that are none of `*table`, `:chain` and `-A` are passed over.
    #[must_use]
    pub fn live(text: &str) -> Self {
        let mut ruleset = Self::default();
        let mut table = None;
        for line in text.lines() {
            if let Some(name) = line.strip_prefix('*') {
                table = Table::ALL.into_iter().find(|table| table.as_str() == name.trim_end());
                continue;
            }
            let Some(table) = table else { continue };
            if let Some(chain) = line.strip_prefix(':') {
                let mut words = chain.split(' ');
                let name = words.next().unwrap_or_default();
                ruleset.chain(table, name).drops = words.next() == Some("DROP");
            } else if let Some(rule) = line.strip_prefix("-A ") {
                let (chain, arguments) = rule.split_once(' ').unwrap_or((rule, ""));
                ruleset.chain(table, chain).rules.push(Rule::read(arguments));
            }
        }
        ruleset
    }

    /// Reads what would be written, and adds the jumps that lead to it. What else is in the built-in chains is not known, nor their
    /// policy: nothing, and ACCEPT.
    #[must_use]
    pub fn desired(text: &str) -> Self {
        let mut ruleset = Self::live(text);
        let has = |ruleset: &Self, table, name: &str| ruleset.chains.contains_key(&(table, name.to_owned()));
        for jump in JUMPS.iter().filter(|jump| has(&ruleset, jump.table, jump.to)).collect::<Vec<_>>() {
            let rules = &mut ruleset.chain(jump.table, jump.from).rules;
            let place = if jump.operation() == "-I" { 0 } else { rules.len() };
            rules.insert(place, Rule::read(&jump.arguments()));
        }
        ruleset
    }

    /// A chain, if it is there.
    #[must_use]
    pub fn get(&self, table: Table, name: &str) -> Option<&Chain> {
        self.chains.get(&(table, name.to_owned()))
    }

    /// A chain that is there, with its name as it is kept.
    pub(super) fn named(&self, table: Table, name: &str) -> Option<(&str, &Chain)> {
        self.chains.get_key_value(&(table, name.to_owned())).map(|((_, name), chain)| (name.as_str(), chain))
    }

    fn chain(&mut self, table: Table, name: &str) -> &mut Chain {
        self.chains.entry((table, name.to_owned())).or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn jumps_lead_to_what_would_be_written() {
        let ruleset = Ruleset::desired("*nat\n:KUBE-SERVICES - [0:0]\n:FLANNEL-POSTRTG - [0:0]\n:KUBE-POSTROUTING - [0:0]\nCOMMIT\n");
        assert_eq!(ruleset.get(Table::Nat, "PREROUTING").map(|chain| chain.rules.len()), Some(1));
        let out: Vec<&str> =
            ruleset.get(Table::Nat, "POSTROUTING").expect("it is there").rules.iter().map(|rule| rule.comment.as_str()).collect();
        assert_eq!(out, ["kubernetes postrouting rules", "flanneld masq"]);
        assert!(ruleset.get(Table::Filter, "FORWARD").is_none());
    }

    #[test]
    fn policies_count() {
        let ruleset =
            Ruleset::live("*filter\n:FORWARD DROP [1:2]\n:INPUT ACCEPT [0:0]\n-A FORWARD -j A\nCOMMIT\n*mangle\n:X DROP [0:0]\nCOMMIT\n");
        assert!(ruleset.get(Table::Filter, "FORWARD").is_some_and(|chain| chain.drops && chain.rules.len() == 1));
        assert!(ruleset.get(Table::Filter, "INPUT").is_some_and(|chain| !chain.drops));
    }
}
