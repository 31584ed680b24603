//! Network namespaces: those of containers, and the one that this process is in.

use super::error::CniError;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::MetadataExt;
use std::thread;

use nix::errno::Errno;
use nix::sched::{CloneFlags, setns};

/// The namespace of the thread that looks.
const OWN: &str = "/proc/thread-self/ns/net";

/// A network namespace.
#[derive(Debug)]
pub struct NetworkNamespace(File);

/// Why a namespace cannot be had.
#[derive(Debug)]
pub enum NamespaceError {
    /// There is nothing at its path, or what is there is no namespace (any more).
    Missing(io::Error),
    /// It is there and cannot be used.
    Other(io::Error),
}

impl NamespaceError {
    /// What the kernel said.
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
    /// There is none, or it cannot be opened.
    pub fn open(path: &str) -> Result<Self, NamespaceError> {
        match File::open(path) {
            Ok(file) => Ok(Self(file)),
            Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {
                Err(NamespaceError::Missing(error))
            }
            Err(error) => Err(NamespaceError::Other(error)),
        }
    }

    /// Whether this process is in it.
    ///
    /// # Errors
    /// It cannot be looked at.
    pub(crate) fn is_own(&self) -> io::Result<bool> {
        let (own, this) = (std::fs::metadata(OWN)?, self.0.metadata()?);
        Ok((own.dev(), own.ino()) == (this.dev(), this.ino()))
    }

    /// Does a piece of work on a thread of its own that is in the namespace. Sockets that it opens stay there.
    ///
    /// # Errors
    /// The namespace cannot be entered.
    pub fn within<T: Send>(&self, work: impl FnOnce() -> T + Send) -> Result<T, NamespaceError> {
        let enter = || setns(&self.0, CloneFlags::CLONE_NEWNET).map(|()| work());
        let done = thread::scope(|scope| thread::Builder::new().spawn_scoped(scope, enter).map(thread::ScopedJoinHandle::join));
        let broken = || NamespaceError::Other(io::Error::other("the work in the network namespace broke off"));
        match done.map_err(NamespaceError::Other)?.map_err(|_| broken())? {
            Ok(done) => Ok(done),
            // A file that is left where a namespace was mounted.
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

/// Keeps other processes of this kind from working with the rules of this process's own namespace, as long as it lives. The namespace
/// itself is what is locked: no file has to be made for it.
///
/// # Errors
/// It cannot be opened.
pub(crate) fn lock_own() -> io::Result<File> {
    let own = File::open(OWN)?;
    own.lock()?;
    Ok(own)
}

/// Sets a number of the kernel's, unless it is that already.
pub(crate) fn set_sysctl(path: &str, value: &str) -> Result<(), CniError> {
    if std::fs::read_to_string(path).is_ok_and(|now| now.trim() == value) {
        return Ok(());
    }
    std::fs::write(path, value).map_err(|cause| CniError::other(format!("cannot set {path} to {value}: {cause}")))
}
