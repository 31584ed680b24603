//! What iptables-save prints, read line by line into what matters of it: digests of our chains, which of the desired lines are there,
//! and what is there and should not be. Its text is never held as a whole.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use super::chain_names::{self, ChainName};
use super::jumps::{JUMPS, Jump};
use super::rules::Fixed;

use super::Table;
use super::outline::Outlines;
use super::rule::Digest;

/// The chains that all service ports share. The order of service ports in them means nothing, that of one service port's own lines
/// does; and the end of `nat`'s KUBE-SERVICES is fixed.
pub const SHARED: [(Table, &str); 6] = [
    (Table::Filter, chain_names::SERVICES),
    (Table::Filter, chain_names::EXTERNAL_SERVICES),
    (Table::Filter, chain_names::NODEPORTS),
    (Table::Filter, chain_names::PROXY_FIREWALL),
    (Table::Nat, chain_names::SERVICES),
    (Table::Nat, chain_names::NODEPORTS),
];

/// The chains with fixed rules only.
const FIXED: [(Table, &str); 6] = [
    (Table::Filter, chain_names::FORWARD),
    (Table::Filter, chain_names::FIREWALL),
    (Table::Filter, chain_names::FLANNEL_FORWARD),
    (Table::Nat, chain_names::POSTROUTING),
    (Table::Nat, chain_names::MARK_MASQ),
    (Table::Nat, chain_names::FLANNEL_POSTROUTING),
];

/// A fixed chain: its table and its name.
pub type FixedChain = (Table, &'static str);

/// The live tables of one family, as far as they matter.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LiveTables {
    /// Chains that belong, or belonged, to service ports.
    pub chains: HashMap<ChainName, Digest>,
    /// Fixed chains that are there, each with the digest of its fixed rules. A shared chain whose fixed rules are not at its end is
    /// left out: it has to be written anew.
    pub fixed: BTreeMap<FixedChain, Digest>,
    /// Desired lines, with where each was found.
    pub lines: HashMap<(Table, Digest), LinePlaces>,
    /// Lines in shared chains that are not desired: `-A` lines in their table.
    pub unknown_lines: Vec<(Table, String)>,
    /// How often each jump is there, in the order of [`JUMPS`].
    pub jumps: [usize; JUMPS.len()],
}

/// Where a desired line was found in a text.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LinePlaces {
    /// How many times it is desired and not yet somebody's.
    wanted: u32,
    /// Where it was found, counted in lines, and not yet somebody's.
    at: Vec<u32>,
}

impl LiveTables {
    /// Takes away the places of a desired line for one service port: one place if others want the same line, too, else all there are.
    /// Of a line that is there too often all places are its owner's: which of them is deleted matters for the order.
    pub fn take(&mut self, table: Table, line: Digest) -> Vec<u32> {
        let Some(places) = self.lines.get_mut(&(table, line)) else { return Vec::new() };
        if places.wanted > 1 && !places.at.is_empty() {
            places.wanted -= 1;
            return vec![places.at.remove(0)];
        }
        std::mem::take(&mut places.at)
    }
}

/// Reads the output of iptables-save.
#[derive(Debug)]
pub struct LiveReader {
    live: LiveTables,
    /// Lines read so far.
    read: u32,
    table: Option<Table>,
    /// Service ports' chains and lines are ours.
    proxy: bool,
    /// The service port's chain that is being read, and its digest so far: iptables-save prints a chain's rules one after the other.
    current: Option<(ChainName, Digest)>,
    /// Fixed rules in shared chains: the way on to the NodePorts.
    tail: BTreeSet<Digest>,
    /// Shared chains in which something follows the fixed rules.
    out_of_order: BTreeSet<FixedChain>,
    jumps: [Digest; JUMPS.len()],
}

impl LiveReader {
    /// A reader that knows what is desired.
    #[must_use]
    pub fn new(services: &Outlines, fixed: &Fixed) -> Self {
        let mut live = LiveTables::default();
        for outline in services.values() {
            for table in Table::ALL {
                for line in outline.dispatch(table).lines() {
                    live.lines.entry((table, Digest::of_line(line))).or_default().wanted += 1;
                }
            }
        }
        Self {
            live,
            read: 0,
            table: None,
            proxy: fixed.has_proxy(),
            current: None,
            tail: fixed.nat_tail.lines().map(Digest::of_line).collect(),
            out_of_order: BTreeSet::new(),
            jumps: JUMPS.map(|jump| Digest::of_rule(&jump.arguments())),
        }
    }

