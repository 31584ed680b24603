//! Reads, writes and deletes subnet.env [flannel 9]. Writes are atomic.

use std::fs::{self, Permissions};
use std::io::{self, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use ipnetwork::IpNetwork;

use crate::atomic_file;
use crate::cluster::Family;
use crate::cluster::families::PerFamily;
use crate::pod_network::subnet_env::SubnetEnv;

/// All users may read the file.
const MODE: u32 = 0o644;
const FOLDER_MODE: u32 = 0o755;

/// What a write did to the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum FileChange {
    /// The content was the same.
    Unchanged,
    /// The content was replaced.
    Changed,
    /// The file was created.
    Created,
}

/// The file could not be written or deleted.
#[derive(Debug, thiserror::Error)]
#[error("cannot write {path}: {cause}. Is its folder mounted into this container, and writable?")]
pub(crate) struct SubnetFileError {
    path: PathBuf,
    cause: io::Error,
}

/// Writes the file atomically, if its content differs.
pub(super) fn write(path: &Path, text: &str) -> Result<FileChange, SubnetFileError> {
    let before = fs::read(path).ok();
    if before.as_deref() == Some(text.as_bytes()) {
        return Ok(FileChange::Unchanged);
    }
    replace(path, text).map_err(|cause| SubnetFileError { path: path.to_owned(), cause })?;
    Ok(if before.is_some() { FileChange::Changed } else { FileChange::Created })
}

/// Deletes the file, if it exists.
pub(crate) fn remove(path: &Path) -> Result<(), SubnetFileError> {
    match fs::remove_file(path) {
        Err(cause) if cause.kind() != io::ErrorKind::NotFound => Err(SubnetFileError { path: path.to_owned(), cause }),
        _ => Ok(()),
    }
}

/// Deletes the file if it names a subnet that is not this node's. Gives the subnets that it named.
pub(crate) fn delete_if_stale(
    path: &Path,
    is_ours: impl Fn(Family, IpNetwork) -> bool,
) -> Result<Option<PerFamily<IpNetwork>>, SubnetFileError> {
    let named = subnets(path);
    if named.iter().all(|(family, subnet)| is_ours(family, *subnet)) {
        return Ok(None);
    }
    remove(path)?;
    Ok(Some(named))
}

/// The subnets that the file names.
pub(crate) fn subnets(path: &Path) -> PerFamily<IpNetwork> {
    SubnetEnv::parse_lenient(&read(path)).first_subnets()
}

/// The content of the file; empty if it cannot be read.
pub(crate) fn read(path: &Path) -> String {
    fs::read_to_string(path).unwrap_or_default()
}

/// Replaces the file, and creates its folder if necessary.
fn replace(path: &Path, text: &str) -> io::Result<()> {
    let folder = path.parent().filter(|folder| *folder != Path::new("")).unwrap_or(Path::new("."));
    if !folder.is_dir() {
        fs::create_dir_all(folder)?;
        fs::set_permissions(folder, Permissions::from_mode(FOLDER_MODE))?;
    }
    atomic_file::replace(path, MODE, |file| file.write_all(text.as_bytes()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_that_names_the_subnet_of_another_node_is_deleted() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("subnet.env");
        let (v4, v6): (IpNetwork, IpNetwork) = ("10.244.1.0/24".parse().expect("a CIDR"), "fd00:1::/64".parse().expect("a CIDR"));
        write(&path, "FLANNEL_SUBNET=10.244.1.1/24\nFLANNEL_IPV6_SUBNET=fd00:1::1/64\n").expect("writable");
        assert_eq!(delete_if_stale(&path, |_, subnet| [v4, v6].contains(&subnet)).expect("readable"), None);
        assert!(path.exists());
        let named = PerFamily { v4: Some(v4), v6: Some(v6) };
        assert_eq!(delete_if_stale(&path, |_, subnet| subnet == v4).expect("removable"), Some(named));
        assert!(!path.exists());
        assert_eq!(delete_if_stale(&path, |_, _| false).expect("gone already"), None);
    }

    #[test]
    fn the_file_is_written_atomically_and_only_if_it_differs() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("run/flannel/subnet.env");
        assert_eq!(write(&path, "A=1\n").expect("writable"), FileChange::Created);
        assert_eq!(write(&path, "A=1\n").expect("writable"), FileChange::Unchanged);
        assert_eq!(write(&path, "A=2\n").expect("writable"), FileChange::Changed);
        assert_eq!(read(&path), "A=2\n");
        let mode = |path: &Path| fs::metadata(path).expect("there").permissions().mode() & 0o777;
        assert_eq!((mode(&path), mode(path.parent().expect("a folder"))), (0o644, 0o755));
        assert_eq!(fs::read_dir(path.parent().expect("a folder")).expect("readable").count(), 1, "nothing else is left there");
        remove(&path).expect("removable");
        remove(&path).expect("gone already");
        assert_eq!(read(&path), "");
        // The path is a folder, or its folder is a file.
        fs::create_dir(&path).expect("a folder");
        let error = write(&path, "A=1\n").expect_err("a folder is in its place").to_string();
        assert!(error.starts_with("cannot write ") && error.contains("subnet.env"), "{error}");
        fs::write(folder.path().join("file"), "").expect("writable");
        assert!(write(&folder.path().join("file/subnet.env"), "").is_err());
    }
}
