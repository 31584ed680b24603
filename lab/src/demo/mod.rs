//! `make demo`: three nodes with pods and Services, real traffic of every kind, and how soon changes reach the kernel.

mod screen;
mod services;

use std::collections::BTreeSet;
use std::io::{ErrorKind, Write};
use std::net::{IpAddr, SocketAddr, TcpListener};
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use crate::pod_cluster::{Families, Layout, OUTSIDE, PodCluster};
use crate::traffic::{ping_whole, tcp, tcp_within};
use crate::{Netns, Pod};
use anyhow::{Context, ensure};

use screen::{Screen, Seen};
use services::{BALANCER, NAME_PORT, NODE_PORT, Shown};

/// Tries of each frontend: two of two fair coins stay unseen in 64 tosses once in 10^19.
const TRIES: usize = 64;
/// Longer than any change takes.
const PATIENCE: Duration = Duration::from_secs(20);

/// An answer that takes longer is asked for again, where it is waited for.
const GLANCE: Duration = Duration::from_millis(25);

/// A pod of the demo.
struct Served {
    name: &'static str,
    /// The node that it is on, as an index.
    node: usize,
    pod: Pod,
}

impl Served {
    fn ip(&self) -> IpAddr {
        self.pod.ips[0]
    }
}

/// The cluster, and what runs in it.
struct Demo {
    cluster: PodCluster,
    pods: Vec<Served>,
    services: Vec<Shown>,
}

/// Shows everything; with `keep` it stays up until the program is ended.
///
/// # Errors
/// Something is not as it should be.
pub fn run(sepal: &Path, keep: bool) -> anyhow::Result<()> {
    let mut screen = Screen::new();
    let mut demo = Demo::start(sepal, &mut screen)?;
    demo.network(&mut screen)?;
    demo.traffic(&mut screen)?;
    demo.changes(&mut screen)?;
    demo.failures(&mut screen)?;
    if keep {
        demo.stay(&mut screen)?;
    }
    ensure!(screen.all_good, "not everything went as it should; see above");
    Ok(())
}

impl Demo {
    fn start(sepal: &Path, screen: &mut Screen) -> anyhow::Result<Self> {
        screen.title("1. Three nodes, an API server, and the world outside")?;
        let layout = Layout { assigned: false, ..Layout::vxlan(3, Families::V4) };
        let cluster = PodCluster::new(sepal, layout);
        let begin = Instant::now();
        for node in &cluster.nodes {
            node.start(&["--subnet-source=lease", &format!("--cni-conf-dir={}", node.conf_dir())]);
        }
        for node in &cluster.nodes {
            node.wait_ready();
            let env = node.subnet_env();
            let subnet = env.lines().find_map(|line| line.strip_prefix("FLANNEL_SUBNET=")).unwrap_or_default();
            screen
                .row([&node.name, "ready, with a subnet by a Lease", subnet], &Seen::of(!subnet.is_empty(), after(begin), "no subnet"))?;
        }
        let mut pods = Vec::new();
        for (node, name) in [(0, "web-1"), (1, "web-2"), (0, "client-1"), (2, "client-3")] {
            let begin = Instant::now();
            let pod = cluster.nodes[node].connect(name).with_context(|| format!("pod {name}"))?;
            let to = pod.ips.first().map(ToString::to_string).unwrap_or_default();
            screen.row([&cluster.nodes[node].name, &format!("pod {name}, by the CNI plugin"), &to], &Seen::of(true, after(begin), ""))?;
            serve_name(&pod, name);
            pods.push(Served { name, node, pod });
        }
        Ok(Self { cluster, pods, services: services::all() })
    }

    fn endpoints(&self, names: &[&str]) -> Vec<(IpAddr, &str)> {
        let chosen = self.pods.iter().filter(|pod| names.contains(&pod.name));
        chosen.map(|pod| (pod.ip(), self.cluster.nodes[pod.node].name.as_str())).collect()
    }

    fn pod(&self, name: &str) -> anyhow::Result<&Served> {
        self.pods.iter().find(|pod| pod.name == name).with_context(|| format!("there is no pod {name}"))
    }

