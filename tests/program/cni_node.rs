//! A node without a daemon, its pods, and a small container runtime that connects them by CNI plugins.

use std::fs;
use std::io::Write;
use std::net::{TcpListener, UdpSocket};
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};

use sepal_lab::Netns;
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::SEPAL;

/// The names under which the program is installed.
pub(crate) const NAMES: [&str; 6] = ["sepal", "flannel", "bridge", "host-local", "portmap", "loopback"];
/// A subnet.env as the daemon writes it.
pub(crate) const SUBNET_ENV: &str = "FLANNEL_NETWORK=10.244.0.0/16\nFLANNEL_SUBNET=10.244.1.1/24\nFLANNEL_IPV6_NETWORK=fd10:244::/32\nFLANNEL_IPV6_SUBNET=fd10:244:1::1/64\nFLANNEL_MTU=1450\nFLANNEL_IPMASQ=true\n";

/// A pod: a network namespace, and a name for it.
pub(crate) struct Pod {
    pub(crate) netns: Netns,
    pub(crate) id: String,
}

impl Pod {
    pub(crate) fn new(id: &str) -> Self {
        Self { netns: Netns::new(), id: id.to_owned() }
    }

    /// Starts a TCP and a UDP server that answer with the pod's name.
    pub(crate) fn serve(&self, port: u16) {
        let (tcp, udp) =
            self.netns.run_thread(move || (TcpListener::bind(("::", port)).expect("free"), UdpSocket::bind(("::", port)).expect("free")));
        let (name, too) = (self.id.clone(), self.id.clone());
        std::thread::spawn(move || {
            for stream in tcp.incoming().flatten() {
                let _ = { stream }.write_all(name.as_bytes());
            }
        });
        std::thread::spawn(move || {
            let mut buffer = [0; 64];
            while let Ok((_, peer)) = udp.recv_from(&mut buffer) {
                let _ = udp.send_to(too.as_bytes(), peer);
            }
        });
    }
}

/// A node with CNI plugins and no daemon.
pub(crate) struct Node {
    pub(crate) netns: Netns,
    folder: TempDir,
    /// A folder with the `iptables` programs of one variant, which is first in PATH.
    iptables: Option<PathBuf>,
}

impl Node {
    /// A node with a subnet.env.
    pub(crate) fn new() -> Self {
        let node = Self { netns: Netns::new(), folder: tempfile::tempdir().expect("a folder"), iptables: None };
        fs::create_dir(node.path("bin")).expect("writable");
        for name in NAMES {
            symlink(SEPAL, node.path("bin").join(name)).expect("writable");
        }
        node.write_subnet_env(SUBNET_ENV);
        node
    }

