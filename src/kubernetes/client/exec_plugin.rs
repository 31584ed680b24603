//! Gets credentials from a plugin that the kubeconfig names (`users[].user.exec`, client.authentication.k8s.io).

use std::process::{Output, Stdio};
use std::sync::Arc;
use std::time::Duration;

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use http::HeaderValue;
use jiff::Timestamp;
use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::process::{Child, Command};
use tokio::sync::Mutex;
use tokio::time::{Instant, timeout};

use super::credentials::bearer;
use super::kubeconfig::{Cluster, ExecConfig};
use super::tls::{Identity, Trust, client_config};
use crate::error_text::task_failure;

/// How long the plugin may run. Some plugins ask remote servers.
pub(super) const TIME_LIMIT: Duration = Duration::from_secs(30);
/// How many bytes the plugin may print.
const MAX_OUTPUT: u64 = 1 << 20;
/// How long its output is read after it exits.
const READ_AFTER_EXIT: Duration = Duration::from_secs(1);
/// How many characters of the plugin's error output the error repeats.
const MAX_ERROR_OUTPUT: usize = 300;

/// Why the plugin gave no credentials.
#[derive(Debug, thiserror::Error)]
pub(super) enum PluginError {
    /// The program cannot be started.
    #[error("cannot start the credential plugin {command}: {cause}{hint}")]
    Start {
        /// The program.
        command: String,
        /// What the system said.
        cause: std::io::Error,
        /// The kubeconfig's hint for installing it.
        hint: String,
    },
    /// The program did not exit in time and was killed.
    #[error("the credential plugin {command} did not end within {} s and was killed", TIME_LIMIT.as_secs())]
    Hangs {
        /// The program.
        command: String,
    },
    /// The run that another request waited for failed.
    #[error("{0}")]
    Shared(String),
    /// The program failed, or printed something else than credentials.
    #[error("the credential plugin {command} failed: {why}")]
    Failed {
        /// The program.
        command: String,
        /// What is wrong.
        why: String,
    },
}

/// The credentials that the plugin gave.
#[derive(Clone, Default)]
pub(super) struct PluginCredentials {
    pub authorization: Option<HeaderValue>,
    pub identity: Option<Identity>,
    expires: Option<Timestamp>,
}

impl PluginCredentials {
    fn same_as(&self, other: &Self) -> bool {
        self.authorization == other.authorization && self.identity == other.identity
    }
}

/// A plugin, and the result of its last run.
pub(super) struct ExecPlugin {
    exec: ExecConfig,
    /// Value of `KUBERNETES_EXEC_INFO`.
    info: String,
    last_run: Mutex<LastRun>,
}

/// The result of the last run.
#[derive(Default)]
struct LastRun {
    credentials: Option<PluginCredentials>,
    /// When and why it failed.
    failure: Option<(Instant, String)>,
}

#[derive(Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct Printed {
    api_version: String,
    kind: String,
    status: Option<Status>,
}

#[derive(Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct Status {
    token: Option<String>,
    client_certificate_data: Option<String>,
    client_key_data: Option<String>,
    expiration_timestamp: Option<Timestamp>,
}

impl ExecPlugin {
    /// The plugin of a user. `authorities` is the cluster's CA bundle, which some plugins ask for.
    pub(super) fn new(exec: ExecConfig, cluster: &Cluster, authorities: Option<&[u8]>) -> Self {
        let mut spec = json!({"interactive": false});
        if exec.provide_cluster_info {
            spec["cluster"] = cluster_info(cluster, authorities);
        }
        let info = json!({"kind": "ExecCredential", "apiVersion": exec.api_version, "spec": spec}).to_string();
        Self { exec, info, last_run: Mutex::default() }
    }

    /// Valid credentials. Runs the plugin if it has not run yet or its credentials have expired.
    ///
    /// # Errors
    /// The plugin gives none.
    pub(super) async fn credentials(self: &Arc<Self>) -> Result<PluginCredentials, PluginError> {
        let asked = Instant::now();
        // A task of its own: the plugin may be in the middle of a token rotation when the request is cancelled.
        let command = self.exec.command.clone();
        let plugin = Arc::clone(self);
        let run = tokio::spawn(async move { plugin.valid_credentials(asked).await });
        run.await.unwrap_or_else(|error| Err(PluginError::Failed { command, why: task_failure(error) }))
    }

