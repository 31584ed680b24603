//! The program, run by the manifests, makes exactly the requests that its roles allow: no permission is missing or unused.

use std::collections::BTreeSet;
use std::time::Duration;

use sepal::kubernetes::permission::{ApiUses, NeededPermission, Permission, needed as needed_by};
use sepal_apiserver::{ApiServer, InjectedFailure};
use sepal_lab::{Cluster, wait_until};
use serde_json::{Value, json};

use super::node::{NAME, Node, object};
use crate::kustomization::compose;

/// A verb on a resource of a group, everywhere or in one namespace: `patch nodes/status`, `list leases.coordination.k8s.io in kube-system`.
type Granted = (String, Option<String>);

fn permission(verb: &str, group: &str, resource: &str) -> String {
    if group.is_empty() { format!("{verb} {resource}") } else { format!("{verb} {resource}.{group}") }
}

/// The permissions of the roles among these objects.
fn granted(objects: &[Value]) -> BTreeSet<Granted> {
    let strings = |value: &Value| -> Vec<String> {
        value.as_array().expect("a list").iter().map(|word| word.as_str().expect("text").to_owned()).collect()
    };
    let mut granted = BTreeSet::new();
    for role in objects.iter().filter(|object| object["kind"] == "Role" || object["kind"] == "ClusterRole") {
        let namespace = role["metadata"]["namespace"].as_str().map(str::to_owned);
        assert_eq!(namespace.is_some(), role["kind"] == "Role");
        for rule in role["rules"].as_array().expect("rules") {
            for group in strings(&rule["apiGroups"]) {
                for resource in strings(&rule["resources"]) {
                    for verb in strings(&rule["verbs"]) {
                        assert!(![&group, &resource, &verb].into_iter().any(|word| word == "*"), "{rule}");
                        granted.insert((permission(&verb, &group, &resource), namespace.clone()));
                    }
                }
            }
        }
    }
    granted
}

/// The permission that a request needs. Discovery requests need none (`system:discovery`).
fn needed(method: &str, path: &str) -> Option<Granted> {
    let (path, query) = path.split_once('?').unwrap_or((path, ""));
    let parts: Vec<&str> = path.trim_matches('/').split('/').collect();
    let (group, rest) = match parts.as_slice() {
        ["api", "v1", rest @ ..] => ("", rest),
        ["apis", group, "v1", rest @ ..] => (*group, rest),
        ["version"] => return None,
        _ => panic!("{method} {path} is no request for objects"),
    };
    let (namespace, rest) = match rest {
        ["namespaces", namespace, rest @ ..] if !rest.is_empty() => (Some((*namespace).to_owned()), rest),
        rest => (None, rest),
    };
    let (resource, name) = match rest {
        [plural] => ((*plural).to_owned(), None),
        [plural, name] => ((*plural).to_owned(), Some(*name)),
        [plural, name, sub] => (format!("{plural}/{sub}"), Some(*name)),
        _ => panic!("{method} {path} is no request for objects"),
    };
    let watches = query.split('&').any(|part| part == "watch=true" || part == "watch=1");
    let verb = match (method, name) {
        ("GET", Some(_)) => "get",
        ("GET", None) if watches => "watch",
        ("GET", None) => "list",
        ("POST", None) => "create",
        ("PUT", Some(_)) => "update",
        ("PATCH", Some(_)) => "patch",
        ("DELETE", Some(_)) => "delete",
        _ => panic!("{method} {path}: which verb is that?"),
    };
    Some((permission(verb, group, &resource), namespace))
}

/// The permissions that the requests to a server used. A grant for all namespaces includes every namespace.
fn used(server: &ApiServer, granted: &BTreeSet<Granted>) -> BTreeSet<Granted> {
    let everywhere = |(what, namespace): Granted| {
        let anywhere = (what.clone(), None);
        if granted.contains(&anywhere) { anywhere } else { (what, namespace) }
    };
    server.log().iter().filter_map(|entry| needed(&entry.method, &entry.path)).map(everywhere).collect()
}

fn has_event(server: &ApiServer, reason: &str) -> bool {
    server.list("events.events.k8s.io").iter().any(|event| event["reason"] == reason)
}

/// Runs the daemon with a server that streams lists, and with one that does not (Kubernetes before 1.32); calls `holds` during each run.
fn run_twice(node: &Node, more: &[&str], holds: impl Fn()) {
    for old in [false, true] {
        if old {
            node.server.fail(InjectedFailure::during(Duration::from_secs(600), 422).at("sendInitialEvents"));
        }
        let running = node.start(more);
        holds();
        assert_eq!(running.terminate(), Some(0));
    }
}

/// Services and EndpointSlices, without the Node, which has the same name as this node.
fn services() -> impl Iterator<Item = Value> {
    Cluster::new(2, 2).objects().filter(|object| object["kind"] != "Node")
}

#[test]
fn the_proxy_asks_for_what_it_may() {
    let granted = granted(&compose("proxy-only"));
    // Each variant uses another kernel interface, which needs its own capability.
    for variant in ["nft", "legacy"] {
        let node = Node::new("proxy-only", services().chain([object(Some("10.244.1.0/24"))]).collect());
        run_twice(&node, &["--iptables-variant", variant], || {
            wait_until("its start is reported", || has_event(&node.server, "Starting"));
            assert!(node.rules(variant).contains("-j KUBE-SERVICES"), "{}", node.rules(variant));
        });
        node.assert_no_complaints();
        assert_eq!(used(&node.server, &granted), granted);
    }
}

