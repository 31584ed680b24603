//! Manifest files that change: `sepal run --manifests`.
//!
//! A change is taken when writing has come to rest: no event for a moment, and no file still open for writing. A file that is broken or
//! only half there changes nothing; what it said before holds until it is whole again.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::path::{Path, PathBuf};
use std::time::Duration;

use notify::event::{AccessKind, AccessMode, EventKind, ModifyKind};
use notify::{Event, RecommendedWatcher, RecursiveMode, Watcher};
use serde_json::Value;
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep_until};

use super::manifests::{self, ManifestError, Manifests};
use super::{Complaints, Update};
use crate::config::settings::Asked;
use crate::error_text::error_text;
use crate::rules::inputs::Inputs;

/// Files count as at rest after this long without an event.
const SETTLED: Duration = Duration::from_millis(250);

/// Manifests, read file by file so that a broken one can be told from the others.
#[derive(Debug)]
pub struct Files {
    path: PathBuf,
    asked: Asked,
    good: BTreeMap<PathBuf, Manifests>,
    complaints: Complaints,
    /// Complaints about whole files, so that each is made once.
    broken: BTreeSet<String>,
    /// The KubeProxyConfiguration among the manifests, as it was at the start.
    configuration: Option<Value>,
    /// Its fields that have changed since, and count only after a restart.
    pending: Vec<String>,
}

/// The fields of a KubeProxyConfiguration whose change counts at once: rules follow from them.
const OF_RULES: [&str; 9] =
    ["apiVersion", "kind", "clusterCIDR", "detectLocal", "detectLocalMode", "iptables", "mode", "nodePortAddresses", "hostnameOverride"];

impl Files {
    /// Manifests at a path; nothing is read yet.
    #[must_use]
    pub fn new(path: PathBuf, asked: Asked) -> Self {
        Self {
            path,
            asked,
            good: BTreeMap::new(),
            complaints: Complaints::default(),
            broken: BTreeSet::new(),
            configuration: None,
            pending: Vec::new(),
        }
    }

    /// The KubeProxyConfiguration among the manifests, as it was when they were read for the first time.
    #[must_use]
    pub const fn configuration(&self) -> Option<&Value> {
        self.configuration.as_ref()
    }

    /// Reads everything for the first time.
    ///
    /// # Errors
    /// Any file that cannot be read.
    pub fn read(&mut self) -> Result<Inputs, ManifestError> {
        for file in manifests::files(&self.path)? {
            let mut of_file = Manifests::default();
            of_file.add(&file.display().to_string(), &manifests::read_text(&file)?)?;
            self.good.insert(file, of_file);
        }
        let all = self.all();
        self.configuration = all.configuration().cloned();
        Ok(self.inputs(all))
    }

    /// Reads everything again. What cannot be read is reported, and stays as it was.
    pub fn reread(&mut self) -> Inputs {
        let mut broken = BTreeSet::new();
        match manifests::files(&self.path) {
            Ok(files) => {
                self.good.retain(|file, _| files.contains(file));
                for file in files {
                    match whole(&file) {
                        Ok(of_file) => {
                            self.good.insert(file, of_file);
                        }
                        Err(error) => {
                            broken.insert(error.to_string());
                        }
                    }
                }
            }
            Err(error) => {
                broken.insert(error.to_string());
            }
        }
        for error in broken.difference(&self.broken) {
            tracing::error!("{error}; what it said before still holds");
        }
        self.broken = broken;
        let all = self.all();
        let pending = changed_fields(self.configuration.as_ref(), all.configuration());
        if !pending.is_empty() && pending != self.pending {
            tracing::warn!("KubeProxyConfiguration among the manifests: {} changed, which counts after a restart", pending.join(", "));
        }
        self.pending = pending;
        self.inputs(all)
    }

    fn all(&self) -> Manifests {
        let mut all = Manifests::default();
        self.good.values().for_each(|of_file| all.absorb(of_file.clone()));
        all
    }

    fn inputs(&mut self, all: Manifests) -> Inputs {
        all.complain(&mut self.complaints);
        all.into_inputs(&self.asked)
    }
}

/// The fields that differ between two configurations, but for those that rules follow from.
fn changed_fields(before: Option<&Value>, now: Option<&Value>) -> Vec<String> {
    let fields = |config: Option<&Value>| config.and_then(Value::as_object).cloned().unwrap_or_default();
    let (before, now) = (fields(before), fields(now));
    let names: BTreeSet<&String> = before.keys().chain(now.keys()).collect();
    let counts_later = |name: &&String| before.get(*name) != now.get(*name) && !OF_RULES.contains(&name.as_str());
    names.into_iter().filter(counts_later).cloned().collect()
}

/// Reads one file that may be in the middle of being written. YAML that was cut off is mostly still YAML; but it seldom ends with a newline.
fn whole(file: &Path) -> Result<Manifests, ManifestError> {
    let path = file.display().to_string();
    let text = manifests::read_text(file)?;
    let json = file.extension().is_some_and(|extension| extension == "json");
    if !json && !text.ends_with('\n') {
        return Err(ManifestError::Unfinished(path));
    }
    let mut manifests = Manifests::default();
    manifests.add(&path, &text)?;
    Ok(manifests)
}

/// Watches files for changes.
#[derive(Debug)]
pub struct Watch {
    /// Holds the kernel's watches; they end with it.
    _watcher: RecommendedWatcher,
    events: mpsc::UnboundedReceiver<notify::Result<Event>>,
    /// The one file that is watched, if it is not a folder; what is written to its neighbours does not matter.
    file: Option<PathBuf>,
    /// Files written to since they were last closed.
    writing: HashSet<PathBuf>,
    /// The last event of a change that was not told yet.
    last: Option<Instant>,
}

