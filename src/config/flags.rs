//! The command line as typed. Flags that kube-proxy has too keep its names (spec section 1.2).

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, ValueEnum};

use super::kubeproxy::{BadSetting, DetectLocalConfiguration, IptablesConfiguration, KubeProxyConfiguration, parse_duration};
use super::settings::ProxySettings;
use crate::cluster::Family;
use crate::table::plan::Variant;

/// Everything `sepal run` takes; without a command it is the same.
#[derive(Args, Clone, Debug)]
pub struct RunFlags {
    /// Print the rules, as iptables-restore would get them, and change nothing
    #[arg(long)]
    pub dry_run: bool,
    /// With --dry-run: print how they differ from this node's live rules instead; exit 2 if they do
    #[arg(long, requires = "dry_run")]
    pub diff: bool,
    /// Take the cluster from manifests (a file, a folder, or - for standard input) and not from an API server
    #[arg(long, value_name = "PATH")]
    pub manifests: Option<PathBuf>,
    /// Which IP families to write or print
    #[arg(long, value_name = "FAMILY", default_value = "all")]
    pub ip_family: FamilyFlag,
    /// Which iptables to use; auto picks the one that the node's rules are in
    #[arg(long, value_name = "VARIANT", default_value = "auto")]
    pub iptables_variant: VariantFlag,
    #[command(flatten)]
    #[allow(missing_docs, reason = "clap would show a doc comment here as help text")]
    pub proxy: ProxyFlags,
}

/// kube-proxy's own flags.
#[derive(Args, Clone, Debug, Default)]
#[command(next_help_heading = "Flags of kube-proxy")]
pub struct ProxyFlags {
    /// A KubeProxyConfiguration file; takes the place of all flags below but --master and --hostname-override
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// How to reach the API server; if not given, $KUBECONFIG, ~/.kube/config or in-cluster
    #[arg(long, value_name = "FILE")]
    pub kubeconfig: Option<String>,
    /// Address of the API server, overrides the kubeconfig's
    #[arg(long, value_name = "URL")]
    pub master: Option<String>,
    /// This node's name, if it is not the host's
    #[arg(long, value_name = "NAME")]
    pub hostname_override: Option<String>,
    /// Overrides the node's IP of its family
    #[arg(long, value_name = "IP", default_value = "")]
    pub bind_address: String,
    /// CIDRs of the pods, at most one per family, separated by a comma
    #[arg(long, value_name = "CIDRS", default_value = "")]
    pub cluster_cidr: String,
    /// How local pods' traffic is told: ClusterCIDR, NodeCIDR, BridgeInterface or InterfaceNamePrefix
    #[arg(long, value_name = "MODE", default_value = "")]
    pub detect_local_mode: String,
    /// The bridge, for --detect-local-mode=BridgeInterface
    #[arg(long, value_name = "NAME", default_value = "")]
    pub pod_bridge_interface: String,
    /// The prefix, for --detect-local-mode=InterfaceNamePrefix
    #[arg(long, value_name = "PREFIX", default_value = "")]
    pub pod_interface_name_prefix: String,
    /// Where NodePorts answer: CIDRs, or the single word primary; everywhere if not given
    #[arg(long, value_name = "CIDRS", value_delimiter = ',')]
    pub nodeport_addresses: Vec<String>,
    /// Masquerade all traffic to cluster IPs
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_value_t = false, default_missing_value = "true", action = clap::ArgAction::Set)]
    pub masquerade_all: bool,
    /// Bit of the packet mark that means "masquerade"
    #[arg(long, value_name = "BIT", default_value_t = 14)]
    pub iptables_masquerade_bit: i64,
    /// NodePorts answer on 127.0.0.0/8 too
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_value_t = true, default_missing_value = "true", action = clap::ArgAction::Set)]
    pub iptables_localhost_nodeports: bool,
    /// Longest wait before a failed sync is tried again [default: 30s]
    #[arg(long, value_name = "DURATION", value_parser = go_duration)]
    pub iptables_sync_period: Option<Duration>,
    /// Least time between two syncs [default: none, the pace follows from how long they take]
    #[arg(long, value_name = "DURATION", value_parser = go_duration)]
    pub iptables_min_sync_period: Option<Duration>,
    /// Only iptables
    #[arg(long, value_name = "MODE", default_value = "")]
    pub proxy_mode: String,
    /// Feature gates: NAME=true|false, separated by commas; AllowServiceExternalIPs is the one that rules depend on
    #[arg(long, value_name = "GATES", value_delimiter = ',', value_parser = gate)]
    pub feature_gates: Vec<(String, bool)>,
}

/// IP families on the command line.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum FamilyFlag {
    /// IPv4 only.
    Ipv4,
    /// IPv6 only.
    Ipv6,
    /// Both.
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
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum VariantFlag {
    /// Whichever the node uses.
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

fn go_duration(text: &str) -> Result<Duration, String> {
    parse_duration(text).ok_or_else(|| "not a duration (like 30s or 1m30s)".into())
}

fn gate(text: &str) -> Result<(String, bool), String> {
    let (name, value) = text.split_once('=').ok_or("a feature gate is written NAME=true or NAME=false")?;
    let value = match value.trim() {
        "true" | "True" | "TRUE" | "t" | "T" | "1" => true,
        "false" | "False" | "FALSE" | "f" | "F" | "0" => false,
        other => return Err(format!("{other:?} is neither true nor false")),
    };
    Ok((name.trim().to_owned(), value))
}

impl ProxyFlags {
    /// The configuration these flags amount to without a file.
    #[must_use]
    pub fn configuration(&self) -> KubeProxyConfiguration {
        KubeProxyConfiguration {
            feature_gates: self.feature_gates.iter().cloned().collect(),
            hostname_override: String::new(),
            bind_address: self.bind_address.clone(),
            mode: self.proxy_mode.clone(),
            iptables: IptablesConfiguration {
                masquerade_bit: Some(self.iptables_masquerade_bit),
                masquerade_all: self.masquerade_all,
                localhost_node_ports: Some(self.iptables_localhost_nodeports),
                ..IptablesConfiguration::default()
            },
            detect_local_mode: self.detect_local_mode.clone(),
            detect_local: DetectLocalConfiguration {
                bridge_interface: self.pod_bridge_interface.clone(),
                interface_name_prefix: self.pod_interface_name_prefix.clone(),
            },
            cluster_cidr: self.cluster_cidr.clone(),
            node_port_addresses: self.nodeport_addresses.clone(),
            ..KubeProxyConfiguration::default()
        }
    }

    /// The settings these flags amount to without a file. Periods are taken as typed: only the command line can say zero
    /// (spec section 12.38).
    ///
    /// # Errors
    /// The first setting that makes no sense.
    pub fn resolve(&self) -> Result<ProxySettings, BadSetting> {
        let mut settings = self.configuration().resolve()?;
        settings.sync_period = self.iptables_sync_period.filter(|period| !period.is_zero()).unwrap_or(settings.sync_period);
        settings.min_sync_period = self.iptables_min_sync_period.or(settings.min_sync_period);
        Ok(settings)
    }

    /// The name this node goes by, if the command line says so: trimmed and in lower case.
    ///
    /// # Errors
    /// It is blank.
    pub fn node_name(&self) -> Result<Option<String>, BadSetting> {
        let Some(name) = &self.hostname_override else { return Ok(None) };
        match name.trim().to_lowercase() {
            name if name.is_empty() => {
                Err(BadSetting { field: "--hostname-override".into(), cause: "empty hostname-override is invalid".into() })
            }
            name => Ok(Some(name)),
        }
    }
}
