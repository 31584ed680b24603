//! Sets the API server's defaults in objects from manifests. PURE.
//!
//! Only fields that the conversion ([`super::convert`]) would misread when absent are set here. It already uses the API server's default for
//! all other absent fields (type, protocol, session affinity and its timeout, traffic policies, conditions, ipMode).

use serde_json::{Value, json};

use super::object::Kind;

/// Sets the defaults of an object. Returns a sentence for each field that only an API server can choose.
pub(super) fn fill(kind: Kind, object: &mut Value) -> Vec<String> {
    match kind {
        Kind::Service => service(object),
        Kind::EndpointSlice => {
            // `SetDefaults_EndpointPort`; kube-proxy ignores a port whose name is null [kube-proxy 4].
            for port in object.get_mut("ports").and_then(Value::as_array_mut).into_iter().flatten().filter_map(Value::as_object_mut) {
                for (field, default) in [("name", ""), ("protocol", "TCP")] {
                    let value = port.entry(field).or_insert(Value::Null);
                    if value.is_null() {
                        *value = default.into();
                    }
                }
            }
            Vec::new()
        }
        Kind::Node => Vec::new(),
    }
}

fn service(object: &mut Value) -> Vec<String> {
    let Some(spec) = object.get_mut("spec").and_then(Value::as_object_mut) else { return Vec::new() };
    let is_empty = |value: Option<&Value>| value.is_none_or(|value| value.is_null() || value.as_array().is_some_and(Vec::is_empty));
    let text = |value: Option<&Value>| value.and_then(Value::as_str).unwrap_or_default().to_owned();
    let (kind, cluster_ip) = (text(spec.get("type")), text(spec.get("clusterIP")));
    if kind == "ExternalName" || cluster_ip == "None" {
        return Vec::new();
    }
    if cluster_ip.is_empty() {
        return vec!["no rules: it has no clusterIP, which the API server would choose. Write one".into()];
    }
    if is_empty(spec.get("clusterIPs")) {
        spec.insert("clusterIPs".into(), json!([cluster_ip]));
    }
    // With one address, the conversion finds the family itself.
    if is_empty(spec.get("ipFamilies"))
        && let Some(ips) = spec.get("clusterIPs").and_then(Value::as_array).filter(|ips| ips.len() > 1)
    {
        let family = |ip: &Value| if text(Some(ip)).contains(':') { "IPv6" } else { "IPv4" };
        let families: Vec<&str> = ips.iter().map(family).collect();
        spec.insert("ipFamilies".into(), json!(families));
    }
    let has_node_ports =
        kind == "NodePort" || kind == "LoadBalancer" && spec.get("allocateLoadBalancerNodePorts") != Some(&Value::Bool(false));
    let ports = spec.get("ports").and_then(Value::as_array).into_iter().flatten().filter(|_| has_node_ports);
    let without = ports.filter(|port| port.get("nodePort").and_then(Value::as_u64).unwrap_or_default() == 0);
    without
        .map(|port| {
            let number = port.get("port").unwrap_or(&Value::Null);
            format!("no NodePort rules for port {number}: it has no nodePort, which the API server would choose. Write one")
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn filled(kind: Kind, mut object: Value) -> Value {
        assert_eq!(fill(kind, &mut object), Vec::<String>::new());
        object
    }

    #[test]
    fn ports_of_slices_get_a_name_and_a_protocol() {
        let slice = json!({"ports": [{"port": 1}, {"name": null, "protocol": null}, {"name": "a", "protocol": "UDP"}]});
        let want = json!({"ports": [{"port": 1, "name": "", "protocol": "TCP"}, {"name": "", "protocol": "TCP"}, {"name": "a", "protocol": "UDP"}]});
        assert_eq!(filled(Kind::EndpointSlice, slice), want);
        for odd in [json!({}), json!({"ports": null}), json!({"ports": "x"}), json!({"ports": ["x"]}), json!([])] {
            assert_eq!(filled(Kind::EndpointSlice, odd.clone()), odd);
        }
    }

    #[test]
    fn cluster_ips_and_families_are_completed() {
        let spec = |spec: Value| filled(Kind::Service, json!({"spec": spec}))["spec"].take();
        assert_eq!(
            spec(json!({"clusterIP": "10.0.0.1", "ipFamilies": ["IPv4"]})),
            json!({"clusterIP": "10.0.0.1", "clusterIPs": ["10.0.0.1"], "ipFamilies": ["IPv4"]})
        );
        let both = json!({"clusterIP": "fd00::1", "clusterIPs": ["fd00::1", "10.0.0.1"], "ipFamilies": []});
        assert_eq!(spec(both)["ipFamilies"], json!(["IPv6", "IPv4"]));
        for alone in [json!({"clusterIP": "None"}), json!({"type": "ExternalName"}), json!(null)] {
            assert_eq!(spec(alone.clone()), alone);
        }
    }

    #[test]
    fn fields_that_only_a_server_can_choose_are_named() {
        for (spec, want) in [
            (json!({}), "no rules: it has no clusterIP"),
            (json!({"clusterIP": "10.0.0.1", "type": "NodePort", "ports": [{"port": 80}]}), "no NodePort rules for port 80: "),
            (
                json!({"clusterIP": "10.0.0.1", "type": "LoadBalancer", "ports": [{"port": 80, "nodePort": 0}]}),
                "no NodePort rules for port 80: ",
            ),
        ] {
            let found = fill(Kind::Service, &mut json!({"spec": spec}));
            assert!(found.len() == 1 && found[0].starts_with(want), "{spec}: {found:?}");
        }
        let without =
            json!({"clusterIP": "10.0.0.1", "type": "LoadBalancer", "allocateLoadBalancerNodePorts": false, "ports": [{"port": 80}]});
        assert_eq!(fill(Kind::Service, &mut json!({"spec": without})), Vec::<String>::new());
    }
}
