//! Lists, gets, selectors, pages and discovery.

use serde_json::{Value, json};

use crate::client::{Requests, names, request, shop};

#[test]
fn lists_are_sorted_and_complete() {
    let server = shop();
    let all = server.read("/api/v1/services").ok();
    assert_eq!((&all["kind"], &all["apiVersion"]), (&json!("ServiceList"), &json!("v1")));
    assert_eq!(all["metadata"], json!({"resourceVersion": server.version().to_string()}));
    assert_eq!(names(&all), ["a", "b", "c", "a"]);
    assert_eq!(all["items"][0].get("kind"), None);
    assert_eq!(all["items"][1]["spec"]["clusterIP"], "10.96.0.20");
    assert_eq!(names(&server.read("/api/v1/namespaces/shop/services").ok()), ["a"]);
    assert_eq!(names(&server.read("/api/v1/namespaces/sho/services").ok()), [""; 0]);
    let slices = server.read("/apis/discovery.k8s.io/v1/endpointslices").ok();
    assert_eq!((&slices["kind"], &slices["items"]), (&json!("EndpointSliceList"), &json!([])));
}

#[test]
fn a_single_object_has_its_kind() {
    let server = shop();
    let service = server.read("/api/v1/namespaces/shop/services/a").ok();
    assert_eq!((&service["kind"], &service["apiVersion"]), (&json!("Service"), &json!("v1")));
    assert_eq!(service, server.get("services", "shop/a").unwrap());
    assert_eq!(server.read("/api/v1/namespaces/shop/services/a/status").ok(), service);
    assert_eq!(server.read("/api/v1/namespaces/%73hop/services/a").ok(), service);
    let message = server.read("/api/v1/namespaces/shop/services/x").refused(404, "NotFound");
    assert_eq!(message, "services \"x\" not found");
    let status = server.read("/apis/discovery.k8s.io/v1/namespaces/shop/endpointslices/x").json();
    assert_eq!(status["message"], "endpointslices.discovery.k8s.io \"x\" not found");
    assert_eq!(status["details"], json!({"name": "x", "group": "discovery.k8s.io", "kind": "endpointslices"}));
    assert_eq!(server.read("/api/v1/namespaces/default").ok()["status"]["phase"], "Active");
}

