//! Installs the CNI plugin and the CNI configuration for container runtimes.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use crate::atomic_file::replace;
use crate::pod_network::cni_config::{ConfFile, OTHER_NAMES, OWN_NAME, is_read};
use crate::pod_network::subnet_env::SUBNET_FILE;

/// Name of the CNI configuration file. flannel's file sorts before it, if it still exists.
pub const CONFLIST_NAME: &str = "10-sepal.conflist";
/// The CNI configuration. The network has flannel's name, so that addresses allocated under flannel stay allocated. Runtimes that know
/// `cniVersions` use the newest version that they support. Others use `cniVersion`, which is that of flannel's conflist.
pub const CONFLIST: &str = r#"{
  "cniVersion": "0.3.1",
  "cniVersions": ["0.3.1", "0.4.0", "1.0.0", "1.1.0"],
  "name": "cbr0",
  "plugins": [
    {
      "type": "sepal",
      "capabilities": {
        "portMappings": true
      }
    }
  ]
}
"#;

/// A file could not be installed.
#[derive(Debug, thiserror::Error)]
#[error("cannot install {}: {cause}", path.display())]
pub struct InstallError {
    /// Path of the file.
    pub path: PathBuf,
    /// The cause.
    pub cause: io::Error,
}

/// A folder of CNI configurations could not be listed.
#[derive(Debug, thiserror::Error)]
#[error("cannot list the CNI configurations in {}: {cause}", path.display())]
pub struct UnreadableFolder {
    /// The folder.
    pub path: PathBuf,
    /// The cause.
    pub cause: io::Error,
}

/// The names under which the plugin is installed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PluginNames {
    /// `sepal`, and the names of other plugins that are missing or that an earlier installation created.
    Missing,
    /// `sepal` and exactly these, which are overwritten.
    These(Vec<String>),
}

/// Installs the program in a folder under its names, and gives the written paths. Each name is a separate file, so that an installation of
/// another plugin (such as flannel's) overwrites only one of them.
///
/// # Errors
/// A file cannot be written. The files before it are installed.
pub fn install(program: &Path, folder: &Path, names: &PluginNames) -> Result<Vec<PathBuf>, InstallError> {
    let own = folder.join(OWN_NAME);
    let others: Vec<PathBuf> = match names {
        PluginNames::These(names) => names.iter().filter(|name| *name != OWN_NAME).map(|name| folder.join(name)).collect(),
        PluginNames::Missing => {
            let is_installed = |path: &PathBuf| !path.exists() || same_content(path, &own) || same_content(path, program);
            OTHER_NAMES.into_iter().map(|name| folder.join(name)).filter(is_installed).collect()
        }
    };
    let mut written = Vec::new();
    // The file `sepal` is written last: until then its old content identifies the other files of an earlier installation.
    for path in others.into_iter().chain([own]) {
        let failed = |cause: io::Error| InstallError { path: path.clone(), cause };
        if same_content(&path, program) {
            continue;
        }
        let mut source = File::open(program).map_err(failed)?;
        replace(&path, 0o755, |file| io::copy(&mut source, file).map(|_| ())).map_err(failed)?;
        written.push(path);
    }
    Ok(written)
}

/// The CNI configuration for this path of subnet.env.
#[must_use]
pub fn conflist(subnet_file: &Path) -> String {
    if subnet_file == Path::new(SUBNET_FILE) {
        return CONFLIST.to_owned();
    }
    let path = serde_json::Value::from(subnet_file.to_string_lossy().into_owned());
    CONFLIST.replace("\"type\": \"sepal\",", &format!("\"type\": \"sepal\",\n      \"subnetFile\": {path},"))
}

/// Writes the CNI configuration atomically, and returns true if the file has changed.
///
/// # Errors
/// The file cannot be written.
pub fn write_conflist(folder: &Path, name: &str, text: &str) -> Result<bool, InstallError> {
    let path = folder.join(name);
    if fs::read(&path).is_ok_and(|found| found == text.as_bytes()) {
        return Ok(false);
    }
    let written = fs::create_dir_all(folder).and_then(|()| replace(&path, 0o644, |file| file.write_all(text.as_bytes())));
    written.map(|()| true).map_err(|cause| InstallError { path, cause })
}

