//! What was asked of the server.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use crate::connections::Connection;

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
    /// `HTTP/1.1` or `HTTP/2.0`.
    pub http: String,
    /// Name or address of the server, as the client wrote it in `Host` or `:authority`.
    pub host: String,
    /// `User-Agent`.
    pub user_agent: String,
    /// `Authorization`.
    pub authorization: String,
    /// `Accept-Encoding`.
    pub accept_encoding: String,
    /// The connection it came through.
    pub connection: Arc<Connection>,
}

/// Bytes of bodies that were sent.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Sent {
    /// Before they were compressed.
    pub plain: u64,
    /// As they were sent.
    pub sent: u64,
}

/// Counters and log.
#[derive(Debug, Default)]
pub(crate) struct Journal {
    book: Mutex<Book>,
}

#[derive(Debug, Default)]
struct Book {
    counts: BTreeMap<String, u64>,
    sent: BTreeMap<String, Sent>,
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

    /// Adds bytes of a body that were sent.
    pub(crate) fn add_sent(&self, sort: &str, more: Sent) {
        let mut book = self.book();
        let sum = book.sent.entry(sort.to_owned()).or_default();
        *sum = Sent { plain: sum.plain + more.plain, sent: sum.sent + more.sent };
    }

    pub(crate) fn sent(&self, sort: &str) -> Sent {
        self.book().sent.get(sort).copied().unwrap_or_default()
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
        let mut book = self.book();
        book.counts.clear();
        book.sent.clear();
    }

    pub(crate) fn entries(&self) -> Vec<LogEntry> {
        self.book().log.iter().cloned().collect()
    }
}
