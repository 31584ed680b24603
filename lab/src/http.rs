//! One HTTP request from a namespace, and the answer.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use crate::netns::Netns;

const SOON: Duration = Duration::from_secs(3);

/// An answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    /// The status code.
    pub status: u16,
    /// The head as it came.
    pub head: String,
    /// The body.
    pub body: String,
}

/// Gets a path.
///
/// # Errors
/// Nobody answers, or not in HTTP.
pub fn get(from: &Netns, to: SocketAddr, path: &str) -> io::Result<Answer> {
    ask(from, to, "GET", path, "", "")
}

/// Makes a request of any kind; extra header lines each end with `\r\n`.
///
/// # Errors
/// Nobody answers, or not in HTTP.
pub fn ask(from: &Netns, to: SocketAddr, method: &str, path: &str, headers: &str, body: &str) -> io::Result<Answer> {
    let length = body.len();
    let request = format!("{method} {path} HTTP/1.1\r\nHost: {to}\r\nConnection: close\r\nContent-Length: {length}\r\n{headers}\r\n{body}");
    from.within(move || {
        let mut stream = TcpStream::connect_timeout(&to, SOON)?;
        stream.set_read_timeout(Some(SOON))?;
        stream.write_all(request.as_bytes())?;
        let mut said = String::new();
        stream.read_to_string(&mut said)?;
        let no_http = || io::Error::new(io::ErrorKind::InvalidData, said.clone());
        let (head, body) = said.split_once("\r\n\r\n").ok_or_else(no_http)?;
        let status = head.split(' ').nth(1).and_then(|status| status.parse().ok()).ok_or_else(no_http)?;
        Ok(Answer { status, head: head.to_owned(), body: body.to_owned() })
    })
}
