//! Runs other plugins as a runtime does [flannel 10.7].

use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::Duration;

use serde::Deserialize;

use crate::json_keys::{self, Json};

use super::error::{CniError, ErrorCode};
use super::request::{CniRequest, Verb};
use super::result::CniResult;

/// How often a program is started again while it is being written (`ETXTBSY`).
const TRIES: u32 = 5;
const PAUSE: Duration = Duration::from_secs(1);

/// Runs a plugin with a configuration for the same attachment. Returns the result of ADD.
///
/// # Errors
/// The plugin does not exist, or it fails; its error code stays.
pub fn run(kind: &str, verb: Verb, request: &CniRequest, config: &Json) -> Result<Option<CniResult>, CniError> {
    let program = find(kind, &request.path)?;
    let text =
        serde_json::to_string(config).map_err(|error| CniError::other(format!("cannot write the configuration of {kind}: {error}")))?;
    let output = run_with_input(&program, verb, request, &text)
        .map_err(|cause| CniError::other(format!("cannot run {}: {cause}", program.display())))?;
    if !output.status.success() {
        return Err(plugin_error(&output));
    }
    if verb != Verb::Add {
        return Ok(None);
    }
    let result: Json = serde_json::from_slice(&output.stdout)
        .map_err(|error| CniError::new(ErrorCode::DECODE, format!("the result of {kind} cannot be read: {error}")))?;
    CniResult::parse(&result).map(Some).map_err(|error| error.within(&format!("the result of {kind} cannot be read")))
}

/// Finds a plugin in the folders of `CNI_PATH`.
fn find(kind: &str, path: &str) -> Result<PathBuf, CniError> {
    if kind.is_empty() || kind.contains('/') {
        return Err(CniError::other(format!("invalid plugin name: {kind}")));
    }
    let is_program = |found: &PathBuf| found.metadata().is_ok_and(|file| file.is_file());
    let found = path.split(':').filter(|folder| !folder.is_empty()).map(|folder| Path::new(folder).join(kind)).find(is_program);
    found.ok_or_else(|| {
        let folders: Vec<&str> = path.split(':').collect();
        CniError::other(format!("failed to find plugin {kind:?} in path [{}]", folders.join(" ")))
    })
}

#[allow(
    clippy::disallowed_methods,
    reason = "a plugin is a process of its own that does nothing meanwhile; its runtime has the time limit"
)]
fn run_with_input(program: &Path, verb: Verb, request: &CniRequest, config: &str) -> io::Result<Output> {
    let mut tries = 1;
    let mut child = loop {
        let mut command = Command::new(program);
        command
            .env("CNI_COMMAND", verb.as_str())
            .env("CNI_NETNS", &request.netns)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        match command.spawn() {
            Err(error) if error.kind() == io::ErrorKind::ExecutableFileBusy && tries < TRIES => {
                tries += 1;
                std::thread::sleep(PAUSE);
            }
            started => break started?,
        }
    };
    // A plugin that does not read its input may still succeed.
    let _ = child.stdin.take().map_or(Ok(()), |mut stdin| stdin.write_all(config.as_bytes()));
    Child::wait_with_output(child)
}

/// The error document that a plugin prints.
#[derive(Default, Deserialize)]
#[serde(default)]
struct ErrorDocument {
    code: Option<u32>,
    msg: String,
    details: String,
}

fn plugin_error(output: &Output) -> CniError {
    let (said, words) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    if said.trim().is_empty() {
        let status = output.status;
        return CniError::other(match words.trim() {
            "" => format!("netplugin failed with no error message: {status}"),
            words => format!("netplugin failed: {words:?}"),
        });
    }
    let read = |text: &str| -> Option<CniError> {
        let ErrorDocument { code, msg, details } = json_keys::from_slice(text.as_bytes()).ok()?;
        Some(CniError { code: ErrorCode(code?), message: msg, details })
    };
    read(&said).unwrap_or_else(|| CniError::other(format!("netplugin failed but error parsing its diagnostic message {said:?}")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::process::ExitStatusExt;

    #[test]
    fn failures_keep_their_error_codes() {
        let failed = |stdout: &str, stderr: &str| {
            let output = Output { status: std::process::ExitStatus::from_raw(256), stdout: stdout.into(), stderr: stderr.into() };
            let error = plugin_error(&output);
            (error.code.0, error.to_string())
        };
        assert_eq!(failed("{\"code\": 11, \"msg\": \"later\", \"details\": \"busy\"}", "x"), (11, "later; busy".into()));
        assert_eq!(failed("", "boom\n"), (999, "netplugin failed: \"boom\"".into()));
        assert_eq!(failed(" ", ""), (999, "netplugin failed with no error message: exit status: 1".into()));
        assert_eq!(failed("oops", ""), (999, "netplugin failed but error parsing its diagnostic message \"oops\"".into()));
        assert!(find("../x", "/bin").is_err() && find("", "/bin").is_err());
        assert_eq!(find("no-such", "/a:/b").expect_err("none").message, "failed to find plugin \"no-such\" in path [/a /b]");
    }
}
