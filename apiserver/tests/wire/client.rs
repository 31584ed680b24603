//! A minimal HTTP/1.1 client that shows exactly what the server sends.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use sepal_apiserver::ApiServer;
use serde_json::{Value, json};

/// The response to a request.
#[derive(Debug)]
pub(crate) struct Response {
    pub(crate) code: u16,
    pub(crate) content_type: String,
    pub(crate) retry_after: Option<String>,
    pub(crate) body: Vec<u8>,
}

impl Response {
    /// The body as JSON.
    pub(crate) fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|error| panic!("{error}: {}", String::from_utf8_lossy(&self.body)))
    }

    /// The body as JSON. The code must be 2xx.
    pub(crate) fn ok(self) -> Value {
        assert!((200..300).contains(&self.code), "{} {}", self.code, self.json());
        self.json()
    }

    /// The message of a `Status`, which must have this code and reason.
    pub(crate) fn refused(self, code: u16, reason: &str) -> String {
        let status = self.json();
        assert_eq!((self.code, status["code"].as_u64()), (code, Some(u64::from(code))), "{status}");
        assert_eq!(self.content_type, "application/json");
        assert_eq!((&status["kind"], &status["apiVersion"], &status["status"]), (&json!("Status"), &json!("v1"), &json!("Failure")));
        assert_eq!(status["reason"], reason, "{status}");
        status["message"].as_str().unwrap().to_owned()
    }
}

/// Sends one request on a new connection. `headers` are sent unchanged.
pub(crate) fn request(at: SocketAddr, method: &str, path: &str, headers: &str, body: &[u8]) -> Response {
    let mut stream = send(at, method, path, headers, body);
    let head = read_head(&mut stream);
    let mut body = Vec::new();
    match head.length {
        Some(length) if method != "HEAD" => {
            body.resize(length, 0);
            stream.read_exact(&mut body).unwrap();
        }
        Some(_) => {}
        None => {
            while let Some(mut chunk) = read_chunk(&mut stream).unwrap() {
                body.append(&mut chunk);
            }
        }
    }
    Response { code: head.code, content_type: head.content_type, retry_after: head.retry_after, body }
}

fn send(at: SocketAddr, method: &str, path: &str, headers: &str, body: &[u8]) -> BufReader<TcpStream> {
    let mut stream = TcpStream::connect(at).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    let head = format!("{method} {path} HTTP/1.1\r\nHost: test\r\nContent-Length: {}\r\n{headers}\r\n", body.len());
    stream.write_all(head.as_bytes()).unwrap();
    stream.write_all(body).unwrap();
    BufReader::new(stream)
}

/// The head of a response. The code is 0 if the connection ended before it.
#[derive(Default)]
struct Head {
    code: u16,
    content_type: String,
    retry_after: Option<String>,
    length: Option<usize>,
}

fn read_head(stream: &mut BufReader<TcpStream>) -> Head {
    let mut head = Head::default();
    loop {
        let mut line = String::new();
        stream.read_line(&mut line).unwrap();
        let line = line.trim_end();
        if line.is_empty() {
            return head;
        }
        if let Some(status) = line.strip_prefix("HTTP/1.1 ") {
            head.code = status[..3].parse().unwrap();
        } else if let Some((name, value)) = line.split_once(": ") {
            match name.to_ascii_lowercase().as_str() {
                "content-type" => value.clone_into(&mut head.content_type),
                "retry-after" => head.retry_after = Some(value.to_owned()),
                "content-length" => head.length = Some(value.parse().unwrap()),
                _ => {}
            }
        }
    }
}

