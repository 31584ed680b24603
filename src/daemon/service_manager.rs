//! Reports to systemd that the daemon is ready (`sd_notify(3)`), as flanneld does [flannel 2].
//!
//! The crate `sd-notify` 0.5 cannot send to an abstract socket (`NOTIFY_SOCKET=@name`), which `sd_notify(3)` allows. So this is written here.

use std::ffi::OsStr;
use std::io;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};

use crate::observe::readiness::{Readiness, started};

/// The environment variable with the address of the service manager's socket.
const VARIABLE: &str = "NOTIFY_SOCKET";

/// Waits until all parts have started, and reports it to the service manager, if there is one.
pub async fn notify_ready(readiness: Readiness) {
    let Some(socket) = std::env::var_os(VARIABLE).filter(|socket| !socket.is_empty()) else { return };
    let mut states = readiness.subscribe();
    // Fails only if the readiness table is gone, which means that the daemon ends.
    if states.wait_for(started).await.is_ok()
        && let Err(error) = send(&socket, b"READY=1")
    {
        tracing::warn!("cannot report to the service manager at {} that all parts are ready: {error}", socket.to_string_lossy());
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
    fn sockets_in_the_file_system_and_abstract_ones_get_the_message() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("notify");
        let name = format!("sepal-test-{}", std::process::id());
        let address = SocketAddr::from_abstract_name(&name).expect("a name");
        let sockets = [
            (path.clone().into_os_string(), UnixDatagram::bind(&path).expect("a free path")),
            (format!("@{name}").into(), UnixDatagram::bind_addr(&address).expect("a free name")),
        ];
        for (at, socket) in sockets {
            send(&at, b"READY=1").expect("the socket is open");
            let mut buffer = [0; 16];
            let length = socket.recv(&mut buffer).expect("a message");
            assert_eq!(&buffer[..length], b"READY=1");
        }
        assert!(send(OsStr::new("/nowhere/notify"), b"READY=1").is_err());
    }
}
