//! The store: one table of entries per resource, each with a bounded history of events. Watches read the history with cursors.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::ops::Bound;
use std::sync::Arc;

use serde_json::Value;
use tokio::sync::watch;

use crate::defaults::Allocator;
use crate::generate;
use crate::object::{Entry, Object, ObjectKey, child_mut, metadata_text};
use crate::resource::Resource;
use crate::status_error::StatusError;

/// Default length of a resource's history.
const HISTORY: usize = 100_000;

/// Resource version of an empty store.
const FIRST_VERSION: u64 = 1000;

/// A change of an object.
#[derive(Clone, Debug)]
pub(crate) struct Event {
    pub(crate) version: u64,
    /// The object before the change; `None` if the change created it.
    pub(crate) old: Option<Arc<Entry>>,
    /// The object after the change. For a deletion: its last state, with the version of the deletion.
    pub(crate) new: Arc<Entry>,
    pub(crate) deleted: bool,
    /// The epoch of the store when the event was recorded.
    epoch: u64,
}

/// The position of a watch in a history.
#[derive(Debug)]
pub(crate) struct Cursor {
    /// Number of the next event.
    next: u64,
    /// The watch ends when the store enters a later epoch.
    epoch: u64,
    /// Events up to this version are skipped.
    after: u64,
    /// The store's count of bookmark requests at the last read.
    bookmark_requests: u64,
    /// Changes when there may be more to read.
    pub(crate) changes: watch::Receiver<()>,
}

/// The result of reading with a cursor.
#[derive(Debug)]
pub(crate) enum ReadResult {
    /// Events, oldest first.
    Events(Vec<Event>),
    /// No more events yet.
    NoEvents {
        /// The current version of the store.
        version: u64,
        /// True if a test requested bookmarks since the last read.
        bookmark_requested: bool,
    },
    /// A test dropped the watches.
    Dropped,
    /// The watch was too slow: the history no longer holds its next event.
    Expired(StatusError),
}

/// The objects of one resource.
#[derive(Debug)]
struct Table {
    entries: BTreeMap<ObjectKey, Arc<Entry>>,
    history: VecDeque<Event>,
    /// Number of the first event in the history.
    first: u64,
    /// Version of the latest event that was removed from the history because it was full.
    trimmed: u64,
    changes: watch::Sender<()>,
}

/// All stored objects.
#[derive(Debug)]
pub(crate) struct Store {
    version: u64,
    /// New watches from before this version are refused.
    compacted: u64,
    tables: Vec<Table>,
    /// Increases whenever all watches are dropped.
    epoch: u64,
    /// How often a test requested bookmarks.
    bookmark_requests: u64,
    history_limit: usize,
    /// Allocates cluster IPs and node ports of Services.
    pub(crate) allocator: Allocator,
}

impl Store {
    /// A store without objects.
    pub(crate) fn new() -> Self {
        let table = |_| Table { entries: BTreeMap::new(), history: VecDeque::new(), first: 0, trimmed: 0, changes: watch::Sender::new(()) };
        Self {
            version: FIRST_VERSION,
            compacted: 0,
            tables: Resource::all().map(table).collect(),
            epoch: 0,
            bookmark_requests: 0,
            history_limit: HISTORY,
            allocator: Allocator::default(),
        }
    }

    pub(crate) const fn version(&self) -> u64 {
        self.version
    }

    pub(crate) fn get(&self, resource: Resource, namespace: &str, name: &str) -> Option<Arc<Entry>> {
        self.tables[resource.index()].entries.get(&ObjectKey::new(namespace, name)).cloned()
    }

    /// The entries of a namespace, or of all namespaces if `namespace` is empty. Sorted by namespace and name.
    pub(crate) fn list(&self, resource: Resource, namespace: &str) -> Vec<Arc<Entry>> {
        let entries = &self.tables[resource.index()].entries;
        if namespace.is_empty() {
            return entries.values().cloned().collect();
        }
        let from = ObjectKey::new(namespace, "");
        let range = entries.range((Bound::Included(from), Bound::Unbounded));
        range.take_while(|(key, _)| *key.namespace == *namespace).map(|(_, entry)| entry.clone()).collect()
    }

