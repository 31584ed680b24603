//! Which iptables this host uses, which families it can program, and what its version can do.
//!
//! The choice is made the way the iptables-wrapper of upstream's images makes it: where kubelet left its mark, that variant; else
//! where the rules are; else nft.

use iptables::IPTables;

use crate::cluster::Family;
use crate::netlink::generation;
use crate::table::chain_names;
use crate::table::plan::Variant;

use super::exec::{Exec, LOCK_WAIT, failure, output};
use super::runner::IptablesError;

/// Chains by which kubelet tells which variant the node uses.
const MARKS: [&str; 2] = ["KUBE-IPTABLES-HINT", "KUBE-KUBELET-CANARY"];

/// How often the xtables lock is waited for before a family counts as not usable.
const LOCK_TRIES: u32 = 12;

/// iptables as it was found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Found {
    /// The programs to use.
    pub exec: Exec,
    /// Their variant.
    pub variant: Variant,
    /// Why that one.
    pub reason: String,
    /// Their version, like `1.8.9`.
    pub version: String,
}

impl Found {
    /// MASQUERADE has `--random-fully` since 1.6.2.
    #[must_use]
    pub fn random_fully(&self) -> bool {
        random_fully(&self.version)
    }

    /// Families in which the other variant has rules in KUBE-SERVICES, too: packets go through both. The reason then says so.
    pub async fn find_other_variant(&mut self) -> Vec<Family> {
        let doubles = self.in_other_variant(chain_names::SERVICES).await.families;
        if !doubles.is_empty() {
            self.reason.extend(["; there are KUBE-* rules in ", self.variant.other().as_str(), ", too"]);
        }
        doubles
    }

    /// What the other variant has in a chain of the table `nat`. Looking makes no tables, as legacy iptables otherwise does.
    pub async fn in_other_variant(&self, chain: &str) -> OtherVariantRules {
        let other = self.variant.other();
        let mut found = OtherVariantRules::default();
        for family in Family::ALL {
            let tables = match family {
                Family::V4 => "/proc/net/ip_tables_names",
                Family::V6 => "/proc/net/ip6_tables_names",
            };
            let there = other == Variant::Nft || std::fs::read_to_string(tables).is_ok_and(|names| names.lines().any(|name| name == "nat"));
            let program = Exec::new(other, false).program(family, "");
            if !there {
                continue;
            }
            match output(&program, &["-w", LOCK_WAIT, "-t", "nat", "-S", chain]).await {
                Ok(rules) if rules.contains("\n-A ") => found.families.push(family),
                // Where the chain is not there, or the variant does not work in this kernel, there is nothing to tell of.
                Ok(_) | Err(IptablesError::Failed { .. }) => {}
                Err(IptablesError::Missing(_)) if other == Variant::Nft && generation::of_nf_tables().is_none() => {}
                Err(error) => found.unknown = found.unknown.or(Some(error.to_string())),
            }
        }
        found
    }
}

/// What the variant that is not used has in one chain.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct OtherVariantRules {
    /// Families in which there are rules.
    pub families: Vec<Family>,
    /// Why that cannot be told of some family, although its kernel has tables of that variant.
    pub unknown: Option<String>,
}

/// Whether MASQUERADE has `--random-fully` in an iptables of this version, like `1.8.9`.
#[must_use]
pub fn random_fully(version: &str) -> bool {
    at_least(version, [1, 6, 2])
}

/// The version of iptables on this host, or of one variant; `None` if there is none. Needs no permissions.
pub async fn version(wanted: Option<Variant>) -> Option<String> {
    let candidates = match wanted {
        Some(variant) => vec![Exec::new(variant, false)],
        None => vec![Exec::new(Variant::Nft, false), Exec::new(Variant::Legacy, false), Exec::new(Variant::Nft, true)],
    };
    for exec in candidates {
        if let Ok(Some(text)) = says(&exec).await {
            return Some(number(&text));
        }
    }
    None
}

/// Finds the iptables to use: the variant asked for, or the one that the host's rules point to.
///
/// # Errors
/// No iptables, not the variant asked for, or no permission to look.
pub async fn find(wanted: Option<Variant>) -> Result<Found, IptablesError> {
    let nft = says(&Exec::new(Variant::Nft, false)).await?;
    let legacy = says(&Exec::new(Variant::Legacy, false)).await?;
    let (variant, reason) = match (wanted, &nft, &legacy) {
        (_, None, None) => return plain(wanted).await,
        (Some(variant), _, _) => (variant, "asked for".to_owned()),
        (None, Some(_), Some(_)) => by_rules().await?,
        (None, Some(_), None) => (Variant::Nft, "the only one installed".to_owned()),
        (None, None, Some(_)) => (Variant::Legacy, "the only one installed".to_owned()),
    };
    let exec = Exec::new(variant, false);
    let found = match variant {
        Variant::Nft => nft,
        Variant::Legacy => legacy,
    };
    match found {
        Some(version) => Ok(Found { version: number(&version), exec, variant, reason }),
        None => Err(no_variant(variant, exec.program(Family::V4, ""))),
    }
}

