//! Injected faults, by hook and by method.

use std::time::{Duration, Instant};

use sepal_apiserver::InjectedFailure;
use serde_json::{Value, json};

use crate::client::{Line, Requests, names, service, shop};

const LIST: &str = "/api/v1/services";
const SHORT: Duration = Duration::from_millis(800);

#[test]
fn objects_are_loaded_dumped_and_deleted() {
    let server = shop();
    let a = server.get("services", "default/a").unwrap();
    let cluster = json!({"kind": "List", "items": [service("default", "a", &json!({})), service("default", "new", &json!({}))]});
    server.hook("load", &cluster).ok();
    server.hook("load", &json!([{"apiVersion": "v1", "kind": "Node", "metadata": {"name": "n"}, "anything": [1]}])).ok();
    let loaded = server.get("services", "default/a").unwrap();
    assert_eq!((&loaded["metadata"]["uid"], &loaded["metadata"]["labels"]), (&a["metadata"]["uid"], &json!({})));
    assert_eq!(server.get("nodes", "n").unwrap()["anything"], json!([1]));
    let dump = server.read("/_test/dump").ok();
    assert_eq!(dump, Value::Array(server.objects()));
    let named = |name: &str| json!([{"apiVersion": "v1", "kind": "Service", "namespace": "default", "name": name}]);
    server.hook("delete", &named("new")).ok();
    server.hook("delete", &named("never")).ok();
    assert_eq!(names(&server.read("/api/v1/namespaces/default/services").ok()), ["a", "b", "c"]);
    assert_eq!(server.read("/_test/rv").ok(), server.version());
    let before = server.version();
    for bad in [
        json!([{"apiVersion": "v1", "kind": "Car", "metadata": {"name": "x"}}]),
        json!(7),
        json!([7]),
        json!([{"apiVersion": "v1", "kind": "Pod"}]),
    ] {
        server.hook("load", &bad).refused(400, "BadRequest");
    }
    assert_eq!(server.version(), before);
    assert_eq!(server.hook("no-such-hook", &json!({})).code, 404);
}

#[test]
fn watches_are_dropped() {
    let server = shop();
    for by_hook in [false, true] {
        let mut watch = server.watch(&format!("{LIST}?watch=true&resourceVersion={}", server.version()));
        server.put(service("default", "before", &json!({}))).unwrap();
        if by_hook {
            server.hook("drop-watches", &json!({})).ok();
        } else {
            server.drop_watches();
        }
        server.put(service("default", "after", &json!({}))).unwrap();
        assert!(watch.brief().ends_with("before"));
        assert_eq!(watch.next(), Line::Broken);
    }
}

#[test]
fn a_new_history_drops_the_old_one_and_raises_the_version() {
    let server = shop();
    let old = server.version();
    let mut watch = server.watch(&format!("{LIST}?watch=true&resourceVersion={old}"));
    server.hook("new-history?by=500", &json!({})).ok();
    assert_eq!((watch.next(), server.version()), (Line::Broken, old + 500));
    assert_eq!(server.watch(&format!("{LIST}?watch=true&resourceVersion={old}")).brief(), "ERROR -");
    assert_eq!(server.read(LIST).ok()["metadata"]["resourceVersion"], (old + 500).to_string());
    server.hook("new-history", &json!({})).ok();
    assert_eq!(server.version(), old + 1_000_500);
}

#[test]
fn a_pause_holds_back_responses_and_events() {
    let server = shop();
    let mut watch = server.watch(&format!("{LIST}?watch=true&resourceVersion={}", server.version()));
    let start = Instant::now();
    server.pause(SHORT);
    server.put(service("default", "new", &json!({}))).unwrap();
    assert!(watch.is_silent());
    assert_eq!(server.read(LIST).code, 200);
    assert!(start.elapsed() >= SHORT, "{:?}", start.elapsed());
    assert_eq!(watch.brief(), "ADDED new");
    server.hook("pause?seconds=60", &json!({})).ok();
    server.hook("pause?seconds=0.3", &json!({})).ok();
    let start = Instant::now();
    assert_eq!(server.read("/version").code, 200);
    assert!((Duration::from_millis(200)..Duration::from_secs(9)).contains(&start.elapsed()), "{:?}", start.elapsed());
    server.hook("pause?seconds=never", &json!({})).refused(400, "BadRequest");
}