    async fn valid_credentials(&self, asked: Instant) -> Result<PluginCredentials, PluginError> {
        let mut last_run = self.last_run.lock().await;
        let valid = |given: &&PluginCredentials| given.expires.is_none_or(|expires| Timestamp::now() < expires);
        if let Some(credentials) = last_run.credentials.as_ref().filter(valid) {
            return Ok(credentials.clone());
        }
        // Requests that waited for the same run get its failure.
        if let Some((_, why)) = last_run.failure.as_ref().filter(|(failed, _)| *failed >= asked) {
            return Err(PluginError::Shared(why.clone()));
        }
        let ended = self.run().await;
        last_run.failure = ended.as_ref().err().map(|error| (Instant::now(), error.to_string()));
        last_run.credentials = ended.as_ref().ok().cloned();
        ended
    }

    /// Forgets these credentials because the server refused them. The next request runs the plugin again. Credentials that a later run
    /// gave are kept.
    pub(super) async fn forget(&self, refused: &PluginCredentials) {
        let mut last_run = self.last_run.lock().await;
        if last_run.credentials.as_ref().is_some_and(|given| given.same_as(refused)) {
            *last_run = LastRun::default();
        }
    }

    async fn run(&self) -> Result<PluginCredentials, PluginError> {
        let command = &self.exec.command;
        let failed = |why: String| PluginError::Failed { command: command.clone(), why };
        let start = |cause: std::io::Error| {
            let hint = self.exec.install_hint.trim();
            let hint = if hint.is_empty() { String::new() } else { format!("; {}", hint.escape_debug()) };
            PluginError::Start { command: command.clone(), cause, hint }
        };
        let mut child = self.command().spawn().map_err(start)?;
        let group = Group(child.id());
        let ended = timeout(TIME_LIMIT, output(&mut child)).await.map_err(|_| PluginError::Hangs { command: command.clone() })?;
        let output = ended.map_err(|error| failed(error.to_string()))?;
        if output.stdout.len() as u64 >= MAX_OUTPUT {
            return Err(failed(format!("it printed more than {MAX_OUTPUT} bytes")));
        }
        if !output.status.success() {
            let said: String = String::from_utf8_lossy(&output.stderr).trim().chars().take(MAX_ERROR_OUTPUT).collect();
            return Err(failed(if said.is_empty() {
                output.status.to_string()
            } else {
                format!("{}: {}", output.status, said.escape_debug())
            }));
        }
        group.leave();
        self.read(&output.stdout).map_err(failed)
    }

    #[allow(clippy::disallowed_methods, reason = "a credential plugin is not iptables; it has a time limit and is killed with its future")]
    fn command(&self) -> Command {
        let mut command = Command::new(&self.exec.command);
        command.args(&self.exec.args).envs(self.exec.env.iter().map(|variable| (&variable.name, &variable.value)));
        command.env("KUBERNETES_EXEC_INFO", &self.info);
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true).process_group(0);
        command
    }

    /// Parses the plugin's output.
    fn read(&self, printed: &[u8]) -> Result<PluginCredentials, String> {
        let printed: Printed = serde_json::from_slice(printed).map_err(|_| "it printed no ExecCredential".to_owned())?;
        if printed.kind != "ExecCredential" || printed.api_version != self.exec.api_version {
            return Err(format!(
                "it printed {:?} of {:?}, and the kubeconfig asks for ExecCredential of {:?}",
                printed.kind, printed.api_version, self.exec.api_version
            ));
        }
        let status = printed.status.ok_or("what it printed has no status")?;
        let some = |text: Option<String>| text.filter(|text| !text.is_empty());
        let token = some(status.token).map(|token| bearer("the token", token.trim())).transpose().map_err(|error| error.to_string())?;
        let identity = match (some(status.client_certificate_data), some(status.client_key_data)) {
            (Some(certificate), Some(key)) => Some(Identity { certificate: certificate.into_bytes(), key: key.into_bytes() }),
            (None, None) => None,
            _ => return Err("it gave a certificate without a key, or a key without a certificate".to_owned()),
        };
        if let Some(identity) = &identity {
            client_config(&Trust::Anything, Some(identity)).map_err(|error| error.to_string())?;
        }
        if token.is_none() && identity.is_none() {
            return Err("it gave neither a token nor a certificate".to_owned());
        }
        Ok(PluginCredentials { authorization: token, identity, expires: status.expiration_timestamp })
    }
}

/// The process group of a plugin. It is killed on drop, because child processes of a failed plugin would stay.
struct Group(Option<u32>);