#[test]
fn selectors_filter_lists() {
    let server = shop();
    let list = |query: &str| names(&server.read(&format!("/api/v1/services?{query}")).ok());
    assert_eq!(list("labelSelector=app%3Done"), ["a", "a"]);
    assert_eq!(list("labelSelector=app+in+(one,two),app!%3Dtwo"), ["a", "a"]);
    assert_eq!(list("labelSelector=%21app"), ["c"]);
    assert_eq!(list("fieldSelector=metadata.name%3Da,metadata.namespace%3Dshop"), ["a"]);
    assert_eq!(list("fieldSelector=spec.clusterIP!%3D10.96.0.20"), [""; 0]);
    assert_eq!(list("labelSelector=app&fieldSelector=metadata.name%3Db"), ["b"]);
    server.put(json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p"}, "spec": {"nodeName": "n1"}})).unwrap();
    let event = json!({"apiVersion": "events.k8s.io/v1", "kind": "Event", "metadata": {"name": "e"}, "regarding": {"name": "n1"}});
    server.put(event).unwrap();
    server.put(json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": "n1"}, "spec": {"unschedulable": true}})).unwrap();
    for path in [
        "/api/v1/pods?fieldSelector=spec.nodeName",
        "/apis/events.k8s.io/v1/events?fieldSelector=regarding.name",
        "/api/v1/nodes?fieldSelector=metadata.name",
    ] {
        assert_eq!(names(&server.read(&format!("{path}%3Dn1")).ok()).len(), 1, "{path}");
        assert_eq!(names(&server.read(&format!("{path}%3Dn2")).ok()).len(), 0, "{path}");
    }
    assert_eq!(names(&server.read("/api/v1/nodes?fieldSelector=spec.unschedulable%3Dtrue").ok()), ["n1"]);
    let refused = |query: &str| server.read(&format!("/api/v1/services?{query}")).refused(400, "BadRequest");
    assert_eq!(refused("fieldSelector=spec.color%3Dred"), "field label not supported: spec.color");
    assert_eq!(refused("labelSelector=a+b"), "unable to parse requirement: a b");
}

/// Reads all pages of a list. Returns the names on each page, and the `remainingItemCount` of each page.
fn pages(server: &impl Requests, query: &str) -> (Vec<Vec<String>>, Vec<Option<u64>>) {
    let (mut pages, mut remaining, mut token) = (Vec::new(), Vec::new(), String::new());
    loop {
        let page = server.read(&format!("/api/v1/services?{query}&continue={token}")).ok();
        pages.push(names(&page));
        remaining.push(page["metadata"]["remainingItemCount"].as_u64());
        match &page["metadata"]["continue"] {
            Value::String(next) => token.clone_from(next),
            _ => return (pages, remaining),
        }
    }
}

#[test]
fn pages_contain_the_whole_list() {
    let server = shop();
    let expect = |pages: &[&[&str]]| pages.iter().map(|page| page.iter().map(ToString::to_string).collect()).collect::<Vec<Vec<_>>>();
    assert_eq!(pages(&server, "limit=3"), (expect(&[&["a", "b", "c"], &["a"]]), vec![Some(1), None]));
    assert_eq!(pages(&server, "limit=2"), (expect(&[&["a", "b"], &["c", "a"]]), vec![Some(2), None]));
    assert_eq!(pages(&server, "limit=4"), (expect(&[&["a", "b", "c", "a"]]), vec![None]));
    assert_eq!(pages(&server, "limit=1&labelSelector=app%3Done"), (expect(&[&["a"], &["a"]]), vec![None, None]));
}

#[test]
fn later_pages_show_the_state_of_the_first_page() {
    let server = shop();
    let first = server.read("/api/v1/services?limit=1").ok();
    let token = first["metadata"]["continue"].as_str().unwrap();
    server.put(crate::client::service("default", "aa", &json!({}))).unwrap();
    server.put(crate::client::service("default", "b", &json!({"app": "changed"}))).unwrap();
    server.remove("services", "default/b");
    let rest = server.read(&format!("/api/v1/services?continue={token}")).ok();
    assert_eq!(names(&rest), ["b", "c", "a"]);
    assert_eq!(rest["items"][0]["metadata"]["labels"]["app"], "two");
    assert_eq!(rest["metadata"]["resourceVersion"], first["metadata"]["resourceVersion"]);
    server.compact();
    let message = server.read(&format!("/api/v1/services?continue={token}")).refused(410, "Expired");
    assert!(message.starts_with("The provided continue parameter is too old"), "{message}");
    assert_eq!(server.read("/api/v1/services?continue=zz").refused(400, "BadRequest"), "continue key is not valid");
    assert_eq!(server.read("/api/v1/services?continue=%C3%A4%C3%A4").refused(400, "BadRequest"), "continue key is not valid");
}

#[test]
fn resource_versions_select_the_state_of_a_list() {
    let server = shop();
    let then = server.version();
    server.remove("services", "shop/a");
    let list = |query: String| server.read(&format!("/api/v1/services?{query}"));
    assert_eq!(names(&list("resourceVersion=0".into()).ok()).len(), 3);
    assert_eq!(names(&list(format!("resourceVersion={then}&resourceVersionMatch=NotOlderThan")).ok()).len(), 3);
    let exact = list(format!("resourceVersion={then}&resourceVersionMatch=Exact")).ok();
    assert_eq!((names(&exact).len(), &exact["metadata"]["resourceVersion"]), (4, &json!(then.to_string())));
    let future = list(format!("resourceVersion={}", then + 5));
    assert_eq!(future.json()["details"]["retryAfterSeconds"], 1);
    assert_eq!(future.refused(504, "Timeout"), format!("Timeout: Too large resource version: {}, current: {}", then + 5, then + 1));
    assert!(list("resourceVersionMatch=Exact".into()).refused(422, "Invalid").contains("unless resourceVersion is provided"));
    list("resourceVersion=0&resourceVersionMatch=Exact".into()).refused(422, "Invalid");
    list("resourceVersion=1&resourceVersionMatch=Perhaps".into()).refused(422, "Invalid");
    list("resourceVersion=x".into()).refused(400, "BadRequest");
    server.compact();
    list(format!("resourceVersion={then}&resourceVersionMatch=Exact")).refused(410, "Expired");
}

#[test]
fn clients_can_request_metadata_only() {
    let server = shop();
    let read = |path: &str| {
        let accept = "Accept: application/json;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1\r\n";
        request(server.address(), "GET", path, accept, b"").ok()
    };
    let list = read("/api/v1/services");
    assert_eq!((&list["kind"], &list["apiVersion"]), (&json!("PartialObjectMetadataList"), &json!("meta.k8s.io/v1")));
    assert_eq!((&list["items"][0]["kind"], list["items"][0].get("spec")), (&json!("PartialObjectMetadata"), None));
    let one = read("/api/v1/namespaces/shop/services/a");
    assert_eq!((&one["kind"], &one["metadata"]["labels"]["app"], one.get("spec")), (&json!("PartialObjectMetadata"), &json!("one"), None));
}

#[test]
fn discovery_lists_groups_and_resources() {
    let server = shop();
    for path in ["/healthz", "/livez", "/readyz", "/readyz/ping"] {
        let response = server.read(path);
        assert_eq!((response.code, &*response.body, &*response.content_type), (200, &b"ok"[..], "text/plain; charset=utf-8"));
    }
    assert_eq!(server.read("/version").ok()["major"], "1");
    assert_eq!(server.read("/api").ok()["versions"], json!(["v1"]));
    let groups = server.read("/apis").ok();
    let groups: Vec<_> = groups["groups"].as_array().unwrap().iter().map(|group| group["name"].as_str().unwrap()).collect();
    for group in ["discovery.k8s.io", "coordination.k8s.io", "networking.k8s.io", "events.k8s.io", "authorization.k8s.io"] {
        assert!(groups.contains(&group), "{group}");
        assert_eq!(server.read(&format!("/apis/{group}")).ok()["preferredVersion"]["groupVersion"], format!("{group}/v1"));
        let resources = server.read(&format!("/apis/{group}/v1")).ok();
        assert_eq!((&resources["kind"], &resources["groupVersion"]), (&json!("APIResourceList"), &json!(format!("{group}/v1"))));
    }
    let core = server.read("/api/v1").ok();
    let find = |name: &str| core["resources"].as_array().unwrap().iter().find(|row| row["name"] == name).unwrap().clone();
    for name in ["services", "nodes", "events", "pods", "configmaps", "namespaces", "endpoints", "serviceaccounts"] {
        assert_eq!(find(name)["namespaced"], !matches!(name, "nodes" | "namespaces"), "{name}");
    }
    assert_eq!((&find("services")["shortNames"], &find("nodes/status")["kind"]), (&json!(["svc"]), &json!("Node")));
    assert_eq!(request(server.address(), "HEAD", "/version", "", b"").code, 200);
}
