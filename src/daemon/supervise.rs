//! Keeps the parts of the daemon running. A part that ends or panics is restarted after a wait. The other parts go on.

use std::collections::HashMap;
use std::convert::Infallible;
use std::time::Duration;

use anyhow::anyhow;
use backon::{BackoffBuilder, ExponentialBackoff, ExponentialBuilder};
use tokio::task::{Id, JoinSet, spawn_local};
use tokio::time::{Instant, sleep};

use crate::error_text::{error_text, task_failure};
use crate::kubernetes::events::{Event, Events, Regarding};
use crate::observe::readiness::{Part, Readiness};

/// The first wait before a part is restarted. Each wait doubles, up to the longest.
const FIRST_WAIT: Duration = Duration::from_secs(1);
const LONGEST_WAIT: Duration = Duration::from_secs(60);
/// After a part has run for this time, the next wait is the first one again.
const WELL: Duration = Duration::from_secs(300);
/// A restarted part counts as working once it has run for this time. Until then `/livez` reports it as failed.
const PROVEN: Duration = Duration::from_secs(10);

/// A part of the daemon, and where it reports failures.
#[derive(Clone, Debug)]
pub struct Supervised {
    /// Its name, for logs and Events.
    pub name: &'static str,
    /// The entries of the readiness table that are not ready while it does not run.
    pub parts: Vec<Part>,
    /// The table for `/readyz` and `/livez`.
    pub readiness: Readiness,
    /// Where Events go.
    pub events: Events,
}

/// Runs a part forever, and restarts it when it fails. Has to be called within a `LocalSet`.
pub(crate) async fn supervise<F>(part: Supervised, mut start: impl FnMut() -> F) -> Infallible
where
    F: Future<Output = anyhow::Result<()>> + 'static,
{
    let mut waits = backoff();
    loop {
        let started = Instant::now();
        let mut task = spawn_local(start());
        let ended = tokio::select! {
            ended = &mut task => ended,
            () = sleep(PROVEN) => {
                part.readiness.liveness().works(part.name);
                task.await
            }
        };
        let why = match ended {
            Ok(Ok(())) => "it ended".to_owned(),
            Ok(Err(error)) => error_text(error.as_ref()),
            Err(error) => task_failure(error),
        };
        if started.elapsed() >= WELL {
            waits = backoff();
        }
        let wait = waits.next().unwrap_or(LONGEST_WAIT);
        let note = format!("{} failed: {why}, restarted in {} s", part.name, wait.as_secs());
        tracing::error!("{note}");
        part.readiness.liveness().failed(part.name, &note);
        for entry in &part.parts {
            part.readiness.not_ready(*entry, &note);
        }
        part.events.tell(Event { regarding: Regarding::Node, reason: "PartFailed", action: "RestartPart", warning: true, note });
        sleep(wait).await;
    }
}

/// The waits before restarts.
fn backoff() -> ExponentialBackoff {
    ExponentialBuilder::new().with_min_delay(FIRST_WAIT).with_max_delay(LONGEST_WAIT).with_factor(2.0).without_max_times().build()
}

/// The tasks of a part, each with a name. Dropping this ends them. If one of them ends, the part has failed.
#[derive(Debug, Default)]
pub struct Tasks {
    tasks: JoinSet<()>,
    names: HashMap<Id, &'static str>,
}

impl Tasks {
    /// Starts a task.
    pub fn spawn(&mut self, name: &'static str, task: impl Future<Output = ()> + Send + 'static) {
        let handle = self.tasks.spawn(task);
        self.names.insert(handle.id(), name);
    }

    /// Starts a task on this thread. Has to be called within a `LocalSet`.
    pub(crate) fn spawn_local(&mut self, name: &'static str, task: impl Future<Output = ()> + 'static) {
        let handle = self.tasks.spawn_local(task);
        self.names.insert(handle.id(), name);
    }

