//! API servers behind proxies, connections that go silent, and servers without TLS.

use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use futures::StreamExt;
use sepal::kubernetes::api::Watches;
use sepal::kubernetes::client::ConnectionSettings;
use sepal_apiserver::{ApiServer, Authority, Identity, Options, Proxy, Relay};
use serde_json::json;
use tokio::time::sleep;

use crate::SEPAL;

/// An address that only a proxy reaches.
const TARGET: &str = "192.0.2.11:6443";
/// The limit for closing a silent connection, which takes 45 s, and for opening another one. A busy machine needs more time, and the limit of
/// a silent watch is much longer.
const NOTICED: Duration = Duration::from_secs(120);

struct Site {
    authority: Authority,
    server: ApiServer,
    folder: tempfile::TempDir,
}

impl Site {
    fn new(options: impl FnOnce(Options) -> Options) -> Self {
        let authority = Authority::new("ca").expect("a CA");
        let identity = authority.server(&["192.0.2.11", "127.0.0.1", "localhost"]).expect("a certificate");
        let server = ApiServer::start_with(options(Options::default().tls(&identity))).expect("a server");
        server.put(json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": "n"}})).expect("a Node");
        Self { authority, server, folder: tempfile::tempdir().expect("a folder") }
    }

    fn identity(&self) -> Identity {
        self.authority.server(&["localhost", "127.0.0.1"]).expect("a certificate")
    }

    /// A kubeconfig for an address, with further fields of the cluster.
    fn kubeconfig(&self, server: &str, more: &str) -> String {
        let ca = self.folder.path().join("ca.crt");
        std::fs::write(&ca, self.authority.pem()).expect("writable");
        let text = format!(
            "current-context: c\ncontexts: [{{name: c, context: {{cluster: k, user: u}}}}]\nusers: [{{name: u, user: {{token: secret-token}}}}]\n\
             clusters: [{{name: k, cluster: {{server: \"{server}\", certificate-authority: {}{more}}}}}]\n",
            ca.display()
        );
        let path = self.folder.path().join("kubeconfig");
        std::fs::write(&path, text).expect("writable");
        path.display().to_string()
    }

    /// Runs one dry run against an address with these environment variables; returns whether it succeeded, and its output.
    fn dry_run(&self, server: &str, more: &str, variables: &[(&str, &str)]) -> (bool, String) {
        let mut command = Command::new(SEPAL);
        for name in ["HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "http_proxy", "https_proxy", "no_proxy"] {
            command.env_remove(name);
        }
        command.args(["--dry-run", "--hostname-override=n", "--ip-family=ipv4", "-v=4", "--kubeconfig", &self.kubeconfig(server, more)]);
        let output = command.envs(variables.iter().copied()).stdin(Stdio::null()).output().expect("sepal starts");
        let said = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        (output.status.success(), said)
    }
}

#[test]
fn proxies_of_the_environment_and_of_the_kubeconfig_are_used() {
    let site = Site::new(|options| options.token("secret-token"));
    for (proxy, user) in [
        (Proxy::http(), ""),
        (Proxy::http(), "me:pass%40word@"),
        (Proxy::https(&site.identity()), ""),
        (Proxy::socks5(), ""),
        (Proxy::socks5(), "me:pass%40word@"),
    ] {
        let proxy = proxy.expect("a proxy");
        proxy.route(TARGET, site.server.address());
        if !user.is_empty() {
            proxy.require("me", "pass@word");
        }
        let (scheme, address) =
            proxy.url().split_once("://").map(|(scheme, address)| (scheme.to_owned(), address.to_owned())).expect("a URL");
        let url = format!("{scheme}://{user}{address}");
        let server = format!("https://{TARGET}");
        let environment = site.dry_run(&server, "", &[("HTTPS_PROXY", &url), ("NO_PROXY", "10.0.0.0/8,192.0.2.11:8443")]);
        let kubeconfig =
            site.dry_run(&server, &format!(", proxy-url: \"{url}\""), &[("NO_PROXY", "*"), ("HTTPS_PROXY", "http://127.0.0.1:1")]);
        for (fine, said) in [environment, kubeconfig] {
            assert!(fine && said.contains("KUBE-SERVICES"), "{url}: {said}");
            for secret in ["pass@word", "pass%40word", "secret-token"] {
                assert!(!said.contains(secret), "a secret is in the log: {said}");
            }
        }
        let asked = proxy.requests();
        assert!(asked.len() >= 2 && asked.iter().all(|request| request.target == TARGET), "{asked:?}");
    }
}

#[test]
fn no_proxy_and_refusing_proxies() {
    let site = Site::new(|options| options);
    let proxy = Proxy::http().expect("a proxy");
    let direct = site.server.url();
    let (fine, said) = site.dry_run(&direct, "", &[("HTTPS_PROXY", &proxy.url())]);
    assert!(fine && proxy.requests().is_empty(), "loopback is never reached by a proxy: {said}");
    let localhost = direct.replace("127.0.0.1", "localhost");
    let (fine, said) = site.dry_run(&localhost, "", &[("HTTPS_PROXY", ""), ("https_proxy", &proxy.url())]);
    assert!(fine && proxy.requests().is_empty(), "{said}");
    // A proxy that requires credentials, and one that does not run.
    proxy.require("me", "secret-word");
    let wrong = proxy.url().replace("://", "://me:wrong-word@");
    let (fine, said) = site.dry_run(&format!("https://{TARGET}"), &format!(", proxy-url: \"{wrong}\""), &[]);
    let shown = format!("cannot connect to {TARGET} through the proxy {}: ", proxy.url());
    assert!(!fine && said.contains(&shown) && !said.contains("wrong-word"), "{said}");
    assert!(said.contains("the proxy asks for a user and a password"), "{said}");
    let (fine, said) = site.dry_run(&format!("https://{TARGET}"), ", proxy-url: \"socks5://127.0.0.1:1\"", &[]);
    assert!(!fine && said.contains("through the proxy socks5://127.0.0.1:1: Connection refused"), "{said}");
    let (fine, said) = site.dry_run(&format!("https://{TARGET}"), ", proxy-url: \"http://me:wrong-word@127.0.0.1:1\"", &[]);
    assert!(!fine && said.contains("through the proxy http://127.0.0.1:1: Connection refused") && !said.contains("wrong-word"), "{said}");
}

#[test]
fn without_tls_no_token_is_sent() {
    let plain = ApiServer::start().expect("a server");
    plain.put(json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": "n"}})).expect("a Node");
    let site = Site::new(|options| options);
    for server in [plain.address().to_string(), plain.url(), plain.url().replace("://", "://user:pass-word@")] {
        let (fine, said) = site.dry_run(&server, "", &[]);
        assert!(fine && !said.contains("pass-word"), "{server}: {said}");
    }
    // A proxy forwards requests over plain HTTP itself.
    let proxy = Proxy::http().expect("a proxy");
    proxy.route("192.0.2.11:80", plain.address());
    proxy.require("me", "word");
    let url = proxy.url().replace("://", "://me:word@");
    let (fine, said) = site.dry_run("http://192.0.2.11", "", &[("HTTP_PROXY", &url), ("HTTPS_PROXY", "http://127.0.0.1:1")]);
    assert!(fine && !proxy.requests().is_empty(), "{said}");
    assert!(plain.log().len() > 9 && plain.log().iter().all(|request| request.authorization.is_empty()));
}

/// The log does not contain a password in `--master`.
#[test]
fn a_password_on_the_command_line_is_not_logged() {
    let site = Site::new(|options| options);
    let url = site.server.url().replace("://", "://user:pass-word@");
    let mut command = Command::new(SEPAL);
    command.args([
        "--dry-run",
        "--hostname-override=n",
        "--ip-family=ipv4",
        "-v=9",
        "--kubeconfig",
        &site.kubeconfig(&url, ""),
        "--master",
        &url,
    ]);
    let output = command.stdin(Stdio::null()).output().expect("sepal starts");
    let said = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(said.contains("FLAG: --master=\"https://***@127.0.0.1:") && !said.contains("pass-word"), "{said}");
}

/// A token file is replaced by a FIFO, so that reading it never ends. The token that was read before is used, and nothing blocks.
#[tokio::test]
async fn a_token_file_that_does_not_end_holds_nothing_up() {
    let site = Site::new(|options| options.token("secret-token"));
    let token = site.folder.path().join("token");
    std::fs::write(&token, "secret-token").expect("writable");
    let path = site.kubeconfig(&site.server.url(), "");
    let text = std::fs::read_to_string(&path).expect("readable");
    std::fs::write(&path, text.replace("token: secret-token", &format!("tokenFile: {}", token.display()))).expect("writable");
    let client = ConnectionSettings { kubeconfig: Some(path), ..ConnectionSettings::default() }.client().expect("a client");
    client.apiserver_version().await.expect("an answer");
    std::fs::remove_file(&token).expect("it is there");
    assert!(Command::new("mkfifo").arg(&token).status().expect("mkfifo (coreutils) is there").success());
    // The first request after 10 s reads the token again. Later ones do, too, so this time has no upper limit.
    sleep(Duration::from_secs(11)).await;
    let answer = tokio::time::timeout(Duration::from_secs(60), client.apiserver_version()).await;
    answer.expect("in time").expect("the token that was read before is used");
}

/// Watches all resources through a relay that goes silent; they are watched again over another connection in time.
async fn survives_silence(site: &Site, is_http2: bool) {
    let relay = Relay::to(site.server.address()).expect("a relay");
    let kubeconfig = site.kubeconfig(&format!("https://{}", relay.address()), "");
    let connection = ConnectionSettings { kubeconfig: Some(kubeconfig), ..ConnectionSettings::default() };
    let client = connection.client().expect("a client");
    let mut updates = Watches::new(&client).cluster("n");
    let watching = tokio::spawn(async move { while updates.next().await.is_some() {} });
    let is_watched = || ["services", "endpointslices", "nodes"].iter().all(|kind| site.server.watches(kind) >= 1);
    let begin = Instant::now();
    while !is_watched() {
        assert!(begin.elapsed() < NOTICED, "nothing is watched");
        sleep(Duration::from_millis(20)).await;
    }
    relay.silence();
    let (accepted, silent) = (relay.accepted(), Instant::now());
    let again = |log: &[sepal_apiserver::LogEntry]| {
        let watches = log.iter().filter(|entry| entry.connection.number > accepted && entry.path.contains("watch=true"));
        watches.count() >= 3
    };
    while !again(&site.server.log()) {
        assert!(silent.elapsed() < NOTICED, "the silence was not noticed (HTTP/2: {is_http2})");
        sleep(Duration::from_millis(50)).await;
    }
    assert!(relay.closed_by_client() > 0);
    watching.abort();
}

#[tokio::test]
async fn a_silent_http2_connection_is_replaced() {
    survives_silence(&Site::new(|options| options), true).await;
}
