//! The acknowledged state: the rules that the kernel accepted from us, or that were read from it.

use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;

use super::chain_names::{self, ChainName};
use super::jumps::JUMPS;
use super::rules::Fixed;
use crate::cluster::ServicePortName;

use super::Table;
use super::live::{FixedChain, LiveTables};
use super::outline::{Outline, Outlines};
use super::rule::{Digest, split_line};

/// The acknowledged tables of one family.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Acknowledged {
    /// The rules of each service port that are in the kernel.
    pub services: Outlines,
    /// The fixed chains that exist, each with the digest of its fixed rules.
    pub fixed: BTreeMap<FixedChain, Digest>,
    /// How many copies of each jump exist, in the order of [`JUMPS`].
    pub jumps: [usize; JUMPS.len()],
    /// Chains with the prefix of a service port's chain that belong to no service port.
    pub unknown_chains: Vec<ChainName>,
    /// Lines in shared chains that belong to no service port.
    pub unknown_lines: Vec<(Table, String)>,
}

/// The differences between the live tables and the acknowledged ones: changes that other programs made.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Drift {
    /// Service ports whose rules changed.
    pub services: Vec<ServicePortName>,
    /// Fixed chains that changed.
    pub chains: Vec<FixedChain>,
    /// Jumps that are missing or duplicated, as indexes into [`JUMPS`].
    pub jumps: Vec<usize>,
    /// The number of chains and lines that belong to no service port.
    pub unknown: usize,
}

impl Drift {
    /// The number of differences.
    #[must_use]
    pub fn len(&self) -> usize {
        self.services.len() + self.chains.len() + self.jumps.len() + self.unknown
    }

    /// Returns true if nothing differs.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

impl Acknowledged {
    /// Assigns the live rules to these service ports. The other rules are unknown rules.
    #[must_use]
    pub fn from_live(mut live: LiveTables, services: &Outlines) -> Self {
        let mut found = Outlines::new();
        for (name, desired) in services {
            let outline = live_outline(&mut live, desired);
            let outline = if outline == **desired { Rc::clone(desired) } else { Rc::new(outline) };
            found.insert(name.clone(), outline);
        }
        Self {
            services: found,
            fixed: live.fixed,
            jumps: live.jumps,
            unknown_chains: live.chains.into_keys().collect(),
            unknown_lines: live.unknown_lines,
        }
    }

    /// Compares the tables that were just read (`now`) with the acknowledged ones. Fixed chains that are not in `fixed` are not compared.
    #[must_use]
    pub fn drift(&self, now: &Self, fixed: &Fixed) -> Drift {
        let changed = self.services.iter().filter(|(name, outline)| now.services.get(name).is_none_or(|live| live != *outline));
        // kubelet uses KUBE-FIREWALL too. If we have no rule for it, the chain only has to exist.
        let firewall = (Table::Filter, chain_names::FIREWALL);
        let mut chains: Vec<FixedChain> =
            fixed_digests(fixed).into_keys().filter(|chain| self.fixed.get(chain) != now.fixed.get(chain)).collect();
        chains.extend(fixed.unwanted.iter().filter(|chain| now.has_rules(chain) && !self.has_rules(chain)));
        if fixed.has_proxy() && !now.fixed.contains_key(&firewall) && !chains.contains(&firewall) {
            chains.push(firewall);
        }
        Drift {
            services: changed.map(|(name, _)| name.clone()).collect(),
            chains,
            jumps: (0..JUMPS.len())
                .filter(|i| self.jumps[*i] != now.jumps[*i] && (fixed.has_jump(&JUMPS[*i]) || fixed.removes_jump(&JUMPS[*i])))
                .collect(),
            unknown: now.unknown_chains.len().saturating_sub(self.unknown_chains.len()) + now.unknown_lines.len(),
        }
    }

    /// Returns true if the chain exists and has rules.
    #[must_use]
    pub(crate) fn has_rules(&self, chain: &FixedChain) -> bool {
        self.fixed.get(chain).is_some_and(|digest| *digest != Digest::default())
    }

