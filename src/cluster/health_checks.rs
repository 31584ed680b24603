//! Computes the answers to the health checks of `Local` load balancers on this node [kube-proxy 9.2].

use std::collections::{BTreeMap, BTreeSet};

use super::endpoints;
use super::ip::Family;
use super::service::{Service, ServiceKey};
use super::snapshot::Snapshot;

/// The answer to the health check of one Service.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HealthCheck {
    /// `spec.healthCheckNodePort`, 1-65535.
    pub port: u16,
    /// Number of addresses in the family that belong to ready endpoints of the Service on this node.
    pub local_endpoints: usize,
}

/// Computes the health checks of one family, by Service. Services without a cluster IP in the family or without ports have none.
#[must_use]
pub fn of_family(snapshot: &Snapshot, family: Family, node_name: &str) -> BTreeMap<ServiceKey, HealthCheck> {
    let checked = |service: &Service| service.cluster_ip(family).is_some() && !service.ports.is_empty();
    let services = snapshot.health_checked().filter(|(_, service)| checked(service));
    let check = |(key, service): (&ServiceKey, &Service)| {
        let local_endpoints = local_ready(snapshot, key, family, node_name).len();
        (key.clone(), HealthCheck { port: service.health_check_node_port, local_endpoints })
    };
    services.map(check).collect()
}

/// Returns the addresses of a Service's ready endpoints on this node, over all ports of its slices. An endpoint that terminates but still
/// serves does not count: a load balancer should stop sending there.
fn local_ready(snapshot: &Snapshot, service: &ServiceKey, family: Family, node_name: &str) -> BTreeSet<String> {
    let of_family = || snapshot.slices(service).filter(move |slice| slice.family == family);
    let ports: BTreeSet<_> = of_family().flat_map(|slice| slice.ports.iter().map(|port| (&*port.name, port.protocol))).collect();
    let mut ips = BTreeSet::new();
    for (port, protocol) in ports {
        let all = endpoints::of_service_port(of_family(), family, port, protocol, node_name);
        ips.extend(all.iter().filter(|endpoint| endpoint.local && endpoint.conditions.ready).map(|endpoint| endpoint.ip().to_owned()));
    }
    ips
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;

    use super::*;
    use crate::cluster::{Change, Conditions, Protocol, ServicePort, Slice, SliceEndpoint, SliceKey, SlicePort};

    const READY: Conditions = Conditions { ready: true, serving: true, terminating: false };
    const UNREADY: Conditions = Conditions { ready: false, serving: false, terminating: false };
    const DRAINING: Conditions = Conditions { ready: false, serving: true, terminating: true };

    fn key() -> ServiceKey {
        ServiceKey { namespace: "ns".into(), name: "svc".into() }
    }

    fn service() -> Service {
        let port = |name: &str, port| ServicePort { name: name.into(), protocol: Protocol::Tcp, port, node_port: 0 };
        Service {
            cluster_ip_v4: Some(IpAddr::from([172, 30, 0, 1])),
            health_check_node_port: 30001,
            ports: vec![port("http", 80), port("https", 443)],
            ..Service::default()
        }
    }

    fn slice(family: Family, ports: &[&str], endpoints: &[(&str, &str, Conditions)]) -> Slice {
        let endpoint = |(ip, node, conditions): &(&str, &str, Conditions)| SliceEndpoint {
            ip: ip.parse().expect("an address"),
            conditions: *conditions,
            node: (*node).into(),
            hints: None,
        };
        let port = |(at, name): (usize, &&str)| SlicePort { name: (*name).into(), protocol: Protocol::Tcp, port: 8080 + at as u16 };
        Slice {
            service: "svc".into(),
            family,
            ports: ports.iter().enumerate().map(port).collect(),
            endpoints: endpoints.iter().map(endpoint).collect(),
        }
    }

    fn counted(service: Service, slices: Vec<Slice>, family: Family) -> Option<usize> {
        let mut snapshot = Snapshot::default();
        snapshot.apply(Change::Service(key(), Some(service)));
        for (at, slice) in slices.into_iter().enumerate() {
            snapshot.apply(Change::Slice(SliceKey { namespace: "ns".into(), name: at.to_string().into() }, Some(slice)));
        }
        let checks = of_family(&snapshot, family, "here");
        assert!(checks.values().all(|check| check.port == 30001));
        checks.get(&key()).map(|check| check.local_endpoints)
    }

    #[test]
    fn an_address_counts_once_over_all_ports_and_slices() {
        let slices = vec![
            slice(Family::V4, &["http", "https"], &[("10.0.0.1", "here", READY), ("10.0.0.2", "here", READY)]),
            slice(Family::V4, &["http", "other"], &[("10.0.0.1", "here", READY), ("10.0.0.3", "there", READY)]),
        ];
        assert_eq!(counted(service(), slices, Family::V4), Some(2));
    }

    #[test]
    fn only_ready_endpoints_on_this_node_count() {
        let slices = vec![slice(
            Family::V4,
            &["http"],
            &[
                ("10.0.0.1", "here", UNREADY),
                ("10.0.0.2", "here", DRAINING),
                ("10.0.0.3", "there", READY),
                ("10.0.0.4", "", READY),
                // Without `ready`, an endpoint counts as ready even while it terminates.
                ("10.0.0.5", "here", Conditions { ready: true, serving: true, terminating: true }),
            ],
        )];
        assert_eq!(counted(service(), slices, Family::V4), Some(1));
        assert_eq!(counted(service(), vec![], Family::V4), Some(0));
        assert_eq!(counted(service(), vec![slice(Family::V4, &[], &[("10.0.0.1", "here", READY)])], Family::V4), Some(0));
    }

    #[test]
    fn a_duplicate_endpoint_counts_as_it_does_in_the_rules() {
        let first = slice(Family::V4, &["http"], &[("10.0.0.1", "here", READY)]);
        let second = slice(Family::V4, &["http"], &[("10.0.0.1", "here", DRAINING)]);
        assert_eq!(counted(service(), vec![first.clone(), second], Family::V4), Some(1));
        let second = slice(Family::V4, &["http"], &[("10.0.0.1", "here", UNREADY)]);
        assert_eq!(counted(service(), vec![first, second], Family::V4), Some(0));
    }

    #[test]
    fn each_family_is_counted_alone() {
        let both = Service { cluster_ip_v6: Some(Family::V6.loopback()), ..service() };
        let slices = vec![
            slice(Family::V4, &["http"], &[("10.0.0.1", "here", READY), ("10.0.0.2", "here", READY)]),
            slice(Family::V6, &["http"], &[("fd00::1", "here", READY)]),
        ];
        assert_eq!(counted(both.clone(), slices.clone(), Family::V4), Some(2));
        assert_eq!(counted(both, slices.clone(), Family::V6), Some(1));
        assert_eq!(counted(service(), slices, Family::V6), None, "there is no cluster IP in IPv6");
    }

    #[test]
    fn a_service_without_health_check_port_has_no_check() {
        assert_eq!(counted(Service { health_check_node_port: 0, ..service() }, vec![], Family::V4), None);
        assert_eq!(counted(Service { ports: vec![], ..service() }, vec![], Family::V4), None);
    }
}
