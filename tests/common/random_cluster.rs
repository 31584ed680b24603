//! Random valid clusters in which every address and port belongs to one Service.

use proptest::prelude::*;
use serde_json::{Value, json};

/// The random properties of a Service.
#[derive(Clone, Debug)]
pub(crate) struct Dice {
    pub(crate) kind: u8,
    local: [bool; 2],
    affinity: bool,
    ranges: u8,
    endpoints: Vec<(u8, u8)>,
    hints: u8,
}

pub(crate) fn dice() -> impl Strategy<Value = Dice> {
    let endpoints = proptest::collection::vec((0u8..6, 0u8..4), 0..6);
    (0u8..4, any::<[bool; 2]>(), any::<bool>(), 0u8..4, endpoints, 0u8..6)
        .prop_map(|(kind, local, affinity, ranges, endpoints, hints)| Dice { kind, local, affinity, ranges, endpoints, hints })
}

/// A random KubeProxyConfiguration: detectLocalMode and masqueradeAll.
pub(crate) fn settings() -> impl Strategy<Value = Value> {
    (0u8..4, any::<bool>()).prop_map(|(detect, all)| {
        let (mode, cidr) = match detect {
            0 => ("ClusterCIDR", "10.61.0.0/16"),
            1 => ("NodeCIDR", ""),
            2 => ("ClusterCIDR", ""),
            _ => ("BridgeInterface", ""),
        };
        json!({
            "apiVersion": "kubeproxy.config.k8s.io/v1alpha1", "kind": "KubeProxyConfiguration", "detectLocalMode": mode, "clusterCIDR": cidr,
            "detectLocal": {"bridgeInterface": "pods0", "interfaceNamePrefix": ""}, "iptables": {"masqueradeAll": all},
        })
    })
}

/// A random endpoint: one of the two IPv4 pods of the site, or an address that no pod has.
fn endpoint(dice: (u8, u8), hints: u8) -> Value {
    let (which, state) = dice;
    // Besides the two pods there are addresses that no pod has.
    let ip = if which < 4 { format!("10.61.3.{}", 10 + which % 2) } else { format!("10.61.3.{}", 90 + which) };
    let [ready, serving, terminating] =
        [[true, true, false], [false, true, true], [false, false, false], [true, true, false]][usize::from(state)];
    let mut endpoint = json!({
        "addresses": [ip], "nodeName": if which % 2 == 0 { "alder-03" } else { "birch-01" },
        "conditions": {"ready": ready, "serving": serving, "terminating": terminating},
    });
    if hints > 3 {
        endpoint["hints"] = json!({"forZones": [{"name": if which % 3 == 0 { "here" } else { "there" }}]});
    }
    endpoint
}

/// The objects of a cluster. `port` is the endpoints' port.
pub(crate) fn objects(dice: &[Dice], settings: &Value, port: u16) -> Vec<Value> {
    let mut objects = vec![
        settings.clone(),
        json!({"apiVersion": "sepal/v1alpha1", "kind": "HostFacts", "host": {"addresses": ["192.168.61.13/24", "10.61.3.1/24", "10.61.4.1/24"], "nfacct": false, "tcpBeLiberal": false, "noRandomFully": false}}),
        json!({
            "apiVersion": "v1", "kind": "Node", "metadata": {"name": "alder-03", "labels": {"topology.kubernetes.io/zone": "here"}},
            "spec": {"podCIDR": "10.61.3.0/24", "podCIDRs": ["10.61.3.0/24"]},
            "status": {"addresses": [{"type": "InternalIP", "address": "192.168.61.13"}]},
        }),
    ];
    for (number, dice) in dice.iter().enumerate() {
        let (name, ip) = (format!("s{number}"), format!("10.111.0.{}", 10 + number));
        let policy = |local: bool| if local { "Local" } else { "Cluster" };
        let kind = ["ClusterIP", "NodePort", "LoadBalancer", "LoadBalancer"][usize::from(dice.kind)];
        let mut spec = json!({
            "type": kind, "clusterIP": ip, "clusterIPs": [ip], "ipFamilies": ["IPv4"], "internalTrafficPolicy": policy(dice.local[1]),
            "sessionAffinity": if dice.affinity { "ClientIP" } else { "None" }, "externalIPs": if dice.kind == 3 { vec![format!("198.51.100.{}", 10 + number)] } else { vec![] },
            "ports": [{"name": "p", "port": 80, "protocol": "TCP", "nodePort": if dice.kind > 0 { 30_100 + number } else { 0 }}],
        });
        if dice.kind > 0 {
            spec["externalTrafficPolicy"] = json!(policy(dice.local[0]));
        }
        let ranges: &[&str] =
            [&[][..], &["192.168.61.50/32"], &["192.0.2.0/24"], &["192.168.61.0/24", "10.61.0.0/16"]][usize::from(dice.ranges)];
        if dice.kind > 1 {
            spec["loadBalancerSourceRanges"] = json!(ranges);
        }
        let ingress = if dice.kind > 1 { json!([{"ip": format!("203.0.113.{}", 10 + number)}]) } else { json!([]) };
        objects.push(json!({
            "apiVersion": "v1", "kind": "Service", "metadata": {"namespace": "r", "name": name}, "spec": spec, "status": {"loadBalancer": {"ingress": ingress}},
        }));
        let endpoints: Vec<Value> = dice.endpoints.iter().map(|of_endpoint| endpoint(*of_endpoint, dice.hints)).collect();
        objects.push(json!({
            "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4",
            "metadata": {"namespace": "r", "name": format!("{name}-1"), "labels": {"kubernetes.io/service-name": name}},
            "endpoints": endpoints, "ports": [{"name": "p", "port": port, "protocol": "TCP"}],
        }));
    }
    objects
}
