//! A running sepal and the API server in the same namespace.

use std::io::{BufRead, BufReader};
use std::net::TcpListener;
use std::process::{Child, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use sepal::table::plan::Variant;
use sepal_apiserver::ApiServer;
use sepal_lab::{Cluster, NAMESPACE_FLAGS, Netns, figures};
use serde_json::Value;

/// Path of the program.
pub(crate) const SEPAL: &str = env!("CARGO_BIN_EXE_sepal");

/// A running sepal and its log lines. Dropping it kills the program.
pub(crate) struct Sepal {
    child: Child,
    log: Receiver<String>,
}

impl Sepal {
    /// Starts sepal in a node's namespace.
    pub(crate) fn start(node: &Netns, server: &ApiServer, variant: Variant) -> Self {
        let kubeconfig = std::env::temp_dir().join(format!("sepal-bench-{}", std::process::id()));
        std::fs::write(&kubeconfig, server.kubeconfig()).expect("writable");
        let mut command = node.command(SEPAL);
        // The long sync period keeps audits out of the measurement. -v=2 logs each sync.
        command
            .arg("run")
            .args(NAMESPACE_FLAGS)
            .args(["--hostname-override=bench", "--iptables-sync-period=1h", "-v=2", "--iptables-variant", variant.as_str()])
            .args(std::env::var("SEPAL_BENCH_FLAGS").unwrap_or_default().split_whitespace())
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

    /// Waits until sepal logs a line about IPv4 that contains this text.
    pub(crate) fn wait_for_log(&self, text: &str) {
        self.wait_for_families(Cluster::new(1, 1), text);
    }

    /// Waits until sepal logs a line with this text about each family of a cluster.
    pub(crate) fn wait_for_families(&self, cluster: Cluster, text: &str) {
        let limit = Instant::now() + Duration::from_secs(600);
        let mut families = if cluster.dual_stack { vec!["ipv4: ", "ipv6: "] } else { vec!["ipv4: "] };
        while !families.is_empty() {
            let line = self.log.recv_timeout(limit - Instant::now()).expect("sepal logs the text in time");
            families.retain(|family| !(line.contains(family) && line.contains(text)));
        }
    }

    /// Discards the lines that were logged so far.
    pub(crate) fn clear_log(&self) {
        while self.log.try_recv().is_ok() {}
    }

    /// Returns a memory figure of `/proc/PID/status` in MB (10^6 bytes).
    pub(crate) fn read_memory_mb(&self, name: &str) -> f64 {
        figures::read_memory_mb(self.child.id(), name)
    }

    /// Returns the CPU time of all threads in ms, without children. The resolution is 10 ms.
    pub(crate) fn read_cpu_ms(&self) -> f64 {
        figures::read_cpu_ms(self.child.id())
    }

    /// Returns the CPU time of sepal and of the programs that it ran, in ms. The resolution is 10 ms.
    pub(crate) fn read_cpu_with_children_ms(&self) -> f64 {
        figures::read_cpu_with_children_ms(self.child.id())
    }
}

impl Drop for Sepal {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Starts an API server with these objects in the node's namespace.
pub(crate) fn start_api_server(node: &Netns, objects: Vec<Value>) -> ApiServer {
    node.run_thread(move || {
        ApiServer::serve_objects(TcpListener::bind("127.0.0.1:0").expect("a free port"), objects).expect("the API server starts")
    })
}
