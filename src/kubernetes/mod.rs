//! The Kubernetes API and manifest files.
//!
//! - [`client`]: the connection. [`api`]: what is listed and watched. `watcher`: the list-and-watch loop. `outage`: failures and backoff.
//! - [`convert`]: objects become cluster values. PURE. `fields`: the fields that are read.
//! - [`manifests`], [`documents`]: objects from files.
//! - [`events`]: Events that are sent. [`recent_events`]: the latest ones, for the status page. [`permission`]: the permissions that requests need.

pub mod api;
pub mod client;
pub mod convert;
mod defaults;
pub mod documents;
pub mod events;
pub(crate) mod fields;
pub mod manifests;
pub mod object;
mod outage;
pub mod permission;
mod plain_yaml;
pub(crate) mod raw;
pub mod recent_events;
pub mod requests;
mod tracker;
pub(crate) mod watcher;

use std::collections::{BTreeMap, HashMap, HashSet};
use std::time::Duration;

use jiff::Timestamp;
use tokio::time::Instant;

use crate::cluster::{Change, ServiceKey, SliceKey};

pub use object::{Kind, ObjectId, Problem};

/// An update of the cluster, from the API server or manifests.
#[derive(Debug)]
pub enum ClusterUpdate {
    /// One object changed.
    Change(Change, ChangeTime),
    /// A list is complete. Objects of earlier updates that are not in it are deleted.
    Listed(ListedNames),
    /// All objects of a kind have been sent.
    Complete(Kind),
    /// The first list of a kind fails for this reason, so none of its objects are known.
    Unknown(Kind, Box<str>),
}

/// When a change happened, and when it arrived.
#[derive(Clone, Copy, Debug)]
pub struct ChangeTime {
    /// When the change happened, if the object says so.
    pub happened: Option<Timestamp>,
    /// When this process read it.
    pub received: Instant,
}

impl ChangeTime {
    /// A change that is read now.
    #[must_use]
    pub fn now(happened: Option<Timestamp>) -> Self {
        Self { happened, received: Instant::now() }
    }

    /// The delay from the change to its arrival, if it is known. It is never negative, although clocks of two machines may differ.
    #[must_use]
    pub(crate) fn watch_delay(&self) -> Option<Duration> {
        let age = Timestamp::now().duration_since(self.happened?);
        Some(Duration::try_from(age).unwrap_or_default().saturating_sub(self.received.elapsed()))
    }
}

/// The names of all objects of a kind in a complete list.
#[derive(Debug)]
pub enum ListedNames {
    /// Services.
    Services(HashSet<ServiceKey>),
    /// EndpointSlices.
    Slices(HashSet<SliceKey>),
}

/// Logs problems with objects, each once until it changes.
#[derive(Debug, Default)]
pub struct ProblemLog {
    logged: HashMap<ObjectId, String>,
    skipped: BTreeMap<String, usize>,
}

impl ProblemLog {
    /// Logs the problem of an object that was read, if it has a new one.
    pub fn note(&mut self, id: &ObjectId, problem: Option<&Problem>) {
        match problem {
            None => {
                self.logged.remove(id);
            }
            Some(problem) if self.logged.get(id) == Some(&problem.what) => {}
            Some(problem) => {
                tracing::warn!("{problem}");
                self.logged.insert(id.clone(), problem.what.clone());
            }
        }
    }

    /// Logs how many documents of unneeded kinds were skipped, if the numbers changed.
    pub(crate) fn note_skipped(&mut self, skipped: &BTreeMap<String, usize>) {
        if self.skipped != *skipped {
            let counts: Vec<String> = skipped.iter().map(|(kind, count)| format!("{count} {kind}")).collect();
            tracing::info!("documents of kinds that are not needed: {}", if counts.is_empty() { "none".into() } else { counts.join(", ") });
            self.skipped.clone_from(skipped);
        }
    }
}
