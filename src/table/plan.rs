//! The plan: the transactions that iptables-restore gets, in their order.
//!
//! On legacy iptables every COMMIT replaces the whole table, so there is one COMMIT per table [costs 2]. iptables-nft needs time quadratic
//! in the number of chains in a COMMIT [costs 1]. So on nft, large changes are split. First come the chains of service ports in groups;
//! packets do not reach them yet. Then come the shared dispatch chains in one COMMIT, which is the atomic switch. Unused chains are deleted
//! last.
//!
//! On both variants, rules that refuse traffic are added before the rules that served it are deleted, and deleted after the rules that
//! serve it are added.

use std::borrow::Cow;
use std::collections::BTreeSet;
use std::fmt;
use std::ops::AddAssign;
use std::rc::Rc;

use super::chain_names::ChainName;
use crate::cluster::ServicePortName;
use crate::table::rules::RuleSource;

use super::Table;
use super::outline::Outline;
use super::rule_counts::RuleCounts;
use super::rules::lines;

/// The iptables variant. Both variants take the same input, but each is fast with a different transaction size.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Variant {
    /// iptables on `nf_tables`.
    Nft,
    /// iptables on its own, older kernel interface (`x_tables`).
    Legacy,
}

impl Variant {
    /// `nft` or `legacy`, as in the names of the commands.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Nft => "nft",
            Self::Legacy => "legacy",
        }
    }

    /// The other variant.
    #[must_use]
    pub const fn other(self) -> Self {
        match self {
            Self::Nft => Self::Legacy,
            Self::Legacy => Self::Nft,
        }
    }
}

impl fmt::Display for Variant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// One write within a transaction.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Write {
    /// Print the rules of a chain with their counters, before other steps change it.
    List(String),
    /// Create a fixed chain if it is missing, and empty it.
    Declare(&'static str),
    /// Create a service port's chain if it is missing, and empty it.
    DeclareOwn(ChainName),
    /// Create all missing chains of a service port, and empty all of them.
    DeclareAll(Rc<Outline>),
    /// Lines, each `-A`, `-I` or `-D`.
    Lines(String),
    /// All lines of a service port in the shared chains of a table.
    Dispatch(Rc<Outline>, Table),
    /// The rules of some of a service port's own chains, rendered when they are written.
    Own(BTreeSet<ChainName>),
    /// The rules of all of a service port's own chains.
    OwnAll(Rc<Outline>),
    /// Delete a chain.
    Delete(ChainName),
}

/// A write and the service port that it belongs to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PlanStep {
    /// The write.
    pub write: Write,
    /// The service port, or `None` for shared rules.
    pub owner: Option<ServicePortName>,
}

/// Writes that take effect together, in one COMMIT.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Transaction {
    /// The table.
    pub table: Table,
    /// The writes. Lists and declarations come first.
    pub steps: Vec<PlanStep>,
}

/// Transactions in their order.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Plan {
    /// The transactions.
    pub transactions: Vec<Transaction>,
}

/// The size of a plan.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Extent {
    /// Chains written or created.
    pub chains: usize,
    /// Chains deleted.
    pub deleted: usize,
    /// Lines added to or deleted from shared chains one by one.
    pub edits: usize,
    /// Transactions.
    pub transactions: usize,
}

impl AddAssign for Extent {
    fn add_assign(&mut self, other: Self) {
        self.chains += other.chains;
        self.deleted += other.deleted;
        self.edits += other.edits;
        self.transactions += other.transactions;
    }
}

