//! Checks of iptables: version, IP families, matches and targets, rules of other programs, and the xtables lock.

use crate::cluster::Family;
use crate::table::cleanup::Owner;
use crate::table::plan::Variant;

use super::probes::RuleProbe;
use super::{Check, CheckGroup};

const GROUP: CheckGroup = CheckGroup::Iptables;

/// Checks the version of the iptables that sepal would use.
#[must_use]
pub(crate) fn version(variant: Variant, version: &str, reason: &str) -> Check {
    let found = format!("{version} ({variant}), because: {reason}");
    let name = "version";
    let numbers: Vec<u32> = version.split('.').map(|part| part.parse().unwrap_or(0)).collect();
    match numbers.as_slice() {
        [1, minor, patch, ..] if (*minor, *patch) < (6, 2) => Check::failed(
            GROUP,
            name,
            found,
            "iptables-restore waits for the lock since version 1.6.2. Install that version or a newer one",
        ),
        [1, 8, 0..=4, ..] if variant == Variant::Nft => Check::warning(
            GROUP,
            name,
            found,
            "up to version 1.8.4, `iptables-nft -C` reports existing rules as missing, so kubelet, CNI plugins and other programs add them again \
             and again (sepal does not use -C). Install 1.8.5 or newer",
        ),
        _ => Check::ok(GROUP, name, found),
    }
}

/// Checks for which IP families iptables works. `unusable` has the other families, each with the reason.
#[must_use]
pub(crate) fn families(usable: &[Family], unusable: &[(Family, String)]) -> Vec<Check> {
    let working = usable.iter().map(|family| Check::ok(GROUP, format!("{family} rules"), "iptables can read and write them"));
    let failing = unusable.iter().map(|(family, why)| {
        let name = format!("{family} rules");
        if usable.is_empty() {
            Check::failed(GROUP, name, why, "")
        } else {
            Check::warning(GROUP, name, why, format!("sepal writes no rules for {family} Services. Ignore this if the cluster has none"))
        }
    });
    working.chain(failing).collect()
}

/// Checks that the other iptables variant has no chains with the same names. `doubles` are the families in which it has such chains. If its
/// tables cannot be listed, `unknown` is the reason.
#[must_use]
pub(crate) fn leftovers(other: Variant, owner: Owner, doubles: &[Family], unknown: Option<&str>) -> Check {
    let rules = format!("rules in iptables-{other}");
    let (name, names, consequence, cure) = match owner {
        Owner::Proxy => (rules, "KUBE-*", "deleted Services may still get traffic", format!("sepal cleanup --iptables-variant {other}")),
        Owner::PodNetwork => (
            format!("pod network's {rules}"),
            "FLANNEL-*",
            "a packet that one variant does not masquerade may be masqueraded by the other",
            format!("sepal cleanup --pod-network --iptables-variant {} --other-variant", other.other()),
        ),
    };
    match (doubles, unknown) {
        ([], None) => Check::ok(GROUP, name, format!("none with {names} names")),
        ([], Some(why)) => {
            Check::not_checked(GROUP, name, format!("the kernel has tables of iptables-{other} that cannot be listed: {why}"))
        }
        (doubles, _) => {
            let families: Vec<&str> = doubles.iter().map(|family| family.as_str()).collect();
            let found = format!(
                "{names} rules of {} are there, and packets pass the rules of both variants: {consequence}",
                families.join(" and ")
            );
            Check::warning(GROUP, name, found, cure)
        }
    }
}

/// The result of trying one test rule.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ProbeResult {
    /// The match or target, with its test rule.
    pub probe: RuleProbe,
    /// The IP family of the rule.
    pub family: Family,
    /// The error, if the rule was refused.
    pub refused: Option<String>,
}

