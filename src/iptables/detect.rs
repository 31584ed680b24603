//! Finds the iptables variant of this host, its version, and the families that it supports.
//!
//! The variant is chosen as in the iptables-wrapper of upstream's images: the variant in which kubelet created its chains, else the one
//! with more rules, else nft.

use iptables::IPTables;

use crate::cluster::Family;
use crate::netlink::generation;
use crate::table::chain_names;
use crate::table::plan::Variant;

use super::exec::{Exec, LOCK_WAIT, failure, output};
use super::runner::IptablesError;

/// Chains that kubelet creates in the variant that the node uses.
const KUBELET_CHAINS: [&str; 2] = ["KUBE-IPTABLES-HINT", "KUBE-KUBELET-CANARY"];

/// The number of waits for the xtables lock before a family counts as not supported.
const LOCK_TRIES: u32 = 12;

/// The iptables of this host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Found {
    /// The programs to use.
    pub exec: Exec,
    /// Their variant.
    pub variant: Variant,
    /// The reason why this variant was chosen.
    pub reason: String,
    /// The version, like `1.8.9`.
    pub version: String,
}

impl Found {
    /// Returns true if MASQUERADE supports `--random-fully`: since 1.6.2.
    #[must_use]
    pub fn random_fully(&self) -> bool {
        random_fully(&self.version)
    }

    /// Returns the families in which the other variant also has rules in KUBE-SERVICES. Packets pass the rules of both variants. If there are
    /// any, the reason mentions them.
    pub(crate) async fn find_other_variant(&mut self) -> Vec<Family> {
        let families = self.in_other_variant(chain_names::SERVICES).await.families;
        if !families.is_empty() {
            self.reason.extend(["; there are KUBE-* rules in ", self.variant.other().as_str(), ", too"]);
        }
        families
    }

    /// Looks for rules of the other variant in a chain of the table `nat`. Legacy iptables creates a table when it reads it, so legacy
    /// iptables only runs if the table exists.
    pub(crate) async fn in_other_variant(&self, chain: &str) -> OtherVariantRules {
        let other = self.variant.other();
        let mut found = OtherVariantRules::default();
        for family in Family::ALL {
            let tables = match family {
                Family::V4 => "/proc/net/ip_tables_names",
                Family::V6 => "/proc/net/ip6_tables_names",
            };
            let exists =
                other == Variant::Nft || std::fs::read_to_string(tables).is_ok_and(|names| names.lines().any(|name| name == "nat"));
            let program = Exec::new(other, false).program(family, "");
            if !exists {
                continue;
            }
            match output(&program, &["-w", LOCK_WAIT, "-t", "nat", "-S", chain]).await {
                Ok(rules) if rules.contains("\n-A ") => found.families.push(family),
                // The chain does not exist, or the variant does not work in this kernel.
                Ok(_) | Err(IptablesError::Failed { .. }) => {}
                Err(IptablesError::Missing(_)) if other == Variant::Nft && generation::of_nf_tables().is_none() => {}
                Err(error) => found.unknown = found.unknown.or(Some(error.to_string())),
            }
        }
        found
    }
}

/// The rules of the unused variant in one chain.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct OtherVariantRules {
    /// The families in which the chain has rules.
    pub families: Vec<Family>,
    /// The error, if the chain of a family could not be read although the kernel has tables of that variant.
    pub unknown: Option<String>,
}

/// Returns true if MASQUERADE of this iptables version supports `--random-fully`.
#[must_use]
pub fn random_fully(version: &str) -> bool {
    at_least(version, [1, 6, 2])
}

/// Returns the version of iptables on this host, or of one variant. `None` if it is not installed. Needs no permissions.
pub async fn version(variant: Option<Variant>) -> Option<String> {
    let candidates = match variant {
        Some(variant) => vec![Exec::new(variant, false)],
        None => vec![Exec::new(Variant::Nft, false), Exec::new(Variant::Legacy, false), Exec::new(Variant::Nft, true)],
    };
    for exec in candidates {
        if let Ok(Some(text)) = version_output(&exec).await {
            return Some(number(&text));
        }
    }
    None
}

