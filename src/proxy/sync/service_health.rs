//! Answers the health checks of load balancers, which ask whether this node has endpoints of a Service. Each Service has its own port
//! [kube-proxy 9.2].

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use hyper::StatusCode;
use hyper::header::{HeaderName, HeaderValue};

use crate::cluster::health_checks::HealthCheck;
use crate::cluster::{Family, ServiceKey};
use crate::proxy::rules::view::NodePorts;

use crate::http_server::listen::{self, ListenAddress, ListenError, Network};
use crate::http_server::{Handler, HttpAnswer, HttpRequest, HttpServer};
use crate::kubernetes::events::{Event, Regarding};
use crate::observe::health::SharedHealth;

const WEIGHT: HeaderName = HeaderName::from_static("x-load-balancing-endpoint-weight");

/// The health-check node ports of one family.
#[derive(Debug)]
pub struct ServiceHealth {
    family: Family,
    /// The addresses on which each port is opened.
    addresses: Vec<IpAddr>,
    /// The health of sepal. `None` if the health server is off; then sepal counts as healthy.
    health: Option<SharedHealth>,
    open: BTreeMap<ServiceKey, Open>,
    /// Ports that could not be opened and were reported.
    refused: BTreeMap<ServiceKey, u16>,
}

/// One Service's open port.
#[derive(Debug)]
struct Open {
    port: u16,
    local_endpoints: Arc<AtomicUsize>,
    /// One listener per address. If no address matches, there is none, and the port still counts as open.
    listeners: Vec<HttpServer>,
}

/// A port that could not be opened.
#[derive(Debug, thiserror::Error)]
#[error("failed to start healthcheck {:?} on port {port}: {cause}", .service.to_string())]
pub struct FailedHealthCheck {
    service: ServiceKey,
    port: u16,
    cause: ListenError,
}

impl FailedHealthCheck {
    /// Returns the Event about the failure [kube-proxy 1.11].
    #[must_use]
    pub fn event(&self, node_name: &str) -> Event {
        Event {
            regarding: Regarding::Service(self.service.clone()),
            reason: "FailedToStartServiceHealthcheck",
            action: "Listen",
            warning: true,
            note: format!("node {node_name} {self}"),
        }
    }
}

impl ServiceHealth {
    /// Creates the health-check node ports of a family. No port is open yet; [`Self::sync`] opens them on these addresses.
    #[must_use]
    pub fn new(family: Family, addresses: NodePorts, health: Option<SharedHealth>) -> Self {
        Self { family, addresses: listen_addresses(addresses, family), health, open: BTreeMap::new(), refused: BTreeMap::new() }
    }

    /// Changes the addresses. All ports are closed, and the next sync opens them on the new addresses.
    pub async fn move_to(&mut self, addresses: NodePorts) {
        let addresses = listen_addresses(addresses, self.family);
        if self.addresses != addresses {
            self.addresses = addresses;
            self.sync_ports(&BTreeMap::new()).await;
        }
    }

    /// Opens and closes ports so that the desired checks are answered, and updates their endpoint counts. Called after every successful sync
    /// of the rules, and again while [`Self::has_refused_ports`]. Returns the ports that could not be opened, each only once.
    pub async fn sync(&mut self, desired: &BTreeMap<ServiceKey, HealthCheck>) -> Vec<FailedHealthCheck> {
        let failed = self.sync_ports(desired).await;
        self.sync_counts(desired);
        failed
    }

    /// Returns true if a port could not be opened because another program uses it, such as a kube-proxy that is stopping.
    #[must_use]
    pub(crate) fn has_refused_ports(&self) -> bool {
        !self.refused.is_empty()
    }

    /// Opens and closes ports. A new port answers that there are no endpoints.
    async fn sync_ports(&mut self, desired: &BTreeMap<ServiceKey, HealthCheck>) -> Vec<FailedHealthCheck> {
        let (kept, gone): (BTreeMap<_, _>, BTreeMap<_, _>) = std::mem::take(&mut self.open)
            .into_iter()
            .partition(|(service, open)| desired.get(service).is_some_and(|check| check.port == open.port));
        self.open = kept;
        // All ports are closed before any is opened, because a port can move from one Service to another.
        for (service, open) in gone {
            tracing::debug!("{}: health check port {} of {service} is closed", self.family, open.port);
            for listener in open.listeners {
                listener.close().await;
            }
        }
        self.refused.retain(|service, port| desired.get(service).is_some_and(|check| check.port == *port));
        let mut failed = Vec::new();
        for (service, check) in desired {
            if self.open.contains_key(service) {
                continue;
            }
            match self.open(service, check.port) {
                Ok(open) => {
                    if self.refused.remove(service).is_some() {
                        tracing::info!("{}: health check port {} of {service} is open after all", self.family, check.port);
                    } else {
                        tracing::debug!("{}: health check port {} of {service} is open", self.family, check.port);
                    }
                    self.open.insert(service.clone(), open);
                }
                Err(cause) => {
                    if self.refused.insert(service.clone(), check.port).is_none() {
                        failed.push(FailedHealthCheck { service: service.clone(), port: check.port, cause });
                    }
                }
            }
        }
        failed
    }

