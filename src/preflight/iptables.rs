//! What readings of iptables mean.

use crate::cluster::Family;
use crate::table::cleanup::Owner;
use crate::table::plan::Variant;

use super::probes::Probe;
use super::{Check, Part};

const PART: Part = Part::Iptables;

/// The iptables that would be used.
#[must_use]
pub fn version(variant: Variant, version: &str, reason: &str) -> Check {
    let found = format!("{version} ({variant}), because: {reason}");
    let name = "version";
    let numbers: Vec<u32> = version.split('.').map(|part| part.parse().unwrap_or(0)).collect();
    match numbers.as_slice() {
        [1, minor, patch, ..] if (*minor, *patch) < (6, 2) => {
            Check::failed(PART, name, found, "iptables-restore waits for the lock since 1.6.2: install that or a newer one")
        }
        [1, 8, 0..=4, ..] if variant == Variant::Nft => Check::warning(
            PART,
            name,
            found,
            "up to 1.8.4, `iptables-nft -C` says that rules are missing that are there, so that kubelet, CNI plugins and other programs add \
             them again and again (sepal does not use it): install 1.8.5 or newer",
        ),
        _ => Check::ok(PART, name, found),
    }
}

/// Families that iptables can program here, and why it cannot program others.
#[must_use]
pub fn families(usable: &[Family], unusable: &[(Family, String)]) -> Vec<Check> {
    let good = usable.iter().map(|family| Check::ok(PART, format!("{family} rules"), "can be read and written"));
    let bad = unusable.iter().map(|(family, why)| {
        let name = format!("{family} rules");
        if usable.is_empty() {
            Check::failed(PART, name, why, "")
        } else {
            Check::warning(PART, name, why, format!("Services of {family} are not written; nothing to do where the cluster has none"))
        }
    });
    good.chain(bad).collect()
}

/// Families in which the other variant has rules of the same names, or why that is `unknown`.
#[must_use]
pub fn leftovers(other: Variant, owner: Owner, doubles: &[Family], unknown: Option<&str>) -> Check {
    let rules = format!("rules in iptables-{other}");
    let (name, names, consequence, cure) = match owner {
        Owner::Proxy => (rules, "KUBE-*", "services may answer that are gone", format!("sepal cleanup --iptables-variant {other}")),
        Owner::PodNetwork => (
            format!("pod network's {rules}"),
            "FLANNEL-*",
            "what the one leaves as it is the other may masquerade",
            format!("sepal cleanup --pod-network --iptables-variant {} --other-variant", other.other()),
        ),
    };
    match (doubles, unknown) {
        ([], None) => Check::ok(PART, name, format!("none with {names} names")),
        ([], Some(why)) => Check::not_checked(PART, name, format!("the kernel has tables of it that cannot be listed: {why}")),
        (doubles, _) => {
            let families: Vec<&str> = doubles.iter().map(|family| family.as_str()).collect();
            let found = format!("{names} rules of {} are there, and packets go through both: {consequence}", families.join(" and "));
            Check::warning(PART, name, found, cure)
        }
    }
}

/// What came of trying a rule: nothing, or what was said against it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tried {
    /// The match or target.
    pub probe: Probe,
    /// The family.
    pub family: Family,
    /// Why it was refused.
    pub refused: Option<String>,
}

/// What came of trying all rules, by the program and the kernel, or by the program `alone`, for this reason.
#[must_use]
pub fn probes(tried: &[Tried], alone: Option<&str>) -> Vec<Check> {
    let mut checks: Vec<Check> = tried
        .iter()
        .filter_map(|Tried { probe, family, refused }| {
            let name = format!("{} ({family})", probe.name);
            let module = "load or build the kernel's module for it, and install iptables with its extension";
            let found = format!("a rule with it is refused: {}", refused.as_ref()?);
            Some(if probe.without.is_empty() {
                Check::failed(PART, name, found, module)
            } else {
                Check::warning(PART, name, found, format!("{}; {module}", probe.without))
            })
        })
        .collect();
    if tried.is_empty() {
        return vec![Check::not_checked(PART, "matches and targets", "there is no family to try them in")];
    }
    let taken: Vec<&str> = tried.iter().filter(|tried| tried.refused.is_none()).map(|tried| tried.probe.name).collect();
    let mut names = taken.clone();
    names.sort_unstable();
    names.dedup();
    let found = format!("{} rules are taken, with {}", taken.len(), names.join(", "));
    checks.push(match alone {
        None => Check::ok(PART, "matches and targets", format!("{found}; tried in a network namespace of their own")),
        Some(why) => Check::not_checked(PART, "matches and targets", format!("{found}, by the program; the kernel was not asked: {why}")),
    });
    checks
}

/// What happens to packets that are forwarded and that no rule is about. `chain` is what iptables lists of the built-in chain.
#[must_use]
pub fn forward_policy(family: Family, chain: &str, accepted_by: Option<&str>) -> Check {
    let name = format!("FORWARD policy ({family})");
    let Some(policy) = chain.lines().find_map(|line| line.strip_prefix("-P FORWARD ")) else {
        return Check::not_checked(PART, name, "iptables does not tell it");
    };
    match (policy.split_whitespace().next().unwrap_or_default(), accepted_by) {
        ("ACCEPT", _) => Check::ok(PART, name, "ACCEPT"),
        (policy, Some(by)) => Check::ok(PART, name, format!("{policy}; {by} accept what pods send and get")),
        (policy, None) => Check::warning(
            PART,
            name,
            format!("{policy}: pods reach each other, and others, only as far as rules of somebody else accept that"),
            "make sure that the pod network adds such rules (flannel and `sepal --pod-network` do), or: iptables -P FORWARD ACCEPT",
        ),
    }
}

