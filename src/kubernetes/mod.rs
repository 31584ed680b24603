//! The Kubernetes API and manifest files.
//!
//! - [`client`]: the connection. [`api`]: what is listed and watched. `watcher`: the list-and-watch loop. `outage`: failures and waits.
//! - [`convert`]: objects become cluster values. PURE. `fields`: the fields that are read.
//! - [`manifests`], [`documents`]: objects from files.
//! - [`events`]: Events that are sent. [`recent_events`]: the latest ones, for the status page. [`permission`]: permissions that requests need.

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

/// What a source tells the loop.
#[derive(Debug)]
pub enum Update {
    /// One object changed.
    Change(Change, Moment),
    /// These are all there are; whatever else was told of before is gone.
    Listed(Known),
    /// Every object of a kind has been told.
    Complete(Kind),
    /// No object of a kind is known yet, because the first list fails for this reason.
    Unknown(Kind, Box<str>),
}

/// When a change happened, and when it came.
#[derive(Clone, Copy, Debug)]
pub struct Moment {
    /// When what it tells of happened, where the object says so.
    pub happened: Option<Timestamp>,
    /// When it was read from its source.
    pub received: Instant,
}

impl Moment {
    /// It is read now.
    #[must_use]
    pub fn now(happened: Option<Timestamp>) -> Self {
        Self { happened, received: Instant::now() }
    }

    /// The time between both, if it is known. Clocks of two machines differ: nothing comes before it has happened.
    #[must_use]
    pub fn on_its_way(&self) -> Option<Duration> {
        let age = Timestamp::now().duration_since(self.happened?);
        Some(Duration::try_from(age).unwrap_or_default().saturating_sub(self.received.elapsed()))
    }
}

/// All objects of a kind, by name.
#[derive(Debug)]
pub enum Known {
    /// Services.
    Services(HashSet<ServiceKey>),
    /// EndpointSlices.
    Slices(HashSet<SliceKey>),
}

/// Tells of problems with objects, each once for as long as it stays the same.
#[derive(Debug, Default)]
pub struct Complaints {
    told: HashMap<ObjectId, String>,
    skipped: BTreeMap<String, usize>,
}

impl Complaints {
    /// An object was read; tells of its problem, if it has one and that is news.
    pub fn note(&mut self, id: &ObjectId, problem: Option<&Problem>) {
        match problem {
            None => {
                self.told.remove(id);
            }
            Some(problem) if self.told.get(id) == Some(&problem.what) => {}
            Some(problem) => {
                tracing::warn!("{problem}");
                self.told.insert(id.clone(), problem.what.clone());
            }
        }
    }

    /// Documents of kinds that are not needed were passed over, this many of each; tells so if that is news.
    pub fn note_skipped(&mut self, skipped: &BTreeMap<String, usize>) {
        if self.skipped != *skipped {
            let counts: Vec<String> = skipped.iter().map(|(kind, count)| format!("{count} {kind}")).collect();
            tracing::info!("documents of kinds that are not needed: {}", if counts.is_empty() { "none".into() } else { counts.join(", ") });
            self.skipped.clone_from(skipped);
        }
    }
}
