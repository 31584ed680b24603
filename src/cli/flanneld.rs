//! The command line of flanneld, with its spelling and its environment (network spec section 2).
//!
//! Flags are Go's: one dash or two, `-flag=value` or `-flag value`, and a bool takes its value only with `=`. A command line that cannot
//! be read ends the program with status 0, as flanneld does.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fmt::Write as _;

use crate::config::flag_values::go_bool;
use crate::config::flags::{Face, HostPort, RunFlags};
use crate::config::network_flags::NetworkFlags;

use super::arguments;

/// The name under which the program takes exactly flanneld's command line.
pub(super) const FLANNELD: &str = "flanneld";

/// The flags of the daemon that this process's command line and environment amount to, and what was read past.
///
/// # Errors
/// There is nothing to run.
pub(super) fn run_flags() -> Result<(RunFlags, Vec<String>), Ended> {
    let mut arguments = std::env::args_os().map(|argument| argument.to_string_lossy().into_owned());
    let program = arguments.next().unwrap_or_else(|| FLANNELD.into());
    let arguments: Vec<String> = arguments.collect();
    let Flanneld { network, kubeconfig, master, healthz, verbosity, notes } = parse(&program, &arguments, |key| std::env::var(key).ok())?;
    let proxy = ["kube-proxy".into(), format!("--kubeconfig={kubeconfig}"), format!("--master={master}"), format!("--v={verbosity}")];
    let flags = arguments::kube_proxy(&proxy.map(OsString::from)).map_err(|ending| Ended { text: ending.text, status: 1 })?;
    Ok((RunFlags { network, face: Face::Flanneld { healthz }, ..flags }, notes))
}

/// What flanneld's command line and environment ask for.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Flanneld {
    /// The pod network; the service proxy is off.
    pub network: NetworkFlags,
    /// `--kubeconfig-file`; empty for none.
    pub kubeconfig: String,
    /// `--kube-api-url`; empty for none.
    pub master: String,
    /// Where `/healthz` and `/readyz` are answered; `None` for nowhere.
    pub healthz: Option<HostPort>,
    /// `--v`: how much is logged.
    pub verbosity: u32,
    /// What was read past and is worth a line in the log.
    pub notes: Vec<String>,
}

/// What is printed on standard error before the program ends at once.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Ended {
    /// The text.
    pub text: String,
    /// The exit status.
    pub status: u8,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Bool,
    Int,
    Text,
    /// May be given more than once.
    List,
}

