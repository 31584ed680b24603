//! The command line of `sepal run`: sepal's own flags, and those of kube-proxy ([`super::proxy_flags`]) and of the pod network
//! ([`super::network_flags`]).

use std::collections::BTreeMap;
use std::path::PathBuf;

use clap::{Args, ValueEnum};

use super::network_flags::NetworkFlags;
use super::proxy_flags::ProxyFlags;
use crate::cluster::Family;
use crate::proxy::settings::CpuShare;
use crate::table::plan::Variant;

/// Every flag of `sepal run`, which is also what `sepal` takes without a command.
#[derive(Args, Clone, Debug, Default)]
pub struct RunFlags {
    /// Print the rules as input for iptables-restore, and change nothing
    #[arg(long)]
    pub dry_run: bool,
    /// With --dry-run: print how the rules differ from this node's live rules. Exit status 2 if they differ
    #[arg(long, requires = "dry_run")]
    pub diff: bool,
    /// With --diff: an earlier output of `sepal --dry-run`, to tell changes by other programs from changes in the cluster
    #[arg(long, value_name = "FILE", requires = "diff")]
    pub since: Option<PathBuf>,
    /// Read the cluster from manifests (a file, a folder, or - for standard input), not from an API server
    #[arg(long, value_name = "PATH")]
    pub manifests: Option<PathBuf>,
    /// IP families to write or print
    #[arg(long, value_name = "FAMILY", value_enum, default_value_t)]
    pub ip_family: FamilyFlag,
    /// iptables variant to use; `auto` chooses the one that this node's rules are in
    #[arg(long, value_name = "VARIANT", value_enum, default_value_t)]
    pub iptables_variant: VariantFlag,
    /// Count connections per Service address and per endpoint. `auto` turns this off above 2000 of either
    #[arg(long, value_name = "WHEN", value_enum, default_value_t)]
    pub service_traffic: TrafficFlag,
    /// Share of one core that writing rules can take while Services change all the time, 1-100. A single change is written at once. 100
    /// only pauses for half of each sync. Not used if a minSyncPeriod is set
    #[arg(long, value_name = "PERCENT", default_value_t)]
    pub sync_cpu_percent: CpuShare,
    #[command(flatten)]
    #[allow(missing_docs, reason = "clap would show a doc comment here as help text")]
    pub proxy: ProxyFlags,
    #[command(flatten)]
    #[allow(missing_docs, reason = "clap would show a doc comment here as help text")]
    pub network: NetworkFlags,
    /// The name under which the program runs.
    #[arg(skip)]
    pub run_as: RunAs,
    /// The value of every flag, as text, for `/flagz`.
    #[arg(skip)]
    pub values: BTreeMap<String, String>,
}

/// The program that the daemon takes the place of, by the name under which it runs.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum RunAs {
    /// `sepal`.
    #[default]
    Sepal,
    /// `kube-proxy`: HTTP paths that kube-proxy does not have are not answered.
    KubeProxy,
    /// `flanneld`: only the health server of flanneld runs.
    Flanneld {
        /// `--healthz-ip` and `--healthz-port`; `None` if there is no health server.
        healthz: Option<HostPort>,
    },
}

/// A host and a port.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostPort {
    /// Name or address of the host; empty for every address of this host.
    pub host: String,
    /// The port.
    pub port: u16,
}

/// Values of `--service-traffic`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum TrafficFlag {
    /// If there are at most 2000.
    #[default]
    Auto,
    /// Always.
    On,
    /// Never.
    Off,
}

/// Values of `--ip-family`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum FamilyFlag {
    /// IPv4 only.
    Ipv4,
    /// IPv6 only.
    Ipv6,
    /// Both.
    #[default]
    All,
}

impl FamilyFlag {
    /// The families of this value.
    #[must_use]
    pub fn families(self) -> Vec<Family> {
        match self {
            Self::Ipv4 => vec![Family::V4],
            Self::Ipv6 => vec![Family::V6],
            Self::All => Family::ALL.to_vec(),
        }
    }
}

/// Values of `--iptables-variant`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum VariantFlag {
    /// The variant that the node uses.
    #[default]
    Auto,
    /// iptables-nft.
    Nft,
    /// iptables-legacy.
    Legacy,
}

impl VariantFlag {
    /// The variant that the flag names; `None` for `auto`.
    #[must_use]
    pub const fn variant(self) -> Option<Variant> {
        match self {
            Self::Auto => None,
            Self::Nft => Some(Variant::Nft),
            Self::Legacy => Some(Variant::Legacy),
        }
    }
}

#[cfg(test)]
pub(super) mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct OnlyFlags {
        #[command(flatten)]
        run: RunFlags,
    }

    /// The flags of an empty command line.
    pub(in crate::config) fn defaults() -> RunFlags {
        OnlyFlags::parse_from(["sepal"]).run
    }
}