/// The lock that the programs of legacy iptables take turns with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Lock {
    /// Nobody has it.
    Free,
    /// Somebody has it, by process and name.
    Held(String),
    /// Its file cannot be opened, by path and cause.
    Shut(String),
}

/// Whether the lock can be had.
#[must_use]
pub fn lock(lock: &Lock, variant: Variant) -> Check {
    let name = "xtables lock";
    match lock {
        Lock::Free => Check::ok(PART, name, "free"),
        Lock::Held(holder) if variant == Variant::Legacy => Check::failed(
            PART,
            name,
            format!("held by {holder} all the time that was waited for it, so that nothing else of iptables could be looked at"),
            "end that program, or wait for it to end, and check again",
        ),
        Lock::Held(holder) => Check::ok(PART, name, format!("held by {holder}; iptables-nft needs none")),
        Lock::Shut(why) if variant == Variant::Legacy => Check::failed(
            PART,
            name,
            why,
            "iptables-legacy cannot do without: mount the host's /run/xtables.lock into the container, writable (type FileOrCreate)",
        ),
        Lock::Shut(why) => Check::ok(PART, name, format!("{why}; iptables-nft needs none")),
    }
}

#[cfg(test)]
mod tests {
    use super::super::Outcome;
    use super::super::probes::PROBES;
    use super::*;

    #[test]
    fn old_versions_are_told_of() {
        for (number, variant, outcome) in [
            ("1.8.9", Variant::Nft, Outcome::Ok),
            ("1.10.0", Variant::Nft, Outcome::Ok),
            ("1.8.4", Variant::Nft, Outcome::Warning),
            ("1.8.4", Variant::Legacy, Outcome::Ok),
            ("1.6.1", Variant::Legacy, Outcome::Failed),
            ("1.4.21", Variant::Legacy, Outcome::Failed),
            ("1.6.2", Variant::Legacy, Outcome::Ok),
            ("", Variant::Legacy, Outcome::Ok),
        ] {
            assert_eq!(version(variant, number, "asked for").outcome, outcome, "{number}");
        }
    }

    #[test]
    fn a_missing_match_counts_as_much_as_what_hangs_on_it() {
        let tried = |name: &str, refused: Option<&str>| Tried {
            probe: PROBES.into_iter().find(|probe| probe.name == name).expect("it is one"),
            family: Family::V4,
            refused: refused.map(str::to_owned),
        };
        let checks = probes(&[tried("comment", None), tried("statistic", Some("no")), tried("recent", Some("no"))], None);
        let outcomes: Vec<(&str, Outcome)> = checks.iter().map(|check| (check.name.as_str(), check.outcome)).collect();
        let wanted = [("statistic (ipv4)", Outcome::Failed), ("recent (ipv4)", Outcome::Warning), ("matches and targets", Outcome::Ok)];
        assert_eq!(outcomes, wanted);
        assert!(checks[2].found.contains("1 rules are taken, with comment"), "{:?}", checks[2]);
        assert_eq!(probes(&[tried("comment", None)], Some("not root"))[0].outcome, Outcome::NotChecked);
        assert_eq!(probes(&[], None)[0].outcome, Outcome::NotChecked);
    }

    #[test]
    fn rules_of_the_other_variant_are_there_or_not_or_nobody_can_tell() {
        let judge = |owner, doubles: &[Family], unknown| leftovers(Variant::Legacy, owner, doubles, unknown);
        assert_eq!(judge(Owner::Proxy, &[], None).outcome, Outcome::Ok);
        assert_eq!(judge(Owner::Proxy, &[], Some("no such program")).outcome, Outcome::NotChecked);
        let both = judge(Owner::Proxy, &[Family::V4], Some("no such program"));
        assert_eq!((both.outcome, both.cure.as_str()), (Outcome::Warning, "sepal cleanup --iptables-variant legacy"));
        let network = judge(Owner::PodNetwork, &Family::ALL, None);
        assert!(network.found.starts_with("FLANNEL-* rules of ipv4 and ipv6 are there"), "{network:?}");
        assert_eq!(network.cure, "sepal cleanup --pod-network --iptables-variant nft --other-variant");
    }

    #[test]
    fn a_lock_that_is_held_is_in_the_way_of_legacy_alone() {
        let outcome = |found: Lock, variant| lock(&found, variant).outcome;
        for (variant, bad) in [(Variant::Legacy, Outcome::Failed), (Variant::Nft, Outcome::Ok)] {
            assert_eq!(outcome(Lock::Held("process 7".into()), variant), bad);
            assert_eq!(outcome(Lock::Shut("read-only".into()), variant), bad);
            assert_eq!(outcome(Lock::Free, variant), Outcome::Ok);
        }
    }

    #[test]
    fn dropping_is_fine_where_somebody_accepts() {
        let drops = "-P FORWARD DROP\n-A FORWARD -j DOCKER-USER\n";
        assert_eq!(forward_policy(Family::V4, drops, None).outcome, Outcome::Warning);
        assert_eq!(forward_policy(Family::V4, drops, Some("rules")).outcome, Outcome::Ok);
        assert_eq!(forward_policy(Family::V4, "-P FORWARD ACCEPT\n", None).outcome, Outcome::Ok);
        assert_eq!(forward_policy(Family::V4, "", None).outcome, Outcome::NotChecked);
    }
}
