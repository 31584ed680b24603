//! Health checks, version and API discovery.

use hyper::Response;
use serde_json::{Value, json};

use crate::resource::{REVIEWS, Resource, VERSION, group_version, groups};

use super::body::Body;
use super::response::{json_value, plain_text};

/// The response at a path; `None` if the path belongs to no health check, version or discovery document. `path` is split at slashes.
pub(super) fn respond(path: &[&str]) -> Option<Response<Body>> {
    let document = match path {
        ["healthz" | "livez" | "readyz", ..] => return Some(plain_text(200, "ok")),
        ["version"] => json!({
            "major": "1", "minor": "36", "emulationMajor": "1", "emulationMinor": "36",
            "minCompatibilityMajor": "1", "minCompatibilityMinor": "35", "gitVersion": "v1.36.2",
            "gitCommit": "0000000000000000000000000000000000000000", "gitTreeState": "clean", "buildDate": "2026-06-09T12:00:00Z",
            "goVersion": "go1.26.2", "compiler": "gc", "platform": "linux/amd64",
        }),
        ["api"] => json!({"kind": "APIVersions", "versions": [VERSION], "serverAddressByClientCIDRs": []}),
        ["apis"] => {
            let groups: Vec<_> = groups().into_iter().map(describe_group).collect();
            json!({"kind": "APIGroupList", "apiVersion": "v1", "groups": groups})
        }
        ["apis", name] => {
            let mut group = describe_group(groups().into_iter().find(|group| group == name)?);
            group["kind"] = "APIGroup".into();
            group["apiVersion"] = "v1".into();
            group
        }
        ["api", VERSION] => list_resources(""),
        ["apis", name, VERSION] => list_resources(groups().into_iter().find(|group| group == name)?),
        _ => return None,
    };
    Some(json_value(200, &document))
}

fn describe_group(name: &str) -> Value {
    let version = json!({"groupVersion": group_version(name), "version": VERSION});
    json!({"name": name, "versions": [version], "preferredVersion": version})
}

/// The `APIResourceList` of a group.
fn list_resources(group: &str) -> Value {
    let mut resources = Vec::new();
    for row in Resource::all().filter(|row| row.group == group) {
        let mut resource = json!({
            "name": row.plural, "singularName": row.kind.to_lowercase(), "namespaced": row.namespaced, "kind": row.kind,
            "verbs": ["create", "delete", "deletecollection", "get", "list", "patch", "update", "watch"],
        });
        if !row.short.is_empty() {
            resource["shortNames"] = row.short.into();
        }
        resources.push(resource);
        if row.status {
            resources.push(json!({
                "name": format!("{}/status", row.plural), "singularName": "", "namespaced": row.namespaced, "kind": row.kind,
                "verbs": ["get", "patch", "update"],
            }));
        }
    }
    for (_, plural, kind) in REVIEWS.iter().filter(|(review_group, ..)| *review_group == group) {
        resources.push(json!({
            "name": plural, "singularName": kind.to_lowercase(), "namespaced": false, "kind": kind, "verbs": ["create"],
        }));
    }
    json!({"kind": "APIResourceList", "apiVersion": "v1", "groupVersion": group_version(group), "resources": resources})
}
