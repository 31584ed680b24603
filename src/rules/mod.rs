//! The rules this node should have: computed from a cluster snapshot as plain values, for one IP family at a time. PURE.
//!
//! [`compute`] is the whole of it. The layout is kube-proxy's to the byte within each chain (spec section 6); where kube-proxy's
//! order is random ours is fixed: service ports by name then protocol, addresses sorted. Same input, same bytes.

pub mod filter;
pub mod inputs;
pub mod jumps;
pub mod names;
pub mod nat;
pub mod policy;
pub mod render;
pub mod view;

use crate::cluster::{ServicePortName, Snapshot, endpoints};
use crate::config::settings::HostFacts;
use inputs::Inputs;
use names::ChainName;
use nat::ServicePortInput;
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

/// Every rule of one IP family.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RuleSet {
    /// The family.
    pub family: Family,
    /// Fixed chains of `filter`, with the rules that do not belong to a service port.
    pub filter_fixed: Vec<Chain<&'static str>>,
    /// Fixed chains of `nat`, with the rules that do not belong to a service port and come before theirs.
    pub nat_fixed: Vec<Chain<&'static str>>,
    /// Per service port, sorted by name then protocol.
    pub services: Vec<ServicePortRules>,
    /// The end of KUBE-SERVICES in `nat`: on to the NodePorts. Has to stay last in its chain.
    pub nat_tail: String,
}

/// Computes all rules of one family.
#[must_use]
pub fn compute(inputs: &Inputs, host: &HostFacts, family: Family) -> RuleSet {
    let view = View::new(&inputs.settings, host, inputs.snapshot.node(), &inputs.node_name, family);
    let service_ports = service_ports(&inputs.snapshot, &view);
    // Endpoints in any state count (spec section 12.27).
    let large = service_ports.iter().map(|input| input.endpoints.len()).sum::<usize>() > LARGE_CLUSTER_ENDPOINTS;
    RuleSet {
        family,
        filter_fixed: filter::fixed_chains(&view),
        nat_fixed: nat::fixed_chains(&view),
        services: service_ports.iter().map(|input| service_port(input, &view, large)).collect(),
        nat_tail: nat::tail(&view),
    }
}

fn service_port(input: &ServicePortInput<'_>, view: &View<'_>, large: bool) -> ServicePortRules {
    let policy = policy::Policy::new(input.service, input.port, &input.endpoints, view);
    let names = names::ServiceChains::new(&input.spn, input.port.protocol);
    let rules = nat::Writer { input, view, policy: &policy, names: &names, large };
    let mut text = String::with_capacity(320 + 384 * policy.reachable.len());
    let chains = rules.chains(&mut text);
    rules.dispatch(&mut text);
    let nat_dispatch = text.len();
    filter::dispatch(&mut text, input, &policy, &names, view);
    ServicePortRules { name: input.name.clone(), text, chains, nat_dispatch }
}

/// The service ports of the family, sorted by name then protocol, each with its endpoints.
fn service_ports<'a>(snapshot: &'a Snapshot, view: &View<'a>) -> Vec<ServicePortInput<'a>> {
    let mut inputs: Vec<ServicePortInput<'a>> = Vec::with_capacity(snapshot.service_count());
    for (key, service) in snapshot.services() {
        let Some(cluster_ip) = service.cluster_ip(view.family) else { continue };
        for port in &service.ports {
            let name = ServicePortName { service: key.clone(), port: port.name.clone(), protocol: port.protocol };
            inputs.push(ServicePortInput {
                spn: name.to_string(),
                name,
                service,
                port,
                cluster_ip: cluster_ip.to_string(),
                endpoints: endpoints::of_service_port(snapshot.slices(key), view.family, &port.name, port.protocol, view.node_name),
            });
        }
    }
    inputs.sort_by(|a, b| a.name.cmp(&b.name));
    inputs
}
