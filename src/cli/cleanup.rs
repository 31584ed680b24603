//! `sepal cleanup`: deletes the rules of kube-proxy and of this program from a node [kube-proxy 1.8]. With `--pod-network` it deletes what the
//! pod network leaves behind instead.

use std::fmt::Display;
use std::process::ExitCode;

use anyhow::bail;
use clap::Args;

use crate::config::flags::VariantFlag;
use crate::iptables::clean::clean;
use crate::iptables::ipvs_nftables::{self, NftTables};
use crate::iptables::{IptablesError, detect};
use crate::table::cleanup::Owner;

use super::cleanup_pod_network::PodNetworkFlags;

/// The flags of `sepal cleanup`. `kube-proxy --cleanup` is the same with their defaults.
#[derive(Args, Clone, Debug)]
pub(super) struct CleanupFlags {
    /// iptables variant to clean up; `auto` chooses the one that this node's rules are in
    #[arg(long, value_name = "VARIANT", value_enum, default_value_t)]
    iptables_variant: VariantFlag,
    /// Clean up only the variant that this node does not use: rules that stayed behind when the variant changed
    #[arg(long)]
    other_variant: bool,
    #[command(flatten)]
    network: PodNetworkFlags,
}

impl CleanupFlags {
    /// The flags for a cleanup of this variant.
    pub(super) fn of_variant(iptables_variant: VariantFlag) -> Self {
        Self { iptables_variant, other_variant: false, network: PodNetworkFlags::default() }
    }
}

/// Deletes the rules of all modes of kube-proxy, or everything of the pod network. Logs each failure and goes on. Sysctls, nfacct counters and
/// tracked connections stay as they are.
///
/// # Errors
/// Something could not be deleted.
pub(super) async fn cleanup(flags: &CleanupFlags) -> anyhow::Result<ExitCode> {
    let mut clean = true;
    let mut report = |error: &dyn Display| {
        tracing::error!("{error}");
        clean = false;
    };
    let owner = if flags.network.pod_network { Owner::PodNetwork } else { Owner::Proxy };
    if let Err(error) = clean_iptables(flags, owner, &mut report).await {
        report(&error);
    }
    let rest = match (flags.other_variant, owner) {
        (true, _) => Vec::new(),
        (false, Owner::Proxy) => {
            let mut left = ipvs_nftables::clean_ipvs().await;
            left.extend(ipvs_nftables::delete_nftables(NftTables::KubeProxy).await);
            left
        }
        (false, Owner::PodNetwork) => {
            flags.network.clean_node(&mut report).await;
            flags.network.clean_api(&mut report).await;
            ipvs_nftables::delete_nftables(NftTables::Flannel).await
        }
    };
    for error in &rest {
        report(error);
    }
    if !clean {
        bail!("encountered an error while tearing down {}", if owner == Owner::PodNetwork { "the pod network" } else { "rules" });
    }
    Ok(ExitCode::SUCCESS)
}

async fn clean_iptables(flags: &CleanupFlags, owner: Owner, report: &mut impl FnMut(&dyn Display)) -> Result<(), IptablesError> {
    let mut found = detect::find(flags.iptables_variant.variant()).await?;
    if flags.other_variant {
        found = detect::find(Some(found.variant.other())).await?;
    }
    // There may be IPv6 rules even if IPv6 is switched off now.
    let support = detect::support(&found, true).await;
    for family in support.usable()? {
        let cleaned = clean(&found.exec, *family, owner).await;
        cleaned.errors.iter().for_each(|error| report(error));
        match (cleaned.jumps, cleaned.chains) {
            (0, 0) => tracing::info!("{family}: iptables {} holds nothing to delete", found.variant),
            (jumps, chains) => tracing::info!("{family}: {jumps} jumps and {chains} chains deleted from iptables {}", found.variant),
        }
    }
    Ok(())
}
