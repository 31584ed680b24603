//! Measures ADD and DEL of the CNI plugin, and prints a table. It compares them with `ip -batch` creating the same kernel objects, and with
//! the upstream plugins if they are installed. Absolute times depend on the machine, so only the ratios count.
//!
//! - `SEPAL_BENCH_PODS=100` sets the number of pods that are connected and disconnected, one after the other.
//! - `SEPAL_BENCH_CNI_PATH=/usr/lib/cni` sets the folder of the upstream plugins `bridge`, `host-local` and `portmap`. `flannel` is measured
//!   if it is there, too.

#![allow(
    clippy::expect_used,
    clippy::disallowed_methods,
    clippy::print_stdout,
    missing_docs,
    reason = "a measuring tool: it starts programs, waits, and prints"
)]

use std::fs;
use std::io::Write;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Instant;

use sepal_lab::Netns;
use sepal_lab::figures::quantile;
use serde_json::{Value, json};
use tempfile::TempDir;

const SEPAL: &str = env!("CARGO_BIN_EXE_sepal");
/// The kernel counts CPU time in this many ticks per second.
const TICKS_PER_SECOND: f64 = 100.0;

/// A conflist and the folder of its plugins.
struct PluginSet {
    name: String,
    folder: PathBuf,
    plugins: Vec<Value>,
}

/// The wall times of a number of calls and their total CPU time, in milliseconds.
#[derive(Default)]
struct Times {
    wall: Vec<f64>,
    user: f64,
    system: f64,
}

impl Times {
    fn print_row(&mut self, name: &str, verb: &str) {
        let [median, p95] = [0.5, 0.95].map(|fraction| quantile(&mut self.wall, fraction));
        let count = self.wall.len() as f64;
        let mean = self.wall.iter().sum::<f64>() / count;
        let [user, system] = [self.user, self.system].map(|time| time / count);
        // The rest of the wall time is the kernel's: system calls, and waits for its locks and grace periods.
        let user_share = 100.0 * user / mean;
        println!("| {name} | {verb} | {median:.2} | {p95:.2} | {user:.2} | {system:.2} | {:.0} % |", 100.0 - user_share);
    }
}

fn main() {
    let pods: usize = std::env::var("SEPAL_BENCH_PODS").map_or(100, |text| text.parse().expect("a number"));
    let upstream = PathBuf::from(std::env::var("SEPAL_BENCH_CNI_PATH").unwrap_or_else(|_| "/usr/lib/cni".into()));
    println!("\n{pods} pods, one after the other; milliseconds for each\n");
    println!("| | | median | 95 % | user | system | kernel's share |\n| --- | --- | ---: | ---: | ---: | ---: | ---: |");
    measure_floor(pods);
    let folder = tempfile::tempdir().expect("a temporary folder");
    for name in ["sepal", "flannel", "portmap"] {
        symlink(SEPAL, folder.path().join(name)).expect("writable");
    }
    let flannel = json!({"type": "flannel", "delegate": {"hairpinMode": true, "isDefaultGateway": true}});
    let portmap = json!({"type": "portmap", "capabilities": {"portMappings": true}});
    let bridge = json!({"type": "bridge", "hairpinMode": true, "isDefaultGateway": true, "mtu": 1450});
    let own = folder.path().to_owned();
    measure(pods, &PluginSet { name: "sepal's conflist".into(), folder: own.clone(), plugins: vec![json!({"type": "sepal"})] });
    measure(pods, &PluginSet { name: "flannel's conflist, by sepal".into(), folder: own, plugins: vec![flannel.clone(), portmap.clone()] });
    if upstream.join("bridge").exists() {
        let name = "the real bridge, host-local and portmap".into();
        measure(pods, &PluginSet { name, folder: upstream.clone(), plugins: vec![bridge, portmap.clone()] });
    }
    if upstream.join("flannel").exists() {
        measure(
            pods,
            &PluginSet { name: "flannel's conflist, by the real four".into(), folder: upstream, plugins: vec![flannel, portmap] },
        );
    }
}

/// Returns the user and system CPU time of all ended child processes, in milliseconds.
fn children_cpu_ms() -> (f64, f64) {
    let text = fs::read_to_string("/proc/self/stat").expect("readable");
    let after = text.rsplit(')').next().expect("a name");
    let fields: Vec<f64> = after.split_whitespace().skip(13).take(2).map(|field| field.parse().expect("a number")).collect();
    (fields[0] * 1000.0 / TICKS_PER_SECOND, fields[1] * 1000.0 / TICKS_PER_SECOND)
}

/// Calls a function for each pod and measures it.
fn measure_each(pods: &[(String, String)], mut each: impl FnMut(&str, &str)) -> Times {
    let mut times = Times::default();
    let (user, system) = children_cpu_ms();
    for (id, netns) in pods {
        let start = Instant::now();
        each(id, netns);
        times.wall.push(start.elapsed().as_secs_f64() * 1000.0);
    }
    let (user_after, system_after) = children_cpu_ms();
    (times.user, times.system) = (user_after - user, system_after - system);
    times
}