#[test]
fn requests_fail() {
    let server = shop();
    server.fail(InjectedFailure::next(2, 503).at("services"));
    assert_eq!(server.read("/api/v1/nodes").code, 200);
    assert_eq!(server.read(LIST).refused(503, "ServiceUnavailable"), "asked to fail");
    assert_eq!((server.read(LIST).code, server.read(LIST).code, server.count("failed")), (503, 200, 2));
    server.hook("fail?n=1&path=watch%3Dtrue", &json!({})).ok();
    assert_eq!(server.read(LIST).code, 200);
    assert_eq!(server.read(&format!("{LIST}?watch=true")).refused(500, "InternalError"), "Internal error occurred: asked to fail");
    server.fail(InjectedFailure::during(SHORT, 429));
    let start = Instant::now();
    let mut failed = 0;
    while server.read(LIST).code == 429 {
        failed += 1;
    }
    assert!(failed > 1 && start.elapsed() >= SHORT, "{failed} in {:?}", start.elapsed());
    server.hook("fail?n=5&code=200", &json!({})).refused(400, "BadRequest");
}

#[test]
fn requests_are_delayed() {
    let server = shop();
    server.hook("delay?ms=600", &json!({})).ok();
    let start = Instant::now();
    server.read(LIST).ok();
    assert!(start.elapsed() >= Duration::from_millis(600));
    server.delay(Duration::ZERO);
    let start = Instant::now();
    server.read(LIST).ok();
    assert!(start.elapsed() < Duration::from_millis(600));
}

#[test]
fn verbs_are_denied() {
    let server = shop();
    server.deny("list", "services");
    let user = "User \"system:serviceaccount:kube-system:sepal\"";
    assert_eq!(
        server.read(LIST).refused(403, "Forbidden"),
        format!("services is forbidden: {user} cannot list resource \"services\" in API group \"\" at the cluster scope")
    );
    assert_eq!(
        server.read("/api/v1/namespaces/shop/services").refused(403, "Forbidden"),
        format!("services is forbidden: {user} cannot list resource \"services\" in API group \"\" in the namespace \"shop\"")
    );
    assert_eq!(server.read("/api/v1/namespaces/shop/services/a").code, 200);
    assert_eq!(server.count("list services"), 2);
    server.hook("deny?verb=*&resource=nodes/status", &json!({})).ok();
    let status = server.patch("/api/v1/nodes/n/status", "merge-patch+json", &json!({}));
    assert_eq!(status.json()["details"], json!({"name": "n", "kind": "nodes"}));
    assert_eq!(
        status.refused(403, "Forbidden"),
        format!("nodes \"n\" is forbidden: {user} cannot patch resource \"nodes/status\" in API group \"\" at the cluster scope")
    );
    let review = |attributes: Value| {
        let body = json!({"spec": {"resourceAttributes": attributes}});
        let response = server.create("/apis/authorization.k8s.io/v1/selfsubjectaccessreviews", &body);
        assert_eq!(response.code, 201);
        response.ok()["status"]["allowed"].as_bool().unwrap()
    };
    assert!(!review(json!({"verb": "list", "resource": "services"})));
    assert!(!review(json!({"verb": "update", "resource": "nodes", "subresource": "status"})));
    assert!(review(json!({"verb": "watch", "resource": "services"})));
    server.hook("allow-all", &json!({})).ok();
    assert!(review(json!({"verb": "list", "resource": "services"})));
    assert_eq!(server.read(LIST).code, 200);
    server.hook("deny?verb=list", &json!({})).refused(400, "BadRequest");
}

#[test]
fn requests_are_counted_and_logged() {
    let server = shop();
    server.read(LIST).ok();
    server.read(&format!("{LIST}?limit=1")).ok();
    server.watch(&format!("{LIST}?watch=true"));
    server.read("/api/v1/nodes/n").refused(404, "NotFound");
    server.patch("/api/v1/nodes/n/status", "merge-patch+json", &json!({})).refused(404, "NotFound");
    let counts = json!({"list services": 2, "watch services": 1, "get nodes": 1, "patch nodes/status": 1});
    assert_eq!(json!(server.requests()), counts);
    assert_eq!(server.read("/_test/requests").ok(), counts);
    assert_eq!(server.hook("requests?reset=1", &json!({})).ok(), json!({}));
    let log: Vec<_> = server.log().into_iter().map(|entry| (entry.method, entry.path, entry.code)).collect();
    assert_eq!(log[1], ("GET".to_owned(), format!("{LIST}?limit=1"), 200));
    assert_eq!((log.len(), log[4].2), (5, 404));
    let hooked = server.read("/_test/log").ok();
    assert_eq!((hooked.as_array().unwrap().len(), &hooked[2][2], &hooked[2][3]), (5, &json!(format!("{LIST}?watch=true")), &json!(200)));
    assert!(hooked[0][0].as_f64().unwrap() > 1.7e9);
}
