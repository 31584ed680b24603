//! The folder of host-local: one file per address, and a lock file [flannel 10.4].
//!
//! Only the file reserves an address. Every plugin that follows the format can use the same folder. Beside it, `.sepal/<network>` in the
//! same data folder has an index: symbolic links from attachments to their addresses. The index only saves reading every file. What it says
//! is checked in the files. It is built again if another program changed the folder, or if a plugin was killed while it worked: while the
//! folder is locked, the index is not valid.

use std::collections::BTreeSet;
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, ErrorKind, Write};
use std::net::IpAddr;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, symlink};
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::cni::error::CniError;
use crate::cni::request::Attachment;

/// Separates the container from the interface in a reservation.
const LINE: &str = "\r\n";
/// The file of the index that stores the state of the folder when the index was written.
const STATE: &str = ".state";

/// The folder of a network.
#[derive(Clone, Debug)]
pub struct ReservationStore {
    folder: PathBuf,
    index: PathBuf,
}

/// The owner of a reservation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReservationOwner {
    /// The container.
    pub container: String,
    /// The interface; `None` in files of plugins before 0.7.
    pub interface: Option<String>,
}

impl ReservationOwner {
    fn read(text: &str) -> Self {
        match text.trim().split_once(LINE) {
            Some((container, interface)) => Self { container: container.trim().to_owned(), interface: Some(interface.trim().to_owned()) },
            None => Self { container: text.trim().to_owned(), interface: None },
        }
    }

    /// Returns true if this owner is the attachment. Without an interface, the owner may be any interface of the container.
    #[must_use]
    pub fn is(&self, attachment: &Attachment) -> bool {
        self.container == attachment.container && self.interface.as_ref().is_none_or(|interface| *interface == attachment.interface)
    }

    /// Returns the attachment, if the owner names its interface and can be in the index.
    fn attachment(&self) -> Option<Attachment> {
        let found = Attachment { container: self.container.clone(), interface: self.interface.clone()? };
        (is_file_name(&found.container) && is_file_name(&found.interface)).then_some(found)
    }
}

/// A reservation: an address and its owner.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reservation {
    /// The address.
    pub ip: IpAddr,
    /// The owner.
    pub owner: ReservationOwner,
}

/// The locked folder.
#[derive(Debug)]
pub struct LockedStore<'s> {
    store: &'s ReservationStore,
    /// The index has every reservation.
    indexed: bool,
    _lock: File,
}

impl ReservationStore {
    /// Returns the folder of a network.
    #[must_use]
    pub fn new(data: &Path, network: &str) -> Self {
        Self { folder: data.join(network), index: data.join(".sepal").join(network) }
    }

    /// Waits for the lock of the folder. Creates the folder if it does not exist.
    ///
    /// # Errors
    /// The folder cannot be created, or the lock file cannot be opened.
    pub fn lock(&self) -> Result<LockedStore<'_>, CniError> {
        self.make().map_err(|cause| cannot("make the folder", &self.folder, &cause))?;
        self.lock_there()
    }

    /// Waits for the lock of the folder. Returns `None` if the folder does not exist.
    ///
    /// # Errors
    /// The lock file cannot be opened.
    pub(crate) fn lock_existing(&self) -> Result<Option<LockedStore<'_>>, CniError> {
        if self.folder.is_dir() { self.lock_there().map(Some) } else { Ok(None) }
    }

    fn make(&self) -> io::Result<()> {
        if self.folder.is_dir() {
            return Ok(());
        }
        DirBuilder::new().recursive(true).mode(0o755).create(&self.folder)
    }

    fn lock_there(&self) -> Result<LockedStore<'_>, CniError> {
        let path = self.folder.join("lock");
        let open = || {
            // As in the reference plugin, the file is opened for reading, and created if it is missing. The standard library only creates
            // files that it opens for writing.
            match File::open(&path) {
                Err(error) if error.kind() == ErrorKind::NotFound => {
                    OpenOptions::new().write(true).create(true).truncate(false).mode(0o750).open(&path)
                }
                opened => opened,
            }
        };
        let file = open().and_then(|file| file.lock().map(|()| file)).map_err(|cause| cannot("lock", &path, &cause))?;
        let mut locked = LockedStore { store: self, indexed: false, _lock: file };
        let state = fs::read_to_string(self.index.join(STATE));
        locked.indexed = fs::remove_file(self.index.join(STATE)).is_ok() && state.is_ok_and(|state| state == locked.state());
        Ok(locked)
    }
}

impl Drop for LockedStore<'_> {
    fn drop(&mut self) {
        if self.indexed {
            // If the index cannot be written, it is built again at the next use.
            let _ = fs::write(self.store.index.join(STATE), self.state());
        }
    }
}

