//! Manifest files that change: `sepal run --manifests`.
//!
//! A change is taken when writing has come to rest: no event for a moment, and no file still open for writing. A file that is broken or
//! only half there changes nothing; what it said before holds until it is whole again.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use serde_json::Value;

use super::manifests::Manifests;
use crate::config::settings::Asked;
use crate::kubernetes::ProblemLog;
use crate::kubernetes::manifests::{self, ManifestError};
use crate::proxy::rules::inputs::Inputs;

/// Manifests, read file by file so that a broken one can be told from the others.
#[derive(Debug)]
pub struct Files {
    path: PathBuf,
    asked: Asked,
    good: BTreeMap<PathBuf, Manifests>,
    complaints: ProblemLog,
    /// Complaints about whole files, so that each is made once.
    broken: BTreeSet<String>,
    /// The KubeProxyConfiguration among the manifests, as it was at the start.
    configuration: Option<Value>,
    /// Its fields that have changed since, and count only after a restart.
    pending: Vec<String>,
}

/// The fields of a KubeProxyConfiguration whose change counts at once: rules follow from them.
const OF_RULES: [&str; 9] =
    ["apiVersion", "kind", "clusterCIDR", "detectLocal", "detectLocalMode", "iptables", "mode", "nodePortAddresses", "hostnameOverride"];

impl Files {
    /// Manifests at a path; nothing is read yet.
    #[must_use]
    pub fn new(path: PathBuf, asked: Asked) -> Self {
        Self {
            path,
            asked,
            good: BTreeMap::new(),
            complaints: ProblemLog::default(),
            broken: BTreeSet::new(),
            configuration: None,
            pending: Vec::new(),
        }
    }

    /// The KubeProxyConfiguration among the manifests, as it was when they were read for the first time.
    #[must_use]
    pub const fn configuration(&self) -> Option<&Value> {
        self.configuration.as_ref()
    }

    /// Reads everything for the first time.
    ///
    /// # Errors
    /// Any file that cannot be read.
    pub fn read(&mut self) -> Result<Inputs, ManifestError> {
        for file in manifests::files(&self.path)? {
            let mut of_file = Manifests::default();
            of_file.add(&file.display().to_string(), &manifests::read_text(&file)?)?;
            self.good.insert(file, of_file);
        }
        let all = self.all();
        self.configuration = all.configuration().cloned();
        Ok(self.inputs(all))
    }

    /// Reads everything again. What cannot be read is reported, and stays as it was.
    pub fn reread(&mut self) -> Inputs {
        let mut broken = BTreeSet::new();
        match manifests::files(&self.path) {
            Ok(files) => {
                self.good.retain(|file, _| files.contains(file));
                for file in files {
                    match whole(&file) {
                        Ok(of_file) => {
                            self.good.insert(file, of_file);
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
        self.good.values().for_each(|of_file| all.absorb(of_file.clone()));
        all
    }

    fn inputs(&mut self, all: Manifests) -> Inputs {
        all.complain(&mut self.complaints);
        all.into_inputs(&self.asked)
    }
}

/// The fields that differ between two configurations, but for those that rules follow from.
fn changed_fields(before: Option<&Value>, now: Option<&Value>) -> Vec<String> {
    let fields = |config: Option<&Value>| config.and_then(Value::as_object).cloned().unwrap_or_default();
    let (before, now) = (fields(before), fields(now));
    let names: BTreeSet<&String> = before.keys().chain(now.keys()).collect();
    let counts_later = |name: &&String| before.get(*name) != now.get(*name) && !OF_RULES.contains(&name.as_str());
    names.into_iter().filter(counts_later).cloned().collect()
}

/// Reads one file that may be in the middle of being written. YAML that was cut off is mostly still YAML; but it seldom ends with a newline.
fn whole(file: &Path) -> Result<Manifests, ManifestError> {
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
    fn a_configuration_that_counts_after_a_restart_is_named() {
        let config = |text: &str| serde_json::from_str::<Value>(text).expect("JSON");
        let before = config(r#"{"clusterCIDR": "10.0.0.0/8", "conntrack": {"min": 1}}"#);
        let now = config(r#"{"clusterCIDR": "10.1.0.0/16", "conntrack": {"min": 2}, "healthzBindAddress": "127.0.0.1:1"}"#);
        assert_eq!(changed_fields(Some(&before), Some(&now)), ["conntrack", "healthzBindAddress"]);
        assert_eq!(changed_fields(None, Some(&config(r#"{"kind": "KubeProxyConfiguration", "conntrack": {}}"#))), ["conntrack"]);
        assert_eq!(changed_fields(Some(&now), Some(&now)), Vec::<String>::new());
    }
}
