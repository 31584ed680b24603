//! Who holds the lock that all programs of legacy iptables take turns with.

use std::convert::Infallible;
use std::fmt::Write as _;
use std::fs::TryLockError;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio::time::Instant;

/// The lock's file, where the environment names no other one; `iptables -w` locks it with flock(2).
const LOCK: &str = "/run/xtables.lock";

/// Part of the name of the kernel's function in which flock(2) sleeps (fs/locks.c).
const WAITING: &str = "lock_inode_wait";

/// A waiting program is looked at this often, and less often the longer it takes.
const CLOSEST: Duration = Duration::from_millis(1);
const FARTHEST: Duration = Duration::from_millis(16);

/// The lock's file, as the programs find it.
#[must_use]
pub fn path() -> PathBuf {
    std::env::var_os("XTABLES_LOCKFILE").map_or_else(|| LOCK.into(), PathBuf::from)
}

/// The program that holds the lock, by process and name, as far as this process may see it.
pub(super) fn holder() -> String {
    let found = || {
        let inode = std::fs::metadata(path()).ok()?.ino();
        process(&std::fs::read_to_string("/proc/locks").ok()?, inode)
    };
    // Programs of other process namespaces are not listed.
    found().map_or_else(|| "a program that cannot be told from here".into(), name)
}

/// A process, by number and name.
fn name(pid: u32) -> String {
    let mut text = format!("process {pid}");
    if let Ok(name) = std::fs::read_to_string(Path::new("/proc").join(pid.to_string()).join("comm")) {
        let _ = write!(text, " ({})", name.trim());
    }
    text
}

/// The program that holds the lock now; `None` if nobody does. To find out, it is taken for a moment, along with others who only look.
///
/// # Errors
/// Its file is there and cannot be opened for writing, as the programs do.
pub fn held() -> std::io::Result<Option<String>> {
    match std::fs::OpenOptions::new().append(true).open(path()) {
        Ok(file) => match file.try_lock_shared() {
            Ok(()) => Ok(None),
            Err(TryLockError::WouldBlock) => Ok(Some(holder())),
            Err(TryLockError::Error(error)) => Err(error),
        },
        // Whoever is the first to need it makes it.
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// A process, and how long it has waited for a lock on a file: on legacy iptables that is the one all take turns with. Looked at from
/// outside, again and again, for the programs do not say; where the kernel does not say either (proc(5), `/proc/PID/wchan`), it is nothing.
pub(super) struct LockWatch {
    /// Where the kernel says what the process waits for.
    place: Option<PathBuf>,
    waited: Duration,
}

impl LockWatch {
    /// `None` is a process that has ended.
    pub(super) fn new(pid: Option<u32>) -> Self {
        Self { place: pid.map(|pid| Path::new("/proc").join(pid.to_string()).join("wchan")), waited: Duration::ZERO }
    }

    /// Looks at it for as long as it is asked to.
    pub(super) async fn watch(&mut self) -> Infallible {
        let start = Instant::now();
        let mut last = start;
        while let Some(place) = &self.place {
            tokio::time::sleep((start.elapsed() / 16).clamp(CLOSEST, FARTHEST)).await;
            let now = Instant::now();
            match std::fs::read_to_string(place) {
                Ok(function) if function.contains(WAITING) => self.waited += now - last,
                Ok(_) => {}
                Err(_) => break,
            }
            last = now;
        }
        std::future::pending().await
    }

    /// How long it has waited, within a few milliseconds.
    pub(super) const fn waited(&self) -> Duration {
        self.waited
    }
}

/// The process that holds a lock on a file, in a text like `/proc/locks` (proc(5)): `1: FLOCK ADVISORY WRITE 713 00:15:1180 0 EOF`.
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
    fn the_holder_is_found_among_all_locks() {
        let locks = "1: POSIX  ADVISORY  WRITE 5 00:15:1180 0 EOF\n2: FLOCK  ADVISORY  WRITE 713 00:15:1180 0 EOF\n2: -> FLOCK  ADVISORY  WRITE 714 00:15:1180 0 EOF\n";
        assert_eq!(process(locks, 1180), Some(713));
        assert_eq!(process(locks, 118), None);
        assert_eq!(process("nonsense", 1), None);
    }
}
