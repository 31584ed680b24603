//! The outline of a service port's rules: digests of its own chains, and its lines in shared chains as text, because a plan deletes these
//! one by one.

use std::collections::BTreeMap;
use std::rc::Rc;

use super::Table;
use super::chain_names::ChainName;
use super::rule::Digest;
use super::rules::{ServicePortRules, WithoutLocal, lines};
use crate::cluster::ServicePortName;

/// The rules of one service port without their full text.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Outline {
    /// Its own chains in `nat`, each with the digest of its rules.
    pub chains: Box<[(ChainName, Digest)]>,
    /// Its lines in the shared chains of `nat`, each an `-A` line.
    pub nat: Box<str>,
    /// Its lines in the shared chains of `filter`.
    pub filter: Box<str>,
    /// The number of rules in its own chains.
    pub rules: u32,
    /// The traffic that is dropped because this node has no endpoint.
    pub without_local: WithoutLocal,
}

impl Outline {
    /// Computes the outline of rendered rules.
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

    /// Returns an outline with the chains and lines of both. Chains in both keep the digest of `self`.
    #[must_use]
    pub fn merge(&self, other: &Self) -> Self {
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
