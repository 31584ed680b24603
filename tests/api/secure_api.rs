//! The client with an API server over TLS: HTTP/2, certificates, tokens, and files that change.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use kube::Client;
use sepal::kubernetes::api::{self, Watches};
use sepal::kubernetes::client::{ConnectionSettings, Connections, ProgramName};
use sepal::kubernetes::requests::{AnsweredRequest, RequestObserver};
use sepal::pod_network::annotations::Prefix;
use sepal_apiserver::{ApiServer, Authority, CertificateRequest, Identity, KeyType, Options};
use sepal_lab::Cluster;
use tokio::time::{Instant, sleep, timeout};

const PATIENCE: Duration = Duration::from_secs(60);
/// The limit for the use of new credentials. Files are read every 10 s; on a busy machine the rest takes longer.
const ROTATION: Duration = Duration::from_secs(60);

/// A folder with a kubeconfig and the files that it names.
struct Files(tempfile::TempDir);

impl Files {
    fn new() -> Self {
        Self(tempfile::tempdir().expect("a folder"))
    }

    fn write(&self, name: &str, text: &str) -> PathBuf {
        let path = self.0.path().join(name);
        std::fs::write(&path, text).expect("writable");
        path
    }

    /// A kubeconfig with these fields of the cluster and the user, one per line.
    fn kubeconfig(&self, server: &str, cluster: &[&str], user: &[&str]) -> ConnectionSettings {
        let lines = |fields: &[&str]| {
            fields.iter().fold(String::new(), |mut text, field| {
                let _ = writeln!(text, "    {field}");
                text
            })
        };
        let text = format!(
            "apiVersion: v1\nkind: Config\ncurrent-context: c\ncontexts: [{{name: c, context: {{cluster: k, user: u}}}}]\nclusters:\n- name: k\n  \
             cluster:\n    server: \"{server}\"\n{}users:\n- name: u\n  user:\n    as: \"\"\n{}",
            lines(cluster),
            lines(user)
        );
        let path = self.write("kubeconfig", &text);
        ConnectionSettings { kubeconfig: Some(path.display().to_string()), ..ConnectionSettings::default() }
    }
}

fn field(name: &str, path: &Path) -> String {
    format!("{name}: {}", path.display())
}

fn client(connection: &ConnectionSettings) -> Client {
    connection.client().expect("a client")
}

/// The answer to a request, or its error.
async fn asked(client: &Client) -> Result<String, String> {
    let answered = timeout(PATIENCE, client.apiserver_version()).await.expect("an answer in time");
    answered.map(|version| version.git_version).map_err(|error| error.to_string())
}

async fn until(what: &str, limit: Duration, mut is_true: impl FnMut() -> bool) {
    let start = Instant::now();
    while !is_true() {
        assert!(start.elapsed() < limit, "still not so: {what}");
        sleep(Duration::from_millis(20)).await;
    }
}

struct Silent;

