//! iptables-restore on tables in memory. It refuses missing chains, rules and targets as the real program does.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, VecDeque};
use std::rc::Rc;
use std::time::Duration;

use sepal::cluster::Family;
use sepal::iptables::{IptablesError, RestoreResult, Runner};
use sepal::table::Table;
use sepal::table::plan::{Plan, Variant};
use sepal::table::rule::Digest;
use sepal::table::rules::RuleSource;
use tokio::time::Instant;

/// One table: chains by name, rules in order, each as the text after the chain's name.
pub(crate) type Chains = BTreeMap<String, Vec<String>>;

/// Tables by name, with the built-in chains in them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Simulator {
    pub(crate) tables: BTreeMap<String, Chains>,
}

const BUILT_IN: [(&str, &[&str]); 2] =
    [("filter", &["INPUT", "FORWARD", "OUTPUT"]), ("nat", &["PREROUTING", "INPUT", "OUTPUT", "POSTROUTING"])];

const TARGETS: [&str; 8] = ["ACCEPT", "DROP", "REJECT", "RETURN", "MASQUERADE", "MARK", "DNAT", "SNAT"];

impl Default for Simulator {
    fn default() -> Self {
        let chains = |names: &[&str]| names.iter().map(|name| ((*name).to_owned(), Vec::new())).collect();
        Self { tables: BUILT_IN.iter().map(|(table, names)| ((*table).to_owned(), chains(names))).collect() }
    }
}

impl Simulator {
    /// Applies restore input as with `--noflush`; `after` gets the tables after every COMMIT. Returns the output of list commands, in which every
    /// rule has counted one packet.
    ///
    /// # Errors
    /// The real program would refuse this line.
    pub(crate) fn restore(&mut self, text: &str, mut after: impl FnMut(&Self)) -> Result<String, String> {
        let mut table = String::new();
        let mut listed = String::new();
        let mut draft = Chains::new();
        for line in text.lines() {
            let bad = |why: &str| format!("{why}: {line}");
            if let Some(name) = line.strip_prefix('*') {
                name.clone_into(&mut table);
                draft = self.tables.get(name).ok_or_else(|| bad("no such table"))?.clone();
            } else if line == "COMMIT" {
                check_targets(&draft)?;
                self.tables.insert(std::mem::take(&mut table), std::mem::take(&mut draft));
                after(self);
            } else if let Some(chain) = line.strip_prefix(':') {
                let name = chain.strip_suffix(" - [0:0]").ok_or_else(|| bad("odd declaration"))?;
                draft.insert(name.to_owned(), Vec::new());
            } else if let Some(chain) = line.strip_prefix("-v -S ") {
                for rule in draft.get(chain).ok_or_else(|| bad("no such chain"))? {
                    let (matches, target) = rule.rsplit_once("-j ").unwrap_or((rule, ""));
                    listed.extend(["-A ", chain, " ", matches, "-c 1 60 -j ", target, "\n"]);
                }
            } else if let Some((operation, rest)) = line.split_once(' ') {
                let (chain, rule) = rest.split_once(' ').unwrap_or((rest, ""));
                let rules = draft.get_mut(chain).ok_or_else(|| bad("no such chain"))?;
                match operation {
                    "-A" => rules.push(rule.to_owned()),
                    "-I" => rules.insert(0, rule.to_owned()),
                    "-D" => {
                        // The real program compares rules, not texts.
                        let wanted = Digest::of_rule(rule);
                        let at = rules.iter().position(|held| Digest::of_rule(held) == wanted);
                        rules.remove(at.ok_or_else(|| bad("no such rule"))?);
                    }
                    "-X" if !rules.is_empty() => return Err(bad("chain is not empty")),
                    "-X" if draft.values().flatten().any(|rule| target(rule) == Some(chain)) => return Err(bad("chain is in use")),
                    "-X" => drop(draft.remove(chain)),
                    _ => return Err(bad("not understood")),
                }
            } else {
                return Err(bad("not understood"));
            }
        }
        if table.is_empty() { Ok(listed) } else { Err("no COMMIT at the end".into()) }
    }

    /// The tables as iptables-save would print them.
    pub(crate) fn save(&self) -> String {
        self.tables.keys().map(|table| self.save_table(table)).collect()
    }

    fn save_table(&self, name: &str) -> String {
        let mut out = String::new();
        for (table, chains) in self.tables.iter().filter(|(table, _)| *table == name) {
            out.extend(["*", table, "\n"]);
            out.extend(chains.keys().map(|chain| format!(":{chain} - [0:0]\n")));
            out.extend(chains.iter().flat_map(|(chain, rules)| rules.iter().map(move |rule| format!("-A {chain} {rule}\n"))));
            out += "COMMIT\n";
        }
        out
    }
}

