//! The result of a walk: every ending that a packet can have, with its probability and the rules that it met.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::sync::Arc;

use crate::table::Table;

use super::rule::RuleTarget;

/// The result of a walk.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Walk {
    /// Every ending that the packet can have. The probabilities add up to 1.
    pub endings: Vec<Ending>,
    /// Rules that the walk skipped because it does not understand them.
    pub not_understood: BTreeSet<String>,
}

/// One possible ending of a packet.
#[derive(Clone, Debug, PartialEq)]
pub struct Ending {
    /// The probability of this ending, at most 1.
    pub probability: f64,
    /// The final destination.
    pub to: SocketAddr,
    /// True if a rule changed the destination (DNAT).
    pub translated: bool,
    /// True if the packet gets the node's address as its source.
    pub masqueraded: bool,
    /// Whether the packet passes.
    pub fate: Fate,
    /// The rules that decided something, in order. If the packet is refused or dropped, the last one does that.
    pub steps: Vec<WalkStep>,
}

impl Ending {
    /// The rule or policy that refuses or drops the packet. `None` if it passes.
    #[must_use]
    pub fn stopped_by(&self) -> Option<&WalkStep> {
        self.steps.last().filter(|_| self.fate != Fate::Passed)
    }
}

/// Whether a packet passes the rules.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Fate {
    /// The packet passes.
    Passed,
    /// The packet is refused: the sender gets an error.
    Refused,
    /// The packet is dropped: the sender gets no answer.
    Dropped,
}

/// A rule that matched the packet, or the policy of a built-in chain that applied to it.
#[derive(Clone, Debug, PartialEq)]
pub struct WalkStep {
    /// The table of the rule.
    pub table: Table,
    /// The chain of the rule.
    pub chain: String,
    /// The comment of the rule. Empty for none.
    pub comment: String,
    /// What the rule did.
    pub target: RuleTarget,
    /// The arguments of the rule, as iptables takes them after `-A CHAIN`. `None` for the policy of a chain.
    pub rule: Option<Arc<str>>,
}

impl WalkStep {
    /// The step for the policy DROP of a built-in chain.
    pub(super) fn drop_policy(table: Table, chain: &str) -> Self {
        Self { table, chain: chain.to_owned(), comment: "the policy of the chain".to_owned(), target: RuleTarget::Drop, rule: None }
    }

    /// The rule or policy as iptables-save and `iptables -S` print it.
    #[must_use]
    pub fn line(&self) -> String {
        match &self.rule {
            Some(rule) => format!("-A {} {rule}", self.chain),
            None => format!("-P {} DROP", self.chain),
        }
    }
}
