//! The xtables lock of legacy iptables: its holder, and the time that a program waits for it.

use std::convert::Infallible;
use std::fmt::Write as _;
use std::fs::TryLockError;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio::time::Instant;

/// The default lock file. `iptables -w` locks it with flock(2).
const LOCK: &str = "/run/xtables.lock";

/// Part of the name of the kernel function in which flock(2) waits (fs/locks.c).
const WAITING: &str = "lock_inode_wait";

/// The shortest time between two reads of `/proc/PID/wchan`. The time grows with the running time of the program.
const SHORTEST_POLL: Duration = Duration::from_millis(1);
/// The longest time between two reads.
const LONGEST_POLL: Duration = Duration::from_millis(16);

/// Returns the lock file that the programs use. The environment can name another one.
#[must_use]
pub fn path() -> PathBuf {
    std::env::var_os("XTABLES_LOCKFILE").map_or_else(|| LOCK.into(), PathBuf::from)
}

/// Returns the process ID and name of the program that holds the lock, if this process can see it.
pub(super) fn holder() -> String {
    let found = || {
        let inode = std::fs::metadata(path()).ok()?.ino();
        process(&std::fs::read_to_string("/proc/locks").ok()?, inode)
    };
    // Processes of other PID namespaces are not listed.
    found().map_or_else(|| "an unknown program (perhaps in another PID namespace)".into(), name)
}

/// Returns the ID and name of a process as text.
fn name(pid: u32) -> String {
    let mut text = format!("process {pid}");
    if let Ok(name) = std::fs::read_to_string(Path::new("/proc").join(pid.to_string()).join("comm")) {
        let _ = write!(text, " ({})", name.trim());
    }
    text
}

/// Returns the program that holds the lock now, or `None` if the lock is free. Takes a shared lock for a moment to find out.
///
/// # Errors
/// The lock file exists and cannot be opened for writing.
pub fn held() -> std::io::Result<Option<String>> {
    match std::fs::OpenOptions::new().append(true).open(path()) {
        Ok(file) => match file.try_lock_shared() {
            Ok(()) => Ok(None),
            Err(TryLockError::WouldBlock) => Ok(Some(holder())),
            Err(TryLockError::Error(error)) => Err(error),
        },
        // The first program that needs the lock creates the file.
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// Measures how long a process waits for a file lock, which for legacy iptables is the xtables lock. The programs do not report it, so
/// `/proc/PID/wchan` (proc(5)) is read at intervals. If the kernel does not have that file, the time is zero.
pub(super) struct LockWatch {
    /// The file that names the kernel function in which the process waits.
    wchan: Option<PathBuf>,
    waited: Duration,
}

impl LockWatch {
    /// Watches a process. `pid` is `None` if the process has ended already.
    pub(super) fn new(pid: Option<u32>) -> Self {
        Self { wchan: pid.map(|pid| Path::new("/proc").join(pid.to_string()).join("wchan")), waited: Duration::ZERO }
    }

    /// Measures until the future is dropped.
    pub(super) async fn watch(&mut self) -> Infallible {
        let start = Instant::now();
        let mut last = start;
        while let Some(wchan) = &self.wchan {
            tokio::time::sleep((start.elapsed() / 16).clamp(SHORTEST_POLL, LONGEST_POLL)).await;
            let now = Instant::now();
            match std::fs::read_to_string(wchan) {
                Ok(function) if function.contains(WAITING) => self.waited += now - last,
                Ok(_) => {}
                Err(_) => break,
            }
            last = now;
        }
        std::future::pending().await
    }

    /// How long the process waited, within a few milliseconds.
    pub(super) const fn waited(&self) -> Duration {
        self.waited
    }
}

/// Returns the process that holds a lock on a file. `locks` is a text like `/proc/locks` (proc(5)): `1: FLOCK ADVISORY WRITE 713 00:15:1180 0 EOF`.
fn process(locks: &str, inode: u64) -> Option<u32> {
    locks.lines().find_map(|line| {
        let words: Vec<&str> = line.split_whitespace().collect();
        let [_, "FLOCK", _, _, pid, file, ..] = words.as_slice() else { return None };
        (file.rsplit(':').next()?.parse() == Ok(inode)).then(|| pid.parse().ok())?
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_holder_is_found_among_other_locks() {
        let locks = "1: POSIX  ADVISORY  WRITE 5 00:15:1180 0 EOF\n2: FLOCK  ADVISORY  WRITE 713 00:15:1180 0 EOF\n2: -> FLOCK  ADVISORY  WRITE 714 00:15:1180 0 EOF\n";
        assert_eq!(process(locks, 1180), Some(713));
        assert_eq!(process(locks, 118), None);
        assert_eq!(process("nonsense", 1), None);
    }
}
