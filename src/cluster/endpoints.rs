//! EndpointSlices, and the endpoints of a service port that follow from them [kube-proxy 4].

use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;

use super::ip::Family;
use super::service::Protocol;

/// Namespace and name of an EndpointSlice.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SliceKey {
    /// Namespace of the slice.
    pub namespace: Arc<str>,
    /// Name of the slice.
    pub name: Arc<str>,
}

impl fmt::Display for SliceKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

/// One EndpointSlice. Every endpoint serves every port.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Slice {
    /// Name of the Service (label `kubernetes.io/service-name`), in the slice's namespace.
    pub service: Arc<str>,
    /// `addressType`.
    pub family: Family,
    /// The usable ports.
    pub ports: Vec<SlicePort>,
    /// The usable endpoints.
    pub endpoints: Vec<SliceEndpoint>,
}

impl Slice {
    /// Memory in bytes, estimated from the lengths of the fields.
    #[must_use]
    pub fn bytes(&self) -> usize {
        let ports = self.ports.iter().map(|port| size_of::<SlicePort>() + port.name.len()).sum::<usize>();
        size_of::<Self>() + ports + self.endpoints.iter().map(SliceEndpoint::bytes).sum::<usize>()
    }
}

/// One port of a slice.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SlicePort {
    /// Port name; equal to the name of the service port. Empty for an unnamed port.
    pub name: Arc<str>,
    /// Protocol.
    pub protocol: Protocol,
    /// The endpoints' port, 1-65535.
    pub port: u16,
}

/// The conditions of an endpoint, with the API's defaults filled in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Conditions {
    /// `ready`: absent means true.
    pub ready: bool,
    /// `serving`: absent means true.
    pub serving: bool,
    /// `terminating`: absent means false.
    pub terminating: bool,
}

impl Conditions {
    /// Returns true if the endpoint terminates but still serves. Such endpoints are used when no endpoint is ready.
    #[must_use]
    pub const fn draining(self) -> bool {
        self.serving && self.terminating
    }
}

/// One endpoint of a slice.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SliceEndpoint {
    /// The first of the object's addresses. The others are ignored.
    pub ip: IpAddr,
    /// Conditions.
    pub conditions: Conditions,
    /// The node that it runs on; empty if not given.
    pub node: Box<str>,
    /// Topology hints. Most endpoints have none.
    pub hints: Option<Box<Hints>>,
}

/// The zones and nodes whose traffic an endpoint should receive.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Hints {
    /// Zones.
    pub zones: Vec<String>,
    /// Nodes.
    pub nodes: Vec<String>,
}

impl SliceEndpoint {
    fn zone_hints(&self) -> &[String] {
        self.hints.as_ref().map(|hints| hints.zones.as_slice()).unwrap_or_default()
    }

    fn node_hints(&self) -> &[String] {
        self.hints.as_ref().map(|hints| hints.nodes.as_slice()).unwrap_or_default()
    }

    fn bytes(&self) -> usize {
        let hints = self.zone_hints().iter().chain(self.node_hints()).map(|hint| size_of::<String>() + hint.len()).sum::<usize>();
        let own = self.hints.as_ref().map_or(0, |_| size_of::<Hints>());
        size_of::<Self>() + self.node.len() + own + hints
    }
}

/// One endpoint of one service port.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Endpoint<'a> {
    /// `ip:port`, or `[ip]:port` for IPv6. It identifies the endpoint, defines the order, and is the DNAT destination.
    pub id: String,
    /// Conditions.
    pub conditions: Conditions,
    /// The endpoint runs on this node.
    pub local: bool,
    /// Zones whose traffic this endpoint should receive.
    pub zone_hints: &'a [String],
    /// Nodes whose traffic this endpoint should receive.
    pub node_hints: &'a [String],
}

impl Endpoint<'_> {
    /// The address without the port, in canonical form.
    #[must_use]
    pub fn ip(&self) -> &str {
        let host = self.id.rsplit_once(':').map_or(self.id.as_str(), |(host, _)| host);
        host.trim_start_matches('[').trim_end_matches(']')
    }
}

