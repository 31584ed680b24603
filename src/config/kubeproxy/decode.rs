//! Reads a configuration from text. As in kube-proxy, unknown fields and duplicate fields only cause warnings.

use serde_json::Value;
use serde_saphyr::DuplicateKeyPolicy;

use super::document::KubeProxyConfiguration;
use super::{API_VERSION, KIND};
use crate::bad_setting::BadSetting;
use crate::config::yaml::{self, BadYaml};

/// A configuration that was read from text.
#[derive(Clone, Debug, PartialEq)]
pub struct Decoded {
    /// The configuration, without defaults.
    pub config: KubeProxyConfiguration,
    /// Unknown and duplicate fields.
    pub warnings: Vec<String>,
}

/// Why a text is not a configuration.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadConfiguration {
    /// It is not YAML, or a field has the wrong type.
    #[error("failed to decode: {0}")]
    Text(String),
    /// The first document is empty.
    #[error("the first document is empty: it has to be a {KIND} of {API_VERSION}")]
    Empty,
    /// The first document is of another kind.
    #[error(
        "got unexpected config type: {kind:?} of apiVersion {api_version:?}, not {KIND} of {API_VERSION}. Only the first document of the file is read"
    )]
    Kind {
        /// Its `kind`.
        kind: String,
        /// Its `apiVersion`.
        api_version: String,
    },
}

impl From<BadYaml> for BadConfiguration {
    fn from(bad: BadYaml) -> Self {
        Self::Text(bad.to_string())
    }
}

/// Reads a configuration file, YAML or JSON. As in kube-proxy, only the first document of a YAML file is read. A file that begins with `{`
/// is JSON and holds one object.
///
/// # Errors
/// It is neither YAML nor JSON, it is of another kind, or a field has the wrong type.
pub fn file(bytes: &[u8]) -> Result<Decoded, BadConfiguration> {
    let json = bytes.trim_ascii_start().starts_with(b"{");
    let text = yaml::decode(bytes)?;
    let (value, duplicate) = if json { json_value(&text)? } else { yaml_value(yaml::first_document(&text))? };
    if value.is_null() {
        return Err(BadConfiguration::Empty);
    }
    let mut warnings: Vec<String> = duplicate.map(|bad| bad.to_string()).into_iter().collect();
    let field = |name: &str| value.get(name).and_then(Value::as_str).unwrap_or_default().to_owned();
    let (api_version, kind) = (field("apiVersion"), field("kind"));
    if (api_version.as_str(), kind.as_str()) != (API_VERSION, KIND) {
        return Err(BadConfiguration::Kind { kind, api_version });
    }
    let Decoded { config, warnings: unknown } = value_with_warnings(&value).map_err(|bad| BadConfiguration::Text(bad.to_string()))?;
    warnings.extend(unknown);
    Ok(Decoded { config, warnings })
}

/// Parses one YAML document. Returns also an error about its first duplicate key.
fn yaml_value(text: &str) -> Result<(Value, Option<BadYaml>), BadYaml> {
    match yaml::parse(text, DuplicateKeyPolicy::Error) {
        Ok(value) => Ok((value, None)),
        Err(strict) => Ok((yaml::parse(text, DuplicateKeyPolicy::LastWins)?, Some(strict))),
    }
}

/// Parses a JSON text. Returns also an error about its first duplicate key.
fn json_value(text: &str) -> Result<(Value, Option<BadYaml>), BadYaml> {
    let mut values = serde_json::Deserializer::from_str(text).into_iter::<Value>();
    let bad = |line, cause: String| BadYaml { line, cause };
    let value = match values.next() {
        Some(Ok(value)) => value,
        Some(Err(error)) => {
            let cause = error.to_string();
            let cause = cause.split(" at line ").next().unwrap_or_default();
            return Err(bad(error.line(), format!("{cause} (a file that begins with {{ is read as JSON)")));
        }
        None => return Ok((Value::Null, None)),
    };
    let (before, after) = text.split_at(values.byte_offset());
    if let Some(blank) = after.find(|c: char| !c.is_ascii_whitespace()) {
        let line = before.matches('\n').count() + after[..blank].matches('\n').count() + 1;
        return Err(bad(line, "text follows the JSON object: a JSON file holds one object and nothing else".into()));
    }
    // Nearly all JSON is also YAML, and the YAML parser finds duplicate keys.
    let duplicate = yaml_value(text).ok().and_then(|(_, duplicate)| duplicate);
    Ok((value, duplicate))
}

