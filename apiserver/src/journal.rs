//! What was asked of the server.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// Requests that are remembered.
const LENGTH: usize = 200_000;

/// A request that was answered. A watch counts as answered when it starts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogEntry {
    /// When it arrived, since 1970.
    pub at: Duration,
    /// HTTP method.
    pub method: String,
    /// Path and query.
    pub path: String,
    /// Status code of the answer.
    pub code: u16,
    /// `Content-Type` as the client sent it; empty if it sent none.
    pub content_type: String,
    /// The body of a patch, as it was sent; empty for other requests.
    pub patch: String,
}

/// Counters and log.
#[derive(Debug, Default)]
pub(crate) struct Journal {
    book: Mutex<Book>,
}

#[derive(Debug, Default)]
struct Book {
    counts: BTreeMap<String, u64>,
    log: VecDeque<LogEntry>,
}

impl Journal {
    fn book(&self) -> MutexGuard<'_, Book> {
        self.book.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Counts a request: `list services`, `patch nodes/status`, `failed`.
    pub(crate) fn count(&self, what: &str) {
        *self.book().counts.entry(what.to_owned()).or_default() += 1;
    }

    pub(crate) fn log(&self, entry: LogEntry) {
        let log = &mut self.book().log;
        if log.len() == LENGTH {
            log.pop_front();
        }
        log.push_back(entry);
    }

    pub(crate) fn counts(&self) -> BTreeMap<String, u64> {
        self.book().counts.clone()
    }

    pub(crate) fn reset(&self) {
        self.book().counts.clear();
    }

    pub(crate) fn entries(&self) -> Vec<LogEntry> {
        self.book().log.iter().cloned().collect()
    }
}
