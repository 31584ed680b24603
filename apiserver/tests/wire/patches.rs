//! Patches of each kind.

use sepal_apiserver::ApiServer;
use serde_json::json;

use crate::client::{Requests, request, shop};

const PATH: &str = "/api/v1/namespaces/default/services/a";

#[test]
fn merge_patches_merge() {
    let server = shop();
    let patched = server
        .patch(PATH, "merge-patch+json", &json!({"metadata": {"labels": {"app": null, "x": "y"}}, "spec": {"ports": [{"port": 81}]}}))
        .ok();
    assert_eq!(patched["metadata"]["labels"], json!({"x": "y"}));
    assert_eq!(patched["spec"]["ports"], json!([{"port": 81, "protocol": "TCP", "targetPort": 81}]));
    assert_eq!(server.get("services", "default/a"), Some(patched));
}

#[test]
fn patches_of_an_old_version_conflict() {
    let server = shop();
    for kind in ["merge-patch+json", "strategic-merge-patch+json"] {
        server.patch(PATH, kind, &json!({"metadata": {"resourceVersion": "1"}})).refused(409, "Conflict");
    }
    let replace = json!([{"op": "replace", "path": "/metadata/resourceVersion", "value": "1"}]);
    server.patch(PATH, "json-patch+json", &replace).refused(409, "Conflict");
    server.patch("/api/v1/namespaces/default/services/x", "merge-patch+json", &json!({})).refused(404, "NotFound");
    // The first patch also sets the defaults, which `put` does not set.
    server.patch(PATH, "merge-patch+json", &json!({"metadata": {"labels": {"app": "one"}}})).ok();
    let changed = server.version();
    server.patch(PATH, "merge-patch+json", &json!({"metadata": {"labels": {"app": "one"}}})).ok();
    assert_eq!(server.version(), changed, "nothing changed");
    server.patch(&format!("{PATH}?dryRun=All"), "merge-patch+json", &json!({"metadata": {"labels": {"app": "dry"}}})).ok();
    assert_eq!(server.version(), changed);
}

#[test]
fn json_patches_apply_operations() {
    let server = shop();
    let operations = json!([
        {"op": "test", "path": "/metadata/labels/app", "value": "one"},
        {"op": "add", "path": "/metadata/labels/example.com~1x", "value": "y"},
        {"op": "add", "path": "/spec/ports/-", "value": {"port": 443}},
    ]);
    let patched = server.patch(PATH, "json-patch+json", &operations).ok();
    assert_eq!(patched["metadata"]["labels"], json!({"app": "one", "example.com/x": "y"}));
    assert_eq!(patched["spec"]["ports"][1]["port"], 443);
    let failing = json!([{"op": "test", "path": "/metadata/labels/app", "value": "two"}]);
    let message = server.patch(PATH, "json-patch+json", &failing).refused(422, "Invalid");
    assert!(message.ends_with("testing value /metadata/labels/app failed"), "{message}");
    server.patch(PATH, "json-patch+json", &json!({})).refused(400, "BadRequest");
    server.patch(PATH, "json-patch+json", &json!([{"op": "replace", "path": "", "value": 7}])).refused(400, "BadRequest");
}

#[test]
fn strategic_patches_merge_lists_by_key() {
    let server = ApiServer::start().unwrap();
    let condition = |kind: &str, status: &str| json!({"type": kind, "status": status});
    let node = json!({
        "apiVersion": "v1", "kind": "Node", "metadata": {"name": "n1"}, "spec": {},
        "status": {"conditions": [condition("Ready", "True"), condition("Disk", "False")]},
    });
    server.put(node).unwrap();
    let patch = json!({"status": {"conditions": [condition("Ready", "False"), condition("NetworkUnavailable", "False")]}});
    let patched = server.patch("/api/v1/nodes/n1/status", "strategic-merge-patch+json", &patch).ok();
    let expected = json!([condition("Ready", "False"), condition("Disk", "False"), condition("NetworkUnavailable", "False")]);
    assert_eq!(patched["status"]["conditions"], expected);
    let merged = server.patch("/api/v1/nodes/n1/status", "merge-patch+json", &patch).ok();
    assert_eq!(merged["status"], patch["status"]);
}

#[test]
fn apply_patches_create_or_merge() {
    let server = ApiServer::start().unwrap();
    let path = "/api/v1/namespaces/default/configmaps/c?fieldManager=test";
    let apply = |path: &str, data| server.patch(path, "apply-patch+yaml", &json!({"apiVersion": "v1", "kind": "ConfigMap", "data": data}));
    let created = apply(path, json!({"a": "1"}));
    assert_eq!((created.code, created.ok()["metadata"]["name"].as_str()), (201, Some("c")));
    let merged = apply(path, json!({"b": "2"}));
    assert_eq!((merged.code, &merged.ok()["data"]), (200, &json!({"a": "1", "b": "2"})));
    let message = apply("/api/v1/namespaces/default/configmaps/c", json!({})).refused(422, "Invalid");
    assert!(message.ends_with("fieldManager: Required value: is required for apply patch"), "{message}");
    let yaml = request(server.address(), "PATCH", path, "Content-Type: application/apply-patch+yaml\r\n", b"data: {}");
    assert_eq!(yaml.refused(400, "BadRequest"), "this server reads apply patches as JSON only");
}
