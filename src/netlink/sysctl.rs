//! Sets sysctls and module parameters. Each is read first and written only if it differs, so that a read-only `/proc/sys` is no problem
//! if the values are already right [kube-proxy 1.7], [kube-proxy 1.10], [kube-proxy 12.44].

use std::io;
use std::time::Duration;

use super::kernel_settings::ConntrackSettings;
use super::kernel_settings::{self, CONNTRACK_MAX, KernelSetting, ROUTE_LOCALNET};

use super::host::Host;

const OOM_SCORE_ADJ: &str = "/proc/self/oom_score_adj";
const OOM_TRIES: u32 = 2;
const OOM_PAUSE: Duration = Duration::from_millis(100);

/// The error for a kernel setting that does not have the needed value and cannot be written.
#[derive(Debug, thiserror::Error)]
#[error("can't set {} to {}: {cause}. {}", setting.name(), setting.value, self.cure())]
pub struct SettingError {
    /// The setting and its value.
    pub setting: KernelSetting,
    /// Why it cannot be written.
    pub cause: io::Error,
    /// This process is the init container (`--init-only`).
    pub init_only: bool,
}

impl SettingError {
    fn cure(&self) -> String {
        if self.cause.kind() == io::ErrorKind::NotFound {
            return "The kernel has no such setting: load its module on the host (modprobe nf_conntrack)".into();
        }
        let container = if self.init_only {
            "Make this init container privileged"
        } else {
            "Run this program once with --init-only in a privileged init container"
        };
        format!("{container}, or set it on the host ({})", self.setting.command())
    }
}

/// A conntrack setting cannot be set to the configured value.
#[derive(Debug, thiserror::Error)]
#[error("could not set conntrack parameters from kube-proxy configuration: {0}")]
pub struct ConntrackError(pub SettingError);

/// NodePorts on loopback are configured, and `route_localnet` cannot be switched on.
#[derive(Debug, thiserror::Error)]
#[error("{0}, or use --iptables-localhost-nodeports=false")]
pub struct RouteLocalnetError(pub SettingError);

impl ConntrackError {
    /// The same error with the cure for an init container (`--init-only`).
    #[must_use]
    pub(crate) fn of_init_container(mut self) -> Self {
        self.0.init_only = true;
        self
    }
}

impl RouteLocalnetError {
    /// The same error with the cure for an init container (`--init-only`).
    #[must_use]
    pub(crate) fn of_init_container(mut self) -> Self {
        self.0.init_only = true;
        self
    }
}

/// Sets the conntrack settings, in order. The limit of connections and the number of buckets belong to the host. If they cannot be
/// written on a nested node, or if the limit is larger than needed, they stay as they are.
///
/// # Errors
/// The first setting that cannot be set. The settings after it are not tried.
pub fn set_conntrack(host: &impl Host, settings: &ConntrackSettings) -> Result<(), ConntrackError> {
    let mut limit_stays = false;
    for setting in kernel_settings::conntrack(settings, host.cores()) {
        // The number of buckets is derived from the limit.
        if limit_stays && setting.is_of_host() {
            continue;
        }
        let Err(error) = set(host, &setting) else { continue };
        let current = host.read_setting(setting.path).ok();
        let read_only = host.is_read_only_setting(CONNTRACK_MAX);
        match current.filter(|current| setting.may_stay(*current, error.cause.kind(), read_only)) {
            Some(current) => log_stays(&error, current),
            None => return Err(ConntrackError(error)),
        }
        limit_stays = true;
    }
    Ok(())
}

fn log_stays(SettingError { setting, cause, .. }: &SettingError, current: u64) {
    let (name, needed) = (setting.name(), setting.value);
    if current > needed {
        tracing::info!("{name} stays at {current}: it cannot be written here ({cause}), and {needed} would be enough");
        return;
    }
    tracing::warn!(
        "{name} stays at {current}, less than {needed}: it cannot be written here ({cause}). It belongs to the host that this node runs \
         on: set it there ({}), or set conntrack.maxPerCore to 0",
        setting.command()
    );
}

/// Allows routing of 127.0.0.0/8 (`route_localnet`), which NodePorts on loopback need.
///
/// # Errors
/// It is off and cannot be switched on.
pub(crate) fn allow_route_localnet(host: &impl Host) -> Result<(), RouteLocalnetError> {
    set(host, &ROUTE_LOCALNET).map_err(RouteLocalnetError)
}

