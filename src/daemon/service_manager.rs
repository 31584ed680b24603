//! Reports to systemd that the daemon is ready (`sd_notify(3)`), as flanneld does [flannel 2].

use sd_notify::NotifyState;

use crate::observe::readiness::{Readiness, started};

/// The environment variable with the address of the service manager's socket.
const VARIABLE: &str = "NOTIFY_SOCKET";

/// Waits until all parts have started, and reports it to the service manager, if there is one.
pub async fn notify_ready(readiness: Readiness) {
    let Some(socket) = std::env::var_os(VARIABLE).filter(|socket| !socket.is_empty()) else { return };
    let mut states = readiness.subscribe();
    // Fails only if the readiness table is gone, which means that the daemon ends.
    if states.wait_for(started).await.is_ok()
        && let Err(error) = sd_notify::notify(&[NotifyState::Ready])
    {
        tracing::warn!("cannot report to the service manager at {} that all parts are ready: {error}", socket.to_string_lossy());
    }
}

#[cfg(test)]
mod tests {
    use std::ffi::OsStr;
    use std::os::linux::net::SocketAddrExt;
    use std::os::unix::net::{SocketAddr, UnixDatagram};
    use std::process::Command;

    use super::*;

    /// Runs in the process that the next test starts: the environment of a process cannot be changed safely.
    #[test]
    #[ignore = "needs the environment that the next test sets"]
    fn notify() {
        sd_notify::notify(&[NotifyState::Ready]).expect("a socket");
    }

    #[test]
    #[allow(clippy::disallowed_methods, reason = "the test runs itself with another environment")]
    fn sockets_in_the_file_system_and_abstract_ones_are_notified() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("notify");
        let name = format!("sepal-test-{}", std::process::id());
        let address = SocketAddr::from_abstract_name(&name).expect("a name");
        let sockets = [
            (path.clone().into_os_string(), UnixDatagram::bind(&path).expect("a free path")),
            (format!("@{name}").into(), UnixDatagram::bind_addr(&address).expect("a free name")),
        ];
        let notify_at = |at: &OsStr| {
            let mut child = Command::new(std::env::current_exe().expect("this program"));
            child.args(["--exact", "--ignored", "daemon::service_manager::tests::notify"]).env(VARIABLE, at);
            child.output().expect("it starts").status.success()
        };
        for (at, socket) in sockets {
            assert!(notify_at(&at), "{}", at.display());
            let mut buffer = [0; 16];
            let length = socket.recv(&mut buffer).expect("a message");
            assert_eq!(buffer[..length].trim_ascii_end(), b"READY=1");
        }
        assert!(!notify_at(OsStr::new("/nowhere/notify")));
    }
}