impl RequestObserver for Silent {
    fn answered(&self, _: &AnsweredRequest<'_>) {}
}

/// Watches all resources that the daemon watches until the test ends.
fn watch_everything(client: &Client) {
    let watches = Watches::new(client);
    let (mut cluster, mut nodes) = (watches.cluster("n"), sepal::pod_network::sync::nodes::watch_nodes(&watches, &Prefix::default()));
    tokio::spawn(async move { while cluster.next().await.is_some() {} });
    tokio::spawn(async move { while nodes.next().await.is_some() {} });
}

fn is_watched(server: &ApiServer) -> bool {
    server.watches("services") == 1 && server.watches("endpointslices") == 1 && server.watches("nodes") == 2
}

#[tokio::test]
async fn one_http2_connection_carries_everything() {
    let authority = Authority::new("ca").expect("a CA");
    let server = ApiServer::start_with(Options::default().tls(&authority.server(&["127.0.0.1"]).expect("a certificate")).token("abc"));
    let server = server.expect("a server");
    let files = Files::new();
    let ca = field("certificate-authority", &files.write("ca.crt", &authority.pem()));
    let connection = ConnectionSettings { name: ProgramName::KubeProxy, ..files.kubeconfig(&server.url(), &[&ca], &["token: abc"]) };
    let client = connection.observed_client(Arc::new(Silent), &Connections::default()).expect("a client");
    watch_everything(&client);
    until("everything is watched", PATIENCE, || is_watched(&server)).await;
    asked(&client).await.expect("an answer");
    let counts = server.connections();
    assert_eq!((counts.accepted, counts.open), (1, 1), "{counts:?}");
    let version = env!("CARGO_PKG_VERSION");
    for request in server.log() {
        assert_eq!((request.http.as_str(), request.authorization.as_str()), ("HTTP/2.0", "Bearer abc"), "{request:?}");
        let encoding = if request.path.contains("watch=true") { "identity" } else { "gzip" };
        assert_eq!(request.accept_encoding, encoding, "{request:?}");
        assert!(request.user_agent.starts_with("kube-proxy/v1.36.2 (linux/"), "{request:?}");
        assert!(request.user_agent.ends_with(&format!(") sepal/{version}")), "{request:?}");
    }
    // A connection that the server closes gracefully is replaced by exactly one.
    server.go_away();
    until("everything is watched again", PATIENCE, || is_watched(&server) && server.connections().open == 1).await;
    asked(&client).await.expect("an answer");
}

#[tokio::test]
async fn http1_is_used_where_there_is_nothing_else() {
    let authority = Authority::new("ca").expect("a CA");
    let identity = authority.server(&["127.0.0.1"]).expect("a certificate");
    for options in [Options::default(), Options::default().tls(&identity).only_http1(), Options::default().tls(&identity).only_tls12()] {
        let server = ApiServer::start_with(options).expect("a server");
        let files = Files::new();
        let ca = field("certificate-authority", &files.write("ca.crt", &authority.pem()));
        let client = client(&files.kubeconfig(&server.url(), &[&ca], &[]));
        watch_everything(&client);
        until("everything is watched", PATIENCE, || is_watched(&server)).await;
    }
}

/// One handshake: the fields of the kubeconfig, and whether the client should trust the server.
async fn handshake(server: &ApiServer, url: &str, bundle: &str, more: &[&str]) -> Result<String, String> {
    let files = Files::new();
    let ca = field("certificate-authority", &files.write("ca.crt", bundle));
    let cluster: Vec<&str> = if bundle.is_empty() { more.to_vec() } else { [&[ca.as_str()], more].concat() };
    let connection = files.kubeconfig(url, &cluster, &[]);
    let answer = asked(&connection.client().map_err(|error| error.to_string())?).await;
    assert_eq!(answer.is_ok(), server.connections().accepted > 0 && !server.log().is_empty(), "{answer:?}");
    answer
}

#[tokio::test]
async fn servers_are_trusted_as_go_trusts_them() {
    let ca = Authority::new("ca").expect("a CA");
    let other = Authority::new("other").expect("a CA");
    let between = ca.intermediate("between").expect("a CA");
    let strong = Authority::with_key("strong", KeyType::P521).expect("a CA");
    let request = || CertificateRequest::server(&["127.0.0.1", "kubernetes"]);
    let own = request().ca().self_signed().expect("a certificate");
    let pinned = request().self_signed().expect("a certificate");
    let broken = format!("-----BEGIN CERTIFICATE-----\nnot base64!\n-----END CERTIFICATE-----\n{}", ca.pem());
    let half = format!("{}-----BEGIN CERTIFICATE-----\nMIIB", ca.pem());
    let issued = |authority: &Authority, request: CertificateRequest| authority.issue(&request).expect("a certificate");
    let accepted: [(&str, Identity, String, &[&str]); 12] = [
        ("plain", issued(&ca, request()), ca.pem(), &[]),
        ("by an intermediate", issued(&between, request()), ca.pem(), &[]),
        ("P-521", issued(&ca, request().key(KeyType::P521)), ca.pem(), &[]),
        ("a CA with P-521", issued(&strong, request()), strong.pem(), &[]),
        ("RSA", issued(&ca, request().key(KeyType::Rsa2048)), ca.pem(), &[]),
        ("Ed25519", issued(&ca, request().key(KeyType::Ed25519)), ca.pem(), &[]),
        ("marked as a CA", issued(&ca, request().ca()), ca.pem(), &[]),
        ("its own CA", own.clone(), own.chain_pem(), &[]),
        ("pinned", pinned.clone(), pinned.chain_pem(), &[]),
        ("a broken block before", issued(&ca, request()), broken, &[]),
        ("a broken block behind", issued(&ca, request()), half, &[]),
        ("by another CA, but not looked at", issued(&other, request()), String::new(), &["insecure-skip-tls-verify: true"]),
    ];
    for (what, identity, bundle, more) in accepted {
        let server = ApiServer::start_with(Options::default().tls(&identity)).expect(what);
        handshake(&server, &server.url(), &bundle, more).await.unwrap_or_else(|error| panic!("{what}: {error}"));
    }
    let refused: [(&str, Identity, String, &str); 8] = [
        ("another CA", issued(&other, request()), ca.pem(), "UnknownIssuer"),
        ("another name", issued(&ca, CertificateRequest::server(&["kubernetes"])), ca.pem(), "not valid for"),
        ("expired", issued(&ca, request().expired()), ca.pem(), "expired"),
        ("not yet valid", issued(&ca, request().not_yet_valid()), ca.pem(), "not valid yet"),
        ("pinned and expired", request().expired().self_signed().expect("a certificate"), String::from("itself"), ""),
        ("pinned, of another name", CertificateRequest::server(&["x"]).self_signed().expect("a certificate"), "itself".into(), ""),
        ("a client's", issued(&ca, CertificateRequest::client("127.0.0.1")), ca.pem(), ""),
        ("marked as a CA, of another CA", issued(&other, request().ca()), ca.pem(), ""),
    ];
    for (what, identity, bundle, why) in refused {
        let bundle = if bundle == "itself" { identity.chain_pem() } else { bundle };
        let server = ApiServer::start_with(Options::default().tls(&identity)).expect(what);
        let error = handshake(&server, &server.url(), &bundle, &[]).await.expect_err(what);
        assert!(error.contains("TLS with 127.0.0.1:") && error.contains(why), "{what}: {error}");
    }
}

#[tokio::test]
async fn the_name_in_the_certificate_can_be_said() {
    let ca = Authority::new("ca").expect("a CA");
    let server =
        ApiServer::start_with(Options::default().tls(&ca.server(&["kubernetes.default"]).expect("a certificate"))).expect("a server");
    let named = handshake(&server, &server.url(), &ca.pem(), &["tls-server-name: kubernetes.default"]).await;
    named.expect("the name is in the certificate");
    assert_eq!(server.log()[0].connection.server_name.as_deref(), Some("kubernetes.default"));
}

/// A server that requires a client certificate of a CA, and its answer to a client with this certificate.
async fn shown(identity: &Identity, key: &str, accepted: &Authority) -> Result<String, String> {
    let ca = Authority::new("ca").expect("a CA");
    let options = Options::default().tls(&ca.server(&["127.0.0.1"]).expect("a certificate")).client_ca(accepted);
    let server = ApiServer::start_with(options).expect("a server");
    let files = Files::new();
    let trust = field("certificate-authority", &files.write("ca.crt", &ca.pem()));
    let certificate = field("client-certificate", &files.write("client.crt", &identity.chain_pem()));
    let key = field("client-key", &files.write("client.key", key));
    let connection = files.kubeconfig(&server.url(), &[&trust], &[&certificate, &key]);
    let client = connection.client().map_err(|error| error.to_string())?;
    api::snapshot(&client, "n").await.map(|_| "accepted".to_owned()).map_err(|error| format!("{error:#}"))
}

#[tokio::test]
async fn client_certificates_of_every_sort_are_shown() {
    let ca = Authority::new("clients").expect("a CA");
    let other = Authority::new("other").expect("a CA");
    let request = || CertificateRequest::client("system:kube-proxy");
    for (what, request) in [
        ("P-256", request()),
        ("P-384", request().key(KeyType::P384)),
        ("P-521", request().key(KeyType::P521)),
        ("RSA", request().key(KeyType::Rsa2048)),
        ("version 1 with RSA", request().key(KeyType::Rsa2048).version1()),
        ("Ed25519", request().key(KeyType::Ed25519)),
        ("version 1", request().version1()),
    ] {
        let identity = ca.issue(&request).expect(what);
        let keys = [Some(identity.key_pem()), identity.traditional_key_pem()];
        for key in keys.into_iter().flatten() {
            assert_eq!(shown(&identity, &key, &ca).await.as_deref(), Ok("accepted"), "{what}: {key}");
        }
    }
    let (one, two) = (ca.client("a").expect("a certificate"), ca.client("b").expect("a certificate"));
    let refused = shown(&one, &one.key_pem(), &other).await.expect_err("another CA");
    assert!(refused.contains("Unauthorized"), "{refused}");
    let mixed = shown(&one, &two.key_pem(), &ca).await.expect_err("two pairs mixed");
    assert!(mixed.ends_with("the client key is not the key of the client certificate"), "{mixed}");
    let none = shown(&one, "no PEM", &ca).await.expect_err("no key");
    assert!(none.contains("no usable private key"), "{none}");
}

/// Files are replaced. Within [`ROTATION`] the client uses the new credentials and the new CA.
#[tokio::test]
async fn files_that_change_are_used_soon() {
    let ca = Authority::new("ca").expect("a CA");
    let (old, new) = (Authority::new("old").expect("a CA"), Authority::new("new").expect("a CA"));
    let identity = ca.server(&["127.0.0.1"]).expect("a certificate");
    let files = [Files::new(), Files::new(), Files::new()];
    let trust = files.each_ref().map(|files| field("certificate-authority", &files.write("ca.crt", &ca.pem())));

    // A client certificate: from now on the server accepts only those of the new CA.
    let by_certificate = ApiServer::start_with(Options::default().tls(&identity).client_ca(&old)).expect("a server");
    let write_pair = |identity: &Identity| {
        [("client-certificate", "client.crt", identity.chain_pem()), ("client-key", "client.key", identity.key_pem())]
            .map(|(name, file, text)| field(name, &files[0].write(file, &text)))
    };
    let pair = write_pair(&old.client("a").expect("a certificate"));
    let certificate_client = client(&files[0].kubeconfig(&by_certificate.url(), &[&trust[0]], &[&pair[0], &pair[1]]));
    // A token.
    let by_token = ApiServer::start_with(Options::default().tls(&identity).token("one")).expect("a server");
    let token = field("tokenFile", &files[1].write("token", "one\n"));
    let token_client = client(&files[1].kubeconfig(&by_token.url(), &[&trust[1]], &[&token, "token: never"]));
    // The server's certificate is of a CA that the client's bundle does not contain yet.
    let by_bundle = ApiServer::start_with(Options::default().tls(&identity)).expect("a server");
    let bundle_client = client(&files[2].kubeconfig(&by_bundle.url(), &[&trust[2]], &[]));

    let servers = [&by_certificate, &by_token, &by_bundle];
    for client in [&certificate_client, &token_client, &bundle_client] {
        watch_everything(client);
    }
    for server in servers {
        until("everything is watched", PATIENCE, || is_watched(server)).await;
    }
    let before = servers.map(|server| server.connections().accepted);

    by_certificate.accept_client_cas(&[&old, &new]);
    write_pair(&new.client("b").expect("a certificate"));
    by_token.accept_tokens(&["one", "two"]);
    files[1].write("token", "two");
    by_bundle.set_certificate(&new.server(&["127.0.0.1"]).expect("a certificate")).expect("usable");
    files[2].write("ca.crt", &format!("{}{}", ca.pem(), new.pem()));

    let moved = |server: &ApiServer, before: u64| {
        let last = server.log().last().map(|entry| entry.connection.number);
        is_watched(server) && server.connections().open == 1 && last > Some(before)
    };
    for (server, before) in servers.into_iter().zip(before) {
        until("old connections are closed, and everything is watched on a new one", ROTATION, || moved(server, before)).await;
    }
    let log = by_certificate.log();
    let shown = log.last().and_then(|entry| entry.connection.client.clone()).expect("a certificate");
    assert!(shown.subject.contains("CN=b"), "{shown:?}");
    assert_eq!(by_token.log().last().expect("a request").authorization, "Bearer two");
    // The old, invalid credentials are not used any more.
    by_certificate.accept_client_cas(&[&new]);
    by_token.accept_tokens(&["two"]);
    for client in [&certificate_client, &token_client] {
        api::snapshot(client, "n").await.expect("the new credentials count");
    }
    // A missing or half-written file changes nothing.
    std::fs::remove_file(files[1].0.path().join("token")).expect("it was there");
    api::snapshot(&token_client, "n").await.expect("what was read before counts");
}

#[tokio::test]
async fn lists_are_compressed() {
    let ca = Authority::new("ca").expect("a CA");
    let objects = Cluster::new(300, 3).objects().collect();
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let options = Options::default().tls(&ca.server(&["127.0.0.1"]).expect("a certificate"));
    let server = ApiServer::serve_with(listener, objects, options).expect("a server");
    for (more, least_ratio) in [(&[][..], 5), (&["disable-compression: true"][..], 1)] {
        let files = Files::new();
        let trust = field("certificate-authority", &files.write("ca.crt", &ca.pem()));
        let client = client(&files.kubeconfig(&server.url(), &[&[trust.as_str()], more].concat(), &[]));
        let before = server.sent("list endpointslices");
        let snapshot = api::snapshot(&client, "n").await.expect("listed");
        assert_eq!(snapshot.services().count(), 300);
        let after = server.sent("list endpointslices");
        let (plain, sent) = (after.plain - before.plain, after.sent - before.sent);
        assert!(plain >= sent * least_ratio, "{plain} bytes were sent as {sent}");
        assert!(least_ratio > 1 || plain == sent, "{plain} bytes were sent as {sent}");
    }
}