fn set(host: &impl Host, setting: &KernelSetting) -> Result<(), SettingError> {
    // If the setting cannot be read, write it, because the error of the write tells the operator more.
    let current = host.read_setting(setting.path).ok();
    if current.is_some_and(|current| setting.is_met_by(current)) {
        return Ok(());
    }
    host.write_setting(setting.path, &setting.value.to_string()).map_err(|cause| SettingError {
        setting: *setting,
        cause,
        init_only: false,
    })?;
    let before = current.map_or_else(String::new, |current| format!(", it was {current}"));
    tracing::info!("{} is {} now{before}", setting.name(), setting.value);
    Ok(())
}

/// Makes an interface ignore IPv6 router advertisements, as flannel and the bridge plugin do [flannel 5.2]. A failure is ignored:
/// without IPv6 it does not matter, and where sysctls are read-only the interface keeps the default.
pub(crate) fn refuse_router_advertisements(interface: &str) {
    let _ = std::fs::write(format!("/proc/sys/net/ipv6/conf/{interface}/accept_ra"), "0");
}

/// Sets this process's score for the kernel's out-of-memory killer, from -1000 (never kill it) to 1000. A failure is logged and has no
/// other consequence [kube-proxy 1.12]. It is logged as a warning only if the operator configured the score.
pub(crate) async fn set_oom_score_adj(host: &impl Host, score: i32, configured: bool) {
    for attempt in 1..=OOM_TRIES {
        match host.write_setting(OOM_SCORE_ADJ, &score.to_string()) {
            Ok(()) => return,
            Err(error) if attempt == OOM_TRIES => {
                let failure = format!(
                    "can't set {OOM_SCORE_ADJ} to {score}: {error}. A value below the current one needs the capability SYS_RESOURCE"
                );
                if configured {
                    tracing::warn!("{failure}");
                } else {
                    tracing::debug!("{failure}");
                }
            }
            Err(_) => tokio::time::sleep(OOM_PAUSE).await,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::super::record::FakeHost;
    use super::*;

    const MAX: &str = "/proc/sys/net/netfilter/nf_conntrack_max";
    const HASH_SIZE: &str = "/sys/module/nf_conntrack/parameters/hashsize";
    const ESTABLISHED: &str = "/proc/sys/net/netfilter/nf_conntrack_tcp_timeout_established";
    const CLOSE_WAIT: &str = "/proc/sys/net/netfilter/nf_conntrack_tcp_timeout_close_wait";

    const READ_ONLY: Option<io::ErrorKind> = Some(io::ErrorKind::ReadOnlyFilesystem);

    fn host(settings: &[(&str, u64)]) -> FakeHost {
        let settings: BTreeMap<String, u64> = settings.iter().map(|(path, value)| ((*path).to_owned(), *value)).collect();
        FakeHost { cores: 4, settings: settings.into(), ..FakeHost::default() }
    }

    #[test]
    fn settings_that_differ_are_written_in_order() {
        let host = host(&[(MAX, 65_536), (HASH_SIZE, 16_384), (ESTABLISHED, 86_400), (CLOSE_WAIT, 60)]);
        set_conntrack(&host, &ConntrackSettings::default()).expect("writable");
        let written = host.written.borrow().clone();
        assert_eq!(written, [(MAX, "131072"), (HASH_SIZE, "32768"), (CLOSE_WAIT, "3600")].map(|(path, value)| format!("{path} {value}")));
        set_conntrack(&host, &ConntrackSettings::default()).expect("writable");
        assert_eq!(host.written.borrow().len(), 3, "the second time nothing differs");
    }

    /// The number of buckets is checked even if the limit is right, and a larger number is accepted.
    #[test]
    fn buckets_are_checked_independently() {
        for (buckets, written) in [(16_384, 1), (32_768, 0), (262_144, 0)] {
            let host = host(&[(MAX, 131_072), (HASH_SIZE, buckets), (ESTABLISHED, 86_400), (CLOSE_WAIT, 3_600)]);
            set_conntrack(&host, &ConntrackSettings::default()).expect("writable");
            assert_eq!(host.written.borrow().len(), written, "{buckets}");
        }
    }

    #[test]
    fn a_read_only_sysctl_is_an_error_only_if_it_differs() {
        let right = [(MAX, 131_072), (HASH_SIZE, 32_768), (ESTABLISHED, 86_400), (CLOSE_WAIT, 3_600)];
        let mut host = host(&right);
        host.refusal = READ_ONLY;
        set_conntrack(&host, &ConntrackSettings::default()).expect("nothing differs");
        host.settings.borrow_mut().insert(CLOSE_WAIT.to_owned(), 60);
        let error = set_conntrack(&host, &ConntrackSettings::default()).expect_err("it is read-only").to_string();
        assert!(
            error.starts_with(
                "could not set conntrack parameters from kube-proxy configuration: can't set sysctl net/netfilter/nf_conntrack_tcp_timeout_close_wait to 3600: "
            ),
            "{error}"
        );
        assert!(
            error.contains("--init-only") && error.contains("sysctl -w net.netfilter.nf_conntrack_tcp_timeout_close_wait=3600"),
            "{error}"
        );
        assert!(host.written.borrow().is_empty());
    }

    /// A nested node (kind, LXC, rootless) has the host's limit and the host's number of buckets.
    #[test]
    fn a_limit_that_belongs_to_the_host_stays_if_it_cannot_be_written() {
        use io::ErrorKind::{PermissionDenied, ReadOnlyFilesystem, Unsupported};
        for (limit, buckets, refusal, nested, stays) in [
            (262_144, 65_536, ReadOnlyFilesystem, false, true),
            (262_144, 1_024, ReadOnlyFilesystem, false, true),
            (262_144, 65_536, PermissionDenied, true, true),
            (65_536, 16_384, PermissionDenied, true, true),
            (65_536, 16_384, ReadOnlyFilesystem, true, true),
            // The limit is right, the buckets are too few, and the kernel refuses to change them from a network namespace.
            (131_072, 16_384, Unsupported, true, true),
            (131_072, 16_384, ReadOnlyFilesystem, true, true),
            // An unprivileged container on a plain node: an init container can set it.
            (65_536, 16_384, ReadOnlyFilesystem, false, false),
            (131_072, 16_384, ReadOnlyFilesystem, false, false),
        ] {
            let mut host = host(&[(MAX, limit), (HASH_SIZE, buckets), (ESTABLISHED, 86_400), (CLOSE_WAIT, 3_600)]);
            (host.refusal, host.nested) = (Some(refusal), nested);
            let outcome = set_conntrack(&host, &ConntrackSettings::default()).map_err(|error| error.to_string());
            assert_eq!(outcome.is_ok(), stays, "{limit} {buckets} {refusal:?} {nested}: {outcome:?}");
            assert_eq!(host.refused.get(), 1, "one attempt, and one line about it");
        }
    }

    #[test]
    fn the_error_of_an_init_container_does_not_advise_an_init_container() {
        let mut host = host(&[(MAX, 131_072), (HASH_SIZE, 32_768), (ESTABLISHED, 1)]);
        host.refusal = READ_ONLY;
        let error = set_conntrack(&host, &ConntrackSettings::default()).expect_err("it is read-only").of_init_container().to_string();
        assert!(error.contains("Make this init container privileged, or set it on the host (sysctl -w "), "{error}");
        assert!(!error.contains("--init-only"), "{error}");
    }

    #[test]
    fn a_kernel_without_conntrack_has_its_own_cure() {
        let mut host = host(&[]);
        host.refusal = Some(io::ErrorKind::NotFound);
        let error = set_conntrack(&host, &ConntrackSettings::default()).expect_err("there is no conntrack").to_string();
        assert!(error.contains("nf_conntrack_max to 131072") && error.contains("modprobe nf_conntrack"), "{error}");
    }

    #[test]
    fn route_localnet_is_switched_on_once() {
        let mut host = host(&[(ROUTE_LOCALNET.path, 0)]);
        allow_route_localnet(&host).expect("writable");
        allow_route_localnet(&host).expect("it is on");
        assert_eq!(*host.written.borrow(), ["/proc/sys/net/ipv4/conf/all/route_localnet 1"]);
        host.settings.borrow_mut().insert(ROUTE_LOCALNET.path.to_owned(), 0);
        host.refusal = READ_ONLY;
        let error = allow_route_localnet(&host).expect_err("it is read-only").to_string();
        assert!(error.starts_with("can't set sysctl net/ipv4/conf/all/route_localnet to 1: "), "{error}");
        assert!(error.contains("--init-only") && error.ends_with("or use --iptables-localhost-nodeports=false"), "{error}");
    }

    #[tokio::test(start_paused = true)]
    async fn the_oom_score_is_tried_twice() {
        let mut host = host(&[(OOM_SCORE_ADJ, 0)]);
        set_oom_score_adj(&host, -999, false).await;
        assert_eq!(*host.written.borrow(), ["/proc/self/oom_score_adj -999"]);
        host.refusal = READ_ONLY;
        let start = tokio::time::Instant::now();
        set_oom_score_adj(&host, -1000, true).await;
        assert_eq!(start.elapsed(), OOM_PAUSE);
        assert_eq!((host.refused.get(), host.written.borrow().len()), (2, 1));
    }
}
