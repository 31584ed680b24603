//! Turns the objects that list and watch deliver into updates for the service proxy.

use std::collections::HashSet;

use super::object::{Kind, ObjectId};
use super::raw::RawObject;
use super::watcher::ObjectTracker;
use super::{ChangeTime, ClusterUpdate, ListedNames, ProblemLog, convert};

/// Turns objects of one kind into updates. An object that a complete list does not contain is deleted.
#[derive(Debug)]
pub(super) struct Tracker {
    kind: Kind,
    /// The objects of the current list. `None` in the first list: no updates were sent before it, so no object can be missing.
    seen: Option<HashSet<ObjectId>>,
    /// At least one update was sent.
    sent_any: bool,
    problems: ProblemLog,
}

impl Tracker {
    pub(super) fn new(kind: Kind) -> Self {
        Self { kind, seen: None, sent_any: false, problems: ProblemLog::default() }
    }

    fn names(&self, seen: &HashSet<ObjectId>) -> Option<ListedNames> {
        match self.kind {
            Kind::Service => Some(ListedNames::Services(seen.iter().map(convert::service_key).collect())),
            Kind::EndpointSlice => Some(ListedNames::Slices(seen.iter().map(convert::slice_key).collect())),
            // The last facts of a deleted Node stay in use.
            Kind::Node => None,
        }
    }
}

impl ObjectTracker for Tracker {
    type Update = ClusterUpdate;

    fn begin(&mut self) {
        self.seen = self.sent_any.then(HashSet::new);
    }

    fn listed(&mut self, object: &RawObject) -> Vec<ClusterUpdate> {
        if let Some(seen) = &mut self.seen {
            seen.insert(object.id(self.kind));
        }
        self.applied(object)
    }

    fn complete(&mut self) -> Vec<ClusterUpdate> {
        let listed = self.seen.take().and_then(|seen| self.names(&seen)).map(ClusterUpdate::Listed);
        listed.into_iter().chain([ClusterUpdate::Complete(self.kind)]).collect()
    }

    fn applied(&mut self, object: &RawObject) -> Vec<ClusterUpdate> {
        self.sent_any = true;
        let id = object.id(self.kind);
        let converted = convert::text(&id, object.text.get());
        self.problems.note(&id, converted.problem.as_ref());
        vec![ClusterUpdate::Change(converted.change, ChangeTime::now(converted.trigger))]
    }

    fn deleted(&mut self, object: &RawObject) -> Vec<ClusterUpdate> {
        let id = object.id(self.kind);
        if let Some(seen) = &mut self.seen {
            seen.remove(&id);
        }
        self.problems.note(&id, None);
        vec![ClusterUpdate::Change(convert::gone(&id), ChangeTime::now(None))]
    }

    fn unknown(&mut self, why: &str) -> Vec<ClusterUpdate> {
        vec![ClusterUpdate::Unknown(self.kind, why.into())]
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::cluster::Change;

    fn raw(name: &str) -> RawObject {
        let value =
            json!({"metadata": {"name": name, "namespace": "ns", "managedFields": [1]}, "spec": {"clusterIP": "10.0.0.1", "ports": []}});
        serde_json::from_str(&value.to_string()).expect("any object can be read")
    }

    #[test]
    fn objects_missing_in_a_new_list_are_deleted() {
        let mut tracker = Tracker::new(Kind::Service);
        tracker.begin();
        assert!(
            matches!(tracker.listed(&raw("a")).as_slice(), [ClusterUpdate::Change(Change::Service(key, Some(_)), _)] if &*key.name == "a")
        );
        tracker.listed(&raw("b"));
        assert!(matches!(tracker.complete().as_slice(), [ClusterUpdate::Complete(Kind::Service)]));
        // A list that does not complete is dropped.
        tracker.begin();
        tracker.listed(&raw("a"));
        tracker.begin();
        tracker.listed(&raw("b"));
        let updates = tracker.complete();
        let [ClusterUpdate::Listed(ListedNames::Services(known)), ClusterUpdate::Complete(_)] = updates.as_slice() else {
            panic!("{updates:?}")
        };
        assert_eq!(known.iter().map(|key| &*key.name).collect::<Vec<_>>(), ["b"]);
    }

    #[test]
    fn a_broken_object_affects_no_other() {
        for text in ["{\"metadata\": 7}", "[]", "{\"metadata\": {\"name\": \"x\", \"annotations\": 5}}"] {
            let raw: RawObject = serde_json::from_str(text).expect("any JSON can be read");
            let mut tracker = Tracker::new(Kind::Service);
            assert!(matches!(tracker.applied(&raw).as_slice(), [ClusterUpdate::Change(Change::Service(_, None), _)]), "{text}");
        }
    }
}
