//! The CNI plugin: container runtimes start this program to connect pods with the network.
//!
//! A runtime passes parameters in the environment and the network configuration on standard input. The name under which the program is
//! started selects the plugin: `flannel`, `bridge`, `host-local`, `portmap`, `loopback`, or `sepal`, which does what the first four do
//! together. State on disk and kernel objects are those of the reference plugins, so that one can take over from the other while pods run.
//!
//! - [`request`], [`version`], [`network_config`], [`result`], [`error`]: the CNI protocol. Pure.
//! - [`flannel`] with [`delegate`]; [`combined`], the plugin `sepal`.
//! - [`bridge`], [`ipam`], [`portmap`], [`loopback`]: the plugins that change the kernel.
//! - [`netns`], [`used_addresses`], [`iptables`], [`exec`]: shared parts.
//!
//! A pod waits while the plugin runs. So it has no async runtime, no log and no command line parser, and it starts another process only if
//! the configuration needs one.

pub mod bridge;
pub mod combined;
pub mod delegate;
pub mod error;
pub mod exec;
pub mod flannel;
pub mod ipam;
pub mod iptables;
pub mod loopback;
pub mod netns;
pub mod network_config;
pub mod portmap;
pub mod request;
pub mod result;
pub mod used_addresses;
pub mod version;

use std::env;
use std::ffi::OsString;
use std::io::{Read, Write};
use std::path::Path;
use std::process::ExitCode;

use serde_json::{Value, json};

use crate::pod_network::cni_config::{OTHER_NAMES, OWN_NAME};
use error::{CniError, ErrorCode};
use netns::NetworkNamespace;
use network_config::{MAX_CONFIG_LEN, NetworkConfig};
use request::{CniRequest, Verb};
use result::CniResult;
use version::CniVersion;

/// Runs as a plugin if the program was started as one. Otherwise returns `None` and does nothing.
#[must_use]
pub fn main() -> Option<ExitCode> {
    let mut arguments = env::args_os();
    let name = name(arguments.next().as_ref());
    let is_other = OTHER_NAMES.contains(&name.as_str());
    let is_called = env::var_os("CNI_COMMAND").is_some_and(|command| !command.is_empty()) && arguments.next().is_none();
    match (is_called, is_other) {
        (true, _) => Some(answer(&name)),
        (false, true) => Some(print_about(&name)),
        (false, false) => None,
    }
}

fn name(argument: Option<&OsString>) -> String {
    argument.map(Path::new).and_then(Path::file_name).map(|name| name.to_string_lossy().into_owned()).unwrap_or_default()
}

/// Prints which plugin this is, for a user who starts it by hand.
fn print_about(name: &str) -> ExitCode {
    let versions = CniVersion::names().join(", ");
    let text = format!("CNI Plugin {name} version v{} (sepal)\nCNI protocol versions supported: {versions}\n", env!("CARGO_PKG_VERSION"));
    let _ = std::io::stderr().write_all(text.as_bytes());
    ExitCode::SUCCESS
}

fn answer(name: &str) -> ExitCode {
    let mut version = CniVersion::NEWEST;
    let (document, code) = match respond(name, &mut version) {
        Ok(document) => (document, ExitCode::SUCCESS),
        Err(error) => (Some(error.render(version.as_str())), ExitCode::FAILURE),
    };
    let Some(document) = document else { return code };
    let text = serde_json::to_string_pretty(&document).unwrap_or_default();
    // If the result cannot be written, an error cannot be written either.
    if std::io::stdout().write_all(text.as_bytes()).is_err() { ExitCode::FAILURE } else { code }
}

/// Runs the verb that the runtime requests, and returns the document to print, if there is one. Sets `version` to that of the
/// configuration.
fn respond(name: &str, version: &mut CniVersion) -> Result<Option<Value>, CniError> {
    let mut request = CniRequest::read(|name| env::var_os(name).map(|value| value.to_string_lossy().into_owned()))?;
    if request.verb == Verb::Version {
        return Ok(Some(json!({"cniVersion": CniVersion::NEWEST.as_str(), "supportedVersions": CniVersion::names()})));
    }
    let config = NetworkConfig::read(&read_input()?)?;
    *version = config.version;
    request.verb.allowed(config.version)?;
    check_namespace(&mut request)?;
    let result = run(name, &config, &request)?;
    Ok(result.map(|result| result.render(config.version)))
}

fn read_input() -> Result<Vec<u8>, CniError> {
    let mut text = Vec::new();
    // One byte above the limit shows that the input is too large.
    let limit = u64::try_from(MAX_CONFIG_LEN).unwrap_or(u64::MAX).saturating_add(1);
    let read = std::io::stdin().take(limit).read_to_end(&mut text);
    read.map_err(|cause| CniError::new(ErrorCode::INPUT, format!("error reading from stdin: {cause}")))?;
    Ok(text)
}

/// Refuses the network namespace of the host: a pod on the host's network has no interface of its own. For DEL, such a path means that the
/// pod's namespace is gone and the path was reused, as paths below `/proc/PID` are.
fn check_namespace(request: &mut CniRequest) -> Result<(), CniError> {
    let is_own = !request.netns.is_empty()
        && request.verb.has_attachment()
        && !request.any_namespace
        && NetworkNamespace::open(&request.netns).is_ok_and(|namespace| namespace.is_own().unwrap_or(false));
    if is_own && request.verb == Verb::Del {
        request.netns.clear();
    } else if is_own {
        return Err(CniError::new(ErrorCode::SAME_NAMESPACE, "plugin's netns and netns from CNI_NETNS should not be the same"));
    }
    Ok(())
}

/// Runs a verb of the plugin with this name. If it is not the name of a reference plugin, the `type` of the configuration selects the
/// plugin.
///
/// # Errors
/// The verb fails.
pub fn run(name: &str, config: &NetworkConfig, request: &CniRequest) -> Result<Option<CniResult>, CniError> {
    let name = if OTHER_NAMES.contains(&name) { name } else { config.kind() };
    match name {
        "flannel" => flannel::run(config, request),
        "bridge" => bridge::run(config, request),
        "host-local" => ipam::run(config, request),
        "portmap" => portmap::run(config, request),
        "loopback" => loopback::run(config, request),
        OWN_NAME => combined::run(config, request),
        other => Err(CniError {
            details: format!("types: {OWN_NAME}, {}", OTHER_NAMES.join(", ")),
            ..CniError::new(ErrorCode::BAD_CONFIG, format!("there is no plugin of type {other:?} here"))
        }),
    }
}
