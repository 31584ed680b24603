//! What a pod waits for: ADD and DEL of the CNI plugin, beside what it takes to make the same objects with `ip` in batches, and beside the
//! real plugins where they are. Prints a table; figures that depend on the machine are only worth their ratio.
//!
//! - `SEPAL_BENCH_PODS=100` is how many pods are connected and disconnected, one after the other.
//! - `SEPAL_BENCH_CNI_PATH=/usr/lib/cni` is where the real `bridge`, `host-local` and `portmap` are; `flannel` counts where it is there.

#![allow(
    clippy::expect_used,
    clippy::disallowed_methods,
    clippy::print_stdout,
    missing_docs,
    reason = "an instrument: it starts programs, waits, and prints"
)]

use std::fs;
use std::io::Write;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Instant;

use sepal_lab::Netns;
use serde_json::{Value, json};
use tempfile::TempDir;

const SEPAL: &str = env!("CARGO_BIN_EXE_sepal");
/// Ticks of the kernel's clock for CPU time in a second.
const TICKS: f64 = 100.0;

/// One way to connect pods: what is run for each, in turn.
struct Way {
    name: String,
    folder: PathBuf,
    plugins: Vec<Value>,
}

/// A number of times, in milliseconds, and the CPU time that went with them.
#[derive(Default)]
struct Times {
    wall: Vec<f64>,
    user: f64,
    system: f64,
}

impl Times {
    fn quantile(&mut self, part: f64) -> f64 {
        self.wall.sort_by(f64::total_cmp);
        let place = (0..self.wall.len()).find(|place| (place + 1) as f64 >= part * self.wall.len() as f64);
        self.wall[place.expect("there are some")]
    }

    fn row(&mut self, name: &str, verb: &str) {
        let [median, most] = [0.5, 0.95].map(|part| self.quantile(part));
        let count = self.wall.len() as f64;
        let mean = self.wall.iter().sum::<f64>() / count;
        let [user, system] = [self.user, self.system].map(|time| time / count);
        // What is neither its own work nor the kernel's on its behalf is waiting: for the kernel's locks and grace periods.
        let own = 100.0 * user / mean;
        println!("| {name} | {verb} | {median:.2} | {most:.2} | {user:.2} | {system:.2} | {:.0} % |", 100.0 - own);
    }
}

fn main() {
    let pods: usize = std::env::var("SEPAL_BENCH_PODS").map_or(100, |text| text.parse().expect("a number"));
    let real = PathBuf::from(std::env::var("SEPAL_BENCH_CNI_PATH").unwrap_or_else(|_| "/usr/lib/cni".into()));
    println!("\n{pods} pods, one after the other; milliseconds for each\n");
    println!("| | | median | 95 % | user | system | kernel's share |\n| --- | --- | ---: | ---: | ---: | ---: | ---: |");
    floor(pods);
    let folder = tempfile::tempdir().expect("a folder");
    for name in ["sepal", "flannel", "portmap"] {
        symlink(SEPAL, folder.path().join(name)).expect("writable");
    }
    let flannel = json!({"type": "flannel", "delegate": {"hairpinMode": true, "isDefaultGateway": true}});
    let portmap = json!({"type": "portmap", "capabilities": {"portMappings": true}});
    let bridge = json!({"type": "bridge", "hairpinMode": true, "isDefaultGateway": true, "mtu": 1450});
    let own = folder.path().to_owned();
    measure(pods, &Way { name: "sepal's conflist".into(), folder: own.clone(), plugins: vec![json!({"type": "sepal"})] });
    measure(pods, &Way { name: "flannel's conflist, by sepal".into(), folder: own, plugins: vec![flannel.clone(), portmap.clone()] });
    if real.join("bridge").exists() {
        let name = "the real bridge, host-local and portmap".into();
        measure(pods, &Way { name, folder: real.clone(), plugins: vec![bridge, portmap.clone()] });
    }
    if real.join("flannel").exists() {
        measure(pods, &Way { name: "flannel's conflist, by the real four".into(), folder: real, plugins: vec![flannel, portmap] });
    }
}

/// CPU time of the programs that have ended, in milliseconds: their own and the kernel's.
fn children() -> (f64, f64) {
    let text = fs::read_to_string("/proc/self/stat").expect("readable");
    let after = text.rsplit(')').next().expect("a name");
    let fields: Vec<f64> = after.split_whitespace().skip(13).take(2).map(|field| field.parse().expect("a number")).collect();
    (fields[0] * 1000.0 / TICKS, fields[1] * 1000.0 / TICKS)
}

