//! Reads the output of iptables-save line by line into digests of our chains, the places of desired lines, and unknown lines. The text is
//! never stored as a whole.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use super::chain_names::{self, ChainName};
use super::jumps::{JUMPS, Jump};
use super::rules::Fixed;

use super::Table;
use super::outline::Outlines;
use super::rule::Digest;

/// The chains that all service ports share. The order of service ports does not matter, the order of the lines of one service port does.
/// The end of KUBE-SERVICES in `nat` is fixed.
pub(crate) const SHARED: [(Table, &str); 6] = [
    (Table::Filter, chain_names::SERVICES),
    (Table::Filter, chain_names::EXTERNAL_SERVICES),
    (Table::Filter, chain_names::NODEPORTS),
    (Table::Filter, chain_names::PROXY_FIREWALL),
    (Table::Nat, chain_names::SERVICES),
    (Table::Nat, chain_names::NODEPORTS),
];

/// The chains that only have fixed rules.
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

/// The live tables of one family, reduced to what the plan needs.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LiveTables {
    /// Chains that belong, or belonged, to service ports.
    pub chains: HashMap<ChainName, Digest>,
    /// Existing fixed chains, each with the digest of its fixed rules. A shared chain whose fixed rules are not at its end is missing here,
    /// so that the plan writes it again.
    pub fixed: BTreeMap<FixedChain, Digest>,
    /// The places of each desired line.
    pub lines: HashMap<(Table, Digest), LinePlaces>,
    /// Lines in shared chains that are not desired, each an `-A` line with its table.
    pub unknown_lines: Vec<(Table, String)>,
    /// How many copies of each jump exist, in the order of [`JUMPS`].
    pub jumps: [usize; JUMPS.len()],
}

/// The places of a desired line in the output of iptables-save. Several service ports can desire the same line.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LinePlaces {
    /// The number of service ports that desire the line and have not taken a place yet.
    desired: u32,
    /// The line numbers of the places that no service port has taken yet.
    at: Vec<u32>,
}

impl LiveTables {
    /// Removes and returns the places of a desired line for one service port: one place if other service ports desire the same line, else
    /// all places. A duplicated line belongs to its owner with all its places, because the order depends on which copy is deleted.
    pub fn take(&mut self, table: Table, line: Digest) -> Vec<u32> {
        let Some(places) = self.lines.get_mut(&(table, line)) else { return Vec::new() };
        if places.desired > 1 && !places.at.is_empty() {
            places.desired -= 1;
            return vec![places.at.remove(0)];
        }
        std::mem::take(&mut places.at)
    }
}

/// Reads the output of iptables-save.
#[derive(Debug)]
pub struct LiveReader {
    live: LiveTables,
    /// The number of lines read so far.
    read: u32,
    table: Option<Table>,
    /// The service proxy is on, so the chains and lines of service ports are ours.
    proxy: bool,
    /// The service port's chain that is being read and its digest so far. iptables-save prints the rules of a chain one after the other.
    current: Option<(ChainName, Digest)>,
    /// The fixed rules at the end of KUBE-SERVICES that jump to KUBE-NODEPORTS.
    tail: BTreeSet<Digest>,
    /// Shared chains in which other lines follow the fixed rules.
    out_of_order: BTreeSet<FixedChain>,
    jumps: [Digest; JUMPS.len()],
}

impl LiveReader {
    /// Creates a reader that recognizes the lines of these service ports and these fixed rules.
    #[must_use]
    pub fn new(services: &Outlines, fixed: &Fixed) -> Self {
        let mut live = LiveTables::default();
        for outline in services.values() {
            for table in Table::ALL {
                for line in outline.dispatch(table).lines() {
                    live.lines.entry((table, Digest::of_line(line))).or_default().desired += 1;
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

    /// Reads one line. Skips other tables, and lines other than `*table`, `:chain` and `-A`, because iptables also prints warnings.
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
                self.store_current();
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

    /// Stores the digest of the chain that was read last.
    fn store_current(&mut self) {
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

    /// Ends the reading and returns the tables.
    #[must_use]
    pub fn finish(mut self) -> LiveTables {
        self.store_current();
        for shared in self.out_of_order {
            self.live.fixed.remove(&shared);
        }
        self.live
    }
}

fn fixed_chain(table: Table, name: &str) -> Option<FixedChain> {
    SHARED.into_iter().chain(FIXED).find(|fixed| *fixed == (table, name))
}

/// Returns the jumps of a table, each with its index in [`JUMPS`].
pub(crate) fn jumps_of(table: Table) -> impl Iterator<Item = (usize, &'static Jump)> {
    JUMPS.iter().enumerate().filter(move |(_, jump)| jump.table == table)
}
