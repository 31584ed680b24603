//! systemd is told when the daemon is ready (`sd_notify(3)`), as flanneld tells it (network spec section 2).

use std::ffi::OsStr;
use std::io;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};

use crate::observe::readiness::{Readiness, started};

/// The socket's address, where a service manager listens.
const VARIABLE: &str = "NOTIFY_SOCKET";

/// Waits until all parts have started, and reports that to the service manager, if there is one.
pub async fn tell_ready(readiness: Readiness) {
    let Some(socket) = std::env::var_os(VARIABLE).filter(|socket| !socket.is_empty()) else { return };
    let mut states = readiness.subscribe();
    // The table is as old as the daemon; that it goes away means that this does, too.
    if states.wait_for(started).await.is_ok()
        && let Err(error) = send(&socket, b"READY=1")
    {
        tracing::warn!("cannot tell the service manager at {} that all is ready: {error}", socket.to_string_lossy());
    }
}

fn send(socket: &OsStr, message: &[u8]) -> io::Result<()> {
    let address = match socket.as_bytes() {
        [b'@', name @ ..] => SocketAddr::from_abstract_name(name)?,
        _ => SocketAddr::from_pathname(socket)?,
    };
    UnixDatagram::unbound()?.send_to_addr(message, &address).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_kinds_of_sockets_are_told() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("notify");
        let name = format!("sepal-test-{}", std::process::id());
        let address = SocketAddr::from_abstract_name(&name).expect("a name");
        let sockets = [
            (path.clone().into_os_string(), UnixDatagram::bind(&path).expect("free")),
            (format!("@{name}").into(), UnixDatagram::bind_addr(&address).expect("free")),
        ];
        for (at, socket) in sockets {
            send(&at, b"READY=1").expect("somebody listens");
            let mut buffer = [0; 16];
            let length = socket.recv(&mut buffer).expect("a message");
            assert_eq!(&buffer[..length], b"READY=1");
        }
        assert!(send(OsStr::new("/nowhere/notify"), b"READY=1").is_err());
    }
}
