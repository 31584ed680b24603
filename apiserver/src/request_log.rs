//! The log and the counters of requests.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use crate::connections::Connection;

/// The log keeps this many requests.
const MAX_ENTRIES: usize = 200_000;

/// One request in the log. It is added when its response starts, so a watch is in the log while it is open.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogEntry {
    /// When the request arrived: time since 1970.
    pub at: Duration,
    /// HTTP method.
    pub method: String,
    /// Path and query.
    pub path: String,
    /// Status code of the response; 0 if the connection was broken instead.
    pub code: u16,
    /// `Content-Type`; empty if the client sent none.
    pub content_type: String,
    /// The body of a patch; empty for other requests.
    pub patch: String,
    /// `HTTP/1.1` or `HTTP/2.0`.
    pub http: String,
    /// Name or address of the server that the client sent in `Host` or `:authority`.
    pub host: String,
    /// `User-Agent`.
    pub user_agent: String,
    /// `Authorization`.
    pub authorization: String,
    /// `Accept-Encoding`.
    pub accept_encoding: String,
    /// The connection of the request.
    pub connection: Arc<Connection>,
}

/// Bytes of response bodies.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct BytesSent {
    /// Bytes before compression.
    pub plain: u64,
    /// Bytes after compression.
    pub sent: u64,
}

/// The log and the counters of requests.
#[derive(Debug, Default)]
pub(crate) struct RequestLog {
    records: Mutex<Records>,
}

#[derive(Debug, Default)]
struct Records {
    counts: BTreeMap<String, u64>,
    sent: BTreeMap<String, BytesSent>,
    log: VecDeque<LogEntry>,
}

impl RequestLog {
    fn records(&self) -> MutexGuard<'_, Records> {
        self.records.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Counts a request of a kind, such as `list services`, `patch nodes/status` or `failed`.
    pub(crate) fn count(&self, kind: &str) {
        *self.records().counts.entry(kind.to_owned()).or_default() += 1;
    }

    /// Adds bytes of a response body to the sum of a kind of requests.
    pub(crate) fn add_sent(&self, kind: &str, bytes: BytesSent) {
        let mut records = self.records();
        let sum = records.sent.entry(kind.to_owned()).or_default();
        *sum = BytesSent { plain: sum.plain + bytes.plain, sent: sum.sent + bytes.sent };
    }

    pub(crate) fn sent(&self, kind: &str) -> BytesSent {
        self.records().sent.get(kind).copied().unwrap_or_default()
    }

    /// Adds a request to the log. The oldest entry is removed if the log is full.
    pub(crate) fn add(&self, entry: LogEntry) {
        let log = &mut self.records().log;
        if log.len() == MAX_ENTRIES {
            log.pop_front();
        }
        log.push_back(entry);
    }

    pub(crate) fn counts(&self) -> BTreeMap<String, u64> {
        self.records().counts.clone()
    }

    /// Sets the counters to zero. The log is kept.
    pub(crate) fn reset(&self) {
        let mut records = self.records();
        records.counts.clear();
        records.sent.clear();
    }

    pub(crate) fn entries(&self) -> Vec<LogEntry> {
        self.records().log.iter().cloned().collect()
    }
}