#[test]
fn the_pod_network_asks_for_what_it_may() {
    let granted = granted(&compose("network-only"));
    let node = Node::new("network-only", vec![object(Some("10.244.1.0/24"))]);
    run_twice(&node, &[], || {
        wait_until("the network is reported as up", || has_event(&node.server, "FlannelIsUp"));
        wait_until("the condition is written", || {
            node.server.get("nodes", NAME).expect("a Node")["status"]["conditions"][0]["reason"] == "FlannelIsUp"
        });
        let rules = node.rules("nft");
        assert!(rules.contains("-j FLANNEL-POSTRTG") && !rules.contains("KUBE-"), "{rules}");
    });
    assert_eq!(used(&node.server, &granted), granted);
}

#[test]
fn all_of_it_asks_for_what_it_may() {
    let granted = granted(&compose("all"));
    let node = Node::new("all", services().chain([object(Some("10.244.1.0/24"))]).collect());
    run_twice(&node, &[], || {
        wait_until("its start is reported", || has_event(&node.server, "Starting"));
        wait_until("the network is reported as up", || has_event(&node.server, "FlannelIsUp"));
        let rules = node.rules("nft");
        assert!(rules.contains("-j FLANNEL-POSTRTG") && rules.contains("-j KUBE-SERVICES"), "{rules}");
    });
    assert_eq!(used(&node.server, &granted), granted);
}

/// With leases and their clean-up the roles of both kustomizations are used completely.
#[test]
fn leases_and_their_clean_up_ask_for_what_they_may() {
    for mode in ["network-only", "all"] {
        let granted = granted(&[compose(mode), compose("leases")].concat());
        let objects = if mode == "all" { services().chain([object(None)]).collect() } else { vec![object(None)] };
        let node = Node::new(mode, objects);
        run_twice(&node, &["--subnet-source=lease"], || {
            wait_until("the Node shows its subnet", || node.server.get("nodes", NAME).expect("a Node")["spec"]["podCIDR"].is_string());
            // The annotations of the Lease are written by a patch, as soon as they are known.
            let annotated = || node.server.list("leases").iter().any(|lease| lease["metadata"]["annotations"].is_object());
            wait_until("the Lease is patched", annotated);
            if mode == "all" {
                wait_until("its start is reported", || has_event(&node.server, "Starting"));
            }
        });
        let (subnet_file, url) = (format!("--subnet-file={}/subnet.env", node.path("run-flannel")), node.server.url());
        node.exec(&["cleanup", "--pod-network", &subnet_file, "--master", &url, "--node-name", NAME]);
        assert_eq!(node.server.list("leases"), Vec::<Value>::new());
        assert_eq!(used(&node.server, &granted), granted, "{mode}");
    }
}

/// The test reads requests and roles correctly.
#[test]
fn requests_are_told_apart() {
    for (method, path, want, namespace) in [
        ("GET", "/api/v1/nodes?limit=5", "list nodes", None),
        ("GET", "/api/v1/nodes?watch=true&fieldSelector=x", "watch nodes", None),
        ("GET", "/api/v1/nodes/a", "get nodes", None),
        ("PATCH", "/api/v1/nodes/a/status", "patch nodes/status", None),
        ("DELETE", "/apis/coordination.k8s.io/v1/namespaces/x/leases/y", "delete leases.coordination.k8s.io", Some("x")),
    ] {
        assert_eq!(needed(method, path), Some((want.to_owned(), namespace.map(str::to_owned))));
    }
    let role = json!({"kind": "Role", "metadata": {"namespace": "x"}, "rules": [{"apiGroups": ["g"], "resources": ["a/b"], "verbs": ["get", "list"]}]});
    assert_eq!(
        granted(&[role]),
        BTreeSet::from([("get a/b.g".to_owned(), Some("x".to_owned())), ("list a/b.g".to_owned(), Some("x".to_owned()))])
    );
}

/// `sepal preflight` checks exactly the granted permissions.
#[test]
fn preflight_looks_for_what_is_granted() {
    let (proxy, pod_network) = (true, true);
    for (modes, uses) in [
        (&["proxy-only"][..], ApiUses { proxy, ..ApiUses::default() }),
        (&["network-only"], ApiUses { pod_network, ..ApiUses::default() }),
        (&["all"], ApiUses { proxy, pod_network, leases: false }),
        (&["all", "leases"], ApiUses { proxy, pod_network, leases: true }),
    ] {
        let looked_for =
            needed_by(uses).into_iter().map(|NeededPermission { permission: Permission { verb, group, resource }, namespace }| {
                (permission(verb, group, resource), namespace.map(str::to_owned))
            });
        let objects: Vec<Value> = modes.iter().flat_map(|mode| compose(mode)).collect();
        assert_eq!(looked_for.collect::<BTreeSet<_>>(), granted(&objects), "{modes:?}");
    }
}
