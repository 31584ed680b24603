//! One HTTP request from a network namespace.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use crate::netns::Netns;

/// Time limit of a request. It is much longer than any answer takes, so that a busy machine does not fail a test.
const TIMEOUT: Duration = Duration::from_secs(30);

/// An HTTP response.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    /// The status code.
    pub status: u16,
    /// The status line and the headers, unparsed.
    pub head: String,
    /// The body.
    pub body: String,
}

/// Sends a GET request.
///
/// # Errors
/// If no answer comes, or if it is not HTTP.
pub fn get(from: &Netns, to: SocketAddr, path: &str) -> io::Result<Answer> {
    ask(from, to, "GET", path, "", "")
}

/// Sends a request with any method. Each line of `headers` ends with `\r\n`.
///
/// # Errors
/// If no answer comes, or if it is not HTTP.
pub fn ask(from: &Netns, to: SocketAddr, method: &str, path: &str, headers: &str, body: &str) -> io::Result<Answer> {
    let length = body.len();
    let request = format!("{method} {path} HTTP/1.1\r\nHost: {to}\r\nConnection: close\r\nContent-Length: {length}\r\n{headers}\r\n{body}");
    from.run_thread(move || {
        let mut stream = TcpStream::connect_timeout(&to, TIMEOUT)?;
        stream.set_read_timeout(Some(TIMEOUT))?;
        stream.write_all(request.as_bytes())?;
        let mut response = String::new();
        stream.read_to_string(&mut response)?;
        let not_http = || io::Error::new(io::ErrorKind::InvalidData, response.clone());
        let (head, body) = response.split_once("\r\n\r\n").ok_or_else(not_http)?;
        let status = head.split(' ').nth(1).and_then(|status| status.parse().ok()).ok_or_else(not_http)?;
        Ok(Answer { status, head: head.to_owned(), body: body.to_owned() })
    })
}
