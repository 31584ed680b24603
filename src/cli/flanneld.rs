//! The command line of flanneld, with its spelling and its environment variables [flannel 2].
//!
//! Flags follow Go's rules: one dash or two, `-flag=value` or `-flag value`, and a bool takes a value only after `=`. As with flanneld, an
//! invalid command line ends the program with exit status 0.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fmt::Write as _;

use crate::config::flag_values::go_bool;
use crate::config::flags::{HostPort, RunAs, RunFlags};
use crate::config::network_flags::NetworkFlags;
use crate::pod_network::settings::defaults;
use crate::versions;

use super::arguments;

/// The name under which the program takes flanneld's command line.
pub(super) const FLANNELD: &str = "flanneld";

/// Reads this process's command line and environment: the flags of the daemon, and notes for the log.
///
/// # Errors
/// The text to print before the program ends.
pub(super) fn run_flags() -> Result<(RunFlags, Vec<String>), FlanneldExit> {
    let mut arguments = std::env::args_os().map(|argument| argument.to_string_lossy().into_owned());
    let program = arguments.next().unwrap_or_else(|| FLANNELD.into());
    let arguments: Vec<String> = arguments.collect();
    let flanneld = parse(&program, &arguments, |key| std::env::var(key).ok())?;
    let healthz = flanneld.healthz().map_err(refused)?;
    let Flanneld { network, kubeconfig, master, verbosity, notes, .. } = flanneld;
    let proxy = ["kube-proxy".into(), format!("--kubeconfig={kubeconfig}"), format!("--master={master}"), format!("--v={verbosity}")];
    let flags = arguments::kube_proxy(&proxy.map(OsString::from)).map_err(|ending| FlanneldExit { text: ending.text, status: 1 })?;
    Ok((RunFlags { network, run_as: RunAs::Flanneld { healthz }, ..flags }, notes))
}

/// The end of a program that does not start the daemon: a text for standard error, and the exit status.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct FlanneldExit {
    /// The text.
    pub text: String,
    /// The exit status.
    pub status: u8,
}

/// The values of flanneld's flags.
#[derive(Clone, Debug, Default, PartialEq)]
struct Flanneld {
    network: NetworkFlags,
    kubeconfig: String,
    master: String,
    healthz_ip: String,
    healthz_port: i64,
    kube_subnet_mgr: bool,
    renew_margin: i64,
    verbosity: u32,
    version: bool,
    /// Invalid environment variables, for the log.
    notes: Vec<String>,
}

impl Flanneld {
    /// The address of the health server; `None` if there is none.
    fn healthz(&self) -> Result<Option<HostPort>, String> {
        if self.healthz_port <= 0 {
            return Ok(None);
        }
        let port = u16::try_from(self.healthz_port).map_err(|_| format!("healthz-port: {} is not a port", self.healthz_port))?;
        Ok(Some(HostPort { host: self.healthz_ip.clone(), port }))
    }
}

/// A flag of flanneld.
struct Flag {
    name: &'static str,
    /// The text of its default.
    default: &'static str,
    help: &'static str,
    effect: Effect,
}

/// The type of a flag, and where its value goes.
enum Effect {
    Bool(fn(&mut Flanneld, bool)),
    Int(fn(&mut Flanneld, i64)),
    Text(fn(&mut Flanneld, &str)),
    /// May be given more than once.
    List(fn(&mut Flanneld, &[String])),
}

use Effect::{Bool, Int, List, Text};

/// The effect of a flag whose text has none.
const UNUSED: Effect = Text(|_, _| ());
const UNUSED_ETCD: &str = "accepted and ignored: subnets come from the Kubernetes API";

