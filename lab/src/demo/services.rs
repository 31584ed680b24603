//! The Services of the demo, as objects.

use std::net::IpAddr;

use serde_json::{Value, json};

/// Where the pods' servers say their names.
pub(crate) const NAME_PORT: u16 = 8081;

/// A Service of the demo.
pub(crate) struct Shown {
    pub name: &'static str,
    pub cluster_ip: &'static str,
    spec: Value,
}

/// The Services, one of each kind.
pub(crate) fn all() -> Vec<Shown> {
    let shown = |name, cluster_ip, spec| Shown { name, cluster_ip, spec };
    vec![
        shown("web", "10.96.0.10", json!({})),
        shown("door", "10.96.0.11", json!({"type": "NodePort"})),
        shown("sticky", "10.96.0.12", json!({"sessionAffinity": "ClientIP"})),
        shown("local", "10.96.0.13", json!({"type": "LoadBalancer", "externalTrafficPolicy": "Local"})),
        shown("empty", "10.96.0.14", json!({})),
        shown("names", "None", json!({})),
    ]
}

/// The port that a NodePort Service has on every node.
pub(crate) const NODE_PORT: u16 = 30_080;
/// The address of the load balancer.
pub(crate) const BALANCER: &str = "203.0.113.80";

impl Shown {
    /// The Service object.
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

    /// Its EndpointSlice, with these endpoints: addresses and nodes.
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
