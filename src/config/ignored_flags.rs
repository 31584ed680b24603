//! The flags of kube-proxy that have no effect in iptables mode, neither in kube-proxy nor here. Their values are only shown in `/configz`
//! and `/flagz`.

use std::convert::Infallible;

use super::duration::GoDuration;
use super::flag_blocks::flags;
use super::flag_values::{duration, filled, go_bool};
use super::kubeproxy::document::KubeProxyConfiguration;

flags! {
    /// Flags that have no effect in iptables mode.
    pub struct IgnoredFlags for KubeProxyConfiguration, error Infallible;

    /// Period of ipvs mode
    #[arg(hide = true, value_parser = duration)]
    ipvs_sync_period: GoDuration = GoDuration::from_secs(30);
    |flags, config| config.ipvs.sync_period = flags.ipvs_sync_period;
    example "--ipvs-sync-period=1s" => |config| config.ipvs.sync_period == GoDuration::from_secs(1);

    /// Period of ipvs mode
    #[arg(hide = true, value_parser = duration)]
    ipvs_min_sync_period: GoDuration = GoDuration(0);
    |flags, config| config.ipvs.min_sync_period = flags.ipvs_min_sync_period;
    example "--ipvs-min-sync-period=1s" => |config| config.ipvs.min_sync_period == GoDuration::from_secs(1);

    /// Scheduler of ipvs mode
    #[arg(hide = true)]
    ipvs_scheduler: String, unset "";
    |flags, config| config.ipvs.scheduler.clone_from(&flags.ipvs_scheduler);
    example "--ipvs-scheduler=rr" => |config| config.ipvs.scheduler == "rr";

    /// CIDRs that ipvs mode leaves alone
    #[arg(hide = true, value_delimiter = ',')]
    ipvs_exclude_cidrs: Vec<String>;
    |flags, config| config.ipvs.exclude_cidrs = filled(&flags.ipvs_exclude_cidrs);
    example "--ipvs-exclude-cidrs=10.0.0.0/8," => |config| config.ipvs.exclude_cidrs.as_ref().is_some_and(|cidrs| cidrs.len() == 1);

    /// Strict ARP of ipvs mode
    #[arg(hide = true)]
    ipvs_strict_arp: bool = false, alone "true";
    |flags, config| config.ipvs.strict_arp = flags.ipvs_strict_arp;
    example "--ipvs-strict-arp" => |config| config.ipvs.strict_arp;

    /// Timeout of ipvs mode
    #[arg(hide = true, value_parser = duration)]
    ipvs_tcp_timeout: GoDuration = GoDuration(0);
    |flags, config| config.ipvs.tcp_timeout = flags.ipvs_tcp_timeout;
    example "--ipvs-tcp-timeout=1s" => |config| config.ipvs.tcp_timeout == GoDuration::from_secs(1);

    /// Timeout of ipvs mode
    #[arg(hide = true, value_parser = duration)]
    ipvs_tcpfin_timeout: GoDuration = GoDuration(0);
    |flags, config| config.ipvs.tcp_fin_timeout = flags.ipvs_tcpfin_timeout;
    example "--ipvs-tcpfin-timeout=1s" => |config| config.ipvs.tcp_fin_timeout == GoDuration::from_secs(1);

    /// Timeout of ipvs mode
    #[arg(hide = true, value_parser = duration)]
    ipvs_udp_timeout: GoDuration = GoDuration(0);
    |flags, config| config.ipvs.udp_timeout = flags.ipvs_udp_timeout;
    example "--ipvs-udp-timeout=1s" => |config| config.ipvs.udp_timeout == GoDuration::from_secs(1);

    /// File with the boot id
    #[arg(hide = true)]
    boot_id_file: String = "/proc/sys/kernel/random/boot_id".to_owned();

    /// Files with the machine id
    #[arg(hide = true)]
    machine_id_file: String = "/etc/machine-id,/var/lib/dbus/machine-id".to_owned();
}

impl IgnoredFlags {
    /// Copies the values into a configuration.
    pub(super) fn apply_to(&self, config: &mut KubeProxyConfiguration) {
        let Ok(()) = self.apply(config);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::flag_blocks::check_examples;

    #[test]
    fn each_flag_has_the_effect_of_its_examples() {
        check_examples(&IgnoredFlags::examples(), |flags: &IgnoredFlags| {
            let mut config = KubeProxyConfiguration::built_in();
            flags.apply_to(&mut config);
            config
        });
    }
}
