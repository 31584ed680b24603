//! Text into a configuration: strictly first, so that unknown and doubled fields can be told of, then leniently, as upstream does.

use serde_json::Value;
use serde_saphyr::DuplicateKeyPolicy;

use super::document::KubeProxyConfiguration;
use super::{API_VERSION, BadSetting, KIND};

/// A configuration as it was read.
#[derive(Clone, Debug, PartialEq)]
pub struct Decoded {
    /// The configuration; nothing is filled in yet.
    pub config: KubeProxyConfiguration,
    /// What a strict reader would refuse: unknown and doubled fields.
    pub leniences: Vec<String>,
}

/// A text that is no configuration.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadConfiguration {
    /// Not YAML, or a field of the wrong type.
    #[error("failed to decode: {0}")]
    Text(String),
    /// Something else.
    #[error("got unexpected config type: {kind:?} of apiVersion {api_version:?}, not {KIND} of {API_VERSION}")]
    Kind {
        /// Its `kind`.
        kind: String,
        /// Its `apiVersion`.
        api_version: String,
    },
}

/// Reads a configuration file, YAML or JSON.
///
/// # Errors
/// It is neither, of another kind, or a field has the wrong type.
pub fn text(text: &str) -> Result<Decoded, BadConfiguration> {
    let first_line = |error: serde_saphyr::Error| error.to_string().lines().next().unwrap_or_default().to_owned();
    let mut leniences = Vec::new();
    let value = match parse(text, DuplicateKeyPolicy::Error) {
        Ok(value) => value,
        Err(strict) => {
            let value = parse(text, DuplicateKeyPolicy::LastWins).map_err(|error| BadConfiguration::Text(first_line(error)))?;
            leniences.push(first_line(strict));
            value
        }
    };
    let field = |name: &str| value.get(name).and_then(Value::as_str).unwrap_or_default().to_owned();
    let (api_version, kind) = (field("apiVersion"), field("kind"));
    if (api_version.as_str(), kind.as_str()) != (API_VERSION, KIND) {
        return Err(BadConfiguration::Kind { kind, api_version });
    }
    // Where a field may be null the path has a step without a name.
    // A list has fields by position for serde, and for nobody else.
    let list = |(name, value): (&String, &Value)| (value.is_array() && name != "nodePortAddresses").then(|| name.clone());
    if let Some(name) = value.as_object().and_then(|fields| fields.iter().find_map(list)) {
        return Err(BadConfiguration::Text(format!("{name}: a list, where fields are wanted")));
    }
    let mut ignored = |path: serde_ignored::Path<'_>| {
        leniences.push(format!("unknown field \"{}\"", path.to_string().replace(".?", "")));
    };
    let config = serde_path_to_error::deserialize(serde_ignored::Deserializer::new(&value, &mut ignored))
        .map_err(|error| BadConfiguration::Text(format!("{}: {}", error.path(), error.inner())))?;
    Ok(Decoded { config, leniences })
}

fn parse(text: &str, policy: DuplicateKeyPolicy) -> Result<Value, serde_saphyr::Error> {
    serde_saphyr::from_str_with_options(text, serde_saphyr::options! { duplicate_keys: policy })
}

/// Reads a configuration object; unknown fields are passed over.
///
/// # Errors
/// A field of the wrong type, by its path.
pub fn value(value: &Value) -> Result<KubeProxyConfiguration, BadSetting> {
    serde_path_to_error::deserialize(value)
        .map_err(|error| BadSetting { field: error.path().to_string(), cause: error.inner().to_string() })
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEAD: &str = "apiVersion: kubeproxy.config.k8s.io/v1alpha1\nkind: KubeProxyConfiguration\n";

    #[test]
    fn unknown_and_doubled_fields_are_told_and_passed_over() {
        let read =
            text(&format!("{HEAD}mode: ipvs\nmode: iptables\niptables: {{masqueradeBit: 3, bogus: 1}}\nfoo: bar\n")).expect("lenient");
        assert_eq!((read.config.mode.as_str(), read.config.iptables.masquerade_bit), ("iptables", Some(3)));
        assert_eq!(read.leniences.len(), 3, "{:?}", read.leniences);
        assert!(read.leniences[0].contains("duplicate"), "{:?}", read.leniences);
        assert_eq!(read.leniences[1..], ["unknown field \"foo\"", "unknown field \"iptables.bogus\""]);
    }

    #[test]
    fn json_and_null_are_fine() {
        let json = r#"{"apiVersion":"kubeproxy.config.k8s.io/v1alpha1","kind":"KubeProxyConfiguration","iptables":null,
            "nodePortAddresses":null,"logging":{"flushFrequency":5000000000,"options":{"json":{"infoBufferSize":0}}}}"#;
        let read = text(json).expect("JSON");
        assert_eq!(read.leniences, Vec::<String>::new());
        assert_eq!(read.config.logging.flush_frequency.to_string(), "5s");
        assert_eq!(read.config.logging.options.json.info_buffer_size, "0");
    }

    #[test]
    fn what_is_no_configuration_is_refused() {
        for (body, want) in [
            ("bindAddress: [", "failed to decode: "),
            ("bindAddress: ::\n", "failed to decode: "),
            ("iptables: {masqueradeAll: 'yes'}", "failed to decode: iptables.masqueradeAll: "),
            ("iptables: {syncPeriod: soon}", "failed to decode: iptables.syncPeriod: \"soon\" is not a duration (like 30s or 1m30s)"),
            ("iptables: {syncPeriod: 30}", "failed to decode: iptables.syncPeriod: "),
            ("conntrack: [7, 8]", "failed to decode: conntrack: a list, where fields are wanted"),
            ("oomScoreAdj: 99999999999", "failed to decode: oomScoreAdj: "),
        ] {
            let error = text(&format!("{HEAD}{body}")).expect_err(body).to_string();
            assert!(error.starts_with(want), "{body}: {error}");
        }
        let error = text("apiVersion: v1\nkind: ConfigMap\n").expect_err("a ConfigMap").to_string();
        assert!(error.starts_with("got unexpected config type: \"ConfigMap\""), "{error}");
        assert!(text("").is_err() && text("just words").is_err());
    }
}
