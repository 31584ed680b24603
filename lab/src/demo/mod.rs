//! `make demo`: three nodes with pods and Services. It sends real traffic of every kind, and measures how soon changes take effect and faults
//! are repaired.

mod screen;
mod services;

use std::collections::BTreeSet;
use std::io::{ErrorKind, Write};
use std::net::{IpAddr, SocketAddr, TcpListener};
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};

use crate::netns::Netns;
use crate::pod::Pod;
use crate::pod_cluster::{Families, Layout, OUTSIDE, PodCluster};
use crate::traffic::{ping_whole, tcp, tcp_within};

use screen::{Outcome, Screen};
use services::{BALANCER, DemoService, NAME_PORT, NODE_PORT};

/// Connections to a Service with two endpoints. That all of them go to one endpoint happens once in 10^19 runs.
const TRIES: usize = 64;
/// Time limit for a change to take effect.
const CHANGE_LIMIT: Duration = Duration::from_secs(60);
/// Time limit of one request when requests repeat until one succeeds.
const SHORT_TIMEOUT: Duration = Duration::from_millis(25);

/// A pod of the demo.
struct DemoPod {
    name: &'static str,
    /// Index of the pod's node.
    node: usize,
    pod: Pod,
}

impl DemoPod {
    fn ip(&self) -> IpAddr {
        self.pod.ips[0]
    }
}

/// The cluster, its pods and its Services.
struct Demo {
    cluster: PodCluster,
    pods: Vec<DemoPod>,
    services: Vec<DemoService>,
}

/// Runs the demo. With `keep`, the cluster stays up until the program is ended.
///
/// # Errors
/// If a check fails.
pub fn run(sepal: &Path, keep: bool) -> anyhow::Result<()> {
    let mut screen = Screen::new();
    let mut demo = Demo::start(sepal, &mut screen)?;
    demo.show_pod_network(&mut screen)?;
    demo.show_services(&mut screen)?;
    demo.show_changes(&mut screen)?;
    demo.show_repairs(&mut screen)?;
    if keep {
        demo.keep_running(&mut screen)?;
    }
    ensure!(screen.all_ok, "the demo failed; see the rows above that say FAILED");
    Ok(())
}

