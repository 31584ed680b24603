//! The Services of the demo as API objects.

use std::net::IpAddr;

use serde_json::{Value, json};

/// TCP port where a pod answers with its name and the client's address.
pub(crate) const NAME_PORT: u16 = 8081;

/// A Service of the demo.
pub(crate) struct DemoService {
    pub name: &'static str,
    cluster_ip: &'static str,
    spec: Value,
}

/// Returns one Service of each kind.
pub(crate) fn all() -> Vec<DemoService> {
    let service = |name, cluster_ip, spec| DemoService { name, cluster_ip, spec };
    vec![
        service("web", "10.96.0.10", json!({})),
        service("nodeport", "10.96.0.11", json!({"type": "NodePort"})),
        service("sticky", "10.96.0.12", json!({"sessionAffinity": "ClientIP"})),
        service("local", "10.96.0.13", json!({"type": "LoadBalancer", "externalTrafficPolicy": "Local"})),
        service("empty", "10.96.0.14", json!({})),
        service("headless", "None", json!({})),
    ]
}

/// The node port of the NodePort Service.
pub(crate) const NODE_PORT: u16 = 30_080;
/// The load balancer's address.
pub(crate) const BALANCER: &str = "203.0.113.80";

impl DemoService {
    /// Returns the Service object.
    pub(crate) fn service(&self) -> Value {
        let mut port = json!({"name": "http", "port": 80, "protocol": "TCP", "targetPort": NAME_PORT});
        if self.spec["type"] == "NodePort" {
            port["nodePort"] = json!(NODE_PORT);
        }
        if self.spec["type"] == "LoadBalancer" {
            port["nodePort"] = json!(NODE_PORT + 1);
        }
        let mut spec = json!({"type": "ClusterIP", "clusterIP": self.cluster_ip, "clusterIPs": [self.cluster_ip], "ipFamilies": ["IPv4"], "ports": [port]});
        for (key, value) in self.spec.as_object().into_iter().flatten() {
            spec[key] = value.clone();
        }
        let mut service =
            json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": self.name, "namespace": "shop"}, "spec": spec});
        if self.spec["type"] == "LoadBalancer" {
            service["spec"]["healthCheckNodePort"] = json!(NODE_PORT + 2);
            service["status"] = json!({"loadBalancer": {"ingress": [{"ip": BALANCER}]}});
        }
        service
    }

    /// Returns the EndpointSlice with these endpoints, each with its address and node name.
    pub(crate) fn slice(&self, endpoints: &[(IpAddr, &str)]) -> Value {
        let endpoint = |(ip, node): &(IpAddr, &str)| json!({"addresses": [ip], "nodeName": node, "conditions": {"ready": true, "serving": true, "terminating": false}});
        let endpoints: Vec<Value> = endpoints.iter().map(endpoint).collect();
        let mut labels = json!({"kubernetes.io/service-name": self.name});
        if self.cluster_ip == "None" {
            labels["service.kubernetes.io/headless"] = json!("");
        }
        json!({
            "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4",
            "metadata": {"name": format!("{}-1", self.name), "namespace": "shop", "labels": labels},
            "endpoints": endpoints, "ports": [{"name": "http", "port": NAME_PORT, "protocol": "TCP"}],
        })
    }
}
