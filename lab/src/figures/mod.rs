//! Measurements: memory and CPU time of a process, quantiles, and the table that shows them.

#![allow(clippy::cast_precision_loss, clippy::print_stdout, reason = "a measuring tool: it counts and prints")]

mod table;

pub use table::{Rows, Table};

/// Returns a memory figure of `/proc/PID/status` in MB (10^6 bytes), for example `VmRSS`.
pub fn read_memory_mb(process: u32, name: &str) -> f64 {
    let status = std::fs::read_to_string(format!("/proc/{process}/status")).expect("the process is running");
    let line = status.lines().find(|line| line.starts_with(name)).expect("the kernel reports this figure");
    line.split_whitespace().nth(1).and_then(|kb| kb.parse::<f64>().ok()).expect("a number") * 1024.0 / 1e6
}

/// Returns the CPU time of all threads of a process in ms, without its children. The resolution is 10 ms.
pub fn read_cpu_ms(process: u32) -> f64 {
    sum_of_ticks(process, 2)
}

/// Adds up the first of utime, stime, cutime and cstime in `/proc/PID/stat` (proc(5)), and returns them in ms.
fn sum_of_ticks(process: u32, count: usize) -> f64 {
    let stat = std::fs::read_to_string(format!("/proc/{process}/stat")).expect("the process is running");
    let (_, fields) = stat.rsplit_once(") ").expect("a name in brackets");
    fields.split(' ').skip(11).take(count).map(|ticks| ticks.parse::<f64>().expect("a number") * 10.0).sum()
}

/// Returns the CPU time of a process and of its children that have ended, in ms. The resolution is 10 ms.
pub fn read_cpu_with_children_ms(process: u32) -> f64 {
    sum_of_ticks(process, 4)
}

/// Sorts the values and returns their quantile, for example the median for 0.5.
pub fn quantile(values: &mut [f64], fraction: f64) -> f64 {
    values.sort_by(f64::total_cmp);
    let index = (0..values.len()).find(|index| (index + 1) as f64 >= fraction * values.len() as f64);
    values[index.expect("there are values")]
}
