//! Reads manifest files, and reads them again when they change: `sepal run --manifests`.
//!
//! A file that cannot be read, or that is only partly written, changes nothing: its previous content stays in force.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use serde_json::Value;

use super::manifests::Manifests;
use crate::config::settings::RequestedSettings;
use crate::kubernetes::ProblemLog;
use crate::kubernetes::manifests::{self, ManifestError};
use crate::proxy::rules::inputs::Inputs;

/// The manifest files at a path. Each file is parsed separately, so that an error in one file leaves the others in force.
#[derive(Debug)]
pub struct ManifestFiles {
    path: PathBuf,
    requested: RequestedSettings,
    /// The last valid content of each file.
    valid: BTreeMap<PathBuf, Manifests>,
    complaints: ProblemLog,
    /// Errors of whole files, so that each is logged once.
    broken: BTreeSet<String>,
    /// The KubeProxyConfiguration among the manifests, as it was at the start.
    configuration: Option<Value>,
    /// Its fields that have changed since then and need a restart.
    pending: Vec<String>,
}

/// The fields of a KubeProxyConfiguration that apply without a restart: rules follow from them.
const RULE_FIELDS: [&str; 9] =
    ["apiVersion", "kind", "clusterCIDR", "detectLocal", "detectLocalMode", "iptables", "mode", "nodePortAddresses", "hostnameOverride"];

impl ManifestFiles {
    /// The manifests at a path; nothing is read yet.
    #[must_use]
    pub fn new(path: PathBuf, requested: RequestedSettings) -> Self {
        Self {
            path,
            requested,
            valid: BTreeMap::new(),
            complaints: ProblemLog::default(),
            broken: BTreeSet::new(),
            configuration: None,
            pending: Vec::new(),
        }
    }

    /// The KubeProxyConfiguration among the manifests, from the first read.
    #[must_use]
    pub const fn configuration(&self) -> Option<&Value> {
        self.configuration.as_ref()
    }

    /// Reads everything for the first time.
    ///
    /// # Errors
    /// A file cannot be read.
    pub fn read(&mut self) -> Result<Inputs, ManifestError> {
        for file in manifests::files(&self.path)? {
            let mut content = Manifests::default();
            content.add(&file.display().to_string(), &manifests::read_text(&file)?)?;
            self.valid.insert(file, content);
        }
        let all = self.all();
        self.configuration = all.configuration().cloned();
        Ok(self.inputs(all))
    }

    /// Reads everything again. The previous content of a file with an error stays in force, and the error is logged.
    pub fn reread(&mut self) -> Inputs {
        let mut broken = BTreeSet::new();
        match manifests::files(&self.path) {
            Ok(files) => {
                self.valid.retain(|file, _| files.contains(file));
                for file in files {
                    match read_complete(&file) {
                        Ok(content) => {
                            self.valid.insert(file, content);
                        }
                        Err(error) => {
                            broken.insert(error.to_string());
                        }
                    }
                }
            }
            Err(error) => {
                broken.insert(error.to_string());
            }
        }
        for error in broken.difference(&self.broken) {
            tracing::error!("{error}; what it said before still holds");
        }
        self.broken = broken;
        let all = self.all();
        let pending = changed_fields(self.configuration.as_ref(), all.configuration());
        if !pending.is_empty() && pending != self.pending {
            tracing::warn!("KubeProxyConfiguration among the manifests: {} changed, which counts after a restart", pending.join(", "));
        }
        self.pending = pending;
        self.inputs(all)
    }

    fn all(&self) -> Manifests {
        let mut all = Manifests::default();
        self.valid.values().for_each(|content| all.absorb(content.clone()));
        all
    }

    fn inputs(&mut self, all: Manifests) -> Inputs {
        all.complain(&mut self.complaints);
        all.into_inputs(&self.requested)
    }
}

/// The fields that differ between two configurations and need a restart.
fn changed_fields(before: Option<&Value>, now: Option<&Value>) -> Vec<String> {
    let fields = |config: Option<&Value>| config.and_then(Value::as_object).cloned().unwrap_or_default();
    let (before, now) = (fields(before), fields(now));
    let names: BTreeSet<&String> = before.keys().chain(now.keys()).collect();
    let needs_restart = |name: &&String| before.get(*name) != now.get(*name) && !RULE_FIELDS.contains(&name.as_str());
    names.into_iter().filter(needs_restart).cloned().collect()
}

/// Reads one file, unless it looks partly written. YAML that is cut off is mostly still valid, but it seldom ends with a newline.
fn read_complete(file: &Path) -> Result<Manifests, ManifestError> {
    let path = file.display().to_string();
    let text = manifests::read_text(file)?;
    let json = file.extension().is_some_and(|extension| extension == "json");
    if !json && !text.ends_with('\n') {
        return Err(ManifestError::Unfinished(path));
    }
    let mut manifests = Manifests::default();
    manifests.add(&path, &text)?;
    Ok(manifests)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn changed_fields_that_need_a_restart_are_named() {
        let config = |text: &str| serde_json::from_str::<Value>(text).expect("JSON");
        let before = config(r#"{"clusterCIDR": "10.0.0.0/8", "conntrack": {"min": 1}}"#);
        let now = config(r#"{"clusterCIDR": "10.1.0.0/16", "conntrack": {"min": 2}, "healthzBindAddress": "127.0.0.1:1"}"#);
        assert_eq!(changed_fields(Some(&before), Some(&now)), ["conntrack", "healthzBindAddress"]);
        assert_eq!(changed_fields(None, Some(&config(r#"{"kind": "KubeProxyConfiguration", "conntrack": {}}"#))), ["conntrack"]);
        assert_eq!(changed_fields(Some(&now), Some(&now)), Vec::<String>::new());
    }
}
