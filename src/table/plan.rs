//! From rules to writes: which transactions iptables-restore gets, in which order. The seam for anything cleverer than a full sync.
//!
//! On legacy iptables every COMMIT swaps the whole table, so there is one per table. iptables-nft needs time quadratic in the chains
//! of a COMMIT, so there the service ports' own chains go first, in groups; nothing reaches new chains yet. Then the shared
//! dispatch chains, whose COMMIT is the atomic switch, and last the chains that nothing needs any more (design.md, Writing).

use std::fmt;

use crate::cluster::ServicePortName;
use crate::rules::names::{self, ChainKind};
use crate::rules::{RuleSet, ServicePortRules};

use super::Table;
use super::parse::Tables;

/// Which iptables is written with: they take the same text but want it cut differently.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Variant {
    /// iptables on `nf_tables`.
    Nft,
    /// iptables on its own kernel interface.
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
}

impl fmt::Display for Variant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// On nft, a transaction is closed once it mentions this many service port chains. A COMMIT costs some 5-10 ms whatever it
/// holds, and chains cost quadratically; this is where the sum is smallest, and it is flat around there.
const CHAINS_PER_TRANSACTION: usize = 512;

/// One write within a transaction.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Write<'a> {
    /// Create the chain if it is not there, and empty it.
    Declare(&'a str),
    /// Add rules: whole lines, `-A` or `-I`.
    Rules(std::borrow::Cow<'a, str>),
    /// Delete the chain.
    Delete(&'a str),
}

/// A write, and the service port it is for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Step<'a> {
    /// What is written.
    pub write: Write<'a>,
    /// For whom; `None` for what all share.
    pub owner: Option<&'a ServicePortName>,
}

/// Writes that take effect together.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Transaction<'a> {
    /// The table.
    pub table: Table,
    /// The writes: declarations first.
    pub steps: Vec<Step<'a>>,
}

/// Transactions in the order they are to be made.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Plan<'a> {
    /// The transactions.
    pub transactions: Vec<Transaction<'a>>,
}

impl<'a> Plan<'a> {
    /// Plans a full sync: everything is written, whatever is there.
    ///
    /// `live` is what the kernel holds now, for what has to go and for jumps that are missing; without it only the rules
    /// themselves are planned.
    #[must_use]
    pub fn full(rules: &'a RuleSet, live: Option<&'a Tables<'a>>, variant: Variant) -> Self {
        let stale = live.map(|live| stale_chains(rules, live)).unwrap_or_default();
        let filter = filter(rules, live);
        let transactions = match variant {
            Variant::Legacy => vec![filter, whole_nat(rules, live, &stale)],
            Variant::Nft => {
                let mut all = service_groups(rules);
                all.extend([filter, nat_dispatch(rules, live)]);
                all.extend(stale.chunks(CHAINS_PER_TRANSACTION).map(deletion));
                all
            }
        };
        Self { transactions }
    }

    /// The input for iptables-restore, in fragments, each with the service port it is for.
    pub fn fragments(&self) -> impl Iterator<Item = (&str, Option<&'a ServicePortName>)> {
        self.transactions.iter().flat_map(|transaction| {
            let header = [("*", None), (transaction.table.as_str(), None), ("\n", None)];
            let steps = transaction.steps.iter().flat_map(|step| step.write.parts().map(|part| (part, step.owner)));
            header.into_iter().chain(steps).chain([("COMMIT\n", None)])
        })
    }

    /// The input for iptables-restore as one text.
    #[must_use]
    pub fn text(&self) -> String {
        self.fragments().map(|(text, _)| text).collect()
    }

    /// A line of the input, counted from 1, and the service port it is for.
    #[must_use]
    pub fn line(&self, number: usize) -> Option<(String, Option<&'a ServicePortName>)> {
        let mut line = String::new();
        let mut owner = None;
        let mut current = 1;
        for (text, of) in self.fragments() {
            for part in text.split_inclusive('\n') {
                if current == number {
                    line.push_str(part.trim_end_matches('\n'));
                    owner = owner.or(of);
                }
                current += usize::from(part.ends_with('\n'));
            }
            if current > number {
                return Some((line, owner));
            }
        }
        None
    }
}

impl Write<'_> {
    fn parts(&self) -> [&str; 3] {
        match self {
            Self::Declare(chain) => [":", chain, " - [0:0]\n"],
            Self::Rules(text) => [text, "", ""],
            Self::Delete(chain) => ["-X ", chain, "\n"],
        }
    }
}

fn shared(write: Write<'_>) -> Step<'_> {
    Step { write, owner: None }
}

fn declare(chain: &str) -> Step<'_> {
    shared(Write::Declare(chain))
}

fn shared_rules(rules: &str) -> Step<'_> {
    shared(Write::Rules(rules.into()))
}

fn owned_rules<'a>(service: &'a ServicePortRules, rules: &'a str) -> Step<'a> {
    Step { write: Write::Rules(rules.into()), owner: Some(&service.name) }
}

fn own_declarations(service: &ServicePortRules) -> impl Iterator<Item = Step<'_>> {
    service.chains().map(|(chain, _)| Step { write: Write::Declare(chain.as_str()), owner: Some(&service.name) })
}

