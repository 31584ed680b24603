//! Watches: events, bookmarks, selectors and ends.

use std::time::Duration;

use sepal_apiserver::ApiServer;
use serde_json::json;

use crate::client::{Line, Requests, names, request, service, shop};

#[test]
fn a_watch_continues_from_the_version_of_a_list() {
    let server = shop();
    let list = server.read("/api/v1/services").ok();
    assert_eq!(names(&list).len(), 4);
    let version = list["metadata"]["resourceVersion"].as_str().unwrap();
    server.put(service("default", "missed", &json!({}))).unwrap();
    let mut watch = server.watch(&format!("/api/v1/services?watch=true&resourceVersion={version}"));
    assert_eq!(watch.brief(), "ADDED missed");
    server.put(service("default", "a", &json!({"app": "three"}))).unwrap();
    let (kind, object) = watch.event();
    assert_eq!((&*kind, &object["metadata"]["labels"]["app"], &object["kind"]), ("MODIFIED", &json!("three"), &json!("Service")));
    server.remove("services", "default/a");
    let (kind, object) = watch.event();
    assert_eq!((&*kind, &object["metadata"]["resourceVersion"]), ("DELETED", &json!(server.version().to_string())));
    server.put(json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "other"}})).unwrap();
    assert!(watch.is_silent(), "a ConfigMap is no Service");
}

#[test]
fn a_watch_without_a_version_starts_with_all_objects() {
    let server = shop();
    for query in ["", "&resourceVersion=0"] {
        let mut watch = server.watch(&format!("/api/v1/services?watch=1{query}"));
        let all: Vec<_> = (0..4).map(|_| watch.brief()).collect();
        assert_eq!(all, ["ADDED a", "ADDED b", "ADDED c", "ADDED a"]);
        assert!(watch.is_silent());
    }
    let mut one = server.watch("/api/v1/watch/namespaces/shop/services");
    assert_eq!(one.brief(), "ADDED a");
    assert!(one.is_silent());
    let mut named = server.watch("/api/v1/namespaces/default/services/b?watch=true");
    assert_eq!(named.brief(), "ADDED b");
    server.put(service("default", "a", &json!({}))).unwrap();
    server.put(service("default", "b", &json!({}))).unwrap();
    assert_eq!(named.brief(), "MODIFIED b");
}

#[test]
fn objects_that_begin_or_stop_matching_are_added_or_deleted() {
    let server = shop();
    let mut watch = server.watch("/api/v1/namespaces/default/services?watch=true&labelSelector=app%3Done");
    assert_eq!(watch.brief(), "ADDED a");
    server.put(service("default", "b", &json!({"app": "one"}))).unwrap();
    assert_eq!(watch.brief(), "ADDED b");
    server.put(service("default", "b", &json!({"app": "one", "more": "yes"}))).unwrap();
    assert_eq!(watch.brief(), "MODIFIED b");
    server.put(service("default", "b", &json!({"app": "two"}))).unwrap();
    let (kind, object) = watch.event();
    assert_eq!((&*kind, &object["metadata"]["labels"]), ("DELETED", &json!({"app": "one", "more": "yes"})));
    assert_eq!(object["metadata"]["resourceVersion"], server.version().to_string());
    server.remove("services", "default/b");
    server.put(service("shop", "b", &json!({"app": "one"}))).unwrap();
    assert!(watch.is_silent());
    server.remove("services", "default/a");
    assert_eq!(watch.brief(), "DELETED a");
}

#[test]
fn initial_events_end_with_a_bookmark() {
    let server = shop();
    let query = "watch=true&sendInitialEvents=true&resourceVersionMatch=NotOlderThan&allowWatchBookmarks=true";
    let mut watch = server.watch(&format!("/api/v1/namespaces/shop/services?{query}"));
    assert_eq!(watch.brief(), "ADDED a");
    let (kind, bookmark) = watch.event();
    assert_eq!(kind, "BOOKMARK");
    let metadata = json!({
        "resourceVersion": server.version().to_string(), "creationTimestamp": null,
        "annotations": {"k8s.io/initial-events-end": "true"},
    });
    assert_eq!(bookmark, json!({"kind": "Service", "apiVersion": "v1", "metadata": metadata, "spec": {}, "status": {}}));
    server.put(service("shop", "z", &json!({}))).unwrap();
    assert_eq!(watch.brief(), "ADDED z");
    let mut none = server.watch("/api/v1/services?watch=true&sendInitialEvents=false&resourceVersionMatch=NotOlderThan");
    assert!(none.is_silent());
    let message = server.read("/api/v1/services?watch=true&sendInitialEvents=true").refused(422, "Invalid");
    assert!(message.ends_with("sendInitialEvents requires setting resourceVersionMatch to NotOlderThan"), "{message}");
    let message = server.read("/api/v1/services?watch=true&resourceVersionMatch=NotOlderThan").refused(422, "Invalid");
    assert!(message.ends_with("forbidden for watch unless sendInitialEvents is provided"), "{message}");
    let future = format!("/api/v1/services?{query}&resourceVersion={}", server.version() + 10);
    server.read(&future).refused(504, "Timeout");
    server.read("/api/v1/services?watch=true&resourceVersion=x").refused(400, "BadRequest");
}