/// Finds the iptables to use: the requested variant, or the one that the host's rules suggest.
///
/// # Errors
/// iptables or the requested variant is not installed, or there is no permission to read the rules.
pub async fn find(requested: Option<Variant>) -> Result<Found, IptablesError> {
    let nft = version_output(&Exec::new(Variant::Nft, false)).await?;
    let legacy = version_output(&Exec::new(Variant::Legacy, false)).await?;
    let (variant, reason) = match (requested, &nft, &legacy) {
        (_, None, None) => return plain(requested).await,
        (Some(variant), _, _) => (variant, "requested by a flag".to_owned()),
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

/// Finds `iptables` if the programs with the names of the variants are missing. Its version text contains the variant.
async fn plain(requested: Option<Variant>) -> Result<Found, IptablesError> {
    let probe = Exec::new(Variant::Nft, true);
    let program = probe.program(Family::V4, "");
    let Some(text) = version_output(&probe).await? else { return Err(IptablesError::Missing(program)) };
    let variant = if text.contains("nf_tables") { Variant::Nft } else { Variant::Legacy };
    match requested {
        Some(requested) if requested != variant => Err(no_variant(requested, Exec::new(requested, false).program(Family::V4, ""))),
        _ => Ok(Found { exec: Exec::new(variant, true), variant, reason: format!("the variant of {program}"), version: number(&text) }),
    }
}

fn no_variant(wanted: Variant, missing: String) -> IptablesError {
    IptablesError::NoVariant { wanted, missing, other: wanted.other() }
}

/// Returns the output of `--version`, or `None` if the program is not installed.
async fn version_output(exec: &Exec) -> Result<Option<String>, IptablesError> {
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
            if let Some(chain) = KUBELET_CHAINS.into_iter().find(|chain| mangle.contains(&format!("\n:{chain} "))) {
                return Ok((variant, format!("kubelet's chain {chain} exists")));
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

/// Returns the output of iptables-save for a table, or an empty text if the variant does not work in this kernel.
async fn saved(variant: Variant, family: Family, table: &str) -> Result<String, IptablesError> {
    match Exec::new(variant, false).save_table(family, table).await {
        Err(IptablesError::Failed { .. } | IptablesError::Missing(_)) => Ok(String::new()),
        other => other,
    }
}

/// The families that iptables supports on a host, and the reasons why it does not support the others [kube-proxy 1.6].
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Support {
    usable: Vec<Family>,
    unusable: Vec<(Family, String)>,
}

impl Support {
    /// The supported families, IPv4 first.
    ///
    /// # Errors
    /// No family is supported.
    pub fn usable(&self) -> Result<&[Family], IptablesError> {
        if self.usable.is_empty() {
            let why: Vec<&str> = self.unusable.iter().map(|(_, why)| why.as_str()).collect();
            return Err(IptablesError::Unusable(why.join("; ")));
        }
        Ok(&self.usable)
    }

    /// The families that are not supported, with the reasons.
    #[must_use]
    pub(crate) fn unusable(&self) -> &[(Family, String)] {
        &self.unusable
    }

    /// The families to run: both if both are supported, else only the primary one.
    ///
    /// # Errors
    /// The primary family is not supported.
    pub fn to_run(&self, primary: Family) -> Result<Vec<Family>, IptablesError> {
        let usable = self.usable()?;
        match self.unusable.iter().find(|(family, _)| *family == primary) {
            Some((_, why)) => Err(IptablesError::NoPrimary { family: primary, why: why.clone() }),
            None if usable.len() == Family::ALL.len() => Ok(usable.to_vec()),
            None => Ok(vec![primary]),
        }
    }
}

/// Finds the families that this iptables supports. `ipv6_enabled` is true if the kernel has IPv6.
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

/// Tries to list the table `nat`. If another program holds the xtables lock, waits for about a minute, because a held lock does not mean
/// that the family is not supported.
async fn nat_works(program: String) -> Result<(), String> {
    // The iptables crate needs static names. There are only a few, so they may live as long as the process.
    let program: &'static str = Box::leak(program.into_boxed_str());
    let mut tries_left = LOCK_TRIES;
    loop {
        tries_left -= 1;
        match list_nat(program).await {
            Err(locked @ IptablesError::Locked { .. }) if tries_left > 0 => tracing::warn!("{locked}; still waiting"),
            listed => return listed.map_err(|error| error.to_string()),
        }
    }
}

async fn list_nat(program: &'static str) -> Result<(), IptablesError> {
    // `--wait` of the iptables crate has no time limit.
    let tables = IPTables { cmd: program, has_check: true, has_wait: false, is_numeric: false };
    let list = move || tables.execute("nat", &format!("-w {LOCK_WAIT} -S POSTROUTING")).map_err(|error| error.to_string());
    let listed = tokio::task::spawn_blocking(list).await.map_err(|error| error.to_string()).flatten();
    match listed {
        Ok(output) if output.status.success() => Ok(()),
        Ok(output) => Err(failure(program, &output)),
        Err(output) => Err(IptablesError::Failed { command: program.to_owned(), output }),
    }
}

/// Returns the number in `iptables v1.8.9 (nf_tables)`.
fn number(version: &str) -> String {
    let digits =
        version.split_whitespace().find_map(|word| word.strip_prefix('v').filter(|rest| rest.starts_with(|c: char| c.is_ascii_digit())));
    digits.unwrap_or_default().trim_end_matches(|c: char| !c.is_ascii_digit()).to_owned()
}

fn at_least(version: &str, least: [u32; 3]) -> bool {
    let mut parts = version.split('.').map(|part| part.parse().unwrap_or(0));
    std::array::from_fn::<u32, 3, _>(|_| parts.next().unwrap_or(0)) >= least
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
    fn the_primary_family_is_required_and_the_other_one_optional() {
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
    fn the_variant_with_more_rules_is_chosen_and_nft_if_equal() {
        assert_eq!(by_count(3, 4).0, Variant::Legacy);
        assert_eq!(by_count(4, 4).0, Variant::Nft);
        assert_eq!(by_count(5, 4), (Variant::Nft, "5 rules in nft, 4 in legacy".to_owned()));
    }
}
