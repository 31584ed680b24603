//! The pod network's use of the API: watching Nodes, writing a Node, and leasing subnets.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use futures::stream::BoxStream;
use ipnetwork::IpNetwork;
use kube::Client;
use sepal::kubernetes::api::Watches;
use sepal::kubernetes::client::ConnectionSettings;
use sepal::kubernetes::events::{self, Events};
use sepal::observe::metrics::{Format, Metrics};
use sepal::pod_network::allocation::{LeaseTerms, SubnetSpace};
use sepal::pod_network::annotations::Prefix;
use sepal::pod_network::claim::{LeaseStatus, LostLease};
use sepal::pod_network::sync::leases::{LeaseData, LeaseStore};
use sepal::pod_network::sync::node_name::{NodeNameError, NodeNameSource};
use sepal::pod_network::sync::node_writes::{NodeCondition, NodeWrites, WriteState};
use sepal::pod_network::sync::nodes::NodeUpdate;
use sepal::pod_network::sync::subnet_lease::{RegisteredNode, SubnetHolder, show_subnets};
use sepal_apiserver::{ApiServer, InjectedFailure};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::timeout;

use crate::network_node::{PATIENCE, wait_until};

fn net(text: &str) -> IpNetwork {
    text.parse().expect("a CIDR")
}

fn client(server: &ApiServer) -> Client {
    ConnectionSettings { kubeconfig: None, master: Some(server.url()), ..ConnectionSettings::default() }.client().expect("a client")
}

fn node(name: &str) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Node",
        "metadata": {"name": name, "uid": format!("uid-{name}"), "annotations": {"flannel.alpha.coreos.com/kube-subnet-manager": "true"}},
        "spec": {},
        "status": {"addresses": [{"type": "InternalIP", "address": "192.0.2.1"}], "images": [{"names": ["x".repeat(2000)]}]},
    })
}

fn server(names: &[&str]) -> ApiServer {
    let server = ApiServer::start().expect("it serves");
    server.load(names.iter().map(|name| node(name)).collect()).expect("Nodes");
    server
}

/// A node that holds a subnet.
struct Holder {
    standing: watch::Receiver<LeaseStatus>,
    node: watch::Sender<Option<RegisteredNode>>,
    data: watch::Sender<LeaseData>,
    metrics: Metrics,
    task: JoinHandle<()>,
}

/// Leases on the /24 subnets of 10.0.0.0/16 from 10.0.1.0 to 10.0.`last`.0.
struct Site {
    store: LeaseStore,
    space: SubnetSpace,
    terms: LeaseTerms,
    /// Where the nodes' subnet.env are, each by the name of its node.
    folder: TempDir,
}

impl Site {
    fn new(server: &ApiServer, last: u8, terms: LeaseTerms) -> Self {
        let client = client(server);
        let space =
            SubnetSpace { network: net("10.0.0.0/16"), subnet_len: 24, min: net("10.0.1.0/24"), max: net(&format!("10.0.{last}.0/24")) };
        let folder = TempDir::new().expect("a folder");
        Self { store: LeaseStore::new(&client, &Watches::new(&client), "pods"), space, terms, folder }
    }

    fn holder(&self, name: &str, previous: Option<IpNetwork>) -> Holder {
        let registered = RegisteredNode {
            name: name.into(),
            uid: format!("uid-{name}").into(),
            pod_cidrs: Vec::new(),
            addresses: vec!["192.0.2.9".parse().expect("an address")],
        };
        let (node, nodes) = watch::channel(Some(registered));
        let data = LeaseData::from([("x/public-ip".to_owned(), Some(name.to_owned())), ("x/none".to_owned(), None)]);
        let (data, datas) = watch::channel(data);
        let (tell, standing) = watch::channel(LeaseStatus::default());
        let metrics = Metrics::default();
        let holder = SubnetHolder {
            store: self.store.clone(),
            space: self.space,
            terms: self.terms,
            previous,
            subnet_file: self.folder.path().join(name),
            node: nodes,
            data: datas,
            status: tell,
            events: Events::none(),
            metrics: metrics.network().clone(),
        };
        Holder { standing, node, data, metrics, task: tokio::spawn(holder.run()) }
    }
}

