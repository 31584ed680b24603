//! Computes the plan: compares the desired rules with the acknowledged ones and puts the differences in order.

use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;

use super::chain_names::{self, ChainKind, ChainName};
use super::jumps::JUMPS;
use super::rules::{ChainRules, Fixed};
use crate::cluster::ServicePortName;

use super::Table;
use super::acknowledged::{Acknowledged, fixed_digests};
use super::live::{FixedChain, SHARED, jumps_of};
use super::outline::{Outline, Outlines};
use super::plan::{Plan, PlanStep, Transaction, Variant, Write};
use super::rule::{Digest, split_line};

/// On nft, a transaction ends once it contains this many service port chains. A COMMIT of any size costs 5-10 ms [costs 7], and the time
/// for its chains is quadratic in their number [costs 1]. The sum is smallest near this number.
pub const CHAINS_PER_TRANSACTION: usize = 512;

/// A shared chain is rewritten as a whole if it needs more single edits than this, and more than one edit per [`LINES_PER_EDIT`] lines.
const EDITS: usize = 32;

/// Writing this many lines costs about as much as one edit.
const LINES_PER_EDIT: usize = 16;

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
    let planner = Planner::new(desired, acknowledged, touched);
    let nat = match variant {
        Variant::Legacy => planner.nat_whole().into_iter().collect(),
        Variant::Nft => planner.nat_nft(limit.max(1)),
    };
    let transactions = planner.filter_before().into_iter().chain(nat).chain(planner.filter_after()).filter(|t| !t.steps.is_empty());
    Plan { transactions: transactions.collect() }
}

