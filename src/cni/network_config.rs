//! The network configuration that a runtime passes to a plugin [flannel 10.1]. PURE.

use std::collections::BTreeSet;

use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

use crate::json_keys::{Json, matches};

use super::error::{CniError, ErrorCode, parse};
use super::request::{Attachment, is_identifier};
use super::result::CniResult;
use super::version::CniVersion;

/// The largest accepted configuration in bytes.
pub(crate) const MAX_CONFIG_LEN: usize = 8 * 1024 * 1024;
/// The key that lists the valid attachments for GC.
const VALID_ATTACHMENTS: &str = "cni.dev/valid-attachments";

/// A configuration with a name and a version that this plugin supports. Keys match in any case, because the reference plugins are written
/// in Go.
#[derive(Clone, Debug, PartialEq)]
pub struct NetworkConfig {
    /// The network's name.
    pub name: String,
    /// The version of the CNI specification that it follows.
    pub version: CniVersion,
    /// The plugin's type.
    kind: String,
    /// All keys and values in their order, also those that this program does not use.
    entries: Vec<(String, Json)>,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct RequiredKeys {
    name: String,
    cni_version: String,
    #[serde(rename = "type")]
    kind: Value,
}

impl NetworkConfig {
    /// Parses a configuration.
    ///
    /// # Errors
    /// The text is not a JSON object (code 6), the name is missing or invalid (code 7), or the version is not supported (code 1).
    pub fn read(text: &[u8]) -> Result<Self, CniError> {
        if text.len() > MAX_CONFIG_LEN {
            return Err(decode_error(&format!("it has more than {} MiB", MAX_CONFIG_LEN / 1024 / 1024)));
        }
        Self::of(serde_json::from_slice(text).map_err(|error| decode_error(&error))?)
    }

    /// Checks a configuration that another plugin built.
    ///
    /// # Errors
    /// As for [`NetworkConfig::read`].
    pub fn of(json: Json) -> Result<Self, CniError> {
        let frame: RequiredKeys = serde_path_to_error::deserialize(json.decoder()).map_err(|error| decode_error(&error))?;
        if frame.name.is_empty() {
            return Err(CniError::new(ErrorCode::BAD_CONFIG, "missing network name"));
        }
        if !is_identifier(&frame.name) {
            return Err(CniError {
                details: frame.name,
                ..CniError::new(ErrorCode::BAD_CONFIG, "invalid characters found in network name")
            });
        }
        let version = CniVersion::named(&frame.cni_version)?;
        let kind = frame.kind.as_str().unwrap_or_default().to_owned();
        let Json::Object(entries) = json else { return Err(decode_error(&"it is not an object")) };
        Ok(Self { name: frame.name, version, kind, entries })
    }

    /// Returns the plugin's type.
    #[must_use]
    pub fn kind(&self) -> &str {
        &self.kind
    }

    /// Returns true if the configuration has a key.
    #[must_use]
    pub fn has(&self, key: &str) -> bool {
        self.entries.iter().any(|(found, _)| matches(found, key))
    }

    /// Sets a key.
    pub fn set(&mut self, key: &str, value: &Value) {
        self.entries.retain(|(found, _)| !matches(found, key));
        self.entries.push((key.to_owned(), value.into()));
    }

    /// Copies the keys that the runtime adds for GC.
    pub(crate) fn copy_gc_keys(&mut self, from: &Self) {
        let is_for_gc = |key: &str| key.to_ascii_lowercase().starts_with("cni.dev/");
        self.entries.extend(from.entries.iter().filter(|(key, _)| is_for_gc(key)).cloned());
    }

    /// Returns the whole document.
    #[must_use]
    pub fn json(&self) -> Json {
        Json::Object(self.entries.clone())
    }

    /// Decodes the keys that one plugin uses.
    ///
    /// # Errors
    /// A value has the wrong type: code 7.
    pub fn parse<T: DeserializeOwned>(&self) -> Result<T, CniError> {
        parse(&self.json(), "failed to load netconf")
    }

    /// Returns `prevResult` as it is written.
    ///
    /// # Errors
    /// It is not an object.
    pub(crate) fn previous_document(&self) -> Result<Option<Map<String, Value>>, CniError> {
        #[derive(Default, Deserialize)]
        #[serde(rename_all = "camelCase", default)]
        struct Previous {
            prev_result: Option<Map<String, Value>>,
        }
        self.parse::<Previous>().map(|found| found.prev_result)
    }

