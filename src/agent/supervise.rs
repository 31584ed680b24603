//! Keeps a part of the daemon running: one that ends or panics is started again after a while, and takes no other along.

use std::any::Any;
use std::convert::Infallible;
use std::time::Duration;

use tokio::task::{JoinError, spawn_local};
use tokio::time::{Instant, sleep};

use super::events::{Event, Events, Regarding};
use super::readiness::{Part, Readiness};

/// The first wait before a part is started again; it doubles up to the longest.
const FIRST_WAIT: Duration = Duration::from_secs(1);
const LONGEST_WAIT: Duration = Duration::from_secs(60);
/// A part that ran for so long was well: the next wait is the first one again.
const WELL: Duration = Duration::from_secs(300);

/// A part of the daemon, for whoever has to tell of it.
#[derive(Clone, Debug)]
pub struct Supervised {
    /// Its name, for people.
    pub name: &'static str,
    /// What is not ready while it does not run.
    pub parts: Vec<Part>,
    /// The table that says so.
    pub readiness: Readiness,
    /// Where it is told of.
    pub events: Events,
}

/// Runs a part for good; has to be called within a `LocalSet`.
pub async fn supervise<F>(part: Supervised, mut start: impl FnMut() -> F) -> Infallible
where
    F: Future<Output = anyhow::Result<()>> + 'static,
{
    let mut wait = FIRST_WAIT;
    loop {
        let started = Instant::now();
        let why = match spawn_local(start()).await {
            Ok(Ok(())) => "it ended by itself".to_owned(),
            Ok(Err(error)) => format!("{error:#}"),
            Err(error) => last_words(error),
        };
        if started.elapsed() >= WELL {
            wait = FIRST_WAIT;
        }
        let note = format!("the {} came to a bad end: {why}; it is started again in {} s", part.name, wait.as_secs());
        tracing::error!("{note}");
        for of_it in &part.parts {
            part.readiness.not_ready(*of_it, &note);
        }
        part.events.tell(Event { regarding: Regarding::Node, reason: "PartFailed", action: "RestartPart", warning: true, note });
        sleep(wait).await;
        wait = (wait * 2).min(LONGEST_WAIT);
    }
}

/// What a panic said.
fn last_words(error: JoinError) -> String {
    let text = |payload: &(dyn Any + Send)| {
        let text = payload.downcast_ref::<String>().map(String::as_str).or_else(|| payload.downcast_ref::<&str>().copied());
        text.unwrap_or("no reason given").to_owned()
    };
    match error.try_into_panic() {
        Ok(payload) => format!("a defect of this program, please report it: {}", text(&*payload)),
        Err(error) => error.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;
    use std::rc::Rc;

    use tokio::task::LocalSet;
    use tokio::time::timeout;

    use super::*;
    use crate::agent::readiness::show;
    use crate::cluster::Family;

    #[tokio::test(start_paused = true)]
    async fn a_part_that_fails_is_started_again_ever_later() {
        let readiness = Readiness::new([Part::Links, Part::Proxy(Family::V4)]);
        let part = Supervised { name: "pod network", parts: vec![Part::Links], readiness: readiness.clone(), events: Events::none() };
        let starts = Rc::new(RefCell::new(Vec::new()));
        let begin = Instant::now();
        let local = LocalSet::new();
        let supervised = supervise(part, || {
            let (starts, readiness) = (Rc::clone(&starts), readiness.clone());
            async move {
                starts.borrow_mut().push(begin.elapsed().as_secs());
                let number = starts.borrow().len();
                readiness.ready(Part::Links);
                match number {
                    1 => panic!("start {number}"),
                    2 => anyhow::bail!("no"),
                    // It runs for a while before it fails, and is well.
                    4 => sleep(WELL).await,
                    _ => {}
                }
                Ok(())
            }
        });
        let ended = local.run_until(timeout(Duration::from_secs(320), supervised)).await;
        assert!(ended.is_err(), "it runs for good");
        assert_eq!(*starts.borrow(), [0, 1, 3, 7, 308, 310, 314]);
        let shown = show(&readiness.states());
        assert!(
            shown.contains("[-]links failed: the pod network came to a bad end: it ended by itself; it is started again in 8 s"),
            "{shown}"
        );
        assert!(shown.contains("[-]proxy-ipv4 not yet"), "others are none of its business: {shown}");
    }

    #[tokio::test]
    async fn a_panic_is_told_as_what_it_is() {
        let local = LocalSet::new();
        let panicked = local.run_until(async { spawn_local(async { panic!("index 7 of 3") }).await }).await;
        let error = panicked.map(|(): ()| ()).expect_err("it panicked");
        assert_eq!(last_words(error), "a defect of this program, please report it: index 7 of 3");
    }
}
