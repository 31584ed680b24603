//! Reads and writes the leases of subnets: `coordination.k8s.io/v1` Lease objects.
//!
//! A lease that is held:
//!
//! ```yaml
//! metadata:
//!   name: sepal-10-244-3-0-24
//!   namespace: kube-system
//!   labels: {app.kubernetes.io/managed-by: sepal, sepal.dev/network: pods}
//!   annotations: {flannel.alpha.coreos.com/public-ip: 192.0.2.7}
//! spec: {holderIdentity: node-7_5e0c…, leaseDurationSeconds: 86400, acquireTime: …, renewTime: …, leaseTransitions: 0}
//! ```
//!
//! An operator reserves a subnet by creating its Lease with these labels, with the name of a Node or one of its addresses as
//! `holderIdentity`, and without `leaseDurationSeconds`.

use std::collections::{BTreeMap, HashSet};

use futures::StreamExt;
use futures::stream::BoxStream;
use ipnetwork::IpNetwork;
use jiff::Timestamp;
use kube::api::{DeleteParams, ListParams, Patch, PatchParams, PostParams, Preconditions};
use kube::{Api, Client};
use serde_json::{Value, json};

use crate::error_text::error_text;
use crate::kubernetes::api::{Watches, lease_resource};
use crate::kubernetes::object::Subject;
use crate::kubernetes::permission::{LEASE_NAMESPACE, Permission};
use crate::kubernetes::raw::{RawObject, WatchTarget};
use crate::kubernetes::watcher::ObjectTracker;
use crate::pod_network::allocation::{Claimant, LeaseTerms, SubnetLease, lease_name, parse_lease_name};
use crate::pod_network::api_objects::{self, RESERVED_FOR};
use crate::pod_network::claim::{LeaseObservation, LeaseRequest, WatchScope};

const MANAGED_BY: (&str, &str) = ("app.kubernetes.io/managed-by", "sepal");
const NETWORK: &str = "sepal.dev/network";
/// Maximum number of Leases in one page of a list.
const PAGE: u32 = 500;

/// Annotations of a Lease object. Those without a value are removed.
pub type LeaseData = BTreeMap<String, Option<String>>;

/// Why a request for a lease failed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LeaseError {
    /// The object exists already, or its version has changed.
    #[error("Lease {0} has been changed meanwhile")]
    Conflict(String),
    /// The object does not exist.
    #[error("there is no Lease {0}")]
    Missing(String),
    /// A permission is missing.
    #[error("cannot {} Leases in namespace {LEASE_NAMESPACE}: {why}; {permission}", permission.verb)]
    Forbidden {
        /// The missing permission.
        permission: Permission,
        /// The server's message.
        why: String,
    },
    /// Another error. It is unknown if the server carried the request out.
    #[error("cannot {verb} Lease{name}: {why}")]
    Failed {
        /// The verb of the request.
        verb: &'static str,
        /// A blank and the name of the object, or `s` for a list.
        name: String,
        /// The cause.
        why: String,
    },
}

/// The Lease objects of one pod network.
#[derive(Clone)]
pub struct LeaseStore {
    api: Api<RawObject>,
    watches: Watches,
    network: String,
}

impl LeaseStore {
    /// The leases of this network. The name has to be a valid label value.
    #[must_use]
    pub fn new(client: &Client, watches: &Watches, network: &str) -> Self {
        let api = Api::namespaced_with(client.clone(), LEASE_NAMESPACE, &lease_resource());
        Self { api, watches: watches.clone(), network: network.to_owned() }
    }

    /// The label selector of the network's leases.
    fn selector(&self) -> String {
        format!("{}={},{NETWORK}={}", MANAGED_BY.0, MANAGED_BY.1, self.network)
    }

    /// Lists the leases from the API server, not from a cache. Objects that are not named after a subnet are left out.
    ///
    /// # Errors
    /// The list fails.
    pub async fn list(&self) -> Result<Vec<SubnetLease>, LeaseError> {
        let mut leases = Vec::new();
        let mut after = None;
        loop {
            let parameters =
                ListParams { label_selector: Some(self.selector()), limit: Some(PAGE), continue_token: after, ..ListParams::default() };
            let page = self.api.list(&parameters).await.map_err(|error| failure("list", "", error))?;
            for object in &page.items {
                match api_objects::subnet_lease(object.text.get()) {
                    Ok(lease) => leases.push(lease),
                    Err(why) => tracing::debug!("{why}"),
                }
            }
            after = page.metadata.continue_.filter(|after| !after.is_empty());
            if after.is_none() {
                return Ok(leases);
            }
        }
    }

