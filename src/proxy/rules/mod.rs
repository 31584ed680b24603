//! Computes the desired rules of one IP family from a snapshot of the cluster. PURE.
//!
//! [`compute`] returns all rules; [`Renderer`] computes them piece by piece. Each chain is equal to kube-proxy's to the byte
//! [kube-proxy 6]. Where kube-proxy's order is random, ours is fixed: service ports are sorted by name and protocol, addresses are sorted.
//! The same input gives the same bytes.
//!
//! - [`inputs`]: the inputs. [`view`]: the inputs resolved for one family. [`policy`]: the endpoints that serve each kind of traffic.
//! - [`nat`], [`filter`]: the rules of both tables. [`pod_network`]: the rules of the pod network. [`render`]: the text of one rule.

pub mod filter;
pub mod inputs;
pub mod nat;
pub mod pod_network;
pub mod policy;
pub mod render;
pub mod view;

use crate::cluster::host_facts::HostFacts;
use crate::cluster::pod_rules::PodRules;
use crate::cluster::{Family, ServiceKey, ServicePort, ServicePortName, Snapshot, endpoints};
use crate::table::chain_names::ServiceChains;
use crate::table::rules::{Fixed, RuleSource, ServicePortRules};

use inputs::Inputs;
use nat::ServicePortInput;
use view::View;

/// With more endpoints than this in one family, endpoint rules have no comments [kube-proxy 6.7].
const LARGE_CLUSTER_ENDPOINTS: usize = 1000;

/// Every rule of one IP family.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RuleSet {
    /// The family.
    pub family: Family,
    /// Chains and rules that belong to no service port.
    pub fixed: Fixed,
    /// The rules of each service port, sorted by name and protocol.
    pub services: Vec<ServicePortRules>,
}

/// Computes all rules of one family.
#[must_use]
pub fn compute(inputs: &Inputs, host: &HostFacts, family: Family) -> RuleSet {
    let renderer = Renderer::new(inputs, host, family);
    let endpoints = renderer.services().iter().map(|key| renderer.endpoints(key)).sum();
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
    /// The packet mark that means "masquerade".
    mark: u32,
}

impl<'a> Renderer<'a> {
    /// Creates a renderer that treats the cluster as small. [`Self::for_size`] changes that.
    #[must_use]
    pub fn new(inputs: &'a Inputs, host: &HostFacts, family: Family) -> Self {
        let view = View::new(&inputs.settings, host, inputs.snapshot.node(), &inputs.node_name, family);
        let mark = 1_u32.checked_shl(inputs.settings.masquerade_bit.into()).unwrap_or_default();
        Self { snapshot: &inputs.snapshot, view, large: false, proxy: !inputs.without_proxy, pod_rules: inputs.pod_rules.as_ref(), mark }
    }

    /// Adapts the renderer to the number of endpoints of all service ports (see [`Self::endpoints`]).
    #[must_use]
    pub fn for_size(self, endpoints: usize) -> Self {
        Self { large: endpoints > LARGE_CLUSTER_ENDPOINTS, ..self }
    }

    /// Returns true for a large cluster, whose endpoint rules have no comments [kube-proxy 6.7].
    #[must_use]
    pub const fn large(&self) -> bool {
        self.large
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
        let names = ServiceChains::new(&input.spn, port.protocol);
        let rules = nat::Writer { input: &input, view, policy: &policy, names: &names, large: self.large };
        let mut text = String::with_capacity(320 + 384 * policy.reachable.len());
        let chains = rules.chains(&mut text);
        rules.dispatch(&mut text);
        let nat_dispatch = text.len();
        filter::dispatch(&mut text, &input, &policy, &names, view);
        Some(ServicePortRules::new(input.name, policy.without_local(), text, chains, nat_dispatch))
    }
}

impl RuleSource for Renderer<'_> {
    fn fixed(&self) -> Fixed {
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

    /// Returns no Services if another program is the service proxy.
    fn services(&self) -> Vec<ServiceKey> {
        self.snapshot.services().filter(|_| self.proxy).map(|(key, _)| key.clone()).collect()
    }

    /// Counts endpoints in any state [kube-proxy 12.27].
    fn endpoints(&self, key: &ServiceKey) -> usize {
        let ports = self
            .snapshot
            .service(key)
            .filter(|service| self.proxy && service.cluster_ip(self.view.family).is_some())
            .map(|service| &service.ports);
        let of_port = |port: &ServicePort| endpoints::count(self.snapshot.slices(key), self.view.family, &port.name, port.protocol);
        ports.into_iter().flatten().map(of_port).sum()
    }

    fn service(&self, key: &ServiceKey) -> Vec<ServicePortRules> {
        let ports = self.snapshot.service(key).map(|service| service.ports.as_slice()).unwrap_or_default();
        ports.iter().filter_map(|port| self.port(key, port)).collect()
    }

    fn service_port(&self, name: &ServicePortName) -> Option<ServicePortRules> {
        let ports = &self.snapshot.service(&name.service)?.ports;
        self.port(&name.service, ports.iter().find(|port| port.name == name.port && port.protocol == name.protocol)?)
    }
}
