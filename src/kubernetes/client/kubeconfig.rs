//! Kubeconfig files: read, merged and checked as client-go does it (`tools/clientcmd`).

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use serde::{Deserialize, Deserializer};
use serde_json::Value;
use serde_saphyr::DuplicateKeyPolicy;

use crate::error_text::error_text;

/// A kubeconfig that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum KubeconfigError {
    /// The file cannot be read.
    #[error("cannot read kubeconfig {path}: {cause}")]
    Read {
        /// Path of the file.
        path: String,
        /// What the system said.
        cause: std::io::Error,
    },
    /// The file is not a kubeconfig.
    #[error("kubeconfig {path} is not a valid kubeconfig: {cause}")]
    Parse {
        /// Path of the file.
        path: String,
        /// The place, and what is wrong there.
        cause: String,
    },
    /// The kubeconfig has contradicting or missing fields.
    #[error("kubeconfig {path}: {problem}")]
    Unusable {
        /// Path of the file, or of all files that were merged.
        path: String,
        /// What is wrong.
        problem: String,
    },
}

/// Reads a value. `null` means the default.
fn or_default<'de, D: Deserializer<'de>, T: Default + Deserialize<'de>>(deserializer: D) -> Result<T, D::Error> {
    Ok(Option::deserialize(deserializer)?.unwrap_or_default())
}