impl Group {
    /// Leaves the group running, because the plugin succeeded.
    fn leave(mut self) {
        self.0 = None;
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        if let Some(group) = self.0.and_then(|id| i32::try_from(id).ok()) {
            // An error means that no process of the group is left.
            let _ = killpg(Pid::from_raw(group), Signal::SIGKILL);
        }
    }
}

/// Waits until the plugin exits and reads its output, up to a limit. Child processes may keep the output open after that.
async fn output(child: &mut Child) -> std::io::Result<Output> {
    let (stdout, stderr) = (child.stdout.take(), child.stderr.take());
    let mut printed = (Vec::new(), Vec::new());
    let status = {
        let reading = async { tokio::join!(read_to(stdout, &mut printed.0), read_to(stderr, &mut printed.1)) };
        tokio::pin!(reading);
        let status = tokio::select! {
            _ = &mut reading => child.wait().await,
            status = child.wait() => {
                let _ = timeout(READ_AFTER_EXIT, &mut reading).await;
                status
            }
        };
        status?
    };
    Ok(Output { status, stdout: printed.0, stderr: printed.1 })
}

async fn read_to(stream: Option<impl AsyncRead + Unpin>, printed: &mut Vec<u8>) {
    if let Some(stream) = stream {
        // The bytes before an error are used.
        let _ = stream.take(MAX_OUTPUT).read_to_end(printed).await;
    }
}

