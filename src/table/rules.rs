//! The desired rules of one IP family as text, and [`RuleSource`], from which a plan gets them. PURE.

use super::chain_names::{self, ChainName};
use super::jumps::{Jump, Table};
use crate::cluster::{ServiceKey, ServicePortName};

/// A fixed chain and its rules, as lines of iptables-restore input.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ChainRules {
    /// The name of the chain.
    pub name: &'static str,
    /// Its rules in order, each an `-A` line with its newline.
    pub rules: String,
}

/// The rules of one service port: its own chains, and its lines in the chains that all service ports share. Every rule is an `-A` line
/// with its newline.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServicePortRules {
    /// The service port.
    pub name: ServicePortName,
    /// The traffic that is dropped because this node has no endpoint.
    pub without_local: WithoutLocal,
    /// All rules in one text: those of its own chains, then its lines in shared chains of `nat`, then those of `filter`.
    text: String,
    /// Its own chains, each with the offset in the text where its rules end.
    chains: Vec<(ChainName, usize)>,
    /// The offset where its lines in shared chains of `nat` end.
    nat_dispatch: usize,
}

impl ServicePortRules {
    /// Creates the rules of a service port from one text with all rules. `chains` has the offset where the rules of each own chain end.
    /// `nat_dispatch` is the offset where the lines in shared chains of `nat` end.
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

    /// Its own chains in `nat`, each with its rules. They only jump to each other and to fixed chains.
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

    /// Its lines in the shared chains of `filter`.
    #[must_use]
    pub fn filter_dispatch(&self) -> &str {
        &self.text[self.nat_dispatch..]
    }
}

/// The chains and rules that belong to no service port.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Fixed {
    /// In `filter`.
    pub filter: Vec<ChainRules>,
    /// In `nat`. These rules come before those of service ports.
    pub nat: Vec<ChainRules>,
    /// The rules at the end of KUBE-SERVICES in `nat`, which jump to KUBE-NODEPORTS.
    pub nat_tail: String,
    /// Chains of sepal that the settings turn off. If they exist, they are emptied and the jumps to them are deleted.
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

    /// Returns true if the chain is desired.
    #[must_use]
    pub fn has(&self, table: Table, chain: &str) -> bool {
        self.chains(table).iter().any(|fixed| fixed.name == chain)
    }

    /// Returns true if the service proxy's chains are desired. If not, existing ones belong to another program.
    #[must_use]
    pub(crate) fn has_proxy(&self) -> bool {
        self.has(Table::Nat, chain_names::SERVICES)
    }

    /// Returns true if the jump is desired.
    #[must_use]
    pub fn has_jump(&self, jump: &Jump) -> bool {
        jump.is_desired(|table, chain| self.has(table, chain))
    }

    /// Returns true if the jump must not exist.
    #[must_use]
    pub(crate) fn removes_jump(&self, jump: &Jump) -> bool {
        self.unwanted.contains(&(jump.table, jump.to))
    }
}

/// The kinds of traffic that are dropped because their policy is Local and all endpoints are on other nodes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct WithoutLocal {
    /// `internalTrafficPolicy: Local`.
    pub internal: bool,
    /// `externalTrafficPolicy: Local`, also if the service port cannot be reached from outside [kube-proxy 12.21].
    pub external: bool,
}

/// Counts the lines of a text. Every line ends with a newline.
#[must_use]
pub fn lines(text: &str) -> usize {
    text.bytes().filter(|byte| *byte == b'\n').count()
}

/// The desired rules of one family. The service proxy's renderer computes them from the cluster.
pub trait RuleSource: Sync {
    /// The chains and rules that belong to no service port.
    fn fixed(&self) -> Fixed;

    /// The Services that have rules, sorted.
    fn services(&self) -> Vec<ServiceKey>;

    /// The number of endpoints of all ports of a Service.
    fn endpoints(&self, key: &ServiceKey) -> usize;

    /// The rules of a Service's ports, sorted by port name and protocol.
    fn service(&self, key: &ServiceKey) -> Vec<ServicePortRules>;

    /// The rules of one service port, or `None` if it has none.
    fn service_port(&self, name: &ServicePortName) -> Option<ServicePortRules>;
}
