//! Converts Nodes and Leases of the API to values of the pod network. PURE.

use std::hash::BuildHasher;
use std::time::Duration;

use super::allocation::{SubnetLease, subnet_of};
use super::annotations::Prefix;
use super::node::{NetworkNode, NodeText};
use crate::kubernetes::convert::{addresses_of, typed};
use crate::kubernetes::fields;
use crate::kubernetes::object::{ObjectId, Problem};

/// A Node as the pod network needs it.
#[derive(Debug)]
pub(crate) struct ConvertedNode {
    /// The Node; `None` if it cannot be used.
    pub node: Option<NetworkNode>,
    /// The same of every version of the Node in which nothing has changed that matters.
    pub fingerprint: u64,
    /// What could not be used.
    pub problem: Option<Problem>,
}

/// Converts a Node, with the annotations whose names begin with a prefix.
pub(crate) fn network_node(id: &ObjectId, text: &str, prefix: &Prefix, hasher: &impl BuildHasher) -> ConvertedNode {
    let mut problems = Vec::new();
    let object: Option<fields::NetworkNode> = typed(&mut serde_json::Deserializer::from_str(text), &mut problems);
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

/// The annotation of a Lease that says whom its subnet is reserved for, once it is taken.
pub(crate) const RESERVED_FOR: &str = "sepal.dev/reserved-for";

/// Converts a Lease of a subnet; says why it is none.
pub(crate) fn subnet_lease(text: &str) -> Result<SubnetLease, String> {
    let mut problems = Vec::new();
    let object: Option<fields::Lease> = typed(&mut serde_json::Deserializer::from_str(text), &mut problems);
    let fields::Lease { metadata, spec } = object.ok_or_else(|| problems.join("; "))?;
    let name = metadata.name.unwrap_or_default();
    let subnet = subnet_of(&name).ok_or_else(|| format!("Lease {name:?} is not named after a subnet like sepal-10-244-3-0-24, ignored"))?;
    let spec = spec.unwrap_or_default();
    let holder = spec.holder_identity.unwrap_or_default();
    let duration = spec.lease_duration_seconds.filter(|seconds| *seconds > 0).map(|seconds| Duration::from_secs(seconds.into()));
    let mark = metadata.annotations.and_then(|mut annotations| annotations.remove(RESERVED_FOR));
    let reserved_for = mark.or_else(|| duration.is_none().then(|| holder.clone())).map(String::into_boxed_str);
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