    /// The entries at an earlier version; `None` if the history does not reach back that far.
    pub(crate) fn list_at(&self, resource: Resource, namespace: &str, version: u64) -> Option<Vec<Arc<Entry>>> {
        let table = &self.tables[resource.index()];
        if version < self.oldest_version(resource) {
            return None;
        }
        let since = table.history.partition_point(|event| event.version <= version);
        let mut entries = self.list(resource, namespace);
        if since == table.history.len() {
            return Some(entries);
        }
        let mut changed = BTreeSet::new();
        let first_changes = table.history.range(since..).filter(|event| changed.insert(&event.new.key)).collect::<Vec<_>>();
        entries.retain(|entry| !changed.contains(&entry.key));
        let before = first_changes.into_iter().filter_map(|event| event.old.clone());
        entries.extend(before.filter(|entry| namespace.is_empty() || *entry.key.namespace == *namespace));
        entries.sort_by(|one, other| one.key.cmp(&other.key));
        Some(entries)
    }

    /// All entries of all resources.
    pub(crate) fn all(&self) -> Vec<(Resource, Arc<Entry>)> {
        let entries = |resource: Resource| self.tables[resource.index()].entries.values().map(move |entry| (resource, entry.clone()));
        Resource::all().flat_map(entries).collect()
    }

    /// Stores an object. `old` is the entry that it replaces.
    pub(crate) fn put(&mut self, resource: Resource, object: Object, old: Option<Arc<Entry>>) -> Arc<Entry> {
        self.version += 1;
        let new = Arc::new(Entry::new(resource, object, self.version));
        self.tables[resource.index()].entries.insert(new.key.clone(), new.clone());
        self.record(resource, old, new.clone(), false);
        new
    }

    /// Removes an object. The returned entry has the version of the deletion.
    pub(crate) fn remove(&mut self, resource: Resource, entry: &Arc<Entry>) -> Result<Arc<Entry>, StatusError> {
        let last = Arc::new(entry.at_version(resource, self.version + 1)?);
        self.version += 1;
        self.tables[resource.index()].entries.remove(&entry.key);
        self.record(resource, Some(entry.clone()), last.clone(), true);
        Ok(last)
    }

    /// Adds an event to the history and wakes the watches.
    fn record(&mut self, resource: Resource, old: Option<Arc<Entry>>, new: Arc<Entry>, deleted: bool) {
        let table = &mut self.tables[resource.index()];
        table.history.push_back(Event { version: new.version, old, new, deleted, epoch: self.epoch });
        while table.history.len() > self.history_limit {
            table.trimmed = table.history.pop_front().map_or(table.trimmed, |event| event.version);
            table.first += 1;
        }
        table.changes.send_replace(());
    }

    /// Stores objects without defaults and checks, and replaces objects of the same name. Stores none of them if one is invalid.
    pub(crate) fn load(&mut self, objects: Vec<Value>) -> Result<u64, StatusError> {
        let checked: Vec<_> = objects.into_iter().map(check).collect::<Result<_, _>>()?;
        for (resource, mut object) in checked {
            let old = self.get(resource, metadata_text(&object, "namespace"), metadata_text(&object, "name"));
            if let Some(old) = &old {
                let mut before = old.object()?;
                let metadata = child_mut(&mut object, "metadata")?;
                for field in ["uid", "creationTimestamp"] {
                    metadata.insert(field.into(), child_mut(&mut before, "metadata")?.remove(field).unwrap_or_default());
                }
            } else {
                set_missing(child_mut(&mut object, "metadata")?);
            }
            self.put(resource, object, old);
        }
        Ok(self.version)
    }

    /// The oldest version that watches and lists of a resource may ask for.
    fn oldest_version(&self, resource: Resource) -> u64 {
        self.compacted.max(self.tables[resource.index()].trimmed)
    }

    /// A cursor after the last event.
    pub(crate) fn cursor_at_end(&self, resource: Resource) -> Cursor {
        let table = &self.tables[resource.index()];
        self.cursor(table, table.first + table.history.len() as u64, self.version)
    }

    /// A cursor after the event of a version. Fails if the history does not reach back that far.
    pub(crate) fn cursor_after(&self, resource: Resource, version: u64) -> Result<Cursor, StatusError> {
        let oldest = self.oldest_version(resource);
        if version < oldest {
            return Err(too_old(version, oldest));
        }
        let table = &self.tables[resource.index()];
        let next = table.first + table.history.partition_point(|event| event.version <= version) as u64;
        Ok(self.cursor(table, next, version))
    }