    fn network(&self, screen: &mut Screen) -> anyhow::Result<()> {
        screen.title("2. The pod network")?;
        let [web, other, client, far] = ["web-1", "web-2", "client-1", "client-3"].map(|name| self.pod(name));
        let (web, other, client, far) = (web?, other?, client?, far?);
        for (from, to, kind) in
            [(client, web, "to a pod of the same node"), (client, other, "to a pod of another node"), (far, web, "and from a third")]
        {
            let to_address = SocketAddr::new(to.ip(), NAME_PORT);
            let said = tcp(&from.pod.netns, to_address);
            screen.row([from.name, kind, &to_address.to_string()], &Seen::of(said.is_ok(), "answered", format!("{said:?}")))?;
        }
        let node = &self.cluster.nodes[2];
        let said = tcp(&node.netns, SocketAddr::new(web.ip(), NAME_PORT));
        screen.row(
            [&node.name, "the node itself to a remote pod", &web.ip().to_string()],
            &Seen::of(said.is_ok(), "answered", format!("{said:?}")),
        )?;
        let outside = self.cluster.outside.tcp(OUTSIDE[0].parse()?);
        let said = tcp(&far.pod.netns, outside).map_err(|error| error.to_string());
        let masqueraded = said.as_deref() == Ok("192.168.77.3");
        let what = Seen::of(masqueraded, "answered; it saw the node's address 192.168.77.3", format!("{said:?}"));
        screen.row([far.name, "to the outside, masqueraded", &outside.to_string()], &what)?;
        // IP and ICMP take 28 bytes of the 1450 that are left in a tunnel over 1500.
        let (fits, too_large) = (ping_whole(&far.pod.netns, web.ip(), 1422), ping_whole(&far.pod.netns, web.ip(), 1423));
        let what = Seen::of(fits && !too_large, "1450 bytes get through, 1451 do not", format!("1450: {fits}, 1451: {too_large}"));
        screen.row([far.name, "the largest packet", &web.ip().to_string()], &what)?;
        Ok(())
    }

    fn traffic(&self, screen: &mut Screen) -> anyhow::Result<()> {
        screen.title("3. Services")?;
        for service in &self.services {
            self.cluster.server.put(service.service()).map_err(|refusal| anyhow::anyhow!("{refusal:?}"))?;
            let names: &[&str] = match service.name {
                "empty" => &[],
                "local" => &["web-2"],
                _ => &["web-1", "web-2"],
            };
            self.cluster.server.put(service.slice(&self.endpoints(names))).map_err(|refusal| anyhow::anyhow!("{refusal:?}"))?;
        }
        self.cluster.outside.netns.run(&format!("ip route add {BALANCER}/32 via 192.168.77.2"));
        let (far, near) = (self.pod("client-3")?, self.pod("web-1")?);
        let web = SocketAddr::new("10.96.0.10".parse()?, 80);
        let pod = &far.pod.netns;
        let node = &self.cluster.nodes[2].netns;
        let outside = &self.cluster.outside.netns;
        let at = |ip: &str, port| -> anyhow::Result<SocketAddr> { Ok(SocketAddr::new(ip.parse()?, port)) };
        // Each node follows by itself: all of them have to know all of it.
        for number in 1..=self.cluster.nodes.len() {
            let to = at(&format!("192.168.77.{number}"), NODE_PORT)?;
            until("every node's NodePort answers", || tcp_within(outside, to, GLANCE).is_ok())?;
        }
        let refused = |to| tcp_within(pod, to, GLANCE).is_err_and(|error| error.kind() == ErrorKind::ConnectionRefused);
        let (sticky, empty, balanced) = (at("10.96.0.12", 80)?, at("10.96.0.14", 80)?, at(BALANCER, 80)?);
        until("every Service answers", || tcp_within(pod, web, GLANCE).is_ok() && tcp_within(pod, sticky, GLANCE).is_ok())?;
        until("the one without endpoints refuses", || refused(empty))?;
        until("the load balancer answers", || tcp_within(outside, balanced, GLANCE).is_ok())?;
        for (who, from) in [("a pod", pod), ("a node", node)] {
            screen.row([who, "ClusterIP", "10.96.0.10:80"], &spread(from, at("10.96.0.10", 80)?))?;
        }
        for (who, from) in [("a pod", pod), ("outside", outside)] {
            let to = at("192.168.77.1", NODE_PORT)?;
            screen.row([who, "NodePort, on a node", &to.to_string()], &spread(from, to))?;
        }
        screen.row(["a pod", "session affinity", "10.96.0.12:80"], &sticks(pod, sticky))?;
        // Refusals are ICMP messages, of which the kernel sends few to one host.
        screen.row(["a pod", "no endpoints", "10.96.0.14:80"], &Seen::of(refused(empty), "refused at once", "not refused"))?;
        let said = tcp(outside, balanced).map_err(|error| error.to_string());
        let what = Seen::of(
            said.as_deref().is_ok_and(|said| said.starts_with("web-2 192.168.77.200")),
            "web-2, and it saw who asked",
            format!("{said:?}"),
        );
        screen.row(["outside", "LoadBalancer, Local policy, node-2", &balanced.to_string()], &what)?;
        outside.run(&format!("ip route replace {BALANCER}/32 via 192.168.77.1"));
        let dropped = tcp(outside, balanced).err().is_some_and(|error| error.kind() == ErrorKind::TimedOut);
        screen.row(
            ["outside", "the same by node-1, without endpoint", &balanced.to_string()],
            &Seen::of(dropped, "dropped", "not dropped"),
        )?;
        let said = tcp(&near.pod.netns, SocketAddr::new(self.pod("web-2")?.ip(), NAME_PORT));
        screen.row(["a pod", "headless: the pod's own address", "web-2"], &Seen::of(said.is_ok(), "answered", format!("{said:?}")))?;
        let to = at("10.96.0.10", 80)?;
        let itself = (0..TRIES).any(|_| tcp(&near.pod.netns, to).is_ok_and(|said| said.starts_with("web-1 ")));
        screen.row(["web-1", "to itself, by its Service", "10.96.0.10:80"], &Seen::of(itself, "answered by itself", "never by itself"))?;
        Ok(())
    }

