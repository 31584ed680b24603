//! A node with an API server and a running sepal.

use std::io::{BufRead, BufReader};
use std::net::TcpListener;
use std::process::{Child, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use sepal::table::plan::Variant;
use sepal_apiserver::ApiServer;
use sepal_lab::{IN_NAMESPACE, Netns, figures};
use serde_json::Value;

/// The program.
pub(crate) const SEPAL: &str = env!("CARGO_BIN_EXE_sepal");

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
        // Without audits, whose share of the time has a limit of its own: what is measured is the cost of changes. Each sync is logged.
        command
            .arg("run")
            .args(IN_NAMESPACE)
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
        figures::memory(self.child.id(), name)
    }

    /// CPU time of all its threads, without its children's, in ms; to 10 ms.
    pub(crate) fn cpu(&self) -> f64 {
        figures::cpu(self.child.id())
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
