//! The plugin `flannel`: makes the delegate's configuration from subnet.env and runs the delegate [flannel 10.2]. If the delegate is
//! `bridge` with `host-local`, it runs in this process.

use std::fs::{self, DirBuilder, OpenOptions};
use std::io::{self, ErrorKind, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::json_keys::Json;
use crate::pod_network::subnet_env::SubnetEnv;

use super::bridge::{self, CreatedObjects};
use super::delegate::FlannelConfig;
use super::error::{CniError, CniErrors, ErrorCode};
use super::ipam::HOST_LOCAL;
use super::network_config::NetworkConfig;
use super::request::{CniRequest, Verb, is_identifier};
use super::result::CniResult;
use super::{exec, ipam};

/// Runs a verb.
///
/// # Errors
/// The verb fails.
pub fn run(config: &NetworkConfig, request: &CniRequest) -> Result<Option<CniResult>, CniError> {
    let flannel = FlannelConfig::read(config, &[])?;
    match request.verb {
        Verb::Add => add(&flannel, config, request).map(|added| Some(added.result)),
        Verb::Del => del(&flannel, config, request).map(|()| None),
        Verb::Check => check(&flannel, config, request).map(|()| None),
        Verb::Gc => collect(&flannel, config, request).map(|()| None),
        Verb::Status => status(&flannel).map(|()| None),
        Verb::Version => Ok(None),
    }
}

fn in_process(delegate: &NetworkConfig) -> Result<bool, CniError> {
    Ok(delegate.kind() == "bridge" && ipam::kind(delegate)? == HOST_LOCAL)
}

fn subnet_env(flannel: &FlannelConfig) -> Result<SubnetEnv, CniError> {
    let path = &flannel.subnet_file;
    let text = match fs::read(path) {
        Ok(text) => String::from_utf8_lossy(&text).into_owned(),
        Err(error) => {
            let why = if error.kind() == ErrorKind::NotFound { "no such file or directory".to_owned() } else { error.to_string() };
            return Err(CniError::other(format!(
                "failed to load flannel 'subnet.env' file: open {path}: {why}. Check the flannel pod log for this node."
            )));
        }
    };
    SubnetEnv::parse(path, &text).map_err(|why| {
        CniError::other(format!("failed to load flannel 'subnet.env' file: {why}. Check the flannel pod log for this node."))
    })
}

/// Checks that pods can be connected.
///
/// # Errors
/// There is no subnet yet: code 50.
pub fn status(flannel: &FlannelConfig) -> Result<(), CniError> {
    subnet_env(flannel).map(|_| ()).map_err(|error| CniError { code: ErrorCode::NOT_AVAILABLE, ..error })
}

/// What an ADD created.
#[derive(Debug)]
pub struct AddedAttachment {
    /// The result for the runtime.
    pub result: CniResult,
    delegate: NetworkConfig,
    made: Option<CreatedObjects>,
    /// The saved configuration, if this ADD created the file.
    new_state: Option<PathBuf>,
}

impl AddedAttachment {
    /// Undoes the ADD, because a later plugin failed.
    ///
    /// # Errors
    /// Something could not be undone. Then the saved configuration stays, so that DEL can use it.
    pub fn undo(&self, request: &CniRequest) -> Result<(), CniError> {
        match &self.made {
            Some(made) => made.undo(&self.delegate, request)?,
            None => exec::run(self.delegate.kind(), Verb::Del, request, &self.delegate.json()).map(|_| ())?,
        }
        self.new_state.as_ref().map_or(Ok(()), |path| forget(path))
    }
}

/// Connects a container.
///
/// # Errors
/// The container is not connected.
pub fn add(flannel: &FlannelConfig, config: &NetworkConfig, request: &CniRequest) -> Result<AddedAttachment, CniError> {
    let mut delegate = flannel.whole(config, &subnet_env(flannel)?)?;
    let in_process = in_process(&delegate)?;
    let state = Path::new(&flannel.data).join(&request.attachment.container);
    let is_new = !state.exists();
    save(&state, &delegate.json()).map_err(|cause| CniError::other(format!("cannot write {}: {cause}", state.display())))?;
    let new_state = is_new.then(|| state.clone());
    let within = |error: CniError| error.within("failed to delegate add");
    if in_process {
        if !delegate.has("bridge") && !delegate.has("forceAddress") {
            // The default bridge belongs to these plugins, so an address of a former lease is removed from it.
            delegate.set("forceAddress", &Value::Bool(true));
        }
        match bridge::add(&delegate, request) {
            Ok((result, made)) => Ok(AddedAttachment { result, delegate, made: Some(made), new_state }),
            Err(error) => {
                // Everything is undone, so DEL does not need the file.
                if is_new {
                    let _ = forget(&state);
                }
                Err(within(error))
            }
        }
    } else {
        let result = exec::run(delegate.kind(), Verb::Add, request, &delegate.json()).map_err(within)?.unwrap_or_default();
        Ok(AddedAttachment { result, delegate, made: None, new_state })
    }
}

/// Saves a container's configuration atomically.
fn save(path: &Path, delegate: &Json) -> io::Result<()> {
    let folder = path.parent().unwrap_or_else(|| Path::new("/"));
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    // A temporary file starts with a dot. No container ID does.
    let temporary = folder.join(format!(".{name}.{}", std::process::id()));
    let open = || OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&temporary);
    let mut file = match open() {
        Err(error) if error.kind() == ErrorKind::NotFound => {
            DirBuilder::new().recursive(true).mode(0o700).create(folder)?;
            open()?
        }
        opened => opened?,
    };
    file.write_all(&serde_json::to_vec(delegate)?)?;
    fs::rename(&temporary, path)
}

