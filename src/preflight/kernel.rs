//! Checks of kernel settings: connection tracking, forwarding, bridge filtering.

use std::io;

use crate::cluster::Family;
use crate::netlink::kernel_settings::KernelSetting;

use super::{Check, CheckGroup};

const GROUP: CheckGroup = CheckGroup::Kernel;

/// Checks the settings that sepal writes if they differ. `read` and `can_write` take the path of a setting. `read_only` is explained at
/// [`KernelSetting::may_stay`].
#[must_use]
pub fn settings(
    desired: &[KernelSetting],
    read: impl Fn(&str) -> io::Result<u64>,
    can_write: impl Fn(&str) -> Result<(), io::Error>,
    read_only: bool,
) -> Vec<Check> {
    let mut checks = Vec::with_capacity(desired.len());
    let mut limit_stays = false;
    for setting in desired {
        // The number of hash buckets depends on the limit of tracked connections.
        if limit_stays && setting.is_of_host() {
            continue;
        }
        let (name, value) = (setting.name().into_owned(), setting.value);
        let current = read(setting.path);
        checks.push(match (&current, can_write(setting.path)) {
            (Ok(current), _) if setting.is_met_by(*current) => Check::ok(GROUP, name, current.to_string()),
            (Err(error), _) if error.kind() == io::ErrorKind::NotFound => {
                Check::failed(GROUP, name, "the kernel has no such setting", "load its module on the host: modprobe nf_conntrack")
            }
            (Ok(current), Ok(())) => Check::ok(GROUP, name, format!("{current}; sepal sets it to {value}")),
            (Err(error), Ok(())) => Check::ok(GROUP, name, format!("cannot be read ({error}); sepal sets it to {value}")),
            (Ok(current), Err(error)) if setting.may_stay(*current, error.kind(), read_only) => {
                limit_stays = true;
                if *current > value {
                    Check::ok(GROUP, name, format!("{current}; it cannot be written here ({error}), and {value} would be enough"))
                } else {
                    let found = format!("{current}, less than {value}; it cannot be written here ({error}), so sepal leaves it");
                    Check::warning(GROUP, name, found, format!("on the host that this node runs on: {}", setting.command()))
                }
            }
            (current, Err(error)) => {
                let current = current.as_ref().map_or_else(|error| format!("cannot be read ({error})"), ToString::to_string);
                let found = format!("{current}; sepal needs {value} and cannot write it here: {error}");
                let cure = format!("on the host: {}; or run `sepal --init-only` once in a privileged init container", setting.command());
                Check::failed(GROUP, name, found, cure)
            }
        });
    }
    checks
}

/// Checks that the kernel forwards packets.
#[must_use]
pub fn forwarding(family: Family, value: io::Result<u64>) -> Check {
    let setting = match family {
        Family::V4 => "net.ipv4.ip_forward",
        Family::V6 => "net.ipv6.conf.all.forwarding",
    };
    match value {
        Ok(0) => Check::warning(
            GROUP,
            setting,
            "0: the kernel forwards no packets, so no pod can be reached from other hosts. Some CNI plugins switch it on with the first pod",
            format!("sysctl -w {setting}=1"),
        ),
        Ok(value) => Check::ok(GROUP, setting, value.to_string()),
        Err(error) => Check::not_checked(GROUP, setting, format!("cannot be read: {error}")),
    }
}

/// Checks that packets between pods of one node pass the rules when they cross a bridge.
#[must_use]
pub fn bridge_filter(family: Family, value: io::Result<u64>) -> Check {
    let setting = match family {
        Family::V4 => "net.bridge.bridge-nf-call-iptables",
        Family::V6 => "net.bridge.bridge-nf-call-ip6tables",
    };
    let without = "pods on one node may not reach each other through Services";
    match value {
        Ok(0) => Check::warning(GROUP, setting, format!("0: {without}"), format!("sysctl -w {setting}=1")),
        Ok(value) => Check::ok(GROUP, setting, value.to_string()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Check::warning(
            GROUP,
            setting,
            format!("the kernel has no such setting: {without}, if they are connected by a bridge"),
            "modprobe br_netfilter",
        ),
        Err(error) => Check::not_checked(GROUP, setting, format!("cannot be read: {error}")),
    }
}

#[cfg(test)]
mod tests {
    use super::super::CheckOutcome;
    use super::*;
    use crate::netlink::kernel_settings::ConntrackSettings;
    use crate::netlink::kernel_settings::ROUTE_LOCALNET;

    #[test]
    fn a_wrong_value_that_cannot_be_written_fails() {
        let outcome = |read: io::Result<u64>, can_write: bool| {
            let read = std::cell::RefCell::new(Some(read));
            let refused = || io::Error::from(io::ErrorKind::ReadOnlyFilesystem);
            let checks = settings(
                &[ROUTE_LOCALNET],
                |_| read.take().expect("a single read"),
                |_| if can_write { Ok(()) } else { Err(refused()) },
                false,
            );
            checks[0].outcome
        };
        assert_eq!(outcome(Ok(1), false), CheckOutcome::Ok);
        assert_eq!(outcome(Ok(0), true), CheckOutcome::Ok);
        assert_eq!(outcome(Ok(0), false), CheckOutcome::Failed);
        assert_eq!(outcome(Err(io::ErrorKind::NotFound.into()), true), CheckOutcome::Failed);
        assert_eq!(outcome(Err(io::ErrorKind::PermissionDenied.into()), false), CheckOutcome::Failed);
    }

    #[test]
    fn a_limit_of_the_whole_host_does_not_fail() {
        let desired = crate::netlink::kernel_settings::conntrack(&ConntrackSettings::default(), 1);
        let judge = |limit: u64| {
            let read = |path: &str| Ok(if path.ends_with("nf_conntrack_max") { limit } else { 1 });
            let refused = |_: &str| Err(io::Error::from(io::ErrorKind::PermissionDenied));
            settings(&desired[..2], read, refused, true)
        };
        assert_eq!(judge(262_144).iter().map(|check| check.outcome).collect::<Vec<_>>(), [CheckOutcome::Ok]);
        let small = judge(1_024);
        assert_eq!(small.iter().map(|check| check.outcome).collect::<Vec<_>>(), [CheckOutcome::Warning]);
        assert!(small[0].cure.ends_with("sysctl -w net.netfilter.nf_conntrack_max=131072"), "{small:?}");
    }

    #[test]
    fn a_missing_setting_names_the_kernel_module() {
        let check = bridge_filter(Family::V4, Err(io::ErrorKind::NotFound.into()));
        assert_eq!((check.outcome, check.cure.as_str()), (CheckOutcome::Warning, "modprobe br_netfilter"));
        assert_eq!(bridge_filter(Family::V6, Ok(0)).cure, "sysctl -w net.bridge.bridge-nf-call-ip6tables=1");
        assert_eq!(forwarding(Family::V4, Ok(0)).outcome, CheckOutcome::Warning);
        assert_eq!(forwarding(Family::V6, Ok(2)).outcome, CheckOutcome::Ok);
    }
}
