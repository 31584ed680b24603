//! Computes the plan: compares the desired rules with the acknowledged ones and puts the differences in order.

use std::collections::BTreeSet;
use std::rc::Rc;

use super::chain_names::{self, ChainKind, ChainName};
use super::jumps::JUMPS;
use super::rules::{ChainRules, Fixed};
use crate::cluster::ServicePortName;

use super::Table;
use super::acknowledged::{Acknowledged, fixed_digests};
use super::difference::{Difference, declare_own, difference, own_rules};
use super::live::{FixedChain, SHARED, jumps_of};
use super::outline::Outlines;
use super::plan::{Plan, PlanStep, Transaction, Variant, Write};
use super::rule::{Digest, split_line};

/// On nft, a transaction ends once it contains this many service port chains. A COMMIT of any size costs 5-10 ms [costs 7], and the time
/// for its chains is quadratic in their number [costs 1]. The sum is smallest near this number.
pub const CHAINS_PER_TRANSACTION: usize = 512;

/// A shared chain is rewritten as a whole if it needs more single edits than this, and more than one edit per [`LINES_PER_EDIT`] lines.
const EDITS: usize = 32;

/// Writing this many lines costs about as much as one edit.
const LINES_PER_EDIT: usize = 16;

/// On nft, a transaction of shared chains ends once it contains this many lines per own chain of [`CHAINS_PER_TRANSACTION`]. Each line names
/// a chain, and a COMMIT costs quadratic time in the names [costs 1]. A COMMIT also costs a walk over all reachable rules [costs 7]. At
/// 10,000 to 50,000 services, 2,048 lines are the best size.
const LINES_PER_CHAIN: usize = 4;

/// The desired rules that a plan leads to.
#[derive(Clone, Copy, Debug)]
pub struct DesiredTables<'a> {
    /// Service ports.
    pub services: &'a Outlines,
    /// Chains and rules that belong to no service port.
    pub fixed: &'a Fixed,
    /// Chains that could not be deleted. The plan does not try to delete them again.
    pub spared: &'a [ChainName],
}

/// Plans the transactions from the acknowledged rules to the desired ones. Only the `touched` service ports are compared.
/// Fixed rules and unknown rules are always compared. On nft, a transaction ends once it contains `limit` chains
/// (see [`CHAINS_PER_TRANSACTION`]).
#[must_use]
pub fn plan(
    desired: &DesiredTables<'_>,
    acknowledged: &Acknowledged,
    touched: &BTreeSet<ServicePortName>,
    variant: Variant,
    limit: usize,
) -> Plan {
    let limit = match variant {
        Variant::Legacy => None,
        Variant::Nft => Some(limit.max(1)),
    };
    let planner = Planner::new(desired, acknowledged, touched, limit);
    let nat = match limit {
        None => planner.nat_whole().into_iter().collect(),
        Some(limit) => planner.nat_nft(limit),
    };
    let transactions = planner.filter_before().into_iter().chain(nat).chain(planner.filter_after()).filter(|t| !t.steps.is_empty());
    Plan { transactions: transactions.collect() }
}

struct Planner<'a> {
    desired: &'a DesiredTables<'a>,
    acknowledged: &'a Acknowledged,
    differences: Vec<Difference<'a>>,
    /// Fixed and shared chains that are rewritten as a whole.
    rewritten: BTreeSet<FixedChain>,
}

