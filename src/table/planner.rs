//! Makes the plan: compares what should be with what is, and puts the difference in order.

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

/// On nft, a transaction is closed once it mentions this many service port chains. A COMMIT costs some 5-10 ms whatever it
/// holds, and chains cost quadratically; this is where the sum is smallest, and it is flat around there.
pub const CHAINS_PER_TRANSACTION: usize = 512;

/// A shared chain is written anew if it would take more single edits than this, and more than one for [`LINES_PER_EDIT`] of its lines.
const EDITS: usize = 32;

/// Writing this many lines costs about as much as finding and changing one.
const LINES_PER_EDIT: usize = 16;

/// What should be: service ports and everything fixed.
#[derive(Clone, Copy, Debug)]
pub struct DesiredTables<'a> {
    /// Service ports.
    pub services: &'a Outlines,
    /// What does not belong to one.
    pub fixed: &'a Fixed,
    /// Chains that could not be deleted, and are not tried again.
    pub spared: &'a [ChainName],
}

/// Plans the way from what the kernel holds to what is wanted, for the service ports that may differ; what is fixed and what is nobody's
/// is always compared. On nft a transaction takes no more Services once it mentions so many chains: [`CHAINS_PER_TRANSACTION`].
#[must_use]
pub fn plan(wanted: &DesiredTables<'_>, held: &Acknowledged, touched: &BTreeSet<ServicePortName>, variant: Variant, limit: usize) -> Plan {
    let planner = Planner::new(wanted, held, touched);
    let nat = match variant {
        Variant::Legacy => planner.nat_whole().into_iter().collect(),
        Variant::Nft => planner.nat_nft(limit.max(1)),
    };
    let transactions = planner.filter_before().into_iter().chain(nat).chain(planner.filter_after()).filter(|t| !t.steps.is_empty());
    Plan { transactions: transactions.collect() }
}