    fn changes(&mut self, screen: &mut Screen) -> anyhow::Result<()> {
        screen.title("4. How soon changes arrive: from the API to the first packet")?;
        let far = &self.pod("client-3")?.pod.netns;
        let web = SocketAddr::new("10.96.0.10".parse()?, 80);
        let shown = self.services.iter().find(|service| service.name == "web").context("it is one of them")?;
        for (what, names, first) in
            [("endpoints are web-2 alone", &["web-2"][..], "web-2 "), ("endpoints are web-1 alone", &["web-1"], "web-1 ")]
        {
            let begin = Instant::now();
            self.cluster.server.put(shown.slice(&self.endpoints(names))).map_err(|refusal| anyhow::anyhow!("{refusal:?}"))?;
            until(what, || (0..4).all(|_| tcp_within(far, web, GLANCE).is_ok_and(|said| said.starts_with(first))))?;
            screen.row(["a pod", what, "10.96.0.10:80"], &Seen::of(true, after(begin), ""))?;
        }
        let begin = Instant::now();
        let mut added = shown.service();
        (added["metadata"]["name"], added["spec"]["clusterIP"], added["spec"]["clusterIPs"]) =
            ("new".into(), "10.96.0.20".into(), serde_json::json!(["10.96.0.20"]));
        let mut slice = shown.slice(&self.endpoints(&["web-1"]));
        (slice["metadata"]["name"], slice["metadata"]["labels"]["kubernetes.io/service-name"]) = ("new-1".into(), "new".into());
        for object in [added, slice] {
            self.cluster.server.put(object).map_err(|refusal| anyhow::anyhow!("{refusal:?}"))?;
        }
        let to = SocketAddr::new("10.96.0.20".parse()?, 80);
        until("the new Service", || tcp_within(far, to, GLANCE).is_ok())?;
        screen.row(["a pod", "a Service is added", &to.to_string()], &Seen::of(true, after(begin), ""))?;
        Ok(())
    }

