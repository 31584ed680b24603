//! When the sync loop writes and when it audits. The clock is paused and moves only while every task waits.

use std::sync::Arc;
use std::time::Duration;

use serde_json::json;
use tokio::sync::mpsc::{Sender, channel};
use tokio::time::{Instant, sleep, sleep_until};

use sepal::cluster::Family;
use sepal::kubernetes::events::Events;
use sepal::kubernetes::{self, ChangeTime, Kind, ObjectId, convert};
use sepal::netlink::record::FakeHost;
use sepal::observe::health::SharedHealth;
use sepal::proxy::sync::proxy_loop::ProxyLoop;
use sepal::proxy::sync::report::Report;
use sepal::proxy::sync::update::Update;
use sepal::table::plan::Variant;

use crate::common;
use crate::plain;
use crate::simulator::{Memory, Times};

const SYNC_PERIOD: Duration = Duration::from_secs(30);

fn ms(milliseconds: u64) -> Duration {
    Duration::from_millis(milliseconds)
}

/// The test's side of the running loop.
struct Driver<'a> {
    memory: &'a Memory,
    updates: Sender<Update>,
}

impl Driver<'_> {
    /// Gives this endpoint to one of the 50 Services.
    async fn change(&self, service: usize, ip: &str) {
        let object = plain::slice(&format!("s{service}"), "IPv4", &[ip]);
        let converted = convert::object(&ObjectId::of(Kind::EndpointSlice, &object), &object);
        self.updates
            .send(Update::Cluster(kubernetes::ClusterUpdate::Change(converted.change, ChangeTime::now(converted.trigger))))
            .await
            .expect("taken");
    }

    /// The runs of iptables-restore since the last reset.
    fn runs(&self) -> Vec<Times> {
        self.memory.times.borrow().clone()
    }

    fn holds(&self, text: &str) -> bool {
        self.memory.tables.borrow().save().contains(text)
    }
}