impl Demo {
    fn start(sepal: &Path, screen: &mut Screen) -> anyhow::Result<Self> {
        screen.print_title("1. Three nodes, an API server, and a host outside the cluster")?;
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
            screen.print_row(
                [&node.name, "ready, subnet from a Lease", subnet],
                &Outcome::new(!subnet.is_empty(), elapsed_text(begin), "no subnet"),
            )?;
        }
        let mut pods = Vec::new();
        for (node, name) in [(0, "web-1"), (1, "web-2"), (0, "client-1"), (2, "client-3")] {
            let begin = Instant::now();
            let pod = cluster.nodes[node].connect(name).with_context(|| format!("pod {name}"))?;
            let to = pod.ips.first().map(ToString::to_string).unwrap_or_default();
            screen.print_row(
                [&cluster.nodes[node].name, &format!("pod {name}, connected by CNI"), &to],
                &Outcome::new(true, elapsed_text(begin), ""),
            )?;
            serve_name(&pod, name);
            pods.push(DemoPod { name, node, pod });
        }
        Ok(Self { cluster, pods, services: services::all() })
    }

    /// Returns the addresses and node names of these pods.
    fn endpoints(&self, names: &[&str]) -> Vec<(IpAddr, &str)> {
        let chosen = self.pods.iter().filter(|pod| names.contains(&pod.name));
        chosen.map(|pod| (pod.ip(), self.cluster.nodes[pod.node].name.as_str())).collect()
    }

    fn pod(&self, name: &str) -> anyhow::Result<&DemoPod> {
        self.pods.iter().find(|pod| pod.name == name).with_context(|| format!("no pod is named {name}"))
    }

    fn show_pod_network(&self, screen: &mut Screen) -> anyhow::Result<()> {
        screen.print_title("2. The pod network")?;
        let [web, other, client, far] = ["web-1", "web-2", "client-1", "client-3"].map(|name| self.pod(name));
        let (web, other, client, far) = (web?, other?, client?, far?);
        for (from, to, kind) in [
            (client, web, "to a pod of the same node"),
            (client, other, "to a pod of another node"),
            (far, web, "to a pod of another node"),
        ] {
            let to_address = SocketAddr::new(to.ip(), NAME_PORT);
            let answer = tcp(&from.pod.netns, to_address);
            screen
                .print_row([from.name, kind, &to_address.to_string()], &Outcome::new(answer.is_ok(), "answered", format!("{answer:?}")))?;
        }
        let node = &self.cluster.nodes[2];
        let answer = tcp(&node.netns, SocketAddr::new(web.ip(), NAME_PORT));
        screen.print_row(
            [&node.name, "node to a pod of another node", &web.ip().to_string()],
            &Outcome::new(answer.is_ok(), "answered", format!("{answer:?}")),
        )?;
        let outside = self.cluster.outside.tcp(OUTSIDE[0].parse()?);
        let answer = tcp(&far.pod.netns, outside).map_err(|error| error.to_string());
        let masqueraded = answer.as_deref() == Ok("192.168.77.3");
        let outcome = Outcome::new(masqueraded, "answered; it saw the node's address 192.168.77.3", format!("{answer:?}"));
        screen.print_row([far.name, "to the outside, masqueraded", &outside.to_string()], &outcome)?;
        // The tunnel's MTU is 1450. The IP and ICMP headers take 28 bytes.
        let (fits, too_large) = (ping_whole(&far.pod.netns, web.ip(), 1422), ping_whole(&far.pod.netns, web.ip(), 1423));
        let outcome = Outcome::new(fits && !too_large, "1450 bytes get through, 1451 do not", format!("1450: {fits}, 1451: {too_large}"));
        screen.print_row([far.name, "largest packet", &web.ip().to_string()], &outcome)?;
        Ok(())
    }

    fn show_services(&self, screen: &mut Screen) -> anyhow::Result<()> {
        screen.print_title("3. Services")?;
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
        // Each node watches the API server by itself, so wait for all of them.
        for number in 1..=self.cluster.nodes.len() {
            let to = at(&format!("192.168.77.{number}"), NODE_PORT)?;
            until("the NodePort answers on every node", || tcp_within(outside, to, SHORT_TIMEOUT).is_ok())?;
        }
        let refused = |to| tcp_within(pod, to, SHORT_TIMEOUT).is_err_and(|error| error.kind() == ErrorKind::ConnectionRefused);
        let (sticky, empty, balanced) = (at("10.96.0.12", 80)?, at("10.96.0.14", 80)?, at(BALANCER, 80)?);
        until("every Service answers", || tcp_within(pod, web, SHORT_TIMEOUT).is_ok() && tcp_within(pod, sticky, SHORT_TIMEOUT).is_ok())?;
        until("the Service without endpoints refuses", || refused(empty))?;
        until("the load balancer answers", || tcp_within(outside, balanced, SHORT_TIMEOUT).is_ok())?;
        for (source, from) in [("a pod", pod), ("a node", node)] {
            screen.print_row([source, "ClusterIP", "10.96.0.10:80"], &check_spread(from, at("10.96.0.10", 80)?))?;
        }
        for (source, from) in [("a pod", pod), ("outside", outside)] {
            let to = at("192.168.77.1", NODE_PORT)?;
            screen.print_row([source, "NodePort", &to.to_string()], &check_spread(from, to))?;
        }
        screen.print_row(["a pod", "session affinity", "10.96.0.12:80"], &check_affinity(pod, sticky))?;
        // The kernel limits how many ICMP refusals it sends to one host. The time limit of `tcp` holds on a busy machine, too.
        let is_refused = tcp(pod, empty).is_err_and(|error| error.kind() == ErrorKind::ConnectionRefused);
        screen.print_row(["a pod", "no endpoints", "10.96.0.14:80"], &Outcome::new(is_refused, "refused at once", "not refused"))?;
        let answer = tcp(outside, balanced).map_err(|error| error.to_string());
        let outcome = Outcome::new(
            answer.as_deref().is_ok_and(|answer| answer.starts_with("web-2 192.168.77.200")),
            "answered by web-2; it saw the client's address",
            format!("{answer:?}"),
        );
        screen.print_row(["outside", "LoadBalancer, Local policy, node-2", &balanced.to_string()], &outcome)?;
        outside.run(&format!("ip route replace {BALANCER}/32 via 192.168.77.1"));
        let dropped = tcp(outside, balanced).err().is_some_and(|error| error.kind() == ErrorKind::TimedOut);
        screen.print_row(
            ["outside", "the same, node-1 without endpoint", &balanced.to_string()],
            &Outcome::new(dropped, "dropped", "not dropped"),
        )?;
        let answer = tcp(&near.pod.netns, SocketAddr::new(self.pod("web-2")?.ip(), NAME_PORT));
        screen.print_row(
            ["a pod", "headless Service: the pod's address", "web-2"],
            &Outcome::new(answer.is_ok(), "answered", format!("{answer:?}")),
        )?;
        let to = at("10.96.0.10", 80)?;
        let hairpin = (0..TRIES).any(|_| tcp(&near.pod.netns, to).is_ok_and(|answer| answer.starts_with("web-1 ")));
        screen.print_row(
            ["web-1", "to itself through its Service", "10.96.0.10:80"],
            &Outcome::new(hairpin, "answered by web-1 itself", "never answered by web-1"),
        )?;
        Ok(())
    }

    fn show_changes(&mut self, screen: &mut Screen) -> anyhow::Result<()> {
        screen.print_title("4. Changes: time from the API to the first packet")?;
        let far = &self.pod("client-3")?.pod.netns;
        let web = SocketAddr::new("10.96.0.10".parse()?, 80);
        let template = self.services.iter().find(|service| service.name == "web").context("no Service is named web")?;
        for (what, names, first) in
            [("endpoint changes to web-2", &["web-2"][..], "web-2 "), ("endpoint changes to web-1", &["web-1"], "web-1 ")]
        {
            let begin = Instant::now();
            self.cluster.server.put(template.slice(&self.endpoints(names))).map_err(|refusal| anyhow::anyhow!("{refusal:?}"))?;
            until(what, || (0..4).all(|_| tcp_within(far, web, SHORT_TIMEOUT).is_ok_and(|answer| answer.starts_with(first))))?;
            screen.print_row(["a pod", what, "10.96.0.10:80"], &Outcome::new(true, elapsed_text(begin), ""))?;
        }
        let begin = Instant::now();
        let mut added = template.service();
        (added["metadata"]["name"], added["spec"]["clusterIP"], added["spec"]["clusterIPs"]) =
            ("new".into(), "10.96.0.20".into(), serde_json::json!(["10.96.0.20"]));
        let mut slice = template.slice(&self.endpoints(&["web-1"]));
        (slice["metadata"]["name"], slice["metadata"]["labels"]["kubernetes.io/service-name"]) = ("new-1".into(), "new".into());
        for object in [added, slice] {
            self.cluster.server.put(object).map_err(|refusal| anyhow::anyhow!("{refusal:?}"))?;
        }
        let to = SocketAddr::new("10.96.0.20".parse()?, 80);
        until("the new Service answers", || tcp_within(far, to, SHORT_TIMEOUT).is_ok())?;
        screen.print_row(["a pod", "a Service is added", &to.to_string()], &Outcome::new(true, elapsed_text(begin), ""))?;
        Ok(())
    }

    fn show_repairs(&mut self, screen: &mut Screen) -> anyhow::Result<()> {
        screen.print_title("5. Faults: time until sepal has repaired them and packets arrive again")?;
        let (far, web) = (self.pod("client-3")?, self.pod("web-1")?);
        let (pod, to) = (SocketAddr::new(web.ip(), NAME_PORT), SocketAddr::new("10.96.0.10".parse()?, 80));
        let node = &self.cluster.nodes[2];
        for (what, script, to) in [
            ("flannel.1 deleted", "ip link del flannel.1", pod),
            ("route deleted", &format!("ip route del $(ip route get {} | sed -n 's/.* via \\([^ ]*\\) .*/\\1/p')/24", web.ip()), pod),
            ("all rules flushed", "iptables-nft -t nat -F; iptables-nft -t nat -X", to),
        ] {
            let begin = Instant::now();
            node.netns.run(script);
            until(what, || tcp_within(&far.pod.netns, to, SHORT_TIMEOUT).is_ok())?;
            screen.print_row([&node.name, what, &to.to_string()], &Outcome::new(true, elapsed_text(begin), ""))?;
        }
        node.kill();
        let answer = tcp(&far.pod.netns, to);
        screen.print_row(
            [&node.name, "kill -9: traffic continues", &to.to_string()],
            &Outcome::new(answer.is_ok(), "answered without the daemon", format!("{answer:?}")),
        )?;
        let begin = Instant::now();
        node.start_again();
        node.wait_ready();
        screen.print_row([&node.name, "started again", ""], &Outcome::new(true, format!("ready {}", elapsed_text(begin)), ""))?;
        Ok(())
    }

    fn keep_running(&self, screen: &mut Screen) -> anyhow::Result<()> {
        screen.print_title("The cluster stays up until you end this program (Ctrl-C, or make demo-clean). Commands to look inside:")?;
        for (name, netns) in
            self.cluster.nodes.iter().map(|node| (node.name.as_str(), &node.netns)).chain([("outside", &self.cluster.outside.netns)])
        {
            screen.print_line(&format!("{name:<9} sudo nsenter --net={} sh -c 'ip route; iptables-save'", netns.path()))?;
        }
        for DemoPod { name, pod, .. } in &self.pods {
            screen.print_line(&format!("{name:<9} sudo nsenter --net={} curl -s 10.96.0.10", pod.netns.path()))?;
        }
        screen.print_line(&format!(
            "API       sudo nsenter --net={} curl -s {}/api/v1/nodes",
            self.cluster.switch.path(),
            self.cluster.server.url()
        ))?;
        loop {
            thread::park();
        }
    }
}