impl<'a> Planner<'a> {
    fn new(
        desired: &'a DesiredTables<'a>,
        acknowledged: &'a Acknowledged,
        touched: &'a BTreeSet<ServicePortName>,
        limit: Option<usize>,
    ) -> Self {
        let differences: Vec<Difference<'a>> =
            touched.iter().filter_map(|name| difference(name, desired.services, desired.spared, acknowledged)).collect();
        let digests = fixed_digests(desired.fixed);
        let mut rewritten: BTreeSet<FixedChain> =
            digests.iter().filter(|(chain, digest)| acknowledged.fixed.get(chain) != Some(digest)).map(|(chain, _)| *chain).collect();
        let is_better_rewritten = |shared: &FixedChain| {
            let count = |lines: &[(Table, &str)]| lines.iter().filter(|line| in_chain(line, *shared)).count();
            let unknown = acknowledged.unknown_lines.iter().filter(|(table, line)| in_chain(&(*table, line), *shared)).count();
            let added: usize = differences.iter().map(|difference| count(&difference.add)).sum();
            let deleted =
                differences.iter().map(|difference| count(&difference.moved) + count(&difference.remove)).sum::<usize>() + unknown;
            // Added lines can be split into transactions. A live chain can only be rewritten in one.
            let splits = limit.is_some_and(|limit| added > limit * LINES_PER_CHAIN) && deleted == 0 && acknowledged.has_lines(*shared);
            let edits = added + deleted;
            edits > EDITS && edits * LINES_PER_EDIT > desired.services.len() && !splits
        };
        let many: Vec<FixedChain> = SHARED.into_iter().filter(is_better_rewritten).collect();
        rewritten.extend(many);
        Self { desired, acknowledged, differences, rewritten }
    }