/// Reads the files of a folder that container runtimes read.
///
/// # Errors
/// The folder cannot be listed.
pub fn conf_files(folder: &Path) -> Result<Vec<ConfFile>, UnreadableFolder> {
    let failed = |cause| UnreadableFolder { path: folder.to_owned(), cause };
    let mut files = Vec::new();
    for entry in fs::read_dir(folder).map_err(failed)? {
        let entry = entry.map_err(failed)?;
        let name = entry.file_name().to_string_lossy().into_owned();
        if is_read(&name) && !entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            files.push(ConfFile { name, content: read_regular(&entry.path()).map_err(|cause| cause.to_string()) });
        }
    }
    Ok(files)
}

/// Reads a regular file. Reading a FIFO might never end.
fn read_regular(path: &Path) -> io::Result<Vec<u8>> {
    if !fs::metadata(path)?.is_file() {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "it is not a regular file"));
    }
    fs::read(path)
}

/// Returns true if both files exist and have the same content.
fn same_content(one: &Path, other: &Path) -> bool {
    let length = |path: &Path| fs::metadata(path).ok().filter(fs::Metadata::is_file).map(|file| file.len());
    length(one).is_some_and(|len| Some(len) == length(other))
        && matches!((fs::read(one), fs::read(other)), (Ok(one), Ok(other)) if one == other)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    fn contents(folder: &Path) -> Vec<(String, String)> {
        let mut found: Vec<_> = fs::read_dir(folder)
            .expect("readable")
            .map(|entry| entry.expect("readable"))
            .map(|entry| (entry.file_name().to_string_lossy().into_owned(), fs::read_to_string(entry.path()).expect("readable")))
            .collect();
        found.sort();
        found
    }

    #[test]
    fn files_of_other_programs_stay_unless_they_are_named() {
        let folder = tempfile::tempdir().expect("a folder");
        let program = tempfile::tempdir().expect("a folder");
        let (first, second) = (program.path().join("first"), program.path().join("second"));
        fs::write(&first, "first").expect("writable");
        fs::write(&second, "later").expect("writable");
        fs::write(folder.path().join("bridge"), "real").expect("writable");
        install(&first, folder.path(), &PluginNames::Missing).expect("writable");
        let found = |name: &str| contents(folder.path()).into_iter().find(|(found, _)| found == name).map(|(_, text)| text);
        assert_eq!(
            (contents(folder.path()).len(), found("bridge").as_deref(), found("flannel").as_deref()),
            (6, Some("real"), Some("first"))
        );
        assert_eq!(install(&first, folder.path(), &PluginNames::Missing).expect("writable"), Vec::<PathBuf>::new());
        // A newer version replaces an older one, also after an installation that was interrupted.
        fs::write(folder.path().join("portmap"), "later").expect("writable");
        install(&second, folder.path(), &PluginNames::Missing).expect("writable");
        assert_eq!(
            (found("bridge").as_deref(), found("flannel").as_deref(), found("sepal").as_deref()),
            (Some("real"), Some("later"), Some("later"))
        );
        install(&first, folder.path(), &PluginNames::These(vec!["bridge".into()])).expect("writable");
        assert_eq!((found("bridge").as_deref(), found("flannel").as_deref()), (Some("first"), Some("later")));
        let mode = fs::metadata(folder.path().join("bridge")).expect("there").permissions().mode();
        assert_eq!(mode & 0o777, 0o755);
        assert!(
            install(&first, &folder.path().join("nowhere"), &PluginNames::Missing)
                .expect_err("no folder")
                .to_string()
                .starts_with("cannot install ")
        );
    }

    #[test]
    fn the_conflist_is_written_once() {
        let folder = tempfile::tempdir().expect("a folder");
        let place = folder.path().join("net.d");
        assert!(write_conflist(&place, CONFLIST_NAME, CONFLIST).expect("writable"));
        assert_eq!(conflist(Path::new("/run/flannel/subnet.env")), CONFLIST);
        let elsewhere: serde_json::Value = serde_json::from_str(&conflist(Path::new("/a/\"b\""))).expect("it is JSON");
        assert_eq!(elsewhere["plugins"][0]["subnetFile"], "/a/\"b\"");
        assert!(!write_conflist(&place, CONFLIST_NAME, CONFLIST).expect("writable"));
        assert_eq!(contents(&place), [(CONFLIST_NAME.to_owned(), CONFLIST.to_owned())]);
        let conflist: serde_json::Value = serde_json::from_str(CONFLIST).expect("it is JSON");
        assert_eq!((&conflist["cniVersion"], &conflist["cniVersions"][3]), (&"0.3.1".into(), &"1.1.0".into()));
    }
}
