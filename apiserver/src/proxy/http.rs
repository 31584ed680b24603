//! HTTP: CONNECT, and requests with a whole URL.

use std::io;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};

use super::{ProxyRequest, Shared, pass};

/// No client's head is longer.
const LONGEST_HEAD: usize = 64 * 1024;

pub(super) async fn serve<S: AsyncRead + AsyncWrite + Unpin>(mut stream: S, shared: &Shared) -> io::Result<()> {
    let (head, rest) = read_head(&mut stream).await?;
    let mut request = parse(&head);
    let (credentials, refuses) = {
        let state = shared.state();
        (state.credentials.clone(), state.refuses)
    };
    let refusal = if request.target.is_empty() {
        Some(400)
    } else if credentials.is_some_and(|required| required != request.credentials) {
        Some(407)
    } else {
        refuses
    };
    let connected = match refusal {
        Some(code) => Err(code),
        None => shared.connect(&request.target).await.map_err(|_| 502),
    };
    request.is_accepted = connected.is_ok();
    let is_tunnel = request.method == "CONNECT";
    shared.state().requests.push(request);
    let mut server = match connected {
        Ok(server) => server,
        Err(code) => {
            let authenticate = if code == 407 { "Proxy-Authenticate: Basic realm=\"proxy\"\r\n" } else { "" };
            let answer = format!("HTTP/1.1 {code} Refused\r\n{authenticate}Content-Length: 0\r\nConnection: close\r\n\r\n");
            stream.write_all(answer.as_bytes()).await?;
            return stream.shutdown().await;
        }
    };
    if is_tunnel {
        stream.write_all(b"HTTP/1.1 200 Connection established\r\n\r\n").await?;
        stream.flush().await?;
    } else {
        // The API server takes whole URLs, too.
        server.write_all(head.as_bytes()).await?;
    }
    server.write_all(&rest).await?;
    pass(stream, server).await
}

/// Reads to the end of the head, and a part of what follows it.
async fn read_head(stream: &mut (impl AsyncRead + Unpin)) -> io::Result<(String, Vec<u8>)> {
    let mut bytes = Vec::new();
    loop {
        if let Some(end) = bytes.windows(4).position(|four| four == b"\r\n\r\n") {
            let rest = bytes.split_off(end + 4);
            return String::from_utf8(bytes).map(|head| (head, rest)).map_err(io::Error::other);
        }
        if stream.read_buf(&mut bytes).await? == 0 || bytes.len() > LONGEST_HEAD {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
    }
}

/// What is asked for. The target is empty if it cannot be read.
fn parse(head: &str) -> ProxyRequest {
    let mut lines = head.lines();
    let mut words = lines.next().unwrap_or_default().split(' ');
    let (method, url) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
    let header = |wanted: &str| {
        let mut headers = head.lines().skip(1).filter_map(|line| line.split_once(':'));
        headers.find(|(name, _)| name.eq_ignore_ascii_case(wanted)).map(|(_, value)| value.trim()).unwrap_or_default()
    };
    let decoded = header("Proxy-Authorization").strip_prefix("Basic ").and_then(|text| STANDARD.decode(text).ok());
    ProxyRequest {
        method: method.to_owned(),
        target: if method == "CONNECT" { url.to_owned() } else { authority(url) },
        credentials: decoded.and_then(|text| String::from_utf8(text).ok()).unwrap_or_default(),
        user_agent: header("User-Agent").to_owned(),
        is_accepted: false,
    }
}

/// Host and port of an `http://` URL.
fn authority(url: &str) -> String {
    let authority = url.strip_prefix("http://").and_then(|rest| rest.split(['/', '?']).next()).unwrap_or_default();
    let has_port = authority.rsplit_once(':').is_some_and(|(_, port)| port.parse::<u16>().is_ok());
    if authority.is_empty() || has_port { authority.to_owned() } else { format!("{authority}:80") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn heads_are_parsed() {
        let request = parse("CONNECT api.example:6443 HTTP/1.1\r\nproxy-authorization: Basic dTpw\r\nUser-Agent: go: 1\r\n\r\n");
        assert_eq!((request.method.as_str(), request.target.as_str()), ("CONNECT", "api.example:6443"));
        assert_eq!((request.credentials.as_str(), request.user_agent.as_str()), ("u:p", "go: 1"));
        for (url, target) in [
            ("http://a.example/api?x=http://b", "a.example:80"),
            ("http://a.example:8080/", "a.example:8080"),
            ("http://[2001:db8::1]/", "[2001:db8::1]:80"),
            ("http://[2001:db8::1]:8080", "[2001:db8::1]:8080"),
            ("/api", ""),
            ("https://a.example/", ""),
        ] {
            assert_eq!(parse(&format!("GET {url} HTTP/1.1\r\n\r\n")).target, target, "{url}");
        }
    }
}