    fn cursor(&self, table: &Table, next: u64, after: u64) -> Cursor {
        let changes = table.changes.subscribe();
        Cursor { next, epoch: self.epoch, after, bookmark_requests: self.bookmark_requests, changes }
    }

    /// Reads at most `max` events, and moves the cursor after them.
    pub(crate) fn read(&self, resource: Resource, cursor: &mut Cursor, max: usize) -> ReadResult {
        cursor.changes.mark_unchanged();
        let table = &self.tables[resource.index()];
        let Some(start) = cursor.next.checked_sub(table.first) else {
            return ReadResult::Expired(too_old(cursor.after, table.trimmed));
        };
        let pending = table.history.iter().skip(start as usize).take(max).filter(|event| event.epoch <= cursor.epoch);
        let events: Vec<_> = pending.cloned().collect();
        if let Some(last) = events.last() {
            cursor.next += events.len() as u64;
            let after = cursor.after;
            cursor.after = after.max(last.version);
            return ReadResult::Events(events.into_iter().filter(|event| event.version > after).collect());
        }
        if cursor.epoch != self.epoch {
            return ReadResult::Dropped;
        }
        let bookmark_requested = cursor.bookmark_requests != self.bookmark_requests;
        cursor.bookmark_requests = self.bookmark_requests;
        ReadResult::NoEvents { version: self.version, bookmark_requested }
    }

    /// The number of open watches of a resource.
    pub(crate) fn watches(&self, resource: Resource) -> usize {
        self.tables[resource.index()].changes.receiver_count()
    }

    /// Compacts the history: new watches from earlier versions get 410. Open watches continue.
    pub(crate) fn compact(&mut self) {
        self.version += 1;
        self.compacted = self.version;
    }

    /// Removes the history of the objects that were loaded before the server starts.
    pub(crate) fn clear_history(&mut self) {
        self.compacted = self.version;
        for table in &mut self.tables {
            table.first += table.history.len() as u64;
            table.history.clear();
        }
    }

    /// Raises the version, compacts the history and drops the watches, like an etcd that was restored from a backup.
    pub(crate) fn new_history(&mut self, by: u64) {
        self.version = self.version.saturating_add(by);
        self.compacted = self.version;
        self.drop_watches();
    }

    /// Breaks every watch after it has sent the events up to now.
    pub(crate) fn drop_watches(&mut self) {
        self.epoch += 1;
        self.wake_watches();
    }

    /// Requests a bookmark from every watch that sends them.
    pub(crate) fn request_bookmarks(&mut self) {
        self.bookmark_requests += 1;
        self.wake_watches();
    }

    fn wake_watches(&self) {
        for table in &self.tables {
            table.changes.send_replace(());
        }
    }

    /// Limits the history of each resource.
    pub(crate) fn limit_history(&mut self, events: usize) {
        self.history_limit = events;
    }
}

fn too_old(version: u64, oldest: u64) -> StatusError {
    StatusError::expired(format!("too old resource version: {version} ({oldest})"))
}

/// Finds the resource of an object. Refuses an object without a name, and sets the default namespace.
fn check(value: Value) -> Result<(Resource, Object), StatusError> {
    let Value::Object(mut object) = value else { return Err(StatusError::bad_request("not an object")) };
    let text = |field: &str| object.get(field).and_then(Value::as_str).unwrap_or_default().to_owned();
    let (api_version, kind) = (text("apiVersion"), text("kind"));
    let resource = Resource::of(&api_version, &kind).ok_or_else(|| StatusError::bad_request(format!("no kind {api_version}/{kind}")))?;
    let metadata = child_mut(&mut object, "metadata")?;
    if !metadata.get("name").is_some_and(Value::is_string) {
        return Err(StatusError::bad_request(format!("{kind} without a name")));
    }
    if !resource.namespaced {
        metadata.remove("namespace");
    } else if !metadata.get("namespace").is_some_and(Value::is_string) {
        metadata.insert("namespace".into(), "default".into());
    }
    Ok((resource, object))
}

/// Sets uid and creation time if they are missing.
fn set_missing(metadata: &mut Object) {
    metadata.entry("uid").or_insert_with(|| generate::uid().into());
    metadata.entry("creationTimestamp").or_insert_with(|| generate::timestamp().into());
}
