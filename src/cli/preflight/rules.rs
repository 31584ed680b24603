//! Checks of iptables.

use std::io;
use std::time::Duration;

use tokio::task::spawn_blocking;
use tokio::time::sleep;

use crate::cluster::Family;
use crate::iptables::detect::{self, Found, OtherVariantRules};
use crate::iptables::exec::Exec;
use crate::iptables::{Runner, lock};
use crate::netlink::scratch::within_new_namespace;
use crate::netlink::{Host, Kernel};
use crate::preflight::iptables::{self, LockState, ProbeResult};
use crate::preflight::probes::PROBES;
use crate::preflight::{Check, CheckGroup};
use crate::table::Table;
use crate::table::chain_names;
use crate::table::cleanup::Owner;
use crate::table::plan::Variant;

use super::run_setup::RunSetup;

/// Attempts to find the lock free. Together they take as long as iptables itself waits.
const LOCK_TRIES: u32 = 50;
const LOCK_PAUSE: Duration = Duration::from_millis(100);

/// Checks the version, the lock, the families, old rules, the matches and targets, and the FORWARD policy.
pub(super) async fn checks(run: &RunSetup<'_>) -> Vec<Check> {
    let found = match detect::find(run.flags.iptables_variant.variant()).await {
        Ok(found) => found,
        Err(error) => return vec![Check::failed(CheckGroup::Iptables, "version", error.to_string(), "")],
    };
    let mut checks = vec![iptables::version(found.variant, &found.version, &found.reason)];
    let lock = lock_now().await;
    checks.push(iptables::lock(&lock, found.variant));
    // Each call of iptables would wait for the lock for seconds, and there are many calls.
    if found.variant == Variant::Legacy && matches!(lock, LockState::Held(_)) {
        return checks;
    }
    let support = detect::support(&found, Kernel.ipv6_enabled()).await;
    let usable = support.usable().unwrap_or_default().to_vec();
    checks.extend(iptables::families(&usable, support.unusable()));
    let owners =
        [(Owner::Proxy, chain_names::SERVICES, true), (Owner::PodNetwork, chain_names::FLANNEL_POSTROUTING, run.network.is_some())];
    for (owner, chain, _) in owners.into_iter().filter(|(_, _, ours)| *ours) {
        let OtherVariantRules { families, unknown } = found.in_other_variant(chain).await;
        checks.push(iptables::leftovers(found.variant.other(), owner, &families, unknown.as_deref()));
    }
    checks.extend(probes(&found, &usable).await);
    let accepted_by = run.network.as_ref().filter(|network| network.settings.forward_rules).map(|_| "the rules in FLANNEL-FWD");
    for family in usable {
        let chain = found.exec.builtin_jumps(family, Table::Filter).await.unwrap_or_default();
        checks.push(iptables::forward_policy(family, &chain, accepted_by));
    }
    checks
}

/// Reads the state of the lock. Waits a while if a program holds it.
async fn lock_now() -> LockState {
    let mut tries_left = LOCK_TRIES;
    loop {
        tries_left -= 1;
        match lock::held() {
            Ok(None) => return LockState::Free,
            Ok(Some(_)) if tries_left > 0 => sleep(LOCK_PAUSE).await,
            Ok(Some(holder)) => return LockState::Held(holder),
            Err(error) => return LockState::Unavailable(format!("{} cannot be opened: {error}", lock::path().display())),
        }
    }
}

/// Tries a rule with each match and target in a new network namespace. If there can be no namespace, only checks that iptables parses them.
async fn probes(found: &Found, families: &[Family]) -> Vec<Check> {
    let (exec, random_fully, wanted) = (found.exec.clone(), found.random_fully(), families.to_vec());
    let in_namespace = move || {
        within_new_namespace(|| {
            // The nfacct counters that the rules name have to exist.
            Kernel.counters(true);
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
            Ok::<_, io::Error>(runtime.block_on(try_all(&exec, &wanted, random_fully, false)))
        })
        .flatten()
    };
    match spawn_blocking(in_namespace).await.map_err(io::Error::other).flatten() {
        Ok(tried) => iptables::probes(&tried, None),
        Err(error) => {
            let tried = try_all(&found.exec, families, found.random_fully(), true).await;
            iptables::probes(&tried, Some(&format!("no network namespace can be made to try them in ({error}); run as root")))
        }
    }
}

async fn try_all(exec: &Exec, families: &[Family], random_fully: bool, parse_only: bool) -> Vec<ProbeResult> {
    let mut all = Vec::new();
    for &family in families {
        for probe in PROBES {
            let refused = exec.try_rules(family, &probe.text(family, random_fully), parse_only).await.err().map(|error| error.to_string());
            all.push(ProbeResult { probe, family, refused });
        }
    }
    all
}