/// Starts a server in a pod that answers with the pod's name and the client's address.
fn serve_name(pod: &Pod, name: &'static str) {
    let ips = pod.ips.clone();
    for ip in ips {
        let listener = pod.netns.run_thread(move || TcpListener::bind((ip, NAME_PORT)).expect("the port is free in a new pod"));
        thread::spawn(move || {
            while let Ok((mut stream, peer)) = listener.accept() {
                let _ = stream.write_all(format!("{name} {}", peer.ip()).as_bytes());
            }
        });
    }
}

fn elapsed_text(begin: Instant) -> String {
    format!("after {:.0} ms", begin.elapsed().as_secs_f64() * 1e3)
}

/// Waits until a condition holds.
fn until(what: &str, mut holds: impl FnMut() -> bool) -> anyhow::Result<()> {
    let begin = Instant::now();
    while !holds() {
        ensure!(begin.elapsed() < CHANGE_LIMIT, "condition does not hold after {} s: {what}", CHANGE_LIMIT.as_secs());
        thread::sleep(Duration::from_millis(1));
    }
    Ok(())
}

/// Checks that both endpoints answer.
fn check_spread(from: &Netns, to: SocketAddr) -> Outcome {
    let mut servers = BTreeSet::new();
    for _ in 0..TRIES {
        match tcp(from, to) {
            Ok(answer) => servers.insert(answer.split(' ').next().unwrap_or_default().to_owned()),
            Err(error) => return Outcome { ok: false, text: error.to_string() },
        };
        if servers.len() == 2 {
            break;
        }
    }
    let servers: Vec<String> = servers.into_iter().collect();
    Outcome { ok: servers.len() == 2, text: format!("answered by {}", servers.join(" and ")) }
}

/// Checks that the same endpoint answers every time.
fn check_affinity(from: &Netns, to: SocketAddr) -> Outcome {
    let answers: std::io::Result<BTreeSet<String>> = (0..16).map(|_| tcp(from, to)).collect();
    match answers {
        Ok(servers) if servers.len() == 1 => {
            let server = servers.iter().next().and_then(|answer| answer.split(' ').next()).unwrap_or_default();
            Outcome { ok: true, text: format!("answered 16 times by {server}") }
        }
        Ok(_) => Outcome { ok: false, text: "both endpoints answered".to_owned() },
        Err(error) => Outcome { ok: false, text: error.to_string() },
    }
}
