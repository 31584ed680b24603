//! Writes: create, update, patch and delete, with the checks a client may run into.

use std::sync::Arc;

use hyper::body::Bytes;
use serde_json::{Value, json};

use crate::defaults::{self, is_filled};
use crate::object::{Entry, Object, as_object, child, meta_text, to_bytes};
use crate::patch::{self, PatchKind};
use crate::refusal::{Refusal, details};
use crate::resource::{Resource, VERSION};
use crate::stamp;
use crate::store::Store;

/// What is written to.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Target<'a> {
    pub(crate) resource: Resource,
    /// Empty for cluster-wide resources, or if the path names none.
    pub(crate) namespace: &'a str,
    /// Empty for a new object.
    pub(crate) name: &'a str,
    /// Its status alone.
    pub(crate) status: bool,
    /// Checks everything and stores nothing.
    pub(crate) dry_run: bool,
}

/// What came of a write.
#[derive(Debug)]
pub(crate) struct Written {
    /// There was no such object before.
    pub(crate) created: bool,
    /// The object, or what is said of it.
    pub(crate) body: Bytes,
}

impl Written {
    const fn old(body: Bytes) -> Self {
        Self { created: false, body }
    }
}

/// Stores a new object.
pub(crate) fn create(store: &mut Store, target: Target<'_>, value: Value) -> Result<Written, Refusal> {
    let resource = target.resource;
    let mut object = as_object(value, resource)?;
    check_kind(resource, &object)?;
    let metadata = child(&mut object, "metadata")?;
    if resource.namespaced {
        let given = metadata.get("namespace").and_then(Value::as_str).unwrap_or_default();
        let namespace = [target.namespace, given, "default"].into_iter().find(|text| !text.is_empty()).unwrap_or_default().to_owned();
        if !given.is_empty() && given != namespace {
            return Err(other_namespace());
        }
        metadata.insert("namespace".into(), namespace.into());
    } else {
        metadata.remove("namespace");
    }
    if is_filled(metadata.get("resourceVersion")) {
        return Err(Refusal::bad_request("resourceVersion should not be set on objects to be created"));
    }
    let name = new_name(resource, metadata)?;
    metadata.insert("name".into(), name.clone().into());
    for field in ["deletionTimestamp", "selfLink", "managedFields", "resourceVersion"] {
        metadata.remove(field);
    }
    metadata.insert("uid".into(), stamp::uid().into());
    metadata.insert("creationTimestamp".into(), stamp::timestamp().into());
    if store.get(resource, meta_text(&object, "namespace"), &name).is_some() {
        return Err(Refusal::already_exists(resource, &name));
    }
    defaults::on_create(resource, &mut object, &mut store.allocator)?;
    let body = if target.dry_run { to_bytes(resource, object) } else { store.put(resource, object, None).full() };
    Ok(Written { created: true, body })
}

/// The name of a new object.
fn new_name(resource: Resource, metadata: &Object) -> Result<String, Refusal> {
    let text = |field: &str| metadata.get(field).and_then(Value::as_str).filter(|text| !text.is_empty());
    match (text("name"), text("generateName")) {
        (Some(name), _) => Ok(name.to_owned()),
        (None, Some(prefix)) => Ok(format!("{prefix}{}", stamp::suffix())),
        (None, None) => {
            let why = "metadata.name: Required value: name or generateName is required";
            Err(Refusal::invalid_object(resource, resource.kind, "", why))
        }
    }
}

/// Stores an object in place of another.
pub(crate) fn update(store: &mut Store, target: Target<'_>, value: Value) -> Result<Written, Refusal> {
    let Target { resource, namespace, name, .. } = target;
    let mut object = as_object(value, resource)?;
    check_kind(resource, &object)?;
    let metadata = child(&mut object, "metadata")?;
    let given = metadata.get("namespace").and_then(Value::as_str).unwrap_or_default();
    if resource.namespaced && !given.is_empty() && given != namespace {
        return Err(other_namespace());
    }
    let Some(old) = store.get(resource, namespace, name) else {
        if !matches!(resource.plural, "leases" | "events") || target.status {
            return Err(Refusal::not_found(resource, name));
        }
        metadata.insert("name".into(), name.into());
        metadata.remove("resourceVersion");
        return create(store, target, Value::Object(object));
    };
    let version = meta_text(&object, "resourceVersion").to_owned();
    if resource.plural == "leases" && version.is_empty() {
        let why = "metadata.resourceVersion: Invalid value: 0: must be specified for an update";
        return Err(Refusal::invalid_object(resource, &resource.qualified(), name, why));
    }
    replace(store, target, &old, object, &version)
}