impl Watch {
    /// Starts to watch the manifests at a path. Set it up before the first read, so that nothing falls in between.
    ///
    /// # Errors
    /// The kernel does not let it.
    pub fn new(path: &Path) -> notify::Result<Self> {
        let (sender, events) = mpsc::unbounded_channel();
        // The receiver only ever goes away together with this watcher.
        let mut watcher = notify::recommended_watcher(move |event| drop(sender.send(event)))?;
        if path.is_dir() {
            watcher.watch(path, RecursiveMode::Recursive)?;
        } else {
            // The folder, not the file: editors and ConfigMaps put a new file in place of the old one.
            let mut folders: HashSet<PathBuf> = HashSet::from([folder_of(path)]);
            folders.extend(path.canonicalize().ok().map(|real| folder_of(&real)));
            for folder in folders {
                watcher.watch(&folder, RecursiveMode::NonRecursive)?;
            }
        }
        let file = (!path.is_dir()).then(|| path.to_owned());
        Ok(Self { _watcher: watcher, events, file, writing: HashSet::new(), last: None })
    }

    /// Waits for the next change to come to rest. Whoever stops waiting misses nothing: the next call tells of it.
    pub async fn changed(&mut self) {
        loop {
            let at_rest = self.last.filter(|_| self.writing.is_empty()).map(|last| last + SETTLED);
            tokio::select! {
                event = self.events.recv() => match event {
                    // Whoever only reads the files puts nothing off.
                    Some(event) => if self.take(event) { self.last = Some(Instant::now()) },
                    // The watcher lives as long as this does, so its channel does not close.
                    None => std::future::pending().await,
                },
                () = sleep_until(at_rest.unwrap_or_else(Instant::now)), if at_rest.is_some() => {
                    self.last = None;
                    return;
                }
            }
        }
    }

    /// Takes note of an event; says whether something may be different now.
    fn take(&mut self, event: notify::Result<Event>) -> bool {
        let event = match event {
            Ok(event) if !event.need_rescan() => event,
            Ok(_) => {
                // Events were lost: nobody knows what is being written.
                self.writing.clear();
                return true;
            }
            Err(error) => {
                tracing::warn!("cannot watch the files for changes: {}", error_text(&error));
                self.writing.clear();
                return true;
            }
        };
        match event.kind {
            EventKind::Modify(ModifyKind::Data(_)) if !self.concerns(&event.paths) => return false,
            EventKind::Modify(ModifyKind::Data(_)) => self.writing.extend(event.paths),
            EventKind::Access(AccessKind::Close(AccessMode::Write)) | EventKind::Remove(_) | EventKind::Modify(ModifyKind::Name(_)) => {
                self.writing.retain(|path| !event.paths.contains(path));
            }
            EventKind::Access(_) => return false,
            _ => {}
        }
        true
    }

    /// Whether data written to these files can be what is watched: by its name, or that of what links lead to.
    fn concerns(&self, paths: &[PathBuf]) -> bool {
        let Some(file) = &self.file else { return true };
        let real = file.canonicalize().ok();
        let names = [file.file_name(), real.as_deref().and_then(Path::file_name)];
        paths.iter().any(|path| names.contains(&path.file_name()))
    }
}

fn folder_of(path: &Path) -> PathBuf {
    match path.parent() {
        Some(folder) if folder != Path::new("") => folder.to_owned(),
        _ => PathBuf::from("."),
    }
}

/// Sends new inputs for as long as somebody takes them.
pub async fn follow(mut files: Files, mut watch: Watch, updates: mpsc::Sender<Update>) {
    loop {
        watch.changed().await;
        // Parsing a large cluster takes a while, and the loop must not wait for it.
        let reread = tokio::task::spawn_blocking(move || {
            let inputs = files.reread();
            (files, inputs)
        });
        let inputs;
        (files, inputs) = match reread.await {
            Ok(done) => done,
            // A panic there is one here: this task is supervised.
            Err(error) => match error.try_into_panic() {
                Ok(panic) => std::panic::resume_unwind(panic),
                Err(_) => return,
            },
        };
        if updates.send(Update::Inputs(Box::new(inputs))).await.is_err() {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::time::timeout;

    use super::*;

    #[tokio::test]
    async fn a_change_outlasts_whoever_stops_waiting_for_it() {
        let folder = tempfile::tempdir().expect("a folder");
        let file = folder.path().join("file");
        let mut watch = Watch::new(&file).expect("it can be watched");
        std::fs::write(&file, "1").expect("writable");
        timeout(SETTLED / 2, watch.changed()).await.expect_err("it has not come to rest");
        timeout(Duration::from_secs(10), watch.changed()).await.expect("it is told of");
        timeout(SETTLED * 2, watch.changed()).await.expect_err("once");
    }

    #[test]
    fn a_configuration_that_counts_after_a_restart_is_named() {
        let config = |text: &str| serde_json::from_str::<Value>(text).expect("JSON");
        let before = config(r#"{"clusterCIDR": "10.0.0.0/8", "conntrack": {"min": 1}}"#);
        let now = config(r#"{"clusterCIDR": "10.1.0.0/16", "conntrack": {"min": 2}, "healthzBindAddress": "127.0.0.1:1"}"#);
        assert_eq!(changed_fields(Some(&before), Some(&now)), ["conntrack", "healthzBindAddress"]);
        assert_eq!(changed_fields(None, Some(&config(r#"{"kind": "KubeProxyConfiguration", "conntrack": {}}"#))), ["conntrack"]);
        assert_eq!(changed_fields(Some(&now), Some(&now)), Vec::<String>::new());
    }
}
