//! A node with an API server, a running sepal, and servers behind Services.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::process::{Child, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use sepal::table::plan::Variant;
use sepal_apiserver::ApiServer;
use sepal_lab::{Cluster, IN_NAMESPACE, Netns};
use serde_json::Value;

use crate::common;

/// The program.
pub(crate) const SEPAL: &str = env!("CARGO_BIN_EXE_sepal");

/// The addresses of the servers that endpoints are moved between.
pub(crate) const SERVERS: [Ipv4Addr; 2] = [Ipv4Addr::new(10, 255, 0, 1), Ipv4Addr::new(10, 255, 0, 2)];

/// A running sepal and what it logs.
pub(crate) struct Sepal {
    child: Child,
    log: Receiver<String>,
}

impl Sepal {
    pub(crate) fn start(node: &Netns, server: &ApiServer, variant: Variant) -> Self {
        let kubeconfig = std::env::temp_dir().join(format!("sepal-bench-{}", std::process::id()));
        std::fs::write(&kubeconfig, server.kubeconfig()).expect("writable");
        let mut command = node.command(SEPAL);
        // Without audits, whose share of the time is bounded by itself: what is measured is the cost of changes.
        command
            .arg("run")
            .args(IN_NAMESPACE)
            .args(["--hostname-override=bench", "--iptables-sync-period=1h", "--iptables-variant", variant.as_str()])
            .env("KUBECONFIG", kubeconfig);
        let mut child = command.stdin(Stdio::null()).stderr(Stdio::piped()).spawn().expect("sepal starts");
        let stderr = BufReader::new(child.stderr.take().expect("piped"));
        let (sender, log) = channel();
        std::thread::spawn(move || {
            stderr.lines().map_while(Result::ok).try_for_each(|line| {
                if line.contains(" ERROR ") {
                    println!("{line}");
                }
                sender.send(line)
            })
        });
        Self { child, log }
    }

    /// Waits until it logs this of IPv4.
    pub(crate) fn logs(&self, text: &str) {
        let limit = Instant::now() + Duration::from_secs(600);
        loop {
            let line = self.log.recv_timeout(limit - Instant::now()).expect("it is said in time");
            if line.contains("ipv4: ") && line.contains(text) {
                return;
            }
        }
    }

    /// Forgets what it has logged so far.
    pub(crate) fn forget_log(&self) {
        while self.log.try_recv().is_ok() {}
    }

    /// A figure of `/proc/PID/status`, in MB of a million bytes.
    pub(crate) fn memory(&self, name: &str) -> f64 {
        common::memory(self.child.id(), name)
    }

    /// CPU time of all its threads, without its children's, in ms; to 10 ms.
    pub(crate) fn cpu(&self) -> f64 {
        common::cpu(self.child.id())
    }
}

impl Drop for Sepal {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// An API server in the node's namespace.
pub(crate) fn serve(node: &Netns, objects: Vec<Value>) -> ApiServer {
    node.within(move || ApiServer::serve_objects(TcpListener::bind("127.0.0.1:0").expect("a free port"), objects).expect("it serves"))
}

/// Where one service is reached.
pub(crate) fn address(service: usize) -> SocketAddr {
    SocketAddr::new(Cluster::cluster_ip(service).parse().expect("an address"), 80)
}

/// Servers on addresses of the node's own; each says which it is.
pub(crate) fn serve_endpoints(node: &Netns) {
    node.run(
        "ip link add beyond type veth peer name horizon; ip link set beyond up; ip link set horizon up; ip route add default dev beyond",
    );
    for ip in SERVERS {
        node.run(&format!("ip addr add {ip}/32 dev lo"));
        let listener = node.within(move || TcpListener::bind((ip, 8080)).expect("free"));
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let _ = { stream }.write_all(ip.to_string().as_bytes());
            }
        });
    }
}

/// Connects until the server that answers is this one.
pub(crate) fn wait_for(node: &Netns, to: SocketAddr, server: Ipv4Addr) {
    let wanted = server.to_string();
    node.within(move || {
        let limit = Instant::now() + Duration::from_secs(120);
        loop {
            let mut said = String::new();
            if let Ok(mut stream) = TcpStream::connect_timeout(&to, Duration::from_millis(20)) {
                let _ = stream.read_to_string(&mut said);
            }
            if said == wanted {
                return;
            }
            assert!(Instant::now() < limit, "the change never arrives");
        }
    });
}
