//! The pod network's loop on node number 1, with a kernel and an API server in memory.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use ipnetwork::IpNetwork;
use sepal::cluster::pod_rules::PodRules;
use sepal::kubernetes::client::ConnectionSettings;
use sepal::kubernetes::events::{self, Events};
use sepal::kubernetes::recent_events::RecentEvents;
use sepal::netlink::entry::Live;
use sepal::netlink::fake_network::{FakeNetwork, KernelCall};
use sepal::netlink::link::{Link, LinkAddress, LinkKind, Scope};
use sepal::observe::metrics::{Format, Metrics};
use sepal::observe::readiness::{Part, PartState, Readiness};
use sepal::pod_network::annotations::Prefix;
use sepal::pod_network::net_conf::NetConf;
use sepal::pod_network::node::{NetworkNode, NodeText};
use sepal::pod_network::settings::NetworkSettings;
use sepal::pod_network::sync::leases::LeaseData;
use sepal::pod_network::sync::node_writes::NodeWrites;
use sepal::pod_network::sync::nodes::NodeUpdate;
use sepal::pod_network::sync::publisher::Publisher;
use sepal::pod_network::sync::report::NetworkReport;
use sepal::pod_network::sync::state::{NetworkInputs, NetworkLoop};
use sepal::pod_network::sync::subnets::SubnetProvider;
use sepal_apiserver::ApiServer;
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;
use tokio::time::Instant;

/// net-conf.json for IPv4 over VXLAN.
pub(crate) const VXLAN: &str = r#"{"Network":"10.244.0.0/16","Backend":{"Type":"vxlan"}}"#;
/// Time limit of waits. It is much longer than any wait takes, so that a busy machine does not fail a test.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);
/// The index of the interface to other nodes.
pub(crate) const UNDERLAY: u32 = 2;

/// A host with one interface.
pub(crate) fn host() -> Live {
    let net = "192.0.2.1/24".parse().expect("an address");
    let underlay = Link {
        index: UNDERLAY,
        name: "eth0".into(),
        mac: None,
        mtu: 1500,
        up: true,
        master: None,
        kind: LinkKind::Other("veth".into()),
        addresses: vec![LinkAddress { net, scope: Scope::Universe, permanent: true, temporary: false, deprecated: false }],
    };
    Live { links: vec![underlay], ..Live::default() }
}

/// Node number `n`: subnet 10.244.n.0/24, address 192.0.2.n.
pub(crate) fn node(n: u8, mac: u8) -> NodeUpdate {
    node_at(n, mac, "vxlan", &format!("192.0.2.{n}"))
}

/// The same with this backend and this address.
pub(crate) fn node_at(n: u8, mac: u8, backend: &str, ip: &str) -> NodeUpdate {
    let (name, subnet) = (format!("node-{n}"), format!("10.244.{n}.0/24"));
    let data = format!("{{\"VNI\":1,\"VtepMAC\":\"02:00:00:00:00:{mac:02x}\"}}");
    let full = |suffix: &str| Prefix::default().name(suffix);
    let annotations = [("kube-subnet-manager", "true"), ("backend-type", backend), ("backend-data", data.as_str()), ("public-ip", ip)]
        .map(|(suffix, value)| (full(suffix), value.to_owned()));
    let text = NodeText {
        name: &name,
        uid: &name,
        pod_cidrs: vec![&subnet],
        annotations: annotations.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect(),
        internal_ips: vec![ip],
        ..NodeText::default()
    };
    NodeUpdate::Changed(Box::new(NetworkNode::new(&text, &Prefix::default())))
}

/// The loop on node number 1.
pub(crate) struct Loop {
    pub(crate) kernel: Arc<FakeNetwork>,
    nodes: mpsc::Sender<(Instant, NodeUpdate)>,
    pub(crate) pod_rules: watch::Receiver<Option<PodRules>>,
    pub(crate) readiness: Readiness,
    metrics: Arc<Metrics>,
    pub(crate) folder: TempDir,
    pub(crate) task: JoinHandle<()>,
    pub(crate) happenings: RecentEvents,
    pub(crate) server: ApiServer,
    conf: watch::Sender<NetConf>,
}

impl Loop {
    pub(crate) fn start(kernel: Arc<FakeNetwork>) -> Self {
        Self::start_with(kernel, VXLAN)
    }

    /// The same with an existing subnet.env.
    pub(crate) fn start_after(kernel: Arc<FakeNetwork>, subnet_env: &str) -> Self {
        let folder = TempDir::new().expect("a folder");
        std::fs::write(folder.path().join("subnet.env"), subnet_env).expect("writable");
        Self::start_in(folder, kernel, VXLAN, SubnetProvider::Node)
    }

    pub(crate) fn start_with(kernel: Arc<FakeNetwork>, conf: &str) -> Self {
        Self::start_in(TempDir::new().expect("a folder"), kernel, conf, SubnetProvider::Node)
    }