/// Every flag of flanneld, in the order of its usage.
const FLAGS: [Flag; 31] = [
    Flag { name: "etcd-cafile", default: "", help: UNUSED_ETCD, effect: UNUSED },
    Flag { name: "etcd-certfile", default: "", help: UNUSED_ETCD, effect: UNUSED },
    Flag { name: "etcd-endpoints", default: "http://127.0.0.1:4001,http://127.0.0.1:2379", help: UNUSED_ETCD, effect: UNUSED },
    Flag { name: "etcd-keyfile", default: "", help: UNUSED_ETCD, effect: UNUSED },
    Flag { name: "etcd-password", default: "", help: UNUSED_ETCD, effect: UNUSED },
    Flag { name: "etcd-prefix", default: "/coreos.com/network", help: UNUSED_ETCD, effect: UNUSED },
    Flag { name: "etcd-username", default: "", help: UNUSED_ETCD, effect: UNUSED },
    Flag {
        name: "healthz-ip",
        default: "0.0.0.0",
        help: "address or name of the health server; empty for every address",
        effect: Text(|flags, text| text.clone_into(&mut flags.healthz_ip)),
    },
    Flag {
        name: "healthz-port",
        default: "0",
        help: "port of the health server; 0 for none",
        effect: Int(|flags, number| flags.healthz_port = number),
    },
    Flag {
        name: "iface",
        default: "",
        help: "interface to other nodes, by name or address, empty for that of the default route; may be repeated, the first one that exists is used",
        effect: List(|flags, items| flags.network.iface = items.to_vec()),
    },
    Flag {
        name: "iface-can-reach",
        default: "",
        help: "use the interface by which packets reach this address, with the source address that the kernel takes; tried last",
        effect: Text(|flags, text| text.clone_into(&mut flags.network.iface_can_reach)),
    },
    Flag {
        name: "iface-regex",
        default: "",
        help: "regular expression for the addresses or the name of that interface; may be repeated, tried after iface",
        effect: List(|flags, items| flags.network.iface_regex = items.to_vec()),
    },
    Flag {
        name: "ip-blackhole-route",
        default: "false",
        help: "add a blackhole route for addresses of this node's subnet that no pod has",
        effect: Bool(|flags, on| flags.network.ip_blackhole_route = on),
    },
    Flag {
        name: "ip-masq",
        default: "false",
        help: "masquerade packets that leave the pod network: they get this node's address as their source",
        effect: Bool(|flags, on| flags.network.ip_masq = on),
    },
    Flag {
        name: "ip-masq-fully-random-disable",
        default: "false",
        help: "with ip-masq: do not choose random source ports",
        effect: Bool(|flags, on| flags.network.ip_masq_fully_random_disable = on),
    },
    Flag {
        name: "iptables-forward-rules",
        default: "true",
        help: "accept forwarded packets from and to pods",
        effect: Bool(|flags, on| flags.network.iptables_forward_rules = on),
    },
    Flag {
        name: "iptables-resync",
        default: "5",
        help: "accepted and ignored: rules are checked when they change, and from time to time",
        effect: Int(|_, _| ()),
    },
    Flag {
        name: "kube-annotation-prefix",
        default: defaults::ANNOTATION_PREFIX,
        help: "prefix of the names of the annotations on Nodes",
        effect: Text(|flags, text| text.clone_into(&mut flags.network.kube_annotation_prefix)),
    },
    Flag {
        name: "kube-api-url",
        default: "",
        help: "address of the API server",
        effect: Text(|flags, text| text.clone_into(&mut flags.master)),
    },
    Flag {
        name: "kube-subnet-mgr",
        default: "false",
        help: "take subnets from the Kubernetes API; required, as etcd is not supported",
        effect: Bool(|flags, on| flags.kube_subnet_mgr = on),
    },
    Flag {
        name: "kubeconfig-file",
        default: "",
        help: "path of the kubeconfig; in-cluster if neither this nor kube-api-url is given",
        effect: Text(|flags, text| text.clone_into(&mut flags.kubeconfig)),
    },
    Flag { name: "log_backtrace_at", default: "", help: "accepted, and has no effect", effect: UNUSED },
    Flag {
        name: "net-config-path",
        default: defaults::NET_CONFIG_PATH,
        help: "the network's configuration",
        effect: Text(|flags, text| text.clone_into(&mut flags.network.net_config_path)),
    },
    Flag {
        name: "public-ip",
        default: "",
        help: "IPv4 address of this node that other nodes send to",
        effect: Text(|flags, text| text.clone_into(&mut flags.network.public_ip)),
    },
    Flag {
        name: "public-ipv6",
        default: "",
        help: "IPv6 address of this node that other nodes send to",
        effect: Text(|flags, text| text.clone_into(&mut flags.network.public_ipv6)),
    },
    Flag {
        name: "set-node-network-unavailable",
        default: "true",
        help: "set the Node's condition NetworkUnavailable",
        effect: Bool(|flags, on| flags.network.set_node_network_unavailable = on),
    },
    Flag {
        name: "subnet-file",
        default: defaults::SUBNET_FILE,
        help: "file that tells the CNI plugin this node's subnet",
        effect: Text(|flags, text| text.clone_into(&mut flags.network.subnet_file)),
    },
    Flag {
        name: "subnet-lease-renew-margin",
        default: "60",
        help: "accepted (1 to 1439); for etcd only",
        effect: Int(|flags, number| flags.renew_margin = number),
    },
    Flag {
        name: "v",
        default: "0",
        help: "verbosity of the log: 0 to 6",
        effect: Int(|flags, number| flags.verbosity = u32::try_from(number).unwrap_or_default()),
    },
    Flag { name: "version", default: "false", help: "print the version and exit", effect: Bool(|flags, on| flags.version = on) },
    Flag { name: "vmodule", default: "", help: "accepted, and has no effect", effect: UNUSED },
];

