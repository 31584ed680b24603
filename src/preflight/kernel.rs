//! What the kernel's settings mean.

use std::io;

use crate::cluster::Family;
use crate::config::kernel::KernelSetting;

use super::{Check, Part};

const PART: Part = Part::Kernel;

/// Numbers that sepal sets where they differ. `read` and `can_write` take their paths.
#[must_use]
pub fn settings(
    wanted: &[KernelSetting],
    read: impl Fn(&str) -> io::Result<u64>,
    can_write: impl Fn(&str) -> Result<(), io::Error>,
) -> Vec<Check> {
    let check = |setting: &KernelSetting| {
        let name = setting.name().into_owned();
        let current = match read(setting.path) {
            Ok(current) if setting.is_met_by(current) => return Check::ok(PART, name, current.to_string()),
            Ok(current) => current.to_string(),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Check::failed(PART, name, "the kernel has no such setting", "load its module on the host: modprobe nf_conntrack");
            }
            Err(error) => format!("cannot be read ({error})"),
        };
        let wanted = setting.value;
        match can_write(setting.path) {
            Ok(()) => Check::ok(PART, name, format!("{current}; sepal sets it to {wanted}")),
            Err(error) => Check::failed(
                PART,
                name,
                format!("{current}, wanted is {wanted}, and it cannot be written here: {error}"),
                format!("on the host: {}; or run `sepal --init-only` once in a privileged init container", setting.command()),
            ),
        }
    };
    wanted.iter().map(check).collect()
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
    use crate::config::kernel::ROUTE_LOCALNET;

    #[test]
    fn what_is_wrong_and_cannot_be_written_fails() {
        let outcome = |read: io::Result<u64>, can_write: bool| {
            let read = std::cell::RefCell::new(Some(read));
            let refused = || io::Error::from(io::ErrorKind::ReadOnlyFilesystem);
            let checks =
                settings(&[ROUTE_LOCALNET], |_| read.take().expect("it is read once"), |_| if can_write { Ok(()) } else { Err(refused()) });
            checks[0].outcome
        };
        assert_eq!(outcome(Ok(1), false), Outcome::Ok);
        assert_eq!(outcome(Ok(0), true), Outcome::Ok);
        assert_eq!(outcome(Ok(0), false), Outcome::Failed);
        assert_eq!(outcome(Err(io::ErrorKind::NotFound.into()), true), Outcome::Failed);
        assert_eq!(outcome(Err(io::ErrorKind::PermissionDenied.into()), false), Outcome::Failed);
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