    fn failures(&mut self, screen: &mut Screen) -> anyhow::Result<()> {
        screen.title("5. What somebody breaks is put right: until packets arrive again")?;
        let (far, web) = (self.pod("client-3")?, self.pod("web-1")?);
        let (pod, to) = (SocketAddr::new(web.ip(), NAME_PORT), SocketAddr::new("10.96.0.10".parse()?, 80));
        let node = &self.cluster.nodes[2];
        for (what, script, to) in [
            ("flannel.1 deleted", "ip link del flannel.1", pod),
            ("a route deleted", &format!("ip route del $(ip route get {} | sed -n 's/.* via \\([^ ]*\\) .*/\\1/p')/24", web.ip()), pod),
            ("all rules flushed", "iptables-nft -t nat -F; iptables-nft -t nat -X", to),
        ] {
            let begin = Instant::now();
            node.netns.run(script);
            until(what, || tcp_within(&far.pod.netns, to, GLANCE).is_ok())?;
            screen.row([&node.name, what, &to.to_string()], &Seen::of(true, after(begin), ""))?;
        }
        node.kill();
        let said = tcp(&far.pod.netns, to);
        screen.row(
            [&node.name, "kill -9: traffic goes on", &to.to_string()],
            &Seen::of(said.is_ok(), "answered without the daemon", format!("{said:?}")),
        )?;
        let begin = Instant::now();
        node.start_again();
        node.wait_ready();
        screen.row([&node.name, "started again", ""], &Seen::of(true, format!("ready {}", after(begin)), ""))?;
        Ok(())
    }

    fn stay(&self, screen: &mut Screen) -> anyhow::Result<()> {
        screen.title("It stays up until this program is ended (Ctrl-C, or make demo-clean). Look inside:")?;
        for (name, netns) in
            self.cluster.nodes.iter().map(|node| (node.name.as_str(), &node.netns)).chain([("outside", &self.cluster.outside.netns)])
        {
            screen.line(&format!("{name:<9} sudo nsenter --net={} sh -c 'ip route; iptables-save'", netns.path()))?;
        }
        for Served { name, pod, .. } in &self.pods {
            screen.line(&format!("{name:<9} sudo nsenter --net={} curl -s 10.96.0.10", pod.netns.path()))?;
        }
        screen.line(&format!(
            "API       sudo nsenter --net={} curl -s {}/api/v1/nodes",
            self.cluster.switch.path(),
            self.cluster.server.url()
        ))?;
        loop {
            thread::park();
        }
    }
}

/// A server that says its name, and who asks.
fn serve_name(pod: &Pod, name: &'static str) {
    let ips = pod.ips.clone();
    for ip in ips {
        let listener = pod.netns.within(move || TcpListener::bind((ip, NAME_PORT)).expect("the port is free in a new pod"));
        thread::spawn(move || {
            while let Ok((mut stream, peer)) = listener.accept() {
                let _ = stream.write_all(format!("{name} {}", peer.ip()).as_bytes());
            }
        });
    }
}

fn after(begin: Instant) -> String {
    format!("after {:.0} ms", begin.elapsed().as_secs_f64() * 1e3)
}

fn until(what: &str, mut holds: impl FnMut() -> bool) -> anyhow::Result<()> {
    let begin = Instant::now();
    while !holds() {
        ensure!(begin.elapsed() < PATIENCE, "still not so after {} s: {what}", PATIENCE.as_secs());
        thread::sleep(Duration::from_millis(1));
    }
    Ok(())
}

/// Both endpoints are to answer.
fn spread(from: &Netns, to: SocketAddr) -> Seen {
    let mut seen = BTreeSet::new();
    for _ in 0..TRIES {
        match tcp(from, to) {
            Ok(said) => seen.insert(said.split(' ').next().unwrap_or_default().to_owned()),
            Err(error) => return Seen { good: false, what: error.to_string() },
        };
        if seen.len() == 2 {
            break;
        }
    }
    let servers: Vec<String> = seen.into_iter().collect();
    Seen { good: servers.len() == 2, what: format!("answered by {}", servers.join(" and ")) }
}

/// One endpoint is to answer every time.
fn sticks(from: &Netns, to: SocketAddr) -> Seen {
    let answers: std::io::Result<BTreeSet<String>> = (0..16).map(|_| tcp(from, to)).collect();
    match answers {
        Ok(servers) if servers.len() == 1 => {
            let server = servers.iter().next().and_then(|said| said.split(' ').next()).unwrap_or_default();
            Seen { good: true, what: format!("16 times {server}") }
        }
        Ok(_) => Seen { good: false, what: "went to both endpoints".to_owned() },
        Err(error) => Seen { good: false, what: error.to_string() },
    }
}
