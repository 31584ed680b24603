//! A network namespace to try things in, which ends with the try.

use std::io;
use std::thread;

use nix::sched::{CloneFlags, unshare};

/// Does a piece of work on a thread of its own, in a new network namespace. Sockets that it opens are of that namespace, and so are
/// programs that it starts; nothing of it is left afterwards.
///
/// # Errors
/// No namespace can be made: that takes the capability `SYS_ADMIN`.
pub fn within_new_namespace<T: Send>(work: impl FnOnce() -> T + Send) -> io::Result<T> {
    let enter = || unshare(CloneFlags::CLONE_NEWNET).map(|()| work());
    let done = thread::scope(|scope| thread::Builder::new().spawn_scoped(scope, enter).map(thread::ScopedJoinHandle::join))?;
    done.map_err(|_| io::Error::other("the work in the network namespace broke off"))?.map_err(io::Error::from)
}
