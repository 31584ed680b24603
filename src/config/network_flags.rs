//! The pod network's flags: flannel's names and defaults (spec section 2), and a few of sepal's own.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::str::FromStr;
use std::time::Duration;

use clap::{Args, ValueEnum};
use regex::Regex;

use super::flag_values::{duration, go_bool};
use crate::bad_setting::BadSetting;
use crate::cluster::families::PerFamily;
use crate::error_text::error_text;
use crate::pod_network::allocation::LeaseTerms;
use crate::pod_network::annotations::{DEFAULT_PREFIX, Prefix};
use crate::pod_network::interface::InterfaceOptions;
use crate::pod_network::settings::{NetworkSettings, SubnetSource};

/// A lease has to outlast a few tries to renew it.
const SHORTEST_LEASE: Duration = Duration::from_secs(10);

/// Every flag about the pod network.
#[derive(Args, Clone, Debug, PartialEq, Eq)]
#[command(next_help_heading = "Flags of the pod network")]
pub struct NetworkFlags {
    /// Run the pod network, too: what flannel does
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_value = "false", default_missing_value = "true", value_parser = go_bool, action = clap::ArgAction::Set)]
    pub pod_network: bool,
    /// Run the service proxy: what kube-proxy does
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_value = "true", default_missing_value = "true", value_parser = go_bool, action = clap::ArgAction::Set)]
    pub proxy: bool,
    /// Source of this node's subnet: the podCIDRs of its Node, or a Lease that sepal takes
    #[arg(long, value_name = "SOURCE", default_value = "node")]
    pub subnet_source: SubnetSourceFlag,
    /// With --subnet-source=lease: how long a node that is down keeps its subnet
    #[arg(long, value_name = "DURATION", default_value = "24h", value_parser = lease_duration)]
    pub subnet_lease_duration: Duration,
    /// Path of flannel's net-conf.json
    #[arg(long, value_name = "FILE", default_value = "/etc/kube-flannel/net-conf.json")]
    pub net_config_path: String,
    /// File that tells the CNI plugin this node's subnet (subnet.env)
    #[arg(long, value_name = "FILE", default_value = "/run/flannel/subnet.env")]
    pub subnet_file: String,
    /// Folder for the CNI configuration, usually /etc/cni/net.d; it is written once the pod network works
    #[arg(long, value_name = "DIR", default_value = "", hide_default_value = true)]
    pub cni_conf_dir: String,
    /// Interface to other nodes, by name or address. May be repeated: the first one that exists is used
    #[arg(long, value_name = "INTERFACE")]
    pub iface: Vec<String>,
    /// Regular expression for the addresses or the name of the interface to other nodes; tried after --iface
    #[arg(long, value_name = "REGEX")]
    pub iface_regex: Vec<String>,
    /// Use the interface by which packets reach this address; tried last
    #[arg(long, value_name = "IP", default_value = "", hide_default_value = true)]
    pub iface_can_reach: String,
    /// IPv4 address of this node that other nodes send to [default: that of the interface]
    #[arg(long, value_name = "IP", default_value = "", hide_default_value = true)]
    pub public_ip: String,
    /// IPv6 address of this node that other nodes send to [default: that of the interface]
    #[arg(long, value_name = "IP", default_value = "", hide_default_value = true)]
    pub public_ipv6: String,
    /// Masquerade packets that leave the pod network: they get this node's address as their source
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_value = "false", default_missing_value = "true", value_parser = go_bool, action = clap::ArgAction::Set)]
    pub ip_masq: bool,
    /// With --ip-masq: do not choose random source ports
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_value = "false", default_missing_value = "true", value_parser = go_bool, action = clap::ArgAction::Set)]
    pub ip_masq_fully_random_disable: bool,
    /// Accept forwarded packets from and to pods (chain FLANNEL-FWD)
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_value = "true", default_missing_value = "true", value_parser = go_bool, action = clap::ArgAction::Set)]
    pub iptables_forward_rules: bool,
    /// Add a blackhole route for addresses of this node's subnet that no pod has
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_value = "false", default_missing_value = "true", value_parser = go_bool, action = clap::ArgAction::Set)]
    pub ip_blackhole_route: bool,
    /// Prefix of the names of flannel's annotations on Nodes
    #[arg(long, value_name = "PREFIX", default_value = DEFAULT_PREFIX)]
    pub kube_annotation_prefix: String,
    /// Set the Node's condition NetworkUnavailable
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_value = "true", default_missing_value = "true", value_parser = go_bool, action = clap::ArgAction::Set)]
    pub set_node_network_unavailable: bool,
    /// Checksum offload of VXLAN links; `off` helps if the hardware computes wrong checksums and connections stall
    #[arg(long, value_name = "SETTING", default_value = "kernel")]
    pub vxlan_checksum_offload: ChecksumOffloadFlag,
}

