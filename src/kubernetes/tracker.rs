//! Turns what list and watch deliver of one kind into updates for the service proxy.

use std::collections::HashSet;

use super::object::{Kind, ObjectId};
use super::raw::Raw;
use super::watcher::Tracks;
use super::{Complaints, Known, Moment, Update, convert};

/// Turns objects of one kind into updates. An object that a complete list does not contain is deleted.
#[derive(Debug)]
pub(super) struct Tracker {
    kind: Kind,
    /// The objects of the list that is under way. `None` in the first list: nothing was sent before it, so nothing can be deleted.
    seen: Option<HashSet<ObjectId>>,
    /// An update was sent.
    sent_any: bool,
    complaints: Complaints,
}

impl Tracker {
    pub(super) fn new(kind: Kind) -> Self {
        Self { kind, seen: None, sent_any: false, complaints: Complaints::default() }
    }

    fn known(&self, seen: &HashSet<ObjectId>) -> Option<Known> {
        match self.kind {
            Kind::Service => Some(Known::Services(seen.iter().map(convert::service_key).collect())),
            Kind::EndpointSlice => Some(Known::Slices(seen.iter().map(convert::slice_key).collect())),
            // A deleted Node keeps its last facts.
            Kind::Node => None,
        }
    }
}

impl Tracks for Tracker {
    type Told = Update;

    fn begin(&mut self) {
        self.seen = self.sent_any.then(HashSet::new);
    }

    fn listed(&mut self, object: &Raw) -> Vec<Update> {
        if let Some(seen) = &mut self.seen {
            seen.insert(object.id(self.kind));
        }
        self.applied(object)
    }

    fn complete(&mut self) -> Vec<Update> {
        let listed = self.seen.take().and_then(|seen| self.known(&seen)).map(Update::Listed);
        listed.into_iter().chain([Update::Complete(self.kind)]).collect()
    }

    fn applied(&mut self, object: &Raw) -> Vec<Update> {
        self.sent_any = true;
        let id = object.id(self.kind);
        let converted = convert::text(&id, object.text.get());
        self.complaints.note(&id, converted.problem.as_ref());
        vec![Update::Change(converted.change, Moment::now(converted.trigger))]
    }

    fn deleted(&mut self, object: &Raw) -> Vec<Update> {
        let id = object.id(self.kind);
        if let Some(seen) = &mut self.seen {
            seen.remove(&id);
        }
        self.complaints.note(&id, None);
        vec![Update::Change(convert::gone(&id), Moment::now(None))]
    }

    fn unknown(&mut self, why: &str) -> Vec<Update> {
        vec![Update::Unknown(self.kind, why.into())]
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::cluster::Change;

    fn raw(name: &str) -> Raw {
        let value =
            json!({"metadata": {"name": name, "namespace": "ns", "managedFields": [1]}, "spec": {"clusterIP": "10.0.0.1", "ports": []}});
        serde_json::from_str(&value.to_string()).expect("any object is taken")
    }

    #[test]
    fn what_a_new_list_leaves_out_is_gone() {
        let mut tracker = Tracker::new(Kind::Service);
        tracker.begin();
        assert!(matches!(tracker.listed(&raw("a")).as_slice(), [Update::Change(Change::Service(key, Some(_)), _)] if &*key.name == "a"));
        tracker.listed(&raw("b"));
        assert!(matches!(tracker.complete().as_slice(), [Update::Complete(Kind::Service)]));
        // A list that does not come to its end is dropped.
        tracker.begin();
        tracker.listed(&raw("a"));
        tracker.begin();
        tracker.listed(&raw("b"));
        let updates = tracker.complete();
        let [Update::Listed(Known::Services(known)), Update::Complete(_)] = updates.as_slice() else { panic!("{updates:?}") };
        assert_eq!(known.iter().map(|key| &*key.name).collect::<Vec<_>>(), ["b"]);
    }

    #[test]
    fn a_broken_object_costs_only_itself() {
        for text in ["{\"metadata\": 7}", "[]", "{\"metadata\": {\"name\": \"x\", \"annotations\": 5}}"] {
            let raw: Raw = serde_json::from_str(text).expect("any JSON is taken");
            let mut tracker = Tracker::new(Kind::Service);
            assert!(matches!(tracker.applied(&raw).as_slice(), [Update::Change(Change::Service(_, None), _)]), "{text}");
        }
    }
}