    /// Updates the endpoint counts of open ports. A port without a desired check has no endpoints.
    fn sync_counts(&self, desired: &BTreeMap<ServiceKey, HealthCheck>) {
        for (service, open) in &self.open {
            open.local_endpoints.store(desired.get(service).map_or(0, |check| check.local_endpoints), Ordering::Relaxed);
        }
    }

    /// Opens a port on every address. If one address fails, the others are closed again.
    fn open(&self, service: &ServiceKey, port: u16) -> Result<Open, ListenError> {
        let network = match self.family {
            Family::V4 => Network::Tcp4,
            Family::V6 => Network::Tcp6,
        };
        let listen = |ip: &IpAddr| listen::listen(ListenAddress { network, address: SocketAddr::new(*ip, port) });
        let listeners = self.addresses.iter().map(listen).collect::<Result<Vec<_>, _>>()?;
        let local_endpoints = Arc::new(AtomicUsize::new(0));
        let handler = handler(service.clone(), Arc::clone(&local_endpoints), self.health.clone());
        let listeners = listeners.into_iter().map(|listener| HttpServer::start(listener, Arc::clone(&handler))).collect();
        Ok(Open { port, local_endpoints, listeners })
    }
}

/// Returns the addresses to listen on.
fn listen_addresses(addresses: NodePorts, family: Family) -> Vec<IpAddr> {
    match (addresses, family) {
        (NodePorts::Addresses(addresses), _) => addresses,
        (NodePorts::AllLocal, Family::V4) => vec![IpAddr::from([0; 4])],
        (NodePorts::AllLocal, Family::V6) => vec![IpAddr::from([0; 16])],
    }
}

fn handler(service: ServiceKey, local_endpoints: Arc<AtomicUsize>, health: Option<SharedHealth>) -> Arc<dyn Handler> {
    Arc::new(move |_: &HttpRequest| {
        let healthy = health.as_ref().is_none_or(|health| health.now().healthy());
        answer(&service, local_endpoints.load(Ordering::Relaxed), healthy)
    })
}