    /// Returns `prevResult`, the result of the earlier plugins of the list.
    ///
    /// # Errors
    /// It is invalid.
    pub fn previous(&self) -> Result<Option<CniResult>, CniError> {
        let result = self.previous_document()?.map(|document| CniResult::parse(&(&document).into()));
        result.transpose().map_err(|error| error.within("could not parse prevResult"))
    }

    /// Returns the valid attachments, which GC keeps.
    ///
    /// # Errors
    /// The list is missing, so the plugin cannot know what to remove.
    pub fn valid(&self) -> Result<BTreeSet<Attachment>, CniError> {
        #[derive(Default, Deserialize)]
        #[serde(default)]
        struct Listed {
            #[serde(rename = "cni.dev/valid-attachments")]
            valid: Vec<Valid>,
        }
        #[derive(Default, Deserialize)]
        #[serde(default)]
        struct Valid {
            #[serde(rename = "containerID")]
            container: String,
            ifname: String,
        }
        if !self.has(VALID_ATTACHMENTS) {
            return Err(CniError::new(
                ErrorCode::BAD_CONFIG,
                format!("{VALID_ATTACHMENTS:?} is missing: GC needs the list of valid attachments"),
            ));
        }
        let listed: Listed = self.parse()?;
        Ok(listed.valid.into_iter().map(|valid| Attachment { container: valid.container, interface: valid.ifname }).collect())
    }
}

fn decode_error(error: &dyn std::fmt::Display) -> CniError {
    CniError::new(ErrorCode::DECODE, format!("error unmarshall network config: {error}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn refused(text: &str) -> (u32, String) {
        let error = NetworkConfig::read(text.as_bytes()).expect_err(text);
        (error.code.0, error.message)
    }

    #[test]
    fn invalid_configurations_have_their_error_codes() {
        for (text, code, words) in [
            ("", 6, "error unmarshall network config: EOF"),
            ("[]", 6, "error unmarshall network config: invalid type"),
            ("{\"name\": 5}", 6, "error unmarshall network config: name: invalid type: integer `5`, expected a string"),
            ("null", 7, "missing network name"),
            ("{}", 7, "missing network name"),
            ("{\"name\": \"a/b\"}", 7, "invalid characters found in network name"),
            ("{\"name\": \"..\"}", 7, "invalid characters found in network name"),
            ("{\"name\": \"a\", \"cniVersion\": \"9.9.9\"}", 1, "incompatible CNI versions"),
        ] {
            let (found, message) = refused(text);
            assert!(found == code && message.starts_with(words), "{text}: {found} {message}");
        }
        let deep = format!("{{\"name\": \"a\", \"x\": {}{}}}", "[".repeat(100_000), "]".repeat(100_000));
        assert_eq!(refused(&deep).0, 6);
        assert!(refused(&" ".repeat(MAX_CONFIG_LEN + 1)).1.ends_with("it has more than 8 MiB"));
    }

    #[test]
    fn gc_needs_the_list_of_valid_attachments() {
        let valid = |text: &str| NetworkConfig::read(format!("{{\"name\": \"a\"{text}}}").as_bytes()).expect("a frame").valid();
        assert_eq!(valid("").expect_err("missing").code, ErrorCode::BAD_CONFIG);
        assert!(valid(", \"cni.dev/valid-attachments\": null").expect("none").is_empty());
        let one = valid(", \"cni.dev/valid-attachments\": [{\"containerID\": \"c\", \"ifname\": \"eth0\", \"more\": 1}]").expect("one");
        assert_eq!(one.into_iter().map(|valid| valid.container).collect::<Vec<_>>(), ["c"]);
        assert!(valid(", \"cni.dev/valid-attachments\": [5]").expect_err("bad").message.contains("[0]"));
    }

    proptest! {
        /// Any input is accepted or refused, without a panic.
        #[test]
        fn nothing_that_comes_in_panics(noise in proptest::collection::vec(any::<u8>(), 0..200), at in 0..400_usize, with in any::<u8>()) {
            let _ = NetworkConfig::read(&noise);
            let mut bent = br#"{"cniVersion":"1.1.0","name":"cbr0","type":"sepal","delegate":{"mtu":1400},"prevResult":{"ips":[{"address":"10.0.0.2/24","interface":0}],"interfaces":[{"name":"eth0","sandbox":"/n"}]},"cni.dev/valid-attachments":[{"containerID":"a","ifname":"b"}]}"#.to_vec();
            if let Some(byte) = bent.get_mut(at) {
                *byte = with;
            }
            if let Ok(config) = NetworkConfig::read(&bent) {
                let _ = (config.previous(), config.valid(), config.kind());
            }
        }
    }
}
