//! The command line as typed: flags of sepal's own; those of kube-proxy are in [`super::proxy_flags`].

use std::collections::BTreeMap;
use std::path::PathBuf;

use clap::{Args, ValueEnum};

use super::network_flags::NetworkFlags;
use super::proxy_flags::ProxyFlags;
use crate::cluster::Family;
use crate::table::plan::Variant;

/// Everything `sepal run` takes; without a command it is the same.
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
    #[arg(long, value_name = "FAMILY", default_value = "all")]
    pub ip_family: FamilyFlag,
    /// iptables variant to use; `auto` chooses the one that this node's rules are in
    #[arg(long, value_name = "VARIANT", default_value = "auto")]
    pub iptables_variant: VariantFlag,
    /// Count connections per Service address and per endpoint. `auto` turns this off above 2000 of either
    #[arg(long, value_name = "WHEN", default_value = "auto")]
    pub service_traffic: TrafficFlag,
    #[command(flatten)]
    #[allow(missing_docs, reason = "clap would show a doc comment here as help text")]
    pub proxy: ProxyFlags,
    #[command(flatten)]
    #[allow(missing_docs, reason = "clap would show a doc comment here as help text")]
    pub network: NetworkFlags,
    /// Under which name the program runs.
    #[arg(skip)]
    pub face: Face,
    /// Every flag with its value as text, for `/flagz`.
    #[arg(skip)]
    pub typed: BTreeMap<String, String>,
}

/// Names under which the daemon runs.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Face {
    /// Its own.
    #[default]
    Sepal,
    /// kube-proxy's: what kube-proxy does not answer is not answered.
    KubeProxy,
    /// flanneld's: health is answered as flanneld does, at this address, and nothing else is.
    Flanneld {
        /// `--healthz-ip` and `--healthz-port`; `None` for nowhere.
        healthz: Option<HostPort>,
    },
}

/// A host by name or address, and a port.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostPort {
    /// The host; empty for every address of this one.
    pub host: String,
    /// The port.
    pub port: u16,
}

/// When traffic of Services is counted.
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

/// IP families on the command line.
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
    /// The families it stands for.
    #[must_use]
    pub fn families(self) -> Vec<Family> {
        match self {
            Self::Ipv4 => vec![Family::V4],
            Self::Ipv6 => vec![Family::V6],
            Self::All => Family::ALL.to_vec(),
        }
    }
}

/// iptables variants on the command line.
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
    /// The variant asked for, if one is.
    #[must_use]
    pub const fn wanted(self) -> Option<Variant> {
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