/// Runs a test beside a loop that has finished its first sync.
fn beside(memory: &Memory, min_sync_period: Option<Duration>, test: impl AsyncFnOnce(&Driver<'_>)) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().expect("a runtime");
    runtime.block_on(async {
        let services = (0..50).map(|i| {
            let ip = format!("10.61.0.{i}");
            let service = plain::service(&format!("s{i}"), &json!({"clusterIP": ip, "clusterIPs": [ip], "ipFamilies": ["IPv4"]}));
            format!("{service}\n{}\n", plain::slice(&format!("s{i}"), "IPv4", &[&format!("10.61.1.{i}")]))
        });
        let mut inputs = common::inputs(&services.collect::<String>()).expect("well formed");
        inputs.settings.min_sync_period = min_sync_period;
        inputs.settings.sync_period = SYNC_PERIOD;
        let report = Report::new(Arc::default(), SharedHealth::new(SYNC_PERIOD), Events::none());
        let proxy = ProxyLoop::new(memory, FakeHost::default(), true, inputs, report).with_family(Family::V4, None);
        let (updates, receiver) = channel(16);
        for kind in [Kind::Service, Kind::EndpointSlice, Kind::Node] {
            updates.send(Update::Cluster(kubernetes::ClusterUpdate::Complete(kind))).await.expect("taken");
        }
        let driver = Driver { memory, updates };
        let script = async move {
            sleep(Duration::from_secs(20)).await;
            assert!(driver.holds("10.61.1.49:8080"), "the start is written");
            driver.memory.times.borrow_mut().clear();
            test(&driver).await;
        };
        tokio::join!(proxy.run(receiver), script);
    });
}

fn slow(variant: Variant) -> Memory {
    let memory = Memory::new(variant);
    memory.takes.set(ms(100));
    memory
}

#[test]
fn the_first_change_after_quiet_is_written_at_once() {
    let memory = slow(Variant::Nft);
    beside(&memory, None, async |driver| {
        let now = Instant::now();
        driver.change(0, "10.61.2.1").await;
        sleep(ms(1000)).await;
        assert_eq!(driver.runs(), [(now, now + ms(100))]);
        assert!(driver.holds("10.61.2.1:8080"));
    });
}

#[test]
fn what_changes_during_a_run_is_gathered_for_the_next() {
    let memory = slow(Variant::Legacy);
    beside(&memory, None, async |driver| {
        let start = Instant::now();
        for i in 0..8 {
            driver.change(i, "10.61.2.1").await;
            sleep(ms(10)).await;
        }
        sleep(ms(1000)).await;
        let runs = driver.runs();
        assert_eq!(runs.len(), 2, "{runs:?}");
        assert_eq!(runs[0].0, start);
        assert_eq!(runs[1].0, runs[0].1 + ms(50), "after half of the time that the first took");
        let saved = driver.memory.tables.borrow().save();
        assert_eq!(saved.matches("--to-destination 10.61.2.1:8080").count(), 8);
    });
}

#[test]
fn a_configured_pause_counts_from_the_end_of_a_run() {
    let memory = slow(Variant::Nft);
    beside(&memory, Some(Duration::from_secs(5)), async |driver| {
        let start = Instant::now();
        for (i, at) in [0, 50, 3000].into_iter().enumerate() {
            sleep_until(start + ms(at)).await;
            driver.change(i, "10.61.2.1").await;
        }
        sleep(Duration::from_secs(20)).await;
        assert_eq!(driver.runs(), [(start, start + ms(100)), (start + ms(5100), start + ms(5200))]);
        // After a quiet time a change is written at once.
        let now = Instant::now();
        driver.change(3, "10.61.2.1").await;
        sleep(ms(1000)).await;
        assert_eq!(driver.runs()[2].0, now);
    });
}

#[test]
fn fifty_changes_a_second_starve_nothing() {
    let memory = slow(Variant::Nft);
    beside(&memory, None, async |driver| {
        let mut late = 0;
        for i in 0..1000 {
            driver.change(i % 50, &format!("10.61.{}.{}", 2 + i / 250, i % 250)).await;
            sleep(ms(20)).await;
            // A change of a quarter of a second ago is written: it waited for one run and was in the next.
            if let Some(earlier) = i.checked_sub(13) {
                late += usize::from(!driver.holds(&format!("10.61.{}.{}:8080", 2 + earlier / 250, earlier % 250)));
            }
        }
        assert_eq!(late, 0, "changes that were not written in time");
        let runs = driver.runs();
        let longest = runs.windows(2).map(|pair| pair[1].0 - pair[0].1).max();
        assert!(longest <= Some(ms(70)), "a pause of {longest:?}");
        assert!((120..=140).contains(&runs.len()), "{} runs in 20 s", runs.len());
    });
}

/// Another program deletes a jump or a rule. On nft the generation counter shows it within two seconds, on legacy an audit every sync
/// period.
fn a_change_by_others_is_put_right(variant: Variant, within: Duration) {
    for (table, chain) in [("nat", "PREROUTING"), ("filter", "FORWARD"), ("nat", "KUBE-MARK-MASQ")] {
        let memory = Memory::new(variant);
        memory.generation.set((variant == Variant::Nft).then_some(7));
        beside(&memory, None, async |driver| {
            let count = |memory: &Memory| memory.tables.borrow().tables[table][chain].len();
            let before = count(driver.memory);
            driver.memory.meddle(|tables| tables.tables.get_mut(table).expect("a table").get_mut(chain).expect("a chain").clear());
            sleep(within).await;
            assert_eq!(count(driver.memory), before, "{variant} {table} {chain}");
        });
    }
}

#[test]
fn what_others_change_is_put_right() {
    a_change_by_others_is_put_right(Variant::Nft, ms(1100));
    a_change_by_others_is_put_right(Variant::Legacy, SYNC_PERIOD + ms(100));
}

/// While the generation counter shows no change by another program, the tables are not read. Our own changes do not count.
#[test]
fn undisturbed_tables_are_not_read() {
    let memory = Memory::new(Variant::Nft);
    memory.generation.set(Some(u32::MAX - 3));
    beside(&memory, None, async |driver| {
        let before = driver.memory.saves.get();
        for i in 0..40 {
            driver.change(i, "10.61.2.1").await;
            sleep(SYNC_PERIOD).await;
        }
        assert_eq!(driver.memory.saves.get(), before);
        sleep(Duration::from_secs(3600)).await;
        assert_eq!(driver.memory.saves.get(), before + 2, "once an hour all the same");
    });
}
