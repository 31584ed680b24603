//! The rules of one IP family: the live ones from iptables-save, or the ones that sepal would write.

use std::collections::HashMap;

use crate::table::Table;
use crate::table::jumps::JUMPS;

use super::rule::ParsedRule;

/// All chains of one IP family with their rules.
#[derive(Clone, Debug, Default)]
pub struct Ruleset {
    chains: HashMap<(Table, String), ParsedChain>,
}

/// A chain with its parsed rules.
#[derive(Clone, Debug, Default)]
pub struct ParsedChain {
    /// The rules, in order.
    pub rules: Vec<ParsedRule>,
    /// True if the policy of this built-in chain is DROP.
    pub policy_drops: bool,
}

impl Ruleset {
    /// Parses the output of iptables-save. Ignores every line that does not start with `*`, `:` or `-A`.
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
                ruleset.chain(table, name).policy_drops = words.next() == Some("DROP");
            } else if let Some(rule) = line.strip_prefix("-A ") {
                let (chain, arguments) = rule.split_once(' ').unwrap_or((rule, ""));
                ruleset.chain(table, chain).rules.push(ParsedRule::parse(arguments));
            }
        }
        ruleset
    }

    /// Parses the rules that sepal would write and adds the jumps from the built-in chains. Assumes that the built-in chains have no other
    /// rules and that their policy is ACCEPT.
    #[must_use]
    pub fn desired(text: &str) -> Self {
        let mut ruleset = Self::live(text);
        let has = |ruleset: &Self, table, name: &str| ruleset.chains.contains_key(&(table, name.to_owned()));
        for jump in JUMPS.iter().filter(|jump| has(&ruleset, jump.table, jump.to)).collect::<Vec<_>>() {
            let rules = &mut ruleset.chain(jump.table, jump.from).rules;
            let position = if jump.operation() == "-I" { 0 } else { rules.len() };
            rules.insert(position, ParsedRule::parse(&jump.arguments()));
        }
        ruleset
    }

    /// Returns the chain of this name, if it exists.
    #[must_use]
    pub fn get(&self, table: Table, name: &str) -> Option<&ParsedChain> {
        self.chains.get(&(table, name.to_owned()))
    }

    /// Returns the chain of this name and the name, both borrowed from the ruleset.
    pub(super) fn get_named(&self, table: Table, name: &str) -> Option<(&str, &ParsedChain)> {
        self.chains.get_key_value(&(table, name.to_owned())).map(|((_, name), chain)| (name.as_str(), chain))
    }

    fn chain(&mut self, table: Table, name: &str) -> &mut ParsedChain {
        self.chains.entry((table, name.to_owned())).or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn desired_rules_get_their_jumps() {
        let ruleset = Ruleset::desired("*nat\n:KUBE-SERVICES - [0:0]\n:FLANNEL-POSTRTG - [0:0]\n:KUBE-POSTROUTING - [0:0]\nCOMMIT\n");
        assert_eq!(ruleset.get(Table::Nat, "PREROUTING").map(|chain| chain.rules.len()), Some(1));
        let out: Vec<&str> =
            ruleset.get(Table::Nat, "POSTROUTING").expect("the chain").rules.iter().map(|rule| rule.comment.as_str()).collect();
        assert_eq!(out, ["kubernetes postrouting rules", "flanneld masq"]);
        assert!(ruleset.get(Table::Filter, "FORWARD").is_none());
    }

    #[test]
    fn policies_are_parsed() {
        let ruleset =
            Ruleset::live("*filter\n:FORWARD DROP [1:2]\n:INPUT ACCEPT [0:0]\n-A FORWARD -j A\nCOMMIT\n*mangle\n:X DROP [0:0]\nCOMMIT\n");
        assert!(ruleset.get(Table::Filter, "FORWARD").is_some_and(|chain| chain.policy_drops && chain.rules.len() == 1));
        assert!(ruleset.get(Table::Filter, "INPUT").is_some_and(|chain| !chain.policy_drops));
    }
}