    /// Sends a request of a claim. Gives the written lease, or `None` after a release.
    ///
    /// # Errors
    /// The server refused the request, or its result is unknown.
    pub async fn send(
        &self,
        request: &LeaseRequest,
        who: &Claimant,
        terms: &LeaseTerms,
        data: &LeaseData,
        now: Timestamp,
    ) -> Result<Option<SubnetLease>, LeaseError> {
        match request {
            LeaseRequest::Create(subnet) => {
                let name = lease_name(*subnet);
                let data = data.iter().filter(|(_, value)| value.is_some()).map(|(name, value)| (name.clone(), value.clone())).collect();
                let mut object = self.body(who, terms, &data, now);
                merge(&mut object, json!({"spec": {"acquireTime": micro_time(now), "leaseTransitions": 0}}));
                merge(&mut object, json!({"apiVersion": "coordination.k8s.io/v1", "kind": "Lease", "metadata": {"name": name}}));
                let object = serde_json::from_value::<RawObject>(object).map_err(|error| failed("create", &name, error.to_string()))?;
                let created = self.api.create(&PostParams::default(), &object).await.map_err(|error| failure("create", &name, error))?;
                read("create", &name, &created).map(Some)
            }
            LeaseRequest::Take(lease) => {
                let mut patch = self.body(who, terms, data, now);
                let spec = json!({"acquireTime": micro_time(now), "leaseTransitions": lease.transitions.saturating_add(1)});
                merge(&mut patch, json!({"metadata": {"annotations": {RESERVED_FOR: lease.reserved_for}}, "spec": spec}));
                self.patch(lease, patch).await.map(Some)
            }
            LeaseRequest::Renew(lease) => self.patch(lease, self.body(who, terms, data, now)).await.map(Some),
            LeaseRequest::Release(lease) => self.release(lease).await.map(|()| None),
        }
    }

    /// Releases a lease. A lease on a reserved subnet becomes a reservation again.
    async fn release(&self, lease: &SubnetLease) -> Result<(), LeaseError> {
        let Some(reserved_for) = &lease.reserved_for else { return self.delete(lease).await };
        let spec = json!({"holderIdentity": reserved_for, "leaseDurationSeconds": null, "acquireTime": null, "renewTime": null});
        self.patch(lease, json!({"metadata": {"annotations": {RESERVED_FOR: null}}, "spec": spec})).await.map(drop)
    }

    /// Releases all leases of a node and gives their subnets.
    ///
    /// # Errors
    /// The first error. The other leases are released nevertheless.
    pub async fn release_all(&self, node: &str) -> Result<Vec<IpNetwork>, LeaseError> {
        let who = Claimant { node: node.into(), uid: "".into(), addresses: Vec::new() };
        let mut released = Vec::new();
        let mut first_error = None;
        for lease in self.list().await?.into_iter().filter(|lease| who.holds(lease)) {
            let subnet = lease.subnet;
            match self.release(&lease).await {
                Ok(()) | Err(LeaseError::Missing(_)) => released.push(subnet),
                Err(error) => first_error = first_error.or(Some(error)),
            }
        }
        first_error.map_or(Ok(released), Err)
    }

