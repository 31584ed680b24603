//! Builds a client from a kubeconfig, `--master`, or the environment of a pod.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use http::{HeaderName, HeaderValue};
use kube::Client;
use kube::client::ClientBuilder;
use percent_encoding::{AsciiSet, CONTROLS, utf8_percent_encode};
use tower::layer::layer_fn;

use super::connections::Connections;
use super::credentials::{Material, Sources, TokenSource, TrustSource};
use super::error::ConnectionError;
use super::exec_plugin::{self, ExecPlugin};
use super::kubeconfig::{self, KubeconfigError, Selected, User};
use super::proxy::{self, ProxyEnvironment};
use super::server::Server;
use super::server_url::Url;
use super::transport::Transport;
use super::user_agent::ProgramName;
use crate::kubernetes::requests::{ObservedService, RequestObserver};

/// The folder of a pod's service account credentials.
const SERVICE_ACCOUNT: &str = "/var/run/secrets/kubernetes.io/serviceaccount";

/// The settings with which a client reaches the API server.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ConnectionSettings {
    /// Path of a kubeconfig. Without it, kubectl's default files are tried, then the pod's service account.
    pub kubeconfig: Option<String>,
    /// Address of the server. It overrides the kubeconfig's.
    pub master: Option<String>,
    /// The program's name in `User-Agent`.
    pub name: ProgramName,
}

/// The parts of the environment that are read.
struct Environment<'a> {
    variable: &'a dyn Fn(&str) -> Option<String>,
    service_account: &'a Path,
}

impl ConnectionSettings {
    /// A client for that server.
    ///
    /// # Errors
    /// The settings cannot be read or used, or there are none.
    pub fn client(&self) -> Result<Client, ConnectionError> {
        let transport = Transport::new(self.resolve()?, &Connections::default())?;
        Ok(ClientBuilder::new(transport, "default").build())
    }

    /// The server's address without a password.
    ///
    /// # Errors
    /// As for [`Self::client`].
    pub fn url(&self) -> Result<String, ConnectionError> {
        Ok(self.resolve()?.url.to_string())
    }

    /// The time limit of the credential plugin; `None` if the kubeconfig names no plugin.
    ///
    /// # Errors
    /// As for [`Self::client`].
    pub(crate) fn plugin_time_limit(&self) -> Result<Option<Duration>, ConnectionError> {
        Ok(self.resolve()?.plugin.map(|_| exec_plugin::TIME_LIMIT))
    }

    /// A client for that server that reports each request to an observer. Its connections can be closed.
    ///
    /// # Errors
    /// As for [`Self::client`].
    pub fn observed_client(&self, observer: Arc<dyn RequestObserver>, connections: &Connections) -> Result<Client, ConnectionError> {
        let server = self.resolve()?;
        tracing::info!("API server: {} ({})", server.url, server.origin);
        if let Some(proxy) = &server.proxy {
            tracing::info!("the API server is reached through the proxy {proxy}");
        }
        let host: Arc<str> = server.url.uri.authority().map(http::uri::Authority::as_str).unwrap_or_default().into();
        let layer = layer_fn(move |inner| ObservedService::new(inner, Arc::clone(&host), Arc::clone(&observer)));
        Ok(ClientBuilder::new(Transport::new(server, connections)?, "default").with_layer(&layer).build())
    }

    fn resolve(&self) -> Result<Server, ConnectionError> {
        let variable = |name: &str| std::env::var(name).ok();
        self.resolve_in(&Environment { variable: &variable, service_account: Path::new(SERVICE_ACCOUNT) })
    }

    fn resolve_in(&self, environment: &Environment<'_>) -> Result<Server, ConnectionError> {
        let selected = match &self.kubeconfig {
            Some(path) => Some(kubeconfig::read(Path::new(path))?),
            None if self.master.is_some() => Some(Selected { path: "--master".into(), ..Selected::default() }),
            None => default_kubeconfig(environment)?,
        };
        let mut server = match selected {
            Some(selected) => self.of_kubeconfig(selected)?,
            None => in_cluster(environment)?.ok_or(ConnectionError::Nothing)?,
        };
        server.name = self.name;
        if server.proxy.is_none() {
            let variables = ProxyEnvironment::from_lookup(environment.variable);
            let bad = |cause| ConnectionError::Url { what: "the proxy in the environment".into(), cause };
            server.proxy = variables.proxy_for(&server.url.uri).map_err(bad)?;
        }
        Ok(server)
    }

