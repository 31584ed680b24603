//! A node that runs the manifests' containers with their arguments, capabilities and read-only file systems.

use std::fs;
use std::net::{SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use sepal_apiserver::ApiServer;
use sepal_lab::http::get;
use sepal_lab::{Netns, Running};
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::SEPAL;
use crate::kustomization::{compose, deploy, documents, only};

/// This node's name.
pub(crate) const NAME: &str = "bench";

/// A node, an API server, and the mounted volumes.
pub(crate) struct Node {
    netns: Netns,
    pub(crate) server: ApiServer,
    folder: TempDir,
    pod: Value,
}

impl Node {
    /// A node for a kustomization's pods, with these objects in the API.
    pub(crate) fn new(mode: &str, objects: Vec<Value>) -> Self {
        let netns = Netns::new();
        netns.run(
            "ip link add eth0 type veth peer name other; ip link set eth0 up; ip link set other up
             ip addr add 192.168.61.13/24 dev eth0; ip route add default via 192.168.61.254",
        );
        let listener = netns.run_thread(|| TcpListener::bind("127.0.0.1:0").expect("a free port"));
        let server = ApiServer::serve_loaded(listener, objects).expect("it serves");
        let pod = only(&compose(mode), "DaemonSet")["spec"]["template"]["spec"].clone();
        let node = Self { netns, server, folder: tempfile::tempdir().expect("a folder"), pod };
        for volume in node.pod["volumes"].as_array().expect("volumes") {
            let at = node.volume(volume["name"].as_str().expect("a name"));
            if volume["hostPath"]["type"] == "FileOrCreate" {
                fs::write(&at, "").expect("writable");
            } else {
                fs::create_dir(&at).expect("writable");
            }
        }
        for (volume, file, text) in [
            ("kube-proxy", "config.conf", node.config()),
            ("kube-proxy", "kubeconfig.conf", node.server.kubeconfig()),
            (
                "flannel-cfg",
                "net-conf.json",
                documents(&deploy().join("config/pod-network.yaml"))[0]["data"]["net-conf.json"].as_str().expect("text").to_owned(),
            ),
        ] {
            if node.volume(volume).exists() {
                fs::write(node.volume(volume).join(file), text).expect("writable");
            }
        }
        node
    }

    /// kubeadm's configuration with another kubeconfig, and without the limit of connections, which a network namespace cannot set.
    fn config(&self) -> String {
        let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("testdata/config/kubeadm.yaml");
        let text = fs::read_to_string(file).expect("readable");
        text.replace("/var/lib/kube-proxy", &self.volume("kube-proxy").display().to_string()).replace("maxPerCore: null", "maxPerCore: 0")
    }

    fn volume(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn log(&self) -> String {
        fs::read_to_string(self.volume("log")).unwrap_or_default()
    }

    /// A container's program as a runtime starts it. The volumes are in our folder.
    fn command(&self, container: &Value, arguments: &[String]) -> Command {
        // Only the mounts are writable; everything else is the host's, read-only.
        let folder = self.folder.path().display();
        let read_only = format!(
            "mount --bind {folder} {folder}; mount -o remount,bind,ro /; mount --bind /proc/sys /proc/sys; mount -o remount,bind,ro /proc/sys"
        );
        let security = &container["securityContext"];
        let (set_up, caps) = if security["privileged"] == true {
            (":".to_owned(), Vec::new())
        } else {
            let added = security["capabilities"]["add"].as_array().into_iter().flatten();
            let added: String = added.map(|name| format!(",+{}", name.as_str().expect("text").to_lowercase())).collect();
            (read_only, vec!["--no-new-privs".to_owned(), format!("--bounding-set=-all{added}"), "--inh-caps=-all".to_owned()])
        };
        let mut command = self.netns.command("unshare");
        command.args(["--mount", "--propagation", "private", "--", "sh", "-ec"]).arg(format!("{set_up}; exec setpriv \"$@\""));
        command.args(["setpriv", "--reset-env"]).args(caps).args(["--", "env"]);
        command.arg(format!("PATH={}", std::env::var("PATH").expect("a path"))).arg(format!("NODE_NAME={NAME}"));
        command.arg(format!("XTABLES_LOCKFILE={}", self.volume("xtables-lock").display())).arg(SEPAL).args(arguments);
        command.stdin(Stdio::null()).stderr(fs::File::options().create(true).append(true).open(self.volume("log")).expect("writable"));
        command
    }

    /// A container's arguments with our folder instead of the mount paths.
    fn arguments(&self, container: &Value) -> Vec<String> {
        let words = |field: &str| container[field].as_array().into_iter().flatten().map(|word| word.as_str().expect("text").to_owned());
        let mounts = container["volumeMounts"].as_array().expect("mounts");
        let mut all: Vec<String> = words("command").skip(1).chain(words("args")).collect();
        for argument in &mut all {
            *argument = argument.replace("$(NODE_NAME)", NAME);
            for mount in mounts {
                let (path, name) = (mount["mountPath"].as_str().expect("text"), mount["name"].as_str().expect("text"));
                *argument = argument.replace(&format!("={path}"), &format!("={}", self.volume(name).display()));
            }
        }
        all
    }

    fn daemon(&self) -> &Value {
        &self.pod["containers"][0]
    }

    /// Runs the init containers, starts the daemon, and waits until its probes succeed.
    pub(crate) fn start(&self, more: &[&str]) -> Running {
        for container in self.pod["initContainers"].as_array().into_iter().flatten() {
            let status = self.command(container, &self.arguments(container)).status().expect("it starts");
            assert!(status.success(), "{}: {}", container["name"], self.log());
        }
        let mut arguments = self.arguments(self.daemon());
        if arguments.iter().any(|argument| argument == "--pod-network") {
            arguments.push(format!("--subnet-file={}/subnet.env", self.volume("run-flannel").display()));
            arguments.push(format!("--net-config-path={}/net-conf.json", self.volume("flannel-cfg").display()));
        }
        if !arguments.iter().any(|argument| argument.starts_with("--config=")) {
            // In a cluster the daemon finds the API server in its environment.
            arguments.push(format!("--master={}", self.server.url()));
        }
        arguments.extend(more.iter().map(|argument| (*argument).to_owned()));
        let running = Running(self.command(self.daemon(), &arguments).spawn().expect("it starts"));
        for probe in ["startupProbe", "livenessProbe", "readinessProbe"] {
            let asked = &self.daemon()[probe]["httpGet"];
            let port = u16::try_from(asked["port"].as_u64().expect("a number")).expect("a port");
            let address = SocketAddr::from(([127, 0, 0, 1], port));
            let content = || get(&self.netns, address, asked["path"].as_str().expect("text")).is_ok_and(|answer| answer.status == 200);
            let limit = Instant::now() + Duration::from_secs(60);
            while !content() {
                assert!(Instant::now() < limit, "{probe} fails: {}", self.log());
                sleep(Duration::from_millis(50));
            }
        }
        running
    }

    /// Runs another of the program's commands in the daemon's container, as `kubectl exec` does.
    pub(crate) fn exec(&self, arguments: &[&str]) {
        let arguments: Vec<String> = arguments.iter().map(|argument| (*argument).to_owned()).collect();
        let status = self.command(self.daemon(), &arguments).status().expect("it starts");
        assert!(status.success(), "{arguments:?}: {}", self.log());
    }

    /// The path of a volume of the pod.
    pub(crate) fn path(&self, volume: &str) -> String {
        self.volume(volume).display().to_string()
    }

    /// Asserts that there are no warnings and errors, except about the OOM score, which the kubelet sets.
    pub(crate) fn assert_no_complaints(&self) {
        let log = self.log();
        let complaints: Vec<&str> = log
            .lines()
            .filter(|line| line.contains("ERROR") || line.contains("WARN"))
            .filter(|line| !line.contains("oom_score_adj"))
            .collect();
        assert!(complaints.is_empty(), "{complaints:#?}");
    }

    /// The rules in a variant of iptables.
    pub(crate) fn rules(&self, variant: &str) -> String {
        self.netns.run(&format!("iptables-{variant}-save"))
    }
}

/// This node's Node.
pub(crate) fn object(pod_cidr: Option<&str>) -> Value {
    let spec = pod_cidr.map_or(json!({}), |cidr| json!({"podCIDR": cidr, "podCIDRs": [cidr]}));
    json!({
        "apiVersion": "v1", "kind": "Node", "metadata": {"name": NAME, "uid": "uid-1"}, "spec": spec,
        "status": {"addresses": [{"type": "InternalIP", "address": "192.168.61.13"}]},
    })
}
