//! host-local's folder: one file per address, and a lock [flannel 10.4].
//!
//! An address is reserved by its file, and by nothing else; any plugin that keeps to the format may work in the same folder. Beside it,
//! in `.sepal/<network>` of the same data folder, is an index of which attachment has which addresses, as symbolic links. It is only a
//! hint that saves reading every file: what it says is looked up in the files, and it is made anew whenever the folder has been changed
//! by another program, or a plugin was killed while it worked: an index is not valid while the folder is locked.

use std::collections::BTreeSet;
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, ErrorKind, Write};
use std::net::IpAddr;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, symlink};
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::cni::error::CniError;
use crate::cni::request::Attachment;

/// What separates the container from the interface in a reservation.
const LINE: &str = "\r\n";
/// The file of the index that says what the folder was like when it was written.
const STATE: &str = ".state";

/// A network's folder.
#[derive(Clone, Debug)]
pub struct ReservationStore {
    folder: PathBuf,
    index: PathBuf,
}

/// Who an address is reserved for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReservationOwner {
    /// The container.
    pub container: String,
    /// The interface; none in files of plugins before 0.7.
    pub interface: Option<String>,
}

impl ReservationOwner {
    fn read(text: &str) -> Self {
        match text.trim().split_once(LINE) {
            Some((container, interface)) => Self { container: container.trim().to_owned(), interface: Some(interface.trim().to_owned()) },
            None => Self { container: text.trim().to_owned(), interface: None },
        }
    }

    /// Whether that is an attachment; if nothing is said of the interface, any of the container's may be.
    #[must_use]
    pub fn is(&self, attachment: &Attachment) -> bool {
        self.container == attachment.container && self.interface.as_ref().is_none_or(|interface| *interface == attachment.interface)
    }

    /// The attachment, where it is told and has a place in the index.
    fn attachment(&self) -> Option<Attachment> {
        let found = Attachment { container: self.container.clone(), interface: self.interface.clone()? };
        (is_file_name(&found.container) && is_file_name(&found.interface)).then_some(found)
    }
}

/// A reservation: an address and who it is for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reservation {
    /// The address.
    pub ip: IpAddr,
    /// Who it is for.
    pub owner: ReservationOwner,
}

/// The folder while no other plugin works in it.
#[derive(Debug)]
pub struct LockedStore<'s> {
    store: &'s ReservationStore,
    /// The index knows every reservation.
    indexed: bool,
    _lock: File,
}

impl ReservationStore {
    /// The folder of a network.
    #[must_use]
    pub fn new(data: &Path, network: &str) -> Self {
        Self { folder: data.join(network), index: data.join(".sepal").join(network) }
    }

    /// Waits for the lock of the folder. Creates the folder if it does not exist.
    ///
    /// # Errors
    /// It cannot be made, or the lock cannot be opened.
    pub fn lock(&self) -> Result<LockedStore<'_>, CniError> {
        self.make().map_err(|cause| cannot("make the folder", &self.folder, &cause))?;
        self.lock_there()
    }

    /// The same where the folder is there; nothing where it is not.
    ///
    /// # Errors
    /// The lock cannot be opened.
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
            // Like upstream's, it is opened for reading only, and made where it is missing. The standard library makes files only with
            // one that may be written.
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
            // Where it cannot be written, the index is made anew next time.
            let _ = fs::write(self.store.index.join(STATE), self.state());
        }
    }
}

