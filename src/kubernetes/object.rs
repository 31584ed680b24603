//! An API object as it was read, before anything is made of it.

use std::fmt;
use std::time::Duration;

use serde_json::Value;

/// Kinds of objects the proxy reads.
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
    /// The kind that goes by this API version and name.
    #[must_use]
    pub fn of(api_version: &str, kind: &str) -> Option<Self> {
        match (api_version, kind) {
            ("v1", "Service") => Some(Self::Service),
            ("discovery.k8s.io/v1", "EndpointSlice") => Some(Self::EndpointSlice),
            ("v1", "Node") => Some(Self::Node),
            _ => None,
        }
    }

    /// The kind of this name, where the API version is of its group and is not the one that is read: `discovery.k8s.io/v1beta1`, or none.
    #[must_use]
    pub fn other_version(api_version: &str, kind: &str) -> Option<Self> {
        let group = |version: &str| version.rsplit_once('/').map_or("", |(group, _)| group).to_owned();
        let of_name = [Self::Service, Self::EndpointSlice, Self::Node].into_iter().find(|known| known.as_str() == kind)?;
        let same_group = api_version.is_empty() || group(api_version) == group(of_name.api_version());
        (same_group && api_version != of_name.api_version()).then_some(of_name)
    }

    /// The API version in which the kind is read.
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
    pub const fn namespaced(self) -> bool {
        !matches!(self, Self::Node)
    }
}

/// What a watch is about: the objects that it follows together.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Subject {
    /// All Services and the like, or this node's Node.
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

    /// How many of its objects are listed at a time.
    pub(crate) const fn page(self) -> u32 {
        match self {
            Self::Proxy(_) | Self::Leases => 500,
            // Ten kilobytes each, and an answer is in memory as a whole.
            Self::Nodes => 100,
        }
    }

    /// The longest wait between two tries to follow it.
    pub(crate) const fn longest_wait(self) -> Duration {
        match self {
            Self::Proxy(_) => Duration::MAX,
            // Pods on this node have no network until it may.
            Self::Nodes | Self::Leases => Duration::from_secs(15),
        }
    }

    /// What to do if it must not be read.
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

/// What tells one object from all others. Prints as `Service ns/name`.
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
    /// The identity of an object of a kind, from its metadata; what is missing there is empty. A namespaced object without a
    /// namespace is in `default`, as kubectl has it.
    #[must_use]
    pub fn of(kind: Kind, object: &Value) -> Self {
        let field = |path: &str| object.pointer(path).and_then(Value::as_str).unwrap_or_default();
        Self::new(kind, field("/metadata/namespace"), field("/metadata/name"))
    }

    /// The identity of an object of a kind, from what its metadata says.
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
        // Names that the API server never saw may hold anything; a log line stays one line.
        if !self.namespace.is_empty() {
            write!(f, "{}/", self.namespace.escape_debug())?;
        }
        write!(f, "{}", self.name.escape_debug())
    }
}

/// Something about an object that cannot be used. The rest of the object, and every other object, goes on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// The object.
    pub object: ObjectId,
    /// What is wrong with it and what follows.
    pub what: String,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.object, self.what)
    }
}
