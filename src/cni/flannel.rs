//! The plugin `flannel`: it makes a configuration of subnet.env and has a plugin for interfaces carry it out [flannel 10.2]. Where
//! that is `bridge` with `host-local`, this process does it itself.

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

/// Carries out a verb.
///
/// # Errors
/// It was not carried out.
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

/// Says whether containers can be connected.
///
/// # Errors
/// There is no subnet yet; number 50.
pub fn status(flannel: &FlannelConfig) -> Result<(), CniError> {
    subnet_env(flannel).map(|_| ()).map_err(|error| CniError { code: ErrorCode::NOT_AVAILABLE, ..error })
}

/// What an ADD has made.
#[derive(Debug)]
pub struct AddedAttachment {
    /// What the container got.
    pub result: CniResult,
    delegate: NetworkConfig,
    made: Option<CreatedObjects>,
    /// The file that was not there before.
    new_state: Option<PathBuf>,
}

impl AddedAttachment {
    /// Undoes it all, for the sake of a plugin behind this one that failed.
    ///
    /// # Errors
    /// Something stays. Then the configuration stays as well, for DEL.
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
/// It is not connected.
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
            // The default bridge belongs to these plugins: an address of an earlier lease is removed.
            delegate.set("forceAddress", &Value::Bool(true));
        }
        match bridge::add(&delegate, request) {
            Ok((result, made)) => Ok(AddedAttachment { result, delegate, made: Some(made), new_state }),
            Err(error) => {
                // Nothing is left that DEL would need it for.
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

/// Writes a container's configuration, whole or not at all.
fn save(path: &Path, delegate: &Json) -> io::Result<()> {
    let folder = path.parent().unwrap_or_else(|| Path::new("/"));
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    // No container's name starts with a dot.
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

/// Whether a file was being written by a process that has gone.
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

/// What is kept of a container.
enum SavedDelegate {
    /// Nothing of this network.
    Missing,
    /// A configuration.
    Valid(NetworkConfig),
    /// Something that cannot be read.
    Unreadable(String),
}

/// What is kept of a container for a network. The file has the container's name alone: what another network kept there counts for nothing.
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

/// The other plugin's configuration, as far as it is known without what was kept. Rules that masquerade are looked for only where
/// subnet.env says that the network has some.
fn frame(flannel: &FlannelConfig, config: &NetworkConfig) -> Result<NetworkConfig, CniError> {
    flannel.frame(config, subnet_env(flannel).is_ok_and(|env| !env.masquerade))
}

/// Disconnects a container. What was kept of it goes only when it is disconnected; where nothing was kept, or what was cannot be read, the
/// network's configuration says enough.
///
/// # Errors
/// Something of it stays.
pub fn del(flannel: &FlannelConfig, config: &NetworkConfig, request: &CniRequest) -> Result<(), CniError> {
    let state = Path::new(&flannel.data).join(&request.attachment.container);
    let delegate = match kept(&state, &config.name)? {
        SavedDelegate::Valid(delegate) => delegate,
        SavedDelegate::Missing => {
            let frame = frame(flannel, config)?;
            // Another plugin may want to know more than that; upstream does nothing, either.
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

/// Sees that a container is still connected as the result says.
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

/// Removes whatever is of no valid attachment.
///
/// # Errors
/// Something stays; all has been tried.
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
