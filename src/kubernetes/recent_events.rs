//! What has happened lately, for people to read: the last few dozen things, and a number that moves with each.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};

use jiff::Timestamp;
use serde::Serialize;
use tokio::sync::watch;

/// So many are kept.
const KEPT: usize = 100;
/// Bytes of a text.
const LENGTH: usize = 400;

/// Something that happened.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Happening {
    /// When.
    pub at: Timestamp,
    /// What, in one word in camel case: the reason of the Event that tells of it, or `RulesWritten`.
    pub what: &'static str,
    /// Something is wrong.
    pub warning: bool,
    /// In words.
    pub text: String,
}

/// All that happened lately; shared.
#[derive(Clone, Debug)]
pub struct Happenings {
    kept: Arc<Mutex<VecDeque<Happening>>>,
    moved: Arc<watch::Sender<u64>>,
}

impl Default for Happenings {
    fn default() -> Self {
        Self { kept: Arc::default(), moved: Arc::new(watch::Sender::new(0)) }
    }
}

impl Happenings {
    /// Something happened now.
    pub fn note(&self, what: &'static str, warning: bool, text: &str) {
        let mut end = LENGTH.min(text.len());
        while !text.is_char_boundary(end) {
            end -= 1;
        }
        let happening = Happening { at: Timestamp::now(), what, warning, text: text[..end].to_owned() };
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        if kept.len() == KEPT {
            kept.pop_back();
        }
        kept.push_front(happening);
        drop(kept);
        self.moved.send_modify(|moved| *moved = moved.wrapping_add(1));
    }

    /// The latest first.
    #[must_use]
    pub fn list(&self) -> Vec<Happening> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner).iter().cloned().collect()
    }

    /// Tells when there is something new.
    #[must_use]
    pub fn subscribe(&self) -> watch::Receiver<u64> {
        self.moved.subscribe()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_latest_are_kept_and_long_texts_are_cut() {
        let happenings = Happenings::default();
        let mut moved = happenings.subscribe();
        for number in 0..KEPT + 5 {
            happenings.note("RulesWritten", false, &number.to_string());
        }
        happenings.note("PartFailed", true, &"\u{e9}".repeat(LENGTH));
        assert!(moved.has_changed().expect("it is there"));
        assert_eq!(*moved.borrow_and_update(), 106);
        let list = happenings.list();
        assert_eq!((list.len(), list[0].what, list[0].text.len()), (KEPT, "PartFailed", LENGTH));
        assert_eq!((list[1].text.as_str(), list[KEPT - 1].text.as_str()), ("104", "6"));
    }
}
