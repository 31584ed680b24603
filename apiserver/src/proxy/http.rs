//! HTTP proxies: CONNECT, and requests with an absolute URL.

use std::io;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, copy_bidirectional};

use super::state::{ProxyRequest, ProxyState};

/// Longer request heads are refused.
const MAX_HEAD: usize = 64 * 1024;

/// Serves one connection: reads a request, connects to its target and forwards bytes.
pub(super) async fn serve<S: AsyncRead + AsyncWrite + Unpin>(mut stream: S, state: &ProxyState) -> io::Result<()> {
    let (head, rest) = read_head(&mut stream).await?;
    let mut request = parse(&head);
    let (credentials, refuse_with) = {
        let behaviour = state.behaviour();
        (behaviour.credentials.clone(), behaviour.refuse_with)
    };
    let error_code = if request.target.is_empty() {
        Some(400)
    } else if credentials.is_some_and(|required| required != request.credentials) {
        Some(407)
    } else {
        refuse_with
    };
    let connected = match error_code {
        Some(code) => Err(code),
        None => state.connect(&request.target).await.map_err(|_| 502),
    };
    request.is_accepted = connected.is_ok();
    let is_tunnel = request.method == "CONNECT";
    state.behaviour().requests.push(request);
    let mut server = match connected {
        Ok(server) => server,
        Err(code) => {
            let authenticate = if code == 407 { "Proxy-Authenticate: Basic realm=\"proxy\"\r\n" } else { "" };
            let response = format!("HTTP/1.1 {code} Refused\r\n{authenticate}Content-Length: 0\r\nConnection: close\r\n\r\n");
            stream.write_all(response.as_bytes()).await?;
            return stream.shutdown().await;
        }
    };
    if is_tunnel {
        stream.write_all(b"HTTP/1.1 200 Connection established\r\n\r\n").await?;
        stream.flush().await?;
    } else {
        // The head keeps its absolute URL, which the API server accepts.
        server.write_all(head.as_bytes()).await?;
    }
    server.write_all(&rest).await?;
    copy_bidirectional(&mut stream, &mut server).await.map(|_| ())
}

/// Reads the head of a request. Also returns the bytes after it that were read with it.
async fn read_head(stream: &mut (impl AsyncRead + Unpin)) -> io::Result<(String, Vec<u8>)> {
    let mut bytes = Vec::new();
    loop {
        if let Some(end) = bytes.windows(4).position(|four| four == b"\r\n\r\n") {
            let rest = bytes.split_off(end + 4);
            return String::from_utf8(bytes).map(|head| (head, rest)).map_err(io::Error::other);
        }
        if stream.read_buf(&mut bytes).await? == 0 || bytes.len() > MAX_HEAD {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
    }
}

/// Parses the head of a request. The target is empty if it is invalid.
fn parse(head: &str) -> ProxyRequest {
    let mut lines = head.lines();
    let mut words = lines.next().unwrap_or_default().split(' ');
    let (method, url) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
    let header = |searched: &str| {
        let mut headers = head.lines().skip(1).filter_map(|line| line.split_once(':'));
        headers.find(|(name, _)| name.eq_ignore_ascii_case(searched)).map(|(_, value)| value.trim()).unwrap_or_default()
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
