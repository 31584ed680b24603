//! A network's configuration, as a runtime gives it to a plugin (spec section 10.1). PURE.

use std::collections::BTreeSet;

use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

use super::failure::{Code, Failure};
use super::protocol::{Attachment, is_identifier};
use super::result::Outcome;
use super::version::Version;

/// More than any configuration has, in bytes.
pub const MOST: usize = 8 * 1024 * 1024;
/// The key under which GC gets the attachments that are still there.
const VALID: &str = "cni.dev/valid-attachments";

/// A configuration whose frame is right: it has a name, and a version that is spoken here.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    /// Name of the network.
    pub name: String,
    /// Version of the specification that it keeps to.
    pub version: Version,
    /// All of it, keys that nobody here knows included.
    pub all: Map<String, Value>,
}

impl Config {
    /// Reads a configuration.
    ///
    /// # Errors
    /// It is no JSON object (6), has no good name (7), or is of an unknown version (1).
    pub fn read(text: &[u8]) -> Result<Self, Failure> {
        let decode = |error: &dyn std::fmt::Display| Failure::new(Code::DECODE, format!("error unmarshall network config: {error}"));
        if text.len() > MOST {
            return Err(decode(&format!("it has more than {} MiB", MOST / 1024 / 1024)));
        }
        let all: Map<String, Value> = serde_json::from_slice(text).map_err(|error| decode(&error))?;
        Self::of(all)
    }

    /// Takes a configuration that is put together already.
    ///
    /// # Errors
    /// As [`Config::read`].
    pub fn of(all: Map<String, Value>) -> Result<Self, Failure> {
        let text = |key: &str| match all.get(key) {
            None | Some(Value::Null) => Ok(String::new()),
            Some(Value::String(text)) => Ok(text.clone()),
            Some(_) => Err(Failure::new(Code::DECODE, format!("error unmarshall network config: {key:?} is not a string"))),
        };
        let (name, version) = (text("name")?, text("cniVersion")?);
        if name.is_empty() {
            return Err(Failure::new(Code::BAD_CONFIG, "missing network name"));
        }
        if !is_identifier(&name) {
            return Err(Failure { details: name, ..Failure::new(Code::BAD_CONFIG, "invalid characters found in network name") });
        }
        Ok(Self { name, version: Version::named(&version)?, all })
    }

    /// The plugin that it is for.
    #[must_use]
    pub fn kind(&self) -> &str {
        self.text("type")
    }

    /// A text at the top of it; empty where there is none.
    #[must_use]
    pub fn text(&self, key: &str) -> &str {
        self.all.get(key).and_then(Value::as_str).unwrap_or_default()
    }

    /// What one plugin understands of it.
    ///
    /// # Errors
    /// A value is of the wrong type; number 7.
    pub fn parse<T: DeserializeOwned>(&self) -> Result<T, Failure> {
        parse(Value::Object(self.all.clone()), "failed to load netconf")
    }

    /// The result of the plugins before this one.
    ///
    /// # Errors
    /// It is there and makes no sense.
    pub fn previous(&self) -> Result<Option<Outcome>, Failure> {
        match self.all.get("prevResult") {
            None | Some(Value::Null) => Ok(None),
            Some(value) => Outcome::parse(value).map(Some).map_err(|failure| failure.within("could not parse prevResult")),
        }
    }

    /// The attachments that GC has to leave alone.
    ///
    /// # Errors
    /// They are not there: then nobody knows what may go.
    pub fn valid(&self) -> Result<BTreeSet<Attachment>, Failure> {
        #[derive(Deserialize)]
        struct Valid {
            #[serde(rename = "containerID")]
            container: String,
            ifname: String,
        }
        let missing = || Failure::new(Code::BAD_CONFIG, format!("{VALID:?} is missing: without it nobody knows what may go"));
        let list = self.all.get(VALID).ok_or_else(missing)?;
        let list: Option<Vec<Valid>> = parse(list.clone(), VALID)?;
        Ok(list.into_iter().flatten().map(|valid| Attachment { container: valid.container, interface: valid.ifname }).collect())
    }
}

/// Decodes a part of a configuration.
///
/// # Errors
/// A value is of the wrong type; number 7, with these words before it.
pub fn parse<T: DeserializeOwned>(value: Value, words: &str) -> Result<T, Failure> {
    serde_path_to_error::deserialize(value).map_err(|error| {
        let path = error.path().to_string();
        let place = if path == "." { String::new() } else { format!("{path}: ") };
        Failure::new(Code::BAD_CONFIG, format!("{words}: {place}{}", error.into_inner()))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn refused(text: &str) -> (u32, String) {
        let failure = Config::read(text.as_bytes()).expect_err(text);
        (failure.code.0, failure.message)
    }

    #[test]
    fn frames_that_are_wrong_have_their_numbers() {
        for (text, code, words) in [
            ("", 6, "error unmarshall network config: EOF"),
            ("[]", 6, "error unmarshall network config: invalid type"),
            ("{\"name\": 5}", 6, "error unmarshall network config: \"name\" is not a string"),
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
        assert!(refused(&" ".repeat(MOST + 1)).1.ends_with("it has more than 8 MiB"));
    }

    #[test]
    fn valid_attachments_have_to_be_told() {
        let valid = |text: &str| Config::read(format!("{{\"name\": \"a\"{text}}}").as_bytes()).expect("a frame").valid();
        assert_eq!(valid("").expect_err("missing").code, Code::BAD_CONFIG);
        assert!(valid(", \"cni.dev/valid-attachments\": null").expect("none").is_empty());
        let one = valid(", \"cni.dev/valid-attachments\": [{\"containerID\": \"c\", \"ifname\": \"eth0\", \"more\": 1}]").expect("one");
        assert_eq!(one.into_iter().map(|valid| valid.container).collect::<Vec<_>>(), ["c"]);
        assert!(valid(", \"cni.dev/valid-attachments\": [5]").expect_err("bad").message.contains("[0]"));
    }

    proptest! {
        /// Whatever comes in on standard input, it is taken or refused.
        #[test]
        fn nothing_that_comes_in_panics(noise in proptest::collection::vec(any::<u8>(), 0..200), at in 0..400_usize, with in any::<u8>()) {
            let _ = Config::read(&noise);
            let mut bent = br#"{"cniVersion":"1.1.0","name":"cbr0","type":"sepal","delegate":{"mtu":1400},"prevResult":{"ips":[{"address":"10.0.0.2/24","interface":0}],"interfaces":[{"name":"eth0","sandbox":"/n"}]},"cni.dev/valid-attachments":[{"containerID":"a","ifname":"b"}]}"#.to_vec();
            if let Some(byte) = bent.get_mut(at) {
                *byte = with;
            }
            if let Ok(config) = Config::read(&bent) {
                let _ = (config.previous(), config.valid(), config.kind());
            }
        }
    }
}
