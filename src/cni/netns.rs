//! Network namespaces of containers and of this process.

use super::error::CniError;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::MetadataExt;
use std::thread;

use nix::errno::Errno;
use nix::sched::{CloneFlags, setns};

/// The namespace of the current thread.
const OWN: &str = "/proc/thread-self/ns/net";

/// A network namespace.
#[derive(Debug)]
pub struct NetworkNamespace(File);

/// Why a namespace cannot be used.
#[derive(Debug)]
pub enum NamespaceError {
    /// The path does not exist, or it is not a namespace (any more).
    Missing(io::Error),
    /// Every other error.
    Other(io::Error),
}

impl NamespaceError {
    /// Returns the error of the kernel.
    #[must_use]
    pub const fn cause(&self) -> &io::Error {
        match self {
            Self::Missing(cause) | Self::Other(cause) => cause,
        }
    }
}

impl NetworkNamespace {
    /// Opens a namespace by its path.
    ///
    /// # Errors
    /// It does not exist or cannot be opened.
    pub fn open(path: &str) -> Result<Self, NamespaceError> {
        match File::open(path) {
            Ok(file) => Ok(Self(file)),
            Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {
                Err(NamespaceError::Missing(error))
            }
            Err(error) => Err(NamespaceError::Other(error)),
        }
    }

    /// Returns true if this process is in the namespace.
    ///
    /// # Errors
    /// The namespace cannot be examined.
    pub(crate) fn is_own(&self) -> io::Result<bool> {
        let (own, this) = (std::fs::metadata(OWN)?, self.0.metadata()?);
        Ok((own.dev(), own.ino()) == (this.dev(), this.ino()))
    }

    /// Runs a closure on a thread of its own in the namespace. Sockets that the closure opens stay in the namespace.
    ///
    /// # Errors
    /// The namespace cannot be entered.
    pub fn within<T: Send>(&self, work: impl FnOnce() -> T + Send) -> Result<T, NamespaceError> {
        let enter = || setns(&self.0, CloneFlags::CLONE_NEWNET).map(|()| work());
        let done = thread::scope(|scope| thread::Builder::new().spawn_scoped(scope, enter).map(thread::ScopedJoinHandle::join));
        let broken = || NamespaceError::Other(io::Error::other("the work in the network namespace broke off"));
        match done.map_err(NamespaceError::Other)?.map_err(|_| broken())? {
            Ok(done) => Ok(done),
            // The path is a regular file that stayed after the namespace was unmounted.
            Err(Errno::EINVAL) => Err(NamespaceError::Missing(Errno::EINVAL.into())),
            Err(errno) => Err(NamespaceError::Other(errno.into())),
        }
    }
}

impl AsFd for NetworkNamespace {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// Locks the rules of this process's network namespace against other plugins until the returned value is dropped. The lock is on the
/// namespace file itself, so no lock file is needed.
///
/// # Errors
/// The namespace file cannot be opened.
pub(crate) fn lock_own() -> io::Result<File> {
    let own = File::open(OWN)?;
    own.lock()?;
    Ok(own)
}

/// Writes a number to a kernel setting, unless it has that value.
pub(crate) fn set_sysctl(path: &str, value: &str) -> Result<(), CniError> {
    if std::fs::read_to_string(path).is_ok_and(|now| now.trim() == value) {
        return Ok(());
    }
    std::fs::write(path, value).map_err(|cause| CniError::other(format!("cannot set {path} to {value}: {cause}")))
}
