//! TLS, HTTP/2, client certificates and tokens.

use http_body_util::BodyExt as _;
use sepal_apiserver::{ApiServer, Authority, CertificateRequest, Identity, KeyType, Options, User};
use serde_json::json;
use tokio::time::timeout;

use crate::client::service;
use crate::secure_client::{Client, Handshake, PATIENCE, until};

const SERVICES: &str = "/api/v1/services";

fn unauthorized() -> serde_json::Value {
    json!({
        "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
        "message": "Unauthorized", "reason": "Unauthorized", "code": 401,
    })
}

#[tokio::test]
async fn alpn_chooses_the_http_version() {
    let authority = Authority::new("ca").unwrap();
    let identity = authority.server(&["localhost", "127.0.0.1"]).unwrap();
    let handshake = Handshake { trusted: Some(&authority), ..Handshake::default() };
    let tls = || Options::default().tls(&identity);
    for (options, offers, expected) in [
        (tls(), &["h2", "http/1.1"][..], Some(("HTTP/2.0", "TLSv1_3"))),
        (tls(), &["http/1.1"], Some(("HTTP/1.1", "TLSv1_3"))),
        (tls(), &[], Some(("HTTP/1.1", "TLSv1_3"))),
        (tls().only_http1(), &["h2", "http/1.1"], Some(("HTTP/1.1", "TLSv1_3"))),
        (tls().only_http2().only_tls12(), &["h2", "http/1.1"], Some(("HTTP/2.0", "TLSv1_2"))),
        (tls().only_http2(), &["http/1.1"], None),
    ] {
        let server = ApiServer::start_with(options).unwrap();
        assert_eq!(server.url(), format!("https://{}", server.address()));
        let connected = Handshake { offers, ..handshake }.connect(server.address()).await;
        let Some((http, tls)) = expected else {
            assert!(connected.is_err());
            until("the handshake failed", || server.connections().failed_handshakes.len() == 1).await;
            continue;
        };
        let mut client = connected.unwrap();
        let headers = [("user-agent", "tester/1"), ("accept-encoding", "gzip, br")];
        assert_eq!(client.json(SERVICES, &headers).await.0, 200);
        assert_eq!(client.json("/api/v1/nodes?limit=5", &[]).await.0, 200);
        let log = server.log();
        let one = &log[0];
        assert_eq!((one.http.as_str(), one.host.as_str(), one.path.as_str()), (http, "test", SERVICES));
        assert_eq!((one.user_agent.as_str(), one.accept_encoding.as_str(), one.authorization.as_str()), ("tester/1", "gzip, br", ""));
        let connection = &one.connection;
        assert_eq!((connection.number, connection.tls.as_deref(), connection.server_name.as_deref()), (1, Some(tls), Some("localhost")));
        assert_eq!((&log[1].connection, connection.client.is_none(), log[1].path.as_str()), (connection, true, "/api/v1/nodes?limit=5"));
        let counts = server.connections();
        assert_eq!((counts.accepted, counts.open, counts.failed_handshakes.len()), (1, 1, 0));
        drop(client);
        until("the connection is closed", || server.connections().open == 0).await;
    }
}

#[tokio::test]
async fn watches_and_lists_share_an_http2_connection() {
    let authority = Authority::new("ca").unwrap();
    let server = ApiServer::start_with(Options::default().tls(&authority.server(&["localhost"]).unwrap())).unwrap();
    let mut client = Handshake { trusted: Some(&authority), ..Handshake::default() }.to(&server).await;
    let mut watch = client.send(&format!("{SERVICES}?watch=true"), &[]).await.unwrap().into_body();
    assert_eq!(client.json(SERVICES, &[]).await.1["items"], json!([]));
    server.put(service("default", "new", &json!({}))).unwrap();
    let line = watch.frame().await.unwrap().unwrap().into_data().unwrap();
    assert!(line.starts_with(b"{\"type\":\"ADDED\""), "{line:?}");
    server.drop_watches();
    assert!(watch.frame().await.unwrap().is_err(), "the stream is reset");
    assert_eq!(client.json(SERVICES, &[]).await.0, 200, "the connection still works");
    assert_eq!(server.connections().accepted, 1);
}

