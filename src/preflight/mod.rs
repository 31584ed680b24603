//! What sepal needs of a node, and what was found of it: `sepal preflight`. Pure: readings in, checks out. Whoever takes the readings is in
//! [`crate::cli`].
//!
//! - [`probes`]: a rule for each match and target that sepal writes, to be tried.
//! - [`iptables`], [`kernel`], [`node`], [`network`], [`tunnel_port`], [`cluster`]: what readings mean.
//! - [`print`]: checks as text and as JSON.

pub mod cluster;
pub mod iptables;
pub mod kernel;
pub mod network;
pub mod node;
pub mod print;
pub mod probes;
pub mod tunnel_port;

/// One thing that was looked at, and what came of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Check {
    /// Where it belongs.
    pub part: Part,
    /// What was looked at, in a few words that do not change from release to release.
    pub name: String,
    /// What came of it.
    pub outcome: Outcome,
    /// What was found.
    pub found: String,
    /// What to do about it; empty where there is nothing to do, or where `found` says so already. May have several lines.
    pub cure: String,
}

/// Parts of the report, in its order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Part {
    /// Flags and files.
    Configuration,
    /// The iptables programs, and what the kernel knows for them.
    Iptables,
    /// Settings of the kernel.
    Kernel,
    /// The rest of the node.
    Node,
    /// The API server, and this node's Node.
    Cluster,
    /// VXLAN and the interface below it.
    PodNetwork,
}

impl Part {
    /// A word for it.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Configuration => "configuration",
            Self::Iptables => "iptables",
            Self::Kernel => "kernel",
            Self::Node => "node",
            Self::Cluster => "cluster",
            Self::PodNetwork => "pod network",
        }
    }
}

/// What came of a check.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It is as it should be.
    Ok,
    /// sepal runs with it, but something will not be as one may expect.
    Warning,
    /// sepal, or what it is there for, does not work like this.
    Failed,
    /// It could not be looked at; `found` says why.
    NotChecked,
}

impl Outcome {
    /// A word for it.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Warning => "warning",
            Self::Failed => "failed",
            Self::NotChecked => "not checked",
        }
    }
}

impl Check {
    /// It is as it should be.
    #[must_use]
    pub fn ok(part: Part, name: impl Into<String>, found: impl Into<String>) -> Self {
        Self { part, name: name.into(), outcome: Outcome::Ok, found: found.into(), cure: String::new() }
    }

    /// It works, but.
    #[must_use]
    pub fn warning(part: Part, name: impl Into<String>, found: impl Into<String>, cure: impl Into<String>) -> Self {
        Self { outcome: Outcome::Warning, cure: cure.into(), ..Self::ok(part, name, found) }
    }

    /// It does not work.
    #[must_use]
    pub fn failed(part: Part, name: impl Into<String>, found: impl Into<String>, cure: impl Into<String>) -> Self {
        Self { outcome: Outcome::Failed, cure: cure.into(), ..Self::ok(part, name, found) }
    }

    /// It could not be looked at.
    #[must_use]
    pub fn not_checked(part: Part, name: impl Into<String>, why: impl Into<String>) -> Self {
        Self { outcome: Outcome::NotChecked, ..Self::ok(part, name, why) }
    }
}

/// Whether nothing has failed.
#[must_use]
pub fn passed(checks: &[Check]) -> bool {
    checks.iter().all(|check| check.outcome != Outcome::Failed)
}
