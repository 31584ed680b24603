//! The rules this node should have: computed from a cluster snapshot as plain values, for one IP family at a time. PURE.
//!
//! [`compute`] is the whole of it. The layout is kube-proxy's to the byte within each chain (spec section 6); where kube-proxy's
//! order is random ours is fixed: service ports by name then protocol, addresses sorted. Same input, same bytes.

pub mod filter;
pub mod inputs;
pub mod jumps;
pub mod names;
pub mod nat;
pub mod pod_network;
pub mod policy;
pub mod render;
pub mod view;

use crate::cluster::{ServiceKey, ServicePort, ServicePortName, Snapshot, endpoints};
use crate::config::settings::HostFacts;
use crate::network::masquerade::PodRules;
use inputs::Inputs;
use jumps::{Jump, Table};
use names::ChainName;
use nat::ServicePortInput;
use policy::WithoutLocal;
use view::View;

pub use crate::cluster::Family;

/// Above this many endpoints of known service ports, per family, comments on endpoint rules are left out (spec section 6.7).
const LARGE_CLUSTER_ENDPOINTS: usize = 1000;

/// A chain and its rules, as lines of iptables-restore input.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Chain<N> {
    /// Name of the chain.
    pub name: N,
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
    pub filter: Vec<Chain<&'static str>>,
    /// In `nat`; these rules come before any service port's.
    pub nat: Vec<Chain<&'static str>>,
    /// The end of KUBE-SERVICES in `nat`: on to the NodePorts. Has to stay last in its chain.
    pub nat_tail: String,
    /// Chains of ours that should do nothing: where they are, nothing leads to them and they are empty.
    pub unwanted: Vec<(Table, &'static str)>,
}

impl Fixed {
    /// The chains of one table.
    #[must_use]
    pub fn chains(&self, table: Table) -> &[Chain<&'static str>] {
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
        self.has(Table::Nat, names::SERVICES)
    }

    /// Whether a jump should be there.
    #[must_use]
    pub fn wants(&self, jump: &Jump) -> bool {
        jump.is_wanted(|table, chain| self.has(table, chain))
    }

    /// Whether a jump should not be there.
    #[must_use]
    pub fn drops(&self, jump: &Jump) -> bool {
        self.unwanted.contains(&(jump.table, jump.to))
    }
}

/// Every rule of one IP family.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RuleSet {
    /// The family.
    pub family: Family,
    /// What does not belong to a service port.
    pub fixed: Fixed,
    /// Per service port, sorted by name then protocol.
    pub services: Vec<ServicePortRules>,
}

/// Computes all rules of one family.
#[must_use]
pub fn compute(inputs: &Inputs, host: &HostFacts, family: Family) -> RuleSet {
    let renderer = Renderer::new(inputs, host, family);
    let endpoints = renderer.services().map(|key| renderer.endpoints(key)).sum();
    let renderer = renderer.for_size(endpoints);
    let services = inputs.snapshot.services().flat_map(|(key, _)| renderer.service(key)).collect();
    RuleSet { family, fixed: renderer.fixed(), services }
}

/// Computes rules of one family piece by piece.
#[derive(Clone, Debug)]
pub struct Renderer<'a> {
    snapshot: &'a Snapshot,
    view: View<'a>,
    large: bool,
    /// The service proxy is on.
    proxy: bool,
    pod_rules: Option<&'a PodRules>,
    /// The "masquerade" mark.
    mark: u32,
}

impl<'a> Renderer<'a> {
    /// For a cluster whose size is not counted yet; small, until [`Self::for_size`] says otherwise.
    #[must_use]
    pub fn new(inputs: &'a Inputs, host: &HostFacts, family: Family) -> Self {
        let view = View::new(&inputs.settings, host, inputs.snapshot.node(), &inputs.node_name, family);
        let mark = 1_u32.checked_shl(inputs.settings.masquerade_bit.into()).unwrap_or_default();
        Self { snapshot: &inputs.snapshot, view, large: false, proxy: !inputs.without_proxy, pod_rules: inputs.pod_rules.as_ref(), mark }
    }

