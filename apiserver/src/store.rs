//! What is stored, and what happened to it: tables of entries, each with a bounded history that watches read at their own pace.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::ops::Bound;
use std::sync::Arc;

use serde_json::Value;
use tokio::sync::watch;

use crate::defaults::Allocator;
use crate::object::{Entry, Key, Object, child, meta_text};
use crate::refusal::Refusal;
use crate::resource::Resource;
use crate::stamp;

/// Events that are remembered per resource, unless another number is asked for.
const HISTORY: usize = 100_000;

/// Resource version of a store that nothing was put into.
pub(crate) const FIRST_VERSION: u64 = 1000;

/// Something that happened to an object.
#[derive(Clone, Debug)]
pub(crate) struct Event {
    pub(crate) version: u64,
    /// The object before, if there was one.
    pub(crate) old: Option<Arc<Entry>>,
    /// The object after; of a deleted one its last state, at the version of its deletion.
    pub(crate) new: Arc<Entry>,
    pub(crate) deleted: bool,
    /// Watches end where the epoch does.
    epoch: u64,
}

/// Where a watch stands in a history.
#[derive(Debug)]
pub(crate) struct Cursor {
    /// Number of the next event.
    next: u64,
    epoch: u64,
    /// Events up to this version are not for it.
    after: u64,
    /// How often bookmarks were called for.
    calls: u64,
    /// Marked as changed when there may be more.
    pub(crate) news: watch::Receiver<()>,
}

/// What a cursor finds.
#[derive(Debug)]
pub(crate) enum Found {
    /// Events, oldest first.
    Events(Vec<Event>),
    /// None yet.
    Nothing {
        /// What the store is at.
        version: u64,
        /// Bookmarks were called for since this was found last.
        called: bool,
    },
    /// The watches were dropped.
    Dropped,
    /// It was too slow: what comes next is forgotten.
    Expired(Refusal),
}

/// The objects of one resource.
#[derive(Debug)]
struct Table {
    entries: BTreeMap<Key, Arc<Entry>>,
    history: VecDeque<Event>,
    /// Number of the first event in the history.
    first: u64,
    /// Highest version that fell out of the history.
    forgotten: u64,
    news: watch::Sender<()>,
}

/// Everything that is stored.
#[derive(Debug)]
pub(crate) struct Store {
    version: u64,
    /// What happened before this version is not told to new watches.
    compacted: u64,
    tables: Vec<Table>,
    epoch: u64,
    /// How often bookmarks were called for.
    calls: u64,
    history_limit: usize,
    /// Cluster addresses and node ports for Services.
    pub(crate) allocator: Allocator,
}

impl Store {
    /// A store without objects.
    pub(crate) fn new() -> Self {
        let table = |_| Table { entries: BTreeMap::new(), history: VecDeque::new(), first: 0, forgotten: 0, news: watch::Sender::new(()) };
        Self {
            version: FIRST_VERSION,
            compacted: 0,
            tables: Resource::all().map(table).collect(),
            epoch: 0,
            calls: 0,
            history_limit: HISTORY,
            allocator: Allocator::default(),
        }
    }

    pub(crate) const fn version(&self) -> u64 {
        self.version
    }

    pub(crate) fn get(&self, resource: Resource, namespace: &str, name: &str) -> Option<Arc<Entry>> {
        self.tables[resource.index()].entries.get(&Key::new(namespace, name)).cloned()
    }

    /// The entries of a namespace, or of all if it is empty, sorted.
    pub(crate) fn list(&self, resource: Resource, namespace: &str) -> Vec<Arc<Entry>> {
        let entries = &self.tables[resource.index()].entries;
        if namespace.is_empty() {
            return entries.values().cloned().collect();
        }
        let from = Key::new(namespace, "");
        let range = entries.range((Bound::Included(from), Bound::Unbounded));
        range.take_while(|(key, _)| *key.namespace == *namespace).map(|(_, entry)| entry.clone()).collect()
    }