/// What differs for one service port.
struct Difference<'a> {
    name: &'a ServicePortName,
    wanted: Option<&'a Rc<Outline>>,
    /// Own chains to write.
    write: Vec<ChainName>,
    /// Own chains to delete.
    delete: Vec<ChainName>,
    /// Lines to put into shared chains, in their order.
    add: Vec<(Table, &'a str)>,
    /// Lines among them that are there in a place that they cannot stay in: they are taken out first.
    moved: Vec<(Table, &'a str)>,
    /// Lines to take out of shared chains.
    remove: Vec<(Table, &'a str)>,
}

struct Planner<'a> {
    wanted: &'a DesiredTables<'a>,
    held: &'a Acknowledged,
    differences: Vec<Difference<'a>>,
    /// Fixed chains that are written anew.
    rewritten: BTreeSet<FixedChain>,
}

impl<'a> Planner<'a> {
    fn new(wanted: &'a DesiredTables<'a>, held: &'a Acknowledged, touched: &'a BTreeSet<ServicePortName>) -> Self {
        let differences: Vec<Difference<'a>> = touched.iter().filter_map(|name| difference(name, wanted, held)).collect();
        let digests = fixed_digests(wanted.fixed);
        let mut rewritten: BTreeSet<FixedChain> =
            digests.iter().filter(|(chain, digest)| held.fixed.get(chain) != Some(digest)).map(|(chain, _)| *chain).collect();
        let lines_of = |shared: &FixedChain| {
            let of_difference =
                |d: &Difference<'_>| d.add.iter().chain(&d.moved).chain(&d.remove).filter(|line| in_chain(line, *shared)).count();
            differences.iter().map(of_difference).sum::<usize>()
                + held.unknown_lines.iter().filter(|(t, line)| in_chain(&(*t, line), *shared)).count()
        };
        let many: Vec<FixedChain> = SHARED
            .into_iter()
            .filter(|shared| {
                let edits = lines_of(shared);
                edits > EDITS && edits * LINES_PER_EDIT > wanted.services.len()
            })
            .collect();
        rewritten.extend(many);
        Self { wanted, held, differences, rewritten }
    }

    fn fixed(&self, table: Table) -> &'a [ChainRules] {
        self.wanted.fixed.chains(table)
    }

    /// Chains that are there and should do nothing: declaring them empties them.
    fn emptied(&self, table: Table) -> impl Iterator<Item = PlanStep> {
        let chains = self.wanted.fixed.unwanted.iter().filter(move |chain| chain.0 == table && self.held.has_rules(chain));
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

    /// Everything in `filter` but what is taken away.
    fn filter_before(&self) -> Option<Transaction> {
        let table = Table::Filter;
        let mut steps: Vec<PlanStep> = self.declarations(table, |_| true).chain(self.emptied(table)).collect();
        // Where we have no rule for it, KUBE-FIREWALL is only there to be jumped to; declaring it would empty it.
        let ours = self.wanted.fixed.has(table, chain_names::FIREWALL) || !self.wanted.fixed.has_proxy();
        if !ours && !self.held.fixed.contains_key(&(table, chain_names::FIREWALL)) {
            steps.push(shared(Write::Declare(chain_names::FIREWALL)));
        }
        steps.extend(self.fixed_rules(table));
        steps.extend(self.rewritten_lines(table));
        steps.extend(self.differences.iter().filter_map(|difference| self.additions(difference, table)));
        steps.extend(self.jumps(table));
        (!steps.is_empty()).then_some(Transaction { table, steps })
    }

    /// What is taken away in `filter`.
    fn filter_after(&self) -> Option<Transaction> {
        let table = Table::Filter;
        let removals = self.differences.iter().filter_map(|difference| self.removals(difference, table));
        let steps: Vec<PlanStep> = removals.chain(self.unknown_lines(table)).collect();
        (!steps.is_empty()).then_some(Transaction { table, steps })
    }

    /// All of `nat` in one transaction.
    fn nat_whole(&self) -> Option<Transaction> {
        let table = Table::Nat;
        let deleted = self.deleted();
        let mut steps: Vec<PlanStep> = self.declarations(table, |_| true).chain(self.emptied(table)).collect();
        steps.extend(self.differences.iter().flat_map(declare_own));
        steps.extend(deleted.iter().map(declare_to_delete));
        steps.extend(self.fixed_rules(table));
        let whole = SHARED.iter().filter(|(t, _)| *t == table).all(|(_, chain)| self.is_rewritten(table, chain));
        if whole {
            // Everybody's lines are written; each service port's beside its chains.
            let mut differences = self.differences.iter().peekable();
            for (name, outline) in self.wanted.services {
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

    /// `nat` in transactions of bounded size.
    fn nat_nft(&self, limit: usize) -> Vec<Transaction> {
        let mentioned: usize = self.differences.iter().map(|difference| difference.write.len() + difference.delete.len()).sum();
        if mentioned + self.held.unknown_chains.len() <= limit {
            return self.nat_whole().into_iter().collect();
        }
        let table = Table::Nat;
        let mut transactions = Vec::new();
        let mut later = Vec::new();
        // The chains that others jump to go first.
        let (mut declarations, mut contents): (Vec<PlanStep>, Vec<PlanStep>) =
            (self.declarations(table, |chain| !chain.rules.is_empty()).collect(), self.fixed_rules(table).collect());
        let mut mentioned = 0;
        for (i, difference) in self.differences.iter().enumerate() {
            // A chain can only go when nothing jumps to it; what dispatch may still lead to waits until dispatch is written.
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
            // The ports of one Service stay together.
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
        // All of them are emptied before any is deleted: within a group they may jump to each other, and to later groups only.
        transactions.extend(later.chunks(limit).map(|group| {
            let steps = group.iter().map(declare_to_delete).chain(group.iter().map(|chain| delete(*chain))).collect();
            Transaction { table, steps }
        }));
        transactions.retain(|transaction| !transaction.steps.is_empty());
        transactions
    }

    /// The shared chains of `nat`.
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

    /// Every service port's lines in the shared chains that are written anew.
    fn rewritten_lines(&self, table: Table) -> impl Iterator<Item = PlanStep> {
        let shared = || SHARED.iter().filter(move |(t, _)| *t == table).map(|(_, chain)| *chain);
        let (any, all) = (shared().any(|chain| self.is_rewritten(table, chain)), shared().all(|chain| self.is_rewritten(table, chain)));
        let services = any.then_some(self.wanted.services).into_iter().flatten();
        services.filter_map(move |(name, outline)| {
            if all {
                return Some(owned(name, Write::Dispatch(Rc::clone(outline), table)));
            }
            let lines = outline.dispatch(table).split_inclusive('\n');
            let text: String = lines.filter(|line| self.is_rewritten(table, split_line(line).0)).collect();
            (!text.is_empty()).then(|| owned(name, Write::Lines(text)))
        })
    }

    /// Lines to put at the top of shared chains that are not written anew: one above the other, so the last one first.
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
        let lines = self.held.unknown_lines.iter().filter(|(t, line)| *t == table && !self.is_rewritten(table, split_line(line).0));
        let text: String = lines.filter_map(|(_, line)| edit("-D ", line)).collect();
        (!text.is_empty()).then(|| shared(Write::Lines(text)))
    }

    fn tail(&self) -> Option<PlanStep> {
        let tail = &self.wanted.fixed.nat_tail;
        (self.is_rewritten(Table::Nat, chain_names::SERVICES) && !tail.is_empty()).then(|| shared(Write::Lines(tail.clone())))
    }

    /// Jumps that are missing go to the top, or the end, of their chains; of several alike one is kept. Where nothing is known of the
    /// live tables, jumps are none of the plan's business.
    fn jumps(&self, table: Table) -> Option<PlanStep> {
        let mut text = String::new();
        for (i, jump) in jumps_of(table) {
            let fixed = self.wanted.fixed;
            let wanted = usize::from(fixed.has_jump(jump));
            // What is not there leads nowhere.
            if wanted == 0 && !(fixed.removes_jump(jump) && self.held.fixed.contains_key(&(table, jump.to))) {
                continue;
            }
            let there = self.held.jumps[i];
            let line = format!("{} {}\n", jump.from, jump.arguments());
            if there < wanted {
                text.extend([jump.operation(), " ", &line]);
            }
            for _ in wanted..there {
                text.extend(["-D ", &line]);
            }
        }
        (!text.is_empty()).then(|| shared(Write::Lines(text)))
    }

    /// Every chain to delete, those that jump before those they jump to.
    fn deleted(&self) -> Vec<(Option<&'a ServicePortName>, ChainName)> {
        let own = self.differences.iter().flat_map(|difference| difference.delete.iter().map(|chain| (Some(difference.name), *chain)));
        let mut all: Vec<_> = own.chain(self.unknown_chains()).collect();
        all.sort_by_key(|(_, chain)| (chain.kind(), *chain));
        all
    }

    /// Chains of nobody's that can be deleted: not those that a service port of this plan makes its own.
    fn unknown_chains(&self) -> impl Iterator<Item = (Option<&'a ServicePortName>, ChainName)> {
        let taken: BTreeSet<ChainName> = self.differences.iter().flat_map(|difference| difference.write.iter().copied()).collect();
        let free =
            self.held.unknown_chains.iter().copied().filter(move |chain| !taken.contains(chain) && !self.wanted.spared.contains(chain));
        free.map(|chain| (None, chain))
    }
}

fn difference<'a>(name: &'a ServicePortName, wanted: &'a DesiredTables<'a>, held: &'a Acknowledged) -> Option<Difference<'a>> {
    let (new, old) = (wanted.services.get(name), held.services.get(name));
    if let (Some(new), Some(old)) = (new, old)
        && Rc::ptr_eq(new, old)
    {
        return None;
    }
    let chains = |outline: Option<&'a Rc<Outline>>| outline.map(|outline| &*outline.chains).unwrap_or_default();
    let held_chain = |chain: &ChainName| old.and_then(|old| old.chain(chain));
    let wanted_chain = |chain: &ChainName| new.is_some_and(|new| new.chain(chain).is_some());
    let write = chains(new).iter().filter(|(chain, digest)| held_chain(chain) != Some(*digest)).map(|(chain, _)| *chain).collect();
    let delete = chains(old).iter().filter(|(chain, _)| !wanted_chain(chain)).map(|(chain, _)| *chain);
    let delete = delete.filter(|chain| !wanted.spared.contains(chain)).collect();
    let mut difference = Difference { name, wanted: new, write, delete, add: Vec::new(), moved: Vec::new(), remove: Vec::new() };
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
    /// Notes which of a service port's lines in one chain have to go and to come so that they are there in their order. What comes is put
    /// at the top, and of lines alike the first one goes; so what can stay is found from the end.
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
    match difference.wanted {
        Some(outline) if outline.chains.len() == difference.write.len() && !difference.write.is_empty() => {
            vec![owned(difference.name, Write::DeclareAll(Rc::clone(outline)))]
        }
        _ => difference.write.iter().map(|chain| owned(difference.name, Write::DeclareOwn(*chain))).collect(),
    }
}

fn own_rules(difference: &Difference<'_>) -> Option<PlanStep> {
    let outline = difference.wanted.filter(|_| !difference.write.is_empty())?;
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

/// Tables of which nothing is known but that jumps and kubelet's chain are somebody else's business: what a dry run writes into.
#[must_use]
pub fn dry_run_tables() -> Acknowledged {
    let fixed = [((Table::Filter, chain_names::FIREWALL), Digest::default())].into();
    Acknowledged { fixed, jumps: [1; JUMPS.len()], ..Acknowledged::default() }
}