/// Without the variants' own names there is only `iptables`, which is the one it says it is.
async fn plain(wanted: Option<Variant>) -> Result<Found, IptablesError> {
    let probe = Exec::new(Variant::Nft, true);
    let program = probe.program(Family::V4, "");
    let Some(text) = says(&probe).await? else { return Err(IptablesError::Missing(program)) };
    let variant = if text.contains("nf_tables") { Variant::Nft } else { Variant::Legacy };
    match wanted {
        Some(wanted) if wanted != variant => Err(no_variant(wanted, Exec::new(wanted, false).program(Family::V4, ""))),
        _ => Ok(Found { exec: Exec::new(variant, true), variant, reason: format!("what {program} is here"), version: number(&text) }),
    }
}

fn no_variant(wanted: Variant, missing: String) -> IptablesError {
    IptablesError::NoVariant { wanted, missing, other: wanted.other() }
}

/// What a program says of its version; `None` if it is not there.
async fn says(exec: &Exec) -> Result<Option<String>, IptablesError> {
    match output(&exec.program(Family::V4, ""), &["--version"]).await {
        Ok(text) => Ok(Some(text)),
        Err(IptablesError::Missing(_)) => Ok(None),
        Err(error) => Err(error),
    }
}

async fn by_rules() -> Result<(Variant, String), IptablesError> {
    for variant in [Variant::Nft, Variant::Legacy] {
        for family in Family::ALL {
            let mangle = saved(variant, family, "mangle").await?;
            if let Some(mark) = MARKS.into_iter().find(|mark| mangle.contains(&format!("\n:{mark} "))) {
                return Ok((variant, format!("kubelet's chain {mark} is there")));
            }
        }
    }
    let (nft, legacy) = (rule_count(Variant::Nft).await?, rule_count(Variant::Legacy).await?);
    Ok(by_count(nft, legacy))
}

fn by_count(nft: usize, legacy: usize) -> (Variant, String) {
    let variant = if legacy > nft { Variant::Legacy } else { Variant::Nft };
    (variant, format!("{nft} rules in nft, {legacy} in legacy"))
}

async fn rule_count(variant: Variant) -> Result<usize, IptablesError> {
    let mut count = 0;
    for family in Family::ALL {
        for table in ["filter", "nat", "mangle"] {
            count += saved(variant, family, table).await?.lines().filter(|line| line.starts_with('-')).count();
        }
    }
    Ok(count)
}

/// What is saved of a table; nothing where the variant does not work in this kernel.
async fn saved(variant: Variant, family: Family, table: &str) -> Result<String, IptablesError> {
    match Exec::new(variant, false).save_table(family, table).await {
        Err(IptablesError::Failed { .. } | IptablesError::Missing(_)) => Ok(String::new()),
        other => other,
    }
}

/// Which families iptables can program on a host, and why it cannot program the others (spec section 1.6).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Support {
    usable: Vec<Family>,
    unusable: Vec<(Family, String)>,
}

impl Support {
    /// The families that can be programmed, IPv4 first.
    ///
    /// # Errors
    /// Not even one of them.
    pub fn usable(&self) -> Result<&[Family], IptablesError> {
        if self.usable.is_empty() {
            let why: Vec<&str> = self.unusable.iter().map(|(_, why)| why.as_str()).collect();
            return Err(IptablesError::Unusable(why.join("; ")));
        }
        Ok(&self.usable)
    }

    /// The families that cannot be programmed, and why.
    #[must_use]
    pub fn unusable(&self) -> &[(Family, String)] {
        &self.unusable
    }

    /// The families to run: both where both can be programmed, else the primary one alone.
    ///
    /// # Errors
    /// The primary family cannot be programmed.
    pub fn to_run(&self, primary: Family) -> Result<Vec<Family>, IptablesError> {
        let usable = self.usable()?;
        match self.unusable.iter().find(|(family, _)| *family == primary) {
            Some((_, why)) => Err(IptablesError::NoPrimary { family: primary, why: why.clone() }),
            None if usable.len() == Family::ALL.len() => Ok(usable.to_vec()),
            None => Ok(vec![primary]),
        }
    }
}

