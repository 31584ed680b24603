//! Finds the network configuration that a container runtime uses. containerd and CRI-O read the folder with libcni: files that end in
//! `.conf`, `.conflist` or `.json`, sorted by name. The first valid file defines the pods' network. PURE.

use std::fmt;

use serde::Deserialize;
use serde_json::{Map, Value};

use super::subnet_env::SUBNET_FILE;
use crate::json_keys;

/// Names of other plugins that this program replaces.
pub(crate) const OTHER_NAMES: [&str; 5] = ["flannel", "bridge", "host-local", "portmap", "loopback"];

/// The plugin's own name.
pub(crate) const OWN_NAME: &str = "sepal";

/// Extensions of the files that a runtime reads.
const ENDINGS: [&str; 3] = [".conf", ".conflist", ".json"];
/// Plugins that call the plugins of another file.
const DELEGATING: [&str; 4] = ["multus", "multus-shim", "genie", "danm"];

/// A file in the folder.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConfFile {
    /// Its name.
    pub name: String,
    /// Its content, or why it cannot be read.
    pub content: Result<Vec<u8>, String>,
}

/// Returns true if runtimes read a file of this name.
#[must_use]
pub(crate) fn is_read(name: &str) -> bool {
    ENDINGS.iter().any(|ending| name.ends_with(ending))
}

/// The network that a configuration gives to pods.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CniConfNetwork {
    /// This node's pod network, set up by the plugin `sepal`.
    Sepal,
    /// This node's pod network, set up by the plugin `flannel`, which reads the same subnet.env.
    Flannel,
    /// Unknown, because the plugin delegates to the configurations of other files.
    Delegated,
    /// The subnet of another subnet.env, at this path.
    OtherSubnet(String),
    /// Another network.
    Other,
}

/// A valid configuration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CniConf {
    /// Name of the file.
    pub file: String,
    /// Name of the network.
    pub network: String,
    /// Types of its plugins, in their order.
    pub plugins: Vec<String>,
    /// The network that it gives to pods.
    pub serves: CniConfNetwork,
}

/// The configuration that a runtime uses from a folder.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CniConfChoice {
    /// The first valid configuration.
    pub first: Option<CniConf>,
    /// The invalid files before it, each with the cause.
    pub invalid: Vec<(String, String)>,
}

/// A problem with the folder, for the operator.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CniConfFinding {
    /// What runtimes do now.
    pub found: String,
    /// What to do about it.
    pub cure: String,
    /// Pods get this node's pod network nevertheless.
    pub served: bool,
}

impl fmt::Display for CniConfFinding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}. What to do: {}", self.found, self.cure)
    }
}

