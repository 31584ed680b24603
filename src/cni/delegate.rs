//! What the plugin `flannel` has another one do: the configuration that it makes of its own and of subnet.env (spec section 10.2). PURE.

use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::config::Config;
use super::failure::{Code, Failure};
use super::result::or_default;
use super::subnet_env::SubnetEnv;

/// Where the daemon tells of this node's subnet.
pub(super) const SUBNET_FILE: &str = "/run/flannel/subnet.env";
/// Where the configurations of other plugins are kept, one for each container.
const DATA: &str = "/var/lib/cni/flannel";
const BRIDGE: &str = "bridge";

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Keys {
    #[serde(deserialize_with = "or_default")]
    subnet_file: String,
    #[serde(deserialize_with = "or_default")]
    data_dir: String,
    ipam: Option<Map<String, Value>>,
    delegate: Option<Map<String, Value>>,
}

/// What the plugin is told.
#[derive(Clone, Debug, PartialEq)]
pub struct FlannelConfig {
    /// Path of subnet.env.
    pub subnet_file: String,
    /// Folder of the configurations that are kept.
    pub data: String,
    ipam: Map<String, Value>,
    delegate: Map<String, Value>,
}

impl FlannelConfig {
    /// Reads a network's configuration; `defaults` is what the other plugin is told where the configuration says nothing else.
    ///
    /// # Errors
    /// It makes no sense; the words are upstream's.
    pub fn read(config: &Config, defaults: &[(&str, Value)]) -> Result<Self, Failure> {
        let keys: Keys = config.parse()?;
        let given = keys.delegate.unwrap_or_default();
        let bad = |message: &str| Err(Failure::new(Code::BAD_CONFIG, message));
        if given.get("type").is_some_and(|kind| !kind.is_string()) {
            return bad("'delegate' dictionary, if present, must have (string) 'type' field");
        }
        if given.contains_key("name") {
            return bad("'delegate' dictionary must not have 'name' field, it'll be set by flannel");
        }
        if given.contains_key("ipam") {
            return bad("'delegate' dictionary must not have 'ipam' field, it'll be set by flannel");
        }
        let mut delegate: Map<String, Value> = defaults.iter().map(|(key, value)| ((*key).to_owned(), value.clone())).collect();
        delegate.extend(given);
        let or = |text: String, default: &str| if text.is_empty() { default.to_owned() } else { text };
        Ok(Self {
            subnet_file: or(keys.subnet_file, SUBNET_FILE),
            data: or(keys.data_dir, DATA),
            ipam: keys.ipam.unwrap_or_default(),
            delegate,
        })
    }

    /// The other plugin's configuration, but for what only subnet.env can say: enough to disconnect.
    ///
    /// # Errors
    /// It makes no sense.
    pub fn frame(&self, config: &Config) -> Result<Config, Failure> {
        let mut delegate = self.delegate.clone();
        let mut default = |key: &str, value: Value| {
            delegate.entry(key.to_owned()).or_insert(value);
        };
        default("type", json!(BRIDGE));
        let is_bridge = delegate.get("type") == Some(&json!(BRIDGE));
        if is_bridge {
            delegate.entry("isGateway".to_owned()).or_insert(json!(true));
        }
        delegate.insert("name".into(), json!(config.name));
        for key in ["cniVersion", "runtimeConfig"] {
            if let Some(value) = config.all.get(key).filter(|value| !value.is_null()) {
                delegate.insert(key.into(), value.clone());
            }
        }
        let mut ipam = self.ipam.clone();
        ipam.entry("type".to_owned()).or_insert(json!("host-local"));
        delegate.insert("ipam".into(), Value::Object(ipam));
        Config::of(delegate)
    }

    /// The other plugin's whole configuration.
    ///
    /// # Errors
    /// It makes no sense.
    pub fn whole(&self, config: &Config, env: &SubnetEnv) -> Result<Config, Failure> {
        let mut delegate = self.frame(config)?;
        delegate.all.entry("ipMasq".to_owned()).or_insert(json!(!env.masquerade));
        delegate.all.entry("mtu".to_owned()).or_insert(json!(env.mtu));
        let mut ipam = self.ipam.clone();
        ipam.entry("type".to_owned()).or_insert(json!("host-local"));
        let ranges: Vec<Value> = env.subnets.iter().map(|subnet| json!([{"subnet": subnet}])).collect();
        ipam.insert("ranges".into(), json!(ranges));
        let mut routes = match ipam.remove("routes") {
            None | Some(Value::Null) => Vec::new(),
            Some(Value::Array(routes)) => routes,
            Some(_) => return Err(Failure::new(Code::BAD_CONFIG, "ipam: routes is not a list")),
        };
        routes.extend(env.networks.iter().map(|network| json!({"dst": network})));
        ipam.insert("routes".into(), json!(routes));
        delegate.all.insert("ipam".into(), Value::Object(ipam));
        Ok(delegate)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> (Config, Result<FlannelConfig, Failure>) {
        let config = Config::read(text.as_bytes()).expect("a frame");
        let flannel = FlannelConfig::read(&config, &[]);
        (config, flannel)
    }

    fn env() -> SubnetEnv {
        let text = "FLANNEL_NETWORK=10.244.0.0/16\nFLANNEL_SUBNET=10.244.1.1/24\nFLANNEL_MTU=1450\nFLANNEL_IPMASQ=true\n";
        SubnetEnv::read("f", text).expect("good")
    }

    /// Spec section 10.2, rendered.
    #[test]
    fn the_configuration_is_upstreams_to_the_byte() {
        let (config, flannel) = read(
            r#"{"cniVersion":"1.0.0","name":"cbr0","type":"flannel","delegate":{"hairpinMode":true,"isDefaultGateway":true},"prevResult":{},"args":{}}"#,
        );
        let whole = flannel.expect("good").whole(&config, &env()).expect("good");
        assert_eq!(
            Value::Object(whole.all).to_string(),
            r#"{"cniVersion":"1.0.0","hairpinMode":true,"ipMasq":false,"ipam":{"ranges":[[{"subnet":"10.244.1.0/24"}]],"routes":[{"dst":"10.244.0.0/16"}],"type":"host-local"},"isDefaultGateway":true,"isGateway":true,"mtu":1450,"name":"cbr0","type":"bridge"}"#
        );
    }

    #[test]
    fn what_the_configuration_says_stays() {
        let (config, flannel) = read(
            r#"{"name":"n","runtimeConfig":{"mac":"x"},"ipam":{"type":"other","routes":[{"dst":"192.0.2.0/24"}],"ranges":5},"delegate":{"type":"ptp","ipMasq":true,"mtu":1400}}"#,
        );
        let whole = flannel.expect("good").whole(&config, &env()).expect("good");
        assert_eq!(
            Value::Object(whole.all).to_string(),
            r#"{"ipMasq":true,"ipam":{"ranges":[[{"subnet":"10.244.1.0/24"}]],"routes":[{"dst":"192.0.2.0/24"},{"dst":"10.244.0.0/16"}],"type":"other"},"mtu":1400,"name":"n","runtimeConfig":{"mac":"x"},"type":"ptp"}"#
        );
    }

    #[test]
    fn delegates_that_make_no_sense_are_refused() {
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
