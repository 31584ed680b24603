//! What the kernel's settings mean.

use std::io;

use crate::cluster::Family;
use crate::netlink::kernel_settings::KernelSetting;

use super::{Check, Part};

const PART: Part = Part::Kernel;

/// Checks the numbers that sepal sets where they differ. `read` and `can_write` take their paths; `read_only` as
/// [`KernelSetting::may_stay`].
#[must_use]
pub fn settings(
    wanted: &[KernelSetting],
    read: impl Fn(&str) -> io::Result<u64>,
    can_write: impl Fn(&str) -> Result<(), io::Error>,
    read_only: bool,
) -> Vec<Check> {
    let mut checks = Vec::with_capacity(wanted.len());
    let mut limit_stays = false;
    for setting in wanted {
        // The buckets follow from the limit.
        if limit_stays && setting.is_of_host() {
            continue;
        }
        let (name, wanted) = (setting.name().into_owned(), setting.value);
        let current = read(setting.path);
        checks.push(match (&current, can_write(setting.path)) {
            (Ok(current), _) if setting.is_met_by(*current) => Check::ok(PART, name, current.to_string()),
            (Err(error), _) if error.kind() == io::ErrorKind::NotFound => {
                Check::failed(PART, name, "the kernel has no such setting", "load its module on the host: modprobe nf_conntrack")
            }
            (Ok(current), Ok(())) => Check::ok(PART, name, format!("{current}; sepal sets it to {wanted}")),
            (Err(error), Ok(())) => Check::ok(PART, name, format!("cannot be read ({error}); sepal sets it to {wanted}")),
            (Ok(current), Err(error)) if setting.may_stay(*current, error.kind(), read_only) => {
                limit_stays = true;
                if *current > wanted {
                    Check::ok(PART, name, format!("{current}; it cannot be written here ({error}), and {wanted} would be enough"))
                } else {
                    let found = format!("{current}, less than {wanted}; it cannot be written here ({error}), so sepal leaves it");
                    Check::warning(PART, name, found, format!("on the host that this node runs on: {}", setting.command()))
                }
            }
            (current, Err(error)) => {
                let current = current.as_ref().map_or_else(|error| format!("cannot be read ({error})"), ToString::to_string);
                let found = format!("{current}, wanted is {wanted}, and it cannot be written here: {error}");
                let cure = format!("on the host: {}; or run `sepal --init-only` once in a privileged init container", setting.command());
                Check::failed(PART, name, found, cure)
            }
        });
    }
    checks
}

/// Whether packets are forwarded at all.
#[must_use]
pub fn forwarding(family: Family, value: io::Result<u64>) -> Check {
    let setting = match family {
        Family::V4 => "net.ipv4.ip_forward",
        Family::V6 => "net.ipv6.conf.all.forwarding",
    };
    match value {
        Ok(0) => Check::warning(
            PART,
            setting,
            "0: nothing is forwarded, so no pod can be reached from elsewhere. Some CNI plugins switch it on with the first pod",
            format!("sysctl -w {setting}=1"),
        ),
        Ok(value) => Check::ok(PART, setting, value.to_string()),
        Err(error) => Check::not_checked(PART, setting, format!("cannot be read: {error}")),
    }
}

/// Whether what pods of one node send to each other over a bridge passes the rules.
#[must_use]
pub fn bridge_filter(family: Family, value: io::Result<u64>) -> Check {
    let setting = match family {
        Family::V4 => "net.bridge.bridge-nf-call-iptables",
        Family::V6 => "net.bridge.bridge-nf-call-ip6tables",
    };
    let without = "pods on one node may not reach each other through Services";
    match value {
        Ok(0) => Check::warning(PART, setting, format!("0: {without}"), format!("sysctl -w {setting}=1")),
        Ok(value) => Check::ok(PART, setting, value.to_string()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Check::warning(
            PART,
            setting,
            format!("the kernel has no such setting: {without}, where they hang on a bridge"),
            "modprobe br_netfilter",
        ),
        Err(error) => Check::not_checked(PART, setting, format!("cannot be read: {error}")),
    }
}

#[cfg(test)]
mod tests {
    use super::super::Outcome;
    use super::*;
    use crate::netlink::kernel_settings::ConntrackSettings;
    use crate::netlink::kernel_settings::ROUTE_LOCALNET;

    #[test]
    fn what_is_wrong_and_cannot_be_written_fails() {
        let outcome = |read: io::Result<u64>, can_write: bool| {
            let read = std::cell::RefCell::new(Some(read));
            let refused = || io::Error::from(io::ErrorKind::ReadOnlyFilesystem);
            let checks = settings(
                &[ROUTE_LOCALNET],
                |_| read.take().expect("it is read once"),
                |_| if can_write { Ok(()) } else { Err(refused()) },
                false,
            );
            checks[0].outcome
        };
        assert_eq!(outcome(Ok(1), false), Outcome::Ok);
        assert_eq!(outcome(Ok(0), true), Outcome::Ok);
        assert_eq!(outcome(Ok(0), false), Outcome::Failed);
        assert_eq!(outcome(Err(io::ErrorKind::NotFound.into()), true), Outcome::Failed);
        assert_eq!(outcome(Err(io::ErrorKind::PermissionDenied.into()), false), Outcome::Failed);
    }

    #[test]
    fn a_limit_of_the_host_does_not_fail() {
        let wanted = crate::netlink::kernel_settings::conntrack(&ConntrackSettings::default(), 1);
        let judge = |limit: u64| {
            let read = |path: &str| Ok(if path.ends_with("nf_conntrack_max") { limit } else { 1 });
            let refused = |_: &str| Err(io::Error::from(io::ErrorKind::PermissionDenied));
            settings(&wanted[..2], read, refused, true)
        };
        assert_eq!(judge(262_144).iter().map(|check| check.outcome).collect::<Vec<_>>(), [Outcome::Ok]);
        let small = judge(1_024);
        assert_eq!(small.iter().map(|check| check.outcome).collect::<Vec<_>>(), [Outcome::Warning]);
        assert!(small[0].cure.ends_with("sysctl -w net.netfilter.nf_conntrack_max=131072"), "{small:?}");
    }

    #[test]
    fn what_the_kernel_lacks_is_told_with_its_module() {
        let check = bridge_filter(Family::V4, Err(io::ErrorKind::NotFound.into()));
        assert_eq!((check.outcome, check.cure.as_str()), (Outcome::Warning, "modprobe br_netfilter"));
        assert_eq!(bridge_filter(Family::V6, Ok(0)).cure, "sysctl -w net.bridge.bridge-nf-call-ip6tables=1");
        assert_eq!(forwarding(Family::V4, Ok(0)).outcome, Outcome::Warning);
        assert_eq!(forwarding(Family::V6, Ok(2)).outcome, Outcome::Ok);
    }
}
