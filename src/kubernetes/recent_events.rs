//! The latest Events and rule changes, for the status page.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};

use jiff::Timestamp;
use serde::Serialize;
use tokio::sync::watch;

/// The number of Events that are kept.
const CAPACITY: usize = 100;
/// The longest text in bytes.
const MAX_TEXT: usize = 400;

/// One Event, or one change of the rules.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct RecentEvent {
    /// The time.
    pub at: Timestamp,
    /// The reason of the Event, or `RulesWritten`.
    pub what: &'static str,
    /// True for a warning.
    pub warning: bool,
    /// What happened.
    pub text: String,
}

/// The latest Events. Clones share them.
#[derive(Clone, Debug)]
pub struct RecentEvents {
    events: Arc<Mutex<VecDeque<RecentEvent>>>,
    /// Counts the Events, so that subscribers see each one.
    count: Arc<watch::Sender<u64>>,
}

impl Default for RecentEvents {
    fn default() -> Self {
        Self { events: Arc::default(), count: Arc::new(watch::Sender::new(0)) }
    }
}

impl RecentEvents {
    /// Stores an Event that happens now. A long text is cut.
    pub fn note(&self, what: &'static str, warning: bool, text: &str) {
        let mut end = MAX_TEXT.min(text.len());
        while !text.is_char_boundary(end) {
            end -= 1;
        }
        let event = RecentEvent { at: Timestamp::now(), what, warning, text: text[..end].to_owned() };
        let mut events = self.events.lock().unwrap_or_else(PoisonError::into_inner);
        if events.len() == CAPACITY {
            events.pop_back();
        }
        events.push_front(event);
        drop(events);
        self.count.send_modify(|count| *count = count.wrapping_add(1));
    }

    /// All stored Events, the latest first.
    #[must_use]
    pub fn list(&self) -> Vec<RecentEvent> {
        self.events.lock().unwrap_or_else(PoisonError::into_inner).iter().cloned().collect()
    }

    /// Signals each new Event.
    #[must_use]
    pub fn subscribe(&self) -> watch::Receiver<u64> {
        self.count.subscribe()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_latest_are_kept_and_long_texts_are_cut() {
        let recent = RecentEvents::default();
        let mut count = recent.subscribe();
        for number in 0..CAPACITY + 5 {
            recent.note("RulesWritten", false, &number.to_string());
        }
        recent.note("PartFailed", true, &"\u{e9}".repeat(MAX_TEXT));
        assert!(count.has_changed().expect("the sender lives"));
        assert_eq!(*count.borrow_and_update(), 106);
        let list = recent.list();
        assert_eq!((list.len(), list[0].what, list[0].text.len()), (CAPACITY, "PartFailed", MAX_TEXT));
        assert_eq!((list[1].text.as_str(), list[CAPACITY - 1].text.as_str()), ("104", "6"));
    }
}