impl LockedStore<'_> {
    fn file(&self, ip: IpAddr) -> PathBuf {
        self.store.folder.join(ip.to_string())
    }

    /// Returns the last address that was given of a range set.
    #[must_use]
    pub fn last(&self, set: usize) -> Option<IpAddr> {
        fs::read_to_string(self.store.folder.join(format!("last_reserved_ip.{set}"))).ok()?.trim().parse().ok()
    }

    /// Reserves an address. Returns false if it was reserved already. `set` is the index of its range set.
    ///
    /// # Errors
    /// The file cannot be written, and the address is not reserved.
    pub fn reserve(&mut self, ip: IpAddr, attachment: &Attachment, set: usize) -> Result<bool, CniError> {
        let path = self.file(ip);
        let failed = |cause: &io::Error| cannot("reserve an address by", &path, cause);
        let file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path);
        let mut file = match file {
            Err(error) if error.kind() == ErrorKind::AlreadyExists => return Ok(false),
            opened => opened.map_err(|cause| failed(&cause))?,
        };
        let last = self.store.folder.join(format!("last_reserved_ip.{set}"));
        let text = format!("{}{LINE}{}", attachment.container, attachment.interface);
        let written = file.write_all(text.as_bytes()).and_then(|()| {
            OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&last)?.write_all(ip.to_string().as_bytes())
        });
        if let Err(cause) = written {
            let _ = fs::remove_file(&path);
            return Err(failed(&cause));
        }
        self.note(attachment, ip);
        Ok(true)
    }

    /// Returns every address that is reserved for an attachment. Files that name no interface only count if no file names this one.
    ///
    /// # Errors
    /// The folder cannot be read.
    pub fn of(&mut self, attachment: &Attachment) -> Result<Vec<IpAddr>, CniError> {
        if self.indexed {
            return Ok(self.hint(attachment));
        }
        let reservations = self.all()?;
        self.index(&reservations);
        Ok(held_by(&reservations, attachment))
    }

    /// Frees every address of an attachment, and returns them. If the index has none, the files are read.
    ///
    /// # Errors
    /// The folder cannot be read, or a file cannot be removed.
    pub(crate) fn release(&mut self, attachment: &Attachment) -> Result<Vec<IpAddr>, CniError> {
        let hinted = self.indexed;
        let mut found = self.of(attachment)?;
        if found.is_empty() && hinted {
            found = held_by(&self.all()?, attachment);
        }
        for ip in &found {
            self.free(*ip)?;
        }
        Ok(found)
    }

    /// Frees one address. An owner without another address is removed from the index.
    ///
    /// # Errors
    /// The file exists and cannot be removed.
    pub fn free(&mut self, ip: IpAddr) -> Result<(), CniError> {
        let path = self.file(ip);
        let attachment = self.owner(ip).and_then(|owner| owner.attachment());
        match fs::remove_file(&path) {
            Err(error) if error.kind() != ErrorKind::NotFound => return Err(cannot("free an address by removing", &path, &error)),
            _ => {}
        }
        if let Some(attachment) = attachment.filter(|attachment| self.hint(attachment).is_empty()) {
            let _ = fs::remove_file(self.link(&attachment));
        }
        Ok(())
    }

    /// Returns the owner of an address.
    #[must_use]
    pub fn owner(&self, ip: IpAddr) -> Option<ReservationOwner> {
        fs::read(self.file(ip)).ok().map(|text| ReservationOwner::read(&String::from_utf8_lossy(&text)))
    }

    /// Returns the age of a reservation.
    #[must_use]
    pub(crate) fn age(&self, ip: IpAddr) -> Option<Duration> {
        fs::metadata(self.file(ip)).ok()?.modified().ok()?.elapsed().ok()
    }

    /// Returns all reserved addresses, without reading their owners.
    ///
    /// # Errors
    /// The folder cannot be read.
    pub fn taken(&self) -> Result<BTreeSet<IpAddr>, CniError> {
        let failed = |cause: io::Error| cannot("read the folder", &self.store.folder, &cause);
        let mut taken = BTreeSet::new();
        for entry in fs::read_dir(&self.store.folder).map_err(failed)? {
            taken.extend(entry.map_err(failed)?.file_name().to_str().and_then(|name| name.parse::<IpAddr>().ok()));
        }
        Ok(taken)
    }

    /// Returns every reservation.
    ///
    /// # Errors
    /// The folder cannot be read.
    pub fn all(&self) -> Result<Vec<Reservation>, CniError> {
        let taken = self.taken()?;
        Ok(taken.into_iter().filter_map(|ip| self.owner(ip).map(|owner| Reservation { ip, owner })).collect())
    }

    /// Returns the state of the folder. Every change by another program changes the state.
    fn state(&self) -> String {
        let changed = fs::metadata(&self.store.folder).map_or((0, 0), |folder| (folder.mtime(), folder.mtime_nsec()));
        let mut state = format!("{}.{:09}", changed.0, changed.1);
        // The clock of a file system may be too coarse to distinguish two changes. Each reservation also changes one of these numbers.
        for set in 0..2 {
            state += &self.last(set).map_or_else(|| " -".to_owned(), |ip| format!(" {ip}"));
        }
        state
    }

    fn link(&self, attachment: &Attachment) -> PathBuf {
        self.store.index.join(format!("{}@{}", attachment.container, attachment.interface))
    }

    /// Returns the addresses in the index that the files confirm.
    fn hint(&self, attachment: &Attachment) -> Vec<IpAddr> {
        let link = fs::read_link(self.link(attachment)).unwrap_or_default();
        let addresses = link.to_str().unwrap_or_default().split(',').filter_map(|ip| ip.parse().ok());
        let exact = |owner: &ReservationOwner| owner.interface.is_some() && owner.is(attachment);
        addresses.filter(|ip| self.owner(*ip).as_ref().is_some_and(exact)).collect()
    }

    fn note(&mut self, attachment: &Attachment, ip: IpAddr) {
        if !self.indexed {
            return;
        }
        let link = self.link(attachment);
        let mut addresses: Vec<String> = self.hint(attachment).iter().map(ToString::to_string).collect();
        addresses.extend((!addresses.contains(&ip.to_string())).then(|| ip.to_string()));
        let _ = fs::remove_file(&link);
        self.indexed = symlink(addresses.join(","), link).is_ok();
    }

    /// Builds the index again. Without an index everything works, but slower.
    fn index(&mut self, reservations: &[Reservation]) {
        let _ = fs::remove_dir_all(&self.store.index);
        // A file without an owner was left by a plugin that was killed while it wrote the file. Other reservations that cannot be in the
        // index are only found by reading the files.
        let owned = reservations.iter().filter(|found| !found.owner.container.is_empty());
        let named: Option<Vec<_>> = owned.map(|found| Some((found.owner.attachment()?, found.ip))).collect();
        let Some(named) = named else { return };
        self.indexed = DirBuilder::new().recursive(true).mode(0o700).create(&self.store.index).is_ok();
        for (attachment, ip) in named {
            self.note(&attachment, ip);
        }
    }
}

