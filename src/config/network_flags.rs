//! The flags of the pod network: flannel's, with its names and defaults [flannel 2], and a few of sepal's own. Each flag is one block, see
//! [`super::flag_blocks`].

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::str::FromStr;
use std::time::Duration;

use clap::ValueEnum;
use regex::Regex;

use super::duration::GoDuration;
use super::flag_blocks::flags;
use super::flag_values::{duration, go_bool};
use crate::bad_setting::BadSetting;
use crate::error_text::error_text;
use crate::pod_network::allocation::LeaseTerms;
use crate::pod_network::annotations::Prefix;
use crate::pod_network::settings::{NetworkSettings, SubnetSource, defaults};

/// The shortest duration of a lease: the holder needs time for a few attempts to renew it.
const SHORTEST_LEASE: Duration = Duration::from_secs(10);

flags! {
    /// Every flag about the pod network.
    #[command(next_help_heading = "Flags of the pod network")]
    pub struct NetworkFlags for NetworkSettings, error BadSetting;

    /// Run the pod network, too: what flannel does
    pod_network: bool = false, alone "true";

    /// Run the service proxy: what kube-proxy does
    proxy: bool = true, alone "true";

    /// Source of this node's subnet: the podCIDRs of its Node, or a Lease that sepal takes
    #[arg(value_name = "SOURCE", value_enum)]
    subnet_source: SubnetSourceFlag = SubnetSourceFlag::default();
    |flags, settings| settings.subnet_source = match flags.subnet_source {
        SubnetSourceFlag::Node => SubnetSource::Node,
        SubnetSourceFlag::Lease => SubnetSource::Lease,
    };
    example "--subnet-source=lease" => |settings| settings.subnet_source == SubnetSource::Lease;

    /// With --subnet-source=lease: how long a node that is down keeps its subnet
    #[arg(value_name = "DURATION", value_parser = lease_duration)]
    subnet_lease_duration: GoDuration = GoDuration::of(LeaseTerms::DURATION);
    |flags, settings| settings.lease_terms = LeaseTerms::of(flags.subnet_lease_duration.positive().unwrap_or(LeaseTerms::DURATION));
    example "--subnet-lease-duration=10m" => |settings| settings.lease_terms.duration == Duration::from_secs(600);

    /// Path of flannel's net-conf.json
    #[arg(value_name = "FILE")]
    net_config_path: String = defaults::NET_CONFIG_PATH.to_owned();
    |flags, settings| settings.net_config_path = flags.net_config_path.clone().into();
    example "--net-config-path=/n" => |settings| settings.net_config_path.as_os_str() == "/n";

    /// File that tells the CNI plugin this node's subnet (subnet.env)
    #[arg(value_name = "FILE")]
    subnet_file: String = defaults::SUBNET_FILE.to_owned();
    |flags, settings| settings.subnet_file = flags.subnet_file.clone().into();
    example "--subnet-file /s" => |settings| settings.subnet_file.as_os_str() == "/s";

    /// Folder for the CNI configuration, usually /etc/cni/net.d; it is written once the pod network works
    #[arg(value_name = "DIR")]
    cni_conf_dir: String, unset "";
    |flags, settings| settings.cni_conf_dir = (!flags.cni_conf_dir.is_empty()).then(|| flags.cni_conf_dir.clone().into());
    example "--cni-conf-dir=/c" => |settings| settings.cni_conf_dir.as_ref().is_some_and(|folder| folder.as_os_str() == "/c");

    /// Interface to other nodes, by name or address. May be repeated: the first one that exists is used
    #[arg(value_name = "INTERFACE")]
    iface: Vec<String>;
    |flags, settings| settings.interface.names.clone_from(&flags.iface);
    example "--iface=eth1 --iface 10.0.0.1" => |settings| settings.interface.names == ["eth1", "10.0.0.1"];

    /// Regular expression for the addresses or the name of the interface to other nodes; tried after --iface
    #[arg(value_name = "REGEX")]
    iface_regex: Vec<String>;
    |flags, settings| {
        for pattern in &flags.iface_regex {
            Regex::new(pattern).map_err(|error| {
                bad("--iface-regex", format!("could not compile the IP address regex '{pattern}': {}", error_text(&error)))
            })?;
        }
        settings.interface.patterns.clone_from(&flags.iface_regex);
    };
    example "--iface-regex ^eth" => |settings| settings.interface.patterns == ["^eth"];

    /// Use the interface by which packets reach this address; tried last
    #[arg(value_name = "IP")]
    iface_can_reach: String, unset "";
    |flags, settings| {
        let ip = optional::<IpAddr>(&flags.iface_can_reach);
        let ip = ip.map_err(|text| bad("--iface-can-reach", format!("{text:?} is not an IP address")))?;
        settings.interface.can_reach = ip.map(|ip| ip.to_canonical());
    };
    example "--iface-can-reach=::ffff:10.0.0.9" => |settings| settings.interface.can_reach == "10.0.0.9".parse().ok();

    /// IPv4 address of this node that other nodes send to [default: that of the interface]
    #[arg(value_name = "IP")]
    public_ip: String, unset "";
    |flags, settings| {
        let ip = optional::<Ipv4Addr>(&flags.public_ip);
        let ip = ip.map_err(|text| bad("--public-ip", format!("invalid public IP address: {text}")))?;
        settings.interface.public.v4 = ip.map(IpAddr::V4);
    };
    example "--public-ip=192.0.2.1" => |settings| settings.interface.public.v4 == "192.0.2.1".parse().ok();

    /// IPv6 address of this node that other nodes send to [default: that of the interface]
    #[arg(value_name = "IP")]
    public_ipv6: String, unset "";
    |flags, settings| {
        let ip = optional::<Ipv6Addr>(&flags.public_ipv6);
        let ip = ip.map_err(|text| bad("--public-ipv6", format!("invalid public IPv6 address: {text}")))?;
        settings.interface.public.v6 = ip.map(IpAddr::V6);
    };
    example "--public-ipv6=fd00::1" => |settings| settings.interface.public.v6 == "fd00::1".parse().ok();

    /// Masquerade packets that leave the pod network: they get this node's address as their source
    ip_masq: bool = defaults::MASQUERADE, alone "true";
    |flags, settings| settings.masquerade = flags.ip_masq;
    example "--ip-masq" => |settings| settings.masquerade;

    /// With --ip-masq: do not choose random source ports
    ip_masq_fully_random_disable: bool = !defaults::RANDOM_FULLY, alone "true";
    |flags, settings| settings.random_fully = !flags.ip_masq_fully_random_disable;
    example "--ip-masq-fully-random-disable=true" => |settings| !settings.random_fully;

    /// Accept forwarded packets from and to pods (chain FLANNEL-FWD)
    iptables_forward_rules: bool = defaults::FORWARD_RULES, alone "true";
    |flags, settings| settings.forward_rules = flags.iptables_forward_rules;
    example "--iptables-forward-rules=false" => |settings| !settings.forward_rules;

    /// Add a blackhole route for addresses of this node's subnet that no pod has
    ip_blackhole_route: bool = defaults::BLACKHOLE_ROUTE, alone "true";
    |flags, settings| settings.blackhole_route = flags.ip_blackhole_route;
    example "--ip-blackhole-route" => |settings| settings.blackhole_route;

    /// Prefix of the names of flannel's annotations on Nodes
    #[arg(value_name = "PREFIX")]
    kube_annotation_prefix: String = defaults::ANNOTATION_PREFIX.to_owned();
    |flags, settings| {
        let text = &flags.kube_annotation_prefix;
        settings.prefix = Prefix::new(text).map_err(|error| bad("--kube-annotation-prefix", error.to_string()))?;
        settings.annotation_prefix.clone_from(text);
    };
    example "--kube-annotation-prefix=a.b/c" => |settings| settings.annotation_prefix == "a.b/c" && settings.prefix != Prefix::default();

    /// Set the Node's condition NetworkUnavailable
    set_node_network_unavailable: bool = defaults::SET_NETWORK_UNAVAILABLE, alone "true";
    |flags, settings| settings.set_network_unavailable = flags.set_node_network_unavailable;
    example "--set-node-network-unavailable=F" => |settings| !settings.set_network_unavailable;

    /// Checksum offload of VXLAN links; `off` helps if the hardware computes wrong checksums and connections stall
    #[arg(value_name = "SETTING", value_enum)]
    vxlan_checksum_offload: ChecksumOffloadFlag = ChecksumOffloadFlag::default();
    |flags, settings| settings.checksum_offload = match flags.vxlan_checksum_offload {
        ChecksumOffloadFlag::Kernel => None,
        ChecksumOffloadFlag::On => Some(true),
        ChecksumOffloadFlag::Off => Some(false),
    };
    example "--vxlan-checksum-offload=off" => |settings| settings.checksum_offload == Some(false);
}

