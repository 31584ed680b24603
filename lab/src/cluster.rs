//! API objects of a cluster of any size: ClusterIP Services with one port and a number of endpoints each.

use serde_json::{Value, json};

/// Label that names the Service of an EndpointSlice.
const SERVICE_NAME: &str = "kubernetes.io/service-name";

/// The size of a cluster of equal Services.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cluster {
    /// Number of Services.
    pub services: usize,
    /// Number of endpoints per Service, at most 250.
    pub endpoints: usize,
}

impl Cluster {
    /// Returns the name of a Service. Its namespace is `bench`.
    pub fn name(index: usize) -> String {
        format!("svc-{index:05}")
    }

    /// Returns the cluster IP of a Service, within 10.96.0.0/12. The service port is 80.
    pub fn cluster_ip(index: usize) -> String {
        let host = index + 1;
        format!("10.{}.{}.{}", 96 + (host >> 16), (host >> 8) & 0xff, host & 0xff)
    }

    /// Returns the address of an endpoint, within 10.128.0.0/9.
    pub fn endpoint_ip(index: usize, endpoint: usize) -> String {
        let host = index * 250 + endpoint + 1;
        format!("10.{}.{}.{}", 128 + (host >> 16), (host >> 8) & 0xff, host & 0xff)
    }

    /// Returns a Service object.
    pub fn service(index: usize) -> Value {
        let (name, ip) = (Self::name(index), Self::cluster_ip(index));
        json!({
            "apiVersion": "v1", "kind": "Service",
            "metadata": {
                "name": name, "namespace": "bench", "labels": {"app": name},
                "annotations": {"example.org/owner": "a team with a long name", "example.org/ticket": "OPS-12345"},
                "managedFields": [{"manager": "kubectl", "operation": "Update", "apiVersion": "v1", "fieldsType": "FieldsV1",
                    "fieldsV1": {"f:metadata": {"f:labels": {".": {}, "f:app": {}}}, "f:spec": {"f:ports": {}, "f:selector": {}, "f:type": {}}}}],
            },
            "spec": {
                "type": "ClusterIP", "clusterIP": ip, "clusterIPs": [ip], "ipFamilies": ["IPv4"], "ipFamilyPolicy": "SingleStack",
                "internalTrafficPolicy": "Cluster", "sessionAffinity": "None", "selector": {"app": name},
                "ports": [{"name": "http", "port": 80, "protocol": "TCP", "targetPort": 8080}],
            },
            "status": {"loadBalancer": {}},
        })
    }

    /// Returns the EndpointSlice of a Service with these endpoints.
    pub fn slice(index: usize, endpoints: &[String]) -> Value {
        let name = Self::name(index);
        let endpoint = |ip: &String| {
            json!({
                "addresses": [ip], "conditions": {"ready": true, "serving": true, "terminating": false}, "nodeName": "worker-17", "zone": "a",
                "targetRef": {"kind": "Pod", "namespace": "bench", "name": format!("{name}-7d4b9c6f5-{}", ip.replace('.', "-")), "uid": "6f1c1e9e-6d0a-4d4e-9d40-51a2a6a3b7c1"},
            })
        };
        json!({
            "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4",
            "metadata": {
                "name": format!("{name}-x7k2p"), "namespace": "bench",
                "labels": {SERVICE_NAME: name, "endpointslice.kubernetes.io/managed-by": "endpointslice-controller.k8s.io"},
            },
            "endpoints": endpoints.iter().map(endpoint).collect::<Vec<_>>(),
            "ports": [{"name": "http", "port": 8080, "protocol": "TCP"}],
        })
    }

    /// Returns the addresses of the endpoints that a Service starts with.
    fn first_endpoints(&self, index: usize) -> Vec<String> {
        (0..self.endpoints).map(|endpoint| Self::endpoint_ip(index, endpoint)).collect()
    }

    /// Returns a Node object.
    fn node(name: &str) -> Value {
        json!({
            "apiVersion": "v1", "kind": "Node", "metadata": {"name": name},
            "status": {"addresses": [{"type": "InternalIP", "address": "192.168.61.13"}]},
        })
    }

    /// Returns every Service and EndpointSlice, and the Node `bench`.
    pub fn objects(&self) -> impl Iterator<Item = Value> {
        let of_service = |index| [Self::service(index), Self::slice(index, &self.first_endpoints(index))];
        (0..self.services).flat_map(of_service).chain([Self::node("bench")])
    }

    /// Returns the cluster as a manifest with one JSON document per line.
    pub fn manifest(&self) -> String {
        self.objects().map(|object| format!("{object}\n")).collect()
    }
}