    fn of_kubeconfig(&self, Selected { path, mut cluster, user }: Selected) -> Result<Server, ConnectionError> {
        let what = match &self.master {
            Some(master) => {
                // As in client-go: the tls-server-name of the kubeconfig belongs to the kubeconfig's server.
                cluster.server.clone_from(master);
                cluster.tls_server_name.clear();
                "--master".to_owned()
            }
            None => format!("the server of {path}"),
        };
        if cluster.server.is_empty() {
            return Err(ConnectionError::NoServer(path));
        }
        let url = Url::parse(&cluster.server, "http", "http, https").map_err(|cause| ConnectionError::Url { what, cause })?;
        let proxy = match cluster.proxy_url.as_str() {
            "" => None,
            text => Some(proxy::parse(text).map_err(|cause| ConnectionError::Url { what: format!("proxy-url of {path}"), cause })?),
        };
        let impersonation = impersonation(&user).ok_or_else(|| ConnectionError::Impersonation(path.clone()))?;
        let bad = |cause| ConnectionError::Credentials { origin: path.clone(), cause };
        let mut server = Server {
            url,
            tls_name: None,
            proxy,
            sources: Sources::none(),
            plugin: None,
            impersonation,
            compress: !cluster.disable_compression,
            name: self.name,
            origin: path.clone(),
        };
        // Credentials are only sent over TLS, and without TLS there is no certificate to verify.
        if !server.url.is_tls() {
            return Ok(server);
        }
        server.tls_name = Some(cluster.tls_server_name.clone()).filter(|name| !name.is_empty());
        server.sources = Sources::of_kubeconfig(&cluster, &user).map_err(bad)?;
        // As in Go, a user in the URL goes before a token.
        if let Some(user) = &server.url.user {
            server.sources.token = TokenSource::Password(user.clone());
        }
        server.plugin = match (user.exec, &server.sources.token) {
            (Some(exec), TokenSource::Nothing) => {
                let authorities = match &server.sources.trust {
                    TrustSource::Authorities(material @ Material::File(_)) => Some(material.read("certificate authority").map_err(bad)?),
                    TrustSource::Authorities(Material::Given(bytes)) => Some(bytes.clone()),
                    TrustSource::Anything | TrustSource::System => None,
                };
                Some(Arc::new(ExecPlugin::new(exec, &cluster, authorities.as_deref())))
            }
            _ => None,
        };
        Ok(server)
    }
}

/// The kubeconfig that kubectl would use: the files of `$KUBECONFIG`, or the one in the home folder. `None` if no file exists or names a
/// server.
fn default_kubeconfig(environment: &Environment<'_>) -> Result<Option<Selected>, KubeconfigError> {
    let variable = |name: &str| (environment.variable)(name).filter(|text| !text.is_empty());
    let paths: Vec<PathBuf> = match (variable("KUBECONFIG"), variable("HOME")) {
        (Some(list), _) => list.split(':').filter(|path| !path.is_empty()).map(PathBuf::from).collect(),
        (None, Some(home)) => vec![Path::new(&home).join(".kube/config")],
        (None, None) => Vec::new(),
    };
    Ok(kubeconfig::read_all(&paths)?.filter(|selected| !selected.cluster.server.is_empty()))
}

/// The server that a pod's environment names; `None` outside of a pod.
fn in_cluster(environment: &Environment<'_>) -> Result<Option<Server>, ConnectionError> {
    let variable = |name: &str| (environment.variable)(name).filter(|text| !text.is_empty());
    let (Some(host), Some(port)) = (variable("KUBERNETES_SERVICE_HOST"), variable("KUBERNETES_SERVICE_PORT")) else { return Ok(None) };
    let host = if host.contains(':') { format!("[{host}]") } else { host };
    let url = Url::parse(&format!("https://{host}:{port}"), "https", "https");
    let what = || "KUBERNETES_SERVICE_HOST and KUBERNETES_SERVICE_PORT".to_owned();
    Ok(Some(Server {
        url: url.map_err(|cause| ConnectionError::Url { what: what(), cause })?,
        tls_name: None,
        proxy: None,
        sources: Sources::in_cluster(environment.service_account),
        plugin: None,
        impersonation: Vec::new(),
        compress: true,
        name: ProgramName::default(),
        origin: "in-cluster".into(),
    }))
}

