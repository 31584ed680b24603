//! The program under the name kube-proxy: its flags, configuration file, ports, HTTP endpoints and exit statuses.

use std::fs;
use std::net::SocketAddr;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use sepal_apiserver::ApiServer;
use sepal_lab::http::{Answer, ask, get};
use sepal_lab::{Cluster, Netns, Running, wait_until};
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::SEPAL;
use crate::api_node::serve;

const HEALTHZ: ([u8; 4], u16) = ([127, 0, 0, 1], 10256);
const METRICS: ([u8; 4], u16) = ([127, 0, 0, 1], 10249);
const SMALL: Cluster = Cluster::new(3, 2);

/// A folder with the program under the name kube-proxy.
fn installed() -> (TempDir, PathBuf) {
    let folder = tempfile::tempdir().expect("a folder");
    let program = folder.path().join("kube-proxy");
    symlink(SEPAL, &program).expect("a link");
    (folder, program)
}

fn run(program: &Path, arguments: &[&str]) -> Output {
    Command::new(program).args(arguments).stdin(Stdio::null()).output().expect("it starts")
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// kubeadm's configuration with another kubeconfig, and without the limit of connections, which a network namespace cannot set.
fn kubeadm(kubeconfig: &Path) -> String {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("testdata/config/kubeadm.yaml");
    let text = fs::read_to_string(file).expect("readable");
    let text = text.replace("/var/lib/kube-proxy/kubeconfig.conf", &kubeconfig.display().to_string());
    text.replace("maxPerCore: null", "maxPerCore: 0")
}

/// A node with an API server, and a mounted ConfigMap with a configuration.
struct Lab {
    node: Netns,
    server: ApiServer,
    folder: TempDir,
    program: PathBuf,
    log: PathBuf,
    version: std::cell::Cell<u32>,
}

impl Lab {
    fn new() -> Self {
        let node = Netns::new();
        let server = serve(&node, SMALL.objects().collect());
        let (folder, program) = installed();
        fs::write(folder.path().join("kubeconfig.conf"), server.kubeconfig()).expect("writable");
        let log = folder.path().join("log");
        let lab = Self { node, server, folder, program, log, version: std::cell::Cell::new(0) };
        lab.configure(|text| text);
        lab
    }

    fn config(&self) -> PathBuf {
        self.folder.path().join("config.conf")
    }

    /// Writes the configuration as the kubelet updates a ConfigMap: a new folder, and an exchanged symbolic link.
    fn configure(&self, change: impl Fn(String) -> String) {
        let version = self.version.get() + 1;
        self.version.set(version);
        let (at, name) = (self.folder.path(), format!("..version-{version}"));
        fs::create_dir(at.join(&name)).expect("writable");
        fs::write(at.join(&name).join("config.conf"), change(kubeadm(&at.join("kubeconfig.conf")))).expect("writable");
        symlink(&name, at.join("..data_tmp")).expect("writable");
        fs::rename(at.join("..data_tmp"), at.join("..data")).expect("writable");
        if version == 1 {
            symlink("..data/config.conf", self.config()).expect("writable");
        }
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = self.node.command(self.program.to_str().expect("UTF-8"));
        command.arg("--config").arg(self.config()).arg("--hostname-override=bench").args(arguments).stdin(Stdio::null());
        command.stderr(fs::File::options().create(true).append(true).open(&self.log).expect("writable"));
        command
    }

    fn start(&self, arguments: &[&str]) -> Running {
        Running(self.command(arguments).spawn().expect("it starts"))
    }

    fn said(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }

    fn get(&self, to: ([u8; 4], u16), path: &str) -> Option<Answer> {
        get(&self.node, SocketAddr::from(to), path).ok()
    }

    fn page(&self, path: &str) -> Answer {
        self.get(METRICS, path).unwrap_or_else(|| panic!("{path} is answered"))
    }

    fn wait_for_rules(&self) {
        wait_until("there are rules", || {
            let rules = self.node.run("iptables-nft-save -t nat; iptables-legacy-save -t nat 2>/dev/null");
            (0..SMALL.services).all(|service| rules.contains(&format!("bench/{}:http cluster IP", Cluster::name(service))))
        });
    }

    fn change_node(&self, change: impl FnOnce(&mut Value)) {
        let mut node = self.server.get("nodes", "bench").expect("there is a Node");
        change(&mut node);
        self.server.put(node).expect("a Node");
    }
}

#[test]
fn the_command_line_is_kube_proxys() {
    let (_folder, program) = installed();
    let version = run(&program, &["--version"]);
    assert_eq!((version.status.code(), text(&version.stdout).as_str()), (Some(0), "Kubernetes v1.36.2\n"));
    let own = format!("sepal {} (in place of kube-proxy v1.36.2)\n", env!("CARGO_PKG_VERSION"));
    for arguments in [["version"], ["--version"]] {
        let version = run(Path::new(SEPAL), &arguments);
        assert_eq!((version.status.code(), text(&version.stdout)), (Some(0), own.clone()));
    }
    for (arguments, want) in [
        (&["--bogus"][..], "Error: unknown flag: --bogus"),
        (&["--dry-run"], "Error: unknown flag: --dry-run"),
        (&["run"], "Error: \"kube-proxy\" does not take any arguments, got [\"run\"]"),
        (&["--bind-address", "x"], "Error: invalid argument \"x\" for \"--bind-address\" flag: \"x\" is not a valid IP address"),
    ] {
        let output = run(&program, arguments);
        assert_eq!((output.status.code(), text(&output.stdout).as_str()), (Some(1), ""), "{arguments:?}");
        assert_eq!(text(&output.stderr), format!("{want}\nSee 'kube-proxy --help'.\n"), "{arguments:?}");
    }
    for (arguments, want) in [
        (&["--metrics-port=0"][..], "failed validate: KubeProxyConfiguration.MetricsBindAddress: Invalid value: \"\": must be IP:port"),
        (&["--proxy_mode=ipvs"], "mode: \"ipvs\" is a mode of kube-proxy that sepal does not have"),
        (&["--config=/nowhere"], "failed complete: cannot read the configuration file /nowhere: No such file or directory"),
        (&["--hostname-override= "], "empty hostname-override is invalid"),
        (
            &["--feature-gates=MultiCIDRServiceAllocator=false"],
            "failed complete: cannot set feature gate MultiCIDRServiceAllocator to false",
        ),
    ] {
        let output = run(&program, arguments);
        assert_eq!(output.status.code(), Some(1), "{arguments:?}");
        assert!(text(&output.stderr).contains(want), "{arguments:?}: {}", text(&output.stderr));
    }
}

/// `-v=2` logs each sync, `-v=4` each decision. No verbosity logs lines of libraries.
#[test]
fn verbosity_shows_decisions_and_no_library() {
    for (verbosity, decisions) in [("--v=2", false), ("--v=4", true)] {
        let lab = Lab::new();
        let running = lab.start(&[verbosity]);
        lab.wait_for_rules();
        wait_until("the sync is logged", || lab.said().contains("ipv4: sync, because the live tables have to be read: "));
        assert_eq!(running.terminate(), Some(0));
        let said = lab.said();
        assert!(said.contains(" chains to write, 0 to delete, "), "{said}");
        for line in [
            "Service bench/",
            "EndpointSlice bench/",
            "all Services are known",
            "ipv4: chains to write: filter FORWARD, ",
            "the next sync starts in",
        ] {
            assert_eq!(said.contains(line), decisions, "{verbosity}: {line}: {said}");
        }
        for library in
            ["requesting", "connecting to", "connected to", "pooling idle", "reuse idle", "service.ready", "processing request", "parsed "]
        {
            assert!(!said.contains(library), "{verbosity}: {library}: {said}");
        }
    }
}

/// The cause of a failed request is logged once, and not as a debug value of the client library.
#[test]
fn causes_are_told_once() {
    let lab = Lab::new();
    lab.server.deny("list", "services");
    let kubeconfig = lab.folder.path().join("kubeconfig.conf").display().to_string();
    for (arguments, once) in [
        ([format!("--kubeconfig={kubeconfig}")], &["cannot list services", "is forbidden", "403 Forbidden"][..]),
        (["--master=http://127.0.0.1:1".to_owned()], &["cannot list services", "cannot connect", "Connection refused"]),
    ] {
        let output = lab.node.command(SEPAL).args(["run", "--dry-run", "--hostname-override=bench"]).args(&arguments).output();
        let output = output.expect("it starts");
        let said = text(&output.stderr);
        let line = said.lines().find(|line| line.contains("ERROR")).unwrap_or_default();
        assert_eq!((output.status.code(), said.matches("ERROR").count()), (Some(1), 1), "{said}");
        for part in once {
            assert_eq!(line.matches(part).count(), 1, "{part}: {line}");
        }
        for dump in ["Status {", "ApiError", "ServiceError", "client error", "Some("] {
            assert!(!line.contains(dump), "{dump}: {line}");
        }
    }
}

#[test]
fn the_resolved_configuration_is_written() {
    let (folder, program) = installed();
    let (from, to) = (folder.path().join("from"), folder.path().join("to"));
    fs::write(&from, kubeadm(Path::new("/kubeconfig"))).expect("writable");
    let arguments = ["--config", from.to_str().expect("UTF-8"), "--write-config-to", to.to_str().expect("UTF-8"), "-v=4"];
    let output = run(&program, &arguments);
    assert!(output.status.success(), "{}", text(&output.stderr));
    let written = fs::read_to_string(&to).expect("it is there");
    for line in [
        "apiVersion: kubeproxy.config.k8s.io/v1alpha1",
        "kind: KubeProxyConfiguration",
        "bindAddress: 0.0.0.0",
        "healthzBindAddress: 0.0.0.0:10256",
        "metricsBindAddress: 127.0.0.1:10249",
        "clusterCIDR: 10.244.0.0/16",
        "configSyncPeriod: 15m0s",
        "detectLocalMode: ClusterCIDR",
        "mode: iptables",
        "nodePortAddresses: null",
        "oomScoreAdj: -999",
        "  masqueradeBit: 14",
        "  localhostNodePorts: true",
        "  minSyncPeriod: 1s",
        "  syncPeriod: 30s",
        "  tcpEstablishedTimeout: 24h0m0s",
        "  verbosity: 4",
        "  contentType: application/vnd.kubernetes.protobuf",
        "  qps: 5",
    ] {
        assert!(written.lines().any(|written| written.replace('"', "") == line), "{line} is not in\n{written}");
    }
    // Only the first YAML document is read.
    let (with_more, from_more) = (folder.path().join("with-more"), folder.path().join("from-more"));
    for more in ["---\n", "---\n# nothing more\n", "---\napiVersion: kubelet.config.k8s.io/v1beta1\nkind: KubeletConfiguration\n"] {
        fs::write(&with_more, kubeadm(Path::new("/kubeconfig")) + more).expect("writable");
        let arguments = ["--config", with_more.to_str().expect("UTF-8"), "--write-config-to", from_more.to_str().expect("UTF-8"), "-v=4"];
        let output = run(&program, &arguments);
        assert!(output.status.success(), "{more}: {}", text(&output.stderr));
        assert_eq!(fs::read_to_string(&from_more).expect("it is there"), written, "{more}");
    }
    // Reading the written configuration leads to the same configuration.
    let again = folder.path().join("again");
    let output = run(&program, &["--config", to.to_str().expect("UTF-8"), "--write-config-to", again.to_str().expect("UTF-8")]);
    assert!(output.status.success() && !text(&output.stderr).contains("WARN"), "{}", text(&output.stderr));
    assert_eq!(fs::read_to_string(&again).expect("it is there"), written);
}

#[test]
fn a_kubeadm_configuration_runs_and_answers_as_kube_proxy_does() {
    let lab = Lab::new();
    let proxy = lab.start(&[]);
    lab.wait_for_rules();
    wait_until("it is healthy", || lab.get(HEALTHZ, "/healthz").is_some_and(|answer| answer.status == 200));
    let healthz = lab.get(HEALTHZ, "/healthz").expect("it is healthy");
    assert!(healthz.body.contains(r#""nodeEligible":true,"healthy":true,"status":{"IPv4":{"lastUpdated":""#), "{}", healthz.body);
    assert!(healthz.body.contains(r#""IPv6":{"#) && healthz.head.contains("application/json"), "{healthz:?}");
    assert_eq!(lab.get(HEALTHZ, "/readyz").map(|answer| answer.status), Some(404));

    assert_eq!(lab.page("/proxyMode").body, "iptables");
    assert_eq!((lab.page("/healthz").body.as_str(), lab.page("/livez").status), ("ok", 404));
    assert_eq!(lab.page("/healthz?verbose").body, "[+]ping ok\nhealthz check passed\n");
    let configz: Value = serde_json::from_str(&lab.page("/configz").body).expect("JSON");
    let config = &configz["kubeproxy.config.k8s.io"];
    assert_eq!(
        (&config["mode"], &config["clusterCIDR"], &config["conntrack"]["min"], &config["kind"]),
        (&json!("iptables"), &json!("10.244.0.0/16"), &json!(131_072), &json!("KubeProxyConfiguration"))
    );
    assert_eq!(config["clientConnection"]["qps"], json!(5));
    let flagz = lab.page("/flagz").body;
    assert!(flagz.starts_with("\nkube-proxy flagz\n"), "{flagz}");
    for flag in ["hostname-override=bench", "iptables-masquerade-bit=14", "cleanup=false", "v=0", "iptables-sync-period=30s"] {
        assert!(flagz.lines().any(|line| line == flag), "{flag} is not in {flagz}");
    }
    assert!(!flagz.contains("dry-run"), "sepal's own flags are not shown");
    let accept = "Accept: application/json;v=v1beta1;g=config.k8s.io;as=Statusz\r\n";
    let statusz = ask(&lab.node, METRICS.into(), "GET", "/statusz", accept, "").expect("an answer");
    let statusz: Value = serde_json::from_str(&statusz.body).expect("JSON");
    assert_eq!((&statusz["kind"], &statusz["emulationVersion"]), (&json!("Statusz"), &json!("1.36")));
    let pprof = lab.page("/debug/pprof/");
    assert!(pprof.status == 404 && pprof.body.contains("no Go profiles"), "{pprof:?}");

    let metrics = lab.page("/metrics").body;
    for line in [
        "# TYPE kubeproxy_sync_proxy_rules_duration_seconds histogram",
        "# TYPE kubeproxy_sync_proxy_rules_service_changes_total counter",
        "kubeproxy_sync_proxy_rules_iptables_total{ip_family=\"IPv4\",table=\"nat\"}",
        "kubeproxy_proxy_healthz_total{code=\"200\"}",
        "kubernetes_feature_enabled{name=\"AllowServiceExternalIPs\",stage=\"\"} 1",
        "sepal_iptables_info{",
        "process_resident_memory_bytes ",
        "rest_client_requests_total{",
    ] {
        assert!(metrics.contains(line), "{line} is not in\n{metrics}");
    }
    wait_until("its start is an Event", || {
        lab.server.list("events.events.k8s.io").iter().any(|event| {
            (&event["reason"], &event["type"], &event["action"], &event["reportingController"], &event["metadata"]["namespace"])
                == (&json!("Starting"), &json!("Normal"), &json!("StartKubeProxy"), &json!("kube-proxy"), &json!("default"))
        })
    });

    // An idle client connection does not delay the end.
    let idle = lab.node.run_thread(|| std::net::TcpStream::connect(SocketAddr::from(HEALTHZ)).expect("it listens"));
    let start = Instant::now();
    assert_eq!(proxy.terminate(), Some(0));
    // The limit is much longer than the end takes on a busy machine, and shorter than the 10 s that a last request may take.
    assert!(start.elapsed() < Duration::from_secs(8), "it took {:?} to end", start.elapsed());
    drop(idle);
    assert_eq!(lab.get(HEALTHZ, "/healthz"), None);
    lab.wait_for_rules();
}

#[test]
fn a_node_that_leaves_or_moves_is_followed() {
    let lab = Lab::new();
    lab.configure(|text| {
        let text = text.replace("nodePortAddresses: null", "nodePortAddresses: [primary]");
        text.replace("detectLocalMode: \"\"", "detectLocalMode: NodeCIDR")
    });
    lab.node.run(
        "ip link add eth0 type veth peer name eth1; ip link set eth0 up; ip addr add 192.168.61.13/24 dev eth0; ip addr add 192.168.61.14/24 dev eth0",
    );
    let _proxy = lab.start(&[]);
    wait_until("it waits for a pod CIDR", || lab.said().contains("waiting for Node bench to get a pod CIDR"));
    assert!(!lab.node.run("iptables-nft-save -t nat").contains("KUBE-SVC-"));
    lab.change_node(|node| node["spec"] = json!({"podCIDR": "10.244.7.0/24", "podCIDRs": ["10.244.7.0/24"]}));
    lab.wait_for_rules();
    let rules = |what: &str| lab.node.run("iptables-nft-save -t nat").contains(what);
    assert!(rules("! -s 10.244.7.0/24") && rules("-d 192.168.61.13/32"), "{}", lab.node.run("iptables-nft-save -t nat"));

    lab.change_node(|node| {
        node["spec"] = json!({"podCIDR": "10.244.9.0/24", "podCIDRs": ["10.244.9.0/24"]});
        node["status"]["addresses"] = json!([{"type": "InternalIP", "address": "192.168.61.14"}]);
    });
    wait_until("rules follow the Node", || rules("! -s 10.244.9.0/24") && rules("-d 192.168.61.14/32") && !rules("-d 192.168.61.13/32"));

    let status = |path| lab.get(HEALTHZ, path).map(|answer| answer.status);
    wait_until("it is healthy", || status("/healthz") == Some(200));
    lab.change_node(|node| node["spec"]["taints"] = json!([{"key": "ToBeDeletedByClusterAutoscaler", "effect": "NoSchedule"}]));
    wait_until("the node is not eligible", || status("/healthz") == Some(503));
    assert_eq!(status("/livez"), Some(200));
    lab.change_node(|node| node["spec"]["taints"] = json!([]));
    wait_until("the node is eligible", || status("/healthz") == Some(200));
}

#[test]
fn a_changed_configuration_holds_at_once_or_ends_the_program() {
    let lab = Lab::new();
    let mut proxy = lab.start(&[]);
    lab.wait_for_rules();
    let mark = |mark: &str| lab.node.run("iptables-nft-save -t nat").contains(mark);
    assert!(mark("0x4000/0x4000"));
    lab.configure(|text| text.replace("masqueradeBit: null", "masqueradeBit: 20") + "---\n");
    wait_until("rules follow the configuration", || mark("0x100000/0x100000") && !mark("0x4000/0x4000"));
    let configz: Value = serde_json::from_str(&lab.page("/configz").body).expect("JSON");
    assert_eq!(configz["kubeproxy.config.k8s.io"]["iptables"]["masqueradeBit"], 20);

    lab.configure(|text| text.replace("masqueradeBit: null", "masqueradeBit: 99"));
    wait_until("the invalid value is reported", || {
        lab.said().contains("must be within the range [0, 31]; what it said before still holds")
    });
    assert!(mark("0x100000/0x100000"));
    lab.configure(|text| text.replace("healthzBindAddress: \"\"", "healthzBindAddress: 127.0.0.1:9999"));
    let status = proxy.0.wait().expect("it ends");
    assert_eq!(status.code(), Some(1));
    assert!(lab.said().contains("content of the proxy server's configuration file was updated"), "{}", lab.said());
}

#[test]
fn ports_that_are_taken_are_tried_again_or_end_the_program() {
    let lab = Lab::new();
    let taken = lab.node.run_thread(|| std::net::TcpListener::bind("0.0.0.0:10256").expect("free"));
    let _proxy = lab.start(&[]);
    wait_until("it is logged", || lab.said().contains("failed to start proxy healthz on 0.0.0.0:10256"));
    lab.wait_for_rules();
    lab.configure(|text| {
        text.replace("bindAddressHardFail: false", "bindAddressHardFail: true")
            .replace("metricsBindAddress: \"\"", "metricsBindAddress: 127.0.0.1:10250")
    });
    let hard = lab.command(&[]).status().expect("it starts");
    assert_eq!(hard.code(), Some(1));
    let told = || lab.server.list("events.events.k8s.io").into_iter().find(|event| event["reason"] == "FailedToStartProxierHealthcheck");
    wait_until("an Event reports it", || told().is_some());
    let event = told().expect("it was told");
    assert!(event["note"].as_str().is_some_and(|note| note.starts_with("failed to start proxy healthz on 0.0.0.0:10256")), "{event}");
    assert_eq!((&event["type"], &event["regarding"]["kind"]), (&json!("Warning"), &json!("Node")));
    drop(taken);
}

/// `--init-only` does not wait for a pod CIDR, because the daemon itself may assign it.
#[test]
fn init_only_sets_the_kernel_and_writes_no_rules() {
    let lab = Lab::new();
    lab.configure(|text| text.replace("detectLocalMode: \"\"", "detectLocalMode: NodeCIDR"));
    lab.node.run("sysctl -qw net.ipv4.conf.all.route_localnet=0");
    let status = lab.command(&["--init-only"]).status().expect("it starts");
    assert_eq!(status.code(), Some(0), "{}", lab.said());
    let values = lab.node.run("sysctl -n net.ipv4.conf.all.route_localnet net.netfilter.nf_conntrack_tcp_timeout_close_wait");
    assert_eq!(values, "1\n3600\n");
    assert!(!lab.node.run("iptables-nft-save").contains("KUBE-SERVICES"));
}

/// On a node that is a network namespace, as a kind node is, no container can write the limit of connections.
#[test]
fn init_only_leaves_a_limit_that_belongs_to_the_host() {
    let lab = Lab::new();
    for min in ["4", "2147483647"] {
        lab.configure(|text| text.replace("maxPerCore: 0", "maxPerCore: 1").replace("min: null", &format!("min: {min}")));
        let before = lab.said().len();
        let status = lab.command(&["--init-only"]).status().expect("it starts");
        let said = lab.said()[before..].to_owned();
        assert_eq!(status.code(), Some(0), "{said}");
        assert_eq!(said.matches("sysctl net/netfilter/nf_conntrack_max stays at ").count(), 1, "{said}");
        assert!(!said.contains("init container"), "{said}");
        assert_eq!(lab.node.run("sysctl -n net.netfilter.nf_conntrack_tcp_timeout_close_wait"), "3600\n");
        lab.node.run("sysctl -qw net.netfilter.nf_conntrack_tcp_timeout_close_wait=60");
    }
}

/// Without the capability `SYS_RESOURCE` the OOM score cannot be lowered. This is logged only if the operator set it.
#[test]
fn a_score_that_cannot_be_set_is_named_where_it_was_asked_for() {
    let lab = Lab::new();
    let run = |arguments: &[&str], ready: &str| {
        let before = lab.said().len();
        let mut command = lab.node.command("setpriv");
        command.args(["--bounding-set=-sys_resource", "--inh-caps=-sys_resource"]).arg(&lab.program).args(arguments).stdin(Stdio::null());
        command.args(["--hostname-override=bench", "--conntrack-max-per-core=0"]);
        command.arg("--kubeconfig").arg(lab.folder.path().join("kubeconfig.conf"));
        command.stderr(fs::File::options().create(true).append(true).open(&lab.log).expect("writable"));
        let _proxy = Running(command.spawn().expect("it starts"));
        wait_until(ready, || lab.said()[before..].contains(ready));
        lab.said()[before..].to_owned()
    };
    let said = run(&[], "chains written");
    assert!(!said.contains("oom_score_adj"), "{said}");
    let said = run(&["--oom-score-adj=-999"], "oom_score_adj");
    assert!(said.contains("WARN can't set /proc/self/oom_score_adj to -999: "), "{said}");
}

#[test]
fn cleanup_leaves_nothing_of_ours() {
    let lab = Lab::new();
    let proxy = lab.start(&[]);
    lab.wait_for_rules();
    assert_eq!(proxy.terminate(), Some(0));
    let status = lab.command(&["--cleanup"]).status().expect("it starts");
    assert_eq!(status.code(), Some(0), "{}", lab.said());
    for save in ["iptables-nft-save", "ip6tables-nft-save"] {
        let left: Vec<String> = lab.node.run(save).lines().filter(|line| line.contains("KUBE-")).map(str::to_owned).collect();
        // kubelet uses KUBE-FIREWALL, too, so it is never deleted [kube-proxy 1.8].
        assert!(left.iter().all(|line| line.contains("KUBE-FIREWALL")), "{left:?}");
    }
}

/// A Service of type LoadBalancer with Local policy and this health check node port.
fn balanced(port: u16) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Service", "metadata": {"name": "balanced", "namespace": "shop"},
        "spec": {"type": "LoadBalancer", "clusterIP": "10.96.200.1", "clusterIPs": ["10.96.200.1"], "ipFamilies": ["IPv4"],
            "externalTrafficPolicy": "Local", "healthCheckNodePort": port, "ports": [{"name": "http", "port": 80, "nodePort": 30080}]},
        "status": {"loadBalancer": {"ingress": [{"ip": "198.51.100.9"}]}},
    })
}

/// The Service's slice, with endpoints on this node.
fn balanced_slice(node: &str, ready: bool) -> Value {
    let endpoint =
        |ip: &str| json!({"addresses": [ip], "nodeName": node, "conditions": {"ready": ready, "serving": true, "terminating": !ready}});
    json!({
        "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4",
        "metadata": {"name": "balanced-1", "namespace": "shop", "labels": {"kubernetes.io/service-name": "balanced"}},
        "endpoints": [endpoint("10.128.9.1"), endpoint("10.128.9.2")],
        "ports": [{"name": "http", "port": 8080, "protocol": "TCP"}],
    })
}

/// Health check node ports report local endpoints to clients from outside.
#[test]
fn health_check_node_ports_follow_local_endpoints() {
    let lab = Lab::new();
    let outside = Netns::new();
    lab.node.link("ext0", &outside, "eth0");
    lab.node.run("ip addr add 192.168.61.13/24 dev ext0");
    outside.run("ip addr add 192.168.61.50/24 dev eth0");
    lab.server.put(balanced(32_100)).expect("a Service");
    lab.server.put(balanced_slice("bench", true)).expect("a slice");
    let _proxy = lab.start(&[]);
    let check = |port: u16| get(&outside, SocketAddr::from(([192, 168, 61, 13], port)), "/anything").ok();
    let body = |count: usize| {
        format!(
            "{{\n\t\"service\": {{\n\t\t\"namespace\": \"shop\",\n\t\t\"name\": \"balanced\"\n\t}},\n\t\"localEndpoints\": {count},\n\t\"serviceProxyHealthy\": true\n}}"
        )
    };
    wait_until("there are local endpoints", || check(32_100).is_some_and(|answer| answer.status == 200));
    let answer = check(32_100).expect("an answer");
    assert_eq!(answer.body, body(2));
    assert!(answer.head.contains("X-Load-Balancing-Endpoint-Weight: 2"), "{}", answer.head);
    lab.server.put(balanced_slice("bench", false)).expect("a slice");
    wait_until("terminating endpoints do not count", || check(32_100).is_some_and(|answer| answer.status == 503 && answer.body == body(0)));
    lab.server.put(balanced_slice("bench", true)).expect("a slice");
    wait_until("they are back", || check(32_100).is_some_and(|answer| answer.status == 200));
    lab.server.put(balanced_slice("elsewhere", true)).expect("a slice");
    wait_until("they are elsewhere", || check(32_100).is_some_and(|answer| answer.status == 503));
    lab.server.put(balanced(32_200)).expect("a Service");
    wait_until("the port has changed", || check(32_200).is_some() && check(32_100).is_none());
    assert!(lab.server.remove("services", "shop/balanced"));
    wait_until("the port is closed", || check(32_200).is_none());
}

/// Another proxy holds all ports until it ends, as when sepal starts beside it. Then sepal opens them soon, and each failure is logged once.
#[test]
fn ports_of_a_proxy_that_ends_are_taken_over() {
    let lab = Lab::new();
    lab.configure(|text| text.replace("syncPeriod: 0s", "syncPeriod: 1h"));
    lab.server.put(balanced(32_100)).expect("a Service");
    lab.server.put(balanced_slice("bench", true)).expect("a slice");
    let of_other = lab.node.run_thread(|| {
        let bind = |address: SocketAddr| std::net::TcpListener::bind(address).expect("a free port");
        [HEALTHZ.into(), METRICS.into(), SocketAddr::from(([0, 0, 0, 0], 32_100))].map(bind)
    });
    let _proxy = lab.start(&[]);
    let failures = || lab.said().matches("failed to start healthcheck \"shop/balanced\" on port 32100").count();
    wait_until("the failure is logged", || failures() == 1);
    // The health port is tried every 5 s, and each failure is logged. The Service's port is tried every second.
    let tries = || lab.said().matches("failed to start proxy healthz on ").count();
    wait_until("the health port is tried again", || tries() >= 2);
    assert_eq!(failures(), 1, "{}", lab.said());
    drop(of_other);
    for (what, to, path) in
        [("the Service's", ([127, 0, 0, 1], 32_100), "/"), ("the health port", HEALTHZ, "/healthz"), ("the metrics'", METRICS, "/healthz")]
    {
        wait_until(what, || lab.get(to, path).is_some_and(|answer| answer.status == 200));
    }
    wait_until("the end of the failure is logged", || lab.said().contains("health check port 32100 of shop/balanced is open after all"));
    let told = |event: &Value| event["reason"] == "FailedToStartServiceHealthcheck";
    wait_until("an Event reports it", || lab.server.list("events.events.k8s.io").iter().any(told));
}
