//! An independent implementation of Service semantics: which endpoints a packet reaches, with which probability and source address. It shares
//! no code with `rules`.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};

use ipnetwork::IpNetwork;
use sepal::cluster::{Conditions, Family, Service, ServiceKey, ServicePort, SliceEndpoint};
use sepal::explain::ending::Fate;
use sepal::explain::packet::{LocalNode, Origin, Packet};
use sepal::proxy::rules::inputs::Inputs;
use sepal::proxy::settings::DetectLocal;

use crate::endings::Endings;

/// The kind of Service address that a packet is sent to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum AddressKind {
    Cluster,
    External,
    Balancer,
    NodePort,
}

struct Reader<'a> {
    inputs: &'a Inputs,
    packet: Packet,
    place: &'a LocalNode,
    family: Family,
}

/// The endings that a packet should have.
pub(crate) fn endings(inputs: &Inputs, packet: Packet, place: &LocalNode) -> Endings {
    let reader = Reader { inputs, packet, place, family: Family::of(packet.to.ip()) };
    reader.read().unwrap_or_else(|| Endings::from([((Fate::Passed, packet.to, false), 1.0)]))
}

impl Reader<'_> {
    fn read(&self) -> Option<Endings> {
        let (key, service, port, kind) = self.service_port()?;
        let endpoints = self.endpoints(key, port);
        let reached = service.externally_accessible(port, self.family);
        // Endpoints for Cluster policy, and endpoints of this node for Local policy.
        let anywhere = self.anywhere(&endpoints);
        let here = self.here(&endpoints);
        let may_go_anywhere = !service.internal_local || reached;
        let must_stay = service.internal_local || service.external_local && reached;
        let lives = |conditions: &Conditions| conditions.ready || conditions.draining();
        let has_any =
            may_go_anywhere && !anywhere.is_empty() || must_stay && endpoints.iter().any(|(_, endpoint)| lives(&endpoint.conditions));
        let stopped = |fate| Some(Endings::from([((fate, self.packet.to, false), 1.0)]));
        if kind == AddressKind::Cluster {
            if !has_any {
                return stopped(Fate::Refused);
            }
            let masked = self.inputs.settings.masquerade_all || self.is_local_traffic() == Some(false);
            let chosen = if service.internal_local { &here } else { &anywhere };
            return if chosen.is_empty() { stopped(Fate::Dropped) } else { Some(self.shared(chosen, masked)) };
        }
        if !has_any {
            // A packet of the node itself to another host's address is not refused.
            let leaves = self.packet.origin == Origin::Node && !self.place.is_local(self.packet.to.ip());
            return if leaves { None } else { stopped(Fate::Refused) };
        }
        let ranges = service.source_ranges(self.family);
        if kind == AddressKind::Balancer && !ranges.is_empty() && !self.is_let_in(service, &ranges) {
            return stopped(Fate::Dropped);
        }
        if !service.external_local {
            return Some(self.shared(&anywhere, true));
        }
        // Pods of this node, and the node itself, reach all endpoints.
        if self.is_local_traffic() == Some(true) {
            return Some(self.shared(&anywhere, false));
        }
        if self.place.is_local(self.packet.source) {
            return Some(self.shared(&anywhere, true));
        }
        if here.is_empty() { stopped(Fate::Dropped) } else { Some(self.shared(&here, false)) }
    }

    /// The service port at the packet's destination: the first by name, with its cluster IP before its other addresses.
    fn service_port(&self) -> Option<(&ServiceKey, &Service, &ServicePort, AddressKind)> {
        let Packet { to, protocol, .. } = self.packet;
        let is_node_port = |port: &ServicePort| port.node_port == to.port() && self.place.is_local(to.ip()) && !to.ip().is_loopback();
        let mut node_port = None;
        for (key, service) in self.inputs.snapshot.services() {
            let Some(cluster_ip) = service.cluster_ip(self.family) else { continue };
            let mut ports: Vec<&ServicePort> = service.ports.iter().filter(|port| port.protocol == protocol).collect();
            ports.sort_by(|a, b| a.name.cmp(&b.name));
            for port in ports {
                let is_port = port.port == to.port();
                if is_port && cluster_ip == to.ip() {
                    return Some((key, service, port, AddressKind::Cluster));
                }
                let external_ips = self.inputs.settings.allow_external_ips;
                if is_port && external_ips && service.external_ips(self.family).any(|ip| ip == to.ip()) {
                    return Some((key, service, port, AddressKind::External));
                }
                if is_port && service.load_balancer_vips(self.family).any(|ip| ip == to.ip()) {
                    return Some((key, service, port, AddressKind::Balancer));
                }
                if port.node_port != 0 && is_node_port(port) && node_port.is_none() {
                    node_port = Some((key, service, port, AddressKind::NodePort));
                }
            }
        }
        node_port
    }

    /// The addresses of all endpoints of a service port, each once. An endpoint that is not terminating replaces an earlier one.
    fn endpoints(&self, key: &ServiceKey, port: &ServicePort) -> Vec<(SocketAddr, &SliceEndpoint)> {
        let mut all: BTreeMap<String, (SocketAddr, &SliceEndpoint)> = BTreeMap::new();
        for slice in self.inputs.snapshot.slices(key).filter(|slice| slice.family == self.family) {
            for of_slice in slice.ports.iter().filter(|of_slice| of_slice.name == port.name && of_slice.protocol == port.protocol) {
                for endpoint in &slice.endpoints {
                    let address = SocketAddr::new(endpoint.ip, of_slice.port);
                    let known = all.get(&address.to_string());
                    if known.is_none() || !endpoint.conditions.terminating {
                        all.insert(address.to_string(), (address, endpoint));
                    }
                }
            }
        }
        all.into_values().collect()
    }

    /// Ready endpoints, limited by hints to this node or zone if all of them have hints; if none is ready, serving terminating ones.
    fn anywhere(&self, endpoints: &[(SocketAddr, &SliceEndpoint)]) -> Vec<SocketAddr> {
        let ready: Vec<&(SocketAddr, &SliceEndpoint)> = endpoints.iter().filter(|(_, endpoint)| endpoint.conditions.ready).collect();
        let zone = self.inputs.snapshot.node().map(|node| node.zone.as_str()).unwrap_or_default();
        let hints = |endpoint: &SliceEndpoint, by_node: bool| {
            let hints = endpoint.hints.as_deref().map(|hints| if by_node { hints.nodes.clone() } else { hints.zones.clone() });
            hints.unwrap_or_default()
        };
        let meant = |by_node: bool, whom: &str| {
            let all_say = ready.iter().all(|(_, endpoint)| !hints(endpoint, by_node).is_empty());
            let meant: Vec<SocketAddr> = ready
                .iter()
                .filter(|(_, endpoint)| hints(endpoint, by_node).iter().any(|hint| hint == whom))
                .map(|(address, _)| *address)
                .collect();
            (all_say && !meant.is_empty()).then_some(meant)
        };
        let chosen = meant(true, &self.inputs.node_name)
            .or_else(|| meant(false, zone))
            .unwrap_or_else(|| ready.iter().map(|(address, _)| *address).collect());
        if chosen.is_empty() { draining(endpoints.iter()) } else { chosen }
    }

    fn here(&self, endpoints: &[(SocketAddr, &SliceEndpoint)]) -> Vec<SocketAddr> {
        let here: Vec<&(SocketAddr, &SliceEndpoint)> = endpoints
            .iter()
            .filter(|(_, endpoint)| !self.inputs.node_name.is_empty() && *endpoint.node == *self.inputs.node_name)
            .collect();
        let ready: Vec<SocketAddr> = here.iter().filter(|(_, endpoint)| endpoint.conditions.ready).map(|(address, _)| *address).collect();
        if ready.is_empty() { draining(here.into_iter()) } else { ready }
    }

    /// Whether the packet comes from a local pod, by detectLocalMode; `None` if that is unknown.
    fn is_local_traffic(&self) -> Option<bool> {
        let within = |net: Option<&IpNetwork>| net.map(|net| net.contains(self.packet.source));
        let of_family = |net: &&IpNetwork| Family::of_net(**net) == self.family;
        match &self.inputs.settings.detect_local {
            DetectLocal::ClusterCidr(cidrs) => within(cidrs.iter().find(of_family)),
            DetectLocal::NodeCidr => within(self.inputs.snapshot.node().and_then(|node| node.pod_cidrs.iter().find(of_family))),
            DetectLocal::BridgeInterface(name) => Some(self.place.interface(self.packet.origin) == name),
            DetectLocal::InterfaceNamePrefix(prefix) => Some(self.place.interface(self.packet.origin).starts_with(prefix.as_str())),
        }
    }

    /// Whether loadBalancerSourceRanges admit the source. If they hold this node, packets from the load balancer IP itself are admitted, too.
    fn is_let_in(&self, service: &Service, ranges: &[IpNetwork]) -> bool {
        let holds = |ip: IpAddr| ranges.iter().any(|range| range.contains(ip));
        let node = self.inputs.snapshot.node().and_then(|node| node.ip(self.family));
        let as_itself = service.load_balancer_vips(self.family).any(|vip| vip == self.packet.source && vip == self.packet.to.ip());
        holds(self.packet.source) || node.is_some_and(holds) && as_itself
    }

    /// All chosen endpoints with equal probability. An endpoint that sends to itself is masqueraded.
    fn shared(&self, chosen: &[SocketAddr], masked: bool) -> Endings {
        let mut endings = Endings::new();
        for to in chosen {
            // A packet that is delivered locally does not pass POSTROUTING, so it is not masqueraded.
            let leaves = !self.place.is_local(to.ip()) || self.packet.origin == Origin::Node;
            let masqueraded = leaves && (masked || to.ip() == self.packet.source);
            *endings.entry((Fate::Passed, *to, masqueraded)).or_default() += 1.0 / chosen.len() as f64;
        }
        endings
    }
}

fn draining<'e>(endpoints: impl Iterator<Item = &'e (SocketAddr, &'e SliceEndpoint)>) -> Vec<SocketAddr> {
    endpoints.filter(|(_, endpoint)| endpoint.conditions.draining()).map(|(address, _)| *address).collect()
}