    /// The entries as they were at a version; none if that is forgotten.
    pub(crate) fn list_at(&self, resource: Resource, namespace: &str, version: u64) -> Option<Vec<Arc<Entry>>> {
        let table = &self.tables[resource.index()];
        if version < self.horizon(resource) {
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

    /// Every entry there is.
    pub(crate) fn all(&self) -> Vec<(Resource, Arc<Entry>)> {
        let entries = |resource: Resource| self.tables[resource.index()].entries.values().map(move |entry| (resource, entry.clone()));
        Resource::all().flat_map(entries).collect()
    }

    /// Stores an object in place of `old`.
    pub(crate) fn put(&mut self, resource: Resource, object: Object, old: Option<Arc<Entry>>) -> Arc<Entry> {
        self.version += 1;
        let new = Arc::new(Entry::new(resource, object, self.version));
        self.tables[resource.index()].entries.insert(new.key.clone(), new.clone());
        self.record(resource, old, new.clone(), false);
        new
    }

    /// Removes an object. The entry that is returned has the version of the deletion.
    pub(crate) fn remove(&mut self, resource: Resource, entry: &Arc<Entry>) -> Result<Arc<Entry>, Refusal> {
        let last = Arc::new(entry.at_version(resource, self.version + 1)?);
        self.version += 1;
        self.tables[resource.index()].entries.remove(&entry.key);
        self.record(resource, Some(entry.clone()), last.clone(), true);
        Ok(last)
    }

    fn record(&mut self, resource: Resource, old: Option<Arc<Entry>>, new: Arc<Entry>, deleted: bool) {
        let table = &mut self.tables[resource.index()];
        table.history.push_back(Event { version: new.version, old, new, deleted, epoch: self.epoch });
        while table.history.len() > self.history_limit {
            table.forgotten = table.history.pop_front().map_or(table.forgotten, |event| event.version);
            table.first += 1;
        }
        table.news.send_replace(());
    }

    /// Stores objects as they are, in place of those of the same name. Either all or none.
    pub(crate) fn load(&mut self, objects: Vec<Value>) -> Result<u64, Refusal> {
        let checked: Vec<_> = objects.into_iter().map(checked).collect::<Result<_, _>>()?;
        for (resource, mut object) in checked {
            let old = self.get(resource, meta_text(&object, "namespace"), meta_text(&object, "name"));
            if let Some(old) = &old {
                let mut before = old.object()?;
                let metadata = child(&mut object, "metadata")?;
                for field in ["uid", "creationTimestamp"] {
                    metadata.insert(field.into(), child(&mut before, "metadata")?.remove(field).unwrap_or_default());
                }
            } else {
                stamp_missing(child(&mut object, "metadata")?);
            }
            self.put(resource, object, old);
        }
        Ok(self.version)
    }

    /// Versions before this are unknown for a resource.
    fn horizon(&self, resource: Resource) -> u64 {
        self.compacted.max(self.tables[resource.index()].forgotten)
    }

    /// A cursor behind everything that happened until now.
    pub(crate) fn follow(&self, resource: Resource, after: u64) -> Cursor {
        let table = &self.tables[resource.index()];
        let next = table.first + table.history.len() as u64;
        Cursor { next, epoch: self.epoch, after: after.max(self.version), calls: self.calls, news: table.news.subscribe() }
    }

    /// A cursor behind a version, if what happened since is remembered.
    pub(crate) fn follow_since(&self, resource: Resource, version: u64) -> Result<Cursor, Refusal> {
        let horizon = self.horizon(resource);
        if version < horizon {
            return Err(too_old(version, horizon));
        }
        let table = &self.tables[resource.index()];
        let next = table.first + table.history.partition_point(|event| event.version <= version) as u64;
        Ok(Cursor { next, epoch: self.epoch, after: version, calls: self.calls, news: table.news.subscribe() })
    }

    /// Reads on, at most so many events.
    pub(crate) fn read(&self, resource: Resource, cursor: &mut Cursor, most: usize) -> Found {
        cursor.news.mark_unchanged();
        let table = &self.tables[resource.index()];
        let Some(start) = cursor.next.checked_sub(table.first) else {
            return Found::Expired(too_old(cursor.after, table.forgotten));
        };
        let pending = table.history.iter().skip(start as usize).take(most).filter(|event| event.epoch <= cursor.epoch);
        let events: Vec<_> = pending.cloned().collect();
        if let Some(last) = events.last() {
            cursor.next += events.len() as u64;
            let after = cursor.after;
            cursor.after = after.max(last.version);
            return Found::Events(events.into_iter().filter(|event| event.version > after).collect());
        }
        if cursor.epoch != self.epoch {
            return Found::Dropped;
        }
        let called = cursor.calls != self.calls;
        cursor.calls = self.calls;
        Found::Nothing { version: self.version, called }
    }

    /// Watches that are open.
    pub(crate) fn watches(&self, resource: Resource) -> usize {
        self.tables[resource.index()].news.receiver_count()
    }

    /// Forgets what happened: new watches from before are told so. Those that are open go on.
    pub(crate) fn compact(&mut self) -> u64 {
        self.version += 1;
        self.compacted = self.version;
        self.compacted
    }

    /// Starts here: what was stored until now has no history. For before the first request.
    pub(crate) fn begin(&mut self) {
        self.compacted = self.version;
        for table in &mut self.tables {
            table.first += table.history.len() as u64;
            table.history.clear();
        }
    }

    /// Goes on at a later version, as if restored from elsewhere.
    pub(crate) fn new_history(&mut self, by: u64) -> u64 {
        self.version = self.version.saturating_add(by);
        self.compacted = self.version;
        self.drop_watches();
        self.version
    }

    /// Ends every watch, after what happened until now.
    pub(crate) fn drop_watches(&mut self) {
        self.epoch += 1;
        self.wake();
    }

    /// Calls for bookmarks on the watches that take them.
    pub(crate) fn call_bookmarks(&mut self) {
        self.calls += 1;
        self.wake();
    }

    fn wake(&self) {
        for table in &self.tables {
            table.news.send_replace(());
        }
    }

    /// Remembers at most so many events per resource from now on.
    pub(crate) fn keep_history(&mut self, events: usize) {
        self.history_limit = events;
    }
}

fn too_old(version: u64, horizon: u64) -> Refusal {
    Refusal::expired(format!("too old resource version: {version} ({horizon})"))
}

/// Finds the resource of an object and makes sure that it has a name, and a namespace if it needs one.
fn checked(value: Value) -> Result<(Resource, Object), Refusal> {
    let Value::Object(mut object) = value else { return Err(Refusal::bad_request("not an object")) };
    let text = |field: &str| object.get(field).and_then(Value::as_str).unwrap_or_default().to_owned();
    let (api_version, kind) = (text("apiVersion"), text("kind"));
    let resource = Resource::of(&api_version, &kind).ok_or_else(|| Refusal::bad_request(format!("no kind {api_version}/{kind}")))?;
    let metadata = child(&mut object, "metadata")?;
    if !metadata.get("name").is_some_and(Value::is_string) {
        return Err(Refusal::bad_request(format!("{kind} without a name")));
    }
    if !resource.namespaced {
        metadata.remove("namespace");
    } else if !metadata.get("namespace").is_some_and(Value::is_string) {
        metadata.insert("namespace".into(), "default".into());
    }
    Ok((resource, object))
}

/// Gives a uid and a creation time to an object that has none.
fn stamp_missing(metadata: &mut Object) {
    metadata.entry("uid").or_insert_with(|| stamp::uid().into());
    metadata.entry("creationTimestamp").or_insert_with(|| stamp::timestamp().into());
}