/// A flag: its name, what it takes, its default and what it is for.
struct Flag(&'static str, Kind, &'static str, &'static str);

/// Every flag of flanneld, in the order of its usage.
const FLAGS: [Flag; 31] = [
    Flag("etcd-cafile", Kind::Text, "", UNUSED_ETCD),
    Flag("etcd-certfile", Kind::Text, "", UNUSED_ETCD),
    Flag("etcd-endpoints", Kind::Text, "http://127.0.0.1:4001,http://127.0.0.1:2379", UNUSED_ETCD),
    Flag("etcd-keyfile", Kind::Text, "", UNUSED_ETCD),
    Flag("etcd-password", Kind::Text, "", UNUSED_ETCD),
    Flag("etcd-prefix", Kind::Text, "/coreos.com/network", UNUSED_ETCD),
    Flag("etcd-username", Kind::Text, "", UNUSED_ETCD),
    Flag("healthz-ip", Kind::Text, "0.0.0.0", "address or name of the health server; empty for every address"),
    Flag("healthz-port", Kind::Int, "0", "port of the health server; 0 for none"),
    Flag(
        "iface",
        Kind::List,
        "",
        "interface to other nodes, by name or address, empty for that of the default route; may be repeated, the first one that exists is used",
    ),
    Flag(
        "iface-can-reach",
        Kind::Text,
        "",
        "use the interface by which packets reach this address, with the source address that the kernel takes; tried last",
    ),
    Flag(
        "iface-regex",
        Kind::List,
        "",
        "regular expression for the addresses or the name of that interface; may be repeated, tried after iface",
    ),
    Flag("ip-blackhole-route", Kind::Bool, "false", "add a blackhole route for addresses of this node's subnet that no pod has"),
    Flag("ip-masq", Kind::Bool, "false", "masquerade packets that leave the pod network: they get this node's address as their source"),
    Flag("ip-masq-fully-random-disable", Kind::Bool, "false", "with ip-masq: do not choose random source ports"),
    Flag("iptables-forward-rules", Kind::Bool, "true", "accept forwarded packets from and to pods"),
    Flag("iptables-resync", Kind::Int, "5", "accepted and ignored: rules are checked when they change, and from time to time"),
    Flag("kube-annotation-prefix", Kind::Text, "flannel.alpha.coreos.com", "prefix of the names of the annotations on Nodes"),
    Flag("kube-api-url", Kind::Text, "", "address of the API server"),
    Flag("kube-subnet-mgr", Kind::Bool, "false", "take subnets from the Kubernetes API; required, as etcd is not supported"),
    Flag("kubeconfig-file", Kind::Text, "", "path of the kubeconfig; in-cluster if neither this nor kube-api-url is given"),
    Flag("log_backtrace_at", Kind::Text, "", "accepted, and has no effect"),
    Flag("net-config-path", Kind::Text, "/etc/kube-flannel/net-conf.json", "the network's configuration"),
    Flag("public-ip", Kind::Text, "", "IPv4 address of this node that other nodes send to"),
    Flag("public-ipv6", Kind::Text, "", "IPv6 address of this node that other nodes send to"),
    Flag("set-node-network-unavailable", Kind::Bool, "true", "set the Node's condition NetworkUnavailable"),
    Flag("subnet-file", Kind::Text, "/run/flannel/subnet.env", "file that tells the CNI plugin this node's subnet"),
    Flag("subnet-lease-renew-margin", Kind::Int, "60", "accepted (1 to 1439); for etcd only"),
    Flag("v", Kind::Int, "0", "verbosity of the log: 0 to 6"),
    Flag("version", Kind::Bool, "false", "print the version and exit"),
    Flag("vmodule", Kind::Text, "", "accepted, and has no effect"),
];

const UNUSED_ETCD: &str = "accepted and ignored: subnets come from the Kubernetes API";

/// Takes a command line without the program's name, and the environment.
///
/// # Errors
/// There is nothing to run. What to print on standard error: the help, the version, or what is wrong.
fn parse(program: &str, arguments: &[String], environment: impl Fn(&str) -> Option<String>) -> Result<Flanneld, Ended> {
    let mut values = Values::default();
    values.read_arguments(arguments).map_err(|error| error.map_or_else(|| usage(program), |error| unreadable(&error)))?;
    if values.bool("version") {
        return Err(Ended { text: format!("sepal {} (in place of flanneld 0.28.9)\n", env!("CARGO_PKG_VERSION")), status: 0 });
    }
    let notes = values.read_environment(environment);
    let refuse = |text: String| Ended { text: text + "\n", status: 1 };
    if !(1..=1439).contains(&values.int("subnet-lease-renew-margin")) {
        return Err(refuse(
            "Invalid subnet-lease-renew-margin option, out of acceptable range: it has to be from 1 to 1439 minutes".into(),
        ));
    }
    if !values.bool("kube-subnet-mgr") {
        return Err(refuse(
            "Failed to create SubnetManager: subnets come from the Kubernetes API here, not from etcd: give --kube-subnet-mgr".into(),
        ));
    }
    values.resolve(notes).map_err(refuse)
}

/// The error, and where the help is.
fn unreadable(error: &str) -> Ended {
    Ended { text: format!("{error}\nSee '{FLANNELD} --help'.\n"), status: 0 }
}

/// The help.
fn usage(program: &str) -> Ended {
    let mut text = format!("Usage: {program} [OPTION]...\n");
    for Flag(name, kind, default, what) in &FLAGS {
        let (takes, quote) = match kind {
            Kind::Bool => ("", ""),
            Kind::Int => (" int", ""),
            Kind::Text => (" string", "\""),
            Kind::List => (" value", ""),
        };
        let shown = if matches!(*default, "" | "0" | "false") { String::new() } else { format!(" (default {quote}{default}{quote})") };
        let _ = writeln!(text, "  -{name}{takes}\n    \t{what}{shown}");
    }
    Ended { text, status: 0 }
}

/// What flags are given.
#[derive(Default)]
struct Values(BTreeMap<&'static str, Vec<String>>);

impl Values {
    /// Reads flags. What is wrong is the error; `None` stands for a flag that asks for help.
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
            let Some(flag) = FLAGS.iter().find(|flag| flag.0 == name) else {
                return Err((!matches!(name, "help" | "h")).then(|| format!("flag provided but not defined: -{name}")));
            };
            let value = match (value, flag.1) {
                (Some(value), _) => value,
                (None, Kind::Bool) => "true".into(),
                (None, _) => rest.next().cloned().ok_or_else(|| Some(format!("flag needs an argument: -{name}")))?,
            };
            self.set(flag, &value).map_err(|cause| match flag.1 {
                Kind::Bool => Some(format!("invalid boolean value {value:?} for -{name}: {cause}")),
                _ => Some(format!("invalid value {value:?} for flag -{name}: {cause}")),
            })?;
        }
        Ok(())
    }

    /// The environment has its say where the command line has none; what is wrong there is told and passed over.
    fn read_environment(&mut self, environment: impl Fn(&str) -> Option<String>) -> Vec<String> {
        let mut notes = Vec::new();
        for flag in &FLAGS {
            let key = format!("FLANNELD_{}", flag.0.to_uppercase().replace('-', "_"));
            let value = environment(&key).filter(|value| !value.is_empty() && !self.0.contains_key(flag.0));
            if let Some(value) = value
                && let Err(cause) = self.set(flag, &value)
            {
                notes.push(format!("Failed to set flag FLANNELD env: invalid value {value:?} for {key}: {cause}"));
            }
        }
        notes
    }

    fn set(&mut self, flag: &Flag, value: &str) -> Result<(), &'static str> {
        match flag.1 {
            Kind::Bool => drop(go_bool(value).map_err(|_| "parse error")?),
            Kind::Int => drop(go_int(value).ok_or("parse error")?),
            Kind::Text | Kind::List => {}
        }
        let values = self.0.entry(flag.0).or_default();
        if flag.1 != Kind::List {
            values.clear();
        }
        values.push(value.to_owned());
        Ok(())
    }

    fn list(&self, name: &str) -> Vec<String> {
        self.0.get(name).cloned().unwrap_or_default()
    }

    fn text(&self, name: &str) -> String {
        let default = || FLAGS.iter().find(|flag| flag.0 == name).map_or("", |flag| flag.2).to_owned();
        self.0.get(name).and_then(|values| values.last().cloned()).unwrap_or_else(default)
    }

    fn bool(&self, name: &str) -> bool {
        go_bool(&self.text(name)).unwrap_or_default()
    }

    fn int(&self, name: &str) -> i64 {
        go_int(&self.text(name)).unwrap_or_default()
    }

    fn resolve(&self, notes: Vec<String>) -> Result<Flanneld, String> {
        let network = NetworkFlags {
            pod_network: true,
            proxy: false,
            net_config_path: self.text("net-config-path"),
            subnet_file: self.text("subnet-file"),
            iface: self.list("iface"),
            iface_regex: self.list("iface-regex"),
            iface_can_reach: self.text("iface-can-reach"),
            public_ip: self.text("public-ip"),
            public_ipv6: self.text("public-ipv6"),
            ip_masq: self.bool("ip-masq"),
            ip_masq_fully_random_disable: self.bool("ip-masq-fully-random-disable"),
            iptables_forward_rules: self.bool("iptables-forward-rules"),
            ip_blackhole_route: self.bool("ip-blackhole-route"),
            kube_annotation_prefix: self.text("kube-annotation-prefix"),
            set_node_network_unavailable: self.bool("set-node-network-unavailable"),
            ..NetworkFlags::default()
        };
        Ok(Flanneld {
            network,
            kubeconfig: self.text("kubeconfig-file"),
            master: self.text("kube-api-url"),
            healthz: self.healthz()?,
            verbosity: u32::try_from(self.int("v")).unwrap_or_default(),
            notes,
        })
    }

    fn healthz(&self) -> Result<Option<HostPort>, String> {
        let port = self.int("healthz-port");
        if port <= 0 {
            return Ok(None);
        }
        let port = u16::try_from(port).map_err(|_| format!("healthz-port: {port} is not a port"))?;
        Ok(Some(HostPort { host: self.text("healthz-ip"), port }))
    }
}

