//! Chooses the proxy for the API server: `proxy-url` of the kubeconfig, else `HTTPS_PROXY`, `HTTP_PROXY` and `NO_PROXY`, as Go does
//! (`golang.org/x/net/http/httpproxy`).

use std::net::IpAddr;

use http::Uri;
use ipnetwork::IpNetwork;

use super::server_url::{BadUrl, Url, host_of};

/// The schemes of proxies.
const KNOWN: &str = "http, https, socks5, socks5h";

/// The environment variables that name proxies; empty text means that a variable is not set.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct ProxyEnvironment {
    https: String,
    http: String,
    none: String,
}

impl ProxyEnvironment {
    /// Reads the variables with a lookup function. Upper-case names override lower-case ones.
    pub(super) fn from_lookup(lookup: impl Fn(&str) -> Option<String>) -> Self {
        let any = |names: [&str; 2]| names.iter().find_map(|name| lookup(name).filter(|value| !value.is_empty())).unwrap_or_default();
        Self { https: any(["HTTPS_PROXY", "https_proxy"]), http: any(["HTTP_PROXY", "http_proxy"]), none: any(["NO_PROXY", "no_proxy"]) }
    }

    /// The proxy for a server; `None` if the connection is direct.
    ///
    /// # Errors
    /// The variable for this server's scheme holds no URL.
    pub(super) fn proxy_for(&self, server: &Uri) -> Result<Option<Url>, BadUrl> {
        let tls = server.scheme_str() == Some("https");
        let proxy = if tls { &self.https } else { &self.http };
        let port = server.port_u16().unwrap_or(if tls { 443 } else { 80 });
        if proxy.is_empty() || is_local(host_of(server)) || excludes(&self.none, host_of(server), port) {
            return Ok(None);
        }
        parse(proxy).map(Some)
    }
}

/// Parses the URL of a proxy. Without a scheme it is an HTTP proxy.
///
/// # Errors
/// The text is not a URL, or its scheme is not one of a proxy.
pub(super) fn parse(text: &str) -> Result<Url, BadUrl> {
    Url::parse(text, "http", KNOWN)
}

/// True for this machine itself, which is never reached through a proxy of the environment.
fn is_local(host: &str) -> bool {
    host == "localhost" || host.parse::<IpAddr>().is_ok_and(|ip| ip.to_canonical().is_loopback())
}

/// True if `NO_PROXY` excludes a server: by `*`, an address, a CIDR, a name or the end of a name. All but a CIDR may have a port. Ports are
/// compared as text.
fn excludes(no_proxy: &str, host: &str, port: u16) -> bool {
    let (host, port) = (host.to_ascii_lowercase(), port.to_string());
    let ip = host.parse::<IpAddr>().ok().map(|ip| ip.to_canonical());
    no_proxy.split(',').map(|entry| entry.trim().to_ascii_lowercase()).filter(|entry| !entry.is_empty()).any(|entry| {
        if entry == "*" {
            return true;
        }
        if let Some((_, prefix)) = entry.split_once('/')
            && prefix.bytes().all(|byte| byte.is_ascii_digit())
            && let Ok(net) = entry.parse::<IpNetwork>()
        {
            return ip.is_some_and(|ip| net.contains(ip));
        }
        let (name, wanted_port) = split_port(&entry);
        if !wanted_port.is_empty() && wanted_port != port {
            return false;
        }
        if let Ok(wanted) = name.parse::<IpAddr>() {
            return ip == Some(wanted.to_canonical());
        }
        let name = name.strip_prefix('*').filter(|below| below.starts_with('.')).unwrap_or(name);
        match name {
            "" => false,
            // `.example.com` matches the names below it, `example.com` also itself.
            below if below.starts_with('.') => host.ends_with(below),
            name => host == name || host.strip_suffix(name).is_some_and(|rest| rest.ends_with('.')),
        }
    })
}

