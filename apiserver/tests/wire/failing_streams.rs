//! Streaming lists that fail, in each form of failure.

use std::time::Duration;

use http_body_util::BodyExt as _;
use sepal_apiserver::{ApiServer, Authority, InjectedFailure, Options};
use serde_json::{Value, json};
use tokio::time::timeout;

use crate::client::{Line, Requests, request, shop};
use crate::secure_client::Handshake;

const STREAM: &str = "/api/v1/services?watch=true&sendInitialEvents=true&resourceVersionMatch=NotOlderThan&allowWatchBookmarks=true";
const NODES: &str = "/api/v1/nodes?watch=true&sendInitialEvents=true&resourceVersionMatch=NotOlderThan&allowWatchBookmarks=true";
const WATCH: &str = "/api/v1/services?watch=true&allowWatchBookmarks=true";
const LIST: &str = "/api/v1/services";

/// Reads the events of a watch up to a bookmark or the end.
fn lines(server: &ApiServer, path: &str) -> Vec<String> {
    let mut watch = server.watch(path);
    let mut lines = Vec::new();
    loop {
        match watch.next() {
            Line::Event(kind, object) => {
                lines.push(format!("{kind} {}", object["metadata"]["name"].as_str().unwrap_or("-")));
                if kind == "BOOKMARK" {
                    return lines;
                }
            }
            Line::End => {
                lines.push("end".into());
                return lines;
            }
            other => panic!("{other:?} after {lines:?}"),
        }
    }
}

fn is_complete(server: &ApiServer, path: &str) -> bool {
    lines(server, path).last().is_some_and(|line| line == "BOOKMARK -")
}

#[test]
fn with_any_status_code_and_only_streaming_lists() {
    let server = shop();
    for code in 400..600 {
        server.fail(InjectedFailure::next(2, code).streaming());
        assert_eq!(server.read(LIST).code, 200);
        let refused = [server.read(STREAM), server.read(NODES)];
        for response in refused {
            let status = response.json();
            assert_eq!((response.code, &status["kind"], &status["code"]), (code, &json!("Status"), &json!(code)));
        }
        assert_eq!(server.watch(WATCH).brief(), "ADDED a");
    }
    assert!(is_complete(&server, STREAM));
}

#[test]
fn for_one_resource_until_it_is_stopped() {
    let server = shop();
    server.fail(InjectedFailure::always(404).streaming().at("/services"));
    server.fail_also(InjectedFailure::next(1, 403).streaming().at("/nodes"));
    for _ in 0..3 {
        assert_eq!(server.read(STREAM).code, 404);
    }
    assert_eq!(server.read(NODES).refused(403, "Forbidden"), "asked to fail");
    assert!(is_complete(&server, NODES));
    server.stop_failing();
    assert!(is_complete(&server, STREAM));
    assert_eq!(server.count("failed"), 4);
}

#[test]
fn with_a_text_body() {
    let server = shop();
    server.fail(InjectedFailure::always(502).streaming().text("<html>Bad Gateway</html>"));
    let response = server.read(STREAM);
    assert_eq!(
        (response.code, response.content_type.as_str(), &*response.body),
        (502, "text/plain; charset=utf-8", &b"<html>Bad Gateway</html>"[..])
    );
}

#[test]
fn with_an_error_event() {
    let server = shop();
    server.fail(InjectedFailure::old_etcd());
    let mut watch = server.watch(STREAM);
    let expected = json!({
        "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure", "code": 500, "reason": "InternalError",
        "message": "a watch stream was requested by the client but the required storage feature RequestWatchProgress is disabled",
    });
    assert_eq!((watch.event(), watch.next()), (("ERROR".to_owned(), expected), Line::End));
    server.fail(InjectedFailure::always(410).as_event());
    assert_eq!(server.read(LIST).code, 200);
    let mut watch = server.watch(WATCH);
    let (kind, status) = watch.event();
    assert_eq!((kind.as_str(), &status["code"], &status["reason"]), ("ERROR", &json!(410), &json!("Expired")));
}

#[test]
fn with_a_stream_that_ends_early_or_lacks_its_bookmark() {
    let server = shop();
    let services = ["ADDED a", "ADDED b", "ADDED c", "ADDED a"];
    server.fail(InjectedFailure::next(1, 500).streaming().ended());
    assert_eq!(lines(&server, STREAM), [&services[..], &["end"]].concat());
    server.fail(InjectedFailure::next(1, 500).streaming().without_bookmark());
    let mut watch = server.watch(STREAM);
    assert_eq!(services.map(|_| watch.brief()), services);
    assert!(watch.is_silent());
    server.remove("services", "shop/a");
    assert_eq!(watch.brief(), "DELETED a");
    assert!(is_complete(&server, STREAM));
}