/// A number as Go's flags take it: decimal, or with 0x, 0o, 0b, or a plain 0 before an octal one; `_` may stand between digits.
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

    fn run(arguments: &str, environment: &[(&str, &str)]) -> Result<Flanneld, Ended> {
        let arguments: Vec<String> = arguments.split_whitespace().map(str::to_owned).collect();
        parse("flanneld", &arguments, |key| environment.iter().find(|(name, _)| *name == key).map(|(_, value)| (*value).to_owned()))
    }

    #[test]
    fn the_shipped_manifests_arguments() {
        let flanneld = run("--ip-masq --kube-subnet-mgr --healthz-port=8081", &[]).expect("good");
        assert_eq!(flanneld.healthz, Some(HostPort { host: "0.0.0.0".into(), port: 8081 }));
        assert!(flanneld.network.pod_network && !flanneld.network.proxy);
        assert_eq!(flanneld.network.settings(), Ok(NetworkSettings { masquerade: true, ..NetworkSettings::default() }));
    }

    #[test]
    fn flags_are_gos() {
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
        assert_eq!(flanneld.healthz, Some(HostPort { host: "::1".into(), port: 1 }));
    }

    /// flanneld listens at whatever Go makes of it: an empty host is every address, and a name is looked up.
    #[test]
    fn the_health_server_s_host_is_text_and_its_port_may_be_off() {
        let healthz = |arguments: &str| run(&format!("--kube-subnet-mgr {arguments}"), &[]).expect("good").healthz;
        let at = |host: &str| Some(HostPort { host: host.into(), port: 8081 });
        assert_eq!(healthz("--healthz-port=8081 --healthz-ip=localhost"), at("localhost"));
        assert_eq!(healthz("--healthz-port=8081 --healthz-ip="), at(""));
        for off in ["", "--healthz-port=0", "--healthz-port=-1", "--healthz-ip=localhost"] {
            assert_eq!(healthz(off), None, "{off}");
        }
        let flanneld = run("--kube-subnet-mgr --iface= --iface=eth1 --iface-regex= --public-ip= --public-ipv6= --iface-can-reach=", &[]);
        let network = flanneld.expect("good").network;
        assert_eq!((network.iface.as_slice(), network.iface_regex.as_slice()), (&[String::new(), "eth1".into()][..], &[String::new()][..]));
        let settings = network.settings().expect("empty means not given");
        assert_eq!((settings.interface.can_reach, settings.interface.public), (None, PerFamily::default()));
    }

    #[test]
    fn the_environment_counts_where_the_command_line_is_silent() {
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
    fn what_cannot_be_read_is_told_first_with_one_line_of_hint_and_status_0() {
        for (arguments, error) in [
            ("--bogus", "flag provided but not defined: -bogus"),
            ("-iface", "flag needs an argument: -iface"),
            ("--healthz-port=x", "invalid value \"x\" for flag -healthz-port: parse error"),
            ("--ip-masq=maybe", "invalid boolean value \"maybe\" for -ip-masq: parse error"),
            ("---x", "bad flag syntax: ---x"),
        ] {
            let text = format!("{error}\nSee 'flanneld --help'.\n");
            assert_eq!(run(arguments, &[]).expect_err(arguments), Ended { text, status: 0 }, "{arguments}");
        }
        for arguments in ["--help", "-h", "-help"] {
            let ended = run(arguments, &[]).expect_err(arguments);
            assert_eq!((ended.status, ended.text.lines().next()), (0, Some("Usage: flanneld [OPTION]...")), "{arguments}");
            assert!(ended.text.contains(
                "\n  -net-config-path string\n    \tthe network's configuration (default \"/etc/kube-flannel/net-conf.json\")\n"
            ));
        }
        assert!(run("--version", &[]).is_err_and(|ended| ended.status == 0 && ended.text.starts_with("sepal ")));
        // A bool without = takes nothing, and what is no flag ends the flags.
        assert!(run("--kube-subnet-mgr false --bogus", &[]).is_ok());
    }

    #[test]
    fn what_makes_no_sense_is_a_failure() {
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
    fn numbers_are_gos() {
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
