//! Spaces the syncs of all families, so that writing rules takes a limited share of one core.

use std::time::Duration;

use tokio::time::Instant;

use crate::proxy::settings::ProxySettings;

/// The run time that a burst can use before syncs are spaced.
const CREDIT: Duration = Duration::from_millis(300);

/// The share holds over this time. A sync that takes longer than the share of it (a full sync of a large node) costs no more.
const WINDOW: Duration = Duration::from_secs(10);

/// The longest time between two syncs. It is kube-proxy's default `minSyncPeriod`, so changes never wait longer than there.
const LONGEST_PAUSE: Duration = Duration::from_secs(1);

/// The run time that syncs can still use. It grows with time, up to [`CREDIT`], and each sync takes its duration from it. While it is
/// negative, syncs wait, at most [`LONGEST_PAUSE`].
#[derive(Debug)]
pub(super) struct SyncBudget {
    /// The balance at `updated`, in seconds.
    balance: f64,
    updated: Instant,
    /// The end of the last sync.
    last_end: Option<Instant>,
}

impl SyncBudget {
    /// A full budget.
    pub(super) fn new() -> Self {
        Self { balance: CREDIT.as_secs_f64(), updated: Instant::now(), last_end: None }
    }

    /// The time before which no sync starts. `None` if the budget allows one now, or if the settings pace syncs in another way.
    pub(super) fn next(&self, settings: &ProxySettings) -> Option<Instant> {
        let share = share(settings)?;
        let last_end = self.last_end.filter(|_| self.balance < 0.0)?;
        let paid = self.updated + Duration::from_secs_f64(-self.balance / share);
        Some(paid.min(last_end + LONGEST_PAUSE))
    }

    /// Takes the duration of a sync that ends now from the budget. The time that it waited for the xtables lock must not be in it.
    pub(super) fn spend(&mut self, settings: &ProxySettings, took: Duration) {
        let now = Instant::now();
        self.last_end = Some(now);
        let Some(share) = share(settings) else { return };
        self.balance = self.seconds(share, now) - took.as_secs_f64();
        self.balance = self.balance.max(-share * WINDOW.as_secs_f64());
        self.updated = now;
    }

    /// The end of the last sync.
    pub(super) const fn last_end(&self) -> Option<Instant> {
        self.last_end
    }

    /// The balance now, in seconds. `None` if the settings pace syncs in another way.
    pub(super) fn balance(&self, settings: &ProxySettings) -> Option<f64> {
        Some(self.seconds(share(settings)?, Instant::now()))
    }

    fn seconds(&self, share: f64, now: Instant) -> f64 {
        let earned = now.saturating_duration_since(self.updated).as_secs_f64() * share;
        (self.balance + earned).min(CREDIT.as_secs_f64())
    }
}

/// The share of one core that writing can take. `None` if the operator set `minSyncPeriod` or a share of 100 %.
fn share(settings: &ProxySettings) -> Option<f64> {
    settings.sync_share.limit().filter(|_| settings.min_sync_period.is_none())
}

#[cfg(test)]
mod tests {
    use tokio::time::advance;

    use super::*;

    const MS: Duration = Duration::from_millis(1);

    fn settings(percent: u8) -> ProxySettings {
        ProxySettings { sync_share: percent.to_string().parse().expect("1-100"), ..ProxySettings::default() }
    }

    /// Runs syncs of this duration one after the other, as soon as the budget allows. Returns how long each waited.
    async fn waits(budget: &mut SyncBudget, settings: &ProxySettings, took: Duration, count: usize) -> Vec<u128> {
        let mut waits = Vec::new();
        for _ in 0..count {
            let wait = budget.next(settings).map_or(Duration::ZERO, |next| next.saturating_duration_since(Instant::now()));
            advance(wait + took).await;
            budget.spend(settings, took);
            waits.push(wait.as_millis());
        }
        waits
    }

    #[tokio::test(start_paused = true)]
    async fn a_burst_uses_the_credit_and_then_syncs_are_spaced() {
        let (mut budget, settings) = (SyncBudget::new(), settings(10));
        let waits = waits(&mut budget, &settings, 50 * MS, 30).await;
        assert_eq!(waits[..7], [0; 7], "300 ms, and what the budget earns meanwhile: {waits:?}");
        assert!(waits[8..].iter().all(|wait| (449..=450).contains(wait)), "50 ms of every 500: {waits:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn a_change_after_a_quiet_time_does_not_wait() {
        let (mut budget, settings) = (SyncBudget::new(), settings(10));
        assert_eq!(budget.next(&settings), None);
        waits(&mut budget, &settings, 50 * MS, 30).await;
        assert!(budget.next(&settings).is_some_and(|next| next > Instant::now()));
        advance(Duration::from_secs(4)).await;
        assert!(budget.next(&settings).is_none_or(|next| next <= Instant::now()));
        assert_eq!(waits(&mut budget, &settings, 50 * MS, 6).await[..6], [0; 6], "there is credit again");
    }

    #[tokio::test(start_paused = true)]
    async fn no_sync_waits_longer_than_a_second() {
        let (mut budget, settings) = (SyncBudget::new(), settings(10));
        let waits = waits(&mut budget, &settings, Duration::from_secs(4), 5).await;
        assert_eq!(waits, [0, 1000, 1000, 1000, 1000]);
        // The debt of a long sync is limited, too: it is paid after ten seconds.
        advance(WINDOW).await;
        assert!(budget.balance(&settings).is_some_and(|balance| balance.abs() < 0.001), "{:?}", budget.balance(&settings));
    }

    #[tokio::test(start_paused = true)]
    async fn writing_takes_the_share_of_any_ten_seconds_and_the_credit() {
        for percent in [1, 5, 10, 40, 99] {
            let (mut budget, settings) = (SyncBudget::new(), settings(percent));
            for took in [1, 5, 20, 80] {
                let start = Instant::now();
                let mut used = Duration::ZERO;
                while start.elapsed() < WINDOW {
                    // The longest pause is a promise that counts more than the share.
                    let next = budget.next(&settings);
                    assert!(next.is_none_or(|next| next <= budget.last_end().expect("a sync ended") + LONGEST_PAUSE));
                    waits(&mut budget, &settings, took * MS, 1).await;
                    used += took * MS;
                }
                let allowed = WINDOW.mul_f64(f64::from(percent) / 100.0) + CREDIT + 2 * took * MS;
                let with_longest_pauses = WINDOW.mul_f64(f64::from(took) / f64::from(1000 + took)) + 2 * took * MS;
                assert!(used <= allowed.max(with_longest_pauses), "{percent} %, {took} ms: {used:?}");
            }
        }
    }

    #[tokio::test(start_paused = true)]
    async fn other_settings_turn_the_budget_off() {
        let fixed = ProxySettings { min_sync_period: Some(Duration::ZERO), ..settings(10) };
        for settings in [fixed, settings(100)] {
            let mut budget = SyncBudget::new();
            budget.spend(&settings, Duration::from_secs(9));
            assert_eq!((budget.next(&settings), budget.balance(&settings)), (None, None));
        }
    }
}