/// Reads a configuration object, and collects its unknown fields.
///
/// # Errors
/// A field has the wrong type. The error has its path.
pub fn value_with_warnings(value: &Value) -> Result<Decoded, BadSetting> {
    // serde would accept a list in place of a section, with the fields by position.
    let list = |(name, value): (&String, &Value)| (value.is_array() && name != "nodePortAddresses").then(|| name.clone());
    if let Some(field) = value.as_object().and_then(|fields| fields.iter().find_map(list)) {
        return Err(BadSetting { field, cause: "a list, where fields are wanted".into() });
    }
    let mut warnings = Vec::new();
    // In a field that may be null, the path has a step without a name.
    let mut ignored = |path: serde_ignored::Path<'_>| {
        warnings.push(format!("unknown field \"{}\"", path.to_string().replace(".?", "")));
    };
    let config = serde_path_to_error::deserialize(serde_ignored::Deserializer::new(value, &mut ignored))
        .map_err(|error| BadSetting { field: error.path().to_string(), cause: error.inner().to_string() })?;
    Ok(Decoded { config, warnings })
}

/// Reads a configuration object. Unknown fields are ignored.
///
/// # Errors
/// A field has the wrong type. The error has its path.
pub fn value(value: &Value) -> Result<KubeProxyConfiguration, BadSetting> {
    value_with_warnings(value).map(|decoded| decoded.config)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file_text(text: &str) -> Result<Decoded, BadConfiguration> {
        file(text.as_bytes())
    }

    const HEAD: &str = "apiVersion: kubeproxy.config.k8s.io/v1alpha1\nkind: KubeProxyConfiguration\n";

    #[test]
    fn unknown_and_duplicate_fields_cause_warnings() {
        let read =
            file_text(&format!("{HEAD}mode: ipvs\nmode: iptables\niptables: {{masqueradeBit: 3, bogus: 1}}\nfoo: bar\n")).expect("lenient");
        assert_eq!((read.config.mode.as_str(), read.config.iptables.masquerade_bit), ("iptables", Some(3)));
        assert_eq!(read.warnings.len(), 3, "{:?}", read.warnings);
        assert!(read.warnings[0].contains("duplicate"), "{:?}", read.warnings);
        assert_eq!(read.warnings[1..], ["unknown field \"foo\"", "unknown field \"iptables.bogus\""]);
    }

    #[test]
    fn json_and_null_are_accepted() {
        let json = r#"{"apiVersion":"kubeproxy.config.k8s.io/v1alpha1","kind":"KubeProxyConfiguration","iptables":null,
            "nodePortAddresses":null,"logging":{"flushFrequency":5000000000,"options":{"json":{"infoBufferSize":0}}}}"#;
        let read = file_text(json).expect("JSON");
        assert_eq!(read.warnings, Vec::<String>::new());
        assert_eq!(read.config.logging.flush_frequency.to_string(), "5s");
        assert_eq!(read.config.logging.options.json.info_buffer_size, "0");
    }

    #[test]
    fn a_text_that_is_not_a_configuration_is_refused() {
        for (body, want) in [
            ("bindAddress: [", "failed to decode: "),
            ("bindAddress: ::\n", "failed to decode: "),
            ("iptables: {masqueradeAll: 'yes'}", "failed to decode: iptables.masqueradeAll: "),
            ("iptables: {syncPeriod: soon}", "failed to decode: iptables.syncPeriod: \"soon\" is not a duration (like 30s or 1m30s)"),
            ("iptables: {syncPeriod: 30}", "failed to decode: iptables.syncPeriod: "),
            ("conntrack: [7, 8]", "failed to decode: conntrack: a list, where fields are wanted"),
            ("oomScoreAdj: 99999999999", "failed to decode: oomScoreAdj: "),
        ] {
            let error = file_text(&format!("{HEAD}{body}")).expect_err(body).to_string();
            assert!(error.starts_with(want), "{body}: {error}");
        }
        let error = file_text("apiVersion: v1\nkind: ConfigMap\n").expect_err("a ConfigMap").to_string();
        assert!(error.starts_with("got unexpected config type: \"ConfigMap\""), "{error}");
        assert!(file_text("").is_err() && file_text("just words").is_err());
    }

    #[test]
    fn only_the_first_document_is_read() {
        let good = "clusterCIDR: 10.244.0.0/16\n";
        for (before, after) in [
            ("", "---\n"),
            ("", "---"),
            ("", "---\n# nothing more\n"),
            ("", "---\n---\n\n"),
            ("", "...\n"),
            ("", "---\napiVersion: kubelet.config.k8s.io/v1beta1\nkind: KubeletConfiguration\n"),
            ("", "---\napiVersion: kubeproxy.config.k8s.io/v1alpha1\nkind: KubeProxyConfiguration\nclusterCIDR: 10.1.0.0/16\n"),
            ("", "---\nnot: [yaml\n"),
            ("---\n", "---\n"),
            ("\n# note\n\n---\n", ""),
            ("%YAML 1.1\n---\n", "---\n"),
            ("\u{feff}", "---\n"),
            ("\u{feff}---\n", ""),
        ] {
            let file = format!("{before}{HEAD}{good}{after}");
            for file in [file.clone(), file.replace('\n', "\r\n")] {
                let read = file_text(&file).unwrap_or_else(|error| panic!("{file:?}: {error}"));
                assert_eq!((read.config.cluster_cidr.as_str(), read.warnings.len()), ("10.244.0.0/16", 0), "{file:?}");
            }
        }
    }

    #[test]
    fn a_first_document_of_another_kind_is_refused_and_its_kind_is_named() {
        let kubelet = "apiVersion: kubelet.config.k8s.io/v1beta1\nkind: KubeletConfiguration\n";
        for file in [format!("{kubelet}---\n{HEAD}"), format!("---\n{kubelet}---\n{HEAD}")] {
            let error = file_text(&file).expect_err("a kubelet's configuration").to_string();
            assert!(error.contains("\"KubeletConfiguration\" of apiVersion \"kubelet.config.k8s.io/v1beta1\""), "{error}");
            assert!(error.ends_with("Only the first document of the file is read"), "{error}");
        }
        // As in kube-proxy, an empty document counts as the first document.
        for file in [format!("---\n---\n{HEAD}"), format!("---\n# note\n---\n{HEAD}"), "# note\n".into(), String::new()] {
            assert_eq!(file_text(&file), Err(BadConfiguration::Empty), "{file:?}");
        }
    }

    #[test]
    fn a_json_file_holds_one_object() {
        let json = r#"{"apiVersion": "kubeproxy.config.k8s.io/v1alpha1", "kind": "KubeProxyConfiguration", "mode": "iptables"}"#;
        for good in [format!("{json}\n"), format!("\n\t{json}\n\n"), json.replace("\"mode\"", "\"mode\": \"\",\n\"mode\"")] {
            assert_eq!(file_text(&good).map(|read| read.config.mode), Ok("iptables".into()), "{good}");
        }
        let duplicate = file_text(&json.replace("\"mode\"", "\"mode\": \"\",\n\"mode\"")).expect("the last one counts");
        assert!(duplicate.warnings.len() == 1 && duplicate.warnings[0].starts_with("line 2: duplicate"), "{:?}", duplicate.warnings);
        for (bad, want) in [
            (
                format!("{json}\n---\n"),
                "failed to decode: line 2: text follows the JSON object: a JSON file holds one object and nothing else",
            ),
            (format!("{json}\n\n{json}"), "failed to decode: line 3: text follows the JSON object"),
            ("{apiVersion: v1}".into(), "failed to decode: line 1: key must be a string (a file that begins with { is read as JSON)"),
        ] {
            let error = file_text(&bad).expect_err(&bad).to_string();
            assert!(error.starts_with(want), "{error}");
        }
    }
}
