//! The kernel settings that sepal writes: connection tracking [kube-proxy 1.10] and loopback NodePorts [kube-proxy 1.7]. Pure.

use std::borrow::Cow;
use std::io;
use std::time::Duration;

/// The highest limit of tracked connections that is computed from the number of cores. Above it, `min` is ignored [kube-proxy 12.46].
const MAX_SCALED: u64 = 1_048_576;

const SYSCTLS: &str = "/proc/sys/";
const MAX: &str = "/proc/sys/net/netfilter/nf_conntrack_max";
const HASH_SIZE: &str = "/sys/module/nf_conntrack/parameters/hashsize";
const TCP_ESTABLISHED: &str = "/proc/sys/net/netfilter/nf_conntrack_tcp_timeout_established";
const TCP_CLOSE_WAIT: &str = "/proc/sys/net/netfilter/nf_conntrack_tcp_timeout_close_wait";
const TCP_BE_LIBERAL: &str = "/proc/sys/net/netfilter/nf_conntrack_tcp_be_liberal";
const UDP: &str = "/proc/sys/net/netfilter/nf_conntrack_udp_timeout";
const UDP_STREAM: &str = "/proc/sys/net/netfilter/nf_conntrack_udp_timeout_stream";

/// The limit of tracked connections. It applies to the whole host, not to a network namespace.
pub(crate) const CONNTRACK_MAX: &str = MAX;

/// Lets the kernel route 127.0.0.0/8. NodePorts on loopback addresses need it.
pub(crate) const ROUTE_LOCALNET: KernelSetting = exactly("/proc/sys/net/ipv4/conf/all/route_localnet", 1);

/// The settings of connection tracking [kube-proxy 1.10]. Zero leaves the live value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ConntrackSettings {
    /// The limit of tracked connections per hardware thread. Zero leaves the live limit, even if `min` is set.
    pub max_per_core: u32,
    /// The lowest limit of tracked connections, if a limit is set.
    pub min: u32,
    /// The timeout of an established TCP connection. Truncated to whole seconds.
    pub tcp_established_timeout: Duration,
    /// The timeout of a TCP connection in `CLOSE_WAIT`. Truncated to whole seconds.
    pub tcp_close_wait_timeout: Duration,
    /// Accept TCP packets outside the window. False leaves the live value.
    pub tcp_be_liberal: bool,
    /// The timeout of a UDP flow without replies. Truncated to whole seconds: less than a second becomes zero [kube-proxy 12.47].
    pub udp_timeout: Duration,
    /// The timeout of a UDP flow with replies. Truncated to whole seconds: less than a second becomes zero.
    pub udp_stream_timeout: Duration,
}

impl ConntrackSettings {
    /// The default of `max_per_core`.
    pub(crate) const MAX_PER_CORE: u32 = 32_768;
    /// The default of `min`.
    pub(crate) const MIN: u32 = 131_072;
    /// The default of `tcp_established_timeout`.
    pub(crate) const TCP_ESTABLISHED_TIMEOUT: Duration = Duration::from_secs(24 * 60 * 60);
    /// The default of `tcp_close_wait_timeout`.
    pub(crate) const TCP_CLOSE_WAIT_TIMEOUT: Duration = Duration::from_secs(60 * 60);
}

impl Default for ConntrackSettings {
    fn default() -> Self {
        Self {
            max_per_core: Self::MAX_PER_CORE,
            min: Self::MIN,
            tcp_established_timeout: Self::TCP_ESTABLISHED_TIMEOUT,
            tcp_close_wait_timeout: Self::TCP_CLOSE_WAIT_TIMEOUT,
            tcp_be_liberal: false,
            udp_timeout: Duration::ZERO,
            udp_stream_timeout: Duration::ZERO,
        }
    }
}

/// A kernel setting with its desired value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KernelSetting {
    /// The file of the setting.
    pub path: &'static str,
    /// The desired value.
    pub value: u64,
    /// True if a larger value is kept.
    pub or_more: bool,
}