impl NetworkFlags {
    /// The settings that follow from these flags.
    ///
    /// # Errors
    /// A flag is invalid. The error names it.
    pub fn settings(&self) -> Result<NetworkSettings, BadSetting> {
        let mut settings = NetworkSettings::default();
        self.apply(&mut settings)?;
        Ok(settings)
    }
}

/// Values of `--subnet-source`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum SubnetSourceFlag {
    /// podCIDRs of the Node.
    #[default]
    Node,
    /// A Lease.
    Lease,
}

/// Values of `--vxlan-checksum-offload`.
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

fn bad(flag: &str, cause: String) -> BadSetting {
    BadSetting { field: flag.into(), cause }
}

/// Parses the duration of a lease.
fn lease_duration(text: &str) -> Result<GoDuration, String> {
    let long_enough = |duration: &GoDuration| duration.positive().is_some_and(|duration| duration >= SHORTEST_LEASE);
    let too_short = || format!("{text} is less than {} s, in which no lease could be renewed", SHORTEST_LEASE.as_secs());
    Some(duration(text)?).filter(long_enough).ok_or_else(too_short)
}

/// Parses a value that may be empty. The error is the text itself.
fn optional<T: FromStr>(text: &str) -> Result<Option<T>, &str> {
    if text.is_empty() { Ok(None) } else { text.parse().map(Some).map_err(|_| text) }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;
    use crate::cluster::families::PerFamily;
    use crate::config::flag_blocks::check_examples;
    use crate::pod_network::interface::InterfaceOptions;

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
    fn each_flag_has_the_effect_of_its_examples() {
        check_examples(&NetworkFlags::examples(), |flags: &NetworkFlags| flags.settings().expect("valid"));
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
    fn an_invalid_value_is_refused_and_its_flag_is_named() {
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
