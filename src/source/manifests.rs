//! The cluster from manifest files: a file, a folder or standard input.

use std::collections::BTreeMap;
use std::io::Read;
use std::path::{Path, PathBuf};

use serde_json::Value;

use super::Complaints;
use super::convert::{self, Converted};
use super::defaults;
use super::documents::{self, BadDocument};
use super::object::{Kind, ObjectId, Problem};
use crate::cluster::Snapshot;
use crate::config::host_facts::{self, WrittenFacts};
use crate::config::kubeproxy::{self, BadSetting};
use crate::config::network_facts::{self, NetworkFacts};
use crate::config::settings::{Asked, HostFacts, ProxySettings};
use crate::rules::inputs::Inputs;

/// Manifests that could not be read.
#[derive(Debug, thiserror::Error)]
pub enum ManifestError {
    /// The file system said no.
    #[error("cannot read manifests from {path}: {cause}")]
    Read {
        /// The file or folder.
        path: String,
        /// Why.
        cause: std::io::Error,
    },
    /// A folder without a single manifest.
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
    /// A file that seems to be in the middle of being written.
    #[error("{0} does not end with a newline, so it counts as half-written")]
    Unfinished(String),
    /// A configuration object that makes no sense.
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

/// One thing found in a manifest.
enum Item {
    Object(ObjectId, Box<Converted>),
    Config(Value),
    HostFacts(Value),
    NetworkFacts(Value),
    /// A kind that is read, of an `apiVersion` that is not.
    OtherVersion(ObjectId, String),
    /// A configuration of an `apiVersion` that is not read.
    OtherConfig(String),
    Skipped(String),
}

/// Everything the manifests say.
#[derive(Clone, Debug, Default)]
pub struct Manifests {
    objects: BTreeMap<ObjectId, Converted>,
    /// Objects of another `apiVersion` than the one that is read.
    unread: BTreeMap<ObjectId, Problem>,
    config: Option<Config>,
    host_facts: Option<WrittenFacts>,
    network_facts: Option<NetworkFacts>,
    /// Documents of kinds that are not needed, counted by kind.
    skipped: BTreeMap<String, usize>,
}

/// What a configuration among the manifests says.
#[derive(Clone, Debug)]
struct Config {
    settings: ProxySettings,
    node_name: Option<String>,
    /// As it is written.
    document: Value,
}

impl Manifests {
    /// Adds the text of one file. Of two objects of one name the later one counts.
    ///
    /// # Errors
    /// A document that cannot be read, or a configuration object that makes no sense.
    pub fn add(&mut self, path: &str, text: &str) -> Result<(), ManifestError> {
        let items = documents::parse(text, items).map_err(|bad| ManifestError::Document { path: path.into(), bad })?;
        for item in items.into_iter().flatten() {
            let setting = |kind| move |bad| ManifestError::Setting { path: path.into(), kind, bad };
            match item {
                Item::Object(id, converted) => {
                    self.objects.insert(id, *converted);
                }
                Item::Config(value) => {
                    let config = kubeproxy::decode::value(&value).map_err(setting(kubeproxy::KIND))?;
                    let settings = config.resolve().map_err(setting(kubeproxy::KIND))?;
                    self.config = Some(Config { settings, node_name: config.node_name(), document: value });
                }
                Item::OtherConfig(api_version) => {
                    let cause = format!("{api_version:?} cannot be read here, only {}", kubeproxy::API_VERSION);
                    return Err(setting(kubeproxy::KIND)(BadSetting { field: "apiVersion".into(), cause }));
                }
                Item::OtherVersion(object, api_version) => {
                    let what = format!("skipped: its apiVersion is {api_version:?}, and only {} is read", object.kind.api_version());
                    self.unread.insert(object.clone(), Problem { object, what });
                }
                Item::HostFacts(value) => {
                    let facts = WrittenFacts::from_value(&value).map_err(setting(host_facts::KIND))?;
                    facts.over(HostFacts::default()).map_err(setting(host_facts::KIND))?;
                    self.host_facts = Some(facts);
                }
                Item::NetworkFacts(value) => {
                    self.network_facts = Some(NetworkFacts::from_value(&value).map_err(setting(network_facts::KIND))?);
                }
                Item::Skipped(kind) => *self.skipped.entry(kind).or_default() += 1,
            }
        }
        Ok(())
    }

