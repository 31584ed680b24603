//! Which numbers the kernel should keep on a node with these settings (spec sections 1.7 and 1.10). PURE.

use std::borrow::Cow;
use std::io;
use std::time::Duration;

/// The limit of tracked connections that cores can add up to; a larger `min` is ignored then (spec section 12.46).
const MAX_SCALED: u64 = 1_048_576;

const SYSCTLS: &str = "/proc/sys/";
const MAX: &str = "/proc/sys/net/netfilter/nf_conntrack_max";
const HASH_SIZE: &str = "/sys/module/nf_conntrack/parameters/hashsize";
const TCP_ESTABLISHED: &str = "/proc/sys/net/netfilter/nf_conntrack_tcp_timeout_established";
const TCP_CLOSE_WAIT: &str = "/proc/sys/net/netfilter/nf_conntrack_tcp_timeout_close_wait";
const TCP_BE_LIBERAL: &str = "/proc/sys/net/netfilter/nf_conntrack_tcp_be_liberal";
const UDP: &str = "/proc/sys/net/netfilter/nf_conntrack_udp_timeout";
const UDP_STREAM: &str = "/proc/sys/net/netfilter/nf_conntrack_udp_timeout_stream";

/// The limit of tracked connections: one number for the whole host.
pub const CONNTRACK_MAX: &str = MAX;

/// Lets 127.0.0.0/8 be routed, which NodePorts on loopback need.
pub const ROUTE_LOCALNET: KernelSetting = exactly("/proc/sys/net/ipv4/conf/all/route_localnet", 1);

/// A number the kernel keeps in a file, and what it should be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KernelSetting {
    /// The file.
    pub path: &'static str,
    /// The number that is written.
    pub value: u64,
    /// Whether a larger number is as good.
    pub or_more: bool,
}

impl KernelSetting {
    /// Whether nothing has to be written where the kernel has this number.
    #[must_use]
    pub fn is_met_by(&self, current: u64) -> bool {
        current == self.value || self.or_more && current > self.value
    }

    /// Whether the whole host has this number only once: a nested node (kind, LXC, rootless) can read it and never write it.
    #[must_use]
    pub fn is_of_host(&self) -> bool {
        matches!(self.path, MAX | HASH_SIZE)
    }

    /// Whether sepal leaves this number at `current` after a write was refused, instead of failing. `read_only` is true where the
    /// kernel shows [`CONNTRACK_MAX`] as a file that no program may write: the network namespace is not the host's.
    #[must_use]
    pub fn may_stay(&self, current: u64, refused: io::ErrorKind, read_only: bool) -> bool {
        // The kernel refuses these two to a nested node however privileged a container is. A read-only file system is only the
        // container's: a privileged one could write.
        let by_kernel = read_only || matches!(refused, io::ErrorKind::PermissionDenied | io::ErrorKind::Unsupported);
        self.is_of_host() && refused != io::ErrorKind::NotFound && (by_kernel || current > self.value)
    }

    /// What it is called: `sysctl net/netfilter/nf_conntrack_max`, or the path of what is no sysctl.
    #[must_use]
    pub fn name(&self) -> Cow<'static, str> {
        match self.path.strip_prefix(SYSCTLS) {
            Some(key) => format!("sysctl {key}").into(),
            None => self.path.into(),
        }
    }

    /// The command that sets it on a host.
    #[must_use]
    pub fn command(&self) -> String {
        match self.path.strip_prefix(SYSCTLS) {
            Some(key) => format!("sysctl -w {}={}", key.replace('/', "."), self.value),
            None => format!("echo {} > {}", self.value, self.path),
        }
    }
}

const fn exactly(path: &'static str, value: u64) -> KernelSetting {
    KernelSetting { path, value, or_more: false }
}

/// What connection tracking wants of the kernel, in the order in which it is set. `cores` are hardware threads.
#[must_use]
pub fn conntrack(settings: &ConntrackSettings, cores: usize) -> Vec<KernelSetting> {
    let mut wanted = Vec::new();
    let max = max_connections(settings, cores);
    if max > 0 {
        wanted.push(exactly(MAX, max));
        // Four connections per bucket, as the kernel has it by default.
        wanted.push(KernelSetting { path: HASH_SIZE, value: max / 4, or_more: true });
    }
    let timeouts = |pairs: [(&'static str, Duration); 2]| {
        pairs.into_iter().filter(|(_, timeout)| !timeout.is_zero()).map(|(path, timeout)| exactly(path, timeout.as_secs()))
    };
    wanted.extend(timeouts([(TCP_ESTABLISHED, settings.tcp_established_timeout), (TCP_CLOSE_WAIT, settings.tcp_close_wait_timeout)]));
    if settings.tcp_be_liberal {
        wanted.push(exactly(TCP_BE_LIBERAL, 1));
    }
    wanted.extend(timeouts([(UDP, settings.udp_timeout), (UDP_STREAM, settings.udp_stream_timeout)]));
    wanted
}

/// The limit of tracked connections; zero for none to set.
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
        // Only what is scaled is capped, and then a larger min does not count.
        assert_eq!(max(1, 2_000_000, 1), 2_000_000);
        assert_eq!(max(32_768, 2_000_000, 33), 1_048_576);
        assert_eq!(max(u32::MAX, u32::MAX, usize::MAX), 1_048_576);
        // Zero per core leaves it alone, whatever min says.
        assert_eq!(max(0, 131_072, 64), 0);
    }

    #[test]
    fn defaults_set_the_limit_the_buckets_and_tcp_in_this_order() {
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
    fn zero_leaves_everything_alone_and_fractions_are_cut_off() {
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
    fn a_setting_knows_its_names_and_when_it_is_met() {
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
    fn only_numbers_of_the_host_may_stay() {
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

/// What connection tracking is to be like on this node (spec section 1.10). Zero means: leave the kernel's own value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ConntrackSettings {
    /// Tracked connections per hardware thread; zero leaves the limit alone, whatever `min` says.
    pub max_per_core: u32,
    /// Tracked connections at least, where the limit is set at all.
    pub min: u32,
    /// How long an idle TCP connection is remembered. Whole seconds; fractions are cut off.
    pub tcp_established_timeout: Duration,
    /// How long a TCP connection is remembered in `CLOSE_WAIT`. Whole seconds; fractions are cut off.
    pub tcp_close_wait_timeout: Duration,
    /// Let TCP packets outside the window pass. False leaves the kernel's own value.
    pub tcp_be_liberal: bool,
    /// How long a UDP flow without an answer is remembered. Whole seconds; less than one becomes zero (spec section 12.47).
    pub udp_timeout: Duration,
    /// How long a UDP flow with answers is remembered. Whole seconds; less than one becomes zero.
    pub udp_stream_timeout: Duration,
}

impl Default for ConntrackSettings {
    fn default() -> Self {
        Self {
            max_per_core: 32_768,
            min: 131_072,
            tcp_established_timeout: Duration::from_secs(24 * 60 * 60),
            tcp_close_wait_timeout: Duration::from_secs(60 * 60),
            tcp_be_liberal: false,
            udp_timeout: Duration::ZERO,
            udp_stream_timeout: Duration::ZERO,
        }
    }
}
