//! Creates, updates, patches and deletes objects, with the checks that clients depend on.

use std::sync::Arc;

use hyper::body::Bytes;
use serde_json::{Value, json};

use crate::defaults::{self, is_set};
use crate::generate;
use crate::object::{Entry, Object, child_mut, encode, expect_object, metadata_text};
use crate::patch::{self, PatchKind};
use crate::resource::{Resource, VERSION};
use crate::status_error::{StatusError, details};
use crate::store::Store;

/// The object that a request writes.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Target<'a> {
    pub(crate) resource: Resource,
    /// Empty for cluster-wide resources, and if the path names no namespace.
    pub(crate) namespace: &'a str,
    /// Empty for a new object.
    pub(crate) name: &'a str,
    /// True if only the status is written.
    pub(crate) status: bool,
    /// True if the write is checked and not stored.
    pub(crate) dry_run: bool,
}

/// The result of a write.
#[derive(Debug)]
pub(crate) struct Written {
    /// True if the write created the object.
    pub(crate) created: bool,
    /// The encoded object, or a `Status` for most deletions.
    pub(crate) body: Bytes,
}

impl Written {
    /// The result of a write to an existing object.
    const fn existing(body: Bytes) -> Self {
        Self { created: false, body }
    }
}

/// Stores a new object.
pub(crate) fn create(store: &mut Store, target: Target<'_>, value: Value) -> Result<Written, StatusError> {
    let resource = target.resource;
    let mut object = expect_object(value, resource)?;
    check_kind(resource, &object)?;
    let metadata = child_mut(&mut object, "metadata")?;
    if resource.namespaced {
        let given = metadata.get("namespace").and_then(Value::as_str).unwrap_or_default();
        let namespace = [target.namespace, given, "default"].into_iter().find(|text| !text.is_empty()).unwrap_or_default().to_owned();
        if !given.is_empty() && given != namespace {
            return Err(namespace_mismatch());
        }
        metadata.insert("namespace".into(), namespace.into());
    } else {
        metadata.remove("namespace");
    }
    if is_set(metadata.get("resourceVersion")) {
        return Err(StatusError::bad_request("resourceVersion should not be set on objects to be created"));
    }
    let name = name_for(resource, metadata)?;
    metadata.insert("name".into(), name.clone().into());
    for field in ["deletionTimestamp", "selfLink", "managedFields", "resourceVersion"] {
        metadata.remove(field);
    }
    metadata.insert("uid".into(), generate::uid().into());
    metadata.insert("creationTimestamp".into(), generate::timestamp().into());
    if store.get(resource, metadata_text(&object, "namespace"), &name).is_some() {
        return Err(StatusError::already_exists(resource, &name));
    }
    defaults::set_on_create(resource, &mut object, &mut store.allocator)?;
    let body = if target.dry_run { encode(resource, object) } else { store.put(resource, object, None).full() };
    Ok(Written { created: true, body })
}

/// The name of a new object: given by the client, or generated from `generateName`.
fn name_for(resource: Resource, metadata: &Object) -> Result<String, StatusError> {
    let text = |field: &str| metadata.get(field).and_then(Value::as_str).filter(|text| !text.is_empty());
    match (text("name"), text("generateName")) {
        (Some(name), _) => Ok(name.to_owned()),
        (None, Some(prefix)) => Ok(format!("{prefix}{}", generate::name_suffix())),
        (None, None) => {
            let why = "metadata.name: Required value: name or generateName is required";
            Err(StatusError::invalid_object(resource, resource.kind, "", why))
        }
    }
}

/// Replaces an object. Creates it if it does not exist and is a Lease or an Event, as kube-apiserver does.
pub(crate) fn update(store: &mut Store, target: Target<'_>, value: Value) -> Result<Written, StatusError> {
    let Target { resource, namespace, name, .. } = target;
    let mut object = expect_object(value, resource)?;
    check_kind(resource, &object)?;
    let metadata = child_mut(&mut object, "metadata")?;
    let given = metadata.get("namespace").and_then(Value::as_str).unwrap_or_default();
    if resource.namespaced && !given.is_empty() && given != namespace {
        return Err(namespace_mismatch());
    }
    let Some(old) = store.get(resource, namespace, name) else {
        if !matches!(resource.plural, "leases" | "events") || target.status {
            return Err(StatusError::not_found(resource, name));
        }
        metadata.insert("name".into(), name.into());
        metadata.remove("resourceVersion");
        return create(store, target, Value::Object(object));
    };
    let version = metadata_text(&object, "resourceVersion").to_owned();
    if resource.plural == "leases" && version.is_empty() {
        let why = "metadata.resourceVersion: Invalid value: 0: must be specified for an update";
        return Err(StatusError::invalid_object(resource, &resource.qualified(), name, why));
    }
    replace(store, target, &old, object, &version)
}