/// The host and the port of `host:port` and `[address]:port`; other texts have no port.
fn split_port(entry: &str) -> (&str, &str) {
    let split = match entry.strip_prefix('[') {
        Some(rest) => rest.split_once("]:"),
        None => entry.split_once(':').filter(|(_, port)| !port.contains(':')),
    };
    split.unwrap_or((entry, ""))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn environment(variables: &[(&str, &str)]) -> ProxyEnvironment {
        ProxyEnvironment::from_lookup(|name| variables.iter().find(|(key, _)| *key == name).map(|(_, value)| (*value).to_owned()))
    }

    fn through(variables: &[(&str, &str)], server: &str) -> Option<String> {
        environment(variables).proxy_for(&server.parse().expect("a URL")).expect("a proxy").map(|url| url.to_string())
    }

    #[test]
    fn the_servers_scheme_chooses_the_variable() {
        let both = [("HTTPS_PROXY", "http://secure:3128"), ("http_proxy", "plain:3128")];
        assert_eq!(through(&both, "https://10.0.0.1:6443").as_deref(), Some("http://secure:3128"));
        assert_eq!(through(&both, "http://10.0.0.1:8080").as_deref(), Some("http://plain:3128"));
        // Upper case comes first. An empty variable counts as not set.
        let cases = [("HTTPS_PROXY", ""), ("https_proxy", "socks5://b:1080")];
        assert_eq!(through(&cases, "https://10.0.0.1").as_deref(), Some("socks5://b:1080"));
        assert_eq!(through(&[("HTTPS_PROXY", "a:1"), ("https_proxy", "b:2")], "https://10.0.0.1").as_deref(), Some("http://a:1"));
        assert_eq!(through(&[("HTTPS_PROXY", "")], "https://10.0.0.1"), None);
        for local in ["https://localhost:6443", "https://127.0.0.1:6443", "https://127.8.8.8", "https://[::1]:6443"] {
            assert_eq!(through(&both, local), None, "{local}");
        }
        assert!(environment(&[("HTTPS_PROXY", "ftp://x")]).proxy_for(&"https://a".parse().expect("a URL")).is_err());
    }

    #[test]
    fn no_proxy_is_read_as_go_reads_it() {
        for (no_proxy, server, direct) in [
            ("127.0.0.1,localhost,10.96.0.0/12,192.0.2.0/24,.cluster.local", "https://192.0.2.11:6443", true),
            ("10.0.0.0/8,192.0.2.11:8443", "https://192.0.2.11:6443", false),
            ("192.0.2.11:6443", "https://192.0.2.11:6443", true),
            ("192.0.2.11", "https://192.0.2.11:6443", true),
            ("192.0.2.11:443", "https://192.0.2.11", true),
            (" 10.0.0.1 , *", "https://anything", true),
            ("example.com", "https://example.com", true),
            ("example.com", "https://api.example.com:6443", true),
            ("example.com", "https://notexample.com", false),
            (".example.com", "https://api.example.com", true),
            (".example.com", "https://example.com", false),
            ("*.example.com", "https://api.example.com", true),
            ("*.example.com", "https://example.com", false),
            ("EXAMPLE.com", "https://api.Example.COM", true),
            ("example.com:6443", "https://api.example.com:6443", true),
            ("example.com:6443", "https://api.example.com", false),
            ("fd00::/8", "https://[fd00::1]:6443", true),
            ("[fd00::1]:6443", "https://[fd00::1]:6443", true),
            ("fd00::1", "https://[fd00::1]:6443", true),
            ("[fd00::1]:443", "https://[fd00::1]:6443", false),
            ("10.0.0.0/8", "https://10.example.com", false),
            ("", "https://10.0.0.1", false),
            (",,", "https://10.0.0.1", false),
            ("10.0.0.0/99", "https://10.0.0.1", false),
            ("*k8s.test", "https://k8s.test", false),
            ("k8s.test:", "https://k8s.test:6443", true),
            ("[fd00::1]", "https://[fd00::1]:6443", false),
            ("10.0.0.0/255.0.0.0", "https://10.0.0.1", false),
            ("k8s.test:06443", "https://k8s.test:6443", false),
            ("k8s.test", "https://k8s.test.:6443", false),
        ] {
            let proxied = through(&[("HTTPS_PROXY", "http://p:1"), ("NO_PROXY", no_proxy)], server);
            assert_eq!(proxied.is_none(), direct, "{no_proxy:?} and {server}");
        }
    }
}