/// The word after the last `-j`. Names in comments cannot hold ` -j `.
fn target(rule: &str) -> Option<&str> {
    let (_, target) = rule.rsplit_once("-j ")?;
    target.split(' ').next()
}

fn check_targets(chains: &Chains) -> Result<(), String> {
    for (chain, rules) in chains {
        for rule in rules {
            match target(rule) {
                Some(target) if !TARGETS.contains(&target) && !chains.contains_key(target) => {
                    return Err(format!("{chain} jumps to {target}, which does not exist: {rule}"));
                }
                _ => {}
            }
        }
    }
    Ok(())
}

/// A fault of a run of iptables-restore.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Fault {
    /// The run is killed after this number of transactions.
    KilledAfter(usize),
    /// The run does not get the xtables lock.
    Locked,
}

/// The begin and the end of a run of iptables-restore.
pub(crate) type Times = (Instant, Instant);

/// Tables in memory behind the `Runner` trait.
#[derive(Debug)]
pub(crate) struct Memory {
    pub(crate) variant: Variant,
    pub(crate) tables: RefCell<Simulator>,
    /// The faults of the next runs, in order.
    pub(crate) faults: RefCell<VecDeque<Option<Fault>>>,
    /// A transaction that contains this text is refused, with its line number or at its COMMIT.
    pub(crate) refused: RefCell<Option<(String, bool)>>,
    /// The input of every run.
    pub(crate) runs: RefCell<Vec<String>>,
    /// The tables after every COMMIT, if `keeps_states` is set.
    pub(crate) states: RefCell<Vec<Simulator>>,
    pub(crate) keeps_states: Cell<bool>,
    /// The duration of a run, and the times of all runs.
    pub(crate) takes: Cell<Duration>,
    /// The wait for the xtables lock that a run reports.
    pub(crate) locked: Cell<Duration>,
    pub(crate) times: RefCell<Vec<Times>>,
    /// The number of tables that were saved.
    pub(crate) saves: Cell<usize>,
    /// The generation counter, which every transaction increments; `None` on legacy.
    pub(crate) generation: Cell<Option<u32>>,
}

impl Memory {
    pub(crate) fn new(variant: Variant) -> Self {
        Self {
            variant,
            tables: RefCell::default(),
            faults: RefCell::default(),
            refused: RefCell::default(),
            runs: RefCell::default(),
            states: RefCell::default(),
            keeps_states: Cell::new(true),
            takes: Cell::default(),
            locked: Cell::default(),
            times: RefCell::default(),
            saves: Cell::default(),
            generation: Cell::default(),
        }
    }

    /// Changes the tables as another program.
    pub(crate) fn meddle(&self, change: impl FnOnce(&mut Simulator)) {
        change(&mut self.tables.borrow_mut());
        self.generation.set(self.generation.get().map(|generation| generation.wrapping_add(1)));
    }

    fn transactions(plan: &Plan, renderer: &dyn RuleSource) -> Vec<String> {
        let of = |transaction: &sepal::table::plan::Transaction| Plan { transactions: vec![transaction.clone()] }.text(renderer);
        plan.transactions.iter().map(of).collect()
    }
}

impl Runner for Memory {
    fn variant(&self) -> Variant {
        self.variant
    }

    async fn save(&self, _family: Family, table: Table, line: &mut dyn FnMut(&str)) -> Result<(), IptablesError> {
        self.saves.set(self.saves.get() + 1);
        self.tables.borrow().save_table(table.as_str()).lines().for_each(line);
        Ok(())
    }