/// The headers of impersonation (`as` and `as-*` of a kubeconfig); `None` if a value does not fit into a header.
fn impersonation(user: &User) -> Option<Vec<(HeaderName, HeaderValue)>> {
    /// Characters that a header's name cannot hold (RFC 9110 section 5.6.2), and the percent sign.
    const ESCAPED: &AsciiSet = &CONTROLS
        .add(b' ')
        .add(b'"')
        .add(b'%')
        .add(b'(')
        .add(b')')
        .add(b',')
        .add(b'/')
        .add(b':')
        .add(b';')
        .add(b'<')
        .add(b'=')
        .add(b'>')
        .add(b'?')
        .add(b'@')
        .add(b'[')
        .add(b'\\')
        .add(b']')
        .add(b'{')
        .add(b'}');
    let mut headers: Vec<(String, &str)> = Vec::new();
    if user.impersonate.is_empty() {
        return Some(Vec::new());
    }
    headers.push(("impersonate-user".into(), &user.impersonate));
    if !user.impersonate_uid.is_empty() {
        headers.push(("impersonate-uid".into(), &user.impersonate_uid));
    }
    headers.extend(user.impersonate_groups.iter().map(|group| ("impersonate-group".into(), group.as_str())));
    for (key, values) in &user.impersonate_extra {
        let name = format!("impersonate-extra-{}", utf8_percent_encode(key, ESCAPED));
        headers.extend(values.iter().map(|value| (name.clone(), value.as_str())));
    }
    headers.into_iter().map(|(name, value)| Some((name.parse().ok()?, value.parse().ok()?))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Files(tempfile::TempDir);

    impl Files {
        fn new() -> Self {
            Self(tempfile::tempdir().expect("a folder"))
        }

        fn write(&self, name: &str, text: &str) -> String {
            let path = self.0.path().join(name);
            std::fs::write(&path, text).expect("writable");
            path.display().to_string()
        }

        fn kubeconfig(&self, cluster: &str, user: &str) -> ConnectionSettings {
            let text = format!(
                "clusters: [{{name: k, cluster: {{{cluster}}}}}]\nusers: [{{name: u, user: {{{user}}}}}]\n\
                 contexts: [{{name: c, context: {{cluster: k, user: u}}}}]\ncurrent-context: c\n"
            );
            ConnectionSettings { kubeconfig: Some(self.write("kubeconfig", &text)), ..ConnectionSettings::default() }
        }

        fn resolve(&self, connection: &ConnectionSettings, variables: &[(&str, &str)]) -> Result<Server, String> {
            let variable = |name: &str| variables.iter().find(|(key, _)| *key == name).map(|(_, value)| (*value).to_owned());
            let environment = Environment { variable: &variable, service_account: self.0.path() };
            connection.resolve_in(&environment).map_err(|error| error.to_string())
        }
    }

    #[test]
    fn without_tls_no_credentials_are_sent() {
        let files = Files::new();
        let ca = files.write("ca.crt", "no PEM at all");
        let user = "token: abc, exec: {apiVersion: client.authentication.k8s.io/v1, command: x}";
        for server in ["127.0.0.1:8077", "http://127.0.0.1:8077", "http://u:p@127.0.0.1:8077"] {
            let connection = files.kubeconfig(&format!("server: \"{server}\", certificate-authority: {ca}, tls-server-name: x"), user);
            let server = files.resolve(&connection, &[]).expect("usable");
            assert_eq!(server.url.to_string(), "http://127.0.0.1:8077");
            assert!(server.sources == Sources::none() && server.plugin.is_none() && server.tls_name.is_none());
        }
    }

    #[test]
    fn master_overrides_the_kubeconfig() {
        let files = Files::new();
        let mut connection = files.kubeconfig("server: \"https://a:1\", tls-server-name: a", "token: abc");
        assert_eq!(files.resolve(&connection, &[]).expect("usable").tls_name.as_deref(), Some("a"));
        connection.master = Some("https://b:2".into());
        let server = files.resolve(&connection, &[]).expect("usable");
        assert_eq!((server.url.to_string().as_str(), server.tls_name), ("https://b:2", None));
        assert!(server.sources.token == TokenSource::Token("abc".into()));
        let alone = ConnectionSettings { master: Some("b:2".into()), ..ConnectionSettings::default() };
        assert_eq!(files.resolve(&alone, &[]).expect("usable").url.to_string(), "http://b:2");
        let error = files.resolve(&ConnectionSettings { master: Some("ftp://b".into()), ..ConnectionSettings::default() }, &[]).map(drop);
        assert_eq!(error, Err("--master: \"ftp://b\" has the scheme \"ftp\"; http, https are known".into()));
        let error = files.resolve(&files.kubeconfig("server: \"\"", ""), &[]).map(drop).expect_err("no server");
        assert!(error.contains("names no server"), "{error}");
    }

    #[test]
    fn a_pod_uses_its_environment() {
        let files = Files::new();
        files.write("token", "abc");
        let variables = [("KUBERNETES_SERVICE_HOST", "fd00::1"), ("KUBERNETES_SERVICE_PORT", "443"), ("HOME", "/nowhere")];
        let server = files.resolve(&ConnectionSettings::default(), &variables).expect("in a pod");
        assert_eq!(
            (server.url.to_string().as_str(), crate::kubernetes::client::server_url::host_of(&server.url.uri), server.proxy.is_none()),
            ("https://[fd00::1]:443", "fd00::1", true)
        );
        let proxied = [&variables[..], &[("HTTPS_PROXY", "http://p:3128")]].concat();
        let server = files.resolve(&ConnectionSettings::default(), &proxied).expect("in a pod");
        assert_eq!(server.proxy.expect("a proxy").to_string(), "http://p:3128");
        assert!(matches!(files.resolve(&ConnectionSettings::default(), &[]), Err(error) if error.starts_with("no API server to talk to")));
        // $KUBECONFIG overrides the pod's environment, unless that file names no server.
        let connection = files.kubeconfig("server: \"https://a:1\"", "");
        let path = connection.kubeconfig.expect("a path");
        let named = [&variables[..], &[("KUBECONFIG", path.as_str())]].concat();
        assert_eq!(files.resolve(&ConnectionSettings::default(), &named).expect("named").url.to_string(), "https://a:1");
        files.write("kubeconfig", "");
        assert_eq!(files.resolve(&ConnectionSettings::default(), &named).expect("in a pod").url.to_string(), "https://[fd00::1]:443");
    }

    #[test]
    fn proxy_url_overrides_the_environment() {
        let files = Files::new();
        let variables = [("HTTPS_PROXY", "http://env:1"), ("NO_PROXY", "*")];
        let connection = files.kubeconfig("server: \"https://a:1\", proxy-url: \"socks5://me:pw@p:1080\"", "");
        let proxy = files.resolve(&connection, &variables).expect("usable").proxy.expect("a proxy");
        assert_eq!((proxy.to_string().as_str(), proxy.user.expect("a user").password.as_str()), ("socks5://p:1080", "pw"));
        let connection = files.kubeconfig("server: \"https://a:1\", proxy-url: \"ftp://me:secret@p\"", "");
        let error = files.resolve(&connection, &variables).map(drop).expect_err("no proxy");
        assert!(error.contains("proxy-url of ") && error.contains("\"ftp\"") && !error.contains("secret"), "{error}");
    }

    #[test]
    fn impersonation_becomes_headers() {
        let files = Files::new();
        let user = "as: admin, as-uid: \"7\", as-groups: [a, b], as-user-extra: {example.com/scope: [x]}";
        let server = files.resolve(&files.kubeconfig("server: \"https://a\"", user), &[]).expect("usable");
        let headers: Vec<String> =
            server.impersonation.iter().map(|(name, value)| format!("{name}={}", value.to_str().expect("text"))).collect();
        let wanted = ["impersonate-user=admin", "impersonate-uid=7", "impersonate-group=a", "impersonate-group=b"];
        assert_eq!(headers[..4], wanted);
        assert_eq!(headers[4], "impersonate-extra-example.com%2fscope=x");
    }

    #[test]
    fn a_url_can_hold_the_password() {
        let files = Files::new();
        let server = files.resolve(&files.kubeconfig("server: \"https://u:p@a\"", ""), &[]).expect("usable");
        assert!(matches!(&server.sources.token, TokenSource::Password(user) if user.password == "p"));
        assert_eq!(server.url.to_string(), "https://a");
    }
}