impl KernelSetting {
    /// True if the live value `current` needs no write.
    #[must_use]
    pub(crate) fn is_met_by(&self, current: u64) -> bool {
        current == self.value || self.or_more && current > self.value
    }

    /// True if the setting applies to the whole host. A nested node (kind, LXC, rootless) can read it but not write it.
    #[must_use]
    pub(crate) fn is_of_host(&self) -> bool {
        matches!(self.path, MAX | HASH_SIZE)
    }

    /// Returns true if sepal continues with the live value `current` after a write failed with `refused`. `read_only` is true if the file
    /// of [`CONNTRACK_MAX`] is read-only, as it is in every network namespace except the host's.
    #[must_use]
    pub(crate) fn may_stay(&self, current: u64, refused: io::ErrorKind, read_only: bool) -> bool {
        // The kernel refuses host-wide settings to every container of a nested node. A read-only file system belongs to this container only:
        // a privileged container could write.
        let by_kernel = read_only || matches!(refused, io::ErrorKind::PermissionDenied | io::ErrorKind::Unsupported);
        self.is_of_host() && refused != io::ErrorKind::NotFound && (by_kernel || current > self.value)
    }

    /// The name in messages: `sysctl net/netfilter/nf_conntrack_max`, or the path if the setting is no sysctl.
    #[must_use]
    pub fn name(&self) -> Cow<'static, str> {
        match self.path.strip_prefix(SYSCTLS) {
            Some(key) => format!("sysctl {key}").into(),
            None => self.path.into(),
        }
    }

    /// The command that an operator runs on the host to set it.
    #[must_use]
    pub fn command(&self) -> String {
        match self.path.strip_prefix(SYSCTLS) {
            Some(key) => format!("sysctl -w {}={}", key.replace('/', "."), self.value),
            None => format!("echo {} > {}", self.value, self.path),
        }
    }
}

/// Creates a setting that must have exactly this value.
const fn exactly(path: &'static str, value: u64) -> KernelSetting {
    KernelSetting { path, value, or_more: false }
}

