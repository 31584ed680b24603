//! Log lines about the decisions of the loop: the reason and size of each sync (`-v=2`), and each update and the chains of each plan
//! (`-v=4`). The texts are only built if they are logged.

use std::fmt::Display;

use tracing::Level;

use super::update::Update;
use crate::cluster::{Change, Family};
use crate::kubernetes::{self, ListedNames};
use crate::table::plan::Plan;

use super::sync_log::V2;

/// The largest number of names in one line. The others are only counted.
const NAMED: usize = 20;

/// Returns true if lines about single syncs are logged.
pub(super) fn enabled() -> bool {
    tracing::enabled!(target: V2, Level::DEBUG)
}

/// Logs the plan of a sync, or of a part of it.
pub(super) fn planned(family: Family, reason: &str, plan: &Plan) {
    if plan.is_empty() {
        tracing::debug!(target: V2, "{family}: sync, because {reason}: nothing to write");
        return;
    }
    let extent = plan.extent();
    tracing::debug!(
        target: V2,
        "{family}: sync, because {reason}: {} chains to write, {} to delete, {} lines to edit in {} transactions",
        extent.chains, extent.deleted, extent.edits, extent.transactions,
    );
    if tracing::enabled!(Level::DEBUG) {
        let (written, deleted) = plan.chains();
        tracing::debug!("{family}: chains to write: {}; to delete: {}", names(written.iter()), names(deleted.iter()));
    }
}

/// Logs an update that the loop received.
pub(super) fn received(update: &Update) {
    let what = |is_there: bool| if is_there { "was added or changed" } else { "was deleted" };
    match update {
        Update::Cluster(kubernetes::ClusterUpdate::Change(Change::Service(key, now), _)) => {
            tracing::debug!("Service {key} {}", what(now.is_some()));
        }
        Update::Cluster(kubernetes::ClusterUpdate::Change(Change::Slice(key, now), _)) => {
            tracing::debug!("EndpointSlice {key} {}", what(now.is_some()));
        }
        Update::Cluster(kubernetes::ClusterUpdate::Change(Change::Node(now), _)) => {
            tracing::debug!("this node's Node {}", what(now.is_some()));
        }
        Update::Inputs(_) => tracing::debug!("the manifests were read"),
        Update::Settings(_) => tracing::debug!("the settings were read"),
        Update::PodRules(_) => tracing::debug!("the pod network sent the inputs of its rules"),
        Update::Cluster(kubernetes::ClusterUpdate::Listed(ListedNames::Services(known))) => {
            tracing::debug!("all {} Services are listed", known.len());
        }
        Update::Cluster(kubernetes::ClusterUpdate::Listed(ListedNames::Slices(known))) => {
            tracing::debug!("all {} EndpointSlices are listed", known.len());
        }
        Update::Cluster(kubernetes::ClusterUpdate::Unknown(kind, why)) => tracing::debug!("no {} is known yet: {why}", kind.as_str()),
        Update::Cluster(kubernetes::ClusterUpdate::Complete(kind)) => tracing::debug!("all {}s are known", kind.as_str()),
    }
}

/// Returns the first names and the number of the others.
pub(super) fn names(all: impl ExactSizeIterator<Item = impl Display>) -> String {
    let count = all.len();
    if count == 0 {
        return "none".to_owned();
    }
    let named = all.take(NAMED).map(|name| name.to_string()).collect::<Vec<_>>().join(", ");
    if count > NAMED { format!("{named} and {} more", count - NAMED) } else { named }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_lists_of_names_are_shortened() {
        assert_eq!(names(std::iter::empty::<u8>()), "none");
        assert_eq!(names(["a", "b"].iter()), "a, b");
        let many = names(0..NAMED + 3);
        assert!(many.starts_with("0, 1, ") && many.ends_with("19 and 3 more"), "{many}");
    }
}