/// The differences of one service port.
struct Difference<'a> {
    name: &'a ServicePortName,
    desired: Option<&'a Rc<Outline>>,
    /// Own chains to write.
    write: Vec<ChainName>,
    /// Own chains to delete.
    delete: Vec<ChainName>,
    /// Lines to add to shared chains, in their order.
    add: Vec<(Table, &'a str)>,
    /// Lines of `add` that exist in the wrong place. They are deleted before they are added.
    moved: Vec<(Table, &'a str)>,
    /// Lines to delete from shared chains.
    remove: Vec<(Table, &'a str)>,
}

struct Planner<'a> {
    desired: &'a DesiredTables<'a>,
    acknowledged: &'a Acknowledged,
    differences: Vec<Difference<'a>>,
    /// Fixed and shared chains that are rewritten as a whole.
    rewritten: BTreeSet<FixedChain>,
}

impl<'a> Planner<'a> {
    fn new(desired: &'a DesiredTables<'a>, acknowledged: &'a Acknowledged, touched: &'a BTreeSet<ServicePortName>) -> Self {
        let differences: Vec<Difference<'a>> = touched.iter().filter_map(|name| difference(name, desired, acknowledged)).collect();
        let digests = fixed_digests(desired.fixed);
        let mut rewritten: BTreeSet<FixedChain> =
            digests.iter().filter(|(chain, digest)| acknowledged.fixed.get(chain) != Some(digest)).map(|(chain, _)| *chain).collect();
        let lines_of = |shared: &FixedChain| {
            let of_difference =
                |d: &Difference<'_>| d.add.iter().chain(&d.moved).chain(&d.remove).filter(|line| in_chain(line, *shared)).count();
            differences.iter().map(of_difference).sum::<usize>()
                + acknowledged.unknown_lines.iter().filter(|(t, line)| in_chain(&(*t, line), *shared)).count()
        };
        let many: Vec<FixedChain> = SHARED
            .into_iter()
            .filter(|shared| {
                let edits = lines_of(shared);
                edits > EDITS && edits * LINES_PER_EDIT > desired.services.len()
            })
            .collect();
        rewritten.extend(many);
        Self { desired, acknowledged, differences, rewritten }
    }

    fn fixed(&self, table: Table) -> &'a [ChainRules] {
        self.desired.fixed.chains(table)
    }

    /// Empties unwanted chains by declaring them.
    fn emptied(&self, table: Table) -> impl Iterator<Item = PlanStep> {
        let chains = self.desired.fixed.unwanted.iter().filter(move |chain| chain.0 == table && self.acknowledged.has_rules(chain));
        chains.map(|(_, chain)| shared(Write::Declare(chain)))
    }

    fn is_rewritten(&self, table: Table, chain: &str) -> bool {
        self.rewritten.iter().any(|rewritten| *rewritten == (table, chain))
    }

    fn declarations(&self, table: Table, which: impl Fn(&ChainRules) -> bool) -> impl Iterator<Item = PlanStep> {
        let chains = self.fixed(table).iter().filter(move |chain| self.is_rewritten(table, chain.name) && which(chain));
        chains.map(|chain| shared(Write::Declare(chain.name)))
    }

    fn fixed_rules(&self, table: Table) -> impl Iterator<Item = PlanStep> {
        let chains = self.fixed(table).iter().filter(move |chain| self.is_rewritten(table, chain.name) && !chain.rules.is_empty());
        chains.map(|chain| shared(Write::Lines(chain.rules.clone())))
    }

    /// Returns the additions in `filter`, which come before the changes in `nat`.
    fn filter_before(&self) -> Option<Transaction> {
        let table = Table::Filter;
        let mut steps: Vec<PlanStep> = self.declarations(table, |_| true).chain(self.emptied(table)).collect();
        // If we have no rule for KUBE-FIREWALL, it only has to exist. Declaring an existing chain would delete kubelet's rules.
        let ours = self.desired.fixed.has(table, chain_names::FIREWALL) || !self.desired.fixed.has_proxy();
        if !ours && !self.acknowledged.fixed.contains_key(&(table, chain_names::FIREWALL)) {
            steps.push(shared(Write::Declare(chain_names::FIREWALL)));
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
                steps.push(owned(name, Write::Dispatch(Rc::clone(outline), table)));
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
        transactions.push(Transaction { table, steps: self.nat_dispatch() });
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

    /// Returns the changes of the shared chains of `nat`.
    fn nat_dispatch(&self) -> Vec<PlanStep> {
        let table = Table::Nat;
        let mut steps: Vec<PlanStep> = self.declarations(table, |chain| chain.rules.is_empty()).chain(self.emptied(table)).collect();
        steps.extend(self.rewritten_lines(table));
        for difference in &self.differences {
            steps.extend(self.additions(difference, table));
            steps.extend(self.removals(difference, table));
        }
        steps.extend(self.unknown_lines(table));
        steps.extend(self.tail());
        steps.extend(self.jumps(table));
        steps
    }

    /// Returns the lines of every service port in the shared chains that are rewritten.
    fn rewritten_lines(&self, table: Table) -> impl Iterator<Item = PlanStep> {
        let shared = || SHARED.iter().filter(move |(t, _)| *t == table).map(|(_, chain)| *chain);
        let (any, all) = (shared().any(|chain| self.is_rewritten(table, chain)), shared().all(|chain| self.is_rewritten(table, chain)));
        let services = any.then_some(self.desired.services).into_iter().flatten();
        services.filter_map(move |(name, outline)| {
            if all {
                return Some(owned(name, Write::Dispatch(Rc::clone(outline), table)));
            }
            let lines = outline.dispatch(table).split_inclusive('\n');
            let text: String = lines.filter(|line| self.is_rewritten(table, split_line(line).0)).collect();
            (!text.is_empty()).then(|| owned(name, Write::Lines(text)))
        })
    }

    /// Returns the lines to insert at the top of shared chains that are not rewritten. The last line comes first, because each line is
    /// inserted above the line before it.
    fn additions(&self, difference: &Difference<'_>, table: Table) -> Option<PlanStep> {
        let text = self.edits(&difference.moved, table, "-D ") + &self.edits(difference.add.iter().rev(), table, "-I ");
        (!text.is_empty()).then(|| owned(difference.name, Write::Lines(text)))
    }

    fn removals(&self, difference: &Difference<'_>, table: Table) -> Option<PlanStep> {
        let text = self.edits(&difference.remove, table, "-D ");
        (!text.is_empty()).then(|| owned(difference.name, Write::Lines(text)))
    }

    fn edits<'l>(&self, lines: impl IntoIterator<Item = &'l (Table, &'l str)>, table: Table, operation: &str) -> String {
        let lines = lines.into_iter().filter(|(t, line)| *t == table && !self.is_rewritten(table, split_line(line).0));
        lines.filter_map(|(_, line)| edit(operation, line)).collect()
    }

    fn unknown_lines(&self, table: Table) -> Option<PlanStep> {
        let lines = self.acknowledged.unknown_lines.iter().filter(|(t, line)| *t == table && !self.is_rewritten(table, split_line(line).0));
        let text: String = lines.filter_map(|(_, line)| edit("-D ", line)).collect();
        (!text.is_empty()).then(|| shared(Write::Lines(text)))
    }

    fn tail(&self) -> Option<PlanStep> {
        let tail = &self.desired.fixed.nat_tail;
        (self.is_rewritten(Table::Nat, chain_names::SERVICES) && !tail.is_empty()).then(|| shared(Write::Lines(tail.clone())))
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
        (!text.is_empty()).then(|| shared(Write::Lines(text)))
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

fn difference<'a>(name: &'a ServicePortName, desired: &'a DesiredTables<'a>, acknowledged: &'a Acknowledged) -> Option<Difference<'a>> {
    let (new, old) = (desired.services.get(name), acknowledged.services.get(name));
    if let (Some(new), Some(old)) = (new, old)
        && Rc::ptr_eq(new, old)
    {
        return None;
    }
    let chains = |outline: Option<&'a Rc<Outline>>| outline.map(|outline| &*outline.chains).unwrap_or_default();
    let acknowledged_digest = |chain: &ChainName| old.and_then(|old| old.chain(chain));
    let is_desired = |chain: &ChainName| new.is_some_and(|new| new.chain(chain).is_some());
    let write = chains(new).iter().filter(|(chain, digest)| acknowledged_digest(chain) != Some(*digest)).map(|(chain, _)| *chain).collect();
    let delete = chains(old).iter().filter(|(chain, _)| !is_desired(chain)).map(|(chain, _)| *chain);
    let delete = delete.filter(|chain| !desired.spared.contains(chain)).collect();
    let mut difference = Difference { name, desired: new, write, delete, add: Vec::new(), moved: Vec::new(), remove: Vec::new() };
    for table in Table::ALL {
        let lines = |outline: Option<&'a Rc<Outline>>| outline.map(|outline| outline.dispatch(table)).unwrap_or_default();
        if lines(new) == lines(old) {
            continue;
        }
        let mut chains: BTreeMap<&str, (Vec<&'a str>, Vec<&'a str>)> = BTreeMap::new();
        lines(new).lines().for_each(|line| chains.entry(split_line(line).0).or_default().0.push(line));
        lines(old).lines().for_each(|line| chains.entry(split_line(line).0).or_default().1.push(line));
        for (new, old) in chains.into_values() {
            difference.edit_chain(table, &new, &old);
        }
    }
    let Difference { write, delete, add, remove, .. } = &difference;
    let same = write.is_empty() && delete.is_empty() && add.is_empty() && remove.is_empty();
    (!same).then_some(difference)
}

impl<'a> Difference<'a> {
    /// Finds the lines of one chain to delete and to add, so that the chain ends up with the new lines in their order. Lines are added at
    /// the top, and `-D` deletes the first of equal lines. So the lines that can stay are matched from the end.
    fn edit_chain(&mut self, table: Table, new: &[&'a str], old: &[&'a str]) {
        let mut kept = 0;
        let mut gone: Vec<&'a str> = Vec::new();
        for line in old.iter().rev() {
            if new.iter().rev().nth(kept) == Some(line) && !gone.contains(line) {
                kept += 1;
            } else {
                gone.push(line);
            }
        }
        let add = &new[..new.len() - kept];
        self.add.extend(add.iter().map(|line| (table, *line)));
        for line in gone.into_iter().rev() {
            if add.contains(&line) { &mut self.moved } else { &mut self.remove }.push((table, line));
        }
    }
}

fn in_chain(line: &(Table, &str), chain: FixedChain) -> bool {
    (line.0, split_line(line.1).0) == chain
}

fn edit(operation: &str, line: &str) -> Option<String> {
    line.trim_end().strip_prefix("-A ").map(|rest| [operation, rest, "\n"].concat())
}

fn shared(write: Write) -> PlanStep {
    PlanStep { write, owner: None }
}

fn owned(name: &ServicePortName, write: Write) -> PlanStep {
    PlanStep { write, owner: Some(name.clone()) }
}

fn declare_own(difference: &Difference<'_>) -> Vec<PlanStep> {
    match difference.desired {
        Some(outline) if outline.chains.len() == difference.write.len() && !difference.write.is_empty() => {
            vec![owned(difference.name, Write::DeclareAll(Rc::clone(outline)))]
        }
        _ => difference.write.iter().map(|chain| owned(difference.name, Write::DeclareOwn(*chain))).collect(),
    }
}

fn own_rules(difference: &Difference<'_>) -> Option<PlanStep> {
    let outline = difference.desired.filter(|_| !difference.write.is_empty())?;
    let write = if outline.chains.len() == difference.write.len() {
        Write::OwnAll(Rc::clone(outline))
    } else {
        Write::Own(difference.write.iter().copied().collect())
    };
    Some(owned(difference.name, write))
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