/// Applies a patch to an object.
pub(crate) fn patch(store: &mut Store, target: Target<'_>, kind: PatchKind, field_manager: &str, patch: Value) -> Result<Written, Refusal> {
    let Target { resource, namespace, name, .. } = target;
    let old = store.get(resource, namespace, name);
    if kind == PatchKind::Apply {
        if field_manager.is_empty() {
            let why = "fieldManager: Required value: is required for apply patch";
            return Err(Refusal::invalid(format!("PatchOptions.meta.k8s.io \"\" is invalid: {why}")));
        }
        if old.is_none() && !target.status {
            let mut object = as_object(patch, resource)?;
            child(&mut object, "metadata")?.insert("name".into(), name.into());
            return create(store, target, Value::Object(object));
        }
    }
    let old = old.ok_or_else(|| Refusal::not_found(resource, name))?;
    let patched = patch::apply(kind, resource, old.object()?, &patch)?;
    let version = match (&patch, kind) {
        (_, PatchKind::Json) => meta_text(&patched, "resourceVersion"),
        (Value::Object(patch), _) => meta_text(patch, "resourceVersion"),
        _ => "",
    }
    .to_owned();
    replace(store, target, &old, patched, &version)
}

/// What update and patch have in common. `version` is the one the client thinks it changes, empty if any.
fn replace(store: &mut Store, target: Target<'_>, old: &Arc<Entry>, mut new: Object, version: &str) -> Result<Written, Refusal> {
    let Target { resource, namespace, name, .. } = target;
    let mut before = old.object()?;
    child(&mut new, "metadata")?;
    check_identity(resource, name, old, &new, version)?;
    if target.status {
        new = with_status_of(&before, &mut new)?;
    } else {
        if resource.status {
            match before.get("status") {
                Some(status) => new.insert("status".into(), status.clone()),
                None => new.remove("status"),
            };
        }
        match resource.plural {
            "services" => keep_addresses(&before, &mut new, store)?,
            "nodes" => check_pod_cidrs(resource, name, &before, &new)?,
            _ => {}
        }
    }
    new.insert("apiVersion".into(), resource.api_version().into());
    new.insert("kind".into(), resource.kind.into());
    let metadata = child(&mut new, "metadata")?;
    metadata.insert("name".into(), name.into());
    if resource.namespaced {
        metadata.insert("namespace".into(), namespace.into());
    }
    for field in ["uid", "creationTimestamp", "deletionTimestamp", "generation", "deletionGracePeriodSeconds", "resourceVersion"] {
        match child(&mut before, "metadata")?.get(field) {
            Some(value) => metadata.insert(field.into(), value.clone()),
            None => metadata.remove(field),
        };
    }
    metadata.remove("managedFields");
    if new == before {
        return Ok(Written::old(old.full()));
    }
    count_generation(&before, &mut new)?;
    if target.dry_run {
        return Ok(Written::old(to_bytes(resource, new)));
    }
    let kept_alive = is_filled(new.get("metadata").and_then(|metadata| metadata.get("finalizers")));
    let entry = store.put(resource, new, Some(old.clone()));
    if !meta_text(&before, "deletionTimestamp").is_empty() && !kept_alive {
        store.remove(resource, &entry)?;
    }
    Ok(Written::old(entry.full()))
}

/// Refuses to write to another object, or to another state of it, than the client means.
fn check_identity(resource: Resource, name: &str, old: &Entry, new: &Object, version: &str) -> Result<(), Refusal> {
    let named = meta_text(new, "name");
    if !named.is_empty() && named != name {
        let message = format!("the name of the object ({named}) does not match the name on the URL ({name})");
        return Err(Refusal::bad_request(message));
    }
    if !version.is_empty() && version != old.version.to_string() {
        let why = "the object has been modified; please apply your changes to the latest version and try again";
        return Err(Refusal::conflict(resource, name, why));
    }
    let uid = meta_text(new, "uid");
    if !uid.is_empty() && *uid != *old.uid {
        let why = format!(
            "StorageError: invalid object, Code: 4, Precondition failed: UID in precondition: {uid}, UID in object meta: {}",
            old.uid
        );
        return Err(Refusal::conflict(resource, name, &why));
    }
    Ok(())
}

