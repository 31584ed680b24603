//! The configuration that the plugin `flannel` passes to its delegate, made from its own configuration and subnet.env [flannel 10.2]. PURE.

use crate::pod_network::subnet_env::{SUBNET_FILE, SubnetEnv};
use serde::Deserialize;
use serde_json::{Map, Value, json};

use crate::json_keys::{self, matches};

use super::error::{CniError, ErrorCode};
use super::network_config::NetworkConfig;
use super::result::CniRoute;

/// The default folder of saved delegate configurations, one file per container.
const DATA: &str = "/var/lib/cni/flannel";
const BRIDGE: &str = "bridge";

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Keys {
    cni_version: String,
    subnet_file: String,
    data_dir: String,
    ipam: Option<Map<String, Value>>,
    delegate: Option<Map<String, Value>>,
    runtime_config: Option<Map<String, Value>>,
}

/// The configuration of the plugin `flannel`. The keys of `ipam` and `delegate` are passed on as they are written. As in the reference
/// plugin, a key in another case does not replace a default of this plugin, and the delegate uses the one of both that sorts last.
#[derive(Clone, Debug, PartialEq)]
pub struct FlannelConfig {
    /// Path of subnet.env.
    pub subnet_file: String,
    /// Folder of the saved delegate configurations.
    pub data: String,
    cni_version: String,
    ipam: Map<String, Value>,
    delegate: Map<String, Value>,
    runtime_config: Option<Map<String, Value>>,
}

impl FlannelConfig {
    /// Parses a network configuration. `defaults` are added to the delegate if it does not have these keys.
    ///
    /// # Errors
    /// The configuration is invalid. The messages are upstream's.
    pub fn read(config: &NetworkConfig, defaults: &[(&str, Value)]) -> Result<Self, CniError> {
        let keys: Keys = config.parse()?;
        let mut delegate = keys.delegate.unwrap_or_default();
        let bad = |message: &str| Err(CniError::new(ErrorCode::BAD_CONFIG, message));
        if delegate.get("type").is_some_and(|kind| !kind.is_string()) {
            return bad("'delegate' dictionary, if present, must have (string) 'type' field");
        }
        if delegate.contains_key("name") {
            return bad("'delegate' dictionary must not have 'name' field, it'll be set by flannel");
        }
        if delegate.contains_key("ipam") {
            return bad("'delegate' dictionary must not have 'ipam' field, it'll be set by flannel");
        }
        for (key, value) in defaults {
            if !delegate.keys().any(|given| matches(given, key)) {
                delegate.insert((*key).to_owned(), value.clone());
            }
        }
        let or = |text: String, default: &str| if text.is_empty() { default.to_owned() } else { text };
        Ok(Self {
            subnet_file: or(keys.subnet_file, SUBNET_FILE),
            data: or(keys.data_dir, DATA),
            cni_version: keys.cni_version,
            ipam: keys.ipam.unwrap_or_default(),
            delegate,
            runtime_config: keys.runtime_config,
        })
    }

    /// Returns the delegate's configuration without the values of subnet.env. It is enough for DEL. `masquerade` is the value of `ipMasq`
    /// if the configuration has none.
    ///
    /// # Errors
    /// The configuration is invalid.
    pub fn frame(&self, config: &NetworkConfig, masquerade: bool) -> Result<NetworkConfig, CniError> {
        NetworkConfig::of((&self.document(config, masquerade)).into())
    }

    /// Returns the complete configuration of the delegate.
    ///
    /// # Errors
    /// The configuration is invalid.
    pub fn whole(&self, config: &NetworkConfig, env: &SubnetEnv) -> Result<NetworkConfig, CniError> {
        let mut delegate = self.document(config, !env.masquerade);
        delegate.entry("mtu").or_insert(json!(env.mtu));
        let mut ipam = self.ipam.clone();
        ipam.entry("type").or_insert(json!("host-local"));
        let ranges: Vec<Value> = env.subnets.iter().map(|subnet| json!([{"subnet": subnet}])).collect();
        ipam.insert("ranges".into(), json!(ranges));
        let given = json_keys::from_value(ipam.get("routes").unwrap_or(&Value::Null));
        let mut routes: Vec<CniRoute> =
            given.map_err(|error| CniError::new(ErrorCode::BAD_CONFIG, format!("failed to parse ipam.routes: {error}")))?;
        routes.extend(env.networks.iter().map(|network| CniRoute::new(*network, None)));
        ipam.insert("routes".into(), json!(routes));
        delegate.insert("ipam".into(), Value::Object(ipam));
        NetworkConfig::of((&delegate).into())
    }

