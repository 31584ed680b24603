//! API objects of a cluster of any size: ClusterIP Services with one port and a number of endpoints each.

use serde_json::{Value, json};

/// Label that names the Service of an EndpointSlice.
const SERVICE_NAME: &str = "kubernetes.io/service-name";

/// The size of a cluster of equal Services.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cluster {
    /// Number of Services.
    pub services: usize,
    /// Number of endpoints per Service and family. The addresses of different Services differ up to 150.
    pub endpoints: usize,
    /// Every Service also has an IPv6 address and an EndpointSlice with IPv6 endpoints.
    pub dual_stack: bool,
}

/// The EndpointSlices of a Service hold at most this many endpoints, as Kubernetes makes them.
const SLICE_SIZE: usize = 1000;

impl Cluster {
    /// A cluster with IPv4 only.
    pub const fn new(services: usize, endpoints: usize) -> Self {
        Self { services, endpoints, dual_stack: false }
    }

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
        let host = index * 150 + endpoint + 1;
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

    /// Returns the EndpointSlices that a Service starts with.
    fn first_slices(&self, index: usize) -> Vec<Value> {
        let ips: Vec<String> = (0..self.endpoints).map(|endpoint| Self::endpoint_ip(index, endpoint)).collect();
        let mut slices: Vec<Value> = ips.chunks(SLICE_SIZE).map(|ips| Self::slice(index, ips)).collect();
        for (number, slice) in slices.iter_mut().enumerate().skip(1) {
            slice["metadata"]["name"] = format!("{}-{number}", Self::name(index)).into();
        }
        if self.dual_stack {
            let ips: Vec<String> = (0..self.endpoints).map(|endpoint| format!("fd00:{index:x}::{:x}", endpoint + 1)).collect();
            let mut slice = Self::slice(index, &ips);
            slice["addressType"] = "IPv6".into();
            slice["metadata"]["name"] = format!("{}-ipv6", Self::name(index)).into();
            slices.push(slice);
        }
        slices
    }

    /// Returns the Service object that the cluster starts with.
    fn first_service(&self, index: usize) -> Value {
        let mut service = Self::service(index);
        if self.dual_stack {
            service["spec"]["clusterIPs"] = json!([Self::cluster_ip(index), format!("fd96::{:x}:{:x}", index >> 16, index & 0xffff)]);
            service["spec"]["ipFamilies"] = json!(["IPv4", "IPv6"]);
            service["spec"]["ipFamilyPolicy"] = "RequireDualStack".into();
        }
        service
    }

    /// Returns a Node object.
    fn node(name: &str) -> Value {
        json!({
            "apiVersion": "v1", "kind": "Node", "metadata": {"name": name},
            "status": {"addresses": [{"type": "InternalIP", "address": "192.168.61.13"}]},
        })
    }

    /// Returns every Service and EndpointSlice, and the Node `bench`.
    pub fn objects(self) -> impl Iterator<Item = Value> {
        let of_service = move |index| std::iter::once(self.first_service(index)).chain(self.first_slices(index));
        (0..self.services).flat_map(of_service).chain([Self::node("bench")])
    }

    /// Returns the cluster as a manifest with one JSON document per line.
    pub fn manifest(&self) -> String {
        self.objects().map(|object| format!("{object}\n")).collect()
    }
}
