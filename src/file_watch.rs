//! Watches a file or a folder and reports changes once writing has stopped.

use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::time::Duration;

use notify::event::{AccessKind, AccessMode, EventKind, ModifyKind};
use notify::{Event, RecommendedWatcher, RecursiveMode, Watcher};
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep_until};

use crate::error_text::error_text;

/// A watch on a file or a folder.
#[derive(Debug)]
pub struct FileWatch {
    /// Keeps the kernel's watches open.
    _watcher: Option<RecommendedWatcher>,
    events: mpsc::UnboundedReceiver<notify::Result<Event>>,
    /// The watched file; `None` if a folder is watched. Writes to other files in its folder are ignored.
    file: Option<PathBuf>,
    /// Files that another program is writing: they were written and not closed yet.
    writing: HashSet<PathBuf>,
    /// Time of the last event of a change that was not reported yet.
    last: Option<Instant>,
}

impl FileWatch {
    /// Starts to watch a file or a folder. Call it before the first read, so that no change is missed.
    ///
    /// # Errors
    /// The kernel refuses the watch.
    pub fn new(path: &Path) -> notify::Result<Self> {
        let (sender, events) = mpsc::unbounded_channel();
        // Sending fails only while this value is dropped.
        let mut watcher = notify::recommended_watcher(move |event| drop(sender.send(event)))?;
        if path.is_dir() {
            watcher.watch(path, RecursiveMode::Recursive)?;
        } else {
            // Watch the folder, not the file: editors and ConfigMaps replace the old file by a new one.
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
    pub(crate) fn new_or_warn(path: &Path) -> Self {
        Self::new(path).unwrap_or_else(|error| {
            tracing::warn!("cannot watch {}, so changes to it are not noticed: {}", path.display(), error_text(&error));
            let (_, events) = mpsc::unbounded_channel();
            Self { _watcher: None, events, file: None, writing: HashSet::new(), last: None }
        })
    }

    /// Waits until a change is complete: no event came for a while and no file is open for writing. Cancelling loses nothing: the next call
    /// reports the change.
    pub async fn changed(&mut self) {
        loop {
            let complete_at = self.last.filter(|_| self.writing.is_empty()).map(|last| last + QUIET);
            tokio::select! {
                event = self.events.recv() => match event {
                    // Events of programs that only read the files do not delay the report.
                    Some(event) => if self.record(event) { self.last = Some(Instant::now()) },
                    // The channel stays open as long as the watcher lives, which is as long as `self`.
                    None => std::future::pending().await,
                },
                () = sleep_until(complete_at.unwrap_or_else(Instant::now)), if complete_at.is_some() => {
                    self.last = None;
                    return;
                }
            }
        }
    }

    /// Records an event. Returns true if a file may have changed.
    fn record(&mut self, event: notify::Result<Event>) -> bool {
        let event = match event {
            Ok(event) if !event.need_rescan() => event,
            Ok(_) => {
                // Events were lost, so the set of files being written is unknown.
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

    /// Returns true if one of these files has the name of the watched file, or the name of the file that its symbolic links point to.
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

/// A change is complete after this long without an event.
const QUIET: Duration = Duration::from_millis(250);

#[cfg(test)]
mod tests {
    use tokio::time::timeout;

    use super::*;

    #[tokio::test]
    async fn a_change_is_reported_after_a_cancelled_wait() {
        let folder = tempfile::tempdir().expect("a folder");
        let file = folder.path().join("file");
        let mut watch = FileWatch::new(&file).expect("it can be watched");
        std::fs::write(&file, "1").expect("writable");
        timeout(QUIET / 2, watch.changed()).await.expect_err("the change is not complete yet");
        timeout(Duration::from_secs(10), watch.changed()).await.expect("it is reported");
        timeout(QUIET * 2, watch.changed()).await.expect_err("once");
    }
}
