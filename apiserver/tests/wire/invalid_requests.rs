//! Invalid requests.

use sepal_apiserver::ApiServer;
use serde_json::json;

use crate::client::{Requests, request, shop};

const SERVICES: &str = "/api/v1/namespaces/default/services";

#[test]
fn unknown_paths_are_not_found() {
    let server = ApiServer::start().unwrap();
    for path in [
        "/api/v2/services",
        "/api/v1/cars",
        "/api/v1//services",
        "/apis/apps/v2/daemonsets",
        "/api/v1/services/a",
        "/api/v1/namespaces/default/nodes",
        "/api/v1/namespaces/default/services/a/scale",
        "/api/v1/namespaces/default/services/a/status/x",
        "/api/v1/nodes//status",
        "/apis/x/v1",
        "/api/v1/namespaces/%ff/%00",
    ] {
        let message = server.read(path).refused(404, "NotFound");
        assert_eq!(message, "the server could not find the requested resource", "{path}");
    }
    for path in ["/", "/apis/x", "/metrics", "//", "/%"] {
        let response = server.read(path);
        assert_eq!((response.code, &*response.body), (404, &b"404 page not found\n"[..]), "{path}");
    }
}

#[test]
fn unknown_methods_are_refused() {
    let server = shop();
    for (method, path) in [
        ("POST", "/api/v1/namespaces/default/services/a"),
        ("PUT", SERVICES),
        ("PATCH", SERVICES),
        ("OPTIONS", SERVICES),
        ("UNKNOWN", SERVICES),
        ("POST", "/version"),
        ("GET", "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews"),
    ] {
        let message = request(server.address(), method, path, "", b"{}").refused(405, "MethodNotAllowed");
        assert_eq!(message, "the server does not allow this method on the requested resource", "{method} {path}");
    }
}

#[test]
fn invalid_bodies_are_refused() {
    let server = shop();
    let deep = [b"[".repeat(100_000), b"]".repeat(100_000)].concat();
    for body in [&b"{"[..], b"nonsense", b"\xff\xfe", b"{\"metadata\":{\"name\":\"x\"}} {}", &deep] {
        let message = request(server.address(), "POST", SERVICES, "Content-Type: application/json\r\n", body).refused(400, "BadRequest");
        assert!(message.starts_with("couldn't get version/kind; json parse error: "), "{message}");
    }
    let protobuf = "Content-Type: application/vnd.kubernetes.protobuf\r\n";
    request(server.address(), "POST", SERVICES, protobuf, b"k8s\0").refused(415, "UnsupportedMediaType");
    let text = server.patch(&format!("{SERVICES}/a"), "text", &json!({})).refused(415, "UnsupportedMediaType");
    assert!(text.contains("application/merge-patch+json"), "{text}");
    for (kind, body) in
        [("merge-patch+json", json!([])), ("strategic-merge-patch+json", json!(7)), ("merge-patch+json", json!({"metadata": 7}))]
    {
        server.patch(&format!("{SERVICES}/a"), kind, &body).refused(400, "BadRequest");
    }
    server.replace(&format!("{SERVICES}/a"), &json!("text")).refused(400, "BadRequest");
}

#[test]
fn huge_bodies_are_refused() {
    let server = ApiServer::start().unwrap();
    let config = |size: usize| json!({"metadata": {"name": "c"}, "data": {"x": "x".repeat(size)}});
    let path = "/api/v1/namespaces/default/configmaps";
    for size in [5 << 20, 40 << 20] {
        let message = server.create(path, &config(size)).refused(413, "RequestEntityTooLarge");
        assert_eq!(message, "Request entity too large: limit is 4194304");
    }
    assert_eq!(server.create(path, &config(3 << 20)).code, 201);
}

#[test]
fn invalid_parameters_are_refused_or_ignored() {
    let server = shop();
    for query in
        ["limit=x", "limit=99999999999999999999", "watch=1&timeoutSeconds=x", "watch=1&timeoutSeconds=nan", "watch=1&timeoutSeconds=-1"]
    {
        server.read(&format!("{SERVICES}?{query}")).refused(400, "BadRequest");
    }
    for query in ["&&==&%", "unknown=1", "limit=", "watch=0", "limit=18446744073709551615", "resourceVersion="] {
        assert_eq!(server.read(&format!("{SERVICES}?{query}")).code, 200, "{query}");
    }
}

/// Sends invalid bodies with every method, path and content type. The server must not fail with 500 or stop.
#[test]
fn invalid_bodies_never_stop_the_server() {
    let server = shop();
    let bodies =
        [json!(null), json!(0), json!("x"), json!([]), json!([[]]), json!({"metadata": []}), json!({"metadata": {"name": {}}, "spec": []})];
    for kind in ["json", "merge-patch+json", "json-patch+json", "strategic-merge-patch+json", "apply-patch+yaml"] {
        for method in ["GET", "POST", "PUT", "PATCH", "DELETE"] {
            for path in [SERVICES, "/api/v1/namespaces/default/services/a", "/api/v1/namespaces/default/services/a/status"] {
                for body in &bodies {
                    let response = server.write(method, &format!("{path}?fieldManager=x"), &format!("application/{kind}"), body);
                    assert_ne!(response.code, 500, "{method} {path} {kind} {body}: {}", response.json());
                }
            }
        }
    }
    assert_eq!(server.read("/healthz").code, 200);
}