/// Parses a command line without the program's name, and the environment variables.
///
/// # Errors
/// The text to print before the program ends: the help, the version, or an error.
fn parse(program: &str, arguments: &[String], environment: impl Fn(&str) -> Option<String>) -> Result<Flanneld, FlanneldExit> {
    let mut values = Values::default();
    values.read_arguments(arguments).map_err(|error| error.map_or_else(|| usage(program), |error| unreadable(&error)))?;
    if values.flags().version {
        let (own, flannel) = (env!("CARGO_PKG_VERSION"), versions::FLANNELD.trim_start_matches('v'));
        return Err(FlanneldExit { text: format!("sepal {own} (in place of flanneld {flannel})\n"), status: 0 });
    }
    let notes = values.read_environment(environment);
    let flags = values.flags();
    if !(1..=1439).contains(&flags.renew_margin) {
        return Err(refused(
            "Invalid subnet-lease-renew-margin option, out of acceptable range: it has to be from 1 to 1439 minutes".into(),
        ));
    }
    if !flags.kube_subnet_mgr {
        let cause = "Failed to create SubnetManager: subnets come from the Kubernetes API here, not from etcd: give --kube-subnet-mgr";
        return Err(refused(cause.into()));
    }
    flags.healthz().map_err(refused)?;
    Ok(Flanneld { notes, ..flags })
}

/// An error after which the program ends with status 1.
fn refused(error: String) -> FlanneldExit {
    FlanneldExit { text: error + "\n", status: 1 }
}

/// An error of the command line, and where the help is.
fn unreadable(error: &str) -> FlanneldExit {
    FlanneldExit { text: format!("{error}\nSee '{FLANNELD} --help'.\n"), status: 0 }
}

/// The help.
fn usage(program: &str) -> FlanneldExit {
    let mut text = format!("Usage: {program} [OPTION]...\n");
    for Flag { name, default, help, effect } in &FLAGS {
        let (takes, quote) = match effect {
            Bool(_) => ("", ""),
            Int(_) => (" int", ""),
            Text(_) => (" string", "\""),
            List(_) => (" value", ""),
        };
        let shown = if matches!(*default, "" | "0" | "false") { String::new() } else { format!(" (default {quote}{default}{quote})") };
        let _ = writeln!(text, "  -{name}{takes}\n    \t{help}{shown}");
    }
    FlanneldExit { text, status: 0 }
}