#[test]
fn a_watch_ends_after_its_timeout_with_a_bookmark() {
    let server = shop();
    let version = server.version();
    let query = format!("watch=true&resourceVersion={version}&timeoutSeconds=1");
    let mut watch = server.watch(&format!("/api/v1/services?{query}&allowWatchBookmarks=true"));
    assert!(watch.is_silent());
    let (kind, bookmark) = watch.event();
    assert_eq!((&*kind, &bookmark["metadata"]["resourceVersion"]), ("BOOKMARK", &json!(version.to_string())));
    assert_eq!(watch.next(), Line::End);
    assert_eq!(server.watch(&format!("/api/v1/services?{query}")).next(), Line::End);
    assert_eq!(server.watches("services"), 0);
}

#[test]
fn only_watches_that_allow_bookmarks_get_them() {
    let server = shop();
    let query = format!("watch=true&resourceVersion={}", server.version());
    let mut with = server.watch(&format!("/apis/discovery.k8s.io/v1/endpointslices?{query}&allowWatchBookmarks=true"));
    let mut without = server.watch(&format!("/apis/discovery.k8s.io/v1/endpointslices?{query}"));
    server.put(json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "other"}})).unwrap();
    for by_hook in [false, true] {
        if by_hook {
            server.hook("bookmarks", &json!({})).ok();
        } else {
            server.send_bookmarks();
        }
        let (kind, bookmark) = with.event();
        let metadata = json!({"resourceVersion": server.version().to_string(), "creationTimestamp": null});
        let expected = json!({
            "kind": "EndpointSlice", "apiVersion": "discovery.k8s.io/v1", "metadata": metadata,
            "addressType": "", "endpoints": null, "ports": null,
        });
        assert_eq!((&*kind, bookmark), ("BOOKMARK", expected));
    }
    assert!(with.is_silent() && without.is_silent());
}

#[test]
fn a_version_before_the_compaction_is_expired() {
    let server = shop();
    let old = server.version();
    let mut open = server.watch(&format!("/api/v1/services?watch=true&resourceVersion={old}"));
    server.put(service("default", "new", &json!({}))).unwrap();
    server.compact();
    assert_eq!(open.brief(), "ADDED new");
    let mut late = server.watch(&format!("/api/v1/services?watch=true&resourceVersion={old}"));
    let (kind, status) = late.event();
    assert_eq!((&*kind, &status["code"], &status["reason"]), ("ERROR", &json!(410), &json!("Expired")));
    assert_eq!(status["message"], format!("too old resource version: {old} ({})", server.version()));
    assert_eq!(late.next(), Line::End);
    server.put(service("default", "newer", &json!({}))).unwrap();
    assert_eq!(open.brief(), "ADDED newer", "open watches continue");
    let fresh = ApiServer::start().unwrap();
    assert_eq!(fresh.watch("/api/v1/services?watch=true&resourceVersion=1").brief(), "ERROR -", "a new server has no history");
}

#[test]
fn a_watch_that_is_too_slow_ends() {
    let server = ApiServer::start().unwrap();
    server.limit_history(4);
    let mut slow = server.watch("/api/v1/configmaps?watch=true");
    let large = "x".repeat(1 << 20);
    for number in 0..64 {
        let name = format!("c{number}");
        server.put(json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name}, "data": {"large": large}})).unwrap();
    }
    let mut seen = 0;
    loop {
        match slow.brief().as_str() {
            "ERROR -" => break,
            _ => seen += 1,
        }
    }
    assert!(seen < 64, "{seen}");
    assert_eq!(slow.next(), Line::End);
}

#[test]
fn many_watches_get_all_events_and_are_closed() {
    let server = shop();
    let version = server.version();
    let mut watches: Vec<_> = (0..50).map(|_| server.watch(&format!("/api/v1/services?watch=true&resourceVersion={version}"))).collect();
    assert_eq!(server.watches("services"), 50);
    for number in 0..100 {
        server.put(service("default", &format!("s{number}"), &json!({}))).unwrap();
    }
    for watch in &mut watches {
        for number in 0..100 {
            assert_eq!(watch.brief(), format!("ADDED s{number}"));
        }
    }
    drop(watches);
    for _ in 0..100 {
        if server.watches("services") == 0 {
            return;
        }
        std::thread::park_timeout(Duration::from_millis(50));
    }
    panic!("{} watches are still open", server.watches("services"));
}

#[test]
fn a_watch_can_return_metadata_only() {
    let server = shop();
    let accept = "Accept: application/json;as=PartialObjectMetadata;g=meta.k8s.io;v=v1\r\n";
    let path = "/api/v1/namespaces/shop/services?watch=true&timeoutSeconds=1&allowWatchBookmarks=1";
    let response = request(server.address(), "GET", path, accept, b"");
    let lines: Vec<serde_json::Value> =
        response.body.split(|byte| *byte == b'\n').filter_map(|line| serde_json::from_slice(line).ok()).collect();
    assert_eq!(lines.len(), 2);
    assert_eq!((&lines[0]["object"]["metadata"]["name"], lines[0]["object"].get("spec")), (&json!("a"), None));
    for line in lines {
        assert_eq!((&line["object"]["kind"], &line["object"]["apiVersion"]), (&json!("PartialObjectMetadata"), &json!("meta.k8s.io/v1")));
    }
}