/// Returns true if the process that was writing this temporary file no longer exists.
fn is_left_over(name: &str) -> bool {
    let process = name.strip_prefix('.').and_then(|name| name.rsplit('.').next()).and_then(|process| process.parse::<u32>().ok());
    process.is_some_and(|process| !Path::new("/proc").join(process.to_string()).exists())
}

fn forget(path: &Path) -> Result<(), CniError> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != ErrorKind::NotFound => Err(CniError::other(format!("cannot remove {}: {error}", path.display()))),
        _ => Ok(()),
    }
}

/// The saved configuration of a container.
enum SavedDelegate {
    /// There is none for this network.
    Missing,
    /// A configuration.
    Valid(NetworkConfig),
    /// The file cannot be read.
    Unreadable(String),
}

/// Reads the saved configuration of a container. The file name has only the container's ID, so a configuration of another network is
/// ignored.
fn kept(path: &Path, network: &str) -> Result<SavedDelegate, CniError> {
    match fs::read(path) {
        Ok(text) => Ok(match NetworkConfig::read(&text) {
            Ok(delegate) if delegate.name != network => SavedDelegate::Missing,
            Ok(delegate) => SavedDelegate::Valid(delegate),
            Err(error) => SavedDelegate::Unreadable(error.message),
        }),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(SavedDelegate::Missing),
        Err(error) => Err(CniError::other(format!("cannot read {}: {error}", path.display()))),
    }
}

/// Returns the delegate's configuration without the saved one. Masquerade rules are only searched for if subnet.env says that the network
/// has them.
fn frame(flannel: &FlannelConfig, config: &NetworkConfig) -> Result<NetworkConfig, CniError> {
    flannel.frame(config, subnet_env(flannel).is_ok_and(|env| !env.masquerade))
}

/// Disconnects a container. Its saved configuration is removed when the container is disconnected. Without a readable saved configuration,
/// the network configuration is enough.
///
/// # Errors
/// Something could not be removed.
pub fn del(flannel: &FlannelConfig, config: &NetworkConfig, request: &CniRequest) -> Result<(), CniError> {
    let state = Path::new(&flannel.data).join(&request.attachment.container);
    let delegate = match kept(&state, &config.name)? {
        SavedDelegate::Valid(delegate) => delegate,
        SavedDelegate::Missing => {
            let frame = frame(flannel, config)?;
            // Another delegate may need the complete configuration. Upstream does nothing in this case, too.
            return if in_process(&frame)? { bridge::del(&frame, request) } else { Ok(()) };
        }
        SavedDelegate::Unreadable(_) => frame(flannel, config)?,
    };
    if in_process(&delegate)? {
        bridge::del(&delegate, request)?;
    } else {
        exec::run(delegate.kind(), Verb::Del, request, &delegate.json()).map_err(|error| error.within("failed to delegate del"))?;
    }
    forget(&state)
}

/// Checks that a container is still connected as the result says.
///
/// # Errors
/// It is not.
pub fn check(flannel: &FlannelConfig, config: &NetworkConfig, request: &CniRequest) -> Result<(), CniError> {
    let state = Path::new(&flannel.data).join(&request.attachment.container);
    let mut delegate = match kept(&state, &config.name)? {
        SavedDelegate::Valid(delegate) => delegate,
        SavedDelegate::Missing => {
            return Err(CniError::other(format!("{} is missing: nothing is known of the container", state.display())));
        }
        SavedDelegate::Unreadable(why) => return Err(CniError::other(format!("{} cannot be read: {why}", state.display()))),
    };
    if let Some(previous) = config.previous_document()? {
        delegate.set("prevResult", &Value::Object(previous));
    }
    if in_process(&delegate)? {
        bridge::run(&delegate, request).map(|_| ())
    } else {
        exec::run(delegate.kind(), Verb::Check, request, &delegate.json()).map(|_| ())
    }
}

/// Removes everything that belongs to no valid attachment.
///
/// # Errors
/// Something could not be removed. All removals were tried.
pub fn collect(flannel: &FlannelConfig, config: &NetworkConfig, request: &CniRequest) -> Result<(), CniError> {
    let valid = config.valid()?;
    let mut delegate = frame(flannel, config)?;
    delegate.copy_gc_keys(config);
    if in_process(&delegate)? {
        bridge::run(&delegate, request)?;
    } else {
        exec::run(delegate.kind(), Verb::Gc, request, &delegate.json())?;
    }
    let mut errors = CniErrors::default();
    for state in fs::read_dir(&flannel.data).into_iter().flatten().flatten() {
        let name = state.file_name().to_string_lossy().into_owned();
        let gone = is_identifier(&name) && !valid.iter().any(|valid| valid.container == name);
        let of_network = || matches!(kept(&state.path(), &config.name), Ok(SavedDelegate::Valid(_)));
        if gone && of_network() || is_left_over(&name) {
            errors.note(forget(&state.path()));
        }
    }
    errors.into_result()
}
