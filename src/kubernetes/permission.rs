//! The permissions that sepal needs, and the RBAC rule that grants a missing one.

use std::fmt;

use kube::Client;
use serde_json::{Value, json};

/// The namespace of the Leases of subnets.
pub(crate) const LEASE_NAMESPACE: &str = "kube-system";

/// One permission of the API server's RBAC.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Permission {
    /// The verb: `patch`.
    pub verb: &'static str,
    /// API group; empty for core.
    pub group: &'static str,
    /// The resource, with its subresource: `nodes/status`.
    pub resource: &'static str,
}

impl fmt::Display for Permission {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { verb, group, resource } = self;
        write!(
            f,
            "the verb {verb} on {resource} is missing: add to the rules of its role \
             {{apiGroups: [\"{group}\"], resources: [\"{resource}\"], verbs: [\"{verb}\"]}}"
        )
    }
}

/// A permission that sepal needs, in all namespaces or in one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NeededPermission {
    /// The permission.
    pub permission: Permission,
    /// The namespace in which it is needed; `None` for all.
    pub namespace: Option<&'static str>,
}

/// The parts of sepal that use the API.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ApiUses {
    /// The service proxy is on.
    pub proxy: bool,
    /// The pod network is on.
    pub pod_network: bool,
    /// The node's subnet comes from a Lease.
    pub leases: bool,
}

/// Exactly the permissions that these parts need. `deploy/` grants the same.
#[must_use]
pub fn needed(uses: ApiUses) -> Vec<NeededPermission> {
    const LEASES: &str = "coordination.k8s.io";
    let mut needed = Vec::new();
    let mut add = |used: bool, group, resource, verbs: &[&'static str], namespace| {
        if used {
            let permissions = verbs.iter().map(|verb| Permission { verb, group, resource });
            needed.extend(permissions.map(|permission| NeededPermission { permission, namespace }));
        }
    };
    add(uses.proxy, "", "services", &["list", "watch"], None);
    add(uses.proxy, "discovery.k8s.io", "endpointslices", &["list", "watch"], None);
    add(uses.proxy, "", "nodes", &["get"], None);
    add(uses.proxy || uses.pod_network, "", "nodes", &["list", "watch"], None);
    add(uses.pod_network, "", "nodes/status", &["patch"], None);
    add(uses.proxy || uses.pod_network, "events.k8s.io", "events", &["create"], None);
    add(uses.leases, LEASES, "leases", &["list", "watch", "create", "patch", "delete"], Some(LEASE_NAMESPACE));
    add(uses.leases, "", "nodes", &["patch"], None);
    needed
}

/// Asks the API server whether this process has a permission (`SelfSubjectAccessReview`, which every account may create).
///
/// # Errors
/// The server does not answer, or its answer cannot be read.
pub(crate) async fn is_allowed(client: &Client, needed: &NeededPermission) -> Result<bool, kube::Error> {
    let Permission { verb, group, resource } = needed.permission;
    let (resource, subresource) = resource.split_once('/').unwrap_or((resource, ""));
    let attributes = json!({
        "verb": verb, "group": group, "resource": resource, "subresource": subresource, "namespace": needed.namespace.unwrap_or_default(),
    });
    let review =
        json!({"apiVersion": "authorization.k8s.io/v1", "kind": "SelfSubjectAccessReview", "spec": {"resourceAttributes": attributes}});
    let request = http::Request::post("/apis/authorization.k8s.io/v1/selfsubjectaccessreviews")
        .header(http::header::CONTENT_TYPE, "application/json")
        .body(review.to_string().into_bytes())
        .map_err(kube::Error::HttpError)?;
    let answer: Value = client.request(request).await?;
    Ok(answer["status"]["allowed"] == true)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_permission_prints_its_rule() {
        let permission = Permission { verb: "patch", group: "", resource: "nodes/status" };
        let rule = "{apiGroups: [\"\"], resources: [\"nodes/status\"], verbs: [\"patch\"]}";
        assert_eq!(permission.to_string(), format!("the verb patch on nodes/status is missing: add to the rules of its role {rule}"));
    }
}