/// Returns the addresses of an attachment. Files that name no interface only count if no file names this one.
fn held_by(reservations: &[Reservation], attachment: &Attachment) -> Vec<IpAddr> {
    let named = |named: bool| {
        let is = |found: &&Reservation| found.owner.is(attachment) && found.owner.interface.is_some() == named;
        reservations.iter().filter(is).map(|found| found.ip).collect::<Vec<_>>()
    };
    let exact = named(true);
    if exact.is_empty() { named(false) } else { exact }
}

/// Returns true if a text can be a file name. Files of other programs can contain any text.
fn is_file_name(text: &str) -> bool {
    !text.is_empty() && text.len() < 200 && !text.contains(['/', '\0'])
}

fn cannot(request: &str, path: &Path, cause: &io::Error) -> CniError {
    CniError::other(format!("cannot {request} {}: {cause}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn attachment(container: &str) -> Attachment {
        Attachment { container: container.into(), interface: "eth0".into() }
    }

    fn ip(text: &str) -> IpAddr {
        text.parse().expect("an address")
    }

    /// Does what an ADD does that is killed before it updates the index.
    fn reserve_and_die(store: &ReservationStore, address: &str, container: &str) {
        fs::write(store.folder.join(address), format!("{container}{LINE}eth0")).expect("writable");
    }

    #[test]
    fn addresses_missing_in_the_index_are_freed_too() {
        let data = tempfile::tempdir().expect("a folder");
        let (store, abc) = (ReservationStore::new(data.path(), "cbr0"), attachment("abc"));
        store.lock().expect("a folder").of(&abc).expect("readable");
        assert!(store.lock().expect("a folder").reserve(ip("10.0.0.2"), &abc, 0).expect("writable"));
        reserve_and_die(&store, "fd00::2", "abc");
        let freed = store.lock().expect("a folder").release(&abc).expect("they can be freed");
        assert_eq!(freed, [ip("10.0.0.2"), ip("fd00::2")]);
        // The clock may be too coarse to show the change. So the index is not valid while the folder is locked.
        let locked = store.lock().expect("a folder");
        assert!(!store.index.join(STATE).exists());
        drop(locked);
        assert!(store.index.join(STATE).exists());
    }

    #[test]
    fn the_index_has_no_owner_without_an_address() {
        let data = tempfile::tempdir().expect("a folder");
        let (store, abc) = (ReservationStore::new(data.path(), "cbr0"), attachment("abc"));
        let lock = || store.lock().expect("a folder");
        lock().of(&abc).expect("readable");
        let links = || fs::read_dir(&store.index).expect("readable").flatten().filter(|entry| entry.file_name() != STATE).count();
        for (address, set) in [("10.0.0.2", 0), ("fd00::2", 1)] {
            assert!(lock().reserve(ip(address), &abc, set).expect("writable"));
        }
        lock().free(ip("10.0.0.2")).expect("it can be freed");
        assert_eq!((lock().of(&abc).expect("readable"), links()), (vec![ip("fd00::2")], 1));
        lock().free(ip("fd00::2")).expect("it can be freed");
        assert_eq!((lock().of(&abc).expect("readable"), links()), (vec![], 0));
        // An empty file of a killed plugin does not make reading slower.
        fs::write(store.folder.join("10.0.0.9"), "").expect("writable");
        lock().of(&abc).expect("readable");
        assert!(store.index.join(STATE).exists());
    }
}