    /// Returns true if a shared chain has any line.
    #[must_use]
    pub(crate) fn has_lines(&self, shared: FixedChain) -> bool {
        let (table, chain) = shared;
        let in_chain = |line: &str| split_line(line).0 == chain;
        self.has_rules(&shared)
            || self.unknown_lines.iter().any(|(t, line)| *t == table && in_chain(line))
            || self.services.values().any(|outline| outline.dispatch(table).lines().any(in_chain))
    }

    /// Records that the kernel accepted a plan: the rules of the `touched` service ports and all fixed rules are now the desired ones.
    /// `spared` chains could not be deleted and still exist.
    pub(crate) fn accept_plan(&mut self, desired: &Outlines, fixed: &Fixed, touched: &BTreeSet<ServicePortName>, spared: &[ChainName]) {
        for name in touched {
            match desired.get(name) {
                Some(outline) => drop(self.services.insert(name.clone(), Rc::clone(outline))),
                None => drop(self.services.remove(name)),
            }
        }
        // The plan creates KUBE-FIREWALL if it is missing. If it existed, its digest stays: its rules may be kubelet's.
        if fixed.has_proxy() {
            self.fixed.entry((Table::Filter, chain_names::FIREWALL)).or_default();
        }
        self.fixed.extend(fixed_digests(fixed));
        for chain in &fixed.unwanted {
            self.fixed.entry(*chain).and_modify(|digest| *digest = Digest::default());
        }
        for (copies, jump) in self.jumps.iter_mut().zip(&JUMPS) {
            if fixed.has_jump(jump) || fixed.removes_jump(jump) {
                *copies = usize::from(fixed.has_jump(jump));
            }
        }
        self.unknown_chains.retain(|chain| spared.contains(chain));
        self.unknown_lines.clear();
    }
}

/// Removes the rules of one service port from the live tables and returns their outline.
fn live_outline(live: &mut LiveTables, desired: &Outline) -> Outline {
    let (nat, filter) = (live_lines(live, desired, Table::Nat), live_lines(live, desired, Table::Filter));
    let chains = desired.chains.iter().filter_map(|(name, _)| live.chains.remove(name).map(|digest| (*name, digest))).collect();
    // The counts are copied from the desired outline. The digests show whether the rules exist.
    Outline { chains, nat, filter, rules: desired.rules, without_local: desired.without_local }
}

/// Returns the live lines of one service port in the shared chains of a table, in the spelling of the desired lines. Lines of the same
/// chain keep their live order.
fn live_lines(live: &mut LiveTables, desired: &Outline, table: Table) -> Box<str> {
    let mut found: Vec<(&str, u32, &str)> = Vec::new();
    for line in desired.dispatch(table).split_inclusive('\n') {
        let places = live.take(table, Digest::of_line(line.trim_end()));
        found.extend(places.into_iter().map(|at| (split_line(line).0, at, line)));
    }
    // The result visits the chains in the same order as the desired lines. Within one chain, the lines keep their live order.
    let turns: Vec<&str> = found.iter().map(|(chain, ..)| *chain).collect();
    found.sort_by_key(|(chain, at, _)| (*chain, *at));
    let next = |chain: &str| found.partition_point(|(other, ..)| *other < chain);
    let mut places: BTreeMap<&str, usize> = turns.iter().map(|chain| (*chain, next(chain))).collect();
    let in_turn = turns.iter().filter_map(|chain| {
        let place = places.get_mut(chain)?;
        *place += 1;
        found.get(*place - 1).map(|(.., line)| *line)
    });
    in_turn.collect::<String>().into_boxed_str()
}

/// Returns the desired fixed chains, each with the digest of its fixed rules.
#[must_use]
pub(crate) fn fixed_digests(fixed: &Fixed) -> BTreeMap<FixedChain, Digest> {
    let mut digests: BTreeMap<FixedChain, Digest> = Table::ALL
        .into_iter()
        .flat_map(|table| fixed.chains(table).iter().map(move |chain| ((table, chain.name), Digest::of_chain(&chain.rules))))
        .collect();
    if fixed.has_proxy() {
        digests.insert((Table::Nat, chain_names::SERVICES), Digest::of_chain(&fixed.nat_tail));
    }
    digests
}
