//! Watches a file or a folder and reports changes once writing has stopped.

use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::time::Duration;

use notify::event::{AccessKind, AccessMode, EventKind, ModifyKind};
use notify::{Event, RecommendedWatcher, RecursiveMode, Watcher};
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep_until};

use crate::error_text::error_text;

/// Watches files for changes.
#[derive(Debug)]
pub struct Watch {
    /// Holds the kernel's watches; they end with it. `None` if the kernel does not allow them.
    _watcher: Option<RecommendedWatcher>,
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
        Ok(Self { _watcher: Some(watcher), events, file, writing: HashSet::new(), last: None })
    }

    /// Starts to watch a file or folder. If that fails, logs a warning, and the watch never reports a change.
    #[must_use]
    pub fn new_or_warn(path: &Path) -> Self {
        Self::new(path).unwrap_or_else(|error| {
            tracing::warn!("cannot watch {}, so changes of it are not noticed: {}", path.display(), error_text(&error));
            let (_, events) = mpsc::unbounded_channel();
            Self { _watcher: None, events, file: None, writing: HashSet::new(), last: None }
        })
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

/// Files count as at rest after this long without an event.
const SETTLED: Duration = Duration::from_millis(250);

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
}