    /// Takes one line. Other tables than ours and lines that are none of `*table`, `:chain`, `-A` are passed over: iptables prints
    /// warnings among its output.
    pub fn line(&mut self, line: &str) {
        self.read += 1;
        if let Some(name) = line.strip_prefix('*') {
            self.table = Table::ALL.into_iter().find(|table| table.as_str() == name.trim_end());
        } else if line == "COMMIT" {
            self.table = None;
        } else if let Some(table) = self.table {
            if let Some(chain) = line.strip_prefix(':') {
                self.chain(table, chain.split(' ').next().unwrap_or_default());
            } else if line.starts_with("-A ") {
                self.rule(table, line);
            }
        }
    }

    fn chain(&mut self, table: Table, name: &str) {
        if let Some(fixed) = fixed_chain(table, name) {
            self.live.fixed.insert(fixed, Digest::default());
        } else if let Some(name) = ChainName::from_text(name).filter(|_| table == Table::Nat && self.proxy) {
            self.live.chains.insert(name, Digest::default());
        }
    }

    fn rule(&mut self, table: Table, line: &str) {
        let (chain, arguments) = super::rule::split_line(line);
        if table == Table::Nat && self.proxy {
            if let Some((_, digest)) = self.current.as_mut().filter(|(name, _)| name.as_str() == chain) {
                *digest = digest.then(Digest::of_rule(arguments));
                return;
            }
            if let Some(name) = ChainName::from_text(chain) {
                self.put_back();
                let digest = self.live.chains.get(&name).copied().unwrap_or_default();
                self.current = Some((name, digest.then(Digest::of_rule(arguments))));
                return;
            }
        }
        if let Some(shared) = SHARED.into_iter().find(|shared| *shared == (table, chain) && self.proxy) {
            self.shared_rule(shared, line);
        } else if let Some(digest) = fixed_chain(table, chain).and_then(|fixed| self.live.fixed.get_mut(&fixed)) {
            *digest = digest.then(Digest::of_rule(arguments));
        } else if JUMPS.iter().any(|jump| jump.table == table && jump.from == chain && arguments.ends_with(jump.to)) {
            let digest = Digest::of_rule(arguments);
            for (i, jump) in JUMPS.iter().enumerate() {
                let found = jump.table == table && jump.from == chain && self.jumps[i] == digest;
                self.live.jumps[i] += usize::from(found);
            }
        }
    }

    /// Notes the digest of the chain that was being read.
    fn put_back(&mut self) {
        self.live.chains.extend(self.current.take());
    }

    fn shared_rule(&mut self, shared: FixedChain, line: &str) {
        let digest = Digest::of_line(line);
        if shared == (Table::Nat, chain_names::SERVICES) && self.tail.contains(&digest) {
            let rule = Digest::of_rule(super::rule::split_line(line).1);
            self.live.fixed.entry(shared).and_modify(|fixed| *fixed = fixed.then(rule));
            return;
        }
        if self.live.fixed.get(&shared).is_some_and(|fixed| *fixed != Digest::default()) {
            self.out_of_order.insert(shared);
        }
        match self.live.lines.get_mut(&(shared.0, digest)) {
            Some(places) => places.at.push(self.read),
            None => self.live.unknown_lines.push((shared.0, line.to_owned())),
        }
    }

    /// What was read.
    #[must_use]
    pub fn finish(mut self) -> LiveTables {
        self.put_back();
        for shared in self.out_of_order {
            self.live.fixed.remove(&shared);
        }
        self.live
    }
}

fn fixed_chain(table: Table, name: &str) -> Option<FixedChain> {
    SHARED.into_iter().chain(FIXED).find(|fixed| *fixed == (table, name))
}

/// The jumps into our chains that a table should have, each with its place in [`JUMPS`].
pub fn jumps_of(table: Table) -> impl Iterator<Item = (usize, &'static Jump)> {
    JUMPS.iter().enumerate().filter(move |(_, jump)| jump.table == table)
}
