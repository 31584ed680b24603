//! Permissions that requests need, and how to give one that is missing.

use std::fmt;

use kube::Client;
use serde_json::{Value, json};

/// The namespace of the Leases of subnets.
pub const LEASE_NAMESPACE: &str = "kube-system";

/// What must be allowed to a process.
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

/// A permission, everywhere or in one namespace.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Needed {
    /// The permission.
    pub permission: Permission,
    /// The namespace where it is enough to have it; `None` for all.
    pub namespace: Option<&'static str>,
}

/// What the program does with the API.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Uses {
    /// It is the service proxy.
    pub proxy: bool,
    /// It is the pod network.
    pub pod_network: bool,
    /// It takes its subnet by a Lease.
    pub leases: bool,
}

/// Everything that the program asks of the API server with such parts, and nothing else. `deploy/` grants exactly this.
#[must_use]
pub fn needed(uses: Uses) -> Vec<Needed> {
    const LEASES: &str = "coordination.k8s.io";
    let mut needed = Vec::new();
    let mut add = |used: bool, group, resource, verbs: &[&'static str], namespace| {
        if used {
            let permissions = verbs.iter().map(|verb| Permission { verb, group, resource });
            needed.extend(permissions.map(|permission| Needed { permission, namespace }));
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

/// Asks the API server whether this process may do something (`SelfSubjectAccessReview`, which every account may ask).
///
/// # Errors
/// It does not answer, or with something else.
pub async fn is_allowed(client: &Client, needed: &Needed) -> Result<bool, kube::Error> {
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
    fn the_missing_rule_can_be_pasted() {
        let permission = Permission { verb: "patch", group: "", resource: "nodes/status" };
        let rule = "{apiGroups: [\"\"], resources: [\"nodes/status\"], verbs: [\"patch\"]}";
        assert_eq!(permission.to_string(), format!("the verb patch on nodes/status is missing: add to the rules of its role {rule}"));
    }
}