/// Creates a node and its pods. The last value holds each pod's id and namespace path.
fn new_node_with_pods(pods: usize) -> (Netns, Vec<Netns>, Vec<(String, String)>) {
    let (node, netns) = (Netns::new(), (0..pods).map(|_| Netns::new()).collect::<Vec<_>>());
    let named = netns.iter().enumerate().map(|(index, netns)| (format!("pod{index}"), netns.path())).collect();
    (node, netns, named)
}

/// Connects and disconnects each pod, and prints the times.
fn measure(pods: usize, set: &PluginSet) {
    let (node, _netns, named) = new_node_with_pods(pods);
    let folder = tempfile::tempdir().expect("a temporary folder");
    let (folder_path, plugins, state) = (set.folder.clone(), set.plugins.clone(), write_subnet_env(&folder));
    let (mut add, mut del) = node.run_thread(move || {
        let run = |verb: &str, id: &str, netns: &str| run_plugins(&folder_path, &plugins, &state, verb, id, netns);
        // The first ADD creates the bridge, so it is not measured.
        run("ADD", "first", &named[0].1);
        run("DEL", "first", &named[0].1);
        (measure_each(&named, |id, netns| run("ADD", id, netns)), measure_each(&named, |id, netns| run("DEL", id, netns)))
    });
    add.print_row(&set.name, "ADD");
    del.print_row(&set.name, "DEL");
}

/// Writes subnet.env into the folder for the plugins' files.
fn write_subnet_env(folder: &TempDir) -> PathBuf {
    let env = "FLANNEL_NETWORK=10.244.0.0/16\nFLANNEL_SUBNET=10.244.1.1/24\nFLANNEL_MTU=1450\nFLANNEL_IPMASQ=true\n";
    fs::write(folder.path().join("subnet.env"), env).expect("writable");
    folder.path().to_owned()
}

/// Runs the plugins of a conflist as a container runtime does.
fn run_plugins(folder: &Path, plugins: &[Value], state: &Path, verb: &str, id: &str, netns: &str) {
    let mut result = Value::Null;
    let mut plugins: Vec<&Value> = plugins.iter().collect();
    if verb == "DEL" {
        plugins.reverse();
    }
    for plugin in plugins {
        let mut config = plugin.clone();
        (config["cniVersion"], config["name"]) = (json!("1.0.0"), json!("cbr0"));
        (config["subnetFile"], config["dataDir"]) = (json!(state.join("subnet.env")), json!(state.join("flannel")));
        config["ipam"] = json!({"type": "host-local", "dataDir": state.join("networks")});
        if plugin["type"] == "bridge" {
            config["ipam"]["ranges"] = json!([[{"subnet": "10.244.1.0/24"}]]);
            config["ipam"]["routes"] = json!([{"dst": "10.244.0.0/16"}]);
        }
        if !result.is_null() {
            config["prevResult"] = result.clone();
        }
        let mut command = Command::new(folder.join(plugin["type"].as_str().expect("a type")));
        command
            .env("CNI_COMMAND", verb)
            .env("CNI_PATH", folder)
            .env("CNI_CONTAINERID", id)
            .env("CNI_NETNS", netns)
            .env("CNI_IFNAME", "eth0");
        let output = run_with_input(&mut command, &config.to_string());
        if verb == "ADD" {
            result = serde_json::from_str(&output).expect("a result");
        }
    }
}

/// Runs a program with this input and returns its output.
fn run_with_input(command: &mut Command, text: &str) -> String {
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("the program starts");
    child.stdin.take().expect("piped").write_all(text.as_bytes()).expect("the program reads its input");
    let output = child.wait_with_output().expect("the program ends");
    let stdout = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{stdout}");
    stdout
}

/// Creates the same objects with one `ip -batch` on the node and one in the pod, and prints the times.
fn measure_floor(pods: usize) {
    let (node, netns, named) = new_node_with_pods(pods);
    node.run(
        "ip link add cni0 type bridge; ip link set cni0 up; ip addr add 10.244.1.1/24 brd + dev cni0; sysctl -qw net.ipv4.ip_forward=1",
    );
    let (mut add, mut del) = node.run_thread(move || {
        let mut host = 1;
        let add = measure_each(&named, |_, netns| {
            host += 1;
            let pid = netns.split('/').nth(2).expect("a process");
            let batch = format!(
                "link add veth{host:08} mtu 1450 master cni0 type veth peer name eth0 mtu 1450 netns {pid}\nlink set veth{host:08} up type bridge_slave hairpin on\n"
            );
            run_with_input(Command::new("ip").args(["-batch", "-"]), &batch);
            let pod_batch = format!(
                "addr add 10.244.1.{host}/24 brd + dev eth0\nlink set eth0 up\nroute add default via 10.244.1.1\nroute add 10.244.0.0/16 via 10.244.1.1\n"
            );
            run_with_input(Command::new("nsenter").arg(format!("--net={netns}")).args(["ip", "-batch", "-"]), &pod_batch);
        });
        let del = measure_each(&named, |_, netns| {
            run_with_input(Command::new("nsenter").arg(format!("--net={netns}")).args(["ip", "link", "del", "eth0"]), "");
        });
        (add, del)
    });
    drop(netns);
    add.print_row("the same objects by `ip -batch`", "ADD");
    del.print_row("the same objects by `ip -batch`", "DEL");
}
