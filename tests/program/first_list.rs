//! API servers that refuse streaming lists, or do not answer at the start.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::process::Stdio;
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use sepal_apiserver::{Authority, InjectedFailure, Options, User};
use sepal_lab::{Cluster, NAMESPACE_FLAGS, Netns, Running, http, wait_until, wait_until_within};
use serde_json::{Value, json};

use crate::SEPAL;
use crate::api_node::{serve, serve_at, serve_with};

/// How a server answers a streaming list.
#[derive(Clone, Copy, Debug)]
enum Refusal {
    /// An HTTP status.
    Status(u16),
    /// Status 200 and a watch event of type ERROR, as kube-apiserver 1.36 sends with an old etcd.
    ErrorEvent,
    /// Status 200, an object that is not in the list, and the end of the stream.
    End,
    /// Status 200 and an event that is not JSON.
    Unreadable,
    /// A closed connection.
    Close,
}

/// A small API server over plain HTTP. Lists and ordinary watches work.
struct Scripted {
    kubeconfig: tempfile::NamedTempFile,
    /// Open watches of EndpointSlices.
    watches: Arc<Mutex<Vec<TcpStream>>>,
    /// Path and query of each request.
    requests: Arc<Mutex<Vec<String>>>,
}

fn kubeconfig(address: SocketAddr) -> tempfile::NamedTempFile {
    let text = json!({
        "apiVersion": "v1", "kind": "Config", "current-context": "c",
        "clusters": [{"name": "k", "cluster": {"server": format!("http://{address}")}}],
        "contexts": [{"name": "c", "context": {"cluster": "k", "user": "u"}}],
        "users": [{"name": "u", "user": {}}],
    });
    file_of(&text.to_string())
}

fn file_of(text: &str) -> tempfile::NamedTempFile {
    let mut file = tempfile::NamedTempFile::new().expect("writable");
    file.write_all(text.as_bytes()).expect("writable");
    file
}

fn slice(endpoint: &str, version: u64) -> Value {
    json!({
        "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4",
        "metadata": {
            "name": "web-1", "namespace": "shop", "resourceVersion": version.to_string(), "labels": {"kubernetes.io/service-name": "web"},
        },
        "endpoints": [{"addresses": [endpoint], "conditions": {"ready": true}}],
        "ports": [{"name": "http", "port": 8080, "protocol": "TCP"}],
    })
}

fn objects(resource: &str) -> Vec<Value> {
    match resource {
        "nodes" => vec![json!({
            "apiVersion": "v1", "kind": "Node", "metadata": {"name": "bench", "resourceVersion": "3"},
            "status": {"addresses": [{"type": "InternalIP", "address": "192.0.2.11"}]},
        })],
        "services" => vec![json!({
            "apiVersion": "v1", "kind": "Service", "metadata": {"name": "web", "namespace": "shop", "resourceVersion": "4"},
            "spec": {
                "clusterIP": "10.96.7.7", "clusterIPs": ["10.96.7.7"], "ipFamilies": ["IPv4"], "type": "ClusterIP", "sessionAffinity": "None",
                "ports": [{"name": "http", "port": 80, "protocol": "TCP", "targetPort": 8080}],
            },
        })],
        _ => vec![slice("10.244.1.9", 5)],
    }
}

/// A watch event as servers write it, with the type first.
fn event(kind: &str, object: &Value) -> String {
    format!("{{\"type\":\"{kind}\",\"object\":{object}}}\n")
}

impl Scripted {
    fn start(node: &Netns, refusal: Refusal) -> Self {
        let listener = node.run_thread(|| TcpListener::bind("127.0.0.1:0").expect("a free port"));
        let kubeconfig = kubeconfig(listener.local_addr().expect("an address"));
        let (watches, requests) = (Arc::<Mutex<Vec<TcpStream>>>::default(), Arc::<Mutex<Vec<String>>>::default());
        let server = Self { kubeconfig, watches: Arc::clone(&watches), requests: Arc::clone(&requests) };
        thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                let (watches, requests) = (Arc::clone(&watches), Arc::clone(&requests));
                thread::spawn(move || answer_requests(&stream, refusal, &watches, &requests));
            }
        });
        server
    }

    fn requests(&self, text: &str) -> usize {
        self.requests.lock().expect("not poisoned").iter().filter(|path| path.contains(text)).count()
    }

    /// Sends an event to the watches of EndpointSlices.
    fn modify(&self, slice: &Value) {
        let event = event("MODIFIED", slice);
        for mut stream in self.watches.lock().expect("not poisoned").iter() {
            let _ = stream.write_all(event.as_bytes());
        }
    }
}