impl LockedStore<'_> {
    fn file(&self, ip: IpAddr) -> PathBuf {
        self.store.folder.join(ip.to_string())
    }

    /// The address that was given last of a set of ranges.
    #[must_use]
    pub fn last(&self, set: usize) -> Option<IpAddr> {
        fs::read_to_string(self.store.folder.join(format!("last_reserved_ip.{set}"))).ok()?.trim().parse().ok()
    }

    /// Reserves an address; says whether it was free. `set` is the place of its set of ranges.
    ///
    /// # Errors
    /// Its file cannot be written. Then it is not reserved.
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

    /// Every address that is reserved for an attachment. Files that do not name the interface count only where none does.
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

    /// Frees every address of an attachment, and says which they were. The index alone is not believed that there is none.
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
    /// Its file is there and cannot be removed.
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

    /// Who has an address.
    #[must_use]
    pub fn owner(&self, ip: IpAddr) -> Option<ReservationOwner> {
        fs::read(self.file(ip)).ok().map(|text| ReservationOwner::read(&String::from_utf8_lossy(&text)))
    }

    /// How long ago an address was reserved.
    #[must_use]
    pub(crate) fn age(&self, ip: IpAddr) -> Option<Duration> {
        fs::metadata(self.file(ip)).ok()?.modified().ok()?.elapsed().ok()
    }

    /// The addresses that are reserved, without looking at for whom.
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

    /// Every reservation.
    ///
    /// # Errors
    /// The folder cannot be read.
    pub fn all(&self) -> Result<Vec<Reservation>, CniError> {
        let taken = self.taken()?;
        Ok(taken.into_iter().filter_map(|ip| self.owner(ip).map(|owner| Reservation { ip, owner })).collect())
    }

    /// The state of the folder. A change by another program changes it.
    fn state(&self) -> String {
        let changed = fs::metadata(&self.store.folder).map_or((0, 0), |folder| (folder.mtime(), folder.mtime_nsec()));
        let mut state = format!("{}.{:09}", changed.0, changed.1);
        // The clock of a file system may be too coarse to tell two changes apart; each reservation also moves one of these.
        for set in 0..2 {
            state += &self.last(set).map_or_else(|| " -".to_owned(), |ip| format!(" {ip}"));
        }
        state
    }

    fn link(&self, attachment: &Attachment) -> PathBuf {
        self.store.index.join(format!("{}@{}", attachment.container, attachment.interface))
    }

    /// What the index says, as far as the files agree.
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

    /// Makes the index anew. Without one, everything works, and is slower.
    fn index(&mut self, reservations: &[Reservation]) {
        let _ = fs::remove_dir_all(&self.store.index);
        // A file without an owner was left by a plugin that was killed while it wrote the file. Other reservations that have no place in the index
        // are found by reading the files only.
        let owned = reservations.iter().filter(|found| !found.owner.container.is_empty());
        let named: Option<Vec<_>> = owned.map(|found| Some((found.owner.attachment()?, found.ip))).collect();
        let Some(named) = named else { return };
        self.indexed = DirBuilder::new().recursive(true).mode(0o700).create(&self.store.index).is_ok();
        for (attachment, ip) in named {
            self.note(&attachment, ip);
        }
    }
}

/// The addresses of an attachment. Files that do not name the interface count only where none does.
fn held_by(reservations: &[Reservation], attachment: &Attachment) -> Vec<IpAddr> {
    let named = |named: bool| {
        let is = |found: &&Reservation| found.owner.is(attachment) && found.owner.interface.is_some() == named;
        reservations.iter().filter(is).map(|found| found.ip).collect::<Vec<_>>()
    };
    let exact = named(true);
    if exact.is_empty() { named(false) } else { exact }
}

/// True if a text can be a file name. Files of other programs can hold any text.
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

    /// What an ADD does that is killed before the index knows.
    fn reserve_and_die(store: &ReservationStore, address: &str, container: &str) {
        fs::write(store.folder.join(address), format!("{container}{LINE}eth0")).expect("writable");
    }

    #[test]
    fn what_the_index_does_not_know_is_freed_as_well() {
        let data = tempfile::tempdir().expect("a folder");
        let (store, abc) = (ReservationStore::new(data.path(), "cbr0"), attachment("abc"));
        store.lock().expect("a folder").of(&abc).expect("readable");
        assert!(store.lock().expect("a folder").reserve(ip("10.0.0.2"), &abc, 0).expect("writable"));
        reserve_and_die(&store, "fd00::2", "abc");
        let freed = store.lock().expect("a folder").release(&abc).expect("they can be freed");
        assert_eq!(freed, [ip("10.0.0.2"), ip("fd00::2")]);
        // The clock can be too coarse to show the change. So there is no valid index while the folder is locked.
        let locked = store.lock().expect("a folder");
        assert!(!store.index.join(STATE).exists());
        drop(locked);
        assert!(store.index.join(STATE).exists());
    }

    #[test]
    fn the_index_keeps_nobody_who_has_no_address() {
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
        // An empty file of a killed plugin does not make it slower.
        fs::write(store.folder.join("10.0.0.9"), "").expect("writable");
        lock().of(&abc).expect("readable");
        assert!(store.index.join(STATE).exists());
    }
}
