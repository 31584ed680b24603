//! The desired rules of one IP family as text, and where a plan gets them from. PURE.

use super::chain_names::{self, ChainName};
use super::jumps::{Jump, Table};
use crate::cluster::{ServiceKey, ServicePortName};

/// A chain and its rules, as lines of iptables-restore input.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ChainRules {
    /// Name of the chain.
    pub name: &'static str,
    /// Its rules in order, each an `-A` line with its newline.
    pub rules: String,
}

/// The rules of one service port: chains of its own, and its lines in the chains all service ports share. Every rule is an `-A` line
/// with its newline.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServicePortRules {
    /// Whose rules these are.
    pub name: ServicePortName,
    /// Traffic that is dropped for want of an endpoint on this node.
    pub without_local: WithoutLocal,
    /// Everything in one text: its chains' rules, its lines in shared chains of `nat`, then those of `filter`.
    text: String,
    /// Its own chains, each with the end of its rules in the text.
    chains: Vec<(ChainName, usize)>,
    /// The end of its lines in shared chains of `nat`.
    nat_dispatch: usize,
}

impl ServicePortRules {
    /// Rules from one text: first those of its chains, each of which ends at the offset beside its name, then its lines in shared chains
    /// of `nat` up to `nat_dispatch`, then those of `filter`.
    #[must_use]
    pub const fn new(
        name: ServicePortName,
        without_local: WithoutLocal,
        text: String,
        chains: Vec<(ChainName, usize)>,
        nat_dispatch: usize,
    ) -> Self {
        Self { name, without_local, text, chains, nat_dispatch }
    }

    /// Its own chains in `nat`, each with its rules. They jump to each other and to fixed chains only.
    #[must_use]
    pub fn chains(&self) -> impl ExactSizeIterator<Item = (&ChainName, &str)> {
        self.chains.iter().enumerate().map(|(i, (name, end))| {
            let start = i.checked_sub(1).map_or(0, |before| self.chains[before].1);
            (name, &self.text[start..*end])
        })
    }

    /// Its lines in `nat`'s KUBE-SERVICES and KUBE-NODEPORTS.
    #[must_use]
    pub fn nat_dispatch(&self) -> &str {
        &self.text[self.chains.last().map_or(0, |(_, end)| *end)..self.nat_dispatch]
    }

    /// Its lines in `filter`'s shared chains.
    #[must_use]
    pub fn filter_dispatch(&self) -> &str {
        &self.text[self.nat_dispatch..]
    }
}

/// The chains that do not belong to a service port, with the rules in them that don't either.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Fixed {
    /// In `filter`.
    pub filter: Vec<ChainRules>,
    /// In `nat`; these rules come before any service port's.
    pub nat: Vec<ChainRules>,
    /// The end of KUBE-SERVICES in `nat`: on to the NodePorts. Has to stay last in its chain.
    pub nat_tail: String,
    /// Chains of ours that should do nothing: where they are, nothing leads to them and they are empty.
    pub unwanted: Vec<(Table, &'static str)>,
}

impl Fixed {
    /// The chains of one table.
    #[must_use]
    pub fn chains(&self, table: Table) -> &[ChainRules] {
        match table {
            Table::Filter => &self.filter,
            Table::Nat => &self.nat,
        }
    }

    /// Whether a chain should be there.
    #[must_use]
    pub fn has(&self, table: Table, chain: &str) -> bool {
        self.chains(table).iter().any(|fixed| fixed.name == chain)
    }

    /// Whether the service proxy's chains are among them; if not, those that are there are somebody else's.
    #[must_use]
    pub fn has_proxy(&self) -> bool {
        self.has(Table::Nat, chain_names::SERVICES)
    }

    /// Whether a jump should be there.
    #[must_use]
    pub fn has_jump(&self, jump: &Jump) -> bool {
        jump.is_desired(|table, chain| self.has(table, chain))
    }

    /// Whether a jump should not be there.
    #[must_use]
    pub fn removes_jump(&self, jump: &Jump) -> bool {
        self.unwanted.contains(&(jump.table, jump.to))
    }
}

/// Kinds of traffic for which a service port has endpoints, but none on this node where its policy is Local: they are dropped.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct WithoutLocal {
    /// `internalTrafficPolicy: Local`.
    pub internal: bool,
    /// `externalTrafficPolicy: Local`, also where nothing outside reaches the service port (spec section 12.21).
    pub external: bool,
}

/// How many lines a text has whose every line ends.
#[must_use]
pub fn lines(text: &str) -> usize {
    text.bytes().filter(|byte| *byte == b'\n').count()
}

/// Where a plan gets the desired rules of one family. The service proxy's renderer computes them from the cluster.
pub trait RuleSource: Sync {
    /// The chains that do not belong to a service port.
    fn fixed(&self) -> Fixed;

    /// The Services that have rules, sorted.
    fn services(&self) -> Vec<ServiceKey>;

    /// How many endpoints the ports of a Service have together.
    fn endpoints(&self, key: &ServiceKey) -> usize;

    /// The rules of a Service's ports, sorted by port name then protocol.
    fn service(&self, key: &ServiceKey) -> Vec<ServicePortRules>;

    /// The rules of one service port; `None` if it has none.
    fn service_port(&self, name: &ServicePortName) -> Option<ServicePortRules>;
}