/// The desired connection tracking settings, in the order in which they are written [kube-proxy 1.10]. `cores` counts hardware threads.
#[must_use]
pub fn conntrack(settings: &ConntrackSettings, cores: usize) -> Vec<KernelSetting> {
    let mut desired = Vec::new();
    let max = max_connections(settings, cores);
    if max > 0 {
        desired.push(exactly(MAX, max));
        // Four connections per hash bucket, like the default of the kernel.
        desired.push(KernelSetting { path: HASH_SIZE, value: max / 4, or_more: true });
    }
    let timeouts = |pairs: [(&'static str, Duration); 2]| {
        pairs.into_iter().filter(|(_, timeout)| !timeout.is_zero()).map(|(path, timeout)| exactly(path, timeout.as_secs()))
    };
    desired.extend(timeouts([(TCP_ESTABLISHED, settings.tcp_established_timeout), (TCP_CLOSE_WAIT, settings.tcp_close_wait_timeout)]));
    if settings.tcp_be_liberal {
        desired.push(exactly(TCP_BE_LIBERAL, 1));
    }
    desired.extend(timeouts([(UDP, settings.udp_timeout), (UDP_STREAM, settings.udp_stream_timeout)]));
    desired
}

/// The limit of tracked connections. Zero leaves the live value.
fn max_connections(settings: &ConntrackSettings, cores: usize) -> u64 {
    if settings.max_per_core == 0 {
        return 0;
    }
    let scaled = u64::from(settings.max_per_core).saturating_mul(cores as u64);
    if scaled > MAX_SCALED { MAX_SCALED } else { scaled.max(settings.min.into()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn max(max_per_core: u32, min: u32, cores: usize) -> u64 {
        max_connections(&ConntrackSettings { max_per_core, min, ..ConntrackSettings::default() }, cores)
    }

    #[test]
    fn the_limit_grows_with_the_cores_from_min_up_to_a_cap() {
        assert_eq!(max(32_768, 131_072, 2), 131_072);
        assert_eq!(max(32_768, 131_072, 4), 131_072);
        assert_eq!(max(32_768, 131_072, 5), 163_840);
        assert_eq!(max(32_768, 131_072, 32), 1_048_576);
        assert_eq!(max(32_768, 131_072, 33), 1_048_576);
        assert_eq!(max(32_768, 0, 1), 32_768);
        // The cap applies to the scaled value only. A larger min is ignored then.
        assert_eq!(max(1, 2_000_000, 1), 2_000_000);
        assert_eq!(max(32_768, 2_000_000, 33), 1_048_576);
        assert_eq!(max(u32::MAX, u32::MAX, usize::MAX), 1_048_576);
        // Zero per core leaves the live value, even if min is set.
        assert_eq!(max(0, 131_072, 64), 0);
    }

    #[test]
    fn defaults_set_limit_buckets_and_tcp_timeouts_in_this_order() {
        assert_eq!(
            conntrack(&ConntrackSettings::default(), 8),
            [
                exactly(MAX, 262_144),
                KernelSetting { path: HASH_SIZE, value: 65_536, or_more: true },
                exactly(TCP_ESTABLISHED, 86_400),
                exactly(TCP_CLOSE_WAIT, 3_600),
            ]
        );
    }

    #[test]
    fn zero_changes_nothing_and_fractions_of_seconds_are_truncated() {
        let zero = ConntrackSettings {
            max_per_core: 0,
            min: 131_072,
            tcp_established_timeout: Duration::ZERO,
            tcp_close_wait_timeout: Duration::ZERO,
            tcp_be_liberal: false,
            udp_timeout: Duration::ZERO,
            udp_stream_timeout: Duration::ZERO,
        };
        assert_eq!(conntrack(&zero, 8), []);
        let fractions = ConntrackSettings {
            tcp_close_wait_timeout: Duration::from_millis(1_999),
            tcp_be_liberal: true,
            udp_timeout: Duration::from_millis(500),
            udp_stream_timeout: Duration::from_secs(180),
            ..zero
        };
        assert_eq!(
            conntrack(&fractions, 8),
            [exactly(TCP_CLOSE_WAIT, 1), exactly(TCP_BE_LIBERAL, 1), exactly(UDP, 0), exactly(UDP_STREAM, 180)]
        );
    }

    #[test]
    fn a_setting_has_a_name_a_command_and_a_desired_value() {
        let max = exactly(MAX, 131_072);
        assert_eq!(max.name(), "sysctl net/netfilter/nf_conntrack_max");
        assert_eq!(max.command(), "sysctl -w net.netfilter.nf_conntrack_max=131072");
        assert!(max.is_met_by(131_072) && !max.is_met_by(131_073) && !max.is_met_by(1));
        let buckets = KernelSetting { path: HASH_SIZE, value: 32_768, or_more: true };
        assert_eq!(buckets.name(), HASH_SIZE);
        assert_eq!(buckets.command(), "echo 32768 > /sys/module/nf_conntrack/parameters/hashsize");
        assert!(buckets.is_met_by(32_768) && buckets.is_met_by(65_536) && !buckets.is_met_by(32_767));
    }

    #[test]
    fn only_host_wide_settings_may_stay() {
        use io::ErrorKind::{NotFound, PermissionDenied, ReadOnlyFilesystem, Unsupported};
        let max = exactly(MAX, 131_072);
        for (current, refused, read_only, stays) in [
            (262_144, ReadOnlyFilesystem, false, true),
            (262_144, PermissionDenied, false, true),
            (65_536, PermissionDenied, false, true),
            (65_536, Unsupported, false, true),
            (65_536, ReadOnlyFilesystem, true, true),
            // A privileged init container can write this one.
            (65_536, ReadOnlyFilesystem, false, false),
            (65_536, NotFound, true, false),
        ] {
            assert_eq!(max.may_stay(current, refused, read_only), stays, "{current} {refused:?} {read_only}");
        }
        assert!(!exactly(TCP_CLOSE_WAIT, 60).may_stay(3_600, PermissionDenied, true));
    }
}