#[tokio::test]
async fn client_certificates_are_checked_on_every_request() {
    let (old, new, other) = (Authority::new("ca").unwrap(), Authority::new("ca").unwrap(), Authority::new("other").unwrap());
    let identity = old.server(&["localhost"]).unwrap();
    let server = ApiServer::start_with(Options::default().tls(&identity).client_ca(&old)).unwrap();
    let request = CertificateRequest::client("system:node:a").group("system:nodes");
    let below = old.intermediate("below").unwrap();
    let connect = async |identity: Option<&Identity>| -> Client {
        Handshake { trusted: Some(&old), identity, ..Handshake::default() }.to(&server).await
    };
    let mut good = Vec::new();
    for key in [KeyType::P256, KeyType::P384, KeyType::P521, KeyType::Rsa2048, KeyType::Ed25519] {
        good.push((old.issue(&request.clone().key(key)).unwrap(), 3));
        good.push((old.issue(&request.clone().key(key).version1()).unwrap(), 1));
    }
    good.push((below.issue(&request).unwrap(), 3));
    for (identity, version) in &good {
        assert_eq!(connect(Some(identity)).await.json(SERVICES, &[]).await.0, 200);
        let client = server.log().last().unwrap().connection.client.clone().unwrap();
        assert_eq!((client.subject.as_str(), client.version), ("O=system:nodes,CN=system:node:a", *version));
        assert!(!client.serial.is_empty());
    }
    let bad = [
        other.issue(&request).unwrap(),
        new.issue(&request).unwrap(),
        request.self_signed().unwrap(),
        old.issue(&request.clone().expired()).unwrap(),
        old.issue(&request.clone().not_yet_valid()).unwrap(),
        old.issue(&request.clone().expired().version1()).unwrap(),
    ];
    for identity in &bad {
        assert_eq!(connect(Some(identity)).await.json(SERVICES, &[]).await, (401, unauthorized()));
    }
    assert_eq!(connect(None).await.json(SERVICES, &[]).await, (401, unauthorized()));
    // Rotation of the CA: the open connection is refused, and a certificate of the new CA is accepted.
    let mut client = connect(Some(&good[0].0)).await;
    assert_eq!(client.json(SERVICES, &[]).await.0, 200);
    server.accept_client_cas(&[&old, &new]);
    assert_eq!(client.json(SERVICES, &[]).await.0, 200);
    server.accept_client_cas(&[&new]);
    assert_eq!(client.json(SERVICES, &[]).await.0, 401);
    assert_eq!(connect(Some(&bad[1])).await.json(SERVICES, &[]).await.0, 200);
}

#[tokio::test]
async fn client_certificates_are_checked_with_tls_1_2_too() {
    let authority = Authority::new("ca").unwrap();
    let options = Options::default().tls(&authority.server(&["localhost"]).unwrap()).client_ca(&authority).only_tls12();
    let server = ApiServer::start_with(options).unwrap();
    for key in [KeyType::P521, KeyType::Rsa2048] {
        let identity = authority.issue(&CertificateRequest::client("a").key(key).version1()).unwrap();
        let mut client = Handshake { identity: Some(&identity), ..Handshake::default() }.to(&server).await;
        assert_eq!(client.json(SERVICES, &[]).await.0, 200);
    }
}

#[tokio::test]
async fn tokens_are_checked_and_can_be_replaced() {
    let authority = Authority::new("ca").unwrap();
    let server = ApiServer::start_with(Options::default().tls(&authority.server(&["localhost"]).unwrap()).token("one")).unwrap();
    let mut client = Handshake { trusted: Some(&authority), ..Handshake::default() }.to(&server).await;
    for (header, code) in
        [("Bearer one", 200), ("bearer one", 200), ("Bearer two", 401), ("Basic one", 401), ("Bearer ", 401), ("one", 401)]
    {
        assert_eq!(client.json(SERVICES, &[("authorization", header)]).await.0, code, "{header}");
        assert_eq!(server.log().last().unwrap().authorization.trim(), header.trim());
    }
    assert_eq!(client.json(SERVICES, &[]).await, (401, unauthorized()));
    assert_eq!(client.json("/version", &[]).await.0, 401);
    server.accept_tokens(&["two"]);
    assert_eq!(client.json(SERVICES, &[("authorization", "Bearer one")]).await.0, 401);
    assert_eq!(client.json(SERVICES, &[("authorization", "Bearer two")]).await.0, 200);
}