    async fn restore(&self, _family: Family, plan: &Plan, renderer: &dyn RuleSource) -> Result<RestoreResult, IptablesError> {
        let command = || "restore".to_owned();
        let refused_at = |line: usize, output: String| {
            let (text, owner) = plan.line(line, renderer).expect("the line is there");
            IptablesError::Refused { command: command(), line, text, owner: owner.map(Box::new), output }
        };
        let fault = self.faults.borrow_mut().pop_front().flatten();
        if fault == Some(Fault::Locked) {
            return Err(IptablesError::Locked { command: command(), holder: "a test".into(), seconds: 0 });
        }
        let start = Instant::now();
        tokio::time::sleep(self.takes.get()).await;
        self.times.borrow_mut().push((start, Instant::now()));
        let (mut line, mut listed) = (0, String::new());
        for (number, text) in Self::transactions(plan, renderer).iter().enumerate() {
            if fault == Some(Fault::KilledAfter(number)) {
                return Err(IptablesError::Timeout { command: command(), seconds: 0 });
            }
            let refused = self.refused.borrow().clone();
            let lines = text.lines().count();
            if let Some((word, by_line)) = refused.filter(|(word, _)| text.contains(word.as_str())) {
                let named = if by_line { text.lines().position(|found| found.contains(word.as_str())).unwrap_or(0) + 1 } else { lines };
                return Err(refused_at(line + named, "refused".into()));
            }
            let taken = self.tables.borrow_mut().restore(text, |state| {
                self.generation.set(self.generation.get().map(|generation| generation.wrapping_add(1)));
                if self.keeps_states.get() {
                    self.states.borrow_mut().push(state.clone());
                }
            });
            match taken {
                Ok(more) => listed += &more,
                // The real program names the line, or the COMMIT.
                Err(output) => {
                    let named = text.lines().position(|found| output.ends_with(&format!(": {found}"))).map_or(lines, |at| at + 1);
                    return Err(refused_at(line + named, output));
                }
            }
            line += lines;
        }
        self.runs.borrow_mut().push(plan.text(renderer));
        Ok(RestoreResult { locked: self.locked.get(), listed })
    }

    async fn canary(&self, _family: Family) -> Option<bool> {
        Some(true)
    }

    async fn builtin_jumps(&self, _family: Family, table: Table) -> Result<String, IptablesError> {
        let tables = self.tables.borrow();
        let built_in = tables.tables[table.as_str()].iter().filter(|(chain, _)| !chain.starts_with("KUBE-"));
        let rules = built_in.flat_map(|(chain, rules)| rules.iter().map(move |rule| format!("-A {chain} {rule}\n")));
        Ok(format!("*{table}\n{}COMMIT\n", rules.collect::<String>()))
    }

    fn generation(&self) -> Option<u32> {
        self.generation.get()
    }

    async fn set_canary(&self, _family: Family) -> Result<(), IptablesError> {
        Ok(())
    }
}

/// For a loop whose tables the test reads, too.
impl Runner for &Memory {
    fn variant(&self) -> Variant {
        (**self).variant()
    }

    async fn save(&self, family: Family, table: Table, line: &mut dyn FnMut(&str)) -> Result<(), IptablesError> {
        (**self).save(family, table, line).await
    }

    async fn restore(&self, family: Family, plan: &Plan, renderer: &dyn RuleSource) -> Result<RestoreResult, IptablesError> {
        (**self).restore(family, plan, renderer).await
    }

    async fn canary(&self, family: Family) -> Option<bool> {
        (**self).canary(family).await
    }

    async fn builtin_jumps(&self, family: Family, table: Table) -> Result<String, IptablesError> {
        (**self).builtin_jumps(family, table).await
    }

    fn generation(&self) -> Option<u32> {
        (**self).generation()
    }

    async fn set_canary(&self, family: Family) -> Result<(), IptablesError> {
        (**self).set_canary(family).await
    }
}

/// Tables of both families in memory, shared by the loop and the test.
#[derive(Clone)]
pub(crate) struct BothFamilies(Rc<[Memory; 2]>);

impl BothFamilies {
    pub(crate) fn new(variant: Variant) -> Self {
        Self(Rc::new([Memory::new(variant), Memory::new(variant)]))
    }

    pub(crate) fn of(&self, family: Family) -> &Memory {
        &self.0[usize::from(family == Family::V6)]
    }
}

impl Runner for BothFamilies {
    fn variant(&self) -> Variant {
        self.0[0].variant()
    }

    async fn save(&self, family: Family, table: Table, line: &mut dyn FnMut(&str)) -> Result<(), IptablesError> {
        self.of(family).save(family, table, line).await
    }

    async fn restore(&self, family: Family, plan: &Plan, renderer: &dyn RuleSource) -> Result<RestoreResult, IptablesError> {
        self.of(family).restore(family, plan, renderer).await
    }

    async fn canary(&self, _family: Family) -> Option<bool> {
        Some(true)
    }

    async fn builtin_jumps(&self, family: Family, table: Table) -> Result<String, IptablesError> {
        self.of(family).builtin_jumps(family, table).await
    }

    fn generation(&self) -> Option<u32> {
        None
    }

    async fn set_canary(&self, _family: Family) -> Result<(), IptablesError> {
        Ok(())
    }
}