#[test]
fn with_silence() {
    let server = shop();
    server.fail(InjectedFailure::next(1, 500).streaming().silent());
    let mut watch = server.watch(&format!("{STREAM}&timeoutSeconds=1"));
    assert_eq!(watch.within(Duration::from_millis(1_500)), Line::Silent);
}

#[test]
fn with_a_time_to_wait() {
    let server = shop();
    server.fail(InjectedFailure::always(429).streaming().retry_after(3));
    let response = server.read(STREAM);
    assert_eq!((response.retry_after.as_deref(), &response.json()["details"]), (Some("3"), &json!({"retryAfterSeconds": 3})));
    assert_eq!(response.refused(429, "TooManyRequests"), "asked to fail");
    server.fail(InjectedFailure::always(429).text("Too many requests, please try again later.\n").retry_after(1));
    assert_eq!(server.read(LIST).retry_after.as_deref(), Some("1"));
}

#[test]
fn with_a_version_that_is_too_large_or_expired() {
    let server = shop();
    server.fail(InjectedFailure::next(1, 500).streaming().too_large_resource_version());
    let response = server.read(STREAM);
    let cause = &response.json()["details"]["causes"][0];
    assert_eq!((&cause["reason"], response.retry_after.as_deref()), (&json!("ResourceVersionTooLarge"), Some("1")));
    assert!(response.refused(504, "Timeout").starts_with("Timeout: Too large resource version: "));
    server.fail(InjectedFailure::next(1, 410).message("too old resource version: 1 (2)").streaming());
    assert_eq!(server.read(STREAM).refused(410, "Expired"), "too old resource version: 1 (2)");
}

#[tokio::test]
async fn with_a_connection_that_breaks() {
    let authority = Authority::new("ca").unwrap();
    for offers in [&["h2"][..], &["http/1.1"]] {
        let server = ApiServer::start_with(Options::default().tls(&authority.server(&["localhost"]).unwrap())).unwrap();
        let handshake = Handshake { offers, ..Handshake::default() };
        let mut client = handshake.to(&server).await;
        server.fail(InjectedFailure::next(1, 500).streaming().closed());
        assert_eq!(client.json(LIST, &[]).await.0, 200);
        assert!(timeout(Duration::from_secs(30), client.send(STREAM, &[])).await.unwrap().is_err());
        assert!(client.send(LIST, &[]).await.is_err(), "the connection is closed");
        let mut watch = handshake.to(&server).await.send(STREAM, &[]).await.unwrap().into_body();
        assert!(watch.frame().await.unwrap().is_ok());
        let codes: Vec<_> = server.log().iter().map(|entry| entry.code).collect();
        assert_eq!((codes, server.connections().accepted), (vec![200, 0, 200], 2));
    }
}

#[test]
fn by_hook() {
    let server = shop();
    let fail = |query: &str| server.hook(&format!("fail?{query}"), &Value::Null);
    let shop = format!("{STREAM}&fieldSelector=metadata.namespace%3Dshop");
    fail("n=1&code=500&only=streaming&form=event").ok();
    assert_eq!(server.read(LIST).code, 200);
    assert_eq!(lines(&server, &shop), ["ERROR -", "end"]);
    fail("n=1&only=streaming&form=ended").ok();
    assert_eq!(lines(&server, &shop), ["ADDED a", "end"]);
    fail("n=1&only=streaming&form=without-bookmark").ok();
    let mut watch = server.watch(&shop);
    assert_eq!(watch.brief(), "ADDED a");
    assert!(watch.is_silent());
    fail("n=1&form=silent").ok();
    assert!(server.watch(LIST).is_silent());
    fail("n=1&form=closed").ok();
    assert!(server.is_closed_by(LIST));
    fail("seconds=600&code=429&only=watches&retry-after=2&message=slow%20down").ok();
    fail("seconds=600&code=503&form=text&message=no&path=/nodes&also=1").ok();
    let response = server.read(WATCH);
    assert_eq!(response.retry_after.as_deref(), Some("2"));
    assert_eq!(response.refused(429, "TooManyRequests"), "slow down");
    assert_eq!((server.read(LIST).code, server.read("/api/v1/nodes").body), (200, b"no".to_vec()));
    fail("n=1&form=too-large").ok();
    server.read(LIST).refused(504, "Timeout");
    server.hook("stop-failing", &Value::Null).ok();
    assert_eq!(server.read("/api/v1/nodes").code, 200);
    for bad in ["n=1&form=unknown", "n=1&only=unknown", "n=1&retry-after=soon"] {
        fail(bad).refused(400, "BadRequest");
    }
    let plain = request(server.address(), "GET", "/version", "", b"").ok();
    assert_eq!((&plain["minor"], &plain["emulationMinor"], &plain["minCompatibilityMinor"]), (&json!("36"), &json!("36"), &json!("35")));
}