#[tokio::test]
async fn requests_without_credentials_may_be_anonymous() {
    let authority = Authority::new("ca").unwrap();
    let options = Options::default().tls(&authority.server(&["localhost"]).unwrap()).token("one").anonymous();
    let server = ApiServer::start_with(options).unwrap();
    let mut client = Handshake { trusted: Some(&authority), ..Handshake::default() }.to(&server).await;
    assert_eq!(client.json("/version", &[]).await.1["gitVersion"], "v1.36.2");
    assert_eq!(client.get("/livez", &[]).await.0, 200);
    let (code, status) = client.json(SERVICES, &[]).await;
    let message =
        "services is forbidden: User \"system:anonymous\" cannot list resource \"services\" in API group \"\" at the cluster scope";
    assert_eq!((code, &status["reason"], &status["message"]), (403, &json!("Forbidden"), &json!(message)));
    let (code, status) = client.json("/apis", &[]).await;
    assert_eq!((code, &status["message"]), (403, &json!("forbidden: User \"system:anonymous\" cannot get path \"/apis\"")));
    assert_eq!(client.json(SERVICES, &[("authorization", "Bearer bad")]).await.0, 401);
}

#[tokio::test]
async fn server_certificates_can_be_valid_or_invalid() {
    let authority = Authority::new("ca").unwrap();
    let request = CertificateRequest::server(&["localhost", "127.0.0.1", "::1"]);
    let server = ApiServer::start_with(Options::default().tls(&authority.issue(&request).unwrap())).unwrap();
    // Each certificate, and whether rustls accepts it with this CA.
    for (identity, accepted) in [
        (authority.issue(&request), true),
        (authority.issue(&request.clone().key(KeyType::P521)), true),
        (authority.issue(&request.clone().key(KeyType::Rsa2048)), true),
        (authority.issue(&request.clone().key(KeyType::Ed25519)), true),
        (authority.intermediate("below").and_then(|below| below.issue(&request)), true),
        (authority.issue(&request.clone().expired()), false),
        (authority.issue(&request.clone().ca()), false),
        (authority.issue(&request.clone().version1()), false),
        (request.self_signed(), false),
        (request.clone().ca().self_signed(), false),
        (request.clone().version1().self_signed(), false),
    ] {
        let identity = identity.unwrap();
        server.set_certificate(&identity).unwrap();
        let mut client = Handshake::default().to(&server).await;
        assert_eq!(client.server_certificate, identity.chain()[0]);
        assert_eq!(client.json(SERVICES, &[]).await.0, 200);
        let strict = Handshake { trusted: Some(&authority), name: "127.0.0.1", ..Handshake::default() };
        assert_eq!(strict.connect(server.address()).await.is_ok(), accepted, "{}", identity.chain_pem());
    }
}

#[test]
fn keys_have_a_traditional_format() {
    let key = |kind| CertificateRequest::client("a").key(kind).self_signed().unwrap();
    for (kind, label) in [(KeyType::P256, "EC"), (KeyType::P384, "EC"), (KeyType::P521, "EC"), (KeyType::Rsa2048, "RSA")] {
        let identity = key(kind);
        let text = identity.traditional_key_pem().unwrap();
        assert!(text.starts_with(&format!("-----BEGIN {label} PRIVATE KEY-----\n")), "{text}");
        let again = Identity::from_pem(identity.chain_pem().as_bytes(), text.as_bytes()).unwrap();
        assert_eq!(again.chain(), identity.chain());
        rustls::crypto::aws_lc_rs::sign::any_supported_type(&again.key()).unwrap();
    }
    assert_eq!(key(KeyType::Ed25519).traditional_key_pem(), None);
    assert!(Identity::from_pem(b"nothing", key(KeyType::P256).key_pem().as_bytes()).is_err());
}

