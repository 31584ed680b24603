//! Arbitrary API objects, half of them nonsense.

use proptest::collection::vec;
use proptest::option;
use proptest::prelude::*;
use serde_json::{Value, json};

fn word() -> impl Strategy<Value = String> {
    prop_oneof![6 => "[a-c]", 1 => "[a-z0-9.-]{1,30}", 1 => any::<String>()]
}

fn ip() -> impl Strategy<Value = String> {
    prop_oneof![
        8 => (0u8..3, 0u8..6).prop_map(|(b, d)| format!("10.61.{b}.{d}")),
        4 => (0u8..6).prop_map(|d| format!("fd61::{d}")),
        1 => Just("010.061.000.001".to_owned()),
        1 => Just("::ffff:10.61.0.1".to_owned()),
        1 => "[0-9.:a-f]{0,12}",
        1 => any::<String>(),
    ]
}

fn cidr() -> impl Strategy<Value = String> {
    (ip(), prop_oneof![Just(0u8), Just(8), Just(24), Just(32), Just(64), any::<u8>()]).prop_map(|(ip, len)| format!("{ip}/{len}"))
}

fn port() -> impl Strategy<Value = Value> {
    prop_oneof![6 => (80i64..84).prop_map(Value::from), 2 => (30000i64..30003).prop_map(Value::from), 1 => any::<i32>().prop_map(Value::from), 1 => Just(json!("web"))]
}

fn pick(texts: &'static [&'static str]) -> impl Strategy<Value = String> {
    prop_oneof![12 => proptest::sample::select(texts).prop_map(str::to_owned), 1 => any::<String>()]
}

pub fn service() -> impl Strategy<Value = Value> {
    let names = (word(), word());
    let addresses = (ip(), ip(), option::of(vec(pick(&["IPv4", "IPv6"]), 0..3)), vec(ip(), 0..3), vec(ip(), 0..3), vec(cidr(), 0..3));
    let policy = (
        pick(&["ClusterIP", "NodePort", "LoadBalancer", "ExternalName"]),
        pick(&["Cluster", "Local"]),
        pick(&["Cluster", "Local"]),
        pick(&["None", "ClientIP"]),
    );
    let ports = vec((word(), port(), pick(&["TCP", "UDP", "SCTP"]), option::of(port())), 0..4);
    (names, addresses, policy, ports, option::of(any::<i32>()), option::of(port())).prop_map(|(names, addresses, policy, ports, seconds, health)| {
        let (first, second, families, external, vips, ranges) = addresses;
        json!({
            "apiVersion": "v1", "kind": "Service", "metadata": {"namespace": names.0, "name": names.1},
            "spec": {
                "type": policy.0, "externalTrafficPolicy": policy.1, "internalTrafficPolicy": policy.2, "sessionAffinity": policy.3,
                "sessionAffinityConfig": {"clientIP": {"timeoutSeconds": seconds}}, "healthCheckNodePort": health,
                "clusterIP": first, "clusterIPs": [first, second], "ipFamilies": families, "externalIPs": external, "loadBalancerSourceRanges": ranges,
                "ports": ports.into_iter().map(|(name, port, protocol, node_port)| json!({"name": name, "port": port, "protocol": protocol, "nodePort": node_port})).collect::<Vec<_>>(),
            },
            "status": {"loadBalancer": {"ingress": vips.into_iter().map(|ip| json!({"ip": ip})).collect::<Vec<_>>()}},
        })
    })
}

type AnyEndpoint = (Vec<String>, Option<bool>, Option<bool>, Option<bool>, Option<String>, Option<Vec<String>>);

pub fn slice() -> impl Strategy<Value = Value> {
    let endpoint = (
        vec(ip(), 0..3),
        option::of(any::<bool>()),
        option::of(any::<bool>()),
        option::of(any::<bool>()),
        option::of(pick(&["here", "there"])),
        option::of(vec(word(), 0..3)),
    );
    let ports = vec((option::of(word()), option::of(port()), option::of(pick(&["TCP", "UDP", "SCTP"]))), 0..4);
    (word(), word(), word(), pick(&["IPv4", "IPv4", "IPv6", "FQDN"]), vec(endpoint, 0..5), ports).prop_map(|(namespace, name, service, family, endpoints, ports)| {
        let endpoint = |(addresses, ready, serving, terminating, node, hints): AnyEndpoint| {
            let hints = hints.map(|hints| json!({"forZones": hints.iter().map(|name| json!({"name": name})).collect::<Vec<_>>()}));
            json!({"addresses": addresses, "conditions": {"ready": ready, "serving": serving, "terminating": terminating}, "nodeName": node, "hints": hints})
        };
        json!({
            "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": family,
            "metadata": {"namespace": namespace, "name": name, "labels": {"kubernetes.io/service-name": service}},
            "endpoints": endpoints.into_iter().map(endpoint).collect::<Vec<_>>(),
            "ports": ports.into_iter().map(|(name, port, protocol)| json!({"name": name, "port": port, "protocol": protocol})).collect::<Vec<_>>(),
        })
    })
}

pub fn node() -> impl Strategy<Value = Value> {
    (vec(ip(), 0..3), vec(cidr(), 0..3), word()).prop_map(|(addresses, cidrs, zone)| {
        json!({
            "apiVersion": "v1", "kind": "Node", "metadata": {"name": "here", "labels": {"topology.kubernetes.io/zone": zone}},
            "spec": {"podCIDRs": cidrs}, "status": {"addresses": addresses.into_iter().map(|ip| json!({"type": "InternalIP", "address": ip})).collect::<Vec<_>>()},
        })
    })
}

pub fn cluster() -> impl Strategy<Value = Vec<Value>> {
    (vec(service(), 0..8), vec(slice(), 0..12), node()).prop_map(|(services, slices, node)| {
        // One object per name: of several the last one counts, so order would matter.
        let mut objects: Vec<Value> = services.into_iter().chain(slices).chain([node]).collect();
        let mut seen = std::collections::HashSet::new();
        objects.retain(|object| {
            seen.insert((object["kind"].to_string(), object["metadata"]["namespace"].to_string(), object["metadata"]["name"].to_string()))
        });
        objects
    })
}

pub fn text(objects: &[Value]) -> String {
    objects.iter().map(|object| format!("{object}\n")).collect()
}
