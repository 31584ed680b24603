//! The Services of a soak as API objects.

use std::net::{IpAddr, Ipv4Addr};

use serde_json::{Value, json};

use super::testbed::Testbed;

/// ClusterIP of the Service that the clients probe.
pub(super) const CLUSTER_IP: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 96, 0, 53));
/// Name of the Service that the clients probe.
pub(super) const PROBED: &str = "probed";

fn port(name: &str, number: u16, protocol: &str) -> Value {
    json!({"name": name, "port": number, "protocol": protocol})
}

/// Returns a Service with a port for each server that a pod runs.
pub(super) fn service(name: &str, ip: IpAddr) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Service", "metadata": {"name": name, "namespace": "soak"},
        "spec": {"type": "ClusterIP", "clusterIP": ip, "clusterIPs": [ip], "ipFamilies": ["IPv4"], "ports": [port("web", 80, "TCP"), port("dns", 53, "UDP"), port("echo", 7, "TCP")]},
    })
}

/// Returns the EndpointSlice of a Service. `pods` are indexes into the testbed's pods.
pub(super) fn slice(testbed: &Testbed, name: &str, pods: &[usize]) -> Value {
    let endpoint = |pod: &usize| json!({"addresses": [testbed.pods[*pod].ips[0]], "nodeName": testbed.cluster.nodes[*pod].name, "conditions": {"ready": true}});
    let pod = &testbed.pods[0];
    let [tcp, udp, echo] = [pod.tcp(CLUSTER_IP), pod.udp(CLUSTER_IP), pod.echo(CLUSTER_IP)].map(|address| address.port());
    json!({
        "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4",
        "metadata": {"name": format!("{name}-1"), "namespace": "soak", "labels": {"kubernetes.io/service-name": name}},
        "endpoints": pods.iter().map(endpoint).collect::<Vec<_>>(), "ports": [port("web", tcp, "TCP"), port("dns", udp, "UDP"), port("echo", echo, "TCP")],
    })
}

/// Creates or replaces an object at the API server.
pub(super) fn put(testbed: &Testbed, object: Value) {
    testbed.cluster.server.put(object).expect("the API server accepts the object");
}

/// Creates the Service that the clients probe. Its endpoints are on node-2 and node-3.
pub(super) fn put_probed_service(testbed: &Testbed) {
    put(testbed, service(PROBED, CLUSTER_IP));
    put(testbed, slice(testbed, PROBED, &[1, 2]));
}
