//! Finds the addresses that containers use now. The only source is the kernel.
//!
//! A reservation only says that an address was given once. The address is in use if an interface in any network namespace has it. The
//! namespaces that count are all that this host can find: this process's own, those at the other ends of its veth links (the kernel names
//! them, even if no path leads to them), those that are mounted where `ip netns` and runtimes mount them, and those of every process. If
//! one of them cannot be read, the result is unknown, and no address is freed.

use std::collections::BTreeSet;
use std::fs;
use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

use crate::netlink::device;
use crate::netlink::socket::Connection;

use super::error::CniError;
use super::netns::{NamespaceError, NetworkNamespace};

/// A younger reservation may belong to an ADD that still runs: no ADD takes this long.
pub(crate) const ON_ITS_WAY: Duration = Duration::from_secs(15 * 60);
/// Folders in which namespaces are mounted by name.
const MOUNTS: [&str; 3] = ["/run/netns", "/var/run/netns", "/run/docker/netns"];
/// How often the namespaces at the other ends of veth links are read again, if some of them were deleted meanwhile.
const TRIES: u32 = 3;

/// Returns every address that a container uses.
///
/// # Errors
/// A namespace cannot be read.
pub fn addresses() -> Result<BTreeSet<IpAddr>, CniError> {
    let cannot = |cause: &dyn std::fmt::Display| CniError::other(format!("cannot find out which addresses are in use: {cause}"));
    let mut found = of_veths().map_err(|cause| cannot(&cause))?;
    let mut seen = BTreeSet::new();
    for path in namespaces() {
        let Ok(namespace) = NetworkNamespace::open(&path.to_string_lossy()) else { continue };
        // The name of such a link is the inode number of the namespace. A mounted file has that inode number itself.
        if !seen.insert(fs::metadata(&path).map(|file| inode(&file)).unwrap_or_default()) {
            continue;
        }
        match namespace.within(|| device::addresses_in(&mut Connection::route()?, None)) {
            Ok(addresses) => found.extend(addresses.map_err(|cause| cannot(&cause))?),
            Err(NamespaceError::Missing(_)) => {}
            Err(NamespaceError::Other(cause)) => return Err(cannot(&cause)),
        }
    }
    Ok(found)
}

fn inode(file: &fs::Metadata) -> (u64, u64) {
    use std::os::unix::fs::MetadataExt;
    (file.dev(), file.ino())
}

fn of_veths() -> Result<BTreeSet<IpAddr>, crate::netlink::Cause> {
    let mut tries = 1;
    loop {
        let mut connection = Connection::route()?;
        let own = device::addresses_in(&mut connection, None)?;
        let ids: BTreeSet<i32> =
            device::all(&mut connection)?.into_iter().filter_map(|device| device.peer_namespace).filter(|id| *id >= 0).collect();
        let asked: Result<Vec<_>, _> = ids.into_iter().map(|id| device::addresses_in(&mut connection, Some(id))).collect();
        match asked {
            // A namespace that is deleted meanwhile cannot be read.
            Err(_) if tries < TRIES => tries += 1,
            asked => return Ok(asked?.into_iter().flatten().chain(own).collect()),
        }
    }
}

fn namespaces() -> Vec<PathBuf> {
    let entries = |folder: &str| fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| entry.path());
    let is_process = |path: &PathBuf| path.file_name().is_some_and(|name| name.as_encoded_bytes().iter().all(u8::is_ascii_digit));
    let of_processes = entries("/proc").filter(is_process).map(|process| process.join("ns/net"));
    MOUNTS.into_iter().flat_map(entries).chain(of_processes).collect()
}