    /// Watches leases. The stream does not end.
    #[must_use]
    pub fn watch(&self, scope: WatchScope) -> BoxStream<'static, LeaseObservation> {
        let fields = match scope {
            WatchScope::One(subnet) => Some(format!("metadata.name={}", lease_name(subnet))),
            WatchScope::All => None,
        };
        let watched = WatchTarget {
            namespace: Some(LEASE_NAMESPACE.to_owned()),
            labels: Some(self.selector()),
            fields,
            ..WatchTarget::all(Subject::Leases, lease_resource())
        };
        self.watches.follow(watched, LeaseTracker::default()).boxed()
    }

    /// The fields that every write of a held lease sets.
    fn body(&self, who: &Claimant, terms: &LeaseTerms, data: &LeaseData, now: Timestamp) -> Value {
        json!({
            "metadata": {"labels": {MANAGED_BY.0: MANAGED_BY.1, NETWORK: self.network}, "annotations": data},
            "spec": {
                "holderIdentity": who.identity(),
                "leaseDurationSeconds": i32::try_from(terms.duration.as_secs()).unwrap_or(i32::MAX),
                "renewTime": micro_time(now),
            },
        })
    }

    /// Patches a lease in the version that was read.
    async fn patch(&self, lease: &SubnetLease, mut patch: Value) -> Result<SubnetLease, LeaseError> {
        let name = lease_name(lease.subnet);
        merge(&mut patch, json!({"metadata": {"uid": lease.uid, "resourceVersion": lease.version}}));
        let patched = self.api.patch(&name, &PatchParams::default(), &Patch::Merge(patch)).await;
        read("patch", &name, &patched.map_err(|error| failure("patch", &name, error))?)
    }

    /// Deletes a lease in the version that was read.
    async fn delete(&self, lease: &SubnetLease) -> Result<(), LeaseError> {
        let name = lease_name(lease.subnet);
        let preconditions = Preconditions { uid: Some(lease.uid.to_string()), resource_version: Some(lease.version.to_string()) };
        let parameters = DeleteParams { preconditions: Some(preconditions), ..DeleteParams::default() };
        self.api.delete(&name, &parameters).await.map(drop).map_err(|error| failure("delete", &name, error))
    }
}

/// The format of `MicroTime` fields.
fn micro_time(time: Timestamp) -> String {
    format!("{time:.6}")
}

/// Merges the fields of one object into another.
fn merge(into: &mut Value, from: Value) {
    match (into, from) {
        (Value::Object(into), Value::Object(from)) => {
            for (field, value) in from {
                merge(into.entry(field).or_insert(Value::Null), value);
            }
        }
        (into, from) => *into = from,
    }
}

/// Converts the object in an answer.
fn read(verb: &'static str, name: &str, object: &RawObject) -> Result<SubnetLease, LeaseError> {
    api_objects::subnet_lease(object.text.get()).map_err(|why| failed(verb, name, why))
}

/// An error whose effect on the server is unknown.
fn failed(verb: &'static str, name: &str, why: String) -> LeaseError {
    let name = if name.is_empty() { "s".to_owned() } else { format!(" {name}") };
    LeaseError::Failed { verb, name, why }
}

/// Converts an error of the client.
fn failure(verb: &'static str, name: &str, error: kube::Error) -> LeaseError {
    match error {
        kube::Error::Api(status) if status.code == 409 => LeaseError::Conflict(name.to_owned()),
        kube::Error::Api(status) if status.code == 404 && !name.is_empty() => LeaseError::Missing(name.to_owned()),
        kube::Error::Api(status) if status.code == 403 => {
            let permission = Permission { verb, group: "coordination.k8s.io", resource: "leases" };
            LeaseError::Forbidden { permission, why: status.message }
        }
        error => failed(verb, name, error_text(&error)),
    }
}

/// Converts watch events of Lease objects into events for a claim.
#[derive(Debug, Default)]
struct LeaseTracker {
    seen: HashSet<IpNetwork>,
}

impl ObjectTracker for LeaseTracker {
    type Update = LeaseObservation;

    fn begin(&mut self) {
        self.seen.clear();
    }

    fn listed(&mut self, object: &RawObject) -> Vec<LeaseObservation> {
        let observations = self.applied(object);
        self.seen.extend(
            observations
                .iter()
                .filter_map(|observed| if let LeaseObservation::Changed(lease) = observed { Some(lease.subnet) } else { None }),
        );
        observations
    }

    fn complete(&mut self) -> Vec<LeaseObservation> {
        vec![LeaseObservation::Listed(std::mem::take(&mut self.seen))]
    }

    fn applied(&mut self, object: &RawObject) -> Vec<LeaseObservation> {
        api_objects::subnet_lease(object.text.get()).map(LeaseObservation::Changed).into_iter().collect()
    }

    fn deleted(&mut self, object: &RawObject) -> Vec<LeaseObservation> {
        let subnet = object.metadata.name.as_deref().and_then(parse_lease_name);
        if let Some(subnet) = &subnet {
            self.seen.remove(subnet);
        }
        subnet.map(LeaseObservation::Deleted).into_iter().collect()
    }
}
