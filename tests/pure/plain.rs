//! A minimal Service and its slices.

use serde_json::{Value, json};

/// A dual-stack Service with one port, and these fields of its spec.
pub(crate) fn service(name: &str, spec: &Value) -> Value {
    let mut object = json!({
        "apiVersion": "v1", "kind": "Service", "metadata": {"namespace": "ns", "name": name},
        "spec": {"clusterIP": "10.61.0.1", "clusterIPs": ["10.61.0.1", "fd61::1"], "ipFamilies": ["IPv4", "IPv6"], "ports": [{"port": 80}]},
    });
    for (key, value) in spec.as_object().into_iter().flatten() {
        object["spec"][key] = value.clone();
    }
    object
}

/// The slice of a Service in one family. All its endpoints are on another node.
pub(crate) fn slice(service: &str, family: &str, addresses: &[&str]) -> Value {
    json!({
        "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": family,
        "metadata": {"namespace": "ns", "name": format!("{service}-{}", family.to_lowercase()), "labels": {"kubernetes.io/service-name": service}},
        "endpoints": addresses.iter().map(|ip| json!({"addresses": [ip], "nodeName": "there"})).collect::<Vec<_>>(),
        "ports": [{"name": "", "port": 8080}],
    })
}
