//! [`ApiServer`] and the program.

use std::io::{BufRead, BufReader, Read as _};
use std::net::{TcpListener, TcpStream};
use std::process::{Child, Stdio};

use sepal_apiserver::{ApiServer, Authority};
use serde_json::{Value, json};

use crate::client::{Line, Requests, names, request, service, shop};
use crate::secure_client::Handshake;

#[test]
fn objects_are_put_and_removed() {
    let server = ApiServer::start().unwrap();
    let version = server.put(service("shop", "a", &json!({}))).unwrap();
    let stored = server.get("Service", "shop/a").unwrap();
    assert_eq!((version, &stored["metadata"]["resourceVersion"]), (server.version(), &json!(version.to_string())));
    assert_eq!(stored["spec"]["ports"], json!([{"port": 80}]), "no defaults are set");
    server.put(json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": "n", "uid": "u"}})).unwrap();
    assert_eq!(server.get("nodes", "n").unwrap()["metadata"]["uid"], "u");
    assert_eq!(server.list("services").len(), 1);
    assert_eq!(server.list("namespaces").len(), 4);
    assert!(server.remove("services", "shop/a") && !server.remove("services", "shop/a"));
    assert_eq!(server.get("services", "shop/a"), None);
    let refusal = server.put(json!({"kind": "Car", "apiVersion": "v1"})).unwrap_err();
    assert_eq!((refusal.code(), refusal.reason(), refusal.to_string()), (400, "BadRequest", "no kind v1/Car".to_owned()));
}

#[test]
#[should_panic(expected = "no resource is called servces")]
fn a_misspelt_resource_panics() {
    let _ = ApiServer::start().unwrap().list("servces");
}

#[test]
fn the_kubeconfig_points_to_the_server() {
    let server = ApiServer::start().unwrap();
    assert_eq!(server.url(), format!("http://{}", server.address()));
    assert!(server.kubeconfig().contains(&format!("    server: {}\n", server.url())));
}

#[test]
fn stopping_closes_everything() {
    let server = shop();
    let mut watch = server.watch("/api/v1/namespaces/shop/services?watch=true");
    assert_eq!(watch.brief(), "ADDED a");
    server.stop();
    server.stop();
    assert_eq!(watch.next(), Line::Broken);
    assert!(TcpStream::connect(server.address()).is_err());
    assert_eq!(server.list("services").len(), 4, "objects stay readable");
    let (address, objects) = (server.address(), server.objects());
    drop(server);
    let again = ApiServer::serve_objects(TcpListener::bind(address).unwrap(), objects).unwrap();
    assert_eq!(names(&again.read("/api/v1/services").ok()).len(), 4);
}

#[test]
fn a_restarted_server_has_the_objects_and_no_history() {
    let server = shop();
    for _ in 0..100 {
        server.put(service("default", "a", &json!({}))).unwrap();
    }
    server.compact();
    let (address, version, a) = (server.address(), server.version(), server.get("services", "default/a").unwrap());
    let server = server.restart().unwrap();
    assert_eq!(server.address(), address);
    assert!(server.version() < version);
    assert_eq!(server.get("services", "default/a").unwrap()["metadata"]["uid"], a["metadata"]["uid"]);
    let mut old = server.watch("/api/v1/services?watch=true&resourceVersion=1001");
    assert_eq!(old.brief(), "ERROR -");
}

#[tokio::test]
async fn the_server_can_be_used_inside_a_runtime() {
    let server = ApiServer::start().unwrap();
    assert_eq!(server.restart().unwrap().list("namespaces").len(), 4);
}

/// Lists a cluster with 10000 EndpointSlices, in one response and in pages.
#[test]
fn large_clusters_are_served() {
    let server = ApiServer::start().unwrap();
    let padding = "x".repeat(1_300);
    let object = |number: usize| {
        let annotations = json!({"example.com/padding": padding});
        let metadata = json!({"name": format!("s{number:05}"), "namespace": "default", "annotations": annotations});
        json!({"apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "metadata": metadata})
    };
    let loaded =
        request(server.address(), "POST", "/_test/load", "", json!((0..10_000).map(object).collect::<Vec<_>>()).to_string().as_bytes());
    assert_eq!(loaded.code, 200);
    let path = "/apis/discovery.k8s.io/v1/endpointslices";
    let all = server.read(path).ok();
    assert_eq!(all["items"].as_array().unwrap().len(), 10_000);
    let mut listed = Vec::new();
    let mut token = String::new();
    loop {
        let page = server.read(&format!("{path}?limit=3000&continue={token}")).ok();
        listed.extend(page["items"].as_array().unwrap().clone());
        match page["metadata"]["continue"].as_str() {
            Some(next) => next.clone_into(&mut token),
            None => break,
        }
    }
    assert_eq!(Value::Array(listed), all["items"]);
}

/// A process that is killed at the end of the test.
struct Process(Child);

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[allow(clippy::disallowed_methods, reason = "this test runs the program")]
fn program(arguments: &[&str]) -> Process {
    let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_sepal-apiserver"));
    Process(command.args(arguments).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap())
}

fn first_line(stream: impl std::io::Read) -> String {
    let mut line = String::new();
    BufReader::new(stream).read_line(&mut line).unwrap();
    line.trim_end().to_owned()
}

#[test]
fn the_program_loads_and_listens() {
    let file = std::env::temp_dir().join(format!("sepal-apiserver-{}.json", std::process::id()));
    std::fs::write(&file, json!({"items": [service("default", "loaded", &json!({}))]}).to_string()).unwrap();
    let mut process = program(&["--listen", "127.0.0.1:0", "--load", file.to_str().unwrap()]);
    let line = first_line(process.0.stdout.take().unwrap());
    std::fs::remove_file(file).unwrap();
    let address = line.strip_prefix("listening ").unwrap().parse().unwrap();
    assert_eq!(names(&request(address, "GET", "/api/v1/services", "", b"").ok()), ["loaded"]);
    assert_eq!(names(&request(address, "GET", "/api/v1/namespaces", "", b"").ok()).len(), 4);
}

#[test]
fn the_program_reports_why_it_does_not_start() {
    for (arguments, message) in [
        (&["--unknown", "x"][..], "sepal-apiserver: unknown argument --unknown"),
        (&["--load"], "sepal-apiserver: --load has no value"),
        (&["--tls-cert-file", "x"], "sepal-apiserver: --tls-cert-file and --tls-private-key-file go together"),
        (&["--client-ca-file", "/nonexistent"], "sepal-apiserver: cannot read /nonexistent: No such file or directory (os error 2)"),
        (&["--client-ca-file", "/dev/null"], "sepal-apiserver: cannot read /dev/null: there is no certificate"),
        (&["--http", "3"], "sepal-apiserver: --http is both, 1 or 2, and not 3"),
        (&["--anonymous", "maybe"], "sepal-apiserver: --anonymous is true or false, and not maybe"),
        (&["--load", "/nonexistent"], "sepal-apiserver: cannot load /nonexistent: No such file or directory (os error 2)"),
        (&["--listen", "nowhere"], "sepal-apiserver: cannot serve at nowhere: invalid socket address"),
    ] {
        let mut process = program(arguments);
        assert_eq!(first_line(process.0.stderr.take().unwrap()), message);
        assert!(!process.0.wait().unwrap().success());
    }
}

#[test]
fn the_program_lists_its_options() {
    let mut process = program(&["--help"]);
    let mut help = String::new();
    process.0.stdout.take().unwrap().read_to_string(&mut help).unwrap();
    assert!(process.0.wait().unwrap().success());
    for option in
        ["--listen", "--load", "--tls-cert-file", "--tls-private-key-file", "--client-ca-file", "--token", "--http", "--anonymous"]
    {
        assert!(help.contains(&format!("\n  {option} ")), "{option} is missing in {help}");
    }
}

#[tokio::test]
async fn the_program_serves_tls_and_requires_credentials() {
    let folder = std::env::temp_dir().join(format!("sepal-apiserver-tls-{}", std::process::id()));
    std::fs::create_dir_all(&folder).unwrap();
    let authority = Authority::new("ca").unwrap();
    let (identity, client) = (authority.server(&["localhost"]).unwrap(), authority.client("a").unwrap());
    let write = |name: &str, text: &str| {
        let path = folder.join(name);
        std::fs::write(&path, text).unwrap();
        path.to_str().unwrap().to_owned()
    };
    let (ca, chain, key) = (write("ca", &authority.pem()), write("chain", &identity.chain_pem()), write("key", &identity.key_pem()));
    let tls = ["--listen", "127.0.0.1:0", "--tls-cert-file", &chain, "--tls-private-key-file", &key, "--client-ca-file", &ca];
    let mut process = program(&[&tls[..], &["--token", "one", "--token", "two", "--http", "2"]].concat());
    let line = first_line(process.0.stdout.take().unwrap());
    std::fs::remove_dir_all(&folder).unwrap();
    let address = line.strip_prefix("listening ").unwrap().parse().unwrap();
    let anonymous = Handshake { trusted: Some(&authority), ..Handshake::default() };
    let mut connection = anonymous.connect(address).await.unwrap();
    assert_eq!(connection.json("/version", &[]).await.0, 401);
    assert_eq!(connection.json("/version", &[("authorization", "Bearer two")]).await.0, 200);
    let mut known = Handshake { identity: Some(&client), ..anonymous }.connect(address).await.unwrap();
    assert_eq!(known.json("/version", &[]).await.0, 200);
    assert!(Handshake { offers: &["http/1.1"], ..anonymous }.connect(address).await.is_err());
}
