//! Converts Nodes and Leases from the API to values of the pod network. PURE.

use std::hash::BuildHasher;
use std::time::Duration;

use super::allocation::{SubnetLease, parse_lease_name};
use super::annotations::Prefix;
use super::node::{NetworkNode, NodeText};
use crate::kubernetes::convert::{addresses_of, typed};
use crate::kubernetes::fields;
use crate::kubernetes::object::{ObjectId, Problem};

/// A Node that was converted for the pod network.
#[derive(Debug)]
pub(crate) struct ConvertedNode {
    /// The Node; `None` if it cannot be used.
    pub node: Option<NetworkNode>,
    /// A hash of the fields that matter. It is equal for two versions of the Node in which these fields are equal.
    pub fingerprint: u64,
    /// Fields that could not be read.
    pub problem: Option<Problem>,
}

/// Converts a Node with its annotations that have this prefix.
pub(crate) fn network_node(id: &ObjectId, text: &str, prefix: &Prefix, hasher: &impl BuildHasher) -> ConvertedNode {
    let mut problems = Vec::new();
    let object: Option<fields::ApiNetworkNode> = typed(&mut serde_json::Deserializer::from_str(text), &mut problems);
    let mut fingerprint = 0;
    let node = object.filter(|_| !id.name.is_empty()).map(|object| {
        let annotations = object.metadata.annotations.unwrap_or_default();
        let spec = object.spec.unwrap_or_default();
        let internal_ips = addresses_of(object.status.as_ref(), "InternalIP");
        let some = |text: &Option<String>| text.clone().unwrap_or_default();
        let start = prefix.name("");
        let (uid, created, pod_cidr) = (some(&object.metadata.uid), some(&object.metadata.creation_timestamp), some(&spec.pod_cidr));
        let text = NodeText {
            name: &id.name,
            uid: &uid,
            created: &created,
            pod_cidr: &pod_cidr,
            pod_cidrs: spec.pod_cidrs.iter().flatten().map(String::as_str).collect(),
            annotations: annotations.iter().filter(|(name, _)| name.starts_with(&start)).map(|(k, v)| (k.as_str(), v.as_str())).collect(),
            internal_ips: internal_ips.iter().map(String::as_str).collect(),
        };
        fingerprint = hasher.hash_one((&uid, &text.annotations, &text.pod_cidr, &text.pod_cidrs, &text.internal_ips));
        NetworkNode::new(&text, prefix)
    });
    let problem = (!problems.is_empty()).then(|| Problem { object: id.clone(), what: problems.join("; ") });
    ConvertedNode { node, fingerprint, problem }
}

/// The annotation of a Lease that keeps the node its subnet is reserved for, after the reservation was taken.
pub(crate) const RESERVED_FOR: &str = "sepal.dev/reserved-for";

/// Converts the Lease object of a subnet. The error says why it is not one.
pub(crate) fn subnet_lease(text: &str) -> Result<SubnetLease, String> {
    let mut problems = Vec::new();
    let object: Option<fields::ApiLease> = typed(&mut serde_json::Deserializer::from_str(text), &mut problems);
    let fields::ApiLease { metadata, spec } = object.ok_or_else(|| problems.join("; "))?;
    let name = metadata.name.unwrap_or_default();
    let subnet =
        parse_lease_name(&name).ok_or_else(|| format!("Lease {name:?} is not named after a subnet like sepal-10-244-3-0-24, ignored"))?;
    let spec = spec.unwrap_or_default();
    let holder = spec.holder_identity.unwrap_or_default();
    let duration = spec.lease_duration_seconds.filter(|seconds| *seconds > 0).map(|seconds| Duration::from_secs(seconds.into()));
    let annotated = metadata.annotations.and_then(|mut annotations| annotations.remove(RESERVED_FOR));
    let reserved_for = annotated.or_else(|| duration.is_none().then(|| holder.clone())).map(String::into_boxed_str);
    Ok(SubnetLease {
        subnet,
        uid: metadata.uid.unwrap_or_default().into(),
        version: metadata.resource_version.unwrap_or_default().into(),
        holder: holder.into(),
        duration,
        renewed: spec.renew_time.and_then(|time| time.parse().ok()),
        transitions: spec.lease_transitions.unwrap_or_default(),
        reserved_for,
    })
}
