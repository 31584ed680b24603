//! The effect of hostile objects on the rules. SECURITY.md refers to these tests.

use sepal::cluster::Family;
use serde_json::{Value, json};

use crate::common;

/// Texts that an attacker would inject into the rules: a line, an option, the end of a comment.
const INJECTED: [&str; 5] =
    ["x\n-A INPUT -j INJECTED", "x\" -j INJECTED", "10.0.0.1 -j INJECTED", "x\nCOMMIT\n*nat\n-F INJECTED", "../../INJECTED"];

fn service(namespace: &str, name: &str, ip: &str) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Service", "metadata": {"namespace": namespace, "name": name},
        "spec": {
            "type": "LoadBalancer", "clusterIP": ip, "clusterIPs": [ip], "externalIPs": ["198.51.100.7"], "loadBalancerSourceRanges": ["192.0.2.0/24"],
            "sessionAffinity": "None", "externalTrafficPolicy": "Cluster", "internalTrafficPolicy": "Cluster",
            "ports": [{"name": "http", "port": 80, "protocol": "TCP", "nodePort": 30080, "targetPort": "http"}],
        },
        "status": {"loadBalancer": {"ingress": [{"ip": "203.0.113.6", "ipMode": "VIP"}]}},
    })
}

fn slice(namespace: &str, service: &str, address: &str) -> Value {
    json!({
        "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4",
        "metadata": {"namespace": namespace, "name": format!("{service}-1"), "labels": {"kubernetes.io/service-name": service}},
        "endpoints": [{"addresses": [address], "nodeName": "elsewhere", "zone": "z", "hints": {"forZones": [{"name": "z"}]}}],
        "ports": [{"name": "http", "port": 8080, "protocol": "TCP"}],
    })
}

fn victim() -> Vec<Value> {
    vec![service("shop", "web", "10.96.0.10"), slice("shop", "web", "10.244.1.6")]
}

fn rules(objects: &[Value]) -> Vec<String> {
    let text: String = objects.iter().map(|object| format!("---\n{object}\n")).collect();
    let inputs = common::inputs(&text).unwrap_or_else(|error| panic!("{error}"));
    common::rendered(&inputs, Family::V4).lines().map(str::to_owned).collect()
}

/// The JSON pointers of all texts in an object, except kind and version.
fn texts(object: &Value, at: &str, found: &mut Vec<String>) {
    match object {
        Value::String(_) if at != "/apiVersion" && at != "/kind" => found.push(at.to_owned()),
        Value::Array(items) => items.iter().enumerate().for_each(|(index, item)| texts(item, &format!("{at}/{index}"), found)),
        Value::Object(fields) => {
            fields.iter().for_each(|(name, value)| texts(value, &format!("{at}/{}", name.replace('~', "~0").replace('/', "~1")), found));
        }
        _ => {}
    }
}

/// Replaces each text of an object by a hostile one in turn. Nothing of it appears in the rules, and the victim's rules are unchanged.
fn says_nothing_of_its_own(object: &Value, with: &[Value]) {
    let victims = rules(&victim());
    let mut places = Vec::new();
    texts(object, "", &mut places);
    assert!(places.len() > 8, "{places:?}");
    for place in places {
        for hostile in INJECTED {
            let mut spoiled = object.clone();
            *spoiled.pointer_mut(&place).expect("it is there") = json!(hostile);
            let rules = rules(&[victim(), with.to_vec(), vec![spoiled]].concat());
            let text = rules.join("\n");
            assert!(!text.contains("INJECTED"), "{place}: {hostile:?}:\n{text}");
            assert!(
                rules.iter().all(|line| line.starts_with(":KUBE-")
                    || line.starts_with("-A KUBE-")
                    || ["*filter", "*nat", "COMMIT", ""].contains(&line.as_str())),
                "{text}"
            );
            let missing: Vec<&String> = victims.iter().filter(|line| !rules.contains(line)).collect();
            assert!(missing.is_empty(), "{place}: {hostile:?}: {missing:#?}");
        }
    }
}

#[test]
fn a_service_says_nothing_of_its_own_in_the_rules() {
    says_nothing_of_its_own(&service("evil", "web", "10.96.0.66"), &[slice("evil", "web", "10.244.6.6")]);
}

#[test]
fn an_endpoint_slice_says_nothing_of_its_own_in_the_rules() {
    says_nothing_of_its_own(&slice("evil", "web", "10.244.6.6"), &[service("evil", "web", "10.96.0.66")]);
}

/// A slice belongs to a Service of its own namespace, for every name.
#[test]
fn a_slice_reaches_no_service_of_another_namespace() {
    let alone = rules(&victim());
    for label in ["web", "shop/web", "../shop/web", "shop/web:http"] {
        let rules = rules(&[victim(), vec![slice("evil", label, "10.244.6.6")]].concat());
        assert_eq!(rules, alone, "{label}");
    }
}

/// Two Services that claim one address both have their rules, as in kube-proxy: the first by name is matched first. Both keep their other
/// addresses.
#[test]
fn two_services_with_one_address_keep_their_other_addresses() {
    let thief = service("evil", "web", "10.96.0.10");
    let rules = rules(&[victim(), vec![thief, slice("evil", "web", "10.244.6.6")]].concat());
    for line in rules_of_victim() {
        assert!(rules.contains(&line), "{line}");
    }
}

fn rules_of_victim() -> Vec<String> {
    rules(&victim()).into_iter().filter(|line| line.contains("shop/web:http")).collect()
}