/// The object before with the status of another, and those of its metadata that a status may carry.
fn with_status_of(before: &Object, new: &mut Object) -> Result<Object, Refusal> {
    let mut kept = before.clone();
    kept.insert("status".into(), new.remove("status").unwrap_or_else(|| json!({})));
    let metadata = child(new, "metadata")?;
    for field in ["annotations", "labels", "finalizers"] {
        match metadata.remove(field) {
            Some(value) => child(&mut kept, "metadata")?.insert(field.into(), value),
            None => child(&mut kept, "metadata")?.remove(field),
        };
    }
    Ok(kept)
}

/// A Service keeps the addresses it has, unless it gives them up.
fn keep_addresses(before: &Object, new: &mut Object, store: &mut Store) -> Result<(), Refusal> {
    let spec = child(new, "spec")?;
    if spec.get("type").and_then(Value::as_str) != Some("ExternalName") {
        for field in ["clusterIP", "clusterIPs", "ipFamilies", "ipFamilyPolicy"] {
            if let (false, Some(value)) = (is_filled(spec.get(field)), before.get("spec").and_then(|spec| spec.get(field))) {
                spec.insert(field.into(), value.clone());
            }
        }
    }
    defaults::service(new, &mut store.allocator)
}

/// A Node's pod networks are set once.
fn check_pod_cidrs(resource: Resource, name: &str, before: &Object, new: &Object) -> Result<(), Refusal> {
    let field = |object: &Object, field: &str| object.get("spec").and_then(|spec| spec.get(field)).cloned();
    let (had, wanted) = (field(before, "podCIDRs"), field(new, "podCIDRs"));
    if is_filled(field(before, "podCIDR").as_ref()) && wanted.as_ref().is_some_and(|wanted| !wanted.is_null()) && wanted != had {
        let why = "spec.podCIDRs: Forbidden: node updates may not change podCIDR except from \"\" to valid";
        return Err(Refusal::invalid_object(resource, resource.kind, name, why));
    }
    Ok(())
}

/// Counts a change outside of metadata and status, where such changes are counted.
fn count_generation(before: &Object, new: &mut Object) -> Result<(), Refusal> {
    let counted = |object: &Object| {
        let mut object = object.clone();
        object.retain(|field, _| field != "metadata" && field != "status");
        object
    };
    let Some(generation) = before.get("metadata").and_then(|metadata| metadata.get("generation")).and_then(Value::as_u64) else {
        return Ok(());
    };
    if counted(before) != counted(new) {
        child(new, "metadata")?.insert("generation".into(), generation.saturating_add(1).into());
    }
    Ok(())
}

/// Removes an object, or marks it where finalizers hold it.
pub(crate) fn delete(store: &mut Store, target: Target<'_>, options: &Value) -> Result<Written, Refusal> {
    let Target { resource, namespace, name, .. } = target;
    let old = store.get(resource, namespace, name).ok_or_else(|| Refusal::not_found(resource, name))?;
    let version = old.version.to_string();
    for (field, called, current) in [("uid", "UID", &*old.uid), ("resourceVersion", "ResourceVersion", &*version)] {
        let asked = options.get("preconditions").and_then(|asked| asked.get(field)).and_then(Value::as_str).unwrap_or_default();
        if !asked.is_empty() && asked != current {
            let why = format!("Precondition failed: {called} in precondition: {asked}, in object meta: {current}");
            return Err(Refusal::conflict(resource, name, &why));
        }
    }
    let mut object = old.object()?;
    let metadata = child(&mut object, "metadata")?;
    if is_filled(metadata.get("finalizers")) {
        if is_filled(metadata.get("deletionTimestamp")) || target.dry_run {
            return Ok(Written::old(old.full()));
        }
        metadata.insert("deletionTimestamp".into(), stamp::timestamp().into());
        metadata.insert("deletionGracePeriodSeconds".into(), 0.into());
        return Ok(Written::old(store.put(resource, object, Some(old)).full()));
    }
    let last = if target.dry_run { old } else { store.remove(resource, &old)? };
    if matches!(resource.plural, "pods" | "services" | "namespaces") {
        return Ok(Written::old(last.full()));
    }
    let mut details = details(resource, name);
    details.insert("uid".into(), (*last.uid).into());
    let status = json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success", "details": details});
    Ok(Written::old(status.to_string().into()))
}

fn check_kind(resource: Resource, object: &Object) -> Result<(), Refusal> {
    match object.get("kind").and_then(Value::as_str) {
        Some(kind) if !kind.is_empty() && kind != resource.kind => {
            let message = format!("{kind} in version \"{VERSION}\" cannot be handled as a {}", resource.kind);
            Err(Refusal::bad_request(message))
        }
        _ => Ok(()),
    }
}

fn other_namespace() -> Refusal {
    Refusal::bad_request("the namespace of the provided object does not match the namespace sent on the request")
}
