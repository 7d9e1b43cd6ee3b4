//! The lines of a table of servers under one load.

use crate::pairs::Runs;
use crate::spread::Spread;
use crate::text_table::{NONE, TextTable, figure};
use crate::window::Report;

/// A table whose second column of figures is a ratio of rates.
pub fn table(ratio: &str) -> TextTable {
    TextTable::new([
        "server",
        "requests/s",
        ratio,
        "p50 ms",
        "p99 ms",
        "p99.9 ms",
        "CPU µs/request",
        "system calls/request",
        "disturbed",
    ])
}

/// The line of one server, of medians.
pub fn line(runs: &Runs, ratio: String) -> Vec<String> {
    let millis = |value: fn(&Report) -> f64| figure(runs.median(value) / 1e3);
    vec![
        runs.name.clone(),
        figure(runs.median(|report| report.rate)),
        ratio,
        millis(|report| report.p50_us),
        millis(|report| report.p99_us),
        millis(|report| report.p999_us),
        figure(runs.median(|report| report.server_cpu_us.unwrap_or(f64::NAN))),
        runs.syscalls.map_or(NONE.to_owned(), |calls| format!("{calls:.2}")),
        disturbance(runs.median(|report| report.disturbed)),
    ]
}

/// A ratio with its least and most.
pub fn written(ratio: Spread) -> String {
    format!("{:.2} ({:.2}–{:.2})", ratio.median, ratio.min, ratio.max)
}

/// Threads that wait for each other cannot be told from threads that wait for other processes.
fn disturbance(share: f64) -> String {
    if share > 1.0 { NONE.to_owned() } else { format!("{:.0} %", share * 100.0) }
}