/// Reads a chunk of the body; `None` after the last one.
fn read_chunk(stream: &mut BufReader<TcpStream>) -> io::Result<Option<Vec<u8>>> {
    let mut line = String::new();
    if stream.read_line(&mut line)? == 0 {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    let length = usize::from_str_radix(line.trim_end(), 16).map_err(io::Error::other)?;
    let mut chunk = vec![0; length + 2];
    stream.read_exact(&mut chunk)?;
    chunk.truncate(length);
    Ok((length > 0).then_some(chunk))
}

/// Requests to a server, one method per verb.
pub(crate) trait Requests {
    fn at(&self) -> SocketAddr;

    fn read(&self, path: &str) -> Response {
        request(self.at(), "GET", path, "", b"")
    }

    fn create(&self, path: &str, body: &Value) -> Response {
        self.write("POST", path, "application/json", body)
    }

    fn replace(&self, path: &str, body: &Value) -> Response {
        self.write("PUT", path, "application/json", body)
    }

    fn patch(&self, path: &str, kind: &str, body: &Value) -> Response {
        self.write("PATCH", path, &format!("application/{kind}"), body)
    }

    fn delete(&self, path: &str) -> Response {
        request(self.at(), "DELETE", path, "", b"")
    }

    fn hook(&self, hook: &str, body: &Value) -> Response {
        self.write("POST", &format!("/_test/{hook}"), "application/json", body)
    }

    fn write(&self, method: &str, path: &str, content_type: &str, body: &Value) -> Response {
        request(self.at(), method, path, &format!("Content-Type: {content_type}\r\n"), body.to_string().as_bytes())
    }

    /// True if the connection ends before the response.
    fn is_closed_by(&self, path: &str) -> bool {
        read_head(&mut send(self.at(), "GET", path, "", b"")).code == 0
    }

    /// Opens a watch. Its lines are read later.
    fn watch(&self, path: &str) -> Watch {
        let mut stream = send(self.at(), "GET", path, "", b"");
        let head = read_head(&mut stream);
        assert_eq!((head.code, head.length), (200, None));
        Watch { stream, rest: Vec::new() }
    }
}

impl Requests for ApiServer {
    fn at(&self) -> SocketAddr {
        self.address()
    }
}

/// What a watch receives next.
#[derive(Debug, PartialEq)]
pub(crate) enum Line {
    /// An event: its type and object.
    Event(String, Value),
    /// The body ended normally.
    End,
    /// The connection broke.
    Broken,
    /// Nothing within the time.
    Silent,
}

/// An open watch.
#[derive(Debug)]
pub(crate) struct Watch {
    stream: BufReader<TcpStream>,
    rest: Vec<u8>,
}

impl Watch {
    /// Reads the next line. Waits for the given time at most.
    pub(crate) fn within(&mut self, time: Duration) -> Line {
        self.stream.get_ref().set_read_timeout(Some(time)).unwrap();
        loop {
            if let Some(end) = self.rest.iter().position(|byte| *byte == b'\n') {
                let line: Vec<_> = self.rest.drain(..=end).collect();
                let mut event: Value = serde_json::from_slice(&line).unwrap();
                return Line::Event(event["type"].as_str().unwrap().to_owned(), event["object"].take());
            }
            match read_chunk(&mut self.stream) {
                Ok(Some(mut chunk)) => self.rest.append(&mut chunk),
                Ok(None) => return Line::End,
                Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut) => return Line::Silent,
                Err(_) => return Line::Broken,
            }
        }
    }

    /// Reads the next line. Waits for 10 seconds at most.
    pub(crate) fn next(&mut self) -> Line {
        self.within(Duration::from_secs(10))
    }

    /// Reads the next event: its type and object.
    pub(crate) fn event(&mut self) -> (String, Value) {
        match self.next() {
            Line::Event(kind, object) => (kind, object),
            other => panic!("{other:?} instead of an event"),
        }
    }

    /// Reads the next event: its type and the name of its object, as `ADDED web`.
    pub(crate) fn brief(&mut self) -> String {
        let (kind, object) = self.event();
        format!("{kind} {}", object["metadata"]["name"].as_str().unwrap_or("-"))
    }

    /// True if nothing arrives within 150 milliseconds.
    pub(crate) fn is_silent(&mut self) -> bool {
        self.within(Duration::from_millis(150)) == Line::Silent
    }
}

/// The names of the items of a list.
pub(crate) fn names(list: &Value) -> Vec<String> {
    list["items"].as_array().unwrap().iter().map(|item| item["metadata"]["name"].as_str().unwrap().to_owned()).collect()
}

/// A Service with labels.
pub(crate) fn service(namespace: &str, name: &str, labels: &Value) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Service", "metadata": {"name": name, "namespace": namespace, "labels": labels},
        "spec": {"type": "ClusterIP", "clusterIP": "10.96.0.20", "ports": [{"port": 80}]},
    })
}

/// Starts a server with the Services a, b and c in namespace default, and a in namespace shop.
pub(crate) fn shop() -> ApiServer {
    let server = ApiServer::start().unwrap();
    let app = |app: &str| json!({"app": app});
    let services = [("default", "b", app("two")), ("shop", "a", app("one")), ("default", "a", app("one")), ("default", "c", json!({}))];
    server.load(services.iter().map(|(namespace, name, labels)| service(namespace, name, labels)).collect()).unwrap();
    server
}
