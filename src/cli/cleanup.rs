//! `sepal cleanup`: takes away what kube-proxy and this program leave on a node (spec section 1.8).

use std::process::ExitCode;

use anyhow::bail;
use clap::Args;

use crate::config::flags::VariantFlag;
use crate::iptables::clean::clean;
use crate::iptables::other_modes::{self, NftTables};
use crate::iptables::{IptablesError, detect};

/// What `sepal cleanup` takes; `kube-proxy --cleanup` is the same without any of it.
#[derive(Args, Clone, Debug)]
pub(super) struct CleanupFlags {
    /// Which iptables to clean up; auto picks the one that the node's rules are in
    #[arg(long, value_name = "VARIANT", default_value = "auto")]
    iptables_variant: VariantFlag,
    /// Clean up the variant that the node does not use, and only that: what a change of variant has left behind
    #[arg(long)]
    other_variant: bool,
}

impl CleanupFlags {
    /// Clean up this variant.
    pub(super) const fn of_variant(iptables_variant: VariantFlag) -> Self {
        Self { iptables_variant, other_variant: false }
    }
}

/// Deletes the rules of all of kube-proxy's modes. What fails is logged, and the rest goes on. Sysctls, nfacct counters and tracked
/// connections stay as they are.
///
/// # Errors
/// Something is still there that should not be.
pub(super) async fn cleanup(flags: &CleanupFlags) -> anyhow::Result<ExitCode> {
    let mut clean = true;
    let mut complain = |error: &dyn std::fmt::Display| {
        tracing::error!("{error}");
        clean = false;
    };
    if let Err(error) = clean_iptables(flags, &mut complain).await {
        complain(&error);
    }
    if !flags.other_variant {
        let left = [other_modes::clean_ipvs().await, other_modes::delete_nftables(NftTables::KubeProxy).await];
        left.iter().flatten().for_each(|error| complain(error));
    }
    if !clean {
        bail!("encountered an error while tearing down rules");
    }
    Ok(ExitCode::SUCCESS)
}

async fn clean_iptables(flags: &CleanupFlags, complain: &mut impl FnMut(&dyn std::fmt::Display)) -> Result<(), IptablesError> {
    let mut found = detect::find(flags.iptables_variant.wanted()).await?;
    if flags.other_variant {
        found = detect::find(Some(found.variant.other())).await?;
    }
    // IPv6 that is switched off may have left rules all the same.
    let support = detect::support(&found, true).await;
    for family in support.usable()? {
        let cleaned = clean(&found.exec, *family).await;
        cleaned.errors.iter().for_each(|error| complain(error));
        match (cleaned.jumps, cleaned.chains) {
            (0, 0) => tracing::info!("{family}: iptables {} holds nothing to delete", found.variant),
            (jumps, chains) => tracing::info!("{family}: {jumps} jumps and {chains} chains deleted from iptables {}", found.variant),
        }
    }
    Ok(())
}