/// Checks that every match and target works. If only the iptables program parsed the rules and the kernel did not get them, `parse_only` is
/// the reason.
#[must_use]
pub(crate) fn probes(tried: &[ProbeResult], parse_only: Option<&str>) -> Vec<Check> {
    let mut checks: Vec<Check> = tried
        .iter()
        .filter_map(|ProbeResult { probe, family, refused }| {
            let name = format!("{} ({family})", probe.name);
            let module = "load or build the kernel module, and install iptables with the extension";
            let found = format!("a rule with it is refused: {}", refused.as_ref()?);
            Some(if probe.without.is_empty() {
                Check::failed(GROUP, name, found, module)
            } else {
                Check::warning(GROUP, name, found, format!("{}; {module}", probe.without))
            })
        })
        .collect();
    if tried.is_empty() {
        return vec![Check::not_checked(GROUP, "matches and targets", "iptables works for no IP family, so they cannot be tried")];
    }
    let taken: Vec<&str> = tried.iter().filter(|tried| tried.refused.is_none()).map(|tried| tried.probe.name).collect();
    let mut names = taken.clone();
    names.sort_unstable();
    names.dedup();
    let found = format!("{} test rules are accepted, with {}", taken.len(), names.join(", "));
    checks.push(match parse_only {
        None => Check::ok(GROUP, "matches and targets", format!("{found}; tried in a network namespace of their own")),
        Some(why) => {
            Check::not_checked(GROUP, "matches and targets", format!("{found}, by the iptables program, not tried in the kernel: {why}"))
        }
    });
    checks
}

/// Checks the policy of the FORWARD chain. `chain` is the output of `iptables -S FORWARD`. `accepted_by` names rules of sepal that accept the
/// traffic of pods.
#[must_use]
pub(crate) fn forward_policy(family: Family, chain: &str, accepted_by: Option<&str>) -> Check {
    let name = format!("FORWARD policy ({family})");
    let Some(policy) = chain.lines().find_map(|line| line.strip_prefix("-P FORWARD ")) else {
        return Check::not_checked(GROUP, name, "iptables did not print it");
    };
    match (policy.split_whitespace().next().unwrap_or_default(), accepted_by) {
        ("ACCEPT", _) => Check::ok(GROUP, name, "ACCEPT"),
        (policy, Some(by)) => Check::ok(GROUP, name, format!("{policy}; {by} accept the traffic of pods")),
        (policy, None) => Check::warning(
            GROUP,
            name,
            format!("{policy}: traffic from and to pods is forwarded only if rules of another program accept it"),
            "make sure that the pod network adds such rules (flannel and `sepal --pod-network` do), or: iptables -P FORWARD ACCEPT",
        ),
    }
}

/// The state of the xtables lock. Each iptables-legacy program takes it before it changes rules.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum LockState {
    /// The lock is free.
    Free,
    /// A process holds the lock. Contains its process ID and name.
    Held(String),
    /// The lock file cannot be opened. Contains the path and the error.
    Unavailable(String),
}

/// Checks that the lock is available if iptables-legacy is used.
#[must_use]
pub(crate) fn lock(lock: &LockState, variant: Variant) -> Check {
    let name = "xtables lock";
    match lock {
        LockState::Free => Check::ok(GROUP, name, "free"),
        LockState::Held(holder) if variant == Variant::Legacy => Check::failed(
            GROUP,
            name,
            format!("{holder} held the lock during every attempt, so the other iptables checks were not possible"),
            "end that program, or wait until it ends, and check again",
        ),
        LockState::Held(holder) => Check::ok(GROUP, name, format!("held by {holder}; iptables-nft needs none")),
        LockState::Unavailable(why) if variant == Variant::Legacy => Check::failed(
            GROUP,
            name,
            why,
            "iptables-legacy needs it. Mount the host's /run/xtables.lock into the container, writable (type FileOrCreate)",
        ),
        LockState::Unavailable(why) => Check::ok(GROUP, name, format!("{why}; iptables-nft needs none")),
    }
}

#[cfg(test)]
mod tests {
    use super::super::CheckOutcome;
    use super::super::probes::PROBES;
    use super::*;

