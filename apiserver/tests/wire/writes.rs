//! Creates, updates and deletions.

use sepal_apiserver::ApiServer;
use serde_json::{Value, json};

use crate::client::{Requests, names, request, service, shop};

const SERVICES: &str = "/api/v1/namespaces/default/services";
const LEASES: &str = "/apis/coordination.k8s.io/v1/namespaces/kube-node-lease/leases";
const NODE: &str = "/api/v1/nodes/n1";

fn version(object: &Value) -> u64 {
    object["metadata"]["resourceVersion"].as_str().unwrap().parse().unwrap()
}

#[test]
fn defaults_are_set_on_create() {
    let server = ApiServer::start().unwrap();
    let response = server.create(SERVICES, &json!({"metadata": {"name": "web"}, "spec": {"type": "NodePort", "ports": [{"port": 80}]}}));
    assert_eq!(response.code, 201);
    let web = response.ok();
    assert_eq!((&web["kind"], &web["apiVersion"], &web["metadata"]["namespace"]), (&json!("Service"), &json!("v1"), &json!("default")));
    assert_eq!(version(&web), server.version());
    assert_eq!(web["metadata"]["uid"].as_str().unwrap().len(), 36);
    let created = web["metadata"]["creationTimestamp"].as_str().unwrap();
    assert!(created.len() == 20 && created.starts_with("20") && created.ends_with('Z'), "{created}");
    let address = web["spec"]["clusterIP"].clone();
    assert!(address.as_str().unwrap().starts_with("10.96."));
    let node_port = web["spec"]["ports"][0]["nodePort"].clone();
    assert!(node_port.as_u64().unwrap() >= 30_000);
    assert_eq!(
        web["spec"],
        json!({
            "type": "NodePort", "sessionAffinity": "None", "clusterIP": address, "clusterIPs": [address], "ipFamilies": ["IPv4"],
            "ipFamilyPolicy": "SingleStack", "internalTrafficPolicy": "Cluster", "externalTrafficPolicy": "Cluster",
            "ports": [{"port": 80, "protocol": "TCP", "targetPort": 80, "nodePort": node_port}],
        })
    );
    assert_eq!(web["status"], json!({"loadBalancer": {}}));
    let other = server.create("/api/v1/services", &json!({"metadata": {"name": "other"}})).ok();
    assert_ne!(other["spec"]["clusterIP"], address);
    let sticky = json!({"metadata": {"name": "v6"}, "spec": {"sessionAffinity": "ClientIP", "clusterIPs": ["fd00::1", "10.96.0.9"]}});
    let sticky = server.create(SERVICES, &sticky).ok();
    assert_eq!(sticky["spec"]["sessionAffinityConfig"], json!({"clientIP": {"timeoutSeconds": 10800}}));
    assert_eq!((&sticky["spec"]["clusterIP"], &sticky["spec"]["ipFamilies"]), (&json!("fd00::1"), &json!(["IPv6", "IPv4"])));
    assert_eq!(sticky["spec"]["ipFamilyPolicy"], "RequireDualStack");
    let headless = server.create(SERVICES, &json!({"metadata": {"name": "h"}, "spec": {"clusterIP": "None"}})).ok();
    assert_eq!((&headless["spec"]["clusterIPs"], &headless["spec"]["ipFamilies"]), (&json!(["None"]), &json!(["IPv4"])));
    let named = json!({"metadata": {"name": "x"}, "spec": {"type": "ExternalName", "externalName": "example.com"}});
    assert_eq!(server.create(SERVICES, &named).ok()["spec"].get("clusterIP"), None);
}

#[test]
fn names_can_be_generated() {
    let server = ApiServer::start().unwrap();
    let events = "/apis/events.k8s.io/v1/namespaces/default/events";
    let create = || server.create(events, &json!({"metadata": {"generateName": "e-"}, "reason": "Test"})).ok()["metadata"]["name"].clone();
    let (one, other) = (create(), create());
    assert!(one.as_str().unwrap().starts_with("e-") && one.as_str().unwrap().len() == 7, "{one}");
    assert_ne!(one, other);
    let message = server.create(events, &json!({})).refused(422, "Invalid");
    assert_eq!(message, "Event \"\" is invalid: metadata.name: Required value: name or generateName is required");
}

