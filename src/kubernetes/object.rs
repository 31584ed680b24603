//! Kinds and identities of API objects, and problems with them.

use std::fmt;
use std::time::Duration;

use serde_json::Value;

/// The kinds of objects that the service proxy reads.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Kind {
    /// `v1` Service.
    Service,
    /// `discovery.k8s.io/v1` EndpointSlice.
    EndpointSlice,
    /// `v1` Node.
    Node,
}

impl Kind {
    /// The kind with this API version and name.
    #[must_use]
    pub fn of(api_version: &str, kind: &str) -> Option<Self> {
        match (api_version, kind) {
            ("v1", "Service") => Some(Self::Service),
            ("discovery.k8s.io/v1", "EndpointSlice") => Some(Self::EndpointSlice),
            ("v1", "Node") => Some(Self::Node),
            _ => None,
        }
    }

    /// The kind with this name, if the API version is another one of its group, such as `discovery.k8s.io/v1beta1`, or missing.
    #[must_use]
    pub(crate) fn other_version(api_version: &str, kind: &str) -> Option<Self> {
        let group = |version: &str| version.rsplit_once('/').map_or("", |(group, _)| group).to_owned();
        let of_name = [Self::Service, Self::EndpointSlice, Self::Node].into_iter().find(|known| known.as_str() == kind)?;
        let same_group = api_version.is_empty() || group(api_version) == group(of_name.api_version());
        (same_group && api_version != of_name.api_version()).then_some(of_name)
    }

    /// The API version in which sepal reads the kind.
    #[must_use]
    pub const fn api_version(self) -> &'static str {
        match self {
            Self::Service | Self::Node => "v1",
            Self::EndpointSlice => "discovery.k8s.io/v1",
        }
    }

    /// The kind's name.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Service => "Service",
            Self::EndpointSlice => "EndpointSlice",
            Self::Node => "Node",
        }
    }

    /// Whether objects of this kind live in namespaces.
    #[must_use]
    pub(crate) const fn namespaced(self) -> bool {
        !matches!(self, Self::Node)
    }
}

/// The objects that one watch covers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Subject {
    /// All Services, all EndpointSlices, or this node's Node.
    Proxy(Kind),
    /// All Nodes.
    Nodes,
    /// The Leases of subnets.
    Leases,
}

impl Subject {
    /// Its name in the log: `EndpointSlices`.
    pub(crate) const fn as_str(self) -> &'static str {
        match self {
            Self::Proxy(Kind::Service) => "Services",
            Self::Proxy(Kind::EndpointSlice) => "EndpointSlices",
            Self::Proxy(Kind::Node) | Self::Nodes => "Nodes",
            Self::Leases => "Leases",
        }
    }

    /// The number of objects per page of a list.
    pub(crate) const fn page_size(self) -> u32 {
        match self {
            Self::Proxy(_) | Self::Leases => 500,
            // A Node has about ten kilobytes, and a page is in memory as a whole.
            Self::Nodes => 100,
        }
    }

    /// The longest wait between two attempts to list or watch.
    pub(crate) const fn longest_wait(self) -> Duration {
        match self {
            Self::Proxy(_) => Duration::MAX,
            // Pods on this node have no network until the list succeeds.
            Self::Nodes | Self::Leases => Duration::from_secs(15),
        }
    }

    /// The permission that is missing if the server forbids the request.
    pub(crate) const fn permission_hint(self) -> &'static str {
        match self {
            Self::Proxy(Kind::Service | Kind::EndpointSlice) => {
                " (needs the verbs list and watch; ClusterRole system:node-proxier has them)"
            }
            Self::Proxy(Kind::Node) => " (needs the verbs get, list and watch; ClusterRole system:node-proxier has them)",
            Self::Nodes => " (needs the verbs list and watch on nodes)",
            Self::Leases => " (needs the verbs list and watch on leases of the API group coordination.k8s.io)",
        }
    }
}

/// The identity of an object. Prints as `Service ns/name`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ObjectId {
    /// Kind.
    pub kind: Kind,
    /// Namespace; empty for Nodes.
    pub namespace: String,
    /// Name.
    pub name: String,
}

impl ObjectId {
    /// The identity of an object, from its metadata. Missing fields are empty. A namespaced object without a namespace is in `default`, as for
    /// kubectl.
    #[must_use]
    pub fn of(kind: Kind, object: &Value) -> Self {
        let field = |path: &str| object.pointer(path).and_then(Value::as_str).unwrap_or_default();
        Self::new(kind, field("/metadata/namespace"), field("/metadata/name"))
    }

    /// The identity of an object with this namespace and name in its metadata.
    #[must_use]
    pub fn new(kind: Kind, namespace: &str, name: &str) -> Self {
        let namespace = match namespace {
            _ if !kind.namespaced() => "",
            "" => "default",
            namespace => namespace,
        };
        Self { kind, namespace: namespace.into(), name: name.into() }
    }
}

impl fmt::Display for ObjectId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.kind.as_str())?;
        f.write_str(" ")?;
        // Names in manifests may hold any character. They must not break a log line.
        if !self.namespace.is_empty() {
            write!(f, "{}/", self.namespace.escape_debug())?;
        }
        write!(f, "{}", self.name.escape_debug())
    }
}

/// A part of an object that cannot be used. The rest of the object, and all other objects, are used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// The object.
    pub object: ObjectId,
    /// What is wrong, and the consequence.
    pub what: String,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.object, self.what)
    }
}
