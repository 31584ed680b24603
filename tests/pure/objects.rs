//! Arbitrary API objects for property tests. They use few names, so that slices match Services and successive clusters overlap. A part of the
//! objects is invalid.

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

pub(crate) fn service() -> impl Strategy<Value = Value> {
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

pub(crate) fn slice() -> impl Strategy<Value = Value> {
    let endpoint = (
        vec(ip(), 0..3),
        option::of(any::<bool>()),
        option::of(any::<bool>()),
        option::of(any::<bool>()),
        option::of(pick(&["host", "there"])),
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

/// Port names that Services and slices share.
const PORTS: [(&str, u16, &str); 4] = [("http", 80, "TCP"), ("dns", 53, "UDP"), ("dns-tcp", 53, "TCP"), ("", 9000, "SCTP")];

const FAMILIES: [&[&str]; 3] = [&["IPv4"], &["IPv6"], &["IPv4", "IPv6"]];

fn address(family: &str, net: u8, last: u8) -> String {
    if family == "IPv6" { format!("fd61:{net}::{last}") } else { format!("10.{net}.0.{last}") }
}

/// A valid Service with one of a few names.
fn sound_service() -> impl Strategy<Value = Value> {
    let names = (proptest::sample::select(&["a", "b"][..]), proptest::sample::select(&["x", "y", "z"][..]));
    let families = proptest::sample::select(&FAMILIES[..]);
    let ports = proptest::sample::subsequence(&PORTS[..], 1..=PORTS.len());
    let policies = (any::<bool>(), any::<bool>(), option::of(option::of(1_i32..20_000)));
    let others = (0_u8..4, vec(1_u8..4, 0..2), vec(1_u8..4, 0..3), vec(1_u8..4, 1..3), option::of(1_u8..3));
    (names, families, ports, policies, others, 1_u8..40).prop_map(|(names, families, ports, policies, others, number)| {
        let (kind, external, balancers, ranges, node_ports) = others;
        let local = |local: bool| if local { "Local" } else { "Cluster" };
        let of_all = |net: u8, lasts: &[u8]| -> Vec<String> {
            lasts.iter().flat_map(|last| families.iter().map(move |family| address(family, net, *last))).collect()
        };
        let ips = of_all(96, &[number]);
        let ports = ports.iter().enumerate().map(|(i, (name, port, protocol))| {
            // Node ports differ within one Service; two Services may claim the same.
            let node_port = if kind > 0 { node_ports.map(|base| 30_000 + u32::from(base) * 10 + u32::try_from(i).unwrap_or_default()) } else { None };
            json!({"name": name, "port": port, "protocol": protocol, "nodePort": node_port})
        });
        let type_name = ["ClusterIP", "NodePort", "LoadBalancer", "LoadBalancer"][usize::from(kind)];
        let mut spec = json!({
            "type": type_name, "ports": ports.collect::<Vec<_>>(),
            "clusterIP": ips[0], "clusterIPs": ips, "ipFamilies": families, "internalTrafficPolicy": local(policies.0),
            "externalIPs": of_all(98, &external),
        });
        if let Some(seconds) = policies.2 {
            spec["sessionAffinity"] = json!("ClientIP");
            spec["sessionAffinityConfig"] = seconds.map_or(Value::Null, |seconds| json!({"clientIP": {"timeoutSeconds": seconds}}));
        }
        if kind > 0 {
            spec["externalTrafficPolicy"] = json!(local(policies.1));
        }
        if kind == 3 {
            let nets = of_all(99, &ranges);
            spec["loadBalancerSourceRanges"] = nets.iter().map(|ip| json!(format!("{ip}/{}", if ip.contains(':') { 64 } else { 24 }))).collect();
        }
        let ingress = of_all(97, &balancers);
        json!({
            "apiVersion": "v1", "kind": "Service", "metadata": {"namespace": names.0, "name": names.1}, "spec": spec,
            "status": {"loadBalancer": {"ingress": if kind > 1 { ingress.iter().map(|ip| json!({"ip": ip})).collect() } else { Vec::new() }}},
        })
    })
}

/// A valid slice of a Service that may exist.
fn sound_slice() -> impl Strategy<Value = Value> {
    let names = (proptest::sample::select(&["a", "b"][..]), proptest::sample::select(&["x", "y", "z"][..]), 0_u8..2);
    let family = proptest::sample::select(&["IPv4", "IPv6"][..]);
    let conditions = proptest::sample::select(&[[true, true, false], [true, true, false], [false, true, true], [false, false, false]][..]);
    let endpoint = (1_u8..9, conditions, any::<bool>(), option::weighted(0.2, proptest::sample::select(&["a", "b"][..])));
    let ports = proptest::sample::subsequence(&PORTS[..], 1..=PORTS.len());
    (names, family, vec(endpoint, 0..5), ports).prop_map(|(names, family, endpoints, ports)| {
        let (namespace, service, number) = names;
        let endpoints = endpoints.into_iter().map(|(last, [ready, serving, terminating], here, zone)| {
            let hints = zone.map(|zone| json!({"forZones": [{"name": zone}]}));
            json!({
                "addresses": [address(family, 61, last)], "nodeName": if here { "host" } else { "there" }, "hints": hints,
                "conditions": {"ready": ready, "serving": serving, "terminating": terminating},
            })
        });
        json!({
            "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": family,
            "metadata": {"namespace": namespace, "name": format!("{service}-{family}-{number}"), "labels": {"kubernetes.io/service-name": service}},
            "endpoints": endpoints.collect::<Vec<_>>(),
            "ports": ports.iter().map(|(name, port, protocol)| json!({"name": name, "port": port + 8000, "protocol": protocol})).collect::<Vec<_>>(),
        })
    })
}

pub(crate) fn node() -> impl Strategy<Value = Value> {
    (vec(ip(), 0..3), vec(cidr(), 0..3), word()).prop_map(|(addresses, cidrs, zone)| {
        json!({
            "apiVersion": "v1", "kind": "Node", "metadata": {"name": "host", "labels": {"topology.kubernetes.io/zone": zone}},
            "spec": {"podCIDRs": cidrs}, "status": {"addresses": addresses.into_iter().map(|ip| json!({"type": "InternalIP", "address": ip})).collect::<Vec<_>>()},
        })
    })
}

pub(crate) fn cluster() -> impl Strategy<Value = Vec<Value>> {
    let services = vec(prop_oneof![4 => sound_service().boxed(), 1 => service().boxed()], 1..8);
    let slices = vec(prop_oneof![6 => sound_slice().boxed(), 1 => slice().boxed()], 4..24);
    (services, slices, node()).prop_map(|(services, slices, node)| {
        // One object per name: of several the last one counts, so that their order would matter.
        let mut objects: Vec<Value> = services.into_iter().chain(slices).chain([node]).collect();
        let mut seen = std::collections::HashSet::new();
        objects.retain(|object| {
            seen.insert((object["kind"].to_string(), object["metadata"]["namespace"].to_string(), object["metadata"]["name"].to_string()))
        });
        objects
    })
}

pub(crate) fn text(objects: &[Value]) -> String {
    objects.iter().map(|object| format!("{object}\n")).collect()
}
