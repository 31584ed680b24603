//! The objects that `kubectl apply -k` would send. Only the features that our kustomizations use are implemented; all others are refused.

use std::fs;
use std::path::{Path, PathBuf};

use kube::Api;
use kube::api::{ApiResource, DynamicObject, Patch, PatchParams};
use sepal::kubernetes::client::ConnectionSettings;
use sepal_apiserver::ApiServer;
use serde::Deserialize;
use serde_json::{Value, json};

/// The namespace of base objects while patches are applied to them.
const NOWHERE: &str = "nowhere";

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Kustomization {
    api_version: String,
    kind: String,
    namespace: Option<String>,
    #[serde(default)]
    resources: Vec<PathBuf>,
    #[serde(default)]
    components: Vec<PathBuf>,
    #[serde(default)]
    patches: Vec<PatchFile>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct PatchFile {
    path: PathBuf,
}

/// The folder `deploy/`.
pub(crate) fn deploy() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy")
}

/// The YAML documents of a file.
pub(crate) fn documents(file: &Path) -> Vec<Value> {
    let text = fs::read_to_string(file).unwrap_or_else(|error| panic!("{}: {error}", file.display()));
    serde_saphyr::from_multiple(&text).unwrap_or_else(|error| panic!("{}: {error}", file.display()))
}

/// The objects of one of the kustomizations.
pub(crate) fn compose(name: &str) -> Vec<Value> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    let mut objects = Vec::new();
    runtime.block_on(accumulate(&deploy().join(name), &mut objects));
    assert!(!objects.is_empty(), "{name} is empty");
    objects
}

/// The one object of a kind.
pub(crate) fn only<'a>(objects: &'a [Value], kind: &str) -> &'a Value {
    let found: Vec<&Value> = objects.iter().filter(|object| object["kind"] == kind).collect();
    assert_eq!(found.len(), 1, "objects of kind {kind}");
    found[0]
}

async fn accumulate(folder: &Path, objects: &mut Vec<Value>) {
    let text = fs::read_to_string(folder.join("kustomization.yaml")).unwrap_or_else(|error| panic!("{}: {error}", folder.display()));
    let kustomization: Kustomization = serde_saphyr::from_str(&text).unwrap_or_else(|error| panic!("{}: {error}", folder.display()));
    let component = kustomization.kind == "Component";
    let version = if component { "kustomize.config.k8s.io/v1alpha1" } else { "kustomize.config.k8s.io/v1beta1" };
    assert_eq!(kustomization.api_version, version, "{}", folder.display());
    assert!(component || kustomization.kind == "Kustomization", "{}: kind {}", folder.display(), kustomization.kind);
    for path in &kustomization.resources {
        let path = folder.join(path);
        if path.is_dir() { Box::pin(accumulate(&path, objects)).await } else { objects.extend(documents(&path)) }
    }
    for path in &kustomization.components {
        Box::pin(accumulate(&folder.join(path), objects)).await;
    }
    for PatchFile { path } in &kustomization.patches {
        for patch in documents(&folder.join(path)) {
            let same = |object: &&mut Value| object["kind"] == patch["kind"] && object["metadata"]["name"] == patch["metadata"]["name"];
            let mut targets: Vec<&mut Value> = objects.iter_mut().filter(same).collect();
            assert_eq!(targets.len(), 1, "{}: what does it patch?", path.display());
            *targets[0] = patched(targets[0], &patch).await;
        }
    }
    if let Some(namespace) = &kustomization.namespace {
        for object in objects.iter_mut() {
            let kind = object["kind"].as_str().expect("a kind");
            if !["ClusterRole", "ClusterRoleBinding", "Namespace"].contains(&kind) {
                object["metadata"]["namespace"] = json!(namespace);
            }
        }
    }
}

/// The object with a strategic merge patch applied, as the API server does it.
async fn patched(object: &Value, patch: &Value) -> Value {
    let mut object = object.clone();
    object["metadata"]["namespace"] = json!(NOWHERE);
    let resource = match object["kind"].as_str() {
        Some("DaemonSet") => ApiResource::erase::<k8s_openapi::api::apps::v1::DaemonSet>(&()),
        kind => panic!("no kind to patch: {kind:?}"),
    };
    let server = ApiServer::start().expect("it serves");
    server.load(vec![object.clone()]).expect("an object");
    let client =
        ConnectionSettings { kubeconfig: None, master: Some(server.url()), ..ConnectionSettings::default() }.client().expect("a client");
    let api: Api<DynamicObject> = Api::namespaced_with(client, NOWHERE, &resource);
    let name = object["metadata"]["name"].as_str().expect("a name");
    let answer = api.patch(name, &PatchParams::default(), &Patch::Strategic(patch)).await.expect("it is patched");
    let mut result = serde_json::to_value(answer).expect("JSON");
    let metadata = result["metadata"].as_object_mut().expect("metadata");
    metadata.retain(|field, _| ["name", "labels", "annotations"].contains(&field.as_str()));
    result
}