impl Holder {
    async fn until(&mut self, what: &str, mut fits: impl FnMut(&LeaseStatus) -> bool) -> LeaseStatus {
        let waited = timeout(PATIENCE, self.standing.wait_for(|standing| fits(standing))).await;
        waited.unwrap_or_else(|_| panic!("not so after {PATIENCE:?}: {what}")).expect("it runs").clone()
    }

    async fn held(&mut self) -> IpNetwork {
        match self.until("it holds a subnet", |standing| matches!(standing, LeaseStatus::Held(_))).await {
            LeaseStatus::Held(subnet) => subnet,
            other => panic!("{other:?}"),
        }
    }
}

fn lease(server: &ApiServer, name: &str) -> Value {
    server.get("leases", &format!("kube-system/{name}")).unwrap_or_else(|| panic!("no Lease {name}"))
}

/// Twenty nodes start at once, and there are twenty subnets. The twenty-first node gets the first subnet that is released.
#[tokio::test]
async fn twenty_nodes_at_once_and_one_more() {
    let server = server(&[]);
    let site = Site::new(&server, 20, LeaseTerms::of(LeaseTerms::DURATION));
    let names: Vec<String> = (0..20).map(|index| format!("n{index}")).collect();
    let mut holders: Vec<Holder> = names.iter().map(|name| site.holder(name, None)).collect();
    let mut all = BTreeSet::new();
    for holder in &mut holders {
        all.insert(holder.held().await);
    }
    assert_eq!(all.len(), 20, "{all:?}");
    assert_eq!(server.list("leases").len(), 20);

    let mut late = site.holder("late", None);
    let standing = late.until("it is out of subnets", |standing| matches!(standing, LeaseStatus::Seeking { shortage: Some(_), .. })).await;
    let LeaseStatus::Seeking { shortage: Some(shortage), .. } = standing else { panic!("{standing:?}") };
    assert_eq!((shortage.held, shortage.reserved, shortage.unlisted), (20, 0, 0), "{shortage}");
    let first = holders[0].held().await;
    holders[0].task.abort();
    assert_eq!(site.store.release_all("n0").await, Ok(vec![first]));
    assert_eq!(late.held().await, first);
}

#[tokio::test]
async fn a_lease_is_what_it_should_be() {
    let server = server(&[]);
    let site = Site::new(&server, 3, LeaseTerms::of(LeaseTerms::DURATION));
    let mut holder = site.holder("a", Some(net("10.0.2.0/24")));
    assert_eq!(holder.held().await, net("10.0.2.0/24"), "the previous one");
    let object = lease(&server, "sepal-10-0-2-0-24");
    assert_eq!(object["metadata"]["labels"], json!({"app.kubernetes.io/managed-by": "sepal", "sepal.dev/network": "pods"}));
    assert_eq!(object["metadata"]["annotations"], json!({"x/public-ip": "a"}));
    let spec = &object["spec"];
    assert_eq!((&spec["holderIdentity"], &spec["leaseDurationSeconds"]), (&json!("a_uid-a"), &json!(86400)));
    assert_eq!(spec["leaseTransitions"], json!(0));
    let times = [&spec["acquireTime"], &spec["renewTime"]].map(|time| time.as_str().expect("a time"));
    assert!(times.iter().all(|time| time.len() == "2026-01-01T00:00:00.000000Z".len() && time.ends_with('Z')), "{times:?}");

    // The annotations change, and then the Node is registered again: the Lease shows both at once.
    holder.data.send_replace(LeaseData::from([("x/public-ip".to_owned(), None), ("x/mac".to_owned(), Some("02:00".to_owned()))]));
    wait_until("the annotations follow", || lease(&server, "sepal-10-0-2-0-24")["metadata"]["annotations"] == json!({"x/mac": "02:00"}))
        .await;
    holder.node.send_modify(|node| node.as_mut().expect("there is one").uid = "new".into());
    wait_until("the holder follows", || lease(&server, "sepal-10-0-2-0-24")["spec"]["holderIdentity"] == json!("a_new")).await;
    let twice = "sepal_network_lease_renewals_total{ip_family=\"IPv4\"} 2\n";
    wait_until("both renewals are counted", || holder.metrics.text(Format::Classic).1.contains(twice)).await;
    assert!(holder.metrics.text(Format::Classic).1.contains("\nsepal_network_lease_age_seconds{ip_family=\"IPv4\"} "));
    // A restarted node finds its own Lease.
    holder.task.abort();
    assert_eq!(site.holder("a", None).held().await, net("10.0.2.0/24"));
}