    /// The same with files in this folder and subnets of this source.
    pub(crate) fn start_in(folder: TempDir, kernel: Arc<FakeNetwork>, conf: &str, source: SubnetProvider) -> Self {
        let server = ApiServer::start().expect("it serves");
        server.load(vec![json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": "node-1"}})]).expect("a Node");
        let client = ConnectionSettings { kubeconfig: None, master: Some(server.url()), ..ConnectionSettings::default() }
            .client()
            .expect("a client");
        let (writes, writing) = NodeWrites::new(&client, "node-1", &Events::none());
        tokio::spawn(writing);
        let (events, told) = Events::channel();
        tokio::spawn(events::send(client, "node-1".into(), "node-1".into(), told));
        let conf = watch::Sender::new(NetConf::parse(conf).expect("good"));
        let settings = NetworkSettings {
            subnet_file: folder.path().join("subnet.env"),
            cni_conf_dir: Some(folder.path().join("net.d")),
            ..NetworkSettings::default()
        };
        let asked = NetworkInputs { node: "node-1".into(), conf: conf.subscribe(), settings, source };
        let (sender, pod_rules) = watch::channel(None);
        let publisher = Publisher::new(Arc::new(writes), watch::Sender::new(LeaseData::new()), sender);
        let parts = [Part::Subnet, Part::Interface, Part::Links, Part::Peers, Part::SubnetFile, Part::CniConfig];
        let readiness = Readiness::new(parts);
        let happenings = RecentEvents::default();
        let metrics = Arc::new(Metrics::default());
        let report = NetworkReport::new(Arc::clone(&metrics), events.noted(happenings.clone()));
        let (nodes, told) = mpsc::channel(1024);
        let network = NetworkLoop::new(Arc::clone(&kernel), asked, publisher, readiness.clone(), report);
        let task = tokio::spawn(network.run(told));
        Self { kernel, nodes, pod_rules, readiness, metrics, folder, task, happenings, server, conf }
    }

    pub(crate) async fn tell(&self, update: NodeUpdate) {
        self.nodes.send((Instant::now(), update)).await.expect("the loop runs");
    }

    pub(crate) async fn tell_all(&self, nodes: impl IntoIterator<Item = NodeUpdate>) {
        for node in nodes {
            self.tell(node).await;
        }
        self.tell(NodeUpdate::Complete).await;
        self.ready().await;
    }

    pub(crate) async fn ready(&self) {
        wait_until("the peers have their entries", || self.readiness.states().get(&Part::SubnetFile) == Some(&PartState::Ready)).await;
    }

    /// The route to a node's subnet, and the host that its packets are sent to.
    pub(crate) fn way(&self, n: u8) -> Option<(IpNetwork, IpAddr)> {
        let live = self.kernel.live();
        let destination: IpNetwork = format!("10.244.{n}.0/24").parse().expect("a CIDR");
        let route = live.routes.iter().find(|route| route.destination == destination)?;
        let neighbour = live.neighbours.iter().find(|neighbour| Some(neighbour.ip) == route.gateway)?;
        let fdb = live.fdb.iter().find(|entry| entry.mac == neighbour.mac)?;
        Some((route.destination, fdb.host))
    }

    pub(crate) fn reaches(&self, n: u8) -> bool {
        self.way(n).is_some_and(|(_, host)| host == IpAddr::from([192, 0, 2, n]))
    }

    /// Makes the loop reconcile.
    pub(crate) fn look(&self) {
        self.conf.send_modify(|_| {});
    }

    /// subnet.env, if it exists.
    pub(crate) fn subnet_env(&self) -> Option<String> {
        std::fs::read_to_string(self.folder.path().join("subnet.env")).ok()
    }

    /// Whether an Event has this reason and a note with these words.
    pub(crate) fn has_event(&self, reason: &str, words: &str) -> bool {
        let is_it = |event: &Value| event["reason"] == json!(reason) && event["note"].as_str().is_some_and(|note| note.contains(words));
        self.server.list("events.events.k8s.io").iter().any(is_it)
    }

    /// The Node's condition NetworkUnavailable: its status and its reason.
    pub(crate) fn condition(&self) -> (Value, Value) {
        let condition = &self.server.get("nodes", "node-1").expect("a Node")["status"]["conditions"][0];
        (condition["status"].clone(), condition["reason"].clone())
    }

    pub(crate) fn metric(&self, line: &str) -> bool {
        self.metrics.text(Format::of_accept("")).1.lines().any(|found| found == line)
    }
}

/// Waits until a condition holds.
pub(crate) async fn wait_until(what: &str, mut holds: impl FnMut() -> bool) {
    let limit = Instant::now() + PATIENCE;
    while !holds() {
        assert!(Instant::now() < limit, "condition does not hold after {PATIENCE:?}: {what}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

pub(crate) fn changes(calls: &[KernelCall]) -> Vec<&KernelCall> {
    calls.iter().filter(|call| matches!(call, KernelCall::Entry(_) | KernelCall::Link(_))).collect()
}