    /// Waits until a task ends. The error has its name, and the text of a panic.
    pub async fn ended(&mut self) -> anyhow::Error {
        match self.tasks.join_next_with_id().await {
            Some(Ok((id, ()))) => anyhow!("{} ended", self.name(id)),
            Some(Err(error)) => anyhow!("{} failed: {}", self.name(error.id()), task_failure(error)),
            None => std::future::pending().await,
        }
    }

    fn name(&self, id: Id) -> &'static str {
        self.names.get(&id).copied().unwrap_or("a task")
    }
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;
    use std::rc::Rc;

    use tokio::task::LocalSet;
    use tokio::time::timeout;

    use super::*;
    use crate::cluster::Family;
    use crate::observe::readiness::show;

    #[tokio::test(start_paused = true)]
    async fn a_part_that_fails_is_restarted_after_waits_that_grow() {
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
                    // It runs long enough to reset the wait.
                    4 => sleep(WELL).await,
                    _ => {}
                }
                Ok(())
            }
        });
        let ended = local.run_until(timeout(Duration::from_secs(320), supervised)).await;
        assert!(ended.is_err(), "supervise does not end");
        assert_eq!(*starts.borrow(), [0, 1, 3, 7, 308, 310, 314]);
        let shown = show(&readiness.states());
        assert!(shown.contains("[-]links failed: pod network failed: it ended, restarted in 8 s"), "{shown}");
        assert!(shown.contains("[-]proxy-ipv4 not yet"), "other entries stay as they are: {shown}");
    }

    #[tokio::test(start_paused = true)]
    async fn a_part_counts_as_failed_from_its_panic_until_it_has_run_again() {
        let readiness = Readiness::new([]);
        let part = Supervised { name: "event sender", parts: Vec::new(), readiness: readiness.clone(), events: Events::none() };
        let mut starts = 0;
        let supervised = supervise(part, || {
            starts += 1;
            let number = starts;
            async move {
                sleep(Duration::from_secs(30)).await;
                assert!(number > 1, "index 7 of 3");
                std::future::pending().await
            }
        });
        let local = LocalSet::new();
        let watching = async {
            let problems = async |seconds| {
                sleep(Duration::from_secs(seconds)).await;
                readiness.liveness().problems()
            };
            assert_eq!(problems(29).await, Vec::<String>::new());
            let failed = "event sender failed: index 7 of 3 (this is a defect of sepal, please report it), restarted in 1 s";
            // It is restarted a second later, and has to run for ten seconds.
            assert_eq!(problems(2).await, [failed]);
            assert_eq!(problems(9).await, [failed]);
            assert_eq!(problems(2).await, Vec::<String>::new());
        };
        local
            .run_until(async {
                tokio::select! {
                    never = supervised => match never {},
                    () = watching => {}
                }
            })
            .await;
    }

    #[tokio::test(start_paused = true)]
    async fn a_part_that_fails_again_after_each_restart_stays_failed() {
        let readiness = Readiness::new([]);
        let part = Supervised { name: "pod network", parts: Vec::new(), readiness: readiness.clone(), events: Events::none() };
        let supervised = supervise(part, || async {
            sleep(Duration::from_secs(1)).await;
            panic!("again")
        });
        let failed = async {
            sleep(Duration::from_secs(2)).await;
            for _ in 0..600 {
                assert_eq!(readiness.liveness().problems().len(), 1);
                sleep(Duration::from_secs(1)).await;
            }
        };
        LocalSet::new()
            .run_until(async {
                tokio::select! {
                    never = supervised => match never {},
                    () = failed => {}
                }
            })
            .await;
    }

    #[tokio::test]
    async fn the_error_names_the_task_that_ended() {
        let mut tasks = Tasks::default();
        tasks.spawn("watch", std::future::pending());
        tasks.spawn("conntrack cleanup", async { panic!("index 7 of 3") });
        let error = tasks.ended().await.to_string();
        assert_eq!(error, "conntrack cleanup failed: index 7 of 3 (this is a defect of sepal, please report it)");
        tasks.spawn("counters", async {});
        assert_eq!(tasks.ended().await.to_string(), "counters ended");
    }
}
