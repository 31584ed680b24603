//! Reads the cluster from manifests: a file, a folder or standard input.

use std::collections::BTreeMap;
use std::io::Read;
use std::path::{Path, PathBuf};

use serde_json::Value;

use super::ProblemLog;
use super::convert::{self, ConvertedObject};
use super::defaults;
use super::documents::{self, BadDocument};
use super::object::{Kind, ObjectId, Problem};
use crate::bad_setting::BadSetting;
use crate::cluster::Snapshot;

/// Why manifests cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ManifestError {
    /// A file or folder cannot be read.
    #[error("cannot read manifests from {path}: {cause}")]
    Read {
        /// The file or folder.
        path: String,
        /// The error of the system.
        cause: std::io::Error,
    },
    /// A folder without manifests.
    #[error("no manifests in {0}: looked for *.yaml, *.yml and *.json in it and below")]
    Empty(String),
    /// A document that is not YAML or JSON.
    #[error("{path}: {bad}")]
    Document {
        /// The file.
        path: String,
        /// Which document, and what is wrong.
        bad: BadDocument,
    },
    /// A file that is probably still being written.
    #[error("{0} does not end with a newline, so it counts as half-written")]
    Unfinished(String),
    /// A configuration object with an invalid field.
    #[error("{path}: {kind}: {bad}")]
    Setting {
        /// The file.
        path: String,
        /// The object's kind.
        kind: &'static str,
        /// The field and the cause.
        bad: BadSetting,
    },
}

/// The manifest files at a path, sorted: the file itself, or every `*.yaml`, `*.yml` and `*.json` in a folder and below. Names that start
/// with a dot are skipped: a mounted ConfigMap keeps its real files in such folders, and each would be found twice.
///
/// # Errors
/// A folder that cannot be read, or one without manifests.
pub fn files(path: &Path) -> Result<Vec<PathBuf>, ManifestError> {
    if path == Path::new("-") || !path.is_dir() {
        return Ok(vec![path.to_owned()]);
    }
    let mut found = Vec::new();
    collect(path, &mut found)?;
    found.sort();
    if found.is_empty() {
        return Err(ManifestError::Empty(path.display().to_string()));
    }
    Ok(found)
}

fn collect(folder: &Path, found: &mut Vec<PathBuf>) -> Result<(), ManifestError> {
    let failed = |cause| ManifestError::Read { path: folder.display().to_string(), cause };
    for entry in std::fs::read_dir(folder).map_err(failed)? {
        let entry = entry.map_err(failed)?;
        let path = entry.path();
        if entry.file_name().as_encoded_bytes().starts_with(b".") {
            continue;
        }
        // Links to folders are not followed, because they may form circles.
        if entry.file_type().map_err(failed)?.is_dir() {
            collect(&path, found)?;
        } else if path.extension().is_some_and(|ext| ext == "yaml" || ext == "yml" || ext == "json") && path.is_file() {
            found.push(path);
        }
    }
    Ok(())
}

/// The text of one manifest file, or of standard input for `-`.
///
/// # Errors
/// It cannot be read, or is not UTF-8.
pub(crate) fn read_text(path: &Path) -> Result<String, ManifestError> {
    let read = if path == Path::new("-") {
        let mut text = String::new();
        std::io::stdin().lock().read_to_string(&mut text).map(|_| text)
    } else {
        std::fs::read_to_string(path)
    };
    let name = if path == Path::new("-") { "standard input".into() } else { path.display().to_string() };
    read.map_err(|cause| ManifestError::Read { path: name, cause })
}

/// One document of a manifest.
#[derive(Debug)]
pub enum Document {
    /// An object of a kind that sepal reads.
    Object(ObjectId, Box<ConvertedObject>),
    /// An object of such a kind with another `apiVersion`.
    OtherVersion(ObjectId, String),
    /// Any other kind.
    Other {
        /// Its `apiVersion`; empty if there is none.
        api_version: String,
        /// Its `kind`; empty if there is none.
        kind: String,
        /// The document.
        value: Value,
    },
}

/// The documents of a text. The items of a list are documents of their own.
///
/// # Errors
/// The text is not YAML or JSON.
pub fn documents(text: &str) -> Result<Vec<Document>, BadDocument> {
    Ok(documents::parse(text, items)?.into_iter().flatten().collect())
}

