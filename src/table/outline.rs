//! The rules of one service port in outline: digests of its chains, and only the lines that may have to be deleted as text. PURE.

use std::collections::BTreeMap;
use std::rc::Rc;

use super::Table;
use super::chain_names::ChainName;
use super::rule::Digest;
use super::rules::{ServicePortRules, WithoutLocal, lines};
use crate::cluster::ServicePortName;

/// What is known of one service port's rules without their text.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Outline {
    /// Its own chains in `nat`, each with the digest of its rules.
    pub chains: Box<[(ChainName, Digest)]>,
    /// Its lines in `nat`'s shared chains, each an `-A` line.
    pub nat: Box<str>,
    /// Its lines in `filter`'s shared chains.
    pub filter: Box<str>,
    /// How many rules its own chains have together.
    pub rules: u32,
    /// Traffic that is dropped for want of an endpoint on this node.
    pub without_local: WithoutLocal,
}

impl Outline {
    /// The outline of rendered rules.
    #[must_use]
    pub fn of(rules: &ServicePortRules) -> Self {
        Self {
            chains: rules.chains().map(|(name, rules)| (*name, Digest::of_chain(rules))).collect(),
            nat: rules.nat_dispatch().into(),
            filter: rules.filter_dispatch().into(),
            rules: rules.chains().map(|(_, rules)| lines(rules) as u32).sum(),
            without_local: rules.without_local,
        }
    }

    /// Its lines in the shared chains of one table.
    #[must_use]
    pub fn dispatch(&self, table: Table) -> &str {
        match table {
            Table::Filter => &self.filter,
            Table::Nat => &self.nat,
        }
    }

    /// This one's chains and lines, and the other's that this one has not.
    #[must_use]
    pub fn with(&self, other: &Self) -> Self {
        let chains = other.chains.iter().filter(|(name, _)| self.chain(name).is_none());
        let lines = |ours: &str, theirs: &str| {
            let more = theirs.split_inclusive('\n').filter(|line| !ours.split_inclusive('\n').any(|our| our == *line));
            std::iter::once(ours).chain(more).collect::<String>().into_boxed_str()
        };
        Self {
            chains: self.chains.iter().chain(chains).copied().collect(),
            nat: lines(&self.nat, &other.nat),
            filter: lines(&self.filter, &other.filter),
            rules: self.rules,
            without_local: self.without_local,
        }
    }

    /// The digest of one of its chains.
    #[must_use]
    pub fn chain(&self, name: &ChainName) -> Option<Digest> {
        self.chains.iter().find(|(chain, _)| chain == name).map(|(_, digest)| *digest)
    }
}

/// Outlines by service port.
pub type Outlines = BTreeMap<ServicePortName, Rc<Outline>>;
