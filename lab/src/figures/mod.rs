//! What measures: figures of a process, quantiles, the table that they go into.

#![allow(clippy::cast_precision_loss, clippy::print_stdout, reason = "an instrument: it counts and prints")]

mod table;

pub use table::{Rows, Table};

/// A figure of `/proc/PID/status`, in MB of a million bytes.
pub fn memory(process: u32, name: &str) -> f64 {
    let status = std::fs::read_to_string(format!("/proc/{process}/status")).expect("it runs");
    let line = status.lines().find(|line| line.starts_with(name)).expect("the kernel says so");
    line.split_whitespace().nth(1).and_then(|kb| kb.parse::<f64>().ok()).expect("a number") * 1024.0 / 1e6
}

/// CPU time of all threads of a process, without its children's, in ms; to 10 ms.
pub fn cpu(process: u32) -> f64 {
    let stat = std::fs::read_to_string(format!("/proc/{process}/stat")).expect("it runs");
    let (_, fields) = stat.rsplit_once(") ").expect("a name in brackets");
    fields.split(' ').skip(11).take(2).map(|ticks| ticks.parse::<f64>().expect("a number") * 10.0).sum()
}

/// The value that this part of all values do not exceed.
pub fn quantile(values: &mut [f64], part: f64) -> f64 {
    values.sort_by(f64::total_cmp);
    let place = (0..values.len()).find(|place| (place + 1) as f64 >= part * values.len() as f64);
    values[place.expect("there are values")]
}