    fn fixed(&self, table: Table) -> &'a [ChainRules] {
        self.desired.fixed.chains(table)
    }

    /// Empties unwanted chains by declaring them.
    fn emptied(&self, table: Table) -> impl Iterator<Item = PlanStep> {
        let chains = self.desired.fixed.unwanted.iter().filter(move |chain| chain.0 == table && self.acknowledged.has_rules(chain));
        chains.map(|(_, chain)| PlanStep::shared(Write::Declare(chain)))
    }

    fn is_rewritten(&self, table: Table, chain: &str) -> bool {
        self.rewritten.iter().any(|rewritten| *rewritten == (table, chain))
    }

    fn declarations(&self, table: Table, which: impl Fn(&ChainRules) -> bool) -> impl Iterator<Item = PlanStep> {
        let chains = self.fixed(table).iter().filter(move |chain| self.is_rewritten(table, chain.name) && which(chain));
        chains.map(|chain| PlanStep::shared(Write::Declare(chain.name)))
    }

    fn fixed_rules(&self, table: Table) -> impl Iterator<Item = PlanStep> {
        let chains = self.fixed(table).iter().filter(move |chain| self.is_rewritten(table, chain.name) && !chain.rules.is_empty());
        chains.map(|chain| PlanStep::shared(Write::Lines(chain.rules.clone())))
    }

    /// Returns the additions in `filter`, which come before the changes in `nat`.
    fn filter_before(&self) -> Option<Transaction> {
        let table = Table::Filter;
        let mut steps: Vec<PlanStep> = self.declarations(table, |_| true).chain(self.emptied(table)).collect();
        // If we have no rule for KUBE-FIREWALL, it only has to exist. Declaring an existing chain would delete kubelet's rules.
        let ours = self.desired.fixed.has(table, chain_names::FIREWALL) || !self.desired.fixed.has_proxy();
        if !ours && !self.acknowledged.fixed.contains_key(&(table, chain_names::FIREWALL)) {
            steps.push(PlanStep::shared(Write::Declare(chain_names::FIREWALL)));
        }
        steps.extend(self.fixed_rules(table));
        steps.extend(self.rewritten_lines(table));
        steps.extend(self.differences.iter().filter_map(|difference| self.additions(difference, table)));
        steps.extend(self.jumps(table));
        (!steps.is_empty()).then_some(Transaction { table, steps })
    }

    /// Returns the deletions in `filter`, which come after the changes in `nat`.
    fn filter_after(&self) -> Option<Transaction> {
        let table = Table::Filter;
        let removals = self.differences.iter().filter_map(|difference| self.removals(difference, table));
        let steps: Vec<PlanStep> = removals.chain(self.unknown_lines(table)).collect();
        (!steps.is_empty()).then_some(Transaction { table, steps })
    }

    /// Returns all changes of `nat` in one transaction.
    fn nat_whole(&self) -> Option<Transaction> {
        let table = Table::Nat;
        let deleted = self.deleted();
        let mut steps: Vec<PlanStep> = self.declarations(table, |_| true).chain(self.emptied(table)).collect();
        steps.extend(self.differences.iter().flat_map(declare_own));
        steps.extend(deleted.iter().map(declare_to_delete));
        steps.extend(self.fixed_rules(table));
        let whole = SHARED.iter().filter(|(t, _)| *t == table).all(|(_, chain)| self.is_rewritten(table, chain));
        if whole {
            // Write the lines of all service ports, each next to the rules of the service port's own chains.
            let mut differences = self.differences.iter().peekable();
            for (name, outline) in self.desired.services {
                steps.push(PlanStep::owned(name, Write::Dispatch(Rc::clone(outline), table)));
                while differences.peek().is_some_and(|difference| difference.name < name) {
                    differences.next();
                }
                steps.extend(differences.next_if(|difference| difference.name == name).and_then(own_rules));
            }
        } else {
            steps.extend(self.rewritten_lines(table));
            for difference in &self.differences {
                steps.extend(self.additions(difference, table));
                steps.extend(self.removals(difference, table));
                steps.extend(own_rules(difference));
            }
            steps.extend(self.unknown_lines(table));
        }
        steps.extend(deleted.into_iter().map(delete));
        steps.extend(self.tail());
        steps.extend(self.jumps(table));
        (!steps.is_empty()).then_some(Transaction { table, steps })
    }

    /// Returns the changes of `nat` in transactions of limited size.
    fn nat_nft(&self, limit: usize) -> Vec<Transaction> {
        let mentioned: usize = self.differences.iter().map(|difference| difference.write.len() + difference.delete.len()).sum();
        if mentioned + self.acknowledged.unknown_chains.len() <= limit {
            return self.nat_whole().into_iter().collect();
        }
        let table = Table::Nat;
        let mut transactions = Vec::new();
        let mut later = Vec::new();
        // KUBE-MARK-MASQ and KUBE-POSTROUTING go first, because other chains jump to them.
        let (mut declarations, mut contents): (Vec<PlanStep>, Vec<PlanStep>) =
            (self.declarations(table, |chain| !chain.rules.is_empty()).collect(), self.fixed_rules(table).collect());
        let mut mentioned = 0;
        for (i, difference) in self.differences.iter().enumerate() {
            // A chain can only be deleted when nothing jumps to it. Chains that the dispatch chains may still jump to are deleted later.
            let at_once = difference.delete.iter().all(|chain| chain.kind() == ChainKind::Endpoint) && !difference.write.is_empty();
            declarations.extend(declare_own(difference));
            contents.extend(own_rules(difference));
            mentioned += difference.write.len();
            if at_once {
                declarations.extend(difference.delete.iter().map(|chain| declare_to_delete(&(Some(difference.name), *chain))));
                contents.extend(difference.delete.iter().map(|chain| delete((Some(difference.name), *chain))));
                mentioned += difference.delete.len();
            } else {
                later.extend(difference.delete.iter().map(|chain| (Some(difference.name), *chain)));
            }
            // The ports of one Service stay in one transaction.
            let last = self.differences.get(i + 1).is_none_or(|next| next.name.service != difference.name.service);
            if mentioned >= limit && last {
                declarations.append(&mut contents);
                transactions.push(Transaction { table, steps: std::mem::take(&mut declarations) });
                mentioned = 0;
            }
        }
        declarations.append(&mut contents);
        transactions.push(Transaction { table, steps: declarations });
        transactions.extend(self.nat_dispatch(limit * LINES_PER_CHAIN));
        later.extend(self.unknown_chains());
        later.sort_by_key(|(_, chain)| (chain.kind(), *chain));
        // Each group empties its chains before it deletes them, because they may jump to each other. A chain never jumps to a chain of an
        // earlier group.
        transactions.extend(later.chunks(limit).map(|group| {
            let steps = group.iter().map(declare_to_delete).chain(group.iter().map(|chain| delete(*chain))).collect();
            Transaction { table, steps }
        }));
        transactions.retain(|transaction| !transaction.steps.is_empty());
        transactions
    }

    /// Returns the changes of the shared chains of `nat`. If they only add lines, they are split into transactions of about `limit` lines: the chains
    /// have no lines yet, or the lines are inserted at the top. Otherwise a service would be interrupted, so all is one transaction.
    fn nat_dispatch(&self, limit: usize) -> Vec<Transaction> {
        let table = Table::Nat;
        let first = self.declarations(table, |chain| chain.rules.is_empty()).chain(self.emptied(table));
        let edits = self.differences.iter().flat_map(|difference| [self.additions(difference, table), self.removals(difference, table)]);
        let lines = self.rewritten_lines(table).chain(edits.flatten()).chain(self.unknown_lines(table)).chain(self.tail());
        let chains: Vec<FixedChain> = SHARED.into_iter().filter(|(t, _)| *t == table).collect();
        let deletes = |d: &Difference<'_>| d.moved.iter().chain(&d.remove).any(|(t, _)| *t == table);
        let adds_only = match chains.iter().filter(|chain| self.rewritten.contains(*chain)).count() {
            0 => self.unknown_lines(table).is_none() && !self.differences.iter().any(deletes),
            rewritten => rewritten == chains.len() && !chains.iter().any(|chain| self.acknowledged.has_lines(*chain)),
        };
        if !adds_only {
            let steps = first.chain(lines).chain(self.jumps(table)).collect();
            return vec![Transaction { table, steps }];
        }
        // The jumps come last. Until then the kernel does not walk the chains at each COMMIT [costs 7].
        let (mut transactions, mut steps, mut count) = (Vec::new(), first.collect::<Vec<_>>(), 0);
        let mut lines = lines.peekable();
        while let Some(step) = lines.next() {
            let service = step.owner.as_ref().map(|owner| &owner.service);
            count += step.dispatch_lines();
            // The ports of one Service stay in one transaction.
            let last = lines.peek().is_none_or(|next| next.owner.as_ref().map(|owner| &owner.service) != service);
            steps.push(step);
            if count >= limit && last {
                transactions.push(std::mem::take(&mut steps));
                count = 0;
            }
        }
        steps.extend(self.jumps(table));
        transactions.push(steps);
        transactions.into_iter().map(|steps| Transaction { table, steps }).collect()
    }

    /// Returns the lines of every service port in the shared chains that are rewritten.
    fn rewritten_lines(&self, table: Table) -> impl Iterator<Item = PlanStep> {
        let shared = || SHARED.iter().filter(move |(t, _)| *t == table).map(|(_, chain)| *chain);
        let (any, all) = (shared().any(|chain| self.is_rewritten(table, chain)), shared().all(|chain| self.is_rewritten(table, chain)));
        let services = any.then_some(self.desired.services).into_iter().flatten();
        services.filter_map(move |(name, outline)| {
            if all {
                return Some(PlanStep::owned(name, Write::Dispatch(Rc::clone(outline), table)));
            }
            let lines = outline.dispatch(table).split_inclusive('\n');
            let text: String = lines.filter(|line| self.is_rewritten(table, split_line(line).0)).collect();
            (!text.is_empty()).then(|| PlanStep::owned(name, Write::Lines(text)))
        })
    }

    /// Returns the lines to insert at the top of shared chains that are not rewritten. The last line comes first, because each line is
    /// inserted above the line before it.
    fn additions(&self, difference: &Difference<'_>, table: Table) -> Option<PlanStep> {
        let text = self.edits(&difference.moved, table, "-D ") + &self.edits(difference.add.iter().rev(), table, "-I ");
        (!text.is_empty()).then(|| PlanStep::owned(difference.name, Write::Lines(text)))
    }

    fn removals(&self, difference: &Difference<'_>, table: Table) -> Option<PlanStep> {
        let text = self.edits(&difference.remove, table, "-D ");
        (!text.is_empty()).then(|| PlanStep::owned(difference.name, Write::Lines(text)))
    }

    fn edits<'l>(&self, lines: impl IntoIterator<Item = &'l (Table, &'l str)>, table: Table, operation: &str) -> String {
        let lines = lines.into_iter().filter(|(t, line)| *t == table && !self.is_rewritten(table, split_line(line).0));
        lines.filter_map(|(_, line)| edit(operation, line)).collect()
    }

    fn unknown_lines(&self, table: Table) -> Option<PlanStep> {
        let lines = self.acknowledged.unknown_lines.iter().filter(|(t, line)| *t == table && !self.is_rewritten(table, split_line(line).0));
        let text: String = lines.filter_map(|(_, line)| edit("-D ", line)).collect();
        (!text.is_empty()).then(|| PlanStep::shared(Write::Lines(text)))
    }

    fn tail(&self) -> Option<PlanStep> {
        let tail = &self.desired.fixed.nat_tail;
        (self.is_rewritten(Table::Nat, chain_names::SERVICES) && !tail.is_empty()).then(|| PlanStep::shared(Write::Lines(tail.clone())))
    }

    /// Adds missing jumps and deletes duplicated and unwanted ones.
    fn jumps(&self, table: Table) -> Option<PlanStep> {
        let mut text = String::new();
        for (i, jump) in jumps_of(table) {
            let fixed = self.desired.fixed;
            let desired = usize::from(fixed.has_jump(jump));
            // If the chain does not exist, no jump to it can exist.
            if desired == 0 && !(fixed.removes_jump(jump) && self.acknowledged.fixed.contains_key(&(table, jump.to))) {
                continue;
            }
            let copies = self.acknowledged.jumps[i];
            let line = format!("{} {}\n", jump.from, jump.arguments());
            if copies < desired {
                text.extend([jump.operation(), " ", &line]);
            }
            for _ in desired..copies {
                text.extend(["-D ", &line]);
            }
        }
        (!text.is_empty()).then(|| PlanStep::shared(Write::Lines(text)))
    }

    /// Returns every chain to delete. A chain comes before the chains that it jumps to.
    fn deleted(&self) -> Vec<(Option<&'a ServicePortName>, ChainName)> {
        let own = self.differences.iter().flat_map(|difference| difference.delete.iter().map(|chain| (Some(difference.name), *chain)));
        let mut all: Vec<_> = own.chain(self.unknown_chains()).collect();
        all.sort_by_key(|(_, chain)| (chain.kind(), *chain));
        all
    }

    /// Returns the unknown chains that can be deleted. Chains that a service port of this plan writes are excluded.
    fn unknown_chains(&self) -> impl Iterator<Item = (Option<&'a ServicePortName>, ChainName)> {
        let taken: BTreeSet<ChainName> = self.differences.iter().flat_map(|difference| difference.write.iter().copied()).collect();
        let free = self
            .acknowledged
            .unknown_chains
            .iter()
            .copied()
            .filter(move |chain| !taken.contains(chain) && !self.desired.spared.contains(chain));
        free.map(|chain| (None, chain))
    }
}

fn in_chain(line: &(Table, &str), chain: FixedChain) -> bool {
    (line.0, split_line(line.1).0) == chain
}

fn edit(operation: &str, line: &str) -> Option<String> {
    line.trim_end().strip_prefix("-A ").map(|rest| [operation, rest, "\n"].concat())
}

fn declare_to_delete((name, chain): &(Option<&ServicePortName>, ChainName)) -> PlanStep {
    PlanStep { write: Write::DeclareOwn(*chain), owner: name.cloned() }
}

fn delete((name, chain): (Option<&ServicePortName>, ChainName)) -> PlanStep {
    PlanStep { write: Write::Delete(chain), owner: name.cloned() }
}

/// Returns the acknowledged tables of a dry run. They are empty, except that all jumps and kubelet's chain exist, so that the plan writes
/// neither.
#[must_use]
pub fn dry_run_tables() -> Acknowledged {
    let fixed = [((Table::Filter, chain_names::FIREWALL), Digest::default())].into();
    Acknowledged { fixed, jumps: [1; JUMPS.len()], ..Acknowledged::default() }
}