/// A kubeconfig file. Unknown fields are ignored, as in client-go.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, rename_all = "kebab-case")]
struct File {
    #[serde(rename = "apiVersion", deserialize_with = "or_default")]
    api_version: String,
    #[serde(deserialize_with = "or_default")]
    kind: String,
    #[serde(deserialize_with = "or_default")]
    clusters: Vec<NamedCluster>,
    #[serde(deserialize_with = "or_default")]
    users: Vec<NamedUser>,
    #[serde(deserialize_with = "or_default")]
    contexts: Vec<NamedContext>,
    #[serde(deserialize_with = "or_default")]
    current_context: String,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
struct NamedCluster {
    #[serde(deserialize_with = "or_default")]
    name: String,
    #[serde(deserialize_with = "or_default")]
    cluster: Cluster,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
struct NamedUser {
    #[serde(deserialize_with = "or_default")]
    name: String,
    #[serde(deserialize_with = "or_default")]
    user: User,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
struct NamedContext {
    #[serde(deserialize_with = "or_default")]
    name: String,
    #[serde(deserialize_with = "or_default")]
    context: Context,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
struct Context {
    #[serde(deserialize_with = "or_default")]
    cluster: String,
    #[serde(deserialize_with = "or_default")]
    user: String,
}

/// One cluster. Empty text means that a field is not set, as in client-go.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default, rename_all = "kebab-case")]
pub(super) struct Cluster {
    #[serde(deserialize_with = "or_default")]
    pub server: String,
    #[serde(deserialize_with = "or_default")]
    pub tls_server_name: String,
    #[serde(deserialize_with = "or_default")]
    pub insecure_skip_tls_verify: bool,
    #[serde(deserialize_with = "or_default")]
    pub certificate_authority: String,
    #[serde(deserialize_with = "or_default")]
    pub certificate_authority_data: String,
    #[serde(deserialize_with = "or_default")]
    pub proxy_url: String,
    #[serde(deserialize_with = "or_default")]
    pub disable_compression: bool,
    #[serde(deserialize_with = "or_default")]
    pub extensions: Vec<Extension>,
}

#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default)]
pub(super) struct Extension {
    #[serde(deserialize_with = "or_default")]
    name: String,
    extension: Value,
}

impl Cluster {
    /// The cluster's extension for credential plugins (`client.authentication.k8s.io/exec`).
    pub(super) fn exec_extension(&self) -> Option<&Value> {
        self.extensions.iter().find(|extension| extension.name == "client.authentication.k8s.io/exec").map(|found| &found.extension)
    }
}

/// One user. Empty text means that a field is not set.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, rename_all = "kebab-case")]
pub(super) struct User {
    #[serde(deserialize_with = "or_default")]
    pub client_certificate: String,
    #[serde(deserialize_with = "or_default")]
    pub client_certificate_data: String,
    #[serde(deserialize_with = "or_default")]
    pub client_key: String,
    #[serde(deserialize_with = "or_default")]
    pub client_key_data: String,
    #[serde(deserialize_with = "or_default")]
    pub token: String,
    #[serde(rename = "tokenFile", deserialize_with = "or_default")]
    pub token_file: String,
    #[serde(deserialize_with = "or_default")]
    pub username: String,
    #[serde(deserialize_with = "or_default")]
    pub password: String,
    #[serde(rename = "as", deserialize_with = "or_default")]
    pub impersonate: String,
    #[serde(rename = "as-uid", deserialize_with = "or_default")]
    pub impersonate_uid: String,
    #[serde(rename = "as-groups", deserialize_with = "or_default")]
    pub impersonate_groups: Vec<String>,
    #[serde(rename = "as-user-extra", deserialize_with = "or_default")]
    pub impersonate_extra: BTreeMap<String, Vec<String>>,
    pub auth_provider: Option<Value>,
    pub exec: Option<ExecConfig>,
}

/// A credential plugin.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub(super) struct ExecConfig {
    #[serde(deserialize_with = "or_default")]
    pub api_version: String,
    #[serde(deserialize_with = "or_default")]
    pub command: String,
    #[serde(deserialize_with = "or_default")]
    pub args: Vec<String>,
    #[serde(deserialize_with = "or_default")]
    pub env: Vec<Variable>,
    #[serde(deserialize_with = "or_default")]
    pub install_hint: String,
    #[serde(deserialize_with = "or_default")]
    pub interactive_mode: String,
    #[serde(deserialize_with = "or_default")]
    pub provide_cluster_info: bool,
}

/// An environment variable of a credential plugin.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default)]
pub(super) struct Variable {
    #[serde(deserialize_with = "or_default")]
    pub name: String,
    #[serde(deserialize_with = "or_default")]
    pub value: String,
}

/// The cluster and the user of the current context.
#[derive(Clone, Debug, Default)]
pub(super) struct Selected {
    /// Path of the file or files, for messages.
    pub path: String,
    pub cluster: Cluster,
    pub user: User,
}

/// Reads one file.
pub(super) fn read(path: &Path) -> Result<Selected, KubeconfigError> {
    let file = read_file(path)?;
    select(file, &path.display().to_string())
}

/// Reads and merges the files of `$KUBECONFIG`. Files that do not exist are skipped; `None` if no file exists. If two files define the same
/// name, the first file wins.
pub(super) fn read_all(paths: &[PathBuf]) -> Result<Option<Selected>, KubeconfigError> {
    let mut merged = File::default();
    let mut read = Vec::new();
    for path in paths {
        match read_file(path) {
            Ok(file) => {
                merged.clusters.extend(file.clusters);
                merged.users.extend(file.users);
                merged.contexts.extend(file.contexts);
                if merged.current_context.is_empty() {
                    merged.current_context = file.current_context;
                }
                read.push(path.display().to_string());
            }
            Err(KubeconfigError::Read { cause, .. }) if cause.kind() == std::io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
    }
    if read.is_empty() { Ok(None) } else { select(merged, &read.join(":")).map(Some) }
}

fn read_file(path: &Path) -> Result<File, KubeconfigError> {
    let shown = path.display().to_string();
    let text = std::fs::read(path).map_err(|cause| KubeconfigError::Read { path: shown.clone(), cause })?;
    let mut file = parse(&text).map_err(|cause| KubeconfigError::Parse { path: shown, cause })?;
    if !matches!((file.api_version.as_str(), file.kind.as_str()), ("" | "v1", "" | "Config")) {
        let cause = format!("it holds a {} of {}, not a Config of v1", file.kind, file.api_version);
        return Err(KubeconfigError::Parse { path: path.display().to_string(), cause });
    }
    let folder = path.parent().unwrap_or(Path::new(""));
    for NamedCluster { cluster, .. } in &mut file.clusters {
        make_absolute(&mut cluster.certificate_authority, folder);
    }
    for NamedUser { user, .. } in &mut file.users {
        for path in [&mut user.client_certificate, &mut user.client_key, &mut user.token_file] {
            make_absolute(path, folder);
        }
        if let Some(exec) = &mut user.exec
            && exec.command.contains('/')
        {
            make_absolute(&mut exec.command, folder);
        }
    }
    Ok(file)
}

/// Relative paths are relative to the folder of the file that names them.
fn make_absolute(path: &mut String, folder: &Path) {
    if !path.is_empty() && !Path::new(path).is_absolute() {
        *path = folder.join(&*path).display().to_string();
    }
}

/// Parses the first document of the text. If a key is repeated, the last one wins.
fn parse(text: &[u8]) -> Result<File, String> {
    let options = serde_saphyr::options! { duplicate_keys: DuplicateKeyPolicy::LastWins };
    let mut reader = text;
    let first = serde_saphyr::read_with_options::<_, Value>(&mut reader, options).next();
    let value = first.transpose().map_err(|error| error_text(&error))?.unwrap_or_default();
    match value {
        Value::Null => Ok(File::default()),
        Value::Object(_) => {
            serde_path_to_error::deserialize(&value).map_err(|error| format!("{}: {}", error.path(), type_problem(error.inner())))
        }
        _ => Err("it holds a single value, not fields like clusters and users".to_owned()),
    }
}

/// serde's message about a wrong type, without the value: that may be a secret.
fn type_problem(error: &serde_json::Error) -> String {
    let text = error.to_string();
    match (text.split_once(", expected "), text.split_once("invalid type: ")) {
        (Some((_, expected)), Some((_, found))) => {
            let found = found.split([' ', ',']).next().unwrap_or_default();
            format!("a value of type {found} stands where {} is expected", expected.split(" at line ").next().unwrap_or(expected))
        }
        _ => "the value has the wrong type".to_owned(),
    }
}

fn select(file: File, path: &str) -> Result<Selected, KubeconfigError> {
    let unusable = |problem: String| KubeconfigError::Unusable { path: path.to_owned(), problem };
    let mut context = Context::default();
    if !file.current_context.is_empty() {
        let found = file.contexts.into_iter().find(|context| context.name == file.current_context);
        context =
            found.ok_or_else(|| unusable(format!("the current context {:?} is not among its contexts", file.current_context)))?.context;
    }
    let mut selected = Selected { path: path.to_owned(), ..Selected::default() };
    if !context.cluster.is_empty() {
        let found = file.clusters.into_iter().find(|cluster| cluster.name == context.cluster);
        selected.cluster = found.ok_or_else(|| unusable(format!("cluster {:?} does not exist", context.cluster)))?.cluster;
    }
    if !context.user.is_empty() {
        let found = file.users.into_iter().find(|user| user.name == context.user);
        selected.user = found.ok_or_else(|| unusable(format!("user {:?} does not exist", context.user)))?.user;
    }
    match problems(&context, &selected) {
        problems if problems.is_empty() => Ok(selected),
        problems => Err(unusable(problems.join("; "))),
    }
}

/// The known API versions of credential plugins.
const PLUGIN_VERSIONS: [&str; 2] = ["client.authentication.k8s.io/v1", "client.authentication.k8s.io/v1beta1"];

/// What client-go refuses in a cluster and a user (`validateClusterInfo`, `validateAuthInfo`). A missing server is allowed: `--master`
/// may name one.
fn problems(context: &Context, Selected { cluster, user, .. }: &Selected) -> Vec<String> {
    let (of_cluster, of_user) = (format!("cluster {:?}", context.cluster), format!("user {:?}", context.user));
    let mut problems = Vec::new();
    let mut unless = |fine: bool, problem: String| {
        if !fine {
            problems.push(problem);
        }
    };
    let has_ca = !cluster.certificate_authority.is_empty() || !cluster.certificate_authority_data.is_empty();
    unless(
        cluster.certificate_authority.is_empty() || cluster.certificate_authority_data.is_empty(),
        format!("{of_cluster} has certificate-authority and certificate-authority-data; remove one"),
    );
    unless(
        !(cluster.insecure_skip_tls_verify && has_ca),
        format!("{of_cluster} has insecure-skip-tls-verify together with a certificate authority, which would not be used; remove one"),
    );
    for (name, file, data) in [
        ("client-certificate", &user.client_certificate, &user.client_certificate_data),
        ("client-key", &user.client_key, &user.client_key_data),
    ] {
        unless(file.is_empty() || data.is_empty(), format!("{of_user} has {name} and {name}-data; remove one"));
    }
    let has_certificate = !user.client_certificate.is_empty() || !user.client_certificate_data.is_empty();
    let has_key = !user.client_key.is_empty() || !user.client_key_data.is_empty();
    unless(!has_certificate || has_key, format!("{of_user} has a client certificate without client-key or client-key-data"));
    let has_password = !user.username.is_empty() || !user.password.is_empty();
    unless(!has_password || user.token.is_empty(), format!("{of_user} has a token and a user name; remove one"));
    let impersonates_more = !user.impersonate_uid.is_empty() || !user.impersonate_groups.is_empty() || !user.impersonate_extra.is_empty();
    unless(!impersonates_more || !user.impersonate.is_empty(), format!("{of_user} has as-uid, as-groups or as-user-extra without as"));
    if let Some(provider) = user.auth_provider.as_ref().filter(|provider| !provider.is_null()) {
        let name = provider.get("name").and_then(Value::as_str).unwrap_or_default();
        unless(false, format!("{of_user} has the auth-provider {name:?}, which no longer exists in Kubernetes; use an exec plugin"));
    }
    if let Some(exec) = &user.exec {
        unless(!exec.command.is_empty(), format!("the exec plugin of {of_user} has no command"));
        unless(
            PLUGIN_VERSIONS.contains(&exec.api_version.as_str()),
            format!("the exec plugin of {of_user} has the apiVersion {:?}; {} are known", exec.api_version, PLUGIN_VERSIONS.join(" and ")),
        );
        unless(
            matches!(exec.interactive_mode.as_str(), "" | "Never" | "IfAvailable"),
            format!("the exec plugin of {of_user} has the interactiveMode {:?}, and a daemon has no terminal", exec.interactive_mode),
        );
        unless(
            exec.env.iter().all(|variable| !variable.name.is_empty()),
            format!("the exec plugin of {of_user} has a variable without a name"),
        );
    }
    problems
}

/// Decodes a `*-data` field. Line breaks are ignored, as in Go, and so is surrounding whitespace.
pub(super) fn decode(field: &str, text: &str) -> Result<Vec<u8>, String> {
    let text: String = text.trim().chars().filter(|c| !matches!(c, '\r' | '\n')).collect();
    BASE64_STANDARD.decode(text).map_err(|error| format!("{field} is not base64: {error}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn selected(text: &str) -> Result<Selected, String> {
        let file = parse(text.as_bytes())?;
        select(file, "f").map_err(|error| error.to_string())
    }

    fn with(cluster: &str, user: &str) -> Result<Selected, String> {
        selected(&format!(
            "clusters: [{{name: k, cluster: {{server: \"https://x\"{cluster}}}}}]\nusers: [{{name: u, user: {{{user}}}}}]\n\
             contexts: [{{name: c, context: {{cluster: k, user: u}}}}]\ncurrent-context: c\n"
        ))
    }

    #[test]
    fn empty_and_null_mean_not_set() {
        let read =
            with(", tls-server-name: \"\", certificate-authority-data: \"\", certificate-authority: /ca, proxy-url: null", "token: \"\"")
                .expect("usable");
        assert_eq!((read.cluster.tls_server_name.as_str(), read.cluster.certificate_authority.as_str()), ("", "/ca"));
        assert_eq!((read.user.token.as_str(), read.cluster.proxy_url.as_str()), ("", ""));
        assert!(selected("").expect("an empty file").cluster.server.is_empty());
        assert!(selected("clusters: null\nusers:\ncontexts: []\n").is_ok());
    }

    #[test]
    fn the_first_document_and_the_last_repeated_key_win() {
        let text = "current-context: c\ncurrent-context: d\ncontexts: [{name: d, context: {cluster: k}}]\nclusters: [{name: k, cluster: {server: s}}]\n\
                    ---\n{broken";
        assert_eq!(selected(text).expect("the first").cluster.server, "s");
    }

    #[test]
    fn what_client_go_refuses_is_refused() {
        for (cluster, user, problem) in [
            (", insecure-skip-tls-verify: true, certificate-authority: /ca", "", "insecure-skip-tls-verify together with"),
            (", insecure-skip-tls-verify: true, certificate-authority-data: QQ==", "", "insecure-skip-tls-verify together with"),
            (", certificate-authority: /ca, certificate-authority-data: QQ==", "", "certificate-authority and certificate-authority-data"),
            ("", "client-certificate: /c", "without client-key"),
            ("", "client-certificate: /c, client-certificate-data: QQ==, client-key: /k", "client-certificate and client-certificate-data"),
            ("", "token: t, username: a, password: b", "a token and a user name"),
            ("", "as-groups: [g]", "without as"),
            ("", "auth-provider: {name: gcp}", "auth-provider \"gcp\""),
            ("", "exec: {apiVersion: client.authentication.k8s.io/v1alpha1, command: x}", "v1alpha1"),
            ("", "exec: {apiVersion: client.authentication.k8s.io/v1}", "no command"),
            ("", "exec: {apiVersion: client.authentication.k8s.io/v1, command: x, interactiveMode: Always}", "terminal"),
        ] {
            let error = with(cluster, user).expect_err(problem);
            assert!(error.contains(problem) && error.starts_with("kubeconfig f: "), "{error}");
        }
        let error = selected("current-context: gone\n").expect_err("no such context");
        assert_eq!(error, "kubeconfig f: the current context \"gone\" is not among its contexts");
    }

    #[test]
    fn a_value_of_the_wrong_type_is_named_but_not_shown() {
        let error = with("", "token: 12345").expect_err("a number");
        assert_eq!(error, "users[0].user.token: a value of type integer stands where a string is expected");
        assert!(selected("just words").is_err());
        assert!(selected("{").is_err());
    }

    #[test]
    fn base64_may_be_wrapped() {
        for text in ["QUJD\nREVG\n", "QUJDREVG", " QUJD\r\nREVG"] {
            assert_eq!(decode("x", text).expect("base64"), b"ABCDEF");
        }
        let error = decode("certificate-authority-data", "!").expect_err("no base64");
        assert!(error.starts_with("certificate-authority-data is not base64"), "{error}");
    }

    #[test]
    fn paths_are_relative_to_the_file_and_the_first_file_wins() {
        let folder = tempfile::tempdir().expect("a folder");
        let write = |name: &str, text: &str| {
            let path = folder.path().join(name);
            std::fs::write(&path, text).expect("writable");
            path
        };
        let first = write(
            "a",
            "clusters: [{name: k, cluster: {server: one, certificate-authority: pki/ca.crt}}]\nusers: [{name: u, user: {exec: {apiVersion: \
             client.authentication.k8s.io/v1, command: ./login, interactiveMode: Never}}}]\n",
        );
        let second = write(
            "b",
            "clusters: [{name: k, cluster: {server: two}}]\ncontexts: [{name: c, context: {cluster: k, user: u}}]\ncurrent-context: c\n",
        );
        let read = read_all(&[folder.path().join("none"), first, second]).expect("readable").expect("there");
        assert_eq!(read.cluster.server, "one");
        assert_eq!(Path::new(&read.cluster.certificate_authority), folder.path().join("pki/ca.crt"));
        assert_eq!(Path::new(&read.user.exec.expect("a plugin").command), folder.path().join("./login"));
        assert!(read_all(&[folder.path().join("none")]).expect("no error").is_none());
        let pod = write("c", "apiVersion: v1\nkind: Pod\n");
        let error = super::read(&pod).map(drop).expect_err("a Pod").to_string();
        assert!(error.ends_with("it holds a Pod of v1, not a Config of v1"), "{error}");
    }
}