    /// Tells what could not be used, object by object, and what was not needed.
    pub fn complain(&self, complaints: &mut Complaints) {
        for (id, converted) in &self.objects {
            complaints.note(id, converted.problem.as_ref());
        }
        for (id, problem) in self.unread.iter().filter(|(id, _)| !self.objects.contains_key(id)) {
            complaints.note(id, Some(problem));
        }
        complaints.note_skipped(&self.skipped);
    }

    /// Adds what other manifests say; of two objects of one name theirs counts.
    pub fn absorb(&mut self, other: Self) {
        self.objects.extend(other.objects);
        self.unread.extend(other.unread);
        self.config = other.config.or(self.config.take());
        self.host_facts = other.host_facts.or(self.host_facts.take());
        self.network_facts = other.network_facts.or(self.network_facts.take());
        for (kind, count) in other.skipped {
            *self.skipped.entry(kind).or_default() += count;
        }
    }

    /// What rules are computed from, with what the manifests leave open filled in. This node is the one that was asked for, else the one
    /// the configuration among the manifests names, else their only Node, else the host.
    #[must_use]
    pub fn into_inputs(self, asked: &Asked) -> Inputs {
        let only_node = self.only_node().map(str::to_owned);
        let (settings, configured) =
            self.config.map_or_else(|| (asked.settings.clone(), None), |config| (config.settings, config.node_name));
        let node_name = asked.node_name.clone().or(configured).or(only_node).unwrap_or_else(|| asked.host_name.clone());
        let mut snapshot = Snapshot::default();
        for (id, converted) in self.objects {
            if id.kind != Kind::Node || id.name == node_name {
                snapshot.apply(converted.change);
            }
        }
        let without_proxy = self.network_facts.as_ref().is_some_and(|facts| facts.without_proxy);
        let pod_rules = self.network_facts.map(|facts| facts.rules);
        Inputs { snapshot, node_name, settings, written_facts: self.host_facts, pod_rules, without_proxy }
    }

    /// The KubeProxyConfiguration among the manifests, as it is written.
    #[must_use]
    pub fn configuration(&self) -> Option<&Value> {
        self.config.as_ref().map(|config| &config.document)
    }

    fn only_node(&self) -> Option<&str> {
        let mut nodes = self.objects.keys().filter(|id| id.kind == Kind::Node);
        match (nodes.next(), nodes.next()) {
            (Some(node), None) => Some(&node.name),
            _ => None,
        }
    }
}

/// The manifest files at a path, sorted: the file itself, or every `*.yaml`, `*.yml`, `*.json` of a folder and below, except what
/// starts with a dot (a mounted ConfigMap keeps its real files in such folders, and would show each twice).
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
        // Links to folders are not followed: they may lead around in circles.
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
pub fn read_text(path: &Path) -> Result<String, ManifestError> {
    let read = if path == Path::new("-") {
        let mut text = String::new();
        std::io::stdin().lock().read_to_string(&mut text).map(|_| text)
    } else {
        std::fs::read_to_string(path)
    };
    let name = if path == Path::new("-") { "standard input".into() } else { path.display().to_string() };
    read.map_err(|cause| ManifestError::Read { path: name, cause })
}

/// What a document holds: one object, or the objects of a list.
fn items(mut value: Value) -> Vec<Item> {
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
        Item::Object(id, Box::new(converted))
    } else if (api_version.as_str(), kind.as_str()) == (kubeproxy::API_VERSION, kubeproxy::KIND) {
        Item::Config(value)
    } else if (api_version.as_str(), kind.as_str()) == (host_facts::API_VERSION, host_facts::KIND) {
        Item::HostFacts(value)
    } else if (api_version.as_str(), kind.as_str()) == (host_facts::API_VERSION, network_facts::KIND) {
        Item::NetworkFacts(value)
    } else if value.is_null() {
        return Vec::new();
    } else if kind.is_empty() {
        Item::Skipped("without a kind".into())
    } else if kind == kubeproxy::KIND {
        Item::OtherConfig(api_version)
    } else if let Some(of_kind) = Kind::other_version(&api_version, &kind) {
        Item::OtherVersion(ObjectId::of(of_kind, &value), api_version)
    } else {
        Item::Skipped(format!("{api_version} {kind}").trim_start().to_owned())
    }]
}

/// An item of a typed list (`ServiceList`) does not say its kind itself; the list does.
fn named(mut item: Value, api_version: &str, kind: &str) -> Value {
    if let Value::Object(fields) = &mut item
        && !kind.is_empty()
    {
        fields.entry("apiVersion").or_insert_with(|| api_version.into());
        fields.entry("kind").or_insert_with(|| kind.into());
    }
    item
}