    fn document(&self, config: &NetworkConfig, masquerade: bool) -> Map<String, Value> {
        let mut delegate = self.delegate.clone();
        delegate.entry("type").or_insert(json!(BRIDGE));
        delegate.entry("ipMasq").or_insert(json!(masquerade));
        if delegate.get("type") == Some(&json!(BRIDGE)) {
            delegate.entry("isGateway").or_insert(json!(true));
        }
        delegate.insert("name".into(), json!(config.name));
        if !self.cni_version.is_empty() {
            delegate.insert("cniVersion".into(), json!(self.cni_version));
        }
        if let Some(runtime) = &self.runtime_config {
            delegate.insert("runtimeConfig".into(), Value::Object(runtime.clone()));
        }
        let mut ipam = self.ipam.clone();
        ipam.entry("type").or_insert(json!("host-local"));
        delegate.insert("ipam".into(), Value::Object(ipam));
        delegate
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> (NetworkConfig, Result<FlannelConfig, CniError>) {
        let config = NetworkConfig::read(text.as_bytes()).expect("a frame");
        let flannel = FlannelConfig::read(&config, &[]);
        (config, flannel)
    }

    fn env() -> SubnetEnv {
        let text = "FLANNEL_NETWORK=10.244.0.0/16\nFLANNEL_SUBNET=10.244.1.1/24\nFLANNEL_MTU=1450\nFLANNEL_IPMASQ=true\n";
        SubnetEnv::parse("f", text).expect("good")
    }

    /// The example of [flannel 10.2], rendered.
    #[test]
    fn the_configuration_equals_upstreams_byte_for_byte() {
        let (config, flannel) = read(
            r#"{"cniVersion":"1.0.0","name":"cbr0","type":"flannel","delegate":{"hairpinMode":true,"isDefaultGateway":true},"prevResult":{},"args":{}}"#,
        );
        let whole = flannel.expect("good").whole(&config, &env()).expect("good");
        assert_eq!(
            serde_json::to_string(&whole.json()).expect("JSON"),
            r#"{"cniVersion":"1.0.0","hairpinMode":true,"ipMasq":false,"ipam":{"ranges":[[{"subnet":"10.244.1.0/24"}]],"routes":[{"dst":"10.244.0.0/16"}],"type":"host-local"},"isDefaultGateway":true,"isGateway":true,"mtu":1450,"name":"cbr0","type":"bridge"}"#
        );
    }

    #[test]
    fn configured_keys_are_kept() {
        let (config, flannel) = read(
            r#"{"name":"n","runtimeConfig":{"mac":"x"},"ipam":{"type":"other","routes":[{"dst":"192.0.2.0/24"}],"ranges":5},"delegate":{"type":"ptp","ipMasq":true,"mtu":1400}}"#,
        );
        let whole = flannel.expect("good").whole(&config, &env()).expect("good");
        assert_eq!(
            serde_json::to_string(&whole.json()).expect("JSON"),
            r#"{"ipMasq":true,"ipam":{"ranges":[[{"subnet":"10.244.1.0/24"}]],"routes":[{"dst":"192.0.2.0/24"},{"dst":"10.244.0.0/16"}],"type":"other"},"mtu":1400,"name":"n","runtimeConfig":{"mac":"x"},"type":"ptp"}"#
        );
    }

    /// The reference plugin looks for its own keys as they are written, and then writes all keys in their order.
    #[test]
    fn keys_in_another_case_are_passed_on_as_upstream_does() {
        let (config, flannel) = read(
            r#"{"CNIVersion":"1.0.0","Name":"n","RuntimeConfig":{"MAC":"x"},"IPAM":{"Type":"other","Routes":5,"dataDir":"/d"},
                "Delegate":{"hairpinmode":true,"MTU":1400,"IPMasq":true,"isdefaultgateway":true},"delegate":{"hairpinmode":false}}"#,
        );
        let whole = flannel.expect("good").whole(&config, &env()).expect("good");
        assert_eq!(
            serde_json::to_string(&whole.json()).expect("JSON"),
            r#"{"IPMasq":true,"MTU":1400,"cniVersion":"1.0.0","hairpinmode":false,"ipMasq":false,"ipam":{"Routes":5,"Type":"other","dataDir":"/d","ranges":[[{"subnet":"10.244.1.0/24"}]],"routes":[{"dst":"10.244.0.0/16"}],"type":"host-local"},"isGateway":true,"isdefaultgateway":true,"mtu":1450,"name":"n","runtimeConfig":{"MAC":"x"},"type":"bridge"}"#
        );
        let (_, flannel) = read(r#"{"name":"n","delegate":{"Name":"x","IPAM":{}}}"#);
        assert!(flannel.is_ok());
        let (config, flannel) = read(r#"{"name":"n","ipam":{"routes":[{"Dst":"192.0.2.0/24","GW":"","more":1}]}}"#);
        let whole = flannel.expect("good").whole(&config, &env()).expect("good");
        let text = serde_json::to_string(&whole.json()).expect("JSON");
        assert!(text.contains(r#""routes":[{"dst":"192.0.2.0/24"},{"dst":"10.244.0.0/16"}]"#), "{text}");
        // The defaults of the plugin `sepal` are replaced by a key in any case.
        let config = NetworkConfig::read(br#"{"name":"n","delegate":{"HairpinMode":false}}"#).expect("a frame");
        let combined = FlannelConfig::read(&config, &[("hairpinMode", json!(true)), ("isDefaultGateway", json!(true))]).expect("good");
        assert_eq!(Value::Object(combined.delegate), json!({"HairpinMode": false, "isDefaultGateway": true}));
    }

    #[test]
    fn invalid_delegates_are_refused() {
        for (delegate, words) in [
            (r#"{"type":5}"#, "'delegate' dictionary, if present, must have (string) 'type' field"),
            (r#"{"name":"x"}"#, "'delegate' dictionary must not have 'name' field, it'll be set by flannel"),
            (r#"{"ipam":{}}"#, "'delegate' dictionary must not have 'ipam' field, it'll be set by flannel"),
            ("5", "failed to load netconf: delegate: invalid type: integer `5`, expected a map"),
        ] {
            let (_, flannel) = read(&format!(r#"{{"name":"n","delegate":{delegate}}}"#));
            assert_eq!(flannel.expect_err(delegate).message, words);
        }
    }
}