#[tokio::test]
async fn a_lost_lease_is_noticed() {
    let server = server(&[]);
    let site = Site::new(&server, 2, LeaseTerms::of(LeaseTerms::DURATION));
    let mut holder = site.holder("a", Some(net("10.0.1.0/24")));
    holder.held().await;
    wait_until("its lease is watched", || server.watches("leases") == 1).await;
    let uid = lease(&server, "sepal-10-0-1-0-24")["metadata"]["uid"].clone();
    assert!(server.remove("leases", "kube-system/sepal-10-0-1-0-24"));
    let back = || server.get("leases", "kube-system/sepal-10-0-1-0-24").is_some_and(|lease| lease["metadata"]["uid"] != uid);
    wait_until("it is taken again", back).await;
    assert_eq!(holder.held().await, net("10.0.1.0/24"));

    let mut object = lease(&server, "sepal-10-0-1-0-24");
    object["spec"]["holderIdentity"] = json!("thief_1");
    server.put(object).expect("a Lease");
    let mut losses = Vec::new();
    holder
        .until("it has another", |standing| {
            losses.extend(if let LeaseStatus::Seeking { loss: Some(loss), .. } = standing { Some(loss.clone()) } else { None });
            *standing == LeaseStatus::Held(net("10.0.2.0/24"))
        })
        .await;
    let loss = LostLease { subnet: net("10.0.1.0/24"), holder: Some("thief_1".into()) };
    assert!(losses.iter().all(|told| *told == loss), "{losses:?}");
    assert_eq!(lease(&server, "sepal-10-0-1-0-24")["spec"]["holderIdentity"], json!("thief_1"), "another holder's Lease is left alone");
}

#[tokio::test]
async fn an_expired_lease_is_taken_over_and_a_living_one_is_not() {
    let server = server(&[]);
    // On a busy machine a renewal may be late by some seconds, and the lease must not expire then.
    let terms = LeaseTerms { duration: Duration::from_secs(12), grace: Duration::from_millis(500), skew: Duration::from_secs(3600) };
    let site = Site::new(&server, 1, terms);
    let mut first = site.holder("a", None);
    assert_eq!(first.held().await, net("10.0.1.0/24"));
    let mut second = site.holder("b", None);
    // A renewal comes after about a third of the duration, so six of them take about two durations.
    let renewals = || {
        let text = first.metrics.text(Format::Classic).1;
        let count = text.lines().find_map(|line| line.strip_prefix("sepal_network_lease_renewals_total{ip_family=\"IPv4\"} "));
        count.map_or(0, |count| count.parse::<u64>().expect("a number"))
    };
    tokio::select! {
        early = second.standing.wait_for(|standing| matches!(standing, LeaseStatus::Held(_))) => panic!("it took a living lease: {early:?}"),
        () = wait_until("the lease is renewed six times", || renewals() >= 6) => {}
    }
    assert_eq!(*first.standing.borrow(), LeaseStatus::Held(net("10.0.1.0/24")));
    first.task.abort();
    assert_eq!(second.held().await, net("10.0.1.0/24"));
    let spec = lease(&server, "sepal-10-0-1-0-24")["spec"].clone();
    assert_eq!((&spec["holderIdentity"], &spec["leaseTransitions"]), (&json!("b_uid-b"), &json!(1)));
    // The first node comes back and does not use its old subnet.
    let mut third = site.holder("a", Some(net("10.0.1.0/24")));
    third.until("it is out of subnets", |standing| matches!(standing, LeaseStatus::Seeking { shortage: Some(_), .. })).await;
}

#[tokio::test]
async fn a_lease_that_cannot_be_renewed_lapses_and_comes_back() {
    let server = server(&[]);
    let terms = LeaseTerms { duration: Duration::from_secs(3), grace: Duration::from_secs(1), skew: Duration::from_secs(3600) };
    let site = Site::new(&server, 1, terms);
    let mut holder = site.holder("a", None);
    holder.held().await;
    server.deny("patch", "leases");
    holder.until("it lapses", |standing| *standing == LeaseStatus::Lapsed(net("10.0.1.0/24"))).await;
    server.allow_all();
    assert_eq!(holder.held().await, net("10.0.1.0/24"));
}