/// Finds the configuration that a runtime uses. `subnet_file` is the path that this program writes.
#[must_use]
pub fn choose(mut files: Vec<ConfFile>, subnet_file: &str) -> CniConfChoice {
    files.sort_by(|one, other| one.name.cmp(&other.name));
    let mut choice = CniConfChoice::default();
    for ConfFile { name, content } in files.into_iter().filter(|file| is_read(&file.name)) {
        match content.and_then(|text| parse(&name, &text, subnet_file)) {
            Ok(valid) => {
                choice.first = Some(valid);
                break;
            }
            Err(cause) => choice.invalid.push((name, cause)),
        }
    }
    choice
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Plugin {
    #[serde(rename = "type")]
    kind: String,
    name: String,
    subnet_file: String,
}

/// Parses a file as libcni does: keys of a list are case-sensitive, keys of a plugin are not.
fn parse(file: &str, text: &[u8], subnet_file: &str) -> Result<CniConf, String> {
    let (network, plugins) = if file.ends_with(".conflist") {
        let list: Map<String, Value> = serde_json::from_slice(text).map_err(|error| error.to_string())?;
        let Some(network) = list.get("name").and_then(Value::as_str) else { return Err("it has no name".to_owned()) };
        let plugins = list.get("plugins").and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
        let plugins = plugins.iter().map(json_keys::from_value).collect::<Result<Vec<Plugin>, _>>().map_err(|error| error.to_string())?;
        (network.to_owned(), plugins)
    } else {
        let plugin: Plugin = json_keys::from_slice(text).map_err(|error| error.to_string())?;
        (plugin.name.clone(), vec![plugin])
    };
    let Some(first) = plugins.first() else { return Err("it has no plugins".to_owned()) };
    if plugins.iter().any(|plugin| plugin.kind.is_empty()) {
        return Err("a plugin has no type".to_owned());
    }
    let read = if first.subnet_file.is_empty() { SUBNET_FILE } else { &first.subnet_file };
    let serves = match first.kind.as_str() {
        "sepal" | "flannel" if read != subnet_file => CniConfNetwork::OtherSubnet(read.to_owned()),
        "sepal" => CniConfNetwork::Sepal,
        "flannel" => CniConfNetwork::Flannel,
        kind if DELEGATING.contains(&kind) => CniConfNetwork::Delegated,
        _ => CniConfNetwork::Other,
    };
    Ok(CniConf { file: file.to_owned(), network, plugins: plugins.into_iter().map(|plugin| plugin.kind).collect(), serves })
}

impl CniConfChoice {
    /// The problem to report to the operator, if any. `own` is the name of this program's file in the folder.
    #[must_use]
    pub fn finding(&self, folder: &str, own: &str, subnet_file: &str) -> Option<CniConfFinding> {
        let (mut found, mut cures) = (Vec::new(), Vec::new());
        for (file, cause) in &self.invalid {
            found.push(format!("{folder}/{file} is not valid ({cause}): containerd gives pods no network, CRI-O skips the file"));
            cures.push(format!("correct {file} or move it out of the folder"));
        }
        let other = self.first.as_ref().filter(|first| first.serves != CniConfNetwork::Sepal);
        if let Some(CniConf { file, network, plugins, serves }) = other {
            let (effect, cure) = match serves {
                CniConfNetwork::Sepal | CniConfNetwork::Flannel => (
                    "pods get this node's subnet by the plugin flannel".to_owned(),
                    format!("move {file} out of the folder when the flannel DaemonSet, which writes it at each start, is gone"),
                ),
                CniConfNetwork::Delegated => {
                    ("its plugin may delegate to other files".to_owned(), format!("see that the default network of {file} is {own}"))
                }
                CniConfNetwork::OtherSubnet(read) => (
                    format!("it reads {read}, and sepal writes {subnet_file}"),
                    format!("move {file} out of the folder, or set --subnet-file={read}"),
                ),
                CniConfNetwork::Other => ("pods do not get sepal's network".to_owned(), format!("move {file} out of the folder")),
            };
            let plugins = plugins.join(", ");
            found.push(format!(
                "container runtimes use {folder}/{file} (network {network}, plugins: {plugins}) and not {own}, because its name sorts \
                 first; {effect}"
            ));
            cures.push(cure);
        }
        let served = other.is_none_or(|other| matches!(other.serves, CniConfNetwork::Flannel | CniConfNetwork::Delegated));
        (!found.is_empty()).then(|| CniConfFinding { found: found.join("; "), cure: cures.join("; "), served })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const OWN: &str = "10-sepal.conflist";

    fn files(files: &[(&str, &str)]) -> Vec<ConfFile> {
        files.iter().map(|(name, text)| ConfFile { name: (*name).to_owned(), content: Ok(text.as_bytes().to_vec()) }).collect()
    }

    fn list(plugin: &str) -> String {
        format!(r#"{{"name":"cbr0","plugins":[{plugin},{{"type":"portmap"}}]}}"#)
    }

    fn finding(others: &[(&str, &str)]) -> Option<CniConfFinding> {
        let own = list(r#"{"type":"sepal"}"#);
        choose(files(&[others, &[(OWN, &own)]].concat()), SUBNET_FILE).finding("/d", OWN, SUBNET_FILE)
    }

    #[test]
    fn the_first_valid_file_by_name_is_used() {
        let (flannel, calico) = (list(r#"{"type":"flannel"}"#), list(r#"{"type":"calico"}"#));
        for later in ["10-sepal.conflist.d", "87-podman.conflist", "20-x.conf", "9.json.bak", "05-calico.conflist.disabled", "README"] {
            assert_eq!(finding(&[(later, &calico)]), None, "{later}");
        }
        let found = finding(&[("10-flannel.conflist", &flannel), ("87-podman.conflist", &calico)]).expect("a finding");
        assert_eq!(
            found.to_string(),
            "container runtimes use /d/10-flannel.conflist (network cbr0, plugins: flannel, portmap) and not 10-sepal.conflist, because its \
             name sorts first; pods get this node's subnet by the plugin flannel. What to do: move 10-flannel.conflist out of the folder \
             when the flannel DaemonSet, which writes it at each start, is gone"
        );
        assert!(found.served);
        let found = finding(&[("05-calico.conflist", &calico), ("10-flannel.conflist", &flannel)]).expect("a finding");
        assert!(found.found.ends_with("; pods do not get sepal's network") && !found.served, "{found}");
        assert_eq!(found.cure, "move 05-calico.conflist out of the folder");
        let single = r#"{"Name":"mynet","Type":"bridge","plugins":[]}"#;
        assert!(!finding(&[("00.conf", single)]).expect("a finding").served);
        assert!(!finding(&[("00.json", single)]).expect("a finding").served);
    }

    #[test]
    fn a_configuration_that_uses_sepal_is_no_problem() {
        assert_eq!(finding(&[("00-own.conflist", &list(r#"{"type":"sepal","capabilities":{"portMappings":true}}"#))]), None);
        assert_eq!(finding(&[("00-own.conf", r#"{"name":"n","type":"sepal","subnetfile":"/run/flannel/subnet.env"}"#)]), None);
        assert!(finding(&[("00-multus.conf", r#"{"name":"m","type":"multus","delegates":[]}"#)]).expect("a finding").served);
        let found = finding(&[("10-flannel.conflist", &list(r#"{"type":"flannel","SubnetFile":"/run/other/subnet.env"}"#))]);
        let found = found.expect("a finding");
        assert!(
            !found.served && found.found.contains("it reads /run/other/subnet.env, and sepal writes /run/flannel/subnet.env"),
            "{found}"
        );
    }

    #[test]
    fn invalid_files_are_named() {
        for (file, text, cause) in [
            ("05-x.conflist", "{}", "it has no name"),
            ("05-x.conflist", r#"{"Name":"n","plugins":[{"type":"a"}]}"#, "it has no name"),
            ("05-x.conflist", r#"{"name":"n"}"#, "it has no plugins"),
            ("05-x.conflist", r#"{"name":"n","plugins":[{"type":"a"},{}]}"#, "a plugin has no type"),
            ("05-x.conf", r#"{"name":"n","plugins":[{"type":"a"}]}"#, "a plugin has no type"),
            ("05-x.json", "", "EOF while parsing a value at line 1 column 0"),
        ] {
            let found = finding(&[(file, text)]).expect("a finding");
            assert!(found.found.starts_with(&format!("/d/{file} is not valid ({cause}): containerd gives pods no network")), "{found}");
            assert!(found.served && found.cure == format!("correct {file} or move it out of the folder"), "{found}");
        }
        let unread = ConfFile { name: "05-x.conf".into(), content: Err("Permission denied".into()) };
        let choice = choose(vec![unread, files(&[("07.conflist", &list(r#"{"type":"calico"}"#))]).remove(0)], SUBNET_FILE);
        let found = choice.finding("/d", OWN, SUBNET_FILE).expect("a finding");
        assert!(found.found.contains("(Permission denied)") && found.found.contains("use /d/07.conflist") && !found.served, "{found}");
    }
}
