//! What the kernel is known to hold: what it acknowledged, or what was read from it.

use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;

use super::chain_names::{self, ChainName};
use super::jumps::JUMPS;
use super::rules::Fixed;
use crate::cluster::ServicePortName;

use super::Table;
use super::live::{FixedChain, Live};
use super::outline::{Outline, Outlines};
use super::rule::{Digest, split_line};

/// The tables of one family as the kernel is known to hold them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Acknowledged {
    /// Service ports, as far as their rules are there.
    pub services: Outlines,
    /// Fixed chains that are there, each with the digest of its fixed rules.
    pub fixed: BTreeMap<FixedChain, Digest>,
    /// How often each jump is there, in the order of [`JUMPS`].
    pub jumps: [usize; JUMPS.len()],
    /// Chains with a service port's prefix that no service port has.
    pub strange_chains: Vec<ChainName>,
    /// Lines in shared chains that no service port has.
    pub strange_lines: Vec<(Table, String)>,
}

/// How live tables differ from what was thought of them: what somebody else did to them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Drift {
    /// Service ports whose rules are not what they were.
    pub services: Vec<ServicePortName>,
    /// Fixed chains that are not what they were.
    pub chains: Vec<FixedChain>,
    /// Jumps that are missing or there more than once, by their place in [`JUMPS`].
    pub jumps: Vec<usize>,
    /// Chains and lines of nobody's.
    pub strangers: usize,
}

impl Drift {
    /// How many things differ.
    #[must_use]
    pub fn len(&self) -> usize {
        self.services.len() + self.chains.len() + self.jumps.len() + self.strangers
    }

    /// Whether nothing differs.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

impl Acknowledged {
    /// What live tables hold of these service ports' rules, and what else.
    #[must_use]
    pub fn of_live(mut live: Live, services: &Outlines) -> Self {
        let mut found = Outlines::new();
        for (name, wanted) in services {
            let outline = live_outline(&mut live, wanted);
            let outline = if outline == **wanted { Rc::clone(wanted) } else { Rc::new(outline) };
            found.insert(name.clone(), outline);
        }
        Self {
            services: found,
            fixed: live.fixed,
            jumps: live.jumps,
            strange_chains: live.chains.into_keys().collect(),
            strange_lines: live.strange_lines,
        }
    }

    /// How the tables, read again, differ from what was acknowledged, as far as these fixed rules are ours.
    #[must_use]
    pub fn drift(&self, now: &Self, fixed: &Fixed) -> Drift {
        let changed = self.services.iter().filter(|(name, outline)| now.services.get(name).is_none_or(|live| live != *outline));
        // KUBE-FIREWALL is kubelet's too: where it is not ours to fill it only has to be there.
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
                .filter(|i| self.jumps[*i] != now.jumps[*i] && (fixed.wants(&JUMPS[*i]) || fixed.drops(&JUMPS[*i])))
                .collect(),
            strangers: now.strange_chains.len().saturating_sub(self.strange_chains.len()) + now.strange_lines.len(),
        }
    }

    /// Whether a chain is there with rules in it.
    #[must_use]
    pub fn has_rules(&self, chain: &FixedChain) -> bool {
        self.fixed.get(chain).is_some_and(|digest| *digest != Digest::default())
    }

    /// The kernel has taken a plan for these service ports: their rules, and everything fixed, are as desired now. Chains that could not
    /// be deleted are still there.
    pub fn took(&mut self, wanted: &Outlines, fixed: &Fixed, touched: &BTreeSet<ServicePortName>, spared: &[ChainName]) {
        for name in touched {
            match wanted.get(name) {
                Some(outline) => drop(self.services.insert(name.clone(), Rc::clone(outline))),
                None => drop(self.services.remove(name)),
            }
        }
        // What KUBE-FIREWALL held before it was ours alone to fill stays known as there.
        if fixed.has_proxy() {
            self.fixed.entry((Table::Filter, chain_names::FIREWALL)).or_default();
        }
        self.fixed.extend(fixed_digests(fixed));
        for chain in &fixed.unwanted {
            self.fixed.entry(*chain).and_modify(|digest| *digest = Digest::default());
        }
        for (held, jump) in self.jumps.iter_mut().zip(&JUMPS) {
            if fixed.wants(jump) || fixed.drops(jump) {
                *held = usize::from(fixed.wants(jump));
            }
        }
        self.strange_chains.retain(|chain| spared.contains(chain));
        self.strange_lines.clear();
    }
}

/// What of a service port's rules is there; takes it from what is live.
fn live_outline(live: &mut Live, wanted: &Outline) -> Outline {
    let (nat, filter) = (live_lines(live, wanted, Table::Nat), live_lines(live, wanted, Table::Filter));
    let chains = wanted.chains.iter().filter_map(|(name, _)| live.chains.remove(name).map(|digest| (*name, digest))).collect();
    // What is counted goes with the rules; whether they are there, their digests say.
    Outline { chains, nat, filter, rules: wanted.rules, without_local: wanted.without_local }
}

/// A service port's lines in the shared chains of a table as they are there, in desired spelling: those of one chain in their live order.
fn live_lines(live: &mut Live, wanted: &Outline, table: Table) -> Box<str> {
    let mut found: Vec<(&str, u32, &str)> = Vec::new();
    for line in wanted.dispatch(table).split_inclusive('\n') {
        let places = live.take(table, Digest::of_line(line.trim_end()));
        found.extend(places.into_iter().map(|at| (split_line(line).0, at, line)));
    }
    // Chains take turns as they do in what is desired.
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

/// The fixed chains there should be, each with the digest of its fixed rules.
#[must_use]
pub fn fixed_digests(fixed: &Fixed) -> BTreeMap<FixedChain, Digest> {
    let mut digests: BTreeMap<FixedChain, Digest> = Table::ALL
        .into_iter()
        .flat_map(|table| fixed.chains(table).iter().map(move |chain| ((table, chain.name), Digest::of_chain(&chain.rules))))
        .collect();
    if fixed.has_proxy() {
        digests.insert((Table::Nat, chain_names::SERVICES), Digest::of_chain(&fixed.nat_tail));
    }
    digests
}