    /// For a cluster whose service ports have this many endpoints in all (see [`Self::endpoints`]).
    #[must_use]
    pub fn for_size(self, endpoints: usize) -> Self {
        Self { large: endpoints > LARGE_CLUSTER_ENDPOINTS, ..self }
    }

    /// Whether comments on endpoint rules are left out: many endpoints make a large cluster (spec section 6.7).
    #[must_use]
    pub const fn large(&self) -> bool {
        self.large
    }

    /// What does not belong to a service port.
    #[must_use]
    pub fn fixed(&self) -> Fixed {
        let view = &self.view;
        let mut fixed = Fixed::default();
        if self.proxy {
            (fixed.filter, fixed.nat, fixed.nat_tail) = (filter::fixed_chains(view), nat::fixed_chains(view), nat::tail(view));
        }
        if let Some(rules) = self.pod_rules {
            pod_network::add(&mut fixed, rules, self.mark, view.random_fully, view.family);
        }
        fixed
    }

    /// The Services there are, sorted; none without the service proxy.
    pub fn services(&self) -> impl Iterator<Item = &'a ServiceKey> {
        self.snapshot.services().filter(|_| self.proxy).map(|(key, _)| key)
    }

    /// How many endpoints a Service's ports have together. Those in any state count (spec section 12.27).
    #[must_use]
    pub fn endpoints(&self, key: &ServiceKey) -> usize {
        let ports = self
            .snapshot
            .service(key)
            .filter(|service| self.proxy && service.cluster_ip(self.view.family).is_some())
            .map(|service| &service.ports);
        let of_port = |port: &ServicePort| endpoints::count(self.snapshot.slices(key), self.view.family, &port.name, port.protocol);
        ports.into_iter().flatten().map(of_port).sum()
    }

    /// The rules of a Service's ports, sorted by port name then protocol; none if it has none in this family.
    #[must_use]
    pub fn service(&self, key: &ServiceKey) -> Vec<ServicePortRules> {
        let ports = self.snapshot.service(key).map(|service| service.ports.as_slice()).unwrap_or_default();
        ports.iter().filter_map(|port| self.port(key, port)).collect()
    }

    /// The rules of one service port.
    #[must_use]
    pub fn service_port(&self, name: &ServicePortName) -> Option<ServicePortRules> {
        let ports = &self.snapshot.service(&name.service)?.ports;
        self.port(&name.service, ports.iter().find(|port| port.name == name.port && port.protocol == name.protocol)?)
    }

    fn port(&self, key: &ServiceKey, port: &ServicePort) -> Option<ServicePortRules> {
        let view = &self.view;
        let service = self.snapshot.service(key).filter(|_| self.proxy)?;
        let name = ServicePortName { service: key.clone(), port: port.name.clone(), protocol: port.protocol };
        let input = ServicePortInput {
            spn: name.to_string(),
            name,
            service,
            port,
            cluster_ip: service.cluster_ip(view.family)?.to_string(),
            endpoints: endpoints::of_service_port(self.snapshot.slices(key), view.family, &port.name, port.protocol, view.node_name),
        };
        let policy = policy::Policy::new(service, port, &input.endpoints, view);
        let names = names::ServiceChains::new(&input.spn, port.protocol);
        let rules = nat::Writer { input: &input, view, policy: &policy, names: &names, large: self.large };
        let mut text = String::with_capacity(320 + 384 * policy.reachable.len());
        let chains = rules.chains(&mut text);
        rules.dispatch(&mut text);
        let nat_dispatch = text.len();
        filter::dispatch(&mut text, &input, &policy, &names, view);
        Some(ServicePortRules { name: input.name, without_local: policy.without_local(), text, chains, nat_dispatch })
    }
}