/// Finds out which families this iptables can program here. `ipv6_enabled` is what the kernel says of itself.
pub async fn support(found: &Found, ipv6_enabled: bool) -> Support {
    let mut support = Support::default();
    for family in Family::ALL {
        let works = if family == Family::V6 && !ipv6_enabled {
            Err("IPv6 is off in this kernel".to_owned())
        } else {
            nat_works(found.exec.program(family, "")).await
        };
        match works {
            Ok(()) => support.usable.push(family),
            Err(why) => support.unusable.push((family, why)),
        }
    }
    support
}

/// A lock that somebody else holds says nothing about support: it is waited for, for about a minute.
async fn nat_works(program: String) -> Result<(), String> {
    // The crate looks programs up by static names; the few there can be live as long as the process.
    let program: &'static str = Box::leak(program.into_boxed_str());
    let mut tries_left = LOCK_TRIES;
    loop {
        tries_left -= 1;
        match list_nat(program).await {
            Err(locked @ IptablesError::Locked { .. }) if tries_left > 0 => tracing::warn!("{locked}; waiting on"),
            listed => return listed.map_err(|error| error.to_string()),
        }
    }
}

async fn list_nat(program: &'static str) -> Result<(), IptablesError> {
    // The crate's own `--wait` would have no end.
    let door = IPTables { cmd: program, has_check: true, has_wait: false, is_numeric: false };
    let list = move || door.execute("nat", &format!("-w {LOCK_WAIT} -S POSTROUTING")).map_err(|error| error.to_string());
    let listed = tokio::task::spawn_blocking(list).await.map_err(|error| error.to_string()).flatten();
    match listed {
        Ok(output) if output.status.success() => Ok(()),
        Ok(output) => Err(failure(program, &output)),
        Err(output) => Err(IptablesError::Failed { command: program.to_owned(), output }),
    }
}

/// The number in `iptables v1.8.9 (nf_tables)`.
fn number(version: &str) -> String {
    let digits =
        version.split_whitespace().find_map(|word| word.strip_prefix('v').filter(|rest| rest.starts_with(|c: char| c.is_ascii_digit())));
    digits.unwrap_or_default().trim_end_matches(|c: char| !c.is_ascii_digit()).to_owned()
}

fn at_least(version: &str, wanted: [u32; 3]) -> bool {
    let mut parts = version.split('.').map(|part| part.parse().unwrap_or(0));
    std::array::from_fn::<u32, 3, _>(|_| parts.next().unwrap_or(0)) >= wanted
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_read_and_compared() {
        assert_eq!(number("iptables v1.8.9 (nf_tables)\n"), "1.8.9");
        assert_eq!(number("iptables v1.6.0\n"), "1.6.0");
        assert_eq!(number("iptables"), "");
        for (version, new) in [("1.8.9", true), ("1.6.2", true), ("1.6.1", false), ("1.6", false), ("2.0", true), ("", false)] {
            assert_eq!(at_least(version, [1, 6, 2]), new, "{version}");
        }
    }

    #[test]
    fn the_primary_family_has_to_work_and_the_other_one_joins_it() {
        let (v4, v6) = (Family::V4, Family::V6);
        let support = |usable: &[Family]| Support {
            usable: usable.to_vec(),
            unusable: Family::ALL
                .into_iter()
                .filter(|family| !usable.contains(family))
                .map(|family| (family, format!("no {family}")))
                .collect(),
        };
        let to_run = |usable: &[Family], primary| support(usable).to_run(primary).map_err(|error| error.to_string());
        for primary in Family::ALL {
            assert_eq!(to_run(&[v4, v6], primary), Ok(vec![v4, v6]));
            assert_eq!(to_run(&[primary], primary), Ok(vec![primary]));
            assert_eq!(to_run(&[], primary), Err("iptables is not available on this host : no ipv4; no ipv6".to_owned()));
        }
        assert_eq!(to_run(&[v6], v4), Err("no support for primary IP family \"IPv4\": no ipv4".to_owned()));
        assert_eq!(to_run(&[v4], v6), Err("no support for primary IP family \"IPv6\": no ipv6".to_owned()));
        assert_eq!(support(&[v6]).usable().expect("one is enough"), [v6]);
    }

    #[test]
    fn the_more_rules_win_and_nft_wins_a_tie() {
        assert_eq!(by_count(3, 4).0, Variant::Legacy);
        assert_eq!(by_count(4, 4).0, Variant::Nft);
        assert_eq!(by_count(5, 4), (Variant::Nft, "5 rules in nft, 4 in legacy".to_owned()));
    }
}