    #[test]
    fn old_versions_are_reported() {
        for (number, variant, outcome) in [
            ("1.8.9", Variant::Nft, CheckOutcome::Ok),
            ("1.10.0", Variant::Nft, CheckOutcome::Ok),
            ("1.8.4", Variant::Nft, CheckOutcome::Warning),
            ("1.8.4", Variant::Legacy, CheckOutcome::Ok),
            ("1.6.1", Variant::Legacy, CheckOutcome::Failed),
            ("1.4.21", Variant::Legacy, CheckOutcome::Failed),
            ("1.6.2", Variant::Legacy, CheckOutcome::Ok),
            ("", Variant::Legacy, CheckOutcome::Ok),
        ] {
            assert_eq!(version(variant, number, "asked for").outcome, outcome, "{number}");
        }
    }

    #[test]
    fn a_missing_match_fails_only_if_everything_depends_on_it() {
        let tried = |name: &str, refused: Option<&str>| ProbeResult {
            probe: PROBES.into_iter().find(|probe| probe.name == name).expect("a probe"),
            family: Family::V4,
            refused: refused.map(str::to_owned),
        };
        let checks = probes(&[tried("comment", None), tried("statistic", Some("no")), tried("recent", Some("no"))], None);
        let outcomes: Vec<(&str, CheckOutcome)> = checks.iter().map(|check| (check.name.as_str(), check.outcome)).collect();
        let expected = [
            ("statistic (ipv4)", CheckOutcome::Failed),
            ("recent (ipv4)", CheckOutcome::Warning),
            ("matches and targets", CheckOutcome::Ok),
        ];
        assert_eq!(outcomes, expected);
        assert!(checks[2].found.contains("1 test rules are accepted, with comment"), "{:?}", checks[2]);
        assert_eq!(probes(&[tried("comment", None)], Some("not root"))[0].outcome, CheckOutcome::NotChecked);
        assert_eq!(probes(&[], None)[0].outcome, CheckOutcome::NotChecked);
    }

    #[test]
    fn rules_of_the_other_variant_are_reported() {
        let judge = |owner, doubles: &[Family], unknown| leftovers(Variant::Legacy, owner, doubles, unknown);
        assert_eq!(judge(Owner::Proxy, &[], None).outcome, CheckOutcome::Ok);
        assert_eq!(judge(Owner::Proxy, &[], Some("no such program")).outcome, CheckOutcome::NotChecked);
        let both = judge(Owner::Proxy, &[Family::V4], Some("no such program"));
        assert_eq!((both.outcome, both.cure.as_str()), (CheckOutcome::Warning, "sepal cleanup --iptables-variant legacy"));
        let network = judge(Owner::PodNetwork, &Family::ALL, None);
        assert!(network.found.starts_with("FLANNEL-* rules of ipv4 and ipv6 are there"), "{network:?}");
        assert_eq!(network.cure, "sepal cleanup --pod-network --iptables-variant nft --other-variant");
    }

    #[test]
    fn a_held_lock_fails_only_with_iptables_legacy() {
        let outcome = |found: LockState, variant| lock(&found, variant).outcome;
        for (variant, bad) in [(Variant::Legacy, CheckOutcome::Failed), (Variant::Nft, CheckOutcome::Ok)] {
            assert_eq!(outcome(LockState::Held("process 7".into()), variant), bad);
            assert_eq!(outcome(LockState::Unavailable("read-only".into()), variant), bad);
            assert_eq!(outcome(LockState::Free, variant), CheckOutcome::Ok);
        }
    }

    #[test]
    fn policy_drop_is_fine_if_rules_accept_the_traffic() {
        let drops = "-P FORWARD DROP\n-A FORWARD -j DOCKER-USER\n";
        assert_eq!(forward_policy(Family::V4, drops, None).outcome, CheckOutcome::Warning);
        assert_eq!(forward_policy(Family::V4, drops, Some("rules")).outcome, CheckOutcome::Ok);
        assert_eq!(forward_policy(Family::V4, "-P FORWARD ACCEPT\n", None).outcome, CheckOutcome::Ok);
        assert_eq!(forward_policy(Family::V4, "", None).outcome, CheckOutcome::NotChecked);
    }
}
