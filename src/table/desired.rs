//! The rules a node should have, in outline: what they are is kept as digests, and only the few lines that may have to be taken back are
//! kept as text. The rest is rendered when it is written.

use super::outline::{Outline, Outlines};
use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;

use super::rules::Fixed;
use crate::cluster::{Protocol, ServiceKey, ServicePortName};
use crate::parallel;
use crate::table::rules::RuleSource;

use super::rule_counts::RuleTotals;

/// The rules that a node should have in one family.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Desired {
    /// What does not belong to a service port.
    pub fixed: Fixed,
    services: Outlines,
    /// Endpoints per Service, where there are any, and in all: they decide whether the cluster is large.
    endpoints: BTreeMap<ServiceKey, usize>,
    total: usize,
    /// What the service ports come to; of nothing else.
    counted: RuleTotals,
}

/// Services that one core outlines in one go, and how many such portions are in memory at once.
const PORTION: usize = 64;
const PORTIONS: usize = 16;

fn outlines(renderer: &dyn RuleSource, key: &ServiceKey) -> Vec<(ServicePortName, Outline)> {
    renderer.service(key).into_iter().map(|rules| (rules.name.clone(), Outline::of(&rules))).collect()
}

/// What to compute anew.
#[derive(Clone, Copy, Debug)]
pub enum Refresh<'a> {
    /// Everything: the Node, the settings or the host changed.
    All,
    /// These Services.
    Services(&'a BTreeSet<ServiceKey>),
}

impl Desired {
    /// The service ports and their outlines.
    #[must_use]
    pub const fn services(&self) -> &Outlines {
        &self.services
    }

    /// How many endpoints all service ports have: what [`Renderer::for_size`] wants to know.
    #[must_use]
    pub const fn endpoints(&self) -> usize {
        self.total
    }

    /// What all rules come to.
    #[must_use]
    pub fn totals(&self) -> RuleTotals {
        let mut totals = RuleTotals { endpoints: self.total, ..self.counted };
        totals.add_fixed(&self.fixed);
        totals
    }

    /// Counts the endpoints of what changed, before a renderer is made for it.
    pub fn count(&mut self, counter: &dyn RuleSource, what: Refresh<'_>) {
        match what {
            Refresh::All => {
                let counts = counter.services().into_iter().map(|key| {
                    let endpoints = counter.endpoints(&key);
                    (key, endpoints)
                });
                self.endpoints = counts.filter(|(_, count)| *count > 0).collect();
                self.total = self.endpoints.values().sum();
            }
            Refresh::Services(keys) => {
                for key in keys {
                    let count = counter.endpoints(key);
                    let before =
                        if count > 0 { self.endpoints.insert(key.clone(), count) } else { self.endpoints.remove(key) }.unwrap_or_default();
                    self.total = self.total + count - before;
                }
            }
        }
    }

    /// Computes rules anew; gives the service ports whose rules are different now, or are gone.
    pub fn refresh(&mut self, renderer: &dyn RuleSource, what: Refresh<'_>) -> BTreeSet<ServicePortName> {
        self.fixed = renderer.fixed();
        let mut changed = BTreeSet::new();
        match what {
            Refresh::All => {
                let keys: BTreeSet<ServiceKey> = renderer.services().into_iter().collect();
                let gone: Vec<ServicePortName> = self.services.keys().filter(|name| !keys.contains(&name.service)).cloned().collect();
                for name in gone {
                    self.remove(&name);
                    changed.insert(name);
                }
                let keys: Vec<&ServiceKey> = keys.iter().collect();
                let portions: Vec<&[&ServiceKey]> = keys.chunks(PORTION).collect();
                for portions in portions.chunks(PORTIONS) {
                    let outlined = parallel::map(portions, |keys| keys.iter().map(|key| outlines(renderer, key)).collect::<Vec<_>>());
                    for (key, outlines) in portions.iter().flat_map(|keys| keys.iter()).zip(outlined.into_iter().flatten()) {
                        self.put(key, outlines, &mut changed);
                    }
                }
            }
            Refresh::Services(keys) => {
                for key in keys {
                    self.put(key, outlines(renderer, key), &mut changed);
                }
            }
        }
        changed
    }

    /// Takes the outlines of one Service's ports.
    fn put(&mut self, key: &ServiceKey, outlines: Vec<(ServicePortName, Outline)>, changed: &mut BTreeSet<ServicePortName>) {
        let first = ServicePortName { service: key.clone(), port: "".into(), protocol: Protocol::Sctp };
        let mut before: BTreeSet<ServicePortName> =
            self.services.range(first..).map(|(name, _)| name).take_while(|name| name.service == *key).cloned().collect();
        for (name, outline) in outlines {
            before.remove(&name);
            if self.services.get(&name).is_none_or(|known| **known != outline) {
                self.insert(name.clone(), outline);
                changed.insert(name);
            }
        }
        for name in before {
            self.remove(&name);
            changed.insert(name);
        }
    }

    fn insert(&mut self, name: ServicePortName, outline: Outline) {
        self.counted.add(&outline);
        if let Some(before) = self.services.insert(name, Rc::new(outline)) {
            self.counted.remove(&before);
        }
    }

    fn remove(&mut self, name: &ServicePortName) {
        if let Some(before) = self.services.remove(name) {
            self.counted.remove(&before);
        }
    }
}
