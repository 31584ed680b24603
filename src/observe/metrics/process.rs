//! The `process_*` metrics that Go programs export, read from `/proc` at each scrape.

use std::fmt;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::DescriptorEncoder;
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;

use super::text::encode_one;

/// Clock ticks per second in `/proc` (`USER_HZ`). It is 100 on every architecture that Kubernetes supports.
const TICKS: f64 = 100.0;

/// Exports the metrics of this process.
#[derive(Debug)]
pub(super) struct ProcessCollector;

impl Collector for ProcessCollector {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let read = |path| std::fs::read_to_string(path).unwrap_or_default();
        let stat = Stat::of(&read("/proc/self/stat"));
        let status = read("/proc/self/status");
        if let Some(stat) = &stat {
            let cpu = ConstCounter::new(stat.cpu_seconds);
            encode_one(&mut encoder, "process_cpu_seconds", "Total user and system CPU time spent in seconds.", &cpu)?;
        }
        let started = stat.zip(boot_time(&read("/proc/stat"))).map(|(stat, boot)| boot + stat.start_seconds);
        // Reading the folder opens one more descriptor.
        let open = std::fs::read_dir("/proc/self/fd").map(|files| files.count().saturating_sub(1) as f64).ok();
        for (name, help, value) in [
            ("process_max_fds", "Maximum number of open file descriptors.", open_file_limit(&read("/proc/self/limits"))),
            ("process_open_fds", "Number of open file descriptors.", open),
            ("process_resident_memory_bytes", "Resident memory size in bytes.", bytes(&status, "VmRSS:")),
            ("process_start_time_seconds", "Start time of the process since unix epoch in seconds.", started),
            ("process_virtual_memory_bytes", "Virtual memory size in bytes.", bytes(&status, "VmSize:")),
        ] {
            if let Some(value) = value {
                encode_one(&mut encoder, name, help, &ConstGauge::new(value))?;
            }
        }
        Ok(())
    }
}

/// The fields of `/proc/self/stat` that are exported (proc(5)).
#[derive(Clone, Copy, Debug, PartialEq)]
struct Stat {
    cpu_seconds: f64,
    /// When the process started, counted from the boot of the machine.
    start_seconds: f64,
}

impl Stat {
    fn of(text: &str) -> Option<Self> {
        // The program's name is in brackets and may hold brackets and spaces. The third field and all later ones follow it.
        let fields: Vec<&str> = text.rsplit_once(')')?.1.split_whitespace().collect();
        let ticks = |field: usize| fields.get(field - 3)?.parse::<f64>().ok();
        Some(Self { cpu_seconds: (ticks(14)? + ticks(15)?) / TICKS, start_seconds: ticks(22)? / TICKS })
    }
}

/// The value of a line of `/proc/self/status` in bytes. The file has it in kB.
fn bytes(status: &str, name: &str) -> Option<f64> {
    let value = status.lines().find_map(|line| line.strip_prefix(name))?;
    Some(value.split_whitespace().next()?.parse::<f64>().ok()? * 1024.0)
}

/// The soft limit of open files in `/proc/self/limits`.
fn open_file_limit(limits: &str) -> Option<f64> {
    let limit = limits.lines().find_map(|line| line.strip_prefix("Max open files"))?.split_whitespace().next()?;
    if limit == "unlimited" { Some(u64::MAX as f64) } else { limit.parse().ok() }
}

/// When the machine booted, in seconds since 1970, from `/proc/stat`.
fn boot_time(stat: &str) -> Option<f64> {
    stat.lines().find_map(|line| line.strip_prefix("btime "))?.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use prometheus_client::registry::Registry;

    use super::*;
    use crate::observe::metrics::Format;

    #[test]
    fn files_of_proc_are_parsed() {
        let stat = "713 (a ) b) S 1 713 713 0 -1 4194560 1 2 3 4 150 50 0 0 20 0 3 0 12345 226000000 1500 18446744073709551615";
        assert_eq!(Stat::of(stat), Some(Stat { cpu_seconds: 2.0, start_seconds: 123.45 }));
        assert_eq!(Stat::of("713 (x) S 1"), None);
        assert_eq!(bytes("VmSize:\t  2048 kB\nVmRSS:\t    12 kB\n", "VmRSS:"), Some(12288.0));
        assert_eq!(bytes("", "VmRSS:"), None);
        let limits = "Limit                     Soft Limit           Hard Limit           Units\nMax open files            1024                 1048576              files\n";
        assert_eq!(open_file_limit(limits), Some(1024.0));
        assert_eq!(open_file_limit("Max open files  unlimited unlimited files"), Some(18_446_744_073_709_551_615.0));
        assert_eq!(boot_time("cpu 1 2\nbtime 1700000000\n"), Some(1_700_000_000.0));
    }

    #[test]
    fn every_metric_is_exported_for_this_process() {
        let mut registry = Registry::default();
        registry.register_collector(Box::new(ProcessCollector));
        let text = Format::Classic.write(&registry);
        for (name, kind) in [
            ("process_cpu_seconds_total", "counter"),
            ("process_max_fds", "gauge"),
            ("process_open_fds", "gauge"),
            ("process_resident_memory_bytes", "gauge"),
            ("process_start_time_seconds", "gauge"),
            ("process_virtual_memory_bytes", "gauge"),
        ] {
            assert!(text.contains(&format!("# TYPE {name} {kind}\n{name} ")), "{name} in\n{text}");
        }
    }
}