/// Answers the requests of one connection.
fn answer_requests(stream: &TcpStream, refusal: Refusal, watches: &Mutex<Vec<TcpStream>>, requests: &Mutex<Vec<String>>) {
    let mut reader = BufReader::new(stream.try_clone().expect("a socket"));
    while let Some(path) = read_request(&mut reader) {
        requests.lock().expect("not poisoned").push(path.clone());
        if answer(stream, &path, refusal, watches).is_none() {
            return;
        }
    }
}

/// Reads a request; returns its path and query.
fn read_request(reader: &mut BufReader<TcpStream>) -> Option<String> {
    let (mut path, mut length) = (None, 0);
    loop {
        let mut line = String::new();
        if reader.read_line(&mut line).ok()? == 0 {
            return None;
        }
        let line = line.trim_end().to_ascii_lowercase();
        if let Some(value) = line.strip_prefix("content-length:") {
            length = value.trim().parse().ok()?;
        }
        match (&path, line.as_str()) {
            (None, _) => path = line.split(' ').nth(1).map(str::to_owned),
            (Some(path), "") => {
                reader.read_exact(&mut vec![0; length]).ok()?;
                return Some(path.clone());
            }
            _ => {}
        }
    }
}

/// Answers a request; `None` if the connection has no more requests.
fn answer(mut stream: &TcpStream, path: &str, refusal: Refusal, watches: &Mutex<Vec<TcpStream>>) -> Option<()> {
    let mut whole = |code: u16, body: &Value| {
        let body = body.to_string();
        let head = format!("HTTP/1.1 {code} X\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n", body.len());
        stream.write_all((head + &body).as_bytes()).ok()
    };
    let status = |code: u16, message: &str| json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure", "message": message, "reason": "", "code": code});
    let (path, query) = path.split_once('?').unwrap_or((path, ""));
    let resource = path.rsplit('/').find(|part| ["nodes", "services", "endpointslices", "version"].contains(part)).unwrap_or_default();
    let items = match resource {
        "" => return whole(404, &status(404, "no such resource")),
        "version" => return whole(200, &json!({"major": "1", "minor": "36", "gitVersion": "v1.36.2"})),
        resource => objects(resource),
    };
    if path.ends_with("/nodes/bench") {
        return whole(200, &items[0]);
    }
    if !query.contains("watch=") {
        return whole(200, &json!({"metadata": {"resourceVersion": "10"}, "items": items}));
    }
    let begin = "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nConnection: close\r\n\r\n";
    if !query.contains("sendinitialevents") {
        stream.write_all(begin.as_bytes()).ok()?;
        if resource == "endpointslices" {
            watches.lock().expect("not poisoned").push(stream.try_clone().ok()?);
        }
        // The watch stays open until the client closes it.
        let _ = stream.read(&mut [0]);
        return None;
    }
    let event = |kind: &str, object: &Value| format!("{begin}{}", event(kind, object));
    let text = match refusal {
        Refusal::Status(code) => return whole(code, &status(code, "no lists as streams here")),
        Refusal::ErrorEvent => event("ERROR", &status(500, "the required storage feature RequestWatchProgress is disabled")),
        Refusal::End if resource == "endpointslices" => {
            let mut old = slice("10.244.9.9", 1);
            old["metadata"]["name"] = "web-old".into();
            event("ADDED", &old)
        }
        Refusal::End => begin.to_owned(),
        Refusal::Unreadable => format!("{begin}<html>\n"),
        Refusal::Close => String::new(),
    };
    let _ = stream.write_all(text.as_bytes());
    let _ = stream.shutdown(std::net::Shutdown::Both);
    None
}

/// A node on which sepal runs, and its log.
struct Lab {
    node: Netns,
    log: tempfile::NamedTempFile,
}

impl Lab {
    fn new() -> Self {
        Self { node: Netns::new(), log: tempfile::NamedTempFile::new().expect("writable") }
    }

    fn sepal(&self, kubeconfig: &std::path::Path, arguments: &[&str]) -> Running {
        let mut command = self.node.command(SEPAL);
        command.args(["run", "--hostname-override", "bench", "--iptables-variant", "nft"]).args(NAMESPACE_FLAGS).args(arguments);
        command.env("KUBECONFIG", kubeconfig).stdin(Stdio::null()).stderr(self.log.reopen().expect("writable"));
        Running(command.spawn().expect("sepal starts"))
    }

    fn log(&self) -> String {
        std::fs::read_to_string(self.log.path()).expect("readable")
    }

    fn nat(&self) -> String {
        self.node.run("iptables-nft-save -t nat")
    }

    /// Status and body of a probe; `None` if nothing answers.
    fn probe(&self, path: &str) -> Option<(u16, String)> {
        http::get(&self.node, ([127, 0, 0, 1], 10256).into(), path).ok().map(|answer| (answer.status, answer.body))
    }

    fn status(&self, path: &str) -> Option<u16> {
        self.probe(path).map(|(status, _)| status)
    }
}

