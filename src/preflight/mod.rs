//! `sepal preflight`: finds what a node lacks, and names the cure. Pure: takes values that [`crate::cli`] read from the node, and returns
//! checks.
//!
//! - [`probes`]: one test rule for each match and target that sepal writes.
//! - [`iptables`], [`kernel`], [`node`], [`network`], [`tunnel_port`], [`cluster`]: one function per check.
//! - [`print`]: prints the checks as text and as JSON.

pub(crate) mod cluster;
pub(crate) mod iptables;
pub(crate) mod kernel;
pub(crate) mod network;
pub(crate) mod node;
pub(crate) mod print;
pub(crate) mod probes;
pub(crate) mod tunnel_port;

/// One check with its outcome.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Check {
    /// The group of the report that the check belongs to.
    pub group: CheckGroup,
    /// What was checked. Programs may rely on this name, so it does not change from release to release.
    pub name: String,
    /// Whether the node passes the check.
    pub outcome: CheckOutcome,
    /// What was found on the node.
    pub found: String,
    /// How to fix it. May have several lines. Empty if there is nothing to fix, or if `found` says how.
    pub cure: String,
}

/// The groups of the report, in its order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum CheckGroup {
    /// Flags and configuration files.
    Configuration,
    /// The iptables programs and the kernel support for them.
    Iptables,
    /// Kernel settings.
    Kernel,
    /// Other programs on the node, their interfaces, files and ports.
    Node,
    /// The API server and this node's Node object.
    Cluster,
    /// VXLAN and the external interface.
    PodNetwork,
}

impl CheckGroup {
    /// The name of the group in the report.
    #[must_use]
    pub(crate) const fn as_str(self) -> &'static str {
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

/// The outcome of a check.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum CheckOutcome {
    /// Nothing to fix.
    Ok,
    /// sepal runs, but some feature does not work as expected.
    Warning,
    /// sepal does not start, or does not work.
    Failed,
    /// The check could not be made. `found` says why.
    NotChecked,
}

impl CheckOutcome {
    /// The name of the outcome in the report.
    #[must_use]
    pub(crate) const fn as_str(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Warning => "warning",
            Self::Failed => "failed",
            Self::NotChecked => "not checked",
        }
    }
}

impl Check {
    /// A check with nothing to fix.
    #[must_use]
    pub(crate) fn ok(group: CheckGroup, name: impl Into<String>, found: impl Into<String>) -> Self {
        Self { group, name: name.into(), outcome: CheckOutcome::Ok, found: found.into(), cure: String::new() }
    }

    /// A check with a problem that sepal can run with.
    #[must_use]
    pub(crate) fn warning(group: CheckGroup, name: impl Into<String>, found: impl Into<String>, cure: impl Into<String>) -> Self {
        Self { outcome: CheckOutcome::Warning, cure: cure.into(), ..Self::ok(group, name, found) }
    }

    /// A check with a problem that keeps sepal from working.
    #[must_use]
    pub(crate) fn failed(group: CheckGroup, name: impl Into<String>, found: impl Into<String>, cure: impl Into<String>) -> Self {
        Self { outcome: CheckOutcome::Failed, cure: cure.into(), ..Self::ok(group, name, found) }
    }

    /// A check that could not be made.
    #[must_use]
    pub(crate) fn not_checked(group: CheckGroup, name: impl Into<String>, why: impl Into<String>) -> Self {
        Self { outcome: CheckOutcome::NotChecked, ..Self::ok(group, name, why) }
    }
}

/// Returns true if no check failed.
#[must_use]
pub(crate) fn passed(checks: &[Check]) -> bool {
    checks.iter().all(|check| check.outcome != CheckOutcome::Failed)
}