impl Plan {
    /// Returns true if there is nothing to write.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.transactions.is_empty()
    }

    /// Counts the writes.
    #[must_use]
    pub fn extent(&self) -> Extent {
        let mut extent = Extent { transactions: self.transactions.len(), ..Extent::default() };
        for step in self.transactions.iter().flat_map(|transaction| &transaction.steps) {
            match &step.write {
                Write::Declare(_) | Write::DeclareOwn(_) => extent.chains += 1,
                Write::DeclareAll(outline) => extent.chains += outline.chains.len(),
                Write::Lines(lines) => extent.edits += lines.lines().filter(|line| !line.starts_with("-A ")).count(),
                // A chain is declared before it is deleted. The declaration does not count as a write.
                Write::Delete(_) => {
                    extent.chains -= 1;
                    extent.deleted += 1;
                }
                Write::List(_) | Write::Dispatch(..) | Write::Own(_) | Write::OwnAll(_) => {}
            }
        }
        extent
    }

    /// Returns the chains that the plan writes and those that it deletes, each with its table.
    #[must_use]
    pub fn chains(&self) -> (BTreeSet<String>, BTreeSet<String>) {
        let (mut written, mut deleted) = (BTreeSet::new(), BTreeSet::new());
        for Transaction { table, steps } in &self.transactions {
            for step in steps {
                match &step.write {
                    Write::Declare(name) => drop(written.insert(format!("{table} {name}"))),
                    Write::DeclareOwn(name) => drop(written.insert(format!("{table} {name}"))),
                    Write::DeclareAll(outline) => written.extend(outline.chains.iter().map(|(name, _)| format!("{table} {name}"))),
                    Write::Lines(lines) => {
                        let chains = lines.lines().filter_map(|line| line.split(' ').nth(1));
                        written.extend(chains.map(|name| format!("{table} {name}")));
                    }
                    Write::Dispatch(outline, table) => {
                        let chains = outline.dispatch(*table).lines().filter_map(|line| line.split(' ').nth(1));
                        written.extend(chains.map(|name| format!("{table} {name}")));
                    }
                    Write::Delete(name) => drop(deleted.insert(format!("{table} {name}"))),
                    Write::List(_) | Write::Own(_) | Write::OwnAll(_) => {}
                }
            }
        }
        // A chain is declared before it is deleted.
        written.retain(|name| !deleted.contains(name));
        (written, deleted)
    }

    /// Counts the rules that the plan adds to our chains.
    #[must_use]
    pub fn rules(&self, renderer: &dyn RuleSource) -> RuleCounts {
        let mut counts = RuleCounts::default();
        for transaction in &self.transactions {
            for step in &transaction.steps {
                let count = match &step.write {
                    Write::Lines(text) => {
                        let ours = ["-A KUBE-", "-I KUBE-", "-A FLANNEL-"];
                        text.lines().filter(|line| ours.iter().any(|start| line.starts_with(start))).count()
                    }
                    Write::Dispatch(outline, table) => lines(outline.dispatch(*table)),
                    Write::OwnAll(outline) => outline.rules as usize,
                    Write::Own(_) => lines(&step.text(renderer)),
                    Write::List(_) | Write::Declare(_) | Write::DeclareOwn(_) | Write::DeclareAll(_) | Write::Delete(_) => 0,
                };
                counts.add(transaction.table, count);
            }
        }
        counts
    }

    /// Returns the input of iptables-restore in pieces, each with its service port.
    pub fn texts<'a>(&'a self, renderer: &'a dyn RuleSource) -> impl Iterator<Item = (Cow<'a, str>, Option<&'a ServicePortName>)> {
        self.transactions.iter().flat_map(move |transaction| {
            let start = (format!("*{}\n", transaction.table).into(), None);
            let steps = transaction.steps.iter().map(move |step| (step.text(renderer), step.owner.as_ref()));
            std::iter::once(start).chain(steps).chain([("COMMIT\n".into(), None)])
        })
    }

    /// Returns the input of iptables-restore as one text.
    #[must_use]
    pub fn text(&self, renderer: &dyn RuleSource) -> String {
        self.texts(renderer).map(|(text, _)| text).collect()
    }

    /// Returns one line of the input, counted from 1, and the service port that it belongs to.
    #[must_use]
    pub fn line(&self, number: usize, renderer: &dyn RuleSource) -> Option<(String, Option<ServicePortName>)> {
        let mut before = 0;
        for (text, owner) in self.texts(renderer) {
            let count = lines(&text);
            if number > before && number <= before + count {
                return text.lines().nth(number - before - 1).map(|line| (line.to_owned(), owner.cloned()));
            }
            before += count;
        }
        None
    }
}

impl PlanStep {
    /// A write of shared rules.
    pub(super) const fn shared(write: Write) -> Self {
        Self { write, owner: None }
    }

    /// A write of the rules of one service port.
    pub(super) fn owned(name: &ServicePortName, write: Write) -> Self {
        Self { write, owner: Some(name.clone()) }
    }

    /// The number of lines in shared chains that this step writes.
    pub(super) fn dispatch_lines(&self) -> usize {
        match &self.write {
            Write::Lines(text) => lines(text),
            Write::Dispatch(outline, table) => lines(outline.dispatch(*table)),
            _ => 0,
        }
    }

    fn text<'a>(&'a self, renderer: &dyn RuleSource) -> Cow<'a, str> {
        match &self.write {
            Write::List(chain) => format!("-v -S {chain}\n").into(),
            Write::Declare(chain) => format!(":{chain} - [0:0]\n").into(),
            Write::DeclareOwn(chain) => format!(":{chain} - [0:0]\n").into(),
            Write::DeclareAll(outline) => {
                outline.chains.iter().flat_map(|(chain, _)| [":", chain.as_str(), " - [0:0]\n"]).collect::<String>().into()
            }
            Write::Lines(lines) => lines.into(),
            Write::Dispatch(outline, table) => outline.dispatch(*table).into(),
            Write::Own(chains) => self.own(renderer, |chain| chains.contains(chain)),
            Write::OwnAll(_) => self.own(renderer, |_| true),
            Write::Delete(chain) => format!("-X {chain}\n").into(),
        }
    }

    /// Renders the rules of the owner's chains that `is_included` selects.
    fn own(&self, renderer: &dyn RuleSource, is_included: impl Fn(&ChainName) -> bool) -> Cow<'static, str> {
        let Some(rules) = self.owner.as_ref().and_then(|owner| renderer.service_port(owner)) else { return Cow::default() };
        rules.chains().filter(|(chain, _)| is_included(chain)).map(|(_, rules)| rules).collect::<String>().into()
    }
}