#[test]
fn invalid_creates_are_refused() {
    let server = shop();
    let before = server.version();
    let message = server.create(SERVICES, &json!({"metadata": {"name": "a"}})).refused(409, "AlreadyExists");
    assert_eq!(message, "services \"a\" already exists");
    let refused = |object: Value| server.create(SERVICES, &object).refused(400, "BadRequest");
    assert!(refused(json!({"metadata": {"name": "n", "namespace": "shop"}})).contains("does not match the namespace sent"));
    assert!(refused(json!({"metadata": {"name": "n", "resourceVersion": "1"}})).contains("resourceVersion should not be set"));
    assert_eq!(refused(json!({"kind": "Pod", "metadata": {"name": "n"}})), "Pod in version \"v1\" cannot be handled as a Service");
    assert_eq!(refused(json!([])), "the object provided is unrecognized (must be of type Service)");
    refused(json!({"metadata": 7}));
    refused(json!({"metadata": {"name": "n"}, "spec": "x"}));
    assert_eq!(server.create(&format!("{SERVICES}?dryRun=All"), &json!({"metadata": {"name": "n"}})).code, 201);
    assert_eq!((server.version(), server.get("services", "default/n")), (before, None));
}

#[test]
fn updates_of_an_old_version_conflict() {
    let server = shop();
    let path = format!("{SERVICES}/a");
    let mut service = server.read(&path).ok();
    service["metadata"]["labels"] = json!({"new": "yes"});
    let updated = server.replace(&path, &service).ok();
    assert_eq!((&updated["metadata"]["labels"], version(&updated)), (&json!({"new": "yes"}), server.version()));
    assert_eq!(updated["metadata"]["uid"], service["metadata"]["uid"]);
    let message = server.replace(&path, &service).refused(409, "Conflict");
    assert_eq!(
        message,
        "Operation cannot be fulfilled on services \"a\": the object has been modified; please apply your changes to the latest \
         version and try again"
    );
    service["metadata"].as_object_mut().unwrap().remove("resourceVersion");
    service["metadata"]["creationTimestamp"] = "1999-01-01T00:00:00Z".into();
    let unconditional = server.replace(&path, &service).ok();
    assert_eq!(unconditional["metadata"]["creationTimestamp"], updated["metadata"]["creationTimestamp"]);
    assert_eq!(version(&server.replace(&path, &service).ok()), version(&unconditional), "nothing changed");
    service["metadata"]["uid"] = "other".into();
    assert!(server.replace(&path, &service).refused(409, "Conflict").contains("Precondition failed: UID"));
    service["metadata"]["name"] = "b".into();
    assert!(server.replace(&path, &service).refused(400, "BadRequest").contains("(b) does not match the name on the URL (a)"));
    assert_eq!(server.replace(&format!("{SERVICES}/x"), &json!({})).refused(404, "NotFound"), "services \"x\" not found");
    let kept = server.replace(&path, &json!({"metadata": {"name": "a"}, "spec": {"ports": []}})).ok();
    assert_eq!(kept["spec"]["clusterIP"], "10.96.0.20", "an update without an address keeps the old one");
}

#[test]
fn leases_and_events_are_created_by_updates() {
    let server = ApiServer::start().unwrap();
    let path = format!("{LEASES}/n1");
    let response = server.replace(&path, &json!({"spec": {"holderIdentity": "n1"}}));
    assert_eq!((response.code, response.ok()["metadata"]["name"].as_str()), (201, Some("n1")));
    let message = server.replace(&path, &json!({"spec": {}})).refused(422, "Invalid");
    assert!(message.contains("metadata.resourceVersion: Invalid value: 0: must be specified for an update"), "{message}");
    let event = "/api/v1/namespaces/default/events/e";
    assert_eq!(server.replace(event, &json!({"reason": "Test"})).code, 201);
}

#[test]
fn generations_count_changes_outside_of_metadata_and_status() {
    let server = ApiServer::start().unwrap();
    let path = "/apis/discovery.k8s.io/v1/namespaces/default/endpointslices";
    let slice = server.create(path, &json!({"metadata": {"name": "s"}, "addressType": "IPv4", "endpoints": []})).ok();
    assert_eq!(slice["metadata"]["generation"], 1);
    let path = format!("{path}/s");
    let labelled = server.patch(&path, "merge-patch+json", &json!({"metadata": {"labels": {"a": "b"}}})).ok();
    assert_eq!(labelled["metadata"]["generation"], 1);
    let changed = server.patch(&path, "merge-patch+json", &json!({"endpoints": [{"addresses": ["10.0.0.1"]}]})).ok();
    assert_eq!(changed["metadata"]["generation"], 2);
}