/// Does something for each pod, and takes the times.
fn times(pods: &[(String, String)], mut each: impl FnMut(&str, &str)) -> Times {
    let mut times = Times::default();
    let (user, system) = children();
    for (id, netns) in pods {
        let start = Instant::now();
        each(id, netns);
        times.wall.push(start.elapsed().as_secs_f64() * 1000.0);
    }
    let (user_after, system_after) = children();
    (times.user, times.system) = (user_after - user, system_after - system);
    times
}

/// A node and its pods; the pods by name and path.
fn site(pods: usize) -> (Netns, Vec<Netns>, Vec<(String, String)>) {
    let (node, netns) = (Netns::new(), (0..pods).map(|_| Netns::new()).collect::<Vec<_>>());
    let named = netns.iter().enumerate().map(|(at, netns)| (format!("pod{at}"), netns.path())).collect();
    (node, netns, named)
}

fn measure(pods: usize, way: &Way) {
    let (node, _netns, named) = site(pods);
    let folder = tempfile::tempdir().expect("a folder");
    let (folder_path, plugins, state) = (way.folder.clone(), way.plugins.clone(), prepared(&folder));
    let (mut add, mut del) = node.within(move || {
        let run = |verb: &str, id: &str, netns: &str| chain(&folder_path, &plugins, &state, verb, id, netns);
        // The first makes the bridge.
        run("ADD", "first", &named[0].1);
        run("DEL", "first", &named[0].1);
        (times(&named, |id, netns| run("ADD", id, netns)), times(&named, |id, netns| run("DEL", id, netns)))
    });
    add.row(&way.name, "ADD");
    del.row(&way.name, "DEL");
}

fn prepared(folder: &TempDir) -> PathBuf {
    let env = "FLANNEL_NETWORK=10.244.0.0/16\nFLANNEL_SUBNET=10.244.1.1/24\nFLANNEL_MTU=1450\nFLANNEL_IPMASQ=true\n";
    fs::write(folder.path().join("subnet.env"), env).expect("writable");
    folder.path().to_owned()
}

/// Runs the plugins of a conflist as a runtime does.
fn chain(folder: &Path, plugins: &[Value], state: &Path, verb: &str, id: &str, netns: &str) {
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
        let output = fed(&mut command, &config.to_string());
        if verb == "ADD" {
            result = serde_json::from_str(&output).expect("a result");
        }
    }
}

fn fed(command: &mut Command, text: &str) -> String {
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("it starts");
    child.stdin.take().expect("piped").write_all(text.as_bytes()).expect("it reads");
    let output = child.wait_with_output().expect("it ends");
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{said}");
    said
}

/// The same objects, made with `ip`: one batch on the host, one in the pod.
fn floor(pods: usize) {
    let (node, netns, named) = site(pods);
    node.run(
        "ip link add cni0 type bridge; ip link set cni0 up; ip addr add 10.244.1.1/24 brd + dev cni0; sysctl -qw net.ipv4.ip_forward=1",
    );
    let (mut add, mut del) = node.within(move || {
        let mut host = 1;
        let add = times(&named, |_, netns| {
            host += 1;
            let pid = netns.split('/').nth(2).expect("a process");
            let batch = format!(
                "link add veth{host:08} mtu 1450 master cni0 type veth peer name eth0 mtu 1450 netns {pid}\nlink set veth{host:08} up type bridge_slave hairpin on\n"
            );
            fed(Command::new("ip").args(["-batch", "-"]), &batch);
            let inside = format!(
                "addr add 10.244.1.{host}/24 brd + dev eth0\nlink set eth0 up\nroute add default via 10.244.1.1\nroute add 10.244.0.0/16 via 10.244.1.1\n"
            );
            fed(Command::new("nsenter").arg(format!("--net={netns}")).args(["ip", "-batch", "-"]), &inside);
        });
        let del = times(&named, |_, netns| {
            fed(Command::new("nsenter").arg(format!("--net={netns}")).args(["ip", "link", "del", "eth0"]), "");
        });
        (add, del)
    });
    drop(netns);
    add.row("the same objects by `ip -batch`", "ADD");
    del.row("the same objects by `ip -batch`", "DEL");
}