#[test]
fn every_refusal_of_a_streaming_list_falls_back_to_list_and_watch() {
    let statuses = [400, 403, 404, 405, 422, 500, 501, 503].map(Refusal::Status);
    for refusal in statuses.into_iter().chain([Refusal::ErrorEvent, Refusal::End, Refusal::Unreadable, Refusal::Close]) {
        let lab = Lab::new();
        let server = Scripted::start(&lab.node, refusal);
        let _sepal = lab.sepal(server.kubeconfig.path(), &[]);
        wait_until(&format!("the rules, after {refusal:?}"), || lab.nat().contains("--to-destination 10.244.1.9:8080"));
        assert!(!lab.nat().contains("10.244.9.9"), "{refusal:?}: the list counts, not the stream that ended");
        // The fallback is part of the same attempt, so no attempt has failed.
        assert!(!lab.log().contains("next attempt"), "{refusal:?}: {}", lab.log());
        wait_until("the watch is open", || !server.watches.lock().expect("not poisoned").is_empty());
        server.modify(&slice("10.244.1.10", 11));
        wait_until(&format!("a change, after {refusal:?}"), || lab.nat().contains("--to-destination 10.244.1.10:8080"));
        wait_until("every kind is listed", || server.requests("limit=500") >= 3);
        assert_eq!((server.requests("sendinitialevents=true"), server.requests("limit=500")), (3, 3), "{refusal:?}: {:?}", server.requests);
        wait_until("it is ready", || lab.status("/readyz") == Some(200));
    }
}

/// The same over TLS and HTTP/2, also with refusals that come late.
#[test]
fn over_tls_every_refusal_of_a_streaming_list_falls_back() {
    let any = || InjectedFailure::always(500).streaming();
    let failures = [
        InjectedFailure::old_etcd(),
        any().text("<html>no</html>"),
        any().closed(),
        any().ended(),
        any().silent(),
        any().without_bookmark(),
        InjectedFailure::always(404).streaming(),
        InjectedFailure::always(503).streaming().retry_after(1),
        InjectedFailure::always(403).streaming().as_event(),
    ];
    let authority = Authority::new("ca").expect("a CA");
    thread::scope(|scope| {
        for failure in failures {
            let authority = &authority;
            scope.spawn(move || {
                let lab = Lab::new();
                let options = Options::default().tls(&authority.server(&["127.0.0.1"]).expect("a certificate")).token("abc");
                let objects: Vec<Value> = Cluster::new(3, 2).objects().chain(objects("nodes")).collect();
                let server = serve_with(&lab.node, objects, options);
                server.fail(failure.clone());
                let file = file_of(&server.kubeconfig_as(&authority.pem(), &User::Token("abc")));
                let _sepal = lab.sepal(file.path(), &[]);
                // A silent stream is closed after ten seconds.
                let ready = || lab.status("/readyz") == Some(200) && lab.status("/healthz") == Some(200);
                wait_until_within(Duration::from_secs(60), &format!("it is ready, after {failure:?}"), ready);
                // When a connection breaks, the lists of other kinds over it fail, too.
                let closed = format!("{failure:?}").contains("Close");
                assert!(closed || !lab.log().contains("next attempt"), "{failure:?}: {}", lab.log());
                let ip = Cluster::endpoint_ip(1, 20);
                server.put(Cluster::slice(1, std::slice::from_ref(&ip))).expect("a slice");
                wait_until(&format!("a change, after {failure:?}"), || lab.nat().contains(&ip));
                assert!(server.count("list services") > 0, "{failure:?}: {:?}", server.requests());
            });
        }
    });
}