#[tokio::test]
async fn a_reservation_is_for_one_and_stays_one() {
    let server = server(&[]);
    let site = Site::new(&server, 1, LeaseTerms::of(LeaseTerms::DURATION));
    let labels = json!({"app.kubernetes.io/managed-by": "sepal", "sepal.dev/network": "pods"});
    server
        .put(json!({
            "apiVersion": "coordination.k8s.io/v1", "kind": "Lease", "spec": {"holderIdentity": "a"},
            "metadata": {"name": "sepal-10-0-1-0-24", "namespace": "kube-system", "labels": labels},
        }))
        .expect("a Lease");
    let mut other = site.holder("b", None);
    let out = |standing: &LeaseStatus| matches!(standing, LeaseStatus::Seeking { shortage: Some(shortage), .. } if shortage.reserved == 1);
    other.until("it is out of subnets", out).await;
    let mut meant = site.holder("a", None);
    assert_eq!(meant.held().await, net("10.0.1.0/24"));
    let taken = lease(&server, "sepal-10-0-1-0-24");
    assert_eq!(taken["metadata"]["annotations"]["sepal.dev/reserved-for"], json!("a"));
    assert_eq!((&taken["spec"]["holderIdentity"], &taken["spec"]["leaseDurationSeconds"]), (&json!("a_uid-a"), &json!(86400)));
    meant.task.abort();
    assert_eq!(site.store.release_all("a").await, Ok(vec![net("10.0.1.0/24")]));
    let free = lease(&server, "sepal-10-0-1-0-24");
    assert_eq!((&free["spec"]["holderIdentity"], free["spec"].get("leaseDurationSeconds")), (&json!("a"), None));
    assert!(!matches!(*other.standing.borrow(), LeaseStatus::Held(_)), "no other node holds it");
}

/// A Lease has the right name but not our labels, so a list does not show it.
#[tokio::test]
async fn a_lease_without_labels_is_in_the_way() {
    let server = server(&[]);
    let site = Site::new(&server, 1, LeaseTerms::of(LeaseTerms::DURATION));
    let metadata = json!({"name": "sepal-10-0-1-0-24", "namespace": "kube-system"});
    server.put(json!({"apiVersion": "coordination.k8s.io/v1", "kind": "Lease", "metadata": metadata, "spec": {}})).expect("a Lease");
    let mut holder = site.holder("a", None);
    let out = |standing: &LeaseStatus| matches!(standing, LeaseStatus::Seeking { shortage: Some(shortage), .. } if shortage.unlisted == 1);
    holder.until("it is out of subnets", out).await;
}

#[tokio::test]
async fn leased_subnets_are_shown_on_a_node_that_has_none() {
    let server = server(&["a"]);
    let client = client(&server);
    let (writes, writing) = NodeWrites::new(&client, "a", &Events::none());
    tokio::spawn(writing);
    let registered = |pod_cidrs| RegisteredNode { name: "a".into(), uid: "uid-a".into(), pod_cidrs, addresses: Vec::new() };
    let (node, nodes) = watch::channel(Some(registered(Vec::new())));
    let (_v4, v4) = watch::channel(LeaseStatus::Held(net("10.0.1.0/24")));
    let (v6, v6s) = watch::channel(LeaseStatus::default());
    let (events, told) = Events::channel();
    tokio::spawn(events::send(client.clone(), "a".into(), "a".into(), told));
    tokio::spawn(show_subnets(nodes, vec![v4, v6s], Arc::new(writes), events));
    // No event shows that nothing is going to be written. On a busy machine this time proves less, and the count below still holds.
    tokio::time::sleep(Duration::from_millis(200)).await;
    assert_eq!(server.count("patch nodes"), 0, "not before both are held");
    v6.send_replace(LeaseStatus::Held(net("fc00:0:0:1::/64")));
    let spec = || server.get("nodes", "a").expect("a Node")["spec"].clone();
    wait_until("they are written", || spec() == json!({"podCIDR": "10.0.1.0/24", "podCIDRs": ["10.0.1.0/24", "fc00:0:0:1::/64"]})).await;

    node.send_replace(Some(registered(vec![net("10.0.2.0/24")])));
    let mismatch = |event: &Value| event["reason"] == json!("PodCIDRMismatch");
    wait_until("an Event reports it", || server.list("events.events.k8s.io").iter().any(mismatch)).await;
    assert_eq!(server.count("patch nodes"), 1, "what is set is left alone");
}

