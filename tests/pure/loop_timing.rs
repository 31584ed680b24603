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
use sepal::proxy::settings::ProxySettings;
use sepal::proxy::sync::proxy_loop::ProxyLoop;
use sepal::proxy::sync::report::Report;
use sepal::proxy::sync::update::Update;
use sepal::table::plan::Variant;

use crate::common;
use crate::plain;
use crate::simulator::{BothFamilies, Memory, Times};

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
fn beside(memory: &Memory, settings: ProxySettings, test: impl AsyncFnOnce(&Driver<'_>)) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().expect("a runtime");
    runtime.block_on(async {
        let services = (0..50).map(|i| {
            let ip = format!("10.61.0.{i}");
            let service = plain::service(&format!("s{i}"), &json!({"clusterIP": ip, "clusterIPs": [ip], "ipFamilies": ["IPv4"]}));
            format!("{service}\n{}\n", plain::slice(&format!("s{i}"), "IPv4", &[&format!("10.61.1.{i}")]))
        });
        let mut inputs = common::inputs(&services.collect::<String>()).expect("well formed");
        inputs.settings = ProxySettings { sync_period: SYNC_PERIOD, ..settings };
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

/// The default settings with this share of a core.
fn share(percent: u8) -> ProxySettings {
    ProxySettings { sync_share: percent.to_string().parse().expect("1-100"), ..ProxySettings::default() }
}

fn slow(variant: Variant) -> Memory {
    let memory = Memory::new(variant);
    memory.takes.set(ms(100));
    memory
}

#[test]
fn the_first_change_after_quiet_is_written_at_once() {
    let memory = slow(Variant::Nft);
    beside(&memory, ProxySettings::default(), async |driver| {
        let now = Instant::now();
        driver.change(0, "10.61.2.1").await;
        sleep(ms(1000)).await;
        assert_eq!(driver.runs(), [(now, now + ms(100))]);
        assert!(driver.holds("10.61.2.1:8080"));
    });
}

/// Changes eight Services within 80 ms, while iptables takes 100 ms for the first. Returns the pause between the two runs.
fn pause_between_two_runs(settings: ProxySettings) -> Duration {
    let memory = slow(Variant::Legacy);
    beside(&memory, settings, async |driver| {
        let start = Instant::now();
        for i in 0..8 {
            driver.change(i, "10.61.2.1").await;
            sleep(ms(10)).await;
        }
        sleep(ms(1000)).await;
        assert_eq!(driver.runs().first().map(|run| run.0), Some(start));
        let saved = driver.memory.tables.borrow().save();
        assert_eq!(saved.matches("--to-destination 10.61.2.1:8080").count(), 8);
    });
    let runs = memory.times.borrow();
    assert_eq!(runs.len(), 2, "{runs:?}");
    runs[1].0 - runs[0].1
}

#[test]
fn changes_during_a_run_are_gathered_for_the_next() {
    assert_eq!(pause_between_two_runs(ProxySettings::default()), ms(0), "a burst has credit");
    assert_eq!(pause_between_two_runs(share(100)), ms(50), "half of the time that the first run took");
}

#[test]
fn a_configured_pause_counts_from_the_end_of_a_run() {
    let memory = slow(Variant::Nft);
    beside(&memory, ProxySettings { min_sync_period: Some(Duration::from_secs(5)), ..ProxySettings::default() }, async |driver| {
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

/// Changes 50 endpoints a second for 20 s, and checks that each change is written within this time. Returns the number of runs.
fn runs_under_churn(settings: ProxySettings, within: u64) -> usize {
    let memory = slow(Variant::Nft);
    beside(&memory, settings, async |driver| {
        let mut late = 0;
        for i in 0..1000 {
            driver.change(i % 50, &format!("10.61.{}.{}", 2 + i / 250, i % 250)).await;
            sleep(ms(20)).await;
            // The same Service may have changed again since.
            if let Some(earlier) = i.checked_sub(within as usize / 20) {
                let is_written = |i: usize| driver.holds(&format!("10.61.{}.{}:8080", 2 + i / 250, i % 250));
                late += usize::from(!(earlier..=i).step_by(50).any(is_written));
            }
        }
        assert_eq!(late, 0, "changes that were not written in time");
    });
    memory.times.borrow().len()
}

#[test]
fn fifty_changes_a_second_take_a_tenth_of_a_core() {
    // 100 ms a run: 2 s of 20, and the credit. A change waits for a pause of 900 ms and two runs.
    let runs = runs_under_churn(ProxySettings::default(), 1120);
    assert!((20..=24).contains(&runs), "{runs} runs in 20 s");
    let runs = runs_under_churn(share(20), 620);
    assert!((38..=44).contains(&runs), "{runs} runs in 20 s");
}

#[test]
fn without_a_budget_fifty_changes_a_second_are_written_in_a_quarter_of_a_second() {
    // A change waits for one run and half of its time, and is in the next.
    let runs = runs_under_churn(share(100), 260);
    assert!((120..=140).contains(&runs), "{runs} runs in 20 s");
}

/// The families share one budget, and none of them waits for ever.
#[test]
fn both_families_share_the_budget() {
    let memory = BothFamilies::new(Variant::Nft);
    for family in Family::ALL {
        memory.of(family).takes.set(ms(100));
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().expect("a runtime");
    runtime.block_on(async {
        let inputs = common::inputs(&plain::service("s", &json!({})).to_string()).expect("well formed");
        let report = Report::new(Arc::default(), SharedHealth::new(SYNC_PERIOD), Events::none());
        let proxy = ProxyLoop::new(memory.clone(), FakeHost::default(), true, inputs, report);
        let proxy = proxy.with_family(Family::V4, None).with_family(Family::V6, None);
        let (updates, receiver) = channel(16);
        for kind in [Kind::Service, Kind::EndpointSlice, Kind::Node] {
            updates.send(Update::Cluster(kubernetes::ClusterUpdate::Complete(kind))).await.expect("taken");
        }
        let script = async {
            sleep(Duration::from_secs(20)).await;
            for family in Family::ALL {
                memory.of(family).times.borrow_mut().clear();
            }
            for i in 0..1000 {
                for (family, prefix) in [("IPv4", "10.61.2."), ("IPv6", "fd61::2:")] {
                    let object = plain::slice("s", family, &[&format!("{prefix}{}", i % 99 + 1)]);
                    let change = convert::object(&ObjectId::of(Kind::EndpointSlice, &object), &object).change;
                    updates.send(Update::Cluster(kubernetes::ClusterUpdate::Change(change, ChangeTime::now(None)))).await.expect("taken");
                }
                sleep(ms(20)).await;
            }
            drop(updates);
        };
        tokio::join!(proxy.run(receiver), script);
    });
    for family in Family::ALL {
        let runs = memory.of(family).times.borrow().len();
        // 200 ms for both, then a pause of at most a second.
        assert!((17..=20).contains(&runs), "{family}: {runs} runs in 20 s");
    }
}

/// Another program deletes a jump or a rule. On nft the generation counter shows it within two seconds, on legacy an audit every sync
/// period.
fn a_change_by_others_is_put_right(variant: Variant, within: Duration) {
    for (table, chain) in [("nat", "PREROUTING"), ("filter", "FORWARD"), ("nat", "KUBE-MARK-MASQ")] {
        let memory = Memory::new(variant);
        memory.generation.set((variant == Variant::Nft).then_some(7));
        beside(&memory, ProxySettings::default(), async |driver| {
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
    beside(&memory, ProxySettings::default(), async |driver| {
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