    /// A node whose `iptables` programs have this variant.
    pub(crate) fn with_iptables(variant: &str) -> Self {
        let mut node = Self::new();
        let folder = node.path("iptables");
        fs::create_dir(&folder).expect("writable");
        for base in ["iptables", "ip6tables"] {
            for operation in ["", "-save", "-restore"] {
                symlink(format!("/usr/sbin/{base}-{variant}{operation}"), folder.join(format!("{base}{operation}"))).expect("writable");
            }
        }
        node.iptables = Some(folder);
        node
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    pub(crate) fn write_subnet_env(&self, text: &str) {
        fs::write(self.path("subnet.env"), text).expect("writable");
    }

    /// The folder of reservations.
    pub(crate) fn reservations(&self) -> PathBuf {
        self.path("networks").join("cbr0")
    }

    /// The reserved addresses.
    pub(crate) fn reserved(&self) -> Vec<String> {
        let names = fs::read_dir(self.reservations()).into_iter().flatten().flatten().map(|entry| entry.file_name());
        let mut found: Vec<String> =
            names.filter_map(|name| name.into_string().ok()).filter(|name| name.parse::<std::net::IpAddr>().is_ok()).collect();
        found.sort();
        found
    }

    /// The containers whose delegate configuration is stored.
    pub(crate) fn kept(&self) -> Vec<String> {
        let names = fs::read_dir(self.path("flannel")).into_iter().flatten().flatten().map(|entry| entry.file_name());
        names.filter_map(|name| name.into_string().ok()).collect()
    }

    /// The ports of the bridge.
    pub(crate) fn ports(&self) -> Vec<String> {
        let listed = self.netns.run("ip -o link show type veth");
        let names = listed.lines().filter_map(|line| line.split([':', '@']).nth(1)).map(|name| name.trim().to_owned());
        names.filter(|name| name.starts_with("veth")).collect()
    }

    /// The whole nat table of IPv4.
    pub(crate) fn nat(&self) -> String {
        let mut save = self.netns.command("iptables-save");
        self.use_iptables(&mut save);
        let output = save.args(["-t", "nat"]).output().expect("iptables is there");
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    fn use_iptables(&self, command: &mut Command) {
        if let Some(folder) = &self.iptables {
            command.env("PATH", format!("{}:{}", folder.display(), std::env::var("PATH").unwrap_or_default()));
        }
    }

    /// flannel's conflist [flannel 10.2] with this node's folders.
    pub(crate) fn flannel(&self) -> Value {
        json!({"name": "cbr0", "cniVersion": "0.3.1", "plugins": [
            self.own(json!({"type": "flannel", "delegate": {"hairpinMode": true, "isDefaultGateway": true}})),
            {"type": "portmap", "capabilities": {"portMappings": true}},
        ]})
    }

    /// sepal's conflist.
    pub(crate) fn sepal(&self) -> Value {
        let plugin = self.own(json!({"type": "sepal", "capabilities": {"portMappings": true}}));
        json!({"name": "cbr0", "cniVersion": "1.1.0", "plugins": [plugin]})
    }

    fn own(&self, mut plugin: Value) -> Value {
        plugin["subnetFile"] = json!(self.path("subnet.env"));
        plugin["dataDir"] = json!(self.path("flannel"));
        plugin["ipam"] = json!({"dataDir": self.path("networks")});
        plugin
    }

    /// Starts a plugin.
    pub(crate) fn start(&self, verb: &str, pod: Option<&Pod>, config: &Value) -> Child {
        let kind = config["type"].as_str().expect("a type");
        let mut command = self.netns.command(&self.path("bin").join(kind).to_string_lossy());
        self.use_iptables(&mut command);
        command.env("CNI_COMMAND", verb).env("CNI_PATH", self.path("bin"));
        if let Some(pod) = pod {
            command.env("CNI_CONTAINERID", &pod.id).env("CNI_IFNAME", "eth0").env("CNI_NETNS", pod.netns.path());
            command.env("CNI_ARGS", "IgnoreUnknown=1;K8S_POD_NAMESPACE=shop;K8S_POD_NAME=web");
        }
        started(&mut command, &config.to_string())
    }

    /// Calls a plugin for a container, an interface and the path of a namespace.
    pub(crate) fn call_at(&self, verb: &str, [id, interface, netns]: [&str; 3], config: &Value) -> Result<Value, Value> {
        let mut command = self.netns.command(&self.path("bin").join(config["type"].as_str().expect("a type")).to_string_lossy());
        self.use_iptables(&mut command);
        command.env("CNI_COMMAND", verb).env("CNI_PATH", self.path("bin"));
        command.env("CNI_CONTAINERID", id).env("CNI_IFNAME", interface).env("CNI_NETNS", netns);
        answer(&started(&mut command, &config.to_string()).wait_with_output().expect("it ends"))
    }

    /// Calls a plugin with this configuration text and these `CNI_ARGS`.
    pub(crate) fn call_text(&self, [verb, kind, args]: [&str; 3], pod: &Pod, config: &str) -> Result<Value, Value> {
        let mut command = self.netns.command(&self.path("bin").join(kind).to_string_lossy());
        self.use_iptables(&mut command);
        command.env("CNI_COMMAND", verb).env("CNI_PATH", self.path("bin")).env("CNI_ARGS", args);
        command.env("CNI_CONTAINERID", &pod.id).env("CNI_IFNAME", "eth0").env("CNI_NETNS", pod.netns.path());
        answer(&started(&mut command, config).wait_with_output().expect("it ends"))
    }

    /// Calls a plugin and returns its answer.
    pub(crate) fn call(&self, verb: &str, pod: Option<&Pod>, config: &Value) -> Result<Value, Value> {
        answer(&self.start(verb, pod, config).wait_with_output().expect("it ends"))
    }

    /// Runs a conflist as a runtime does: each plugin in turn, in reverse order for DEL. Returns the last result.
    pub(crate) fn run(&self, verb: &str, conflist: &Value, pod: Option<&Pod>, ports: &Value, more: &Value) -> Result<Value, Value> {
        let mut plugins: Vec<&Value> = conflist["plugins"].as_array().expect("plugins").iter().collect();
        if verb == "DEL" {
            plugins.reverse();
        }
        let mut result = more.get("prevResult").cloned().unwrap_or_default();
        for plugin in plugins {
            let mut config = plugin.clone();
            config["name"] = conflist["name"].clone();
            config["cniVersion"] = conflist["cniVersion"].clone();
            for (key, value) in more.as_object().into_iter().flatten() {
                config[key] = value.clone();
            }
            if plugin["capabilities"]["portMappings"] == true && !ports.is_null() {
                config["runtimeConfig"] = json!({"portMappings": ports});
            }
            if !result.is_null() {
                config["prevResult"] = result.clone();
            }
            let answered = self.call(verb, pod, &config)?;
            if verb == "ADD" {
                result = answered;
            }
        }
        Ok(result)
    }

    pub(crate) fn add(&self, conflist: &Value, pod: &Pod) -> Value {
        self.run("ADD", conflist, Some(pod), &Value::Null, &json!({})).expect("it is connected")
    }

    pub(crate) fn del(&self, conflist: &Value, pod: &Pod) {
        self.run("DEL", conflist, Some(pod), &Value::Null, &json!({})).expect("it is disconnected");
    }

    /// Runs GC with these pods as valid attachments.
    pub(crate) fn gc(&self, pods: &[&Pod]) {
        let valid: Vec<Value> = pods.iter().map(|pod| json!({"containerID": pod.id, "ifname": "eth0"})).collect();
        let more = json!({"cni.dev/valid-attachments": valid});
        let done = self.run("GC", &self.sepal(), None, &Value::Null, &more);
        done.expect("GC succeeds");
    }

    /// Asserts that only the bridge is left.
    pub(crate) fn assert_clean(&self) {
        assert_eq!((self.ports(), self.reserved(), self.kept()), (vec![], vec![], vec![]));
        let nat = self.nat();
        assert!(!nat.contains("CNI-DN-") && !nat.contains("id: "), "{nat}");
    }
}

fn started(command: &mut Command, config: &str) -> Child {
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("it starts");
    // A killed plugin may not read all of its input.
    let _ = child.stdin.take().expect("piped").write_all(config.as_bytes());
    child
}

fn answer(output: &Output) -> Result<Value, Value> {
    let said = String::from_utf8_lossy(&output.stdout);
    let document = if said.trim().is_empty() { Ok(Value::Null) } else { serde_json::from_str(&said) };
    let document = document.unwrap_or_else(|error| panic!("{error}: {said} {}", String::from_utf8_lossy(&output.stderr)));
    if output.status.success() { Ok(document) } else { Err(document) }
}

/// The address of a result, without its prefix length.
pub(crate) fn address(result: &Value, at: usize) -> String {
    let address = result["ips"][at]["address"].as_str().expect("an address");
    address.split('/').next().expect("an address").to_owned()
}

/// The error code and the message of a failure.
pub(crate) fn failed(outcome: Result<Value, Value>) -> (u64, String) {
    let failure = outcome.expect_err("it fails");
    (failure["code"].as_u64().expect("a number"), failure["msg"].as_str().expect("words").to_owned())
}

/// Writes a reservation as the real plugin does.
pub(crate) fn reserve(folder: &Path, ip: &str, text: &str) {
    fs::create_dir_all(folder).expect("writable");
    fs::write(folder.join(ip), text).expect("writable");
}