/// Returns the answer to a health check.
fn answer(service: &ServiceKey, local_endpoints: usize, healthy: bool) -> HttpAnswer {
    let status = if local_endpoints > 0 && healthy { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    // Names of Services contain no characters that JSON escapes.
    let ServiceKey { namespace, name } = service;
    let body = format!(
        "{{\n\t\"service\": {{\n\t\t\"namespace\": \"{namespace}\",\n\t\t\"name\": \"{name}\"\n\t}},\n\t\"localEndpoints\": {local_endpoints},\n\t\"serviceProxyHealthy\": {healthy}\n}}"
    );
    HttpAnswer::new(status, "application/json", body).nosniff().with(WEIGHT, HeaderValue::from(local_endpoints))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::http_server::listen::tests::free_ports;
    use crate::http_server::tests::{get, say};

    fn key(name: &str) -> ServiceKey {
        ServiceKey { namespace: "ns".into(), name: name.into() }
    }

    fn desired(checks: &[(&str, u16, usize)]) -> BTreeMap<ServiceKey, HealthCheck> {
        checks.iter().map(|(name, port, count)| (key(name), HealthCheck { port: *port, local_endpoints: *count })).collect()
    }

    fn on(ips: &[&str], health: Option<SharedHealth>) -> ServiceHealth {
        let ips = ips.iter().map(|ip| ip.parse().expect("an address")).collect();
        ServiceHealth::new(Family::V4, NodePorts::Addresses(ips), health)
    }

    async fn ask(ip: &str, port: u16) -> Option<String> {
        get(SocketAddr::new(ip.parse().expect("an address"), port), "/any/path").await
    }

    /// Returns the status and the endpoint count that a load balancer gets.
    async fn seen(ip: &str, port: u16) -> Option<(u16, usize)> {
        let answer = ask(ip, port).await?;
        let status = answer.get(9..12)?.parse().ok()?;
        let weight = answer.lines().find_map(|line| line.strip_prefix("X-Load-Balancing-Endpoint-Weight: "))?.parse().ok()?;
        assert!(answer.contains(&format!("\t\"localEndpoints\": {weight},\n")), "{answer}");
        Some((status, weight))
    }

    #[test]
    fn the_answer_is_the_same_as_kube_proxys() {
        let good = answer(&key("svc"), 1, true);
        let body = "{\n\t\"service\": {\n\t\t\"namespace\": \"ns\",\n\t\t\"name\": \"svc\"\n\t},\n\t\"localEndpoints\": 1,\n\t\"serviceProxyHealthy\": true\n}";
        assert_eq!((good.status.as_u16(), &*good.body), (200, body.as_bytes()));
        let headers =
            [("content-type", "application/json"), ("x-content-type-options", "nosniff"), ("x-load-balancing-endpoint-weight", "1")];
        assert_eq!(good.headers.len(), headers.len());
        for (name, value) in headers {
            assert_eq!(good.headers.get(name).and_then(|value| value.to_str().ok()), Some(value), "{name}");
        }
        let bad = answer(&key("svc"), 18, false);
        assert_eq!(bad.status.as_u16(), 503);
        assert!(bad.body.ends_with(b"\"localEndpoints\": 18,\n\t\"serviceProxyHealthy\": false\n}"));
        assert_eq!(answer(&key("svc"), 0, true).status.as_u16(), 503);
    }

    #[tokio::test]
    async fn a_port_is_opened_counted_and_closed() {
        const IP: &str = "127.40.1.1";
        let [port] = free_ports(IP);
        let mut checks = on(&[IP], None);
        assert!(checks.sync(&desired(&[])).await.is_empty());
        assert!(checks.sync_ports(&desired(&[("svc", port, 5)])).await.is_empty());
        assert_eq!(seen(IP, port).await, Some((503, 0)), "no count yet");
        checks.sync_counts(&desired(&[("other", 1, 7)]));
        assert_eq!(seen(IP, port).await, Some((503, 0)), "a count of another Service is ignored");
        checks.sync_counts(&desired(&[("svc", port, 18)]));
        assert_eq!(seen(IP, port).await, Some((200, 18)));
        assert!(checks.sync(&desired(&[("svc", port, 0)])).await.is_empty());
        assert_eq!(seen(IP, port).await, Some((503, 0)));
        checks.sync_counts(&desired(&[("svc", port, 11)]));
        checks.sync_counts(&desired(&[]));
        assert_eq!(seen(IP, port).await, Some((503, 0)), "no count means none");
        assert!(checks.sync(&desired(&[])).await.is_empty());
        assert_eq!(seen(IP, port).await, None);
    }

    #[tokio::test]
    async fn one_sync_keeps_changes_opens_and_closes_ports() {
        const IP: &str = "127.40.2.1";
        let [gone, kept, old, new, added] = free_ports(IP);
        let mut checks = on(&[IP], None);
        assert!(checks.sync(&desired(&[("gone", gone, 1), ("kept", kept, 2), ("moved", old, 3)])).await.is_empty());
        let next = desired(&[("kept", kept, 20), ("moved", new, 30), ("added", added, 40)]);
        assert!(checks.sync_ports(&next).await.is_empty());
        for (port, expected) in [(gone, None), (kept, Some((200, 2))), (old, None), (new, Some((503, 0))), (added, Some((503, 0)))] {
            assert_eq!(seen(IP, port).await, expected, "{port}");
        }
        checks.sync_counts(&next);
        for (port, count) in [(kept, 20), (new, 30), (added, 40)] {
            assert_eq!(seen(IP, port).await, Some((200, count)));
        }
        // Two Services swap their ports.
        assert!(checks.sync(&desired(&[("kept", new, 1), ("moved", kept, 2)])).await.is_empty());
        assert_eq!((seen(IP, new).await, seen(IP, kept).await, seen(IP, added).await), (Some((200, 1)), Some((200, 2)), None));
    }

    #[tokio::test]
    async fn the_health_of_sepal_matters_and_the_state_of_the_node_does_not() {
        const IP: &str = "127.40.3.1";
        let [port] = free_ports(IP);
        let health = SharedHealth::new(Duration::ZERO);
        let mut checks = on(&[IP], Some(health.clone()));
        assert!(checks.sync(&desired(&[("svc", port, 3)])).await.is_empty());
        assert!(!health.now().node_eligible);
        assert_eq!(seen(IP, port).await, Some((200, 3)));
        // The other family is late. That makes sepal unhealthy for this family too.
        health.updated(Family::V6);
        health.queued(Family::V6);
        assert_eq!(seen(IP, port).await, Some((503, 3)));
        assert!(ask(IP, port).await.expect("an answer").ends_with("\t\"serviceProxyHealthy\": false\n}"));
        health.updated(Family::V6);
        assert_eq!(seen(IP, port).await, Some((200, 3)));
    }

    #[tokio::test]
    async fn ports_are_opened_on_matching_addresses_only() {
        const IPS: [&str; 2] = ["127.40.4.1", "127.40.4.2"];
        let [port] = free_ports(IPS[0]);
        let mut checks = on(&IPS, None);
        assert!(checks.sync(&desired(&[("svc", port, 1)])).await.is_empty());
        for ip in IPS {
            assert_eq!(seen(ip, port).await, Some((200, 1)));
        }
        assert_eq!(seen("127.40.4.3", port).await, None);
        let mut nowhere = on(&[], None);
        assert!(nowhere.sync(&desired(&[("svc", port, 1)])).await.is_empty(), "no address matches, so nothing can fail");
        drop(checks);
        tokio::task::yield_now().await;
        assert_eq!(seen(IPS[0], port).await, None, "dropping closes the port");
    }

    #[tokio::test]
    async fn a_port_that_cannot_be_opened_is_reported_once_and_tried_again() {
        const IPS: [&str; 2] = ["127.40.5.1", "127.40.5.2"];
        let [port] = free_ports(IPS[0]);
        let taken = std::net::TcpListener::bind((IPS[1], port)).expect("a free port");
        let mut checks = on(&IPS, None);
        let failed = checks.sync(&desired(&[("svc", port, 1)])).await;
        assert_eq!(failed.len(), 1);
        let event = failed[0].event("node-1");
        assert_eq!((event.reason, event.action, event.warning), ("FailedToStartServiceHealthcheck", "Listen", true));
        assert_eq!(event.regarding, Regarding::Service(key("svc")));
        let start = format!("node node-1 failed to start healthcheck \"ns/svc\" on port {port}: listen tcp4 127.40.5.2:{port}: bind: ");
        assert!(event.note.starts_with(&start), "{}", event.note);
        assert_eq!(seen(IPS[0], port).await, None, "the port is closed on the other address too");
        assert!(checks.sync(&desired(&[("svc", port, 1)])).await.is_empty(), "the failure is reported once");
        assert!(checks.has_refused_ports());
        assert!(checks.sync(&desired(&[])).await.is_empty() && !checks.has_refused_ports(), "the port is not desired any more");
        assert_eq!(checks.sync(&desired(&[("svc", port, 1)])).await.len(), 1, "the port is desired again");
        drop(taken);
        assert!(checks.sync(&desired(&[("svc", port, 1)])).await.is_empty() && !checks.has_refused_ports());
        for ip in IPS {
            assert_eq!(seen(ip, port).await, Some((200, 1)));
        }
    }

    #[tokio::test]
    async fn both_families_can_use_the_same_port() {
        let [port] = free_ports("::");
        let mut v4 = ServiceHealth::new(Family::V4, NodePorts::AllLocal, None);
        let mut v6 = ServiceHealth::new(Family::V6, NodePorts::AllLocal, None);
        assert!(v4.sync(&desired(&[("svc", port, 4)])).await.is_empty());
        assert!(v6.sync(&desired(&[("svc", port, 6)])).await.is_empty());
        assert_eq!((seen("127.0.0.1", port).await, seen("::1", port).await), (Some((200, 4)), Some((200, 6))));
        assert!(v4.sync(&desired(&[])).await.is_empty());
        assert_eq!((seen("127.0.0.1", port).await, seen("::1", port).await), (None, Some((200, 6))));
    }

    #[tokio::test]
    async fn every_method_gets_the_answer() {
        const IP: &str = "127.40.6.1";
        let [port] = free_ports(IP);
        let mut checks = on(&[IP], None);
        assert!(checks.sync(&desired(&[("svc", port, 1)])).await.is_empty());
        let address = SocketAddr::new(IP.parse().expect("an address"), port);
        let posted = say(address, "POST / HTTP/1.0\r\n\r\n").await.expect("an answer");
        assert!(posted.starts_with("HTTP/1.0 200 OK\r\n") || posted.starts_with("HTTP/1.1 200 OK\r\n"), "{posted}");
    }
}