/// The values that are given, by the name of the flag.
#[derive(Default)]
struct Values(BTreeMap<&'static str, Vec<String>>);

impl Values {
    /// Reads the arguments.
    ///
    /// # Errors
    /// An invalid argument, or `None` for a flag that asks for the help.
    fn read_arguments(&mut self, arguments: &[String]) -> Result<(), Option<String>> {
        let mut rest = arguments.iter();
        while let Some(argument) = rest.next() {
            let Some(text) = argument.strip_prefix('-').filter(|text| !text.is_empty()) else { return Ok(()) };
            let text = text.strip_prefix('-').unwrap_or(text);
            if text.is_empty() {
                return Ok(());
            }
            if text.starts_with(['-', '=']) {
                return Err(Some(format!("bad flag syntax: {argument}")));
            }
            let (name, value) = text.split_once('=').map_or((text, None), |(name, value)| (name, Some(value.to_owned())));
            let Some(flag) = FLAGS.iter().find(|flag| flag.name == name) else {
                return Err((!matches!(name, "help" | "h")).then(|| format!("flag provided but not defined: -{name}")));
            };
            let is_bool = matches!(flag.effect, Bool(_));
            let value = match value {
                Some(value) => value,
                None if is_bool => "true".into(),
                None => rest.next().cloned().ok_or_else(|| Some(format!("flag needs an argument: -{name}")))?,
            };
            self.set(flag, &value).map_err(|cause| {
                let start =
                    if is_bool { format!("invalid boolean value {value:?} for") } else { format!("invalid value {value:?} for flag") };
                Some(format!("{start} -{name}: {cause}"))
            })?;
        }
        Ok(())
    }

    /// Reads the environment variables of flags that the command line does not set. Returns a note for each invalid value.
    fn read_environment(&mut self, environment: impl Fn(&str) -> Option<String>) -> Vec<String> {
        let mut notes = Vec::new();
        for flag in &FLAGS {
            let key = format!("FLANNELD_{}", flag.name.to_uppercase().replace('-', "_"));
            let value = environment(&key).filter(|value| !value.is_empty() && !self.0.contains_key(flag.name));
            if let Some(value) = value
                && let Err(cause) = self.set(flag, &value)
            {
                notes.push(format!("Failed to set flag FLANNELD env: invalid value {value:?} for {key}: {cause}"));
            }
        }
        notes
    }

    fn set(&mut self, flag: &Flag, value: &str) -> Result<(), &'static str> {
        match flag.effect {
            Bool(_) => drop(go_bool(value).map_err(|_| "parse error")?),
            Int(_) => drop(go_int(value).ok_or("parse error")?),
            Text(_) | List(_) => {}
        }
        let values = self.0.entry(flag.name).or_default();
        if !matches!(flag.effect, List(_)) {
            values.clear();
        }
        values.push(value.to_owned());
        Ok(())
    }

    /// The flags with these values, and with the defaults of the others.
    fn flags(&self) -> Flanneld {
        let network = NetworkFlags { pod_network: true, proxy: false, ..NetworkFlags::default() };
        let mut flags = Flanneld { network, ..Flanneld::default() };
        for flag in &FLAGS {
            let values = self.0.get(flag.name).map(Vec::as_slice).unwrap_or_default();
            let text = values.last().map_or(flag.default, String::as_str);
            // `set` has refused every text that is not a bool or a number.
            match flag.effect {
                Bool(effect) => effect(&mut flags, go_bool(text).unwrap_or_default()),
                Int(effect) => effect(&mut flags, go_int(text).unwrap_or_default()),
                Text(effect) => effect(&mut flags, text),
                List(effect) => effect(&mut flags, values),
            }
        }
        flags
    }
}