/// Sources of subnets on the command line.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum SubnetSourceFlag {
    /// podCIDRs of the Node.
    #[default]
    Node,
    /// A Lease.
    Lease,
}

/// What to do about checksum offload, on the command line.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum ChecksumOffloadFlag {
    /// Keep the kernel's setting.
    #[default]
    Kernel,
    /// Switch it on.
    On,
    /// Switch it off.
    Off,
}

impl Default for NetworkFlags {
    fn default() -> Self {
        Self {
            pod_network: false,
            proxy: true,
            subnet_source: SubnetSourceFlag::Node,
            subnet_lease_duration: LeaseTerms::DURATION,
            net_config_path: "/etc/kube-flannel/net-conf.json".into(),
            subnet_file: "/run/flannel/subnet.env".into(),
            cni_conf_dir: String::new(),
            iface: Vec::new(),
            iface_regex: Vec::new(),
            iface_can_reach: String::new(),
            public_ip: String::new(),
            public_ipv6: String::new(),
            ip_masq: false,
            ip_masq_fully_random_disable: false,
            iptables_forward_rules: true,
            ip_blackhole_route: false,
            kube_annotation_prefix: DEFAULT_PREFIX.into(),
            set_node_network_unavailable: true,
            vxlan_checksum_offload: ChecksumOffloadFlag::Kernel,
        }
    }
}

impl NetworkFlags {
    /// The settings these flags amount to.
    ///
    /// # Errors
    /// One that makes no sense, by its name.
    pub fn settings(&self) -> Result<NetworkSettings, BadSetting> {
        let bad = |flag: &str, cause: String| BadSetting { field: flag.into(), cause };
        for pattern in &self.iface_regex {
            Regex::new(pattern).map_err(|error| {
                bad("--iface-regex", format!("could not compile the IP address regex '{pattern}': {}", error_text(&error)))
            })?;
        }
        let v4 = optional::<Ipv4Addr>(&self.public_ip).map_err(|text| bad("--public-ip", format!("invalid public IP address: {text}")))?;
        let v6 =
            optional::<Ipv6Addr>(&self.public_ipv6).map_err(|text| bad("--public-ipv6", format!("invalid public IPv6 address: {text}")))?;
        let can_reach =
            optional::<IpAddr>(&self.iface_can_reach).map_err(|text| bad("--iface-can-reach", format!("{text:?} is not an IP address")))?;
        let prefix = Prefix::new(&self.kube_annotation_prefix).map_err(|error| bad("--kube-annotation-prefix", error.to_string()))?;
        Ok(NetworkSettings {
            subnet_source: match self.subnet_source {
                SubnetSourceFlag::Node => SubnetSource::Node,
                SubnetSourceFlag::Lease => SubnetSource::Lease,
            },
            lease_terms: LeaseTerms::of(self.subnet_lease_duration),
            net_config_path: self.net_config_path.clone().into(),
            subnet_file: self.subnet_file.clone().into(),
            cni_conf_dir: (!self.cni_conf_dir.is_empty()).then(|| self.cni_conf_dir.clone().into()),
            interface: InterfaceOptions {
                names: self.iface.clone(),
                patterns: self.iface_regex.clone(),
                can_reach: can_reach.map(|ip| ip.to_canonical()),
                reached: None,
                public: PerFamily { v4: v4.map(IpAddr::V4), v6: v6.map(IpAddr::V6) },
            },
            masquerade: self.ip_masq,
            random_fully: !self.ip_masq_fully_random_disable,
            forward_rules: self.iptables_forward_rules,
            blackhole_route: self.ip_blackhole_route,
            annotation_prefix: self.kube_annotation_prefix.clone(),
            prefix,
            set_network_unavailable: self.set_node_network_unavailable,
            checksum_offload: match self.vxlan_checksum_offload {
                ChecksumOffloadFlag::Kernel => None,
                ChecksumOffloadFlag::On => Some(true),
                ChecksumOffloadFlag::Off => Some(false),
            },
        })
    }
}

