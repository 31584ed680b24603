//! What holds for every cluster, whatever is in it: arbitrary objects, half of them nonsense.

#![allow(clippy::expect_used, clippy::panic, reason = "a test that cannot be set up has failed")]

mod common;

use common::simulator::Simulator;
use proptest::collection::vec;
use proptest::option;
use proptest::prelude::*;
use sepal::cluster::Family;
use sepal::table::parse::Tables;
use sepal::table::plan::{Plan, Variant};
use sepal::table::{diff, rule};
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

fn service() -> impl Strategy<Value = Value> {
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

fn slice() -> impl Strategy<Value = Value> {
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

fn node() -> impl Strategy<Value = Value> {
    (vec(ip(), 0..3), vec(cidr(), 0..3), word()).prop_map(|(addresses, cidrs, zone)| {
        json!({
            "apiVersion": "v1", "kind": "Node", "metadata": {"name": "here", "labels": {"topology.kubernetes.io/zone": zone}},
            "spec": {"podCIDRs": cidrs}, "status": {"addresses": addresses.into_iter().map(|ip| json!({"type": "InternalIP", "address": ip})).collect::<Vec<_>>()},
        })
    })
}

fn cluster() -> impl Strategy<Value = Vec<Value>> {
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

fn text(objects: &[Value]) -> String {
    objects.iter().map(|object| format!("{object}\n")).collect()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, failure_persistence: None, ..ProptestConfig::default() })]

    /// The rules of any cluster can be restored, do not depend on the order of objects, and hold nothing but whole lines.
    #[test]
    fn any_cluster_renders((objects, rotation) in cluster().prop_flat_map(|objects| { let n = objects.len(); (Just(objects), 0..n) })) {
        let inputs = common::inputs(&text(&objects)).map_err(TestCaseError::fail)?;
        let mut turned = objects.clone();
        turned.rotate_left(rotation);
        turned.reverse();
        let other = common::inputs(&text(&turned)).map_err(TestCaseError::fail)?;
        for family in Family::ALL {
            let rendered = common::rendered(&inputs, family);
            prop_assert_eq!(&rendered, &common::rendered(&other, family));
            Simulator::default().restore(&rendered, |_| ()).map_err(TestCaseError::fail)?;
            for line in rendered.lines() {
                prop_assert!(line.starts_with([':', '*', '-']) || line == "COMMIT", "{:?}", line);
                prop_assert_eq!(line.matches('"').count() % 2, 0, "{:?}", line);
            }
        }
    }

    /// From the rules of one cluster to those of another, by either variant's plan: every step can be made, and both end in the same tables.
    #[test]
    fn any_change_ends_in_the_same_tables(before in cluster(), after in cluster()) {
        let before = common::inputs(&text(&before)).map_err(TestCaseError::fail)?;
        let after = common::inputs(&text(&after)).map_err(TestCaseError::fail)?;
        for family in Family::ALL {
            let (old, new) = (common::rule_set(&before, family), common::rule_set(&after, family));
            let mut ends = Vec::new();
            for variant in [Variant::Nft, Variant::Legacy] {
                let mut simulator = Simulator::default();
                for rules in [&old, &new] {
                    let saved = simulator.save();
                    let mut tables = Tables::default();
                    tables.read(&saved);
                    let plan = Plan::full(rules, Some(&tables), variant);
                    simulator.restore(&plan.text(), |_| ()).map_err(TestCaseError::fail)?;
                }
                let saved = simulator.save();
                let mut tables = Tables::default();
                tables.read(&saved);
                prop_assert_eq!(diff::unified(&new, &tables), "");
                ends.push(simulator);
            }
            prop_assert_eq!(&ends[0], &ends[1]);
            // Nothing is left that a fresh start would not have written.
            let mut fresh = Simulator::default();
            let plan = Plan::full(&new, Some(&NOTHING_LIVE), Variant::Legacy).text();
            fresh.restore(&plan, |_| ()).map_err(TestCaseError::fail)?;
            let mut end = ends.remove(0);
            // KUBE-FIREWALL is kubelet's too: what was written to it stays until it is written again.
            for tables in [&mut end, &mut fresh] {
                tables.tables.get_mut("filter").expect("a table").remove("KUBE-FIREWALL");
            }
            prop_assert_eq!(end, fresh);
        }
    }

    /// While a service port does not change, every COMMIT on the way leaves it complete: whoever reaches a chain of it finds all of it.
    #[test]
    fn what_does_not_change_is_never_half_there(objects in cluster(), more in vec(service(), 0..4)) {
        let before = common::inputs(&text(&objects)).map_err(TestCaseError::fail)?;
        let grown: Vec<Value> = more.into_iter().chain(objects).collect();
        let after = common::inputs(&text(&grown)).map_err(TestCaseError::fail)?;
        let (old, new) = (common::rule_set(&before, Family::V4), common::rule_set(&after, Family::V4));
        let kept: Vec<_> = old.services.iter().filter(|service| new.services.contains(service)).collect();
        let mut simulator = Simulator::default();
        simulator.restore(&Plan::full(&old, Some(&NOTHING_LIVE), Variant::Nft).text(), |_| ()).map_err(TestCaseError::fail)?;
        let saved = simulator.save();
        let mut tables = Tables::default();
        tables.read(&saved);
        let plan = Plan::full(&new, Some(&tables), Variant::Nft).text();
        let mut missing = None;
        simulator.restore(&plan, |state| {
            let nat = &state.tables["nat"];
            for service in &kept {
                for (chain, wanted) in service.chains() {
                    let rules: String = nat.get(chain.as_str()).into_iter().flatten().map(|rule| format!("-A {chain} {rule}\n")).collect();
                    if rules != wanted {
                        missing = Some(format!("{}: {chain} is not whole", service.name));
                    }
                }
                for line in service.nat_dispatch().lines() {
                    let (chain, rule) = line.trim_start_matches("-A ").split_once(' ').expect("a rule");
                    if !nat[chain].iter().any(|found| found == rule) {
                        missing = Some(format!("{}: gone from {chain}", service.name));
                    }
                }
            }
        }).map_err(TestCaseError::fail)?;
        prop_assert_eq!(missing, None);
    }

    /// Whatever stands in a manifest, it is read or refused.
    #[test]
    fn any_text_is_read_or_refused(text in any::<String>(), structured in "([a-z]{0,4}[:\\-\\[\\]{}\"'&*!|>%#,\\n \\t]{0,3}){0,40}") {
        let _ = common::inputs(&text);
        let _ = common::inputs(&structured);
    }

    /// Whatever iptables-save prints, it is taken; and the canonical form is its own canonical form.
    #[test]
    fn any_saved_text_is_taken(text in any::<String>(), rule in "(-[mjpsdi] |--[a-z]{1,6} |! |[a-zA-Z0-9./:]{1,8} |\"[a-z ]{0,5}\" ){0,12}") {
        let mut tables = Tables::default();
        tables.read(&text);
        let canonical = rule::canonical(&rule);
        prop_assert_eq!(rule::canonical(&canonical), canonical);
    }
}

static NOTHING_LIVE: std::sync::LazyLock<Tables<'static>> = std::sync::LazyLock::new(Tables::default);