/// Applies a patch to an object. An apply patch creates the object if it does not exist.
pub(crate) fn patch(
    store: &mut Store,
    target: Target<'_>,
    kind: PatchKind,
    field_manager: &str,
    patch: Value,
) -> Result<Written, StatusError> {
    let Target { resource, namespace, name, .. } = target;
    let old = store.get(resource, namespace, name);
    if kind == PatchKind::Apply {
        if field_manager.is_empty() {
            let why = "fieldManager: Required value: is required for apply patch";
            return Err(StatusError::invalid(format!("PatchOptions.meta.k8s.io \"\" is invalid: {why}")));
        }
        if old.is_none() && !target.status {
            let mut object = expect_object(patch, resource)?;
            child_mut(&mut object, "metadata")?.insert("name".into(), name.into());
            return create(store, target, Value::Object(object));
        }
    }
    let old = old.ok_or_else(|| StatusError::not_found(resource, name))?;
    let patched = patch::apply(kind, resource, old.object()?, &patch)?;
    let version = match (&patch, kind) {
        (_, PatchKind::Json) => metadata_text(&patched, "resourceVersion"),
        (Value::Object(patch), _) => metadata_text(patch, "resourceVersion"),
        _ => "",
    }
    .to_owned();
    replace(store, target, &old, patched, &version)
}