fn cluster_info(cluster: &Cluster, authorities: Option<&[u8]>) -> Value {
    let mut info = json!({"server": cluster.server});
    let mut set = |name: &str, value: Value| info[name] = value;
    if !cluster.tls_server_name.is_empty() {
        set("tls-server-name", cluster.tls_server_name.clone().into());
    }
    if cluster.insecure_skip_tls_verify {
        set("insecure-skip-tls-verify", true.into());
    }
    if let Some(authorities) = authorities {
        set("certificate-authority-data", BASE64_STANDARD.encode(authorities).into());
    }
    if !cluster.proxy_url.is_empty() {
        set("proxy-url", cluster.proxy_url.clone().into());
    }
    if let Some(extension) = cluster.exec_extension() {
        set("config", extension.clone());
    }
    info
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kubernetes::client::kubeconfig::Variable;

    const VERSION: &str = "client.authentication.k8s.io/v1";

    fn plugin(script: &str) -> Arc<ExecPlugin> {
        let exec = ExecConfig {
            api_version: VERSION.into(),
            command: "sh".into(),
            args: vec!["-c".into(), script.into()],
            env: vec![Variable { name: "TOKEN".into(), value: "abc".into() }],
            provide_cluster_info: true,
            ..ExecConfig::default()
        };
        Arc::new(ExecPlugin::new(exec, &Cluster { server: "https://k".into(), ..Cluster::default() }, Some(b"pem")))
    }

    fn prints(status: &str) -> String {
        format!("echo '{{\"kind\":\"ExecCredential\",\"apiVersion\":\"{VERSION}\",\"status\":{status}}}' | sed s/TOKEN/$TOKEN/")
    }

    async fn error(script: &str) -> String {
        plugin(script).credentials().await.map(drop).expect_err(script).to_string()
    }

    #[tokio::test]
    async fn the_plugin_runs_again_only_after_refusal_or_expiry() {
        let folder = tempfile::tempdir().expect("a folder");
        let runs = folder.path().join("runs");
        let count = || std::fs::read_to_string(&runs).map_or(0, |text| text.lines().count());
        let counted = |status: &str| plugin(&format!("echo x >> {}; {}", runs.display(), prints(status)));
        let lasting = counted(r#"{"token":"TOKEN"}"#);
        for _ in 0..2 {
            let given = lasting.credentials().await.unwrap_or_else(|error| panic!("{error}"));
            assert_eq!(given.authorization.expect("a token"), "Bearer abc");
        }
        assert_eq!(count(), 1);
        let other = PluginCredentials { authorization: Some(HeaderValue::from_static("Bearer other")), ..PluginCredentials::default() };
        lasting.forget(&other).await;
        let given = lasting.credentials().await.unwrap_or_else(|error| panic!("{error}"));
        assert_eq!(count(), 1, "a refusal of other credentials changes nothing");
        lasting.forget(&given).await;
        lasting.credentials().await.unwrap_or_else(|error| panic!("{error}"));
        assert_eq!(count(), 2);
        let expired = counted(r#"{"token":"TOKEN","expirationTimestamp":"2020-01-01T00:00:00Z"}"#);
        for _ in 0..2 {
            expired.credentials().await.unwrap_or_else(|error| panic!("{error}"));
        }
        assert_eq!(count(), 4);
    }

    #[tokio::test]
    async fn a_cancelled_request_does_not_stop_the_plugin() {
        let slow = plugin(&format!("sleep 0.5; {}", prints(r#"{"token":"TOKEN"}"#)));
        timeout(Duration::from_millis(100), slow.credentials()).await.map(drop).expect_err("the request is cancelled");
        let given = slow.credentials().await.unwrap_or_else(|error| panic!("{error}"));
        assert_eq!(given.authorization.expect("a token"), "Bearer abc");
    }

    #[tokio::test]
    async fn the_plugin_gets_the_cluster_info() {
        let script = format!("test -n \"$KUBERNETES_EXEC_INFO\" && echo \"$KUBERNETES_EXEC_INFO\" >&2; exit 3; {}", prints("{}"));
        let said = error(&script).await;
        assert!(said.contains("exit status: 3"), "{said}");
        for part in ["https://k", "certificate-authority-data", "cGVt", "interactive"] {
            assert!(said.contains(part), "{part}: {said}");
        }
    }

    #[tokio::test]
    async fn failures_name_the_plugin_and_the_cause() {
        for (script, why) in [
            ("echo no", "it printed no ExecCredential"),
            (prints("{}").as_str(), "it gave neither a token nor a certificate"),
            (prints(r#"{"clientKeyData":"k"}"#).as_str(), "a certificate without a key, or a key without"),
            (prints(r#"{"clientCertificateData":"c","clientKeyData":"k"}"#).as_str(), "certificate"),
            (prints(r#"{"token":"a\\nb"}"#).as_str(), "no HTTP header can carry"),
            (prints("null").as_str(), "has no status"),
            (r#"echo '{"kind":"Pod","apiVersion":"v1"}'"#, "it printed \"Pod\" of \"v1\""),
        ] {
            let said = error(script).await;
            assert!(said.starts_with("the credential plugin sh failed: ") && said.contains(why), "{said}");
        }
        let exec = ExecConfig {
            api_version: VERSION.into(),
            command: "/nowhere/x".into(),
            install_hint: "see the manual".into(),
            ..ExecConfig::default()
        };
        let missing =
            Arc::new(ExecPlugin::new(exec, &Cluster::default(), None)).credentials().await.map(drop).expect_err("missing").to_string();
        assert!(
            missing.starts_with("cannot start the credential plugin /nowhere/x: ") && missing.ends_with("; see the manual"),
            "{missing}"
        );
    }

    #[tokio::test]
    async fn child_processes_do_not_delay_the_result() {
        let left = plugin(&format!("sleep 30 & {}", prints(r#"{"token":"TOKEN"}"#)));
        let given = timeout(TIME_LIMIT / 2, left.credentials()).await.expect("in time").unwrap_or_else(|error| panic!("{error}"));
        assert_eq!(given.authorization.expect("a token"), "Bearer abc");
        assert!(error("head -c 2000000 /dev/zero").await.ends_with("it printed more than 1048576 bytes"));
    }

    #[tokio::test]
    async fn waiting_requests_share_a_failure_and_no_process_stays() {
        let folder = tempfile::tempdir().expect("a folder");
        let runs = folder.path().join("runs");
        let failing = plugin(&format!("sleep 600 & echo $! >> {}; sleep 0.2; exit 3", runs.display()));
        let (one, two) = tokio::join!(failing.credentials(), failing.credentials());
        for failure in [one, two] {
            assert!(failure.map(drop).expect_err("it fails").to_string().contains("exit status: 3"));
        }
        let children = std::fs::read_to_string(&runs).expect("it ran");
        assert_eq!(children.lines().count(), 1, "it ran once");
        let child = format!("/proc/{}/stat", children.trim());
        let is_gone = || std::fs::read_to_string(&child).map_or(true, |stat| stat.contains(") Z "));
        while !is_gone() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_plugin_that_hangs_is_killed() {
        let folder = tempfile::tempdir().expect("a folder");
        let pid = folder.path().join("pid");
        let said = error(&format!("echo $$ > {}; exec sleep 1000", pid.display())).await;
        assert_eq!(said, "the credential plugin sh did not end within 30 s and was killed");
    }
}
