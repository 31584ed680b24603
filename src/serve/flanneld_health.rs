//! flanneld's health server (`--healthz-ip`, `--healthz-port`) [flannel 9]: `/healthz` and `/readyz`. flanneld exits when one of its parts
//! panics. Here `/healthz` answers 503 until the part works again, so that the kubelet restarts the container.

use std::convert::Infallible;
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use hyper::StatusCode;
use tokio::net::lookup_host;
use tokio::time::sleep;

use crate::config::flags::HostPort;
use crate::http_server::listen::ListenAddress;
use crate::http_server::{self, Handler, HttpAnswer, HttpRequest, StartError};
use crate::observe::readiness::{Readiness, all_ready};

/// The wait before a host name is resolved again.
const RETRY: Duration = Duration::from_secs(5);

/// Serves until the future is dropped. As in Go, an empty host means all addresses, and the first IPv4 address of a name is used. If a name
/// cannot be resolved, or another program uses the address, the server tries again every 5 s. The pod network runs meanwhile.
///
/// # Errors
/// None; the type is that of [`http_server::keep_serving`].
pub(crate) async fn serve(place: &HostPort, readiness: Readiness) -> Result<Infallible, StartError> {
    let address = loop {
        match resolve(place).await {
            Ok(address) => break address,
            Err(error) => {
                let HostPort { host, port } = place;
                let seconds = RETRY.as_secs();
                tracing::error!(
                    "failed to start flanneld's healthz on {host}:{port}: cannot look up {host:?}: {error}. Next try in {seconds} s"
                );
                sleep(RETRY).await;
            }
        }
    };
    http_server::keep_serving(
        ListenAddress::tcp(address),
        false,
        format!("failed to start flanneld's healthz on {address}"),
        handler(readiness),
    )
    .await
}

async fn resolve(HostPort { host, port }: &HostPort) -> io::Result<SocketAddr> {
    if host.is_empty() {
        // An unspecified address listens on both families.
        return Ok((Ipv4Addr::UNSPECIFIED, *port).into());
    }
    let found: Vec<SocketAddr> = lookup_host((host.as_str(), *port)).await?.collect();
    let first = found.iter().find(|address| address.is_ipv4()).or_else(|| found.first());
    first.copied().ok_or_else(|| io::Error::other("it has no address"))
}

fn handler(readiness: Readiness) -> Arc<dyn Handler> {
    Arc::new(move |request: &HttpRequest| {
        let problems = readiness.liveness().problems();
        let (status, body) = match request.path.as_str() {
            "/healthz" if !problems.is_empty() => {
                let body = format!("flanneld is not running: {}", problems.join("; "));
                return HttpAnswer::new(StatusCode::SERVICE_UNAVAILABLE, "text/plain; charset=utf-8", body);
            }
            "/healthz" => (StatusCode::OK, "flanneld is running"),
            "/readyz" if all_ready(&readiness.states()) => (StatusCode::OK, "flanneld is ready"),
            "/readyz" => (StatusCode::SERVICE_UNAVAILABLE, "flanneld is not ready yet"),
            _ => return HttpAnswer::not_found(),
        };
        HttpAnswer::new(status, "text/plain; charset=utf-8", body)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::http_server::HttpServer;
    use crate::http_server::listen;
    use crate::http_server::tests::get;
    use crate::observe::liveness::POD_NETWORK;
    use crate::observe::readiness::Part;

    #[tokio::test]
    async fn it_answers_as_flanneld_does() {
        let readiness = Readiness::new([Part::Subnet, Part::SubnetFile]);
        let listener = listen::listen(ListenAddress::tcp(SocketAddr::from(([127, 0, 0, 1], 0)))).expect("a free port");
        let address = listener.local_addr().expect("an address");
        let _serving = HttpServer::start(listener, handler(readiness.clone()));
        let answers = async |path: &str, status: &str, body: &str| {
            let answer = get(address, path).await.expect("an answer");
            assert!(answer.starts_with(&format!("HTTP/1.1 {status}\r\n")) && answer.ends_with(&format!("\r\n\r\n{body}")), "{answer}");
            assert!(answer.contains("\r\nContent-Type: text/plain; charset=utf-8\r\n"), "{answer}");
        };
        answers("/healthz", "200 OK", "flanneld is running").await;
        answers("/readyz", "503 Service Unavailable", "flanneld is not ready yet").await;
        readiness.ready(Part::Subnet);
        answers("/readyz", "503 Service Unavailable", "flanneld is not ready yet").await;
        readiness.ready(Part::SubnetFile);
        answers("/readyz?verbose", "200 OK", "flanneld is ready").await;
        readiness.not_ready(Part::Subnet, "lost");
        answers("/readyz", "503 Service Unavailable", "flanneld is not ready yet").await;
        answers("/healthz", "200 OK", "flanneld is running").await;
        readiness.liveness().failed(POD_NETWORK, "pod network failed: no");
        answers("/healthz", "503 Service Unavailable", "flanneld is not running: pod network failed: no").await;
        for path in ["/", "/livez", "/metrics", "/readyz/"] {
            answers(path, "404 Not Found", "404 page not found\n").await;
        }
    }

    #[tokio::test]
    async fn a_host_is_every_address_or_an_address_or_a_name() {
        for (host, want) in [
            ("", "0.0.0.0:8081"),
            ("0.0.0.0", "0.0.0.0:8081"),
            ("127.0.0.1", "127.0.0.1:8081"),
            ("::1", "[::1]:8081"),
            ("localhost", "127.0.0.1:8081"),
        ] {
            let found = resolve(&HostPort { host: host.into(), port: 8081 }).await.expect(host);
            assert_eq!(Ok(found), want.parse(), "{host:?}");
        }
        assert!(resolve(&HostPort { host: "no such host".into(), port: 8081 }).await.is_err());
    }
}