#[test]
fn the_status_is_written_separately() {
    let server = ApiServer::start().unwrap();
    server
        .create("/api/v1/nodes", &json!({"metadata": {"name": "n1"}, "spec": {"podCIDR": "10.0.0.0/24", "podCIDRs": ["10.0.0.0/24"]}}))
        .ok();
    let status = json!({"status": {"phase": "x"}, "spec": {"unschedulable": true}, "metadata": {"labels": {"l": "1"}}});
    let node = server.replace(&format!("{NODE}/status"), &status).ok();
    assert_eq!(
        (&node["status"], &node["spec"]["podCIDR"], node["spec"].get("unschedulable")),
        (&json!({"phase": "x"}), &json!("10.0.0.0/24"), None)
    );
    assert_eq!(node["metadata"]["labels"], json!({"l": "1"}));
    let node = server.patch(NODE, "merge-patch+json", &json!({"status": {"phase": "y"}, "spec": {"unschedulable": true}})).ok();
    assert_eq!((&node["status"]["phase"], &node["spec"]["unschedulable"]), (&json!("x"), &json!(true)));
    let node =
        server.patch(&format!("{NODE}/status"), "merge-patch+json", &json!({"status": {"phase": null, "a": 1}, "spec": {"x": 1}})).ok();
    assert_eq!((&node["status"], node["spec"].get("x")), (&json!({"a": 1}), None));
    let message = server.patch(NODE, "merge-patch+json", &json!({"spec": {"podCIDRs": ["10.0.1.0/24"]}})).refused(422, "Invalid");
    assert!(message.starts_with("Node \"n1\" is invalid: spec.podCIDRs: Forbidden"), "{message}");
    server.replace(&format!("{LEASES}/x/status"), &json!({})).refused(404, "NotFound");
    server.delete(&format!("{NODE}/status")).refused(405, "MethodNotAllowed");
}

#[test]
fn deletions_return_the_object_or_a_status() {
    let server = shop();
    server.create(LEASES, &json!({"metadata": {"name": "l"}})).ok();
    let gone = server.delete(&format!("{SERVICES}/a")).ok();
    assert_eq!((&gone["kind"], &gone["metadata"]["name"], version(&gone)), (&json!("Service"), &json!("a"), server.version()));
    let uid = server.get("leases", "kube-node-lease/l").unwrap()["metadata"]["uid"].clone();
    let wrong = request(server.address(), "DELETE", &format!("{LEASES}/l"), "", br#"{"preconditions":{"uid":"other"}}"#);
    assert!(wrong.refused(409, "Conflict").contains("Precondition failed: UID in precondition: other"));
    server.delete(&format!("{LEASES}/l?dryRun=All")).ok();
    let status = server.delete(&format!("{LEASES}/l")).ok();
    assert_eq!((&status["kind"], &status["status"], &status["details"]["uid"]), (&json!("Status"), &json!("Success"), &uid));
    server.delete(&format!("{LEASES}/l")).refused(404, "NotFound");
    let gone = server.delete("/api/v1/services?labelSelector=app").ok();
    assert_eq!((names(&gone), names(&server.read("/api/v1/services").ok())), (vec!["b".to_owned(), "a".to_owned()], vec!["c".to_owned()]));
}

#[test]
fn finalizers_delay_the_deletion() {
    let server = ApiServer::start().unwrap();
    let mut held = service("default", "held", &json!({}));
    held["metadata"]["finalizers"] = json!(["example.com/hold"]);
    server.put(held).unwrap();
    let path = format!("{SERVICES}/held");
    let marked = server.delete(&path).ok();
    assert!(marked["metadata"]["deletionTimestamp"].is_string());
    assert_eq!(version(&server.delete(&path).ok()), version(&marked), "the second deletion changes nothing");
    server.patch(&path, "merge-patch+json", &json!({"metadata": {"finalizers": null}})).ok();
    server.read(&path).refused(404, "NotFound");
}