/// Parses a number as Go's flags do: decimal, with 0x, 0o or 0b, or octal after a plain 0. `_` may stand between digits.
fn go_int(text: &str) -> Option<i64> {
    let (negative, digits) = match text.strip_prefix(['-', '+']) {
        Some(digits) => (text.starts_with('-'), digits),
        None => (false, text),
    };
    let lower = digits.to_lowercase();
    let prefixed = [("0x", 16), ("0o", 8), ("0b", 2)].into_iter().find_map(|(prefix, radix)| Some((lower.strip_prefix(prefix)?, radix)));
    let (digits, radix) = prefixed.unwrap_or(if lower.len() > 1 && lower.starts_with('0') { (&lower[1..], 8) } else { (&lower, 10) });
    let plain = digits.replace('_', "");
    if plain.is_empty() || plain.starts_with(['-', '+']) || digits.ends_with('_') || digits.contains("__") {
        return None;
    }
    let number = i64::from_str_radix(&plain, radix).ok()?;
    Some(if negative { -number } else { number })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cluster::families::PerFamily;
    use crate::pod_network::settings::NetworkSettings;

    fn run(arguments: &str, environment: &[(&str, &str)]) -> Result<Flanneld, FlanneldExit> {
        let arguments: Vec<String> = arguments.split_whitespace().map(str::to_owned).collect();
        parse("flanneld", &arguments, |key| environment.iter().find(|(name, _)| *name == key).map(|(_, value)| (*value).to_owned()))
    }

    #[test]
    fn the_arguments_of_flannels_manifest_give_the_default_settings() {
        let flanneld = run("--ip-masq --kube-subnet-mgr --healthz-port=8081", &[]).expect("good");
        assert_eq!(flanneld.healthz(), Ok(Some(HostPort { host: "0.0.0.0".into(), port: 8081 })));
        assert!(flanneld.network.pod_network && !flanneld.network.proxy);
        assert_eq!(flanneld.network.settings(), Ok(NetworkSettings { masquerade: true, ..NetworkSettings::default() }));
    }

    #[test]
    fn flags_follow_gos_rules() {
        let flanneld = run(
            "-kube-subnet-mgr=T -iface eth1 --iface=eth2 -iface-regex ^e --iface-can-reach 10.0.0.1 -public-ip=192.0.2.1 --public-ipv6 fd00::1 \
             --ip-masq-fully-random-disable --iptables-forward-rules=0 -ip-blackhole-route --set-node-network-unavailable=false --subnet-file /s \
             -net-config-path /n -kube-annotation-prefix a.b/c --kubeconfig-file /k --kube-api-url https://x -v 0x4 --healthz-ip ::1 -healthz-port 1 \
             -etcd-endpoints x --iptables-resync=7 -- --ip-masq",
            &[],
        )
        .expect("good");
        let network = &flanneld.network;
        assert_eq!((network.iface.as_slice(), network.iface_regex.as_slice()), (&["eth1".into(), "eth2".into()][..], &["^e".into()][..]));
        assert!(network.ip_masq_fully_random_disable && network.ip_blackhole_route && !network.ip_masq);
        assert!(!network.iptables_forward_rules && !network.set_node_network_unavailable);
        assert_eq!(
            (network.subnet_file.as_str(), network.net_config_path.as_str(), network.kube_annotation_prefix.as_str()),
            ("/s", "/n", "a.b/c")
        );
        assert_eq!(
            (network.public_ip.as_str(), network.public_ipv6.as_str(), network.iface_can_reach.as_str()),
            ("192.0.2.1", "fd00::1", "10.0.0.1")
        );
        assert_eq!((flanneld.kubeconfig.as_str(), flanneld.master.as_str(), flanneld.verbosity), ("/k", "https://x", 4));
        assert_eq!(flanneld.healthz(), Ok(Some(HostPort { host: "::1".into(), port: 1 })));
    }

    /// As Go does, flanneld listens on every address if the host is empty, and looks up a name.
    #[test]
    fn the_host_of_the_health_server_may_be_empty_or_a_name_and_port_0_means_no_server() {
        let healthz = |arguments: &str| run(&format!("--kube-subnet-mgr {arguments}"), &[]).expect("good").healthz().expect("a port");
        let at = |host: &str| Some(HostPort { host: host.into(), port: 8081 });
        assert_eq!(healthz("--healthz-port=8081 --healthz-ip=localhost"), at("localhost"));
        assert_eq!(healthz("--healthz-port=8081 --healthz-ip="), at(""));
        for off in ["", "--healthz-port=0", "--healthz-port=-1", "--healthz-ip=localhost"] {
            assert_eq!(healthz(off), None, "{off}");
        }
        let flanneld = run("--kube-subnet-mgr --iface= --iface=eth1 --iface-regex= --public-ip= --public-ipv6= --iface-can-reach=", &[]);
        let network = flanneld.expect("good").network;
        assert_eq!((network.iface.as_slice(), network.iface_regex.as_slice()), (&[String::new(), "eth1".into()][..], &[String::new()][..]));
        let settings = network.settings().expect("an empty value counts as not given");
        assert_eq!((settings.interface.can_reach, settings.interface.public), (None, PerFamily::default()));
    }

    #[test]
    fn environment_variables_set_what_the_command_line_does_not() {
        let environment = [
            ("FLANNELD_KUBE_SUBNET_MGR", "true"),
            ("FLANNELD_IP_MASQ", "true"),
            ("FLANNELD_IFACE", "eth3"),
            ("FLANNELD_V", "x"),
            ("FLANNELD_SUBNET_FILE", ""),
        ];
        let flanneld = run("--ip-masq=false", &environment).expect("good");
        assert_eq!((flanneld.network.ip_masq, flanneld.network.iface.as_slice()), (false, &["eth3".into()][..]));
        assert_eq!(flanneld.network.subnet_file, "/run/flannel/subnet.env");
        assert_eq!(flanneld.notes, ["Failed to set flag FLANNELD env: invalid value \"x\" for FLANNELD_V: parse error"]);
    }

    #[test]
    fn an_invalid_command_line_prints_the_error_then_a_hint_and_exits_with_0() {
        for (arguments, error) in [
            ("--bogus", "flag provided but not defined: -bogus"),
            ("-iface", "flag needs an argument: -iface"),
            ("--healthz-port=x", "invalid value \"x\" for flag -healthz-port: parse error"),
            ("--ip-masq=maybe", "invalid boolean value \"maybe\" for -ip-masq: parse error"),
            ("---x", "bad flag syntax: ---x"),
        ] {
            let text = format!("{error}\nSee 'flanneld --help'.\n");
            assert_eq!(run(arguments, &[]).expect_err(arguments), FlanneldExit { text, status: 0 }, "{arguments}");
        }
        for arguments in ["--help", "-h", "-help"] {
            let ended = run(arguments, &[]).expect_err(arguments);
            assert_eq!((ended.status, ended.text.lines().next()), (0, Some("Usage: flanneld [OPTION]...")), "{arguments}");
            assert!(ended.text.contains(
                "\n  -net-config-path string\n    \tthe network's configuration (default \"/etc/kube-flannel/net-conf.json\")\n"
            ));
        }
        assert!(run("--version", &[]).is_err_and(|ended| ended.status == 0 && ended.text.starts_with("sepal ")));
        // A bool takes a value only after =. The first argument that is not a flag ends the flags.
        assert!(run("--kube-subnet-mgr false --bogus", &[]).is_ok());
    }

    #[test]
    fn a_command_line_without_an_effect_exits_with_1() {
        for (arguments, start) in [
            ("--ip-masq", "Failed to create SubnetManager: subnets come from the Kubernetes API here"),
            ("--kube-subnet-mgr --subnet-lease-renew-margin=0", "Invalid subnet-lease-renew-margin option, out of acceptable range"),
            ("--kube-subnet-mgr --healthz-port=70000", "healthz-port: 70000 is not a port"),
        ] {
            let ended = run(arguments, &[]).expect_err(arguments);
            assert!(ended.status == 1 && ended.text.starts_with(start), "{ended:?}");
        }
    }

    #[test]
    fn numbers_follow_gos_rules() {
        for (text, want) in [
            ("10", Some(10)),
            ("-5", Some(-5)),
            ("0x1F", Some(31)),
            ("010", Some(8)),
            ("1_000", Some(1000)),
            ("0", Some(0)),
            ("", None),
            ("x", None),
            ("1_", None),
            ("0x", None),
            ("--1", None),
        ] {
            assert_eq!(go_int(text), want, "{text}");
        }
    }
}