/// Returns the endpoints of one service port in one family. `slices` are all slices of its Service, sorted by name. The result is sorted by
/// id as bytes and has no duplicates: a later duplicate that does not terminate replaces the earlier one [kube-proxy 4].
#[must_use]
pub(crate) fn of_service_port<'a>(
    slices: impl Iterator<Item = &'a Slice>,
    family: Family,
    port: &str,
    protocol: Protocol,
    node_name: &str,
) -> Vec<Endpoint<'a>> {
    let mut found: Vec<Endpoint<'a>> = Vec::new();
    for slice in slices.filter(|slice| slice.family == family) {
        for slice_port in slice.ports.iter().filter(|p| *p.name == *port && p.protocol == protocol) {
            found.extend(slice.endpoints.iter().map(|endpoint| Endpoint {
                id: endpoint_id(endpoint.ip, slice_port.port),
                conditions: endpoint.conditions,
                local: !endpoint.node.is_empty() && *endpoint.node == *node_name,
                zone_hints: endpoint.zone_hints(),
                node_hints: endpoint.node_hints(),
            }));
        }
    }
    // A stable sort keeps duplicates in slice order for the choice below.
    found.sort_by(|a, b| a.id.cmp(&b.id));
    found.dedup_by(|next, kept| {
        if next.id != kept.id {
            return false;
        }
        if !next.conditions.terminating {
            std::mem::swap(next, kept);
        }
        true
    });
    found
}

/// Returns the number of endpoints that [`of_service_port`] returns.
#[must_use]
pub fn count<'a>(slices: impl Iterator<Item = &'a Slice>, family: Family, port: &str, protocol: Protocol) -> usize {
    let of_slice = |slice: &'a Slice| {
        let ports = slice.ports.iter().filter(|p| *p.name == *port && p.protocol == protocol);
        ports.flat_map(|port| slice.endpoints.iter().map(|endpoint| (endpoint.ip, port.port)))
    };
    let mut all: Vec<(IpAddr, u16)> = slices.filter(|slice| slice.family == family).flat_map(of_slice).collect();
    all.sort_unstable();
    all.dedup();
    all.len()
}

fn endpoint_id(ip: IpAddr, port: u16) -> String {
    std::net::SocketAddr::new(ip, port).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn slice(port: u16, endpoints: &[(&str, bool)]) -> Slice {
        Slice {
            service: "svc".into(),
            family: Family::V4,
            ports: vec![SlicePort { name: "http".into(), protocol: Protocol::Tcp, port }],
            endpoints: endpoints
                .iter()
                .map(|(ip, terminating)| SliceEndpoint {
                    ip: ip.parse().expect("an address"),
                    conditions: Conditions { ready: !terminating, serving: true, terminating: *terminating },
                    node: "".into(),
                    hints: None,
                })
                .collect(),
        }
    }

    #[test]
    fn order_is_bytewise_and_a_duplicate_that_does_not_terminate_wins() {
        let slices = [
            slice(80, &[("10.0.0.2", false), ("10.0.0.10", true), ("10.0.0.10", false)]),
            slice(80, &[("10.0.0.2", true)]),
            slice(443, &[("10.0.0.2", false)]),
        ];
        let found = of_service_port(slices.iter(), Family::V4, "http", Protocol::Tcp, "node");
        let seen: Vec<_> = found.iter().map(|e| (e.id.as_str(), e.conditions.ready)).collect();
        assert_eq!(seen, [("10.0.0.10:80", true), ("10.0.0.2:443", true), ("10.0.0.2:80", true)]);
        assert_eq!(count(slices.iter(), Family::V4, "http", Protocol::Tcp), found.len());
    }

    #[test]
    fn an_endpoint_without_node_is_never_local() {
        let slices = [slice(80, &[("10.0.0.2", false)])];
        assert!(!of_service_port(slices.iter(), Family::V4, "http", Protocol::Tcp, "")[0].local);
    }

    #[test]
    fn ip_text_is_the_id_without_port_and_brackets() {
        let endpoint = |id: &str| Endpoint {
            id: id.into(),
            conditions: Conditions { ready: true, serving: true, terminating: false },
            local: false,
            zone_hints: &[],
            node_hints: &[],
        };
        assert_eq!(endpoint("10.0.0.1:80").ip(), "10.0.0.1");
        assert_eq!(endpoint("[fd00::1]:80").ip(), "fd00::1");
    }
}
