//! The program as a plugin of container runtimes (CNI): pods get their network from the same binary.
//!
//! A container runtime starts it with parameters in the environment and a network's configuration on standard input. The name of the call
//! selects the plugin: `flannel`, `bridge`, `host-local`, `portmap`, `loopback`, or `sepal`, which does what the first four do together.
//! State on disk and objects in the kernel are the real plugins', so that either can take over from the other while pods run.
//!
//! - [`protocol`], [`version`], [`config`], [`result`], [`failure`]: what is said on either side. Pure.
//! - [`flannel`] with [`delegate`]; [`combined`], which is the plugin `sepal`.
//! - [`bridge`], [`ipam`], [`portmap`], [`loopback`]: the plugins that do the work.
//! - [`netns`], [`in_use`], [`iptables`], [`exec`]: what they share. [`install`]: putting it in place.
//!
//! A pod waits while this runs. So there is no runtime, no log and no parser of command lines on this path, and no other process is
//! started where nothing is asked for that needs one.

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
use network_config::{MOST, NetworkConfig};
use request::{CniRequest, Verb};
use result::CniResult;
use version::CniVersion;

/// Is a plugin, if that is what the program was started as; if not, there is no answer, and nothing has happened.
#[must_use]
pub fn main() -> Option<ExitCode> {
    let mut arguments = env::args_os();
    let name = name(arguments.next().as_ref());
    let is_other = OTHER_NAMES.contains(&name.as_str());
    let is_called = env::var_os("CNI_COMMAND").is_some_and(|command| !command.is_empty()) && arguments.next().is_none();
    match (is_called, is_other) {
        (true, _) => Some(answer(&name)),
        (false, true) => Some(about(&name)),
        (false, false) => None,
    }
}

fn name(argument: Option<&OsString>) -> String {
    argument.map(Path::new).and_then(Path::file_name).map(|name| name.to_string_lossy().into_owned()).unwrap_or_default()
}

/// Explains the plugin to a user who starts it by hand.
fn about(name: &str) -> ExitCode {
    let versions = CniVersion::names().join(", ");
    let text = format!("CNI Plugin {name} version v{} (sepal)\nCNI protocol versions supported: {versions}\n", env!("CARGO_PKG_VERSION"));
    let _ = std::io::stderr().write_all(text.as_bytes());
    ExitCode::SUCCESS
}

fn answer(name: &str) -> ExitCode {
    let mut version = CniVersion::NEWEST;
    let (document, code) = match carry_out(name, &mut version) {
        Ok(document) => (document, ExitCode::SUCCESS),
        Err(error) => (Some(error.render(version.as_str())), ExitCode::FAILURE),
    };
    let Some(document) = document else { return code };
    let text = serde_json::to_string_pretty(&document).unwrap_or_default();
    // If the result cannot be written, an error text cannot be written either.
    if std::io::stdout().write_all(text.as_bytes()).is_err() { ExitCode::FAILURE } else { code }
}

/// Carries out what the runtime asks for; gives the document to answer with, if there is one. `version` becomes the configuration's.
fn carry_out(name: &str, version: &mut CniVersion) -> Result<Option<Value>, CniError> {
    let mut request = CniRequest::read(|name| env::var_os(name).map(|value| value.to_string_lossy().into_owned()))?;
    if request.verb == Verb::Version {
        return Ok(Some(json!({"cniVersion": CniVersion::NEWEST.as_str(), "supportedVersions": CniVersion::names()})));
    }
    let config = NetworkConfig::read(&input()?)?;
    *version = config.version;
    request.verb.allowed(config.version)?;
    check_namespace(&mut request)?;
    let result = run(name, &config, &request)?;
    Ok(result.map(|result| result.render(config.version)))
}

fn input() -> Result<Vec<u8>, CniError> {
    let mut text = Vec::new();
    // One byte more is enough to see that it is too much.
    let most = u64::try_from(MOST).unwrap_or(u64::MAX).saturating_add(1);
    let read = std::io::stdin().take(most).read_to_end(&mut text);
    read.map_err(|cause| CniError::new(ErrorCode::INPUT, format!("error reading from stdin: {cause}")))?;
    Ok(text)
}

/// A pod on the host's network has no interface of its own. Seen to before anything is done. For DEL, such a path is one that the host
/// has by now, as those of processes are used again: the pod's namespace has gone.
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

/// Carries out a verb of the plugin with this name. By any name but the real plugins', the configuration's type decides.
///
/// # Errors
/// It was not carried out.
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
