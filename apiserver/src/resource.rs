//! The table of the resources that the server has.

use std::ops::Deref;

/// One row of the table. To add a resource, add a line to [`ROWS`].
#[derive(Debug)]
pub(crate) struct Row {
    /// API group; empty for the core group.
    pub(crate) group: &'static str,
    /// Name in paths, such as `services`.
    pub(crate) plural: &'static str,
    /// Kind of the objects, such as `Service`.
    pub(crate) kind: &'static str,
    /// True if objects belong to namespaces.
    pub(crate) namespaced: bool,
    /// True if there is a `status` subresource. Then other writes do not change the status.
    pub(crate) status: bool,
    /// True if `metadata.generation` counts the changes outside of metadata and status.
    pub(crate) generations: bool,
    /// Short names for kubectl.
    pub(crate) short: &'static [&'static str],
    /// Fields that field selectors may name, in addition to name and namespace.
    pub(crate) fields: &'static [&'static str],
}

impl Row {
    const fn new(group: &'static str, plural: &'static str, kind: &'static str) -> Self {
        Self { group, plural, kind, namespaced: true, status: false, generations: false, short: &[], fields: &[] }
    }

    const fn cluster(self) -> Self {
        Self { namespaced: false, ..self }
    }

    const fn status(self) -> Self {
        Self { status: true, ..self }
    }

    const fn generations(self) -> Self {
        Self { generations: true, ..self }
    }

    const fn short(self, short: &'static [&'static str]) -> Self {
        Self { short, ..self }
    }

    const fn fields(self, fields: &'static [&'static str]) -> Self {
        Self { fields, ..self }
    }

    /// `apiVersion` of the objects.
    pub(crate) fn api_version(&self) -> String {
        group_version(self.group)
    }

    /// Name in messages: `endpointslices.discovery.k8s.io`.
    pub(crate) fn qualified(&self) -> String {
        if self.group.is_empty() { self.plural.to_owned() } else { format!("{}.{}", self.plural, self.group) }
    }
}

/// The version of every group.
pub(crate) const VERSION: &str = "v1";

const APPS: &str = "apps";
const AUTHENTICATION: &str = "authentication.k8s.io";
const AUTHORIZATION: &str = "authorization.k8s.io";
const NETWORKING: &str = "networking.k8s.io";
const RBAC: &str = "rbac.authorization.k8s.io";

const EVENT_FIELDS: &[&str] = &[
    "involvedObject.kind",
    "involvedObject.name",
    "involvedObject.namespace",
    "involvedObject.uid",
    "reason",
    "regarding.kind",
    "regarding.name",
    "regarding.namespace",
    "regarding.uid",
    "reportingController",
    "source",
    "type",
];

const POD_FIELDS: &[&str] = &[
    "spec.nodeName",
    "spec.restartPolicy",
    "spec.schedulerName",
    "spec.serviceAccountName",
    "status.nominatedNodeName",
    "status.phase",
    "status.podIP",
];

static ROWS: [Row; 24] = [
    Row::new("", "services", "Service").status().short(&["svc"]).fields(&["spec.clusterIP", "spec.type"]),
    Row::new("", "pods", "Pod").status().short(&["po"]).fields(POD_FIELDS),
    Row::new("", "events", "Event").short(&["ev"]).fields(EVENT_FIELDS),
    Row::new("", "configmaps", "ConfigMap").short(&["cm"]),
    Row::new("", "endpoints", "Endpoints").short(&["ep"]),
    Row::new("", "secrets", "Secret").fields(&["type"]),
    Row::new("", "serviceaccounts", "ServiceAccount").short(&["sa"]),
    Row::new("", "nodes", "Node").cluster().status().short(&["no"]).fields(&["spec.unschedulable"]),
    Row::new("", "namespaces", "Namespace").cluster().status().short(&["ns"]).fields(&["status.phase"]),
    Row::new("discovery.k8s.io", "endpointslices", "EndpointSlice").generations(),
    Row::new("coordination.k8s.io", "leases", "Lease"),
    Row::new(NETWORKING, "servicecidrs", "ServiceCIDR").cluster().status(),
    Row::new(NETWORKING, "ipaddresses", "IPAddress").cluster(),
    Row::new(NETWORKING, "networkpolicies", "NetworkPolicy").generations().short(&["netpol"]),
    Row::new(NETWORKING, "ingresses", "Ingress").status().generations().short(&["ing"]),
    Row::new("events.k8s.io", "events", "Event").short(&["ev"]).fields(EVENT_FIELDS),
    Row::new(APPS, "daemonsets", "DaemonSet").status().generations().short(&["ds"]),
    Row::new(APPS, "deployments", "Deployment").status().generations().short(&["deploy"]),
    Row::new(APPS, "replicasets", "ReplicaSet").status().short(&["rs"]),
    Row::new(APPS, "controllerrevisions", "ControllerRevision"),
    Row::new(RBAC, "clusterroles", "ClusterRole").cluster(),
    Row::new(RBAC, "clusterrolebindings", "ClusterRoleBinding").cluster(),
    Row::new(RBAC, "roles", "Role"),
    Row::new(RBAC, "rolebindings", "RoleBinding"),
];

/// Reviews: resources that the server answers and does not store. Each is group, plural and kind.
pub(crate) static REVIEWS: [(&str, &str, &str); 5] = [
    (AUTHORIZATION, "selfsubjectaccessreviews", "SelfSubjectAccessReview"),
    (AUTHORIZATION, "subjectaccessreviews", "SubjectAccessReview"),
    (AUTHORIZATION, "selfsubjectrulesreviews", "SelfSubjectRulesReview"),
    (AUTHENTICATION, "selfsubjectreviews", "SelfSubjectReview"),
    (AUTHENTICATION, "tokenreviews", "TokenReview"),
];

/// A resource: the index of its row in the table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Resource(usize);

impl Deref for Resource {
    type Target = Row;

    fn deref(&self) -> &Row {
        &ROWS[self.0]
    }
}

impl Resource {
    /// All resources, in the order of the table.
    pub(crate) fn all() -> impl Iterator<Item = Self> {
        (0..ROWS.len()).map(Self)
    }

    /// The resource at a path.
    pub(crate) fn at(group: &str, version: &str, plural: &str) -> Option<Self> {
        Self::all().find(|row| row.group == group && VERSION == version && row.plural == plural)
    }

    /// The resource of objects with this `apiVersion` and `kind`.
    pub(crate) fn of(api_version: &str, kind: &str) -> Option<Self> {
        Self::all().find(|row| row.kind == kind && row.api_version() == api_version)
    }

    /// Finds the first resource with this plural, kind, or plural and group: `services`, `Service`, `events.events.k8s.io`.
    pub(crate) fn named(text: &str) -> Option<Self> {
        Self::all().find(|row| row.plural == text || row.kind == text || row.qualified() == text)
    }

    /// Index in the table.
    pub(crate) const fn index(self) -> usize {
        self.0
    }
}

/// `apiVersion` of a group.
pub(crate) fn group_version(group: &str) -> String {
    if group.is_empty() { VERSION.to_owned() } else { format!("{group}/{VERSION}") }
}

/// All groups except the core group, sorted.
pub(crate) fn groups() -> Vec<&'static str> {
    let mut groups: Vec<_> = ROWS.iter().map(|row| row.group).chain(REVIEWS.iter().map(|(group, ..)| *group)).collect();
    groups.sort_unstable();
    groups.dedup();
    groups.retain(|group| !group.is_empty());
    groups
}