/// The objects of manifests.
#[derive(Clone, Debug, Default)]
pub struct Objects {
    converted: BTreeMap<ObjectId, ConvertedObject>,
    /// Objects with another `apiVersion` than the one that sepal reads.
    unread: BTreeMap<ObjectId, Problem>,
    /// The number of documents of unneeded kinds, by kind.
    skipped: BTreeMap<String, usize>,
}

impl Objects {
    /// Adds an object. It replaces an earlier one of the same name.
    pub fn insert(&mut self, id: ObjectId, converted: ConvertedObject) {
        self.converted.insert(id, converted);
    }

    /// Adds an object with another `apiVersion` than the one that sepal reads.
    pub(crate) fn insert_unread(&mut self, object: ObjectId, api_version: &str) {
        let what = format!("skipped: its apiVersion is {api_version:?}, and only {} is read", object.kind.api_version());
        self.unread.insert(object.clone(), Problem { object, what });
    }

    /// Counts a document of an unneeded kind.
    pub fn skip(&mut self, kind: String) {
        *self.skipped.entry(kind).or_default() += 1;
    }

    /// Adds the objects of other manifests. They replace objects of the same name.
    pub(crate) fn absorb(&mut self, other: Self) {
        self.converted.extend(other.converted);
        self.unread.extend(other.unread);
        for (kind, count) in other.skipped {
            *self.skipped.entry(kind).or_default() += count;
        }
    }

    /// Logs the problems of each object, and which kinds were skipped.
    pub(crate) fn log_problems(&self, log: &mut ProblemLog) {
        for (id, converted) in &self.converted {
            log.note(id, converted.problem.as_ref());
        }
        for (id, problem) in self.unread.iter().filter(|(id, _)| !self.converted.contains_key(id)) {
            log.note(id, Some(problem));
        }
        log.note_skipped(&self.skipped);
    }

    /// The name of the Node, if there is exactly one.
    #[must_use]
    pub(crate) fn only_node(&self) -> Option<&str> {
        let mut nodes = self.converted.keys().filter(|id| id.kind == Kind::Node);
        match (nodes.next(), nodes.next()) {
            (Some(node), None) => Some(&node.name),
            _ => None,
        }
    }

    /// The cluster as the node of this name sees it.
    #[must_use]
    pub(crate) fn into_snapshot(self, node_name: &str) -> Snapshot {
        let mut snapshot = Snapshot::default();
        for (id, converted) in self.converted {
            if id.kind != Kind::Node || id.name == node_name {
                snapshot.apply(converted.change);
            }
        }
        snapshot
    }
}

/// The objects of a document: one object, or the items of a list.
fn items(mut value: Value) -> Vec<Document> {
    let text = |value: &Value, field: &str| value.get(field).and_then(Value::as_str).unwrap_or_default().to_owned();
    let (api_version, kind) = (text(&value, "apiVersion"), text(&value, "kind"));
    if let (Some(of_items), Some(Value::Array(list))) = (kind.strip_suffix("List"), value.get_mut("items").map(Value::take)) {
        return list.into_iter().flat_map(|item| items(named(item, &api_version, of_items))).collect();
    }
    vec![if let Some(kind) = Kind::of(&api_version, &kind) {
        let id = ObjectId::of(kind, &value);
        let mut missing = defaults::fill(kind, &mut value);
        let mut converted = convert::object(&id, &value);
        if !missing.is_empty() {
            missing.extend(converted.problem.take().map(|problem| problem.what));
            converted.problem = Some(Problem { object: id.clone(), what: missing.join("; ") });
        }
        Document::Object(id, Box::new(converted))
    } else if value.is_null() {
        return Vec::new();
    } else if let Some(of_kind) = Kind::other_version(&api_version, &kind) {
        Document::OtherVersion(ObjectId::of(of_kind, &value), api_version)
    } else {
        Document::Other { api_version, kind, value }
    }]
}

/// Adds the kind to an item of a typed list (`ServiceList`), which does not have it itself.
fn named(mut item: Value, api_version: &str, kind: &str) -> Value {
    if let Value::Object(fields) = &mut item
        && !kind.is_empty()
    {
        fields.entry("apiVersion").or_insert_with(|| api_version.into());
        fields.entry("kind").or_insert_with(|| kind.into());
    }
    item
}