#[tokio::test]
async fn connections_are_dropped_or_get_goaway() {
    let authority = Authority::new("ca").unwrap();
    let server = ApiServer::start_with(Options::default().tls(&authority.server(&["localhost"]).unwrap())).unwrap();
    for offers in [&["h2"][..], &["http/1.1"]] {
        let handshake = Handshake { offers, ..Handshake::default() };
        let mut client = handshake.to(&server).await;
        let mut watch = client.send(&format!("{SERVICES}?watch=true"), &[]).await.unwrap().into_body();
        server.go_away();
        server.put(service("default", "new", &json!({}))).unwrap();
        assert!(timeout(PATIENCE, watch.frame()).await.unwrap().unwrap().is_ok(), "a pending request still gets its response");
        server.drop_connections();
        assert!(timeout(PATIENCE, watch.frame()).await.unwrap().is_none_or(|frame| frame.is_err()));
        until("no connection is open", || server.connections().open == 0).await;
        server.remove("services", "default/new");
        assert_eq!(handshake.to(&server).await.json(SERVICES, &[]).await.0, 200);
    }
}

#[tokio::test]
async fn large_responses_are_compressed() {
    let authority = Authority::new("ca").unwrap();
    let server = ApiServer::start_with(Options::default().tls(&authority.server(&["localhost"]).unwrap())).unwrap();
    let object = |number: usize| service("default", &format!("s{number}"), &json!({"padding": "x".repeat(60)}));
    server.load((0..1_000).map(object).collect()).unwrap();
    let mut client = Handshake::default().to(&server).await;
    let (_, headers, plain) = client.get(SERVICES, &[]).await;
    assert!(plain.len() > 128 * 1024 && !headers.contains_key("content-encoding"));
    let (length, sent) = (plain.len() as u64, server.sent("list services"));
    assert_eq!((sent.plain, sent.sent), (length, length));
    server.reset_requests();
    let (_, headers, body) = client.get(SERVICES, &[("accept-encoding", "br, gzip")]).await;
    assert_eq!((&headers["content-encoding"], &headers["vary"]), (&"gzip".parse().unwrap(), &"accept-encoding".parse().unwrap()));
    let mut unpacked = Vec::new();
    std::io::Read::read_to_end(&mut flate2::read::GzDecoder::new(&body[..]), &mut unpacked).unwrap();
    assert_eq!(unpacked, plain);
    let sent = server.sent("list services");
    assert_eq!((sent.plain, sent.sent), (length, body.len() as u64));
    assert!(body.len() * 3 < plain.len());
    for (path, encoding) in
        [(format!("{SERVICES}?limit=2"), "gzip"), (SERVICES.to_owned(), "br, gzip;q=0.5"), (format!("{SERVICES}?watch=true"), "gzip")]
    {
        let head = client.send(&path, &[("accept-encoding", encoding)]).await.unwrap();
        assert!(!head.headers().contains_key("content-encoding"), "{path} {encoding}");
    }
}

#[tokio::test]
async fn the_kubeconfig_has_ca_and_credentials() {
    let authority = Authority::new("ca").unwrap();
    let server = ApiServer::start_with(Options::default().tls(&authority.server(&["localhost"]).unwrap())).unwrap();
    let text = server.kubeconfig_as(&authority.pem(), &User::Token("one"));
    assert!(text.contains(&format!("server: {}\n    certificate-authority-data: LS0t", server.url())), "{text}");
    assert!(text.ends_with("  user:\n    token: \"one\"\n"), "{text}");
    let text = server.kubeconfig_as("", &User::Certificate(&authority.client("a").unwrap()));
    assert!(
        text.contains("client-certificate-data: LS0t") && text.contains("client-key-data: LS0t") && !text.contains("authority"),
        "{text}"
    );
}
