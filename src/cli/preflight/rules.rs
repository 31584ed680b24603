//! Readings of iptables.

use std::io;

use tokio::task::spawn_blocking;

use crate::cluster::Family;
use crate::iptables::detect::{self, Found};
use crate::iptables::exec::Exec;
use crate::iptables::{Runner, lock};
use crate::netlink::scratch::within_new_namespace;
use crate::netlink::{Host, Kernel};
use crate::preflight::iptables::{self, Lock, Tried};
use crate::preflight::probes::PROBES;
use crate::preflight::{Check, Part};
use crate::table::Table;

use super::Asked;

/// Everything about iptables.
pub(super) async fn checks(asked: &Asked<'_>) -> Vec<Check> {
    let mut found = match detect::find(asked.flags.iptables_variant.wanted()).await {
        Ok(found) => found,
        Err(error) => return vec![Check::failed(Part::Iptables, "version", error.to_string(), "")],
    };
    let mut checks = vec![iptables::version(found.variant, &found.version, &found.reason)];
    let support = detect::support(&found, Kernel.ipv6_enabled()).await;
    let usable = support.usable().unwrap_or_default().to_vec();
    checks.extend(iptables::families(&usable, support.unusable()));
    checks.push(iptables::leftovers(found.variant.other(), &found.find_doubles().await));
    checks.push(iptables::lock(&lock_now(), found.variant));
    checks.extend(probes(&found, &usable).await);
    let accepted_by = asked.network.as_ref().filter(|network| network.settings.forward_rules).map(|_| "the rules in FLANNEL-FWD");
    for family in usable {
        let chain = found.exec.entrances(family, Table::Filter).await.unwrap_or_default();
        checks.push(iptables::forward_policy(family, &chain, accepted_by));
    }
    checks
}

fn lock_now() -> Lock {
    match lock::held() {
        Ok(None) => Lock::Free,
        Ok(Some(holder)) => Lock::Held(holder),
        Err(error) => Lock::Shut(format!("/run/xtables.lock cannot be opened: {error}")),
    }
}

/// Tries a rule with each match and target: in a namespace of their own, or where that cannot be had, only whether they are understood.
async fn probes(found: &Found, families: &[Family]) -> Vec<Check> {
    let (exec, random_fully, wanted) = (found.exec.clone(), found.random_fully(), families.to_vec());
    let in_namespace = move || {
        within_new_namespace(|| {
            // The counters that rules name have to be there.
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

async fn try_all(exec: &Exec, families: &[Family], random_fully: bool, parse_only: bool) -> Vec<Tried> {
    let mut all = Vec::new();
    for &family in families {
        for probe in PROBES {
            let refused = exec.try_rules(family, &probe.text(family, random_fully), parse_only).await.err().map(|error| error.to_string());
            all.push(Tried { probe, family, refused });
        }
    }
    all
}