fn own_rules(service: &ServicePortRules) -> impl Iterator<Item = Step<'_>> {
    service.chains().map(|(_, rules)| owned_rules(service, rules))
}

fn nat_dispatch_rules(rules: &RuleSet) -> impl Iterator<Item = Step<'_>> {
    rules.services.iter().map(|service| owned_rules(service, service.nat_dispatch()))
}

fn filter<'a>(rules: &'a RuleSet, live: Option<&Tables<'_>>) -> Transaction<'a> {
    let mut steps: Vec<Step<'a>> = rules.filter_fixed.iter().map(|chain| declare(chain.name)).collect();
    let exists = |chain| live.is_none_or(|live| live.chains(Table::Filter).contains_key(chain));
    // Where we have no rule for it, KUBE-FIREWALL is only there to be jumped to; declaring it would empty it.
    if !rules.filter_fixed.iter().any(|chain| chain.name == names::FIREWALL) && !exists(names::FIREWALL) {
        steps.push(declare(names::FIREWALL));
    }
    steps.extend(rules.filter_fixed.iter().map(|chain| shared_rules(&chain.rules)));
    steps.extend(rules.services.iter().map(|service| owned_rules(service, service.filter_dispatch())));
    steps.extend(missing_jumps(Table::Filter, live));
    Transaction { table: Table::Filter, steps }
}

fn whole_nat<'a>(rules: &'a RuleSet, live: Option<&Tables<'_>>, stale: &[&'a str]) -> Transaction<'a> {
    let mut steps: Vec<Step<'a>> = rules.nat_fixed.iter().map(|chain| declare(chain.name)).collect();
    steps.extend(rules.services.iter().flat_map(own_declarations));
    steps.extend(stale.iter().map(|chain| declare(chain)));
    steps.extend(rules.nat_fixed.iter().map(|chain| shared_rules(&chain.rules)));
    for service in &rules.services {
        steps.push(owned_rules(service, service.nat_dispatch()));
        steps.extend(own_rules(service));
    }
    steps.extend(stale.iter().map(|chain| shared(Write::Delete(chain))));
    steps.push(shared_rules(&rules.nat_tail));
    steps.extend(missing_jumps(Table::Nat, live));
    Transaction { table: Table::Nat, steps }
}

/// The chains that service ports have to themselves, in groups of whole service ports; before them, in the first group, those of
/// the fixed chains that hold fixed rules only, because they are jumped to.
fn service_groups(rules: &RuleSet) -> Vec<Transaction<'_>> {
    let mut groups = Vec::new();
    let (mut declarations, mut contents) = (Vec::new(), Vec::new());
    for chain in rules.nat_fixed.iter().filter(|chain| !chain.rules.is_empty()) {
        declarations.push(declare(chain.name));
        contents.push(shared_rules(&chain.rules));
    }
    for service in &rules.services {
        declarations.extend(own_declarations(service));
        contents.extend(own_rules(service));
        if declarations.len() >= CHAINS_PER_TRANSACTION {
            declarations.append(&mut contents);
            groups.push(Transaction { table: Table::Nat, steps: std::mem::take(&mut declarations) });
        }
    }
    if !declarations.is_empty() {
        declarations.append(&mut contents);
        groups.push(Transaction { table: Table::Nat, steps: declarations });
    }
    groups
}

fn nat_dispatch<'a>(rules: &'a RuleSet, live: Option<&Tables<'_>>) -> Transaction<'a> {
    let mut steps: Vec<Step<'a>> = rules.nat_fixed.iter().filter(|chain| chain.rules.is_empty()).map(|chain| declare(chain.name)).collect();
    steps.extend(nat_dispatch_rules(rules));
    steps.push(shared_rules(&rules.nat_tail));
    steps.extend(missing_jumps(Table::Nat, live));
    Transaction { table: Table::Nat, steps }
}

fn deletion<'a>(stale: &[&'a str]) -> Transaction<'a> {
    let steps = stale.iter().map(|chain| declare(chain)).chain(stale.iter().map(|chain| shared(Write::Delete(chain)))).collect();
    Transaction { table: Table::Nat, steps }
}

/// Chains of service ports that are live but not desired: those that jump before those they jump to.
fn stale_chains<'a>(rules: &RuleSet, live: &Tables<'a>) -> Vec<&'a str> {
    let desired: std::collections::HashSet<&str> =
        rules.services.iter().flat_map(ServicePortRules::chains).map(|(chain, _)| chain.as_str()).collect();
    let unknown = live.chains(Table::Nat).keys().copied().filter(|chain| !desired.contains(chain));
    let mut stale: Vec<(ChainKind, &str)> = unknown.filter_map(|chain| Some((ChainKind::of(chain)?, chain))).collect();
    stale.sort_unstable();
    stale.into_iter().map(|(_, chain)| chain).collect()
}

/// Lines that put each jump that is missing from a table at the top of its chain.
fn missing_jumps<'a>(table: Table, live: Option<&Tables<'_>>) -> Option<Step<'a>> {
    let missing = live?.missing_jumps(table);
    let lines = missing.map(|jump| format!("-I {} {}\n", jump.from, jump.arguments())).collect::<Vec<_>>().concat();
    (!lines.is_empty()).then(|| shared(Write::Rules(lines.into())))
}
