//! Paths that tell what the server is and has.

use hyper::Response;
use serde_json::{Value, json};

use crate::resource::{REVIEWS, Resource, VERSION, group_version, groups};

use super::{Body, text, value};

/// The answer at a path, if it is one of these. `path` is what stands between its slashes.
pub(super) fn answer(path: &[&str]) -> Option<Response<Body>> {
    let found = match path {
        ["healthz" | "livez" | "readyz", ..] => return Some(text(200, "ok")),
        ["version"] => json!({
            "major": "1", "minor": "36", "emulationMajor": "1", "emulationMinor": "36",
            "minCompatibilityMajor": "1", "minCompatibilityMinor": "35", "gitVersion": "v1.36.2",
            "gitCommit": "0000000000000000000000000000000000000000", "gitTreeState": "clean", "buildDate": "2026-06-09T12:00:00Z",
            "goVersion": "go1.26.2", "compiler": "gc", "platform": "linux/amd64",
        }),
        ["api"] => json!({"kind": "APIVersions", "versions": [VERSION], "serverAddressByClientCIDRs": []}),
        ["apis"] => {
            let groups: Vec<_> = groups().into_iter().map(group).collect();
            json!({"kind": "APIGroupList", "apiVersion": "v1", "groups": groups})
        }
        ["apis", name] => {
            let mut found = group(groups().into_iter().find(|one| one == name)?);
            found["kind"] = "APIGroup".into();
            found["apiVersion"] = "v1".into();
            found
        }
        ["api", VERSION] => resources(""),
        ["apis", name, VERSION] => resources(groups().into_iter().find(|one| one == name)?),
        _ => return None,
    };
    Some(value(200, &found))
}

fn group(name: &str) -> Value {
    let version = json!({"groupVersion": group_version(name), "version": VERSION});
    json!({"name": name, "versions": [version], "preferredVersion": version})
}

fn resources(group: &str) -> Value {
    let mut found = Vec::new();
    for row in Resource::all().filter(|row| row.group == group) {
        let mut resource = json!({
            "name": row.plural, "singularName": row.kind.to_lowercase(), "namespaced": row.namespaced, "kind": row.kind,
            "verbs": ["create", "delete", "deletecollection", "get", "list", "patch", "update", "watch"],
        });
        if !row.short.is_empty() {
            resource["shortNames"] = row.short.into();
        }
        found.push(resource);
        if row.status {
            found.push(json!({
                "name": format!("{}/status", row.plural), "singularName": "", "namespaced": row.namespaced, "kind": row.kind,
                "verbs": ["get", "patch", "update"],
            }));
        }
    }
    for (_, plural, kind) in REVIEWS.iter().filter(|(one, ..)| *one == group) {
        found.push(json!({
            "name": plural, "singularName": kind.to_lowercase(), "namespaced": false, "kind": kind, "verbs": ["create"],
        }));
    }
    json!({"kind": "APIResourceList", "apiVersion": "v1", "groupVersion": group_version(group), "resources": found})
}
