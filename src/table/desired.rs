//! The desired rules of one family, in outline. Rules are stored as digests. Only the few lines that a later plan may have to delete one
//! by one are stored as text. All other text is rendered when it is written.

use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;

use crate::cluster::{Protocol, ServiceKey, ServicePortName};
use crate::parallel;

use super::outline::{Outline, Outlines};
use super::rule_counts::RuleTotals;
use super::rules::{Fixed, RuleSource};

/// The desired rules of one family.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Desired {
    /// Chains and rules that belong to no service port.
    pub fixed: Fixed,
    services: Outlines,
    /// The number of endpoints of each Service that has some.
    endpoints: BTreeMap<ServiceKey, usize>,
    /// The number of all endpoints. It decides whether the cluster is large.
    total: usize,
    /// The totals of the service ports, without the fixed rules.
    service_totals: RuleTotals,
}

/// The number of Services in one portion. One core computes the outlines of one portion at a time.
const PORTION: usize = 64;
/// The number of portions whose outlines are computed in parallel.
const PORTIONS: usize = 16;

fn outlines(renderer: &dyn RuleSource, key: &ServiceKey) -> Vec<(ServicePortName, Outline)> {
    renderer.service(key).into_iter().map(|rules| (rules.name.clone(), Outline::of(&rules))).collect()
}

/// The rules to compute again.
#[derive(Clone, Copy, Debug)]
pub enum Refresh<'a> {
    /// All rules, because the Node, the settings or the host changed.
    All,
    /// The rules of these Services.
    Services(&'a BTreeSet<ServiceKey>),
}

impl Desired {
    /// The service ports and their outlines.
    #[must_use]
    pub const fn services(&self) -> &Outlines {
        &self.services
    }

    /// The number of endpoints of all service ports.
    #[must_use]
    pub const fn endpoints(&self) -> usize {
        self.total
    }

    /// The totals of all desired rules.
    #[must_use]
    pub fn totals(&self) -> RuleTotals {
        let mut totals = RuleTotals { endpoints: self.total, ..self.service_totals };
        totals.add_fixed(&self.fixed);
        totals
    }

    /// Counts the endpoints again. Called before [`Self::refresh`], because the renderer depends on the number of endpoints.
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

    /// Computes rules again. Returns the service ports whose rules changed or disappeared.
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

    /// Replaces the outlines of one Service's ports and adds the changed service ports to `changed`.
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
        self.service_totals.add(&outline);
        if let Some(before) = self.services.insert(name, Rc::new(outline)) {
            self.service_totals.remove(&before);
        }
    }

    fn remove(&mut self, name: &ServicePortName) {
        if let Some(before) = self.services.remove(name) {
            self.service_totals.remove(&before);
        }
    }
}