async fn next(nodes: &mut BoxStream<'static, NodeUpdate>) -> NodeUpdate {
    timeout(PATIENCE, nodes.next()).await.expect("in time").expect("for good")
}

#[tokio::test]
async fn nodes_are_followed_whatever_the_server_does() {
    let server = server(&["a", "b"]);
    let mut nodes = sepal::pod_network::sync::nodes::watch_nodes(&Watches::new(&client(&server)), &Prefix::default());
    let mut told = BTreeSet::new();
    loop {
        match next(&mut nodes).await {
            NodeUpdate::Changed(node) => {
                assert!(node.annotations.managed);
                assert_eq!((node.internal_ips.len(), &*node.uid), (1, format!("uid-{}", node.name).as_str()));
                told.insert(node.name.clone());
            }
            NodeUpdate::Complete => break,
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(told, BTreeSet::from(["a".into(), "b".into()]));
    assert_eq!(server.count("list nodes"), 0, "it came by streaming");

    let change = |name: &str, heartbeat: &str, mac: &str| {
        let mut node = node(name);
        node["status"]["conditions"] = json!([{"type": "Ready", "lastHeartbeatTime": heartbeat}]);
        node["metadata"]["annotations"]["flannel.alpha.coreos.com/backend-data"] = json!(mac);
        server.put(node).expect("a Node");
    };
    change("a", "1", "one");
    assert!(matches!(next(&mut nodes).await, NodeUpdate::Changed(node) if node.annotations.data.v4.as_deref() == Some("one")));
    // A heartbeat is not reported: the next update is the change after it.
    change("a", "2", "one");
    change("b", "2", "two");
    assert!(matches!(next(&mut nodes).await, NodeUpdate::Changed(node) if &*node.name == "b"));
    // Watching is forbidden for a while, and Node b is deleted meanwhile: after one new list only the deletion is reported.
    server.deny("watch", "nodes");
    server.deny("list", "nodes");
    server.compact();
    server.drop_watches();
    assert!(server.remove("nodes", "b"));
    let refusals = || server.log().iter().filter(|entry| entry.path.starts_with("/api/v1/nodes?") && entry.code == 403).count();
    tokio::select! {
        early = nodes.next() => panic!("nothing is to be reported while watching is forbidden: {early:?}"),
        () = wait_until("watching is refused again and again", || refusals() >= 4) => {}
    }
    server.allow_all();
    let NodeUpdate::Listed(all) = next(&mut nodes).await else { panic!("a list") };
    assert_eq!(all.into_iter().collect::<Vec<_>>(), ["a".into()]);
    assert_eq!(next(&mut nodes).await, NodeUpdate::Complete);
    assert!(server.remove("nodes", "a"));
    assert_eq!(next(&mut nodes).await, NodeUpdate::Deleted("a".into()));
}

#[tokio::test]
async fn a_node_is_written_to_until_it_is_written() {
    let server = server(&["a"]);
    let client = client(&server);
    let (events, told) = Events::channel();
    tokio::spawn(events::send(client.clone(), "a".into(), "a".into(), told));
    let (writes, writing) = NodeWrites::new(&client, "a", &events);
    tokio::spawn(writing);
    let until = async |mut state: watch::Receiver<WriteState>, what: &str| {
        let fits = |state: &WriteState| match state {
            WriteState::Failing(why) | WriteState::Refused(why) => what != "written" && why.contains(what),
            WriteState::Written => what == "written",
            WriteState::Idle | WriteState::Writing => false,
        };
        let waited = timeout(PATIENCE, state.wait_for(fits)).await;
        drop(waited.unwrap_or_else(|_| panic!("not so in time: {what}")).expect("it runs"));
    };

    server.fail(InjectedFailure::next(2, 500).at("/nodes/a/status"));
    writes.annotations(&json!({"metadata": {"annotations": {"flannel.alpha.coreos.com/public-ip": "192.0.2.1"}}}));
    until(writes.annotations_state(), "cannot write annotations of Node a").await;
    until(writes.annotations_state(), "written").await;
    let object = server.get("nodes", "a").expect("a Node");
    assert_eq!(object["metadata"]["annotations"].as_object().expect("some").len(), 2, "others stay: {object}");

    writes.condition(&NodeCondition::pod_cidr_missing("a"));
    until(writes.condition_state(), "written").await;
    let condition = || server.get("nodes", "a").expect("a Node")["status"]["conditions"][0].clone();
    assert_eq!((&condition()["status"], &condition()["reason"]), (&json!("True"), &json!("PodCIDRMissing")));
    server.deny("patch", "nodes/status");
    writes.condition(&NodeCondition::up());
    until(writes.condition_state(), "resources: [\"nodes/status\"], verbs: [\"patch\"]").await;
    let missing = |event: &Value| event["reason"] == json!("PermissionMissing");
    wait_until("an Event reports it", || server.list("events.events.k8s.io").iter().any(missing)).await;
    server.allow_all();
    until(writes.condition_state(), "written").await;
    assert_eq!((&condition()["status"], &condition()["reason"]), (&json!("False"), &json!("FlannelIsUp")));
    assert_eq!(server.get("nodes", "a").expect("a Node")["status"]["conditions"].as_array().map(Vec::len), Some(1));

    writes.pod_cidrs("uid-of-another", &[net("10.0.1.0/24")]);
    until(writes.pod_cidrs_state(), "UID").await;
    writes.pod_cidrs("uid-a", &[net("10.0.1.0/24")]);
    until(writes.pod_cidrs_state(), "written").await;
    writes.pod_cidrs("uid-a", &[net("10.0.2.0/24")]);
    until(writes.pod_cidrs_state(), "may not change podCIDR").await;
    assert_eq!(server.get("nodes", "a").expect("a Node")["spec"]["podCIDR"], json!("10.0.1.0/24"));
}

#[tokio::test]
async fn the_nodes_name_is_asked_of_the_pod() {
    let server = server(&[]);
    let client = client(&server);
    let variables = |name: &str| match name {
        "POD_NAME" => Some("kube-flannel-ds-abcde".to_owned()),
        "POD_NAMESPACE" => Some("kube-flannel".to_owned()),
        _ => None,
    };
    let source = NodeNameSource::from_environment(variables).expect("a source");
    let error = source.node_name(&client).await.expect_err("there is no such Pod").to_string();
    assert!(
        error.starts_with("error retrieving pod spec for 'kube-flannel/kube-flannel-ds-abcde': pods \"kube-flannel-ds-abcde\" not found")
    );

    let mut pod = json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": {"name": "kube-flannel-ds-abcde", "namespace": "kube-flannel"}, "spec": {},
    });
    server.put(pod.clone()).expect("a Pod");
    let unscheduled = NodeNameError::Unscheduled("kube-flannel/kube-flannel-ds-abcde".into());
    assert_eq!(unscheduled.to_string(), "node name not present in pod spec 'kube-flannel/kube-flannel-ds-abcde'");
    assert_eq!(source.node_name(&client).await, Err(unscheduled));
    pod["spec"]["nodeName"] = json!("a");
    server.put(pod).expect("a Pod");
    server.deny("get", "pods");
    let error = source.node_name(&client).await.expect_err("it is forbidden").to_string();
    assert!(
        error.starts_with(
            "error retrieving pod spec for 'kube-flannel/kube-flannel-ds-abcde': pods \"kube-flannel-ds-abcde\" is forbidden:"
        ) && error.contains("{apiGroups: [\"\"], resources: [\"pods\"], verbs: [\"get\"]}"),
        "{error}"
    );
    let awaited = tokio::spawn({
        let client = client.clone();
        async move { source.awaited_node_name(&client).await }
    });
    let refusals = || server.log().iter().filter(|entry| entry.path.contains("/pods/") && entry.code == 403).count();
    wait_until("the task is refused, too", || refusals() >= 2).await;
    server.allow_all();
    assert_eq!(timeout(PATIENCE, awaited).await.expect("in time").expect("it ends"), "a");
}