/// A duration that a lease can have.
fn lease_duration(text: &str) -> Result<Duration, String> {
    let asked = duration(text)?.positive().filter(|asked| *asked >= SHORTEST_LEASE);
    asked.ok_or_else(|| format!("{text} is less than {} s, in which no lease could be renewed", SHORTEST_LEASE.as_secs()))
}

/// What a text says, if it says anything; the text, if that is nonsense.
fn optional<T: FromStr>(text: &str) -> Result<Option<T>, &str> {
    if text.is_empty() { Ok(None) } else { text.parse().map(Some).map_err(|_| text) }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct OnlyFlags {
        #[command(flatten)]
        network: NetworkFlags,
    }

    fn parse(arguments: &str) -> NetworkFlags {
        OnlyFlags::try_parse_from(std::iter::once("x").chain(arguments.split_whitespace()))
            .unwrap_or_else(|error| panic!("{error}"))
            .network
    }

    #[test]
    fn defaults_are_flannels() {
        assert_eq!(parse(""), NetworkFlags::default());
        assert_eq!(parse("").settings(), Ok(NetworkSettings::default()));
    }

    #[test]
    fn flags_become_settings() {
        let flags = parse(
            "--pod-network --proxy=false --subnet-source=lease --subnet-lease-duration=10m --net-config-path=/n --subnet-file /s --cni-conf-dir /c --iface=eth1 --iface 10.0.0.1 --iface-regex ^eth \
             --iface-can-reach=10.0.0.9 --public-ip=192.0.2.1 --public-ipv6=fd00::1 --ip-masq --ip-masq-fully-random-disable=true \
             --iptables-forward-rules=false --ip-blackhole-route --kube-annotation-prefix=a.b/c --set-node-network-unavailable=F --vxlan-checksum-offload=off",
        );
        assert!(flags.pod_network && !flags.proxy);
        let want = NetworkSettings {
            subnet_source: SubnetSource::Lease,
            lease_terms: LeaseTerms::of(Duration::from_secs(600)),
            net_config_path: "/n".into(),
            subnet_file: "/s".into(),
            cni_conf_dir: Some("/c".into()),
            interface: InterfaceOptions {
                names: vec!["eth1".into(), "10.0.0.1".into()],
                patterns: vec!["^eth".into()],
                can_reach: "10.0.0.9".parse().ok(),
                reached: None,
                public: PerFamily { v4: "192.0.2.1".parse().ok(), v6: "fd00::1".parse().ok() },
            },
            masquerade: true,
            random_fully: false,
            forward_rules: false,
            blackhole_route: true,
            annotation_prefix: "a.b/c".into(),
            prefix: Prefix::new("a.b/c").expect("a good one"),
            set_network_unavailable: false,
            checksum_offload: Some(false),
        };
        assert_eq!(flags.settings(), Ok(want));
    }

    #[test]
    fn nonsense_is_refused_by_the_flags_name() {
        for (arguments, want) in [
            ("--iface-regex=(", "--iface-regex: could not compile the IP address regex '('"),
            ("--public-ip=fd00::1", "--public-ip: invalid public IP address: fd00::1"),
            ("--public-ipv6=10.0.0.1", "--public-ipv6: invalid public IPv6 address: 10.0.0.1"),
            ("--iface-can-reach=host", "--iface-can-reach: \"host\" is not an IP address"),
            ("--kube-annotation-prefix=a.b/c/d", "--kube-annotation-prefix: subnet/kube: prefix can contain at most single slash"),
            ("--kube-annotation-prefix=flannel", "--kube-annotation-prefix: subnet/kube: prefix must be in a format: fqdn/[0-9a-z-_]*"),
        ] {
            let error = parse(arguments).settings().expect_err(arguments).to_string();
            assert!(error.starts_with(want), "{error}");
        }
    }
}