/// The API server is down when the node starts: `/livez` is healthy, `/healthz` and `/readyz` are not, and the log does not report an outage.
#[test]
fn a_server_that_is_down_at_the_start() {
    let lab = Lab::new();
    let address = lab.node.run_thread(|| TcpListener::bind("127.0.0.1:0").and_then(|listener| listener.local_addr()).expect("a free port"));
    let kubeconfig = kubeconfig(address);
    let _sepal = lab.sepal(kubeconfig.path(), &[]);
    wait_until("probes are answered", || lab.status("/livez") == Some(200));
    wait_until("/readyz says what is missing", || {
        lab.probe("/readyz").is_some_and(|(status, body)| {
            status == 503
                && body.contains("[-]proxy-ipv4 not yet: no ")
                && body.contains("s are known yet: ")
                && body.contains("onnection refused")
        })
    });
    wait_until("the log says so", || {
        lab.log().contains("no Services, EndpointSlices, Nodes are known yet: ") || lab.log().contains("no Services are known yet: ")
    });
    assert!(lab.log().contains(", next attempt in "), "{}", lab.log());
    assert!(!lab.log().contains("interrupted") && !lab.log().contains("stay as they are"), "nothing was known: {}", lab.log());
    let (status, body) = lab.probe("/healthz").expect("an answer");
    assert!(status == 503 && body.contains(r#""healthy":false"#), "{body}");
    assert_eq!(lab.status("/livez"), Some(200));

    let objects = Cluster::new(3, 2).objects().chain(objects("nodes")).collect();
    let _server = serve_at(&lab.node, address, objects);
    wait_until("it is healthy and ready", || ["/livez", "/readyz", "/healthz"].iter().all(|path| lab.status(path) == Some(200)));
    wait_until("the log says that it works", || lab.log().contains("list and watch work again, "));
}

/// The start waits for a pod CIDR while the API server does not answer; probes are answered meanwhile.
#[test]
fn a_node_is_awaited_while_probes_are_answered() {
    let lab = Lab::new();
    let address = lab.node.run_thread(|| TcpListener::bind("127.0.0.1:0").and_then(|listener| listener.local_addr()).expect("a free port"));
    let kubeconfig = kubeconfig(address);
    let _sepal = lab.sepal(kubeconfig.path(), &["--detect-local-mode=NodeCIDR", "--bind-address=127.0.0.1"]);
    wait_until("/readyz says what the start waits for", || {
        lab.probe("/readyz").is_some_and(|(status, body)| status == 503 && body.starts_with("[-]start not yet: no Node is known yet: "))
    });
    assert_eq!((lab.status("/livez"), lab.status("/healthz")), (Some(200), Some(503)));
    let mut node = objects("nodes").remove(0);
    node["spec"] = json!({"podCIDR": "10.244.1.0/24", "podCIDRs": ["10.244.1.0/24"]});
    let _server = serve_at(&lab.node, address, vec![node]);
    wait_until("it is ready", || lab.status("/readyz") == Some(200));
}

/// Lists of one kind are refused: the log and `/readyz` show the reason, and probes behave as with a server that is down.
#[test]
fn a_list_that_stays_refused() {
    let lab = Lab::new();
    let objects = Cluster::new(3, 2).objects().chain(objects("nodes")).collect();
    let server = serve(&lab.node, objects);
    server.fail(InjectedFailure::during(Duration::from_secs(3600), 500).at("/services?"));
    let file = file_of(&server.kubeconfig());
    let _sepal = lab.sepal(file.path(), &[]);
    wait_until("/readyz has the reason", || {
        lab.probe("/readyz").is_some_and(|(status, body)| {
            status == 503 && body.contains("[-]proxy-ipv4 not yet: no Services are known yet: ") && body.contains("(500 ")
        })
    });
    wait_until("the log has the reason", || lab.log().contains("no Services are known yet: "));
    assert_eq!((lab.status("/livez"), lab.status("/healthz")), (Some(200), Some(503)));
    server.fail(InjectedFailure::next(1, 500).at("nothing"));
    wait_until("it is healthy", || lab.status("/healthz") == Some(200));
    // After the first sync a refusal is an outage: the rules stay, and the probes stay healthy.
    server.fail(InjectedFailure::during(Duration::from_secs(3600), 500).at("/services?"));
    server.drop_watches();
    wait_until("the log says so", || lab.log().contains("watch of Services interrupted: "));
    assert_eq!((lab.status("/livez"), lab.status("/readyz"), lab.status("/healthz")), (Some(200), Some(200), Some(200)));
}

/// Single syncs are logged only with `-v=2`.
#[test]
fn the_log_is_short() {
    for (arguments, logged) in [(&[][..], false), (&["-v=1"], false), (&["-v=2"], true)] {
        let lab = Lab::new();
        let objects: Vec<Value> = Cluster::new(10, 2).objects().chain(objects("nodes")).collect();
        let server = serve(&lab.node, objects);
        let file = file_of(&server.kubeconfig());
        let _sepal = lab.sepal(file.path(), arguments);
        wait_until("it is ready", || lab.status("/readyz") == Some(200));
        let lines = || lab.log().lines().filter(|line| line.contains("ipv4: ") && line.contains("chains written")).count();
        wait_until("the first sync is logged", || lines() == 1);
        for service in 0..5 {
            let ip = Cluster::endpoint_ip(service, 20);
            server.put(Cluster::slice(service, std::slice::from_ref(&ip))).expect("a slice");
            wait_until("a change", || lab.nat().contains(&ip));
            let expected = if logged { service + 2 } else { 1 };
            // A sync that takes a second is always logged, and on a busy machine a sync may take that long.
            let slow = || {
                lab.log().lines().any(|line| {
                    line.contains("chains written")
                        && line.split(' ').any(|word| word.len() > 4 && word.chars().all(|c| c.is_ascii_digit()))
                })
            };
            wait_until("the expected log line", || lines() == expected || slow());
        }
    }
}
