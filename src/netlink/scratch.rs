//! Temporary network namespaces, in which checks can change kernel state without an effect on the host.

use std::io;
use std::thread;

use nix::sched::{CloneFlags, unshare};

/// Runs `work` on its own thread in a new network namespace. Sockets that it opens and programs that it starts are in that namespace. The
/// namespace is deleted afterwards.
///
/// # Errors
/// The namespace cannot be created. This needs the capability `SYS_ADMIN`.
pub(crate) fn within_new_namespace<T: Send>(work: impl FnOnce() -> T + Send) -> io::Result<T> {
    let enter = || unshare(CloneFlags::CLONE_NEWNET).map(|()| work());
    let done = thread::scope(|scope| thread::Builder::new().spawn_scoped(scope, enter).map(thread::ScopedJoinHandle::join))?;
    done.map_err(|_| io::Error::other("the thread in the network namespace panicked"))?.map_err(io::Error::from)
}
