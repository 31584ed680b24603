//! flanneld's health server (`--healthz-ip`, `--healthz-port`; network spec section 9): two paths, two words each.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;

use hyper::StatusCode;

use super::http::{self, Answer, Handler, Request, StartError};
use super::listen::Place;
use super::readiness::{Readiness, all_ready};

/// Answers for as long as it is kept. An address that cannot be had is tried again every 5 s: that of a predecessor that is about to
/// end, say. The pod network does its work meanwhile.
///
/// # Errors
/// Never; as [`http::keep_serving`].
pub async fn serve(address: SocketAddr, readiness: Readiness) -> Result<Infallible, StartError> {
    http::keep_serving(Place::tcp(address), false, format!("failed to start flanneld's healthz on {address}"), handler(readiness)).await
}

fn handler(readiness: Readiness) -> Arc<dyn Handler> {
    Arc::new(move |request: &Request| {
        let (status, body) = match request.path.as_str() {
            "/healthz" => (StatusCode::OK, "flanneld is running"),
            "/readyz" if all_ready(&readiness.states()) => (StatusCode::OK, "flanneld is ready"),
            "/readyz" => (StatusCode::SERVICE_UNAVAILABLE, "flanneld is not ready yet"),
            _ => return Answer::not_found(),
        };
        Answer::new(status, "text/plain; charset=utf-8", body)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::agent::http::Serving;
    use crate::agent::http::tests::get;
    use crate::agent::listen;
    use crate::agent::readiness::Part;

    #[tokio::test]
    async fn it_answers_as_flanneld_does() {
        let readiness = Readiness::new([Part::Subnet, Part::SubnetFile]);
        let listener = listen::listen(Place::tcp(SocketAddr::from(([127, 0, 0, 1], 0)))).expect("a free port");
        let address = listener.local_addr().expect("an address");
        let _serving = Serving::start(listener, handler(readiness.clone()));
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
        for path in ["/", "/livez", "/metrics", "/readyz/"] {
            answers(path, "404 Not Found", "404 page not found\n").await;
        }
    }
}