/// Checks and stores the new state of an existing object, for `update` and `patch`. `version` is the resource version that the client
/// expects; empty if it expects none.
fn replace(store: &mut Store, target: Target<'_>, old: &Arc<Entry>, mut new: Object, version: &str) -> Result<Written, StatusError> {
    let Target { resource, namespace, name, .. } = target;
    let mut before = old.object()?;
    child_mut(&mut new, "metadata")?;
    check_identity(resource, name, old, &new, version)?;
    if target.status {
        new = replace_status(&before, &mut new)?;
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
    let metadata = child_mut(&mut new, "metadata")?;
    metadata.insert("name".into(), name.into());
    if resource.namespaced {
        metadata.insert("namespace".into(), namespace.into());
    }
    for field in ["uid", "creationTimestamp", "deletionTimestamp", "generation", "deletionGracePeriodSeconds", "resourceVersion"] {
        match child_mut(&mut before, "metadata")?.get(field) {
            Some(value) => metadata.insert(field.into(), value.clone()),
            None => metadata.remove(field),
        };
    }
    metadata.remove("managedFields");
    if new == before {
        return Ok(Written::existing(old.full()));
    }
    raise_generation(&before, &mut new)?;
    if target.dry_run {
        return Ok(Written::existing(encode(resource, new)));
    }
    let has_finalizers = is_set(new.get("metadata").and_then(|metadata| metadata.get("finalizers")));
    let entry = store.put(resource, new, Some(old.clone()));
    if !metadata_text(&before, "deletionTimestamp").is_empty() && !has_finalizers {
        store.remove(resource, &entry)?;
    }
    Ok(Written::existing(entry.full()))
}

/// Refuses a write whose name, resource version or uid differs from the stored object.
fn check_identity(resource: Resource, name: &str, old: &Entry, new: &Object, version: &str) -> Result<(), StatusError> {
    let new_name = metadata_text(new, "name");
    if !new_name.is_empty() && new_name != name {
        let message = format!("the name of the object ({new_name}) does not match the name on the URL ({name})");
        return Err(StatusError::bad_request(message));
    }
    if !version.is_empty() && version != old.version.to_string() {
        let why = "the object has been modified; please apply your changes to the latest version and try again";
        return Err(StatusError::conflict(resource, name, why));
    }
    let uid = metadata_text(new, "uid");
    if !uid.is_empty() && *uid != *old.uid {
        let why = format!(
            "StorageError: invalid object, Code: 4, Precondition failed: UID in precondition: {uid}, UID in object meta: {}",
            old.uid
        );
        return Err(StatusError::conflict(resource, name, &why));
    }
    Ok(())
}

/// Takes status, annotations, labels and finalizers from the new object, and everything else from the stored one.
fn replace_status(before: &Object, new: &mut Object) -> Result<Object, StatusError> {
    let mut replaced = before.clone();
    replaced.insert("status".into(), new.remove("status").unwrap_or_else(|| json!({})));
    let metadata = child_mut(new, "metadata")?;
    for field in ["annotations", "labels", "finalizers"] {
        match metadata.remove(field) {
            Some(value) => child_mut(&mut replaced, "metadata")?.insert(field.into(), value),
            None => child_mut(&mut replaced, "metadata")?.remove(field),
        };
    }
    Ok(replaced)
}

/// Copies the cluster IPs and IP families of a Service that an update omits. An `ExternalName` Service has none.
fn keep_addresses(before: &Object, new: &mut Object, store: &mut Store) -> Result<(), StatusError> {
    let spec = child_mut(new, "spec")?;
    if spec.get("type").and_then(Value::as_str) != Some("ExternalName") {
        for field in ["clusterIP", "clusterIPs", "ipFamilies", "ipFamilyPolicy"] {
            if let (false, Some(value)) = (is_set(spec.get(field)), before.get("spec").and_then(|spec| spec.get(field))) {
                spec.insert(field.into(), value.clone());
            }
        }
    }
    defaults::set_on_service(new, &mut store.allocator)
}

/// Refuses to change the pod CIDRs of a Node after they were set.
fn check_pod_cidrs(resource: Resource, name: &str, before: &Object, new: &Object) -> Result<(), StatusError> {
    let field = |object: &Object, field: &str| object.get("spec").and_then(|spec| spec.get(field)).cloned();
    let (old_cidrs, new_cidrs) = (field(before, "podCIDRs"), field(new, "podCIDRs"));
    let are_given = new_cidrs.as_ref().is_some_and(|cidrs| !cidrs.is_null());
    if is_set(field(before, "podCIDR").as_ref()) && are_given && new_cidrs != old_cidrs {
        let why = "spec.podCIDRs: Forbidden: node updates may not change podCIDR except from \"\" to valid";
        return Err(StatusError::invalid_object(resource, resource.kind, name, why));
    }
    Ok(())
}

/// Raises `metadata.generation` if anything outside of metadata and status changed. Objects without a generation get none.
fn raise_generation(before: &Object, new: &mut Object) -> Result<(), StatusError> {
    let counted = |object: &Object| {
        let mut object = object.clone();
        object.retain(|field, _| field != "metadata" && field != "status");
        object
    };
    let Some(generation) = before.get("metadata").and_then(|metadata| metadata.get("generation")).and_then(Value::as_u64) else {
        return Ok(());
    };
    if counted(before) != counted(new) {
        child_mut(new, "metadata")?.insert("generation".into(), generation.saturating_add(1).into());
    }
    Ok(())
}

/// Removes an object. Only sets its `deletionTimestamp` if it has finalizers.
pub(crate) fn delete(store: &mut Store, target: Target<'_>, options: &Value) -> Result<Written, StatusError> {
    let Target { resource, namespace, name, .. } = target;
    let old = store.get(resource, namespace, name).ok_or_else(|| StatusError::not_found(resource, name))?;
    let version = old.version.to_string();
    for (field, label, current) in [("uid", "UID", &*old.uid), ("resourceVersion", "ResourceVersion", &*version)] {
        let expected =
            options.get("preconditions").and_then(|conditions| conditions.get(field)).and_then(Value::as_str).unwrap_or_default();
        if !expected.is_empty() && expected != current {
            let why = format!("Precondition failed: {label} in precondition: {expected}, in object meta: {current}");
            return Err(StatusError::conflict(resource, name, &why));
        }
    }
    let mut object = old.object()?;
    let metadata = child_mut(&mut object, "metadata")?;
    if is_set(metadata.get("finalizers")) {
        if is_set(metadata.get("deletionTimestamp")) || target.dry_run {
            return Ok(Written::existing(old.full()));
        }
        metadata.insert("deletionTimestamp".into(), generate::timestamp().into());
        metadata.insert("deletionGracePeriodSeconds".into(), 0.into());
        return Ok(Written::existing(store.put(resource, object, Some(old)).full()));
    }
    let last = if target.dry_run { old } else { store.remove(resource, &old)? };
    if matches!(resource.plural, "pods" | "services" | "namespaces") {
        return Ok(Written::existing(last.full()));
    }
    let mut details = details(resource, name);
    details.insert("uid".into(), (*last.uid).into());
    let status = json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success", "details": details});
    Ok(Written::existing(status.to_string().into()))
}

/// Refuses an object of another kind.
fn check_kind(resource: Resource, object: &Object) -> Result<(), StatusError> {
    match object.get("kind").and_then(Value::as_str) {
        Some(kind) if !kind.is_empty() && kind != resource.kind => {
            let message = format!("{kind} in version \"{VERSION}\" cannot be handled as a {}", resource.kind);
            Err(StatusError::bad_request(message))
        }
        _ => Ok(()),
    }
}

fn namespace_mismatch() -> StatusError {
    StatusError::bad_request("the namespace of the provided object does not match the namespace sent on the request")
}
